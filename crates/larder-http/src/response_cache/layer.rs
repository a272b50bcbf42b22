//! The options of a response cache.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use larder_core::{
    ByteSize, Consistency, Larder, Lifetime, Tiers,
    kernel::{Kernel, RefreshAhead},
};
use larder_semantics::{
    fields,
    freshness::Heuristics,
    storing::{Profile, Role},
};
use tower_layer::Layer;

use super::{
    context::CacheContext,
    explain::Explainers,
    options::{IntoPartition, KeyInput, Options, UnknownPartition, WriteCheck},
    service::ResponseCache,
};
use crate::{
    address::{Head, QueryRule, Scheme},
    identity::Identity,
};

/// The tower layer of a response cache, which stores whole responses and answers requests from them.
///
/// Each request takes one of three paths. *Hit*: larder answers with a fresh stored response, and neither waits nor
/// spawns a task. *Miss*: one request, the leader, runs a fill, which calls the inner service in a task of its own. The
/// other requests for the same key are its waiters; they get the same response, complete or while it is in flight.
/// *Bypass*: larder forwards the request as if the layer were not there.
///
/// larder stores a response to GET, under its effective URI and the request fields that it varies by, if both
/// are true:
///
/// 1. it has a lifetime (by `Cache-Control`, `Expires`, or `CachePolicy` in the handler), or
///    [`ttl`](ResponseCacheLayer::ttl) adds one;
/// 2. its body is no larger than [`body_limit`](ResponseCacheLayer::body_limit).
///
/// larder does not store the following responses; `Cache-Status` and the counters name the reason:
///
/// 1. a response with `no-store`, with `private` and no partition, with `no-cache` and no validator, with
///    `Set-Cookie`, or with `Vary: *`;
/// 2. a response to an authenticated request (`Cookie`, `Authorization`, …), unless the response has `public`
///    or `s-maxage`, the layer is [`shared`](ResponseCacheLayer::shared), or the request has a
///    [partition](ResponseCacheLayer::partition_by);
/// 3. event streams, gRPC, upgrades, partial responses without a validator, and responses with trailers;
/// 4. an error, even with a lifetime, except 404, 410 and the statuses of
///    [`negative_ttl`](ResponseCacheLayer::negative_ttl);
/// 5. a response whose lifetime comes from [`ttl`](ResponseCacheLayer::ttl) alone, if its request has a field that is
///    not known to be harmless;
/// 6. a response that an outer layer has made specific to one client, if a [`FinalHeadLayer`](crate::FinalHeadLayer)
///    reports that.
///
/// larder revalidates a stale response that has a validator with the inner service, and a 304 freshens it. It answers
/// conditional requests and range requests from the stored response, and a HEAD from the stored response to a GET.
/// Other methods bypass the cache ([`BodyKeyLayer`](crate::BodyKeyLayer) adds QUERY, and POST requests that only read); see
/// [`InvalidationLayer`](crate::InvalidationLayer) for their effect on entries.
///
/// # Before deploying
///
/// Behind a proxy that terminates TLS, set [`scheme`](ResponseCacheLayer::scheme). If clients send credentials, choose
/// `shared` for pages that do not depend on the user, and a partition for pages that do. Until then, larder stores a
/// response to an authenticated request only if it has `public` or `s-maxage`.
///
/// If a response may be stored, its handler does not see unkeyed inputs. larder strips `X-Forwarded-Host` and the like,
/// unless [`vary_by_header`](ResponseCacheLayer::vary_by_header) declares them, and the parameters that
/// [`query_params`](ResponseCacheLayer::query_params) excludes. It sets `X-Forwarded-Proto` to the scheme of the key.
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use bytes::Bytes;
/// use larder_core::Larder;
/// use larder_http::ResponseCacheLayer;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let larder = Larder::builder().build().expect("the defaults are valid");
/// let page = service_fn(|_: Request<Full<Bytes>>| async {
///     Ok::<_, Infallible>(Response::new(Full::from("hello")))
/// });
/// let service = ServiceBuilder::new()
///     .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)))
///     .service(page);
///
/// let ask = || Request::get("/").body(Full::default()).expect("a valid request");
/// let first = service.clone().oneshot(ask()).await.expect("it cannot fail");
/// assert_eq!(first.headers()["cache-status"], "larder; fwd=uri-miss; stored");
/// let second = service.oneshot(ask()).await.expect("it cannot fail");
/// assert_eq!(second.headers()["cache-status"], "larder; hit; ttl=59");
/// # }
/// ```
#[doc(alias(
    "page cache",
    "HTTP cache",
    "output cache",
    "reverse proxy cache",
    "full page caching",
    "single flight",
    "stampede",
    "request coalescing"
))]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct ResponseCacheLayer {
    pub(super) kernel: Kernel,
    pub(super) options: Options,
    scheme: Option<Scheme>,
    targeted_fields: Option<Vec<HeaderName>>,
}

