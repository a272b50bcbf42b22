//! The layer and its options.

use std::{fmt, sync::Arc};

use larder_core::{Larder, Target, kernel::Kernel};
use tower_layer::Layer;

use super::{read_your_writes::ReadYourWrites, service::InvalidationService};
use crate::address::{Head, Scheme};

/// Invalidates after a write, before the client gets the response.
///
/// After an unsafe request (POST, PUT, PATCH, DELETE, and any method that is not known to be safe), one append to the
/// log invalidates
///
/// 1. the targets that the handler added through [`PendingInvalidations`](crate::PendingInvalidations) (the
///    `Invalidate` extractor) before the head left, for any status and even if the handler panics, because the write
///    may be committed;
/// 2. after 2xx and 3xx, the targets of the layer and, unless the response is gRPC, the target URI, a `Location` and
///    `Content-Location` of the same origin ([RFC 9111, section 4.4]), and the groups of `Cache-Group-Invalidation`
///    ([RFC 9875]).
///
/// If a task that outlives the response adds a target later, larder invalidates that target at once and separately.
///
/// The request is polled in place. If its client disconnects before it is finished, the request continues in a task, so
/// that the invalidation always follows the commit; [`InvalidationLayer::cancel_on_drop`] switches that off.
///
/// With [`ReadYourWrites`] the client of a write carries the log position of its invalidation. The process that serves
/// the next request of that client first applies the log up to this position; if it cannot, it serves no stored entry.
///
/// [RFC 9111, section 4.4]: https://www.rfc-editor.org/rfc/rfc9111#section-4.4
/// [RFC 9875]: https://www.rfc-editor.org/rfc/rfc9875
///
/// ```
/// # use std::{convert::Infallible, time::Duration};
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # use larder_core::Larder;
/// # use larder_http::{InvalidationLayer, ResponseCacheLayer};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let larder = Larder::builder().build().expect("the defaults are valid");
/// # let page = service_fn(|_: Request<Full<Bytes>>| async {
/// #     Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")))
/// # });
/// let service = ServiceBuilder::new()
///     .layer(InvalidationLayer::new(&larder))
///     .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)))
///     .service(page);
/// # let ask = |method| {
/// #     let request = Request::builder().method(method).uri("/").body(Full::default());
/// #     service.clone().oneshot(request.expect("a valid request"))
/// # };
/// ask("GET").await.expect("it cannot fail");
/// ask("POST").await.expect("it cannot fail");
/// let next = ask("GET").await.expect("it cannot fail");
/// assert_eq!(next.headers()["cache-status"], "larder; fwd=stale; stored");
/// # }
/// ```
#[doc(alias("write-through invalidation", "purge on write", "write-around"))]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct InvalidationLayer {
    options: Options,
}

type Targets = Arc<dyn Fn(&Head<'_>) -> Vec<Target> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) kernel: Kernel,
    pub(super) targets: Vec<Targets>,
    pub(super) scheme: Scheme,
    pub(super) implicit: bool,
    pub(super) cancel_on_drop: bool,
    pub(super) positions: Option<ReadYourWrites>,
    pub(super) redirects_reach_partitions: bool,
}

impl InvalidationLayer {
    /// Creates a layer over this larder.
    pub fn new(larder: &Larder) -> Self {
        let options = Options {
            kernel: larder.kernel().clone(),
            targets: Vec::new(),
            scheme: Scheme::default(),
            implicit: true,
            cancel_on_drop: false,
            positions: None,
            redirects_reach_partitions: false,
        };
        Self { options }
    }

    /// Adds targets that larder also invalidates after a successful write (2xx or 3xx) on these routes. Each call adds
    /// to the targets of earlier calls.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, error::Error, time::Duration};
    /// # use bytes::Bytes;
    /// # use http::{Request, Response};
    /// # use larder_core::Larder;
    /// # use larder_http::*;
    /// # use tower::{Layer as _, ServiceExt as _, service_fn};
    /// # type Body = http_body_util::Full<Bytes>;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn Error>> {
    /// # let larder = Larder::builder().build()?;
    /// # use larder_core::Target;
    /// # use tower::ServiceBuilder;
    /// # let page = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from("a page"))) });
    /// let service = ServiceBuilder::new()
    ///     // A write below /products changes its own page, which is implied, and these two.
    ///     .layer(InvalidationLayer::new(&larder).targets(|_| ["/", "/products"].map(Target::path)))
    ///     .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)))
    ///     .service(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/products")).await?, "larder; fwd=uri-miss; stored");
    /// status(Request::put("/products/42")).await?;
    /// assert_eq!(status(Request::get("/products")).await?, "larder; fwd=stale; stored");
    /// # Ok(())
    /// # }
    /// ```
    pub fn targets<I>(mut self, targets: impl Fn(&Head<'_>) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Target>>,
    {
        self.options
            .targets
            .push(Arc::new(move |head| targets(head).into_iter().map(Into::into).collect()));
        self
    }

    /// Invalidates only the targets of the handler and of [`targets`](Self::targets), and not the target URI or the
    /// URIs and groups that the response names. Use it for routes whose writes do not change any stored response.
    pub fn explicit_only(mut self) -> Self {
        self.options.implicit = false;
        self
    }

    /// Cancels a write whose client disconnects. If the handler is then cancelled between its commit and its end, the
    /// invalidation is lost, so the handler itself must prevent that.
    pub fn cancel_on_drop(mut self) -> Self {
        self.options.cancel_on_drop = true;
        self
    }

    /// Makes a client see its own writes, no matter which process serves its next request. It is off by default,
    /// because other processes follow within milliseconds, and each request that carries a position waits until its
    /// process has applied the log up to that position.
    #[doc(alias("session consistency"))]
    #[cfg(feature = "read-your-writes")]
    pub fn read_your_writes(mut self, positions: ReadYourWrites) -> Self {
        self.options.positions = Some(positions);
        self
    }

    /// Invalidates the target of a redirect after a write in all partitions, like the target URI. By default larder
    /// invalidates it only outside of partitions and in the partition of the request, so that the sign-in of a user
    /// that redirects to `/` does not remove the pages of all other users.
    ///
    /// # Source
    ///
    /// [RFC 9111, section 4.4](https://www.rfc-editor.org/rfc/rfc9111#section-4.4), which leaves it to the cache
    #[doc(alias("post redirect get"))]
    pub fn redirects_reach_partitions(mut self) -> Self {
        self.options.redirects_reach_partitions = true;
        self
    }

    /// Sets the scheme of requests. If it is `https`, the cookie of [`ReadYourWrites`] is `Secure`. The invalidated
    /// targets do not depend on the scheme.
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.options.scheme = scheme;
        self
    }
}

impl<S> Layer<S> for InvalidationLayer {
    type Service = InvalidationService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        if self.options.positions.is_some() {
            // In this layer, the scheme affects only the cookie.
            self.options.kernel.note_setting("scheme", &self.options.scheme, "InvalidationLayer");
        }
        InvalidationService::new(inner, Arc::new(self.options.clone()))
    }
}

impl Clone for InvalidationLayer {
    fn clone(&self) -> Self {
        Self { options: self.options.clone() }
    }
}

impl fmt::Debug for InvalidationLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidationLayer").finish_non_exhaustive()
    }
}
