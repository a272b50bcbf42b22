//! The layer and its options.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use larder_core::{Larder, kernel::Kernel, kernel::Meter};
use larder_semantics::validation::Validators;
use tower_layer::Layer;

use super::service::ConditionalService;
use crate::address::Head;

/// Adds validators and answers conditional requests.
///
/// 1. A 200 to a GET gets a strong entity tag (a hash of its bytes and of the build version), if it has neither `ETag`
///    nor `no-store` and its body is ready at once and at most 1 MiB long. A response cache inside of this layer stores
///    the tag with the response, so that a hit does not compute it. The layer never delays a streamed body for a tag.
/// 2. A GET or HEAD whose `If-None-Match` or `If-Modified-Since` matches the current representation gets a 304, with
///    the fields that belong in it.
/// 3. `If-Match`, `If-Unmodified-Since` and, with an unsafe method, `If-None-Match` guard changes. The handler checks
///    them against the current validators ([`Conditions::check`](crate::Conditions::check), the `Conditional`
///    extractor), or the function that [`ConditionalLayer::validate_with`] sets does. They are never checked against a
///    stored response. larder counts a precondition that was not checked as `unchecked-condition`; with
///    [`ConditionalLayer::refuse_unchecked`] it refuses the change.
///
/// # Source
///
/// [RFC 9110, section 13](https://www.rfc-editor.org/rfc/rfc9110#section-13)
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # use larder_core::Larder;
/// # use larder_http::ConditionalLayer;
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let larder = Larder::builder().build().expect("the defaults are valid");
/// let page = service_fn(|_: Request<Full<Bytes>>| async {
///     Ok::<_, Infallible>(Response::new(Full::from("hello")))
/// });
/// let service = ServiceBuilder::new().layer(ConditionalLayer::new(&larder)).service(page);
///
/// let ask = Request::get("/").body(Full::default()).expect("a valid request");
/// let first = service.clone().oneshot(ask).await.expect("it cannot fail");
/// let tag = &first.headers()["etag"];
/// let again = Request::get("/").header("if-none-match", tag).body(Full::default());
/// let second = service.oneshot(again.expect("a valid request")).await.expect("it cannot fail");
/// assert_eq!(second.status(), 304);
/// # }
/// ```
#[doc(alias("ETag", "browser cache", "304 Not Modified", "If-None-Match", "optimistic locking"))]
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct ConditionalLayer {
    options: Options,
}

pub(super) type Validate =
    Arc<dyn Fn(Head<'_>) -> Pin<Box<dyn Future<Output = Option<Validators>> + Send>> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) version: Arc<str>,
    pub(super) meter: Arc<Meter>,
    pub(super) kernel: Kernel,
    pub(super) validate: Option<Validate>,
    pub(super) refuse_unchecked: bool,
    pub(super) require: bool,
    /// Whether the layer only tells the handler the preconditions.
    pub(super) is_passive: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("version", &self.version).finish_non_exhaustive()
    }
}

impl ConditionalLayer {
    /// Leaves all requests and responses as they are, and only tells the handler the preconditions.
    pub(crate) fn passive(mut self) -> Self {
        self.options.is_passive = true;
        self
    }

    /// Creates a layer whose entity tags are hashes of the body and of the application's version
    /// ([`LarderBuilder::version`](larder_core::LarderBuilder::version)).
    pub fn new(larder: &Larder) -> Self {
        let options = Options {
            version: larder.kernel().version().into(),
            meter: larder.kernel().meter("conditional"),
            kernel: larder.kernel().clone(),
            validate: None,
            refuse_unchecked: false,
            require: false,
            is_passive: false,
        };
        Self { options }
    }

    /// Sets a function that returns the current validators for a conditional request. The layer calls it before the
    /// handler, and answers with 304 or 412 without calling the handler if the validators suffice. Return
    /// [`Validators::absent`] if the resource does not exist, and `None` for a request that the function does not know.
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
    /// # use larder_semantics::validation::{EntityTag, Validators};
    /// // The revision of a report is cheap to look up; the report is not.
    /// let layer = ConditionalLayer::new(&larder).validate_with(|head| {
    ///     let is_report = head.uri.path() == "/report";
    ///     async move { EntityTag::strong("r7").filter(|_| is_report).map(Validators::from) }
    /// });
    /// let service = layer.layer(service_fn(async |_: Request<Body>| -> Result<Response<Body>, Infallible> {
    ///     unreachable!("the layer answers both requests by itself")
    /// }));
    /// let read = Request::get("/report").header("if-none-match", "\"r7\"").body(Body::default())?;
    /// assert_eq!(service.clone().oneshot(read).await?.status(), 304);
    /// let write = Request::put("/report").header("if-match", "\"r6\"").body(Body::default())?;
    /// assert_eq!(service.oneshot(write).await?.status(), 412);
    /// # Ok(())
    /// # }
    /// ```
    pub fn validate_with<F, Fut>(mut self, current: F) -> Self
    where
        F: Fn(Head<'_>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<Validators>> + Send + 'static,
    {
        self.options.validate = Some(Arc::new(move |head| Box::pin(current(head))));
        self
    }

    /// Refuses, with 412, a change with `If-Match`, `If-Unmodified-Since` or `If-None-Match` if the layer itself cannot
    /// check the precondition, because [`validate_with`](Self::validate_with) is not set or its function returns
    /// `None`. By default the handler runs, and larder counts a precondition that the handler did not check either.
    pub fn refuse_unchecked(mut self) -> Self {
        self.options.refuse_unchecked = true;
        self
    }

    /// Refuses, with 428, a change that has no precondition.
    ///
    /// # Source
    ///
    /// [RFC 6585, section 3](https://www.rfc-editor.org/rfc/rfc6585#section-3)
    pub fn require_preconditions(mut self) -> Self {
        self.options.require = true;
        self
    }
}

impl<S> Layer<S> for ConditionalLayer {
    type Service = ConditionalService<S>;

    fn layer(&self, inner: S) -> ConditionalService<S> {
        ConditionalService::new(inner, Arc::new(self.options.clone()))
    }
}