impl ResponseCacheLayer {
    /// Creates a layer over this larder. By default it stores only responses that have a lifetime of their own.
    pub fn new(larder: &Larder) -> Self {
        Self {
            kernel: larder.kernel().clone(),
            options: Options::default(),
            scheme: None,
            targeted_fields: None,
        }
    }

    /// Sets the lifetime of responses that have none of their own. Without this setting they are not stored. It applies
    /// to the statuses 200, 203, 204, 300, 301 and 308.
    ///
    /// Prefer a lifetime that the handler sets (`CachePolicy`, `Cache-Control`), because the handler knows which inputs
    /// its response depends on. A response whose lifetime comes from this setting alone may depend on any field of its
    /// request. So `Accept`, `Accept-Language` and the request fields for page fragments are part of its key, unless it
    /// has a `Vary`, and a request with a field that is not known to be harmless bypasses the cache
    /// (`detail=unknown-field`). [`depends_on_url_alone`](Self::depends_on_url_alone) promises that no field matters;
    /// [`harmless_field`](Self::harmless_field) and [`vary_by_header`](Self::vary_by_header) declare a single field.
    ///
    /// larder sends a response whose lifetime comes from this setting alone with `Cache-Control: no-cache` and an
    /// `ETag`, because it cannot invalidate browsers.
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
    /// let service = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)).layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(Request::get("/")).await?, "larder; hit; ttl=60");
    ///
    /// // The handler may depend on this field; `harmless_field` declares that it does not.
    /// let request = Request::get("/").header("x-theme", "dark");
    /// assert_eq!(status(request).await?, "larder; fwd=bypass; detail=unknown-field");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("time to live", "default ttl"))]
    pub fn ttl(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.lifetime = Some(lifetime.into());
        self
    }

    /// Sets the lifetime of every storable response with one of the statuses of [`ttl`](Self::ttl), in place of its own
    /// lifetime. This includes responses with `no-cache`, or with a lifetime from `CachePolicy`.
    pub fn override_ttl(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.override_lifetime = Some(lifetime.into());
        self
    }

    /// Disables this cache, so that it stores nothing. A response cache around it does not store the responses of its
    /// routes either.
    pub fn disabled(mut self) -> Self {
        self.options.off = true;
        self
    }

    /// Bypasses the cache for requests for which the predicate returns `true`. For such a request, larder does not look
    /// up or store a response, and does not strip fields. Use it for exceptions from a [`shared`](Self::shared) layer.
    /// A layer on an inner route cannot make such an exception, because the outer layer has already stripped the
    /// credentials. The predicate runs for each request, so it should be cheap. If there are several predicates, it is
    /// enough that one of them returns `true`.
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
    /// let service = ResponseCacheLayer::new(&larder)
    ///     .ttl(Duration::from_secs(60))
    ///     .shared()
    ///     .bypass_if(|head| head.uri.path().starts_with("/cart"))
    ///     .layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(Request::get("/cart")).await?, "larder; fwd=bypass; detail=by-choice");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("exclude", "skip", "condition"))]
    pub fn bypass_if<F>(mut self, passes: F) -> Self
    where
        F: Fn(&Head<'_>) -> bool + Send + Sync + 'static,
    {
        self.options.bypass_if.push(Arc::new(passes));
        self
    }

    /// Sets how long larder may serve a stale response while a refresh runs, for responses that do not set this window
    /// themselves.
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
    /// let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    /// let layer = ResponseCacheLayer::new(&larder).ttl(minute).stale_while_revalidate(minute);
    /// let service = layer.layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=uri-miss; stored");
    ///
    /// tokio::time::advance(minute + second).await;
    /// assert_eq!(status(Request::get("/")).await?, "larder; hit; ttl=-1", "stale; a refresh begins");
    /// larder.close(second).await; // waits for the refresh
    /// assert_eq!(status(Request::get("/")).await?, "larder; hit; ttl=60");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("background refresh", "SWR"))]
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.options.while_revalidating = Some(window);
        self
    }

    /// Refreshes a fresh response in the background once less than this share of its freshness lifetime is left, so that
    /// a response that is requested often enough never expires. The request that finds it so is answered at once, and its
    /// head is the head of the refresh, under the rules of a fill: a response is never stored for more clients than its
    /// key serves.
    ///
    /// A response that is not requested is not refreshed. Refreshes run within
    /// [`LarderBuilder::refresh_budget`](larder_core::LarderBuilder::refresh_budget), read the second level first, and
    /// take the fill lock of [`fill_once_per_cluster`](Self::fill_once_per_cluster).
    ///
    /// # Panics
    ///
    /// If the share is not more than 0 and less than 1.
    #[doc(alias("early refresh", "prefetch"))]
    pub fn refresh_ahead(mut self, share: f64) -> Self {
        self.options.refresh_ahead = Some(RefreshAhead::share(share));
        self
    }

