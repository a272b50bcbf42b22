//! The baselines, and the services that are compared with them.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ahash::RandomState;
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
    axum::{CachePolicy, HttpCache, ResponseCacheLayer},
};
use tower::{Layer, Service, ServiceBuilder};

/// A Router whose handler returns a prebuilt body.
pub fn limit(body: &Bytes) -> Router {
    let body = body.clone();
    let page = move |Path(_): Path<u64>| {
        let body = body.clone();
        async move { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], body) }
    };
    // As a server does it: without a state, axum would assemble the layers anew for each request.
    Router::new().route("/products/{id}", get(page)).with_state(())
}

/// LIMIT with this many tags on each page, and a lifetime set by the handler.
fn tagged(body: &Bytes, tags: usize, lifetime: Option<Duration>) -> Router {
    let body = body.clone();
    let page = move |policy: Option<CachePolicy>, Path(id): Path<u64>| {
        let body = body.clone();
        async move {
            for tag in 0..tags {
                if let Some(policy) = &policy {
                    policy.tag(format!("tag{tag}:{id}"));
                }
            }
            if let (Some(policy), Some(lifetime)) = (&policy, lifetime) {
                policy.ttl(lifetime);
            }
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], body)
        }
    };
    Router::new().route("/products/{id}", get(page))
}

/// A larder with one ban, as a long-running shop has.
pub fn larder() -> Larder {
    let larder = Larder::builder().memory(larder::ByteSize::mib(512)).build().expect("valid");
    let banned = larder.invalidate(Target::pattern("*/old/*"));
    let _ = crate::now(banned);
    larder
}

fn cache(larder: &Larder) -> ResponseCacheLayer {
    ResponseCacheLayer::new(larder)
}

/// `ResponseCacheLayer` alone, with a lifetime of the layer for all handlers inside, which set none.
pub fn by_layer(larder: &Larder, body: &Bytes) -> Router {
    let layer = cache(larder).ttl(LIFETIME);
    tagged(body, 4, None).layer(layer).with_state(())
}

const LIFETIME: Duration = Duration::from_secs(3_000);

/// `ResponseCacheLayer` alone.
pub fn one_layer(larder: &Larder, body: &Bytes, tags: usize) -> Router {
    tagged(body, tags, Some(LIFETIME)).layer(cache(larder)).with_state(())
}

/// The README's `HttpCache`.
pub fn stack(larder: &Larder, body: &Bytes) -> Router {
    tagged(body, 4, Some(LIFETIME))
        .layer(HttpCache::new(larder).responses(|_| cache(larder)))
        .with_state(())
}

/// `ResponseCacheLayer` around the Router, as a server would serve it, so that a hit is not routed.
pub fn around(
    larder: &Larder,
    body: &Bytes,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ 'static {
    ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(Body::new))
        .layer(cache(larder))
        .service(tagged(body, 4, Some(LIFETIME)).with_state(()))
}

/// LIMIT inside a layer that does the least a cache can do: it hashes the path, looks it up in one table, and clones a
/// prebuilt response. The cost of a hit beyond this is larder's; the cost of this beyond BARE LAYER is that of having
/// more than one response.
pub fn floor(body: &Bytes, keys: u64) -> Router {
    let table = (0..keys).map(|key| {
        let mut response = Response::new(Bytes::copy_from_slice(body));
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, html);
        (format!("/products/{key}").into_boxed_str(), Arc::new(response))
    });
    limit(body).layer(FloorLayer(Arc::new(table.collect()))).with_state(())
}

type Table = HashMap<Box<str>, Arc<Response<Bytes>>, RandomState>;

#[derive(Clone, Debug)]
struct FloorLayer(Arc<Table>);

impl<S> Layer<S> for FloorLayer {
    type Service = Floor<S>;

    fn layer(&self, inner: S) -> Floor<S> {
        Floor { _inner: inner, table: Arc::clone(&self.0) }
    }
}

#[derive(Clone, Debug)]
struct Floor<S> {
    _inner: S,
    table: Arc<Table>,
}

impl<S> Service<Request<Body>> for Floor<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let found = Arc::clone(self.table.get(request.uri().path()).expect("all are there"));
        let mut response = Response::new(Body::from(found.body().clone()));
        *response.headers_mut() = found.headers().clone();
        ready(Ok(response))
    }
}

/// LIMIT inside [`BareLayer`].
pub fn bare(body: &Bytes) -> Router {
    limit(body).layer(BareLayer(body.clone())).with_state(())
}

/// A layer that answers every request with a constant, without reading it.
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
