//! `HttpCache`: the conditional, invalidation and response cache layers as one layer, in the order that they need.

use larder_core::{Larder, Lifetime};
use tower_layer::Layer;

#[cfg(feature = "read-your-writes")]
use crate::invalidation::ReadYourWrites;
use crate::{
    address::{Head, QueryRule, Scheme},
    conditional::{ConditionalLayer, ConditionalService},
    invalidation::{InvalidationLayer, InvalidationService},
    response_cache::{IntoPartition, ResponseCache, ResponseCacheLayer},
};

/// [`ConditionalLayer`], [`InvalidationLayer`] and [`ResponseCacheLayer`] as one layer.
///
/// A hit costs as much as with three separate layers.
///
/// From outermost to innermost, [`ConditionalLayer`] answers with 304 and 412, [`InvalidationLayer`] invalidates after
/// a write and before its response, and [`ResponseCacheLayer`] stores responses. A setting that two of the layers share
/// is set only once here.
///
/// Use it together with a [`FinalHeadLayer`](crate::FinalHeadLayer), which must be the outermost layer, outside of
/// session and authentication layers. It reports the cookies that these layers add to responses:
///
/// ```
/// # use std::{convert::Infallible, time::Duration};
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use larder_core::Larder;
/// # use larder_http::{FinalHeadLayer, HttpCache, Scheme};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let page = service_fn(|_: Request<Full<Bytes>>| async {
/// #     Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("a page")))
/// # });
/// # let request = || Request::get("/").body(Full::<Bytes>::default());
/// let larder = Larder::builder().build()?;
/// let service = ServiceBuilder::new()
///     .layer(FinalHeadLayer::new())
///     // sessions and authentication
///     .layer(
///         HttpCache::new(&larder)
///             .scheme(Scheme::Https)
///             .responses(|cache| cache.ttl(Duration::from_secs(60)).stale_if_error(Duration::from_secs(600))),
///     )
///     .service(page);
/// service.clone().oneshot(request()?).await?;
/// let hit = service.oneshot(request()?).await?;
/// assert_eq!(hit.headers()["cache-status"], "larder; hit; ttl=59");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
#[doc(alias("page cache", "output cache", "full page cache", "reverse proxy cache"))]
pub struct HttpCache {
    conditional: ConditionalLayer,
    invalidation: InvalidationLayer,
    responses: ResponseCacheLayer,
}

impl HttpCache {
    /// Creates the three layers over this larder, with their defaults.
    pub fn new(larder: &Larder) -> Self {
        Self {
            conditional: ConditionalLayer::new(larder),
            invalidation: InvalidationLayer::new(larder),
            responses: ResponseCacheLayer::new(larder),
        }
    }

    /// Sets the lifetime of responses that have none of their own; see [`ResponseCacheLayer::ttl`].
    #[doc(alias("max-age", "expiry"))]
    pub fn ttl(self, lifetime: impl Into<Lifetime>) -> Self {
        self.responses(|layer| layer.ttl(lifetime))
    }

    /// Declares that these routes render the same response for every user; see [`ResponseCacheLayer::shared`].
    pub fn shared(self) -> Self {
        self.responses(ResponseCacheLayer::shared)
    }

