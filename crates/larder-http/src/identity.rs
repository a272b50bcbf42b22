//! The identity of a request: the user who sent it, as an application finds it in a session, a token or a cookie.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, request::Parts};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::response_cache::PartitionName;

/// The user who sent a request. An [`IdentityLayer`] leaves it in the request extensions, for
/// [`partition_by_identity`](crate::ResponseCacheLayer::partition_by_identity) and
/// [`bypass_users`](crate::ResponseCacheLayer::bypass_users).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A visitor who is not signed in.
    Anonymous,
    /// A user with this verified name, such as the id of an account.
    User(Bytes),
    /// The identity could not be determined, for example because the session store did not answer. The request bypasses
    /// the cache.
    Unknown,
}

impl Identity {
    /// Creates the identity of a user from a verified name: an integer, a string or bytes.
    pub fn user(name: impl PartitionName) -> Self {
        Self::User(name.into_bytes())
    }

    /// Creates an identity from the result of a look-up: `Ok(None)` is a visitor, and an error is unknown.
    pub fn from_lookup<P: PartitionName, E>(found: Result<Option<P>, E>) -> Self {
        match found {
            Ok(Some(name)) => Self::user(name),
            Ok(None) => Self::Anonymous,
            Err(_) => Self::Unknown,
        }
    }
}

/// Finds the identity of each request, and leaves it in the request extensions. Put it between the session or
/// authentication layer and the cache.
///
/// The closure gets the head of the request, and returns a future of its [`Identity`], which must not borrow from the head.
/// An error of the session store must become [`Identity::Unknown`] and not [`Identity::Anonymous`]: the page of a user
/// whose session could not be read would otherwise be stored for all visitors.
///
/// `larder::axum::identity` has ready layers for tower-sessions, axum-login, verified tokens, and signed and private
/// cookies.
///
/// # Examples
///
/// ```
/// # use std::{convert::Infallible, error::Error, time::Duration};
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use larder_core::Larder;
/// # use larder_http::*;
/// # use tower::{ServiceBuilder, ServiceExt as _, service_fn};
/// # type Body = http_body_util::Full<Bytes>;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn Error>> {
/// # let larder = Larder::builder().build()?;
/// # let page = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from("a page"))) });
/// /// The claims of a verified token, which the authentication layer leaves in the extensions.
/// #[derive(Clone)]
/// struct Claims { sub: String }
///
/// let service = ServiceBuilder::new()
///     .layer(IdentityLayer::new(|head| {
///         let claims = head.extensions.get::<Claims>();
///         std::future::ready(match claims {
///             Some(claims) => Identity::user(claims.sub.clone()),
///             // A token that was not accepted is not the same as no token.
///             None if head.headers.contains_key("authorization") => Identity::Unknown,
///             None => Identity::Anonymous,
///         })
///     }))
///     .layer(HttpCache::new(&larder).ttl(Duration::from_secs(60)).partition_by_identity())
///     .service(page);
/// # let status = async |request: http::request::Builder| -> Result<String, Box<dyn Error>> {
/// #     let response = service.clone().oneshot(request.body(Body::default())?).await?;
/// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
/// # };
/// let request = |user: &str| Request::get("/account").extension(Claims { sub: user.to_owned() });
/// assert_eq!(status(request("ada")).await?, "larder; fwd=uri-miss; stored");
/// assert_eq!(status(request("ada")).await?, "larder; hit; ttl=60");
/// assert_eq!(status(request("bob")).await?, "larder; fwd=uri-miss; stored");
/// let forged = Request::get("/account").header("authorization", "Bearer forged");
/// assert_eq!(status(forged).await?, "larder; fwd=bypass; detail=identity");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias("principal", "current user", "session", "jwt", "claims"))]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct IdentityLayer<F> {
    find: F,
}

impl<F, Fut> IdentityLayer<F>
where
    F: Fn(&Parts) -> Fut,
    Fut: Future<Output = Identity>,
{
    /// Creates the layer from a closure that finds the identity of a request.
    pub fn new(find: F) -> Self {
        Self { find }
    }
}

impl<S, F: Clone> Layer<S> for IdentityLayer<F> {
    type Service = IdentityService<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        IdentityService { inner, find: self.find.clone() }
    }
}

impl<F> fmt::Debug for IdentityLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityLayer").finish_non_exhaustive()
    }
}

/// The service of [`IdentityLayer`].
#[derive(Clone)]
pub struct IdentityService<S, F> {
    inner: S,
    find: F,
}

impl<S, F, Fut, B> Service<Request<B>> for IdentityService<S, F>
where
    S: Service<Request<B>> + Clone,
    F: Fn(&Parts) -> Fut,
    Fut: Future<Output = Identity>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = IdentityFuture<S, Request<B>, Fut, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let finding = (self.find)(&parts);
        // Calls the instance that was polled ready.
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone);
        let request = Request::from_parts(parts, body);
        IdentityFuture { state: State::Finding { finding, call: Some((ready, request)) } }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for IdentityService<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

pin_project! {
    /// The response future of [`IdentityService`].
    pub struct IdentityFuture<S, R, N, I> {
        #[pin]
        state: State<S, R, N, I>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, R, N, I> {
        Finding { #[pin] finding: N, call: Option<(S, R)> },
        Inner { #[pin] inner: I },
    }
}

impl<S, B, N> Future for IdentityFuture<S, Request<B>, N, S::Future>
where
    S: Service<Request<B>>,
    N: Future<Output = Identity>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let inner = match state.as_mut().project() {
                StateProjection::Inner { inner } => return inner.poll(cx),
                StateProjection::Finding { finding, call } => {
                    let identity = ready!(finding.poll(cx));
                    let called = call.take();
                    let (mut service, mut request) =
                        called.expect("the future is not polled after it has returned");
                    request.extensions_mut().insert(identity);
                    service.call(request)
                }
            };
            state.set(State::Inner { inner });
        }
    }
}

impl<S, R, N, I> fmt::Debug for IdentityFuture<S, R, N, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityFuture").finish_non_exhaustive()
    }
}