    /// Sets how long larder may serve a stale response in place of an error (500, 502, 503, 504, or an error of the
    /// inner service), for responses that do not set this window themselves.
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
    /// # use std::sync::atomic::{AtomicU16, Ordering};
    /// static STATUS: AtomicU16 = AtomicU16::new(200);
    /// let origin = service_fn(|_: Request<Body>| async {
    ///     Response::builder().status(STATUS.load(Ordering::Relaxed)).body(Body::from("a page"))
    /// });
    /// let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    /// let service = ResponseCacheLayer::new(&larder).ttl(minute).stale_if_error(hour).layer(origin);
    /// let request = || Request::get("/").body(Body::default());
    /// service.clone().oneshot(request()?).await?;
    ///
    /// STATUS.store(503, Ordering::Relaxed);
    /// tokio::time::advance(2 * minute).await;
    /// let response = service.oneshot(request()?).await?;
    /// assert_eq!(response.status(), 200, "the stale page in place of the error");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("fail-safe", "grace"))]
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.options.on_error = Some(window);
        self
    }

    /// Stores responses with these statuses for `lifetime`, unless they have a lifetime of their own. There are no such
    /// statuses by default, because a stored error hides a page from all clients.
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
    /// # use http::StatusCode;
    /// let page = service_fn(|_: Request<Body>| async {
    ///     Response::builder().status(StatusCode::NOT_FOUND).body(Body::from("no such product"))
    /// });
    /// let ten_seconds = Duration::from_secs(10);
    /// let layer = ResponseCacheLayer::new(&larder).negative_ttl([StatusCode::NOT_FOUND], ten_seconds);
    /// let service = layer.layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/products/0")).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(Request::get("/products/0")).await?, "larder; hit; ttl=10");
    /// tokio::time::advance(ten_seconds).await;
    /// assert_eq!(status(Request::get("/products/0")).await?, "larder; fwd=stale; stored");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("negative caching", "cache penetration"))]
    pub fn negative_ttl(
        mut self,
        statuses: impl IntoIterator<Item = StatusCode>,
        lifetime: impl Into<Lifetime>,
    ) -> Self {
        let lifetime = lifetime.into();
        self.options.negative.extend(statuses.into_iter().map(|status| (status, lifetime)));
        self
    }

    /// Declares that the responses of these routes do not depend on the user. larder then strips the credentials from
    /// requests that it may answer from the cache, and all clients share the stored responses.
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
    /// let page = service_fn(|request: Request<Body>| async move {
    ///     assert!(!request.headers().contains_key("cookie"), "the layer strips it");
    ///     Ok::<_, Infallible>(Response::new(Body::from("the same page for all users")))
    /// });
    /// let service = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)).shared().layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// let request = |cookie| Request::get("/").header("cookie", cookie);
    /// assert_eq!(status(request("session=1")).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(request("session=2")).await?, "larder; hit; ttl=60");
    /// # Ok(())
    /// # }
    /// ```
    pub fn shared(mut self) -> Self {
        self.options.shared = true;
        self
    }

    /// Stores an entry per partition, such as per user. A shared cache may store a `private` response only with a
    /// partition.
    ///
    /// The closure returns an `Option` or a `Result<Option<_>, _>`: `Some` names the partition, `None` stands for a
    /// visitor without a partition, and an `Err` makes the request bypass the cache (`detail=identity`). If the closure
    /// may fail to find the user, return the `Err`. With `.ok()`, larder would treat a user whose session cannot be
    /// read as a visitor, and if the handler can read the session nevertheless, larder would serve the page of that
    /// user to all visitors.
    ///
    /// The name of the partition must already be verified. For example, use the id of a session and not the value of a
    /// cookie.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_core::Larder;
    /// use larder_http::ResponseCacheLayer;
    ///
    /// #[derive(Clone)]
    /// struct SessionUnreadable;
    /// #[derive(Clone)]
    /// struct User(u64);
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// // The authentication layer outside leaves its result: a user, a visitor, or an error.
    /// let layer = ResponseCacheLayer::new(&larder).partition_by(|head| {
    ///     match head.extensions.get::<Result<Option<User>, SessionUnreadable>>() {
    ///         Some(Ok(user)) => Ok(user.as_ref().map(|user| user.0.to_string())),
    ///         Some(Err(_)) | None => Err(SessionUnreadable),
    ///     }
    /// });
    /// # drop(layer);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("vary by user", "private cache"))]
    pub fn partition_by<P: IntoPartition>(
        mut self,
        partition: impl Fn(&Head<'_>) -> P + Send + Sync + 'static,
    ) -> Self {
        self.options.partition = Some(Arc::new(move |head| partition(head).into_partition()));
        self
    }

    /// Stores the responses to each user in a partition of that user, as an [`IdentityLayer`](crate::IdentityLayer) outside
    /// of the cache has found the user. Visitors who are not signed in share. A request whose identity is unknown bypasses
    /// the cache (`detail=identity`), and so does every request if there is no such layer.
    ///
    /// # Examples
    ///
    /// [`IdentityLayer`](crate::IdentityLayer) has an example.
    #[doc(alias("session", "private cache", "jwt"))]
    pub fn partition_by_identity(self) -> Self {
        self.partition_by(|head| match head.extensions.get::<Identity>() {
            Some(Identity::User(name)) => Ok(Some(name.clone())),
            Some(Identity::Anonymous) => Ok(None),
            Some(Identity::Unknown) | None => Err(UnknownPartition),
        })
    }

    /// Lets the requests of users bypass the cache (`detail=identity`), as an [`IdentityLayer`](crate::IdentityLayer)
    /// outside of the cache has found them, for pages that would be stored once for each user and seldom read twice. Visitors
    /// share. A request whose identity is unknown bypasses the cache, too.
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
    /// let service =
    ///     ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)).bypass_users().layer(page);
    /// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
    /// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// // An IdentityLayer leaves the extension.
    /// let user = Request::get("/").extension(Identity::user(7));
    /// assert_eq!(status(user).await?, "larder; fwd=bypass; detail=identity");
    /// let visitor = Request::get("/").extension(Identity::Anonymous);
    /// assert_eq!(status(visitor).await?, "larder; fwd=uri-miss; stored");
    /// # Ok(())
    /// # }
    /// ```
    pub fn bypass_users(self) -> Self {
        self.partition_by(|head| match head.extensions.get::<Identity>() {
            Some(Identity::Anonymous) => Ok(None::<Bytes>),
            Some(Identity::User(_) | Identity::Unknown) | None => Err(UnknownPartition),
        })
    }

    /// Stores an entry per value, such as a locale or a class of devices. There should be few values.
    ///
    /// `fields` are the request fields that `value` reads. Responses name them in `Vary`, so that downstream caches
    /// separate the same requests. Without fields, the value depends on an input that those caches cannot see, such as
    /// an extension, so larder sends the responses as `private` and without fields for CDNs.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::header;
    /// use larder_core::Larder;
    /// use larder_http::ResponseCacheLayer;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let layer = ResponseCacheLayer::new(&larder).vary_by("device", [header::USER_AGENT], |head| {
    ///     let agent = head.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    ///     if agent.is_some_and(|agent| agent.contains("Mobile")) { "phone" } else { "desktop" }
    /// });
    /// # drop(layer);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("vary by header", "vary by custom"))]
    pub fn vary_by<V: Into<String>>(
        mut self,
        name: &str,
        fields: impl IntoIterator<Item = HeaderName>,
        value: impl Fn(&Head<'_>) -> V + Send + Sync + 'static,
    ) -> Self {
        self.options.vary_by.push(KeyInput {
            name: name.into(),
            fields: fields.into_iter().collect(),
            value: Arc::new(move |head| value(head).into()),
        });
        self
    }

    /// Lets an unkeyed field such as `X-Forwarded-Host`, which larder otherwise strips, reach the handler, and stores
    /// an entry per value of the field. Use it for fields that a proxy in front always sets. Responses name the field
    /// in `Vary`.
    #[doc(alias("unkeyed header", "cache poisoning"))]
    pub fn vary_by_header(mut self, field: HeaderName) -> Self {
        self.options.vary_by_header.push(field.clone());
        let name = field.as_str().to_owned();
        self.vary_by(&name, [field.clone()], move |head| {
            // The value includes the length of each line, so that one line never looks like two lines.
            let lines = head.headers.get_all(&field).iter();
            lines
                .map(|line| format!("{}={};", line.len(), line.as_bytes().escape_ascii()))
                .collect::<String>()
        })
    }

    /// Declares that a request field, such as a tracing field of the application, does not select a response. The field
    /// then no longer makes a request bypass responses whose lifetime comes from [`ttl`](Self::ttl) alone.
    pub fn harmless_field(mut self, field: HeaderName) -> Self {
        self.options.harmless.push(field);
        self
    }

    /// Promises that every response of these routes depends only on its URL and on the fields that it names in `Vary`,
    /// even if its lifetime comes from [`ttl`](Self::ttl) alone. A browser, a script and a request with fields that
    /// larder does not know then share the response. The rules for credentials still apply.
    #[doc(alias("ignore headers"))]
    pub fn depends_on_url_alone(mut self) -> Self {
        self.options.depends_on_url_alone = true;
        self
    }

    /// Sets the request fields that carry credentials. They replace the defaults: `Cookie`, `Authorization`,
    /// `Proxy-Authorization`, `X-Api-Key`, `X-Auth-Token`, `X-Remote-User`, the fields of authenticating
    /// proxies (`X-Forwarded-User`, `-Email`, `-Groups`, `-Preferred-Username`, `-Access-Token` and
    /// `-Client-Cert`), and every field whose name contains `auth`, `token`, `secret`, `password`, `session` or
    /// `api-key`.
    pub fn credential_headers(mut self, fields: impl IntoIterator<Item = HeaderName>) -> Self {
        self.options.credential_headers = fields.into_iter().collect();
        self
    }

    /// Declares a type of request extension by which a session or auth layer identifies the user. A request with this
    /// extension bypasses the cache (`detail=identity`), unless the request has a partition.
    pub fn credential_extension<T: Send + Sync + 'static>(mut self) -> Self {
        self.options.credential_extensions.push(|extensions| extensions.get::<T>().is_some());
        self
    }

    /// Refuses to store a response (`detail=session-written`) if the predicate returns `true` for the `T` in the
    /// extensions of its request, such as a session that the handler has written to. The predicate runs after the
    /// handler and again at the end of the body. No waiter gets the response before that, so the waiters of a request
    /// with a `T` wait for the end of the body. `T` must be a handle whose clones share their state.
    ///
    /// Use it for session layers outside of the cache, which add their cookie where the cache does not see it.
    /// [`FinalHeadLayer`](crate::FinalHeadLayer) reports that cookie for every session layer; this setting detects the
    /// write without that layer, too, and in background refreshes.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    /// use larder_core::Larder;
    /// use larder_http::ResponseCacheLayer;
    ///
    /// #[derive(Clone)]
    /// struct Session { is_written: Arc<AtomicBool> }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let layer = ResponseCacheLayer::new(&larder)
    ///     .refuse_if(|session: &Session| session.is_written.load(Ordering::Acquire));
    /// # drop(layer);
    /// # Ok(())
    /// # }
    /// ```
    pub fn refuse_if<T: Clone + Send + Sync + 'static>(
        mut self,
        is_written: impl Fn(&T) -> bool + Send + Sync + 'static,
    ) -> Self {
        let is_written = Arc::new(is_written);
        self.options.refuse_if.push(Arc::new(move |extensions| {
            let (extension, is_written) = (extensions.get::<T>()?.clone(), Arc::clone(&is_written));
            Some(Box::new(move || is_written(&extension)) as WriteCheck)
        }));
        self
    }

    /// Refuses to store a response whose handler has written to its `tower-sessions` session. See
    /// [`refuse_if`](Self::refuse_if).
    #[cfg(feature = "tower-sessions")]
    pub fn refuse_written_sessions(self) -> Self {
        self.refuse_if(tower_sessions_core::Session::is_modified)
    }

    /// Sets the `Cache-Control` that browsers get for responses whose lifetime comes from larder alone, in place of
    /// `no-cache`.
    ///
    /// # Panics
    ///
    /// Panics if the string is not a valid field value, which has only visible ASCII, spaces and tabs.
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
    /// // Browsers may serve the page for ten seconds; the larder for an hour, since it sees invalidations.
    /// let service = ResponseCacheLayer::new(&larder)
    ///     .ttl(Duration::from_secs(3600))
    ///     .browser_cache_control("max-age=10")
    ///     .layer(page);
    /// let response = service.oneshot(Request::get("/").body(Body::default())?).await?;
    /// assert_eq!(response.headers()["cache-control"], "max-age=10");
    /// # Ok(())
    /// # }
    /// ```
    pub fn browser_cache_control(mut self, cache_control: impl AsRef<str>) -> Self {
        self.options.browser = Some(field_value("browser_cache_control", cache_control.as_ref()));
        self
    }

    /// Sets the `CDN-Cache-Control` ([RFC 9213](https://www.rfc-editor.org/rfc/rfc9213)) that content delivery networks
    /// get for responses whose lifetime comes from larder alone.
    ///
    /// # Panics
    ///
    /// Panics if the string is not a valid field value, which has only visible ASCII, spaces and tabs.
    pub fn cdn_cache_control(mut self, cache_control: impl AsRef<str>) -> Self {
        self.options.cdn = Some(field_value("cdn_cache_control", cache_control.as_ref()));
        self
    }

    /// Strips a field from stored copies, because it belongs to one response, in addition to `X-Request-Id` and
    /// `Server-Timing`.
    pub fn never_store_header(mut self, field: HeaderName) -> Self {
        self.options.never_store_header.push(field);
        self
    }

    /// Sets the largest body that larder stores; 1 MiB by default. A larger body streams to its client and is not
    /// stored.
    pub fn body_limit(mut self, limit: ByteSize) -> Self {
        self.options.body_limit = limit.as_bytes();
        self
    }

    /// Sets how long requests wait for the fill in flight before another fill starts in parallel; 10 s by default. One
    /// waiter starts that fill, and all waiters wait for both; at most four fills run concurrently for one key.
    pub fn coalesce_timeout(mut self, limit: Duration) -> Self {
        self.options.coalesce_timeout = limit;
        self
    }

    /// Sets how long a fill may take, including its body; 30 s by default. After that the fill serves only its own
    /// client, and its response is not stored. If the head is late, the waiters try again, one after the other, and get
    /// a 504 after four such fills. If only the body is late, waiters that already read it get the rest, and larder
    /// forwards the request of every other waiter alone.
    pub fn fill_timeout(mut self, deadline: Duration) -> Self {
        self.options.deadline = deadline;
        self
    }

    /// Sets how long larder remembers that the response of an address was not storable (hit-for-miss), so that
    /// it forwards requests for that address at once instead of coalescing them; 10 s by default.
    #[doc(alias("hit-for-miss", "hit-for-pass"))]
    pub fn hit_for_miss_ttl(mut self, time: Duration) -> Self {
        self.options.refusal = time;
        self
    }

    /// Sets the maximum number of stored variants per URL; 32 by default. If there is one more, larder evicts the least
    /// recently used variant.
    ///
    /// # Panics
    ///
    /// Panics if `variants` is 0.
    pub fn max_variants(mut self, variants: usize) -> Self {
        assert!(variants > 0, "max_variants is 0: set it to 1 or more");
        self.options.variants = variants;
        self
    }

    /// Sets the query parameters that are part of the key; all by default.
    #[doc(alias("vary by query"))]
    pub fn query_params(mut self, rule: QueryRule) -> Self {
        self.options.query = rule;
        self
    }

    /// Sets the scheme of effective URIs; `http` by default.
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = Some(scheme);
        self
    }

    /// Ignores `Cache-Control` and `Pragma` of requests, so that clients cannot put load on the origin by
    /// sending `no-cache`.
    pub fn ignore_request_cache_control(mut self) -> Self {
        self.options.directives = false;
        self
    }

    /// Sets how far these routes may lag behind the invalidations of other processes; [`Consistency::Eventual`] by
    /// default. If this consistency cannot be met for a request, the request bypasses the cache
    /// (`detail=unsynchronised`).
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.options.consistency = consistency;
        self
    }

    /// Sets the level placement: the levels that store responses, and for how long each does; [`Tiers::BOTH`]
    /// by default.
    #[doc(alias("L1 only", "L2 only"))]
    pub fn tiers(mut self, tiers: Tiers) -> Self {
        self.options.tiers = tiers.in_place_of(self.options.tiers);
        self
    }

    /// Lets responses reach the second level only if they are sealed.
    ///
    /// # Panics
    ///
    /// Panics if the larder has a second level and no keys to seal with
    /// ([`LarderBuilder::seal_with`](larder_core::LarderBuilder::seal_with)).
    pub fn require_sealing(mut self) -> Self {
        assert!(
            !self.kernel.has_store() || self.kernel.seals(),
            "require_sealing needs LarderBuilder::seal_with: this larder has a second level and no keys"
        );
        self.options.tiers = self.options.tiers.require_sealing();
        self
    }

    /// Coalesces fills across processes by a fill lock in the second level: one process fills, and the other processes
    /// take its entry from the second level, or serve a stale response if they may. A process that dies while it holds
    /// the lock delays the other processes by `expiry`, and then one of them takes over. Choose an `expiry` that is a
    /// little longer than the handlers take. The lock is off by default, because it costs each miss two more round
    /// trips.
    ///
    /// Without a second level that has fill locks, each process runs its own fills.
    #[doc(alias("distributed lock", "single flight across processes"))]
    pub fn fill_once_per_cluster(mut self, expiry: Duration) -> Self {
        self.options.lease = Some(expiry);
        self
    }

    /// Follows RFC 9111 where this layer is stricter by default:
    ///
    /// - responses with `Set-Cookie`, and errors with a lifetime, are stored;
    /// - plain `max-age` is enough to answer authenticated requests (to be stored, a response to
    ///   `Authorization` still needs `public`, `s-maxage` or `must-revalidate`);
    /// - unkeyed fields such as `X-Forwarded-Host` reach the handler;
    /// - lifetimes are estimated ([`Heuristics::TENTH`]);
    /// - a stale response replaces errors of the origin, unless the response forbids it.
    pub fn conformance(mut self) -> Self {
        self.options.profile = Profile::Conformance;
        self
    }

    /// Makes this the private cache of one user, around an HTTP client. It stores `private` responses, and ignores
    /// credentials and the directives for shared caches (`s-maxage`, `proxy-revalidate`, targeted fields). The scheme
    /// comes from the URI ([`Scheme::OfUri`]), unless [`scheme`](Self::scheme) sets another.
    pub fn private_cache(mut self) -> Self {
        self.options.role = Role::Private;
        self
    }

    /// Sets how larder estimates the lifetime of a response that has none, if the layer does not add a lifetime either.
    /// [`Heuristics::Off`] by default, [`Heuristics::TENTH`] under [`conformance`](Self::conformance).
    #[doc(alias("heuristic freshness"))]
    pub fn heuristics(mut self, heuristics: Heuristics) -> Self {
        self.options.heuristics = Some(heuristics);
        self
    }

    /// Sets how long after its freshness a response with a validator stays stored, so that larder can
    /// revalidate it with its origin instead of fetching it again; a day by default. Such entries count against
    /// the memory budget.
    #[doc(alias("revalidation", "conditional request", "304"))]
    pub fn keep_for_revalidation(mut self, window: Duration) -> Self {
        self.options.revalidatable = window;
        self
    }

    /// Sets the targeted fields that this cache obeys, the most specific first, in place of `CDN-Cache-Control`
    /// alone ([RFC 9213](https://www.rfc-editor.org/rfc/rfc9213)).
    pub fn targeted_fields(mut self, fields: impl IntoIterator<Item = HeaderName>) -> Self {
        self.targeted_fields = Some(fields.into_iter().collect());
        self
    }

    /// Honours `No-Vary-Search`, so that requests whose queries are equivalent under that field of a stored response
    /// share the response.
    ///
    /// The handler still sees each query as it was sent, so it must name only parameters that do not change its
    /// response. This option costs a second lookup on a miss.
    ///
    /// # Source
    ///
    /// [draft-ietf-httpbis-no-vary-search](https://datatracker.ietf.org/doc/draft-ietf-httpbis-no-vary-search/)
    pub fn no_vary_search(mut self) -> Self {
        self.options.no_vary_search = true;
        self
    }

    /// Strips the targeted fields from responses. By default the fields stay in the responses, for downstream caches.
    pub fn strip_targeted_fields(mut self) -> Self {
        self.options.strip_targeted_fields = true;
        self
    }

    /// Sets the name under which `Stats` counts this cache; `responses` by default.
    pub fn name(mut self, name: &str) -> Self {
        self.options.name = name.into();
        self
    }

    /// Leaves `Cache-Status` out of responses, so that clients do not learn the outcomes of lookups.
    pub fn hide_cache_status(mut self) -> Self {
        self.options.cache_status = false;
        self
    }

    /// Adds the key of the entry to `Cache-Status`: the address, without the partition or any credentials.
    pub fn cache_status_with_key(mut self) -> Self {
        self.options.cache_status_with_key = true;
        self
    }

    /// Adds a plain `X-Cache: hit`, `stale`, `miss` or `bypass`.
    pub fn x_cache(mut self) -> Self {
        self.options.x_cache = true;
        self
    }

    /// Lets the handler answer each request, and only counts what the cache would have done: the way to introduce larder into
    /// a running system. The layer hides, strips and adds nothing, neither in requests nor in responses.
    ///
    /// It stores responses in memory alone, and serves none of them. Each would-be hit is compared with the response of the
    /// handler, and [`CacheStats::observed`](larder_core::CacheStats::observed) has the results by route: the same; different
    /// for a user with credentials that the cache does not distinguish, so that it would have served what was made for another
    /// user; or stale. All other counters are those that the cache would have.
    ///
    /// # Costs
    ///
    /// Memory for the stored responses, as the cache will take it, and a copy of each body that would be stored or compared.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, error::Error, time::Duration};
    /// # use bytes::Bytes;
    /// # use http::{Request, Response};
    /// # use http_body_util::{BodyExt as _, Full};
    /// # use larder_core::Larder;
    /// # use larder_http::*;
    /// # use tower::{Layer as _, ServiceExt as _, service_fn};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn Error>> {
    /// # let larder = Larder::builder().build()?;
    /// # let page = service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("a page"))) });
    /// let service = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)).observe_only().layer(page);
    /// for _ in 0..3 {
    ///     let response = service.clone().oneshot(Request::get("/").body(Full::default())?).await?;
    ///     assert!(response.headers().is_empty(), "the response of the handler");
    ///     let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    ///     assert_eq!(body.to_bytes(), "a page");
    /// }
    /// let stats = larder.stats();
    /// let pages = stats.cache("responses").ok_or("it was used")?;
    /// assert_eq!((pages.total.hits, pages.total.misses), (2, 1), "with the cache");
    /// assert_eq!(pages.observed["unmatched"].same, 2);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("dry run", "shadow", "report only"))]
    pub fn observe_only(mut self) -> Self {
        self.options.observes = true;
        self.options.tiers = Tiers::MEMORY;
        self
    }

    /// Compares a share of the hits, 0 to 1, with a response of the handler to the same request, which is thrown away. The client
    /// gets the hit as always, and does not wait. [`CacheStats::observed`](larder_core::CacheStats::observed) has the results by
    /// route: the same, stale, different for the user of the request, or not deterministic. Only GETs without conditions and
    /// directives are compared.
    ///
    /// The second response is rendered in a scope in which nothing comes from the cache, and in which larder stores, invalidates
    /// and emits nothing. Effects of the handler beside larder, such as a write to a database or an email, happen again: set
    /// this for routes whose handlers only read.
    ///
    /// # Panics
    ///
    /// If the share is not between 0 and 1.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, error::Error, time::Duration};
    /// # use bytes::Bytes;
    /// # use http::{Request, Response};
    /// # use http_body_util::Full;
    /// # use larder_core::Larder;
    /// # use larder_http::*;
    /// # use tower::{Layer as _, ServiceExt as _, service_fn};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn Error>> {
    /// # let larder = Larder::builder().build()?;
    /// # let page = service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("a page"))) });
    /// let service = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)).shadow(1.0).layer(page);
    /// for _ in 0..3 {
    ///     service.clone().oneshot(Request::get("/").body(Full::default())?).await?;
    ///     tokio::time::sleep(Duration::from_millis(1)).await;
    /// }
    /// assert_eq!(larder.stats().cache("responses").ok_or("it was used")?.observed["unmatched"].same, 2);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("shadow mode", "dark reads", "verify"))]
    pub fn shadow(mut self, share: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "shadow({share}) is not a share: allowed is a number from 0 to 1"
        );
        self.options.shadow = share;
        self
    }

    /// Adds a `Server-Timing`, which browsers show in their developer tools: `cache` with the outcome and the duration of
    /// this request in milliseconds, and for a stored response `fill` with the duration of its fill. Off by default,
    /// because it tells clients how long requests take. A hit with it takes the full lookup.
    ///
    /// # Source
    ///
    /// [Server Timing](https://www.w3.org/TR/server-timing/)
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
    /// let page = service_fn(|_: Request<Body>| async {
    ///     tokio::time::sleep(Duration::from_millis(40)).await;
    ///     Ok::<_, Infallible>(Response::new(Body::from("a page")))
    /// });
    /// let service = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)).server_timing().layer(page);
    /// # let timing = async || -> Result<String, Box<dyn Error>> {
    /// #     let request = Request::get("/").body(Body::default())?;
    /// #     let response = service.clone().oneshot(request).await?;
    /// #     Ok(response.headers()["server-timing"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(timing().await?, "cache;desc=miss;dur=40.000");
    /// assert_eq!(timing().await?, "cache;desc=hit;dur=0.000, fill;dur=40.000");
    /// # Ok(())
    /// # }
    /// ```
    pub fn server_timing(mut self) -> Self {
        self.options.server_timing = true;
        self
    }
}