    /// Stores responses per user or tenant; see [`ResponseCacheLayer::partition_by`].
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
    /// # let page = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from("a page"))) });
    /// #[derive(Clone)]
    /// struct UserId(u64);
    ///
    /// // The authentication layer outside refuses a session that it cannot read, so `None` is a visitor.
    /// let service = HttpCache::new(&larder)
    ///     .ttl(Duration::from_secs(60))
    ///     .partition_by(|head| head.extensions.get::<UserId>().map(|user| user.0.to_string()))
    ///     .layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// let request = |user| Request::get("/account").extension(UserId(user));
    /// assert_eq!(status(request(1)).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(request(1)).await?, "larder; hit; ttl=60");
    /// assert_eq!(status(request(2)).await?, "larder; fwd=uri-miss; stored");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("per user", "tenant"))]
    pub fn partition_by<P: IntoPartition>(
        self,
        partition: impl Fn(&Head<'_>) -> P + Send + Sync + 'static,
    ) -> Self {
        self.responses(|layer| layer.partition_by(partition))
    }

    /// Stores the responses to each user in a partition of that user, as
    /// [`ResponseCacheLayer::partition_by_identity`] does.
    #[doc(alias("session", "private cache", "jwt"))]
    pub fn partition_by_identity(self) -> Self {
        self.responses(ResponseCacheLayer::partition_by_identity)
    }

    /// Lets the requests of users bypass the cache, as [`ResponseCacheLayer::bypass_users`] does.
    pub fn bypass_users(self) -> Self {
        self.responses(ResponseCacheLayer::bypass_users)
    }

    /// Sets the scheme of URIs in keys; [`Scheme::Http`] by default. Set [`Scheme::Https`] behind a proxy that
    /// terminates TLS, too. If the scheme is `https`, the cookie of [`ReadYourWrites`] is `Secure`.
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
    /// # let page = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from("a page"))) });
    /// let service = HttpCache::new(&larder)
    ///     .scheme(Scheme::Https)
    ///     .ttl(Duration::from_secs(60))
    ///     .responses(ResponseCacheLayer::cache_status_with_key)
    ///     .layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// let request = || Request::get("/products/42").header("host", "shop.example");
    /// assert_eq!(status(request()).await?, "larder; fwd=uri-miss; stored");
    /// assert!(status(request()).await?.ends_with("key=\"https://shop.example/products/42\""));
    /// # Ok(())
    /// # }
    /// ```
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.invalidation = self.invalidation.scheme(scheme);
        self.responses(|layer| layer.scheme(scheme))
    }

    /// Sets the query parameters that are part of keys; all by default. See [`ResponseCacheLayer::query_params`].
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
    /// # let page = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from("a page"))) });
    /// let service = HttpCache::new(&larder)
    ///     .ttl(Duration::from_secs(60))
    ///     .query_params(QueryRule::without_trackers())
    ///     .layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/list?page=2")).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(Request::get("/list?page=2&utm_source=mail")).await?, "larder; hit; ttl=60");
    /// assert_eq!(status(Request::get("/list?page=3")).await?, "larder; fwd=uri-miss; stored");
    /// # Ok(())
    /// # }
    /// ```
    pub fn query_params(self, rule: QueryRule) -> Self {
        self.responses(|layer| layer.query_params(rule))
    }

    /// Lets a client see its own writes in every process; see [`InvalidationLayer::read_your_writes`].
    #[cfg(feature = "read-your-writes")]
    pub fn read_your_writes(self, positions: ReadYourWrites) -> Self {
        self.invalidation(|layer| layer.read_your_writes(positions))
    }

    /// Lets the handler answer each request, and only counts what the cache would have done; see
    /// [`ResponseCacheLayer::observe_only`]. The [`ConditionalLayer`] answers nothing either, and invalidations act.
    #[doc(alias("dry run", "shadow", "report only"))]
    pub fn observe_only(mut self) -> Self {
        self.conditional = self.conditional.passive();
        self.responses(ResponseCacheLayer::observe_only)
    }

    /// Changes the [`ResponseCacheLayer`].
    pub fn responses(
        mut self,
        change: impl FnOnce(ResponseCacheLayer) -> ResponseCacheLayer,
    ) -> Self {
        self.responses = change(self.responses);
        self
    }

    /// Changes the [`InvalidationLayer`].
    pub fn invalidation(
        mut self,
        change: impl FnOnce(InvalidationLayer) -> InvalidationLayer,
    ) -> Self {
        self.invalidation = change(self.invalidation);
        self
    }

    /// Changes the [`ConditionalLayer`].
    pub fn conditional(
        mut self,
        change: impl FnOnce(ConditionalLayer) -> ConditionalLayer,
    ) -> Self {
        self.conditional = change(self.conditional);
        self
    }
}

impl<S> Layer<S> for HttpCache {
    type Service = ConditionalService<InvalidationService<ResponseCache<S>>>;

    fn layer(&self, inner: S) -> Self::Service {
        self.conditional.layer(self.invalidation.layer(self.responses.layer(inner)))
    }
}
