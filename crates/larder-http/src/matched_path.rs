//! `MatchedPathLayer`: tells the caches around a router which route has matched.

use std::task::{Context, Poll};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use crate::ResponseOverrides;

/// Tells the response caches around a router which route has matched, so that metrics and the dashboard count its
/// requests by the route, such as `/products/{id}`. Without this layer they count as `unmatched`, and never by their
/// path.
///
/// A cache inside of the router (by `Router::layer`) knows the route without this layer. A cache around the router
/// answers a hit before any router has run, so it stores the route with the response. The extractors of larder-axum tell it
/// too.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use larder_http::{HttpCache, MatchedPathLayer};
/// use larder_core::Larder;
/// use tower::{Layer, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let router: Router =
///     Router::new().route("/products/{id}", get(async || "a product")).layer(MatchedPathLayer::new());
/// let app = HttpCache::new(&larder).ttl(Duration::from_secs(60)).layer(router);
/// for _ in 0..3 {
///     app.clone().oneshot(Request::get("/products/42").body(Body::empty())?).await?;
/// }
/// let stats = larder.stats();
/// let cache = stats.cache("responses").ok_or("it was used")?;
/// assert_eq!((&*cache.routes[0].route, cache.routes[0].hits), ("/products/{id}", 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct MatchedPathLayer {}

impl MatchedPathLayer {
    /// Creates the layer.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S> Layer<S> for MatchedPathLayer {
    type Service = MatchedPathService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        MatchedPathService { inner }
    }
}

/// The service of a [`MatchedPathLayer`].
#[derive(Clone, Debug)]
pub struct MatchedPathService<S> {
    inner: S,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for MatchedPathService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseOverrides::note_matched_path(request.extensions());
        self.inner.call(request)
    }
}
