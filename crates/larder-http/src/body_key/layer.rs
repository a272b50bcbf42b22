//! The layer and its options.

use larder_core::ByteSize;
use tower_layer::Layer;

use super::service::BodyKeyService;

/// Makes responses to QUERY storable for a response cache inside.
///
/// 1. The layer reads the content of a QUERY to its end, up to [`limit`](BodyKeyLayer::limit). It answers longer
///    content with 413, and content that ends early with 400.
/// 2. A digest of the content, with its media type, coding and language, goes to the response cache inside, which
///    treats the request like a GET with this addition to its key.
/// 3. Every other request passes through unchanged.
///
/// Without this layer a response cache bypasses QUERY, because it does not know the content.
///
/// # Source
///
/// [RFC 10008](https://www.rfc-editor.org/rfc/rfc10008), section 2.7 for caching.
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Method, Request, Response};
/// # use http_body_util::{BodyExt, Full};
/// # use bytes::Bytes;
/// # use larder_core::Larder;
/// # use larder_http::{BodyKeyLayer, ResponseCacheLayer};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let larder = Larder::builder().build().expect("the defaults are valid");
/// let search = service_fn(|asked: Request<Full<Bytes>>| async {
///     let found = asked.into_body().collect().await?.to_bytes();
///     Ok::<_, Infallible>(Response::builder().header("cache-control", "max-age=60").body(Full::from(found)).expect("valid"))
/// });
/// let service = ServiceBuilder::new()
///     .layer(BodyKeyLayer::new())
///     .layer(ResponseCacheLayer::new(&larder))
///     .service(search);
///
/// let ask = async |content: &'static str| {
///     let asked = Request::builder().method(Method::QUERY).uri("/").body(Full::from(content));
///     let answer = service.clone().oneshot(asked.expect("a valid request")).await;
///     answer.expect("it cannot fail").headers()["cache-status"].to_str().expect("text").to_owned()
/// };
/// assert_eq!(ask("red shoes").await, "larder; fwd=uri-miss; stored");
/// assert_eq!(ask("red shoes").await, "larder; hit; ttl=59");
/// assert_eq!(ask("blue shoes").await, "larder; fwd=uri-miss; stored");
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct BodyKeyLayer {
    limit: usize,
}

impl BodyKeyLayer {
    /// Creates a layer that reads up to 64 KiB of content.
    pub const fn new() -> Self {
        Self { limit: 64 * 1024 }
    }

    /// Sets the limit of the content that is read; 64 KiB by default. The layer refuses longer content with 413.
    pub const fn limit(mut self, limit: ByteSize) -> Self {
        self.limit = limit.as_bytes();
        self
    }
}

impl Default for BodyKeyLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for BodyKeyLayer {
    type Service = BodyKeyService<S>;

    fn layer(&self, inner: S) -> BodyKeyService<S> {
        BodyKeyService::new(inner, self.limit)
    }
}
