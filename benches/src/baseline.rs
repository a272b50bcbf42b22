//! The baselines, and the services that are measured beside them.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderValue, Request, Response, header},
    routing::get,
};
use bytes::Bytes;
use larder::{
    Larder, Target,
    axum::{CachePolicy, InvalidationLayer, ResponseCacheLayer},
    http::ConditionalLayer,
};
use tower::{Layer, Service, ServiceBuilder};

/// A Router whose handler returns a prebuilt body.
pub fn limit(body: &Bytes) -> Router {
    let body = body.clone();
    let page = move |Path(_): Path<u64>| {
        let body = body.clone();
        async move { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], body) }
    };
    // As a server does it: without a state, axum would put the layers together anew for each request.
    Router::new().route("/products/{id}", get(page)).with_state(())
}

/// The same, with four tags on each page.
fn tagged(body: &Bytes, tags: usize) -> Router {
    let body = body.clone();
    let page = move |policy: Option<CachePolicy>, Path(id): Path<u64>| {
        let body = body.clone();
        async move {
            for tag in 0..tags {
                if let Some(policy) = &policy {
                    policy.tag(format!("tag{tag}:{id}"));
                }
            }
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], body)
        }
    };
    Router::new().route("/products/{id}", get(page))
}

/// A larder with one pattern invalidated, as a shop has it after a while.
pub fn larder() -> Larder {
    let larder = Larder::builder().memory(larder::ByteSize::mib(512)).build().expect("valid");
    let banned = larder.invalidate(Target::pattern("*/old/*"));
    let _ = crate::now(banned);
    larder
}

fn cache(larder: &Larder) -> ResponseCacheLayer {
    ResponseCacheLayer::new(larder).ttl(Duration::from_secs(3_000))
}

/// `ResponseCacheLayer` alone.
pub fn one_layer(larder: &Larder, body: &Bytes, tags: usize) -> Router {
    tagged(body, tags).layer(cache(larder)).with_state(())
}

/// The README's stack in one `ServiceBuilder`.
pub fn stack(larder: &Larder, body: &Bytes) -> Router {
    tagged(body, 4)
        .layer(
            ServiceBuilder::new()
                .layer(ConditionalLayer::new(larder))
                .layer(InvalidationLayer::new(larder))
                .layer(cache(larder)),
        )
        .with_state(())
}

/// `ResponseCacheLayer` around the Router, so that a hit is not routed: what a server is given.
pub fn around(
    larder: &Larder,
    body: &Bytes,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ 'static {
    ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(Body::new))
        .layer(cache(larder))
        .service(tagged(body, 4).with_state(()))
}

/// LIMIT with [`BareLayer`] on it.
pub fn bare(body: &Bytes) -> Router {
    limit(body).layer(BareLayer(body.clone())).with_state(())
}

/// Answers without looking.
#[derive(Clone, Debug)]
pub struct BareLayer(pub Bytes);

impl<S> Layer<S> for BareLayer {
    type Service = Bare<S>;

    fn layer(&self, inner: S) -> Bare<S> {
        Bare { _inner: inner, body: self.0.clone() }
    }
}

/// The service of [`BareLayer`].
#[derive(Clone, Debug)]
pub struct Bare<S> {
    _inner: S,
    body: Bytes,
}

impl<S> Service<Request<Body>> for Bare<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let mut response = Response::new(Body::from(self.body.clone()));
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, html);
        ready(Ok(response))
    }
}