impl ResponseCacheLayer {
    /// Returns the options, with the scheme and the targeted fields that were set, or else the defaults of a shared or
    /// private cache.
    pub(super) fn options(&self) -> Options {
        let mut options = self.options.clone();
        if options.role == Role::Private {
            options.scheme = Scheme::OfUri;
            options.targets.clear();
        }
        if let Some(scheme) = self.scheme {
            options.scheme = scheme;
        }
        if let Some(fields) = &self.targeted_fields {
            options.targets.clone_from(fields);
        }
        options
    }
}

impl<S> Layer<S> for ResponseCacheLayer {
    type Service = ResponseCache<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let options = self.options();
        self.kernel.note_setting("scheme", &options.scheme, "ResponseCacheLayer");
        // Caches with different names serve different routes, so their settings may differ.
        let query_params = format!("query_params of cache {}", options.name);
        self.kernel.note_setting(query_params, &options.query, "ResponseCacheLayer");
        let warming = CacheContext::for_warming(&self.kernel, &options);
        let explainers = self.kernel.state::<Explainers>();
        let routes = explainers.routes_of(&self.kernel, &options);
        let context = CacheContext::new(&self.kernel, options).sharing(routes);
        explainers.add(&context);
        ResponseCache::new(inner, context, warming)
    }
}

impl Clone for ResponseCacheLayer {
    fn clone(&self) -> Self {
        Self {
            kernel: self.kernel.clone(),
            options: self.options.clone(),
            scheme: self.scheme,
            targeted_fields: self.targeted_fields.clone(),
        }
    }
}

impl fmt::Debug for ResponseCacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCacheLayer")
            .field("name", &self.options.name)
            .finish_non_exhaustive()
    }
}

/// Returns a string as a field value.
///
/// # Panics
///
/// Panics if the string is not a valid field value.
fn field_value(setter: &str, text: &str) -> HeaderValue {
    fields::value(text).unwrap_or_else(|| {
        panic!(
            "{setter}({text:?}) is not a valid field value: use visible ASCII, spaces and tabs only"
        )
    })
}
