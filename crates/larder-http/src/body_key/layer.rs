//! The layer and its options.

use std::{fmt, sync::Arc};

use larder_core::ByteSize;
use tower_layer::Layer;

use super::service::BodyKeyService;
use crate::address::Head;

/// Makes responses to requests with content storable for a response cache inside: QUERY, and POST requests that only
/// read, such as a search or GraphQL queries.
///
/// 1. The layer reads the content of a QUERY to its end, up to [`limit`](BodyKeyLayer::limit). It answers longer
///    content with 413, and content that ends early with 400.
/// 2. A digest of the content, with its media type, coding and language, goes to the response cache inside, which
///    treats the request like a GET with the method and this digest in its key. The same rules of users and
///    credentials apply.
/// 3. A POST that [`post_reads`](BodyKeyLayer::post_reads) and the like declare as a read is treated in the same way: its
///    response is stored if it has a lifetime, and an [`InvalidationLayer`](crate::InvalidationLayer) outside of the
///    response cache invalidates nothing for it. If it has preconditions, a range or trailers, if its content exceeds the
///    limit, or if its length is not announced, it goes to the handler, and its response is not stored.
/// 4. Every other request passes through unchanged.
///
/// Without this layer a response cache bypasses QUERY and POST, because it does not know the content. The layer has to be
/// outside of **all** response caches, and no layer between them may change the content. A response to a multipart form
/// is never found again, because each request has another boundary.
///
/// # Source
///
/// [RFC 10008](https://www.rfc-editor.org/rfc/rfc10008), section 2.7 for caching. No standard
/// defines this for POST ([RFC 9111, section 2](https://www.rfc-editor.org/rfc/rfc9111#section-2)): prefer QUERY if your clients can send it.
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Method, Request, Response};
/// # use http_body_util::{BodyExt, Full};
/// # use bytes::Bytes;
/// # use larder_core::Larder;
/// # use larder_http::{BodyKeyLayer, ResponseCacheLayer};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let search = service_fn(|request: Request<Full<Bytes>>| async {
///     let found = request.into_body().collect().await?.to_bytes();
///     Ok::<_, Infallible>(Response::builder().header("cache-control", "max-age=60").body(Full::from(found)).expect("valid"))
/// });
/// let service = ServiceBuilder::new()
///     .layer(BodyKeyLayer::new())
///     .layer(ResponseCacheLayer::new(&larder))
///     .service(search);
///
/// # let status = async |content: &'static str| -> Result<String, Box<dyn std::error::Error>> {
/// #     let request = Request::builder().method(Method::QUERY).uri("/").body(Full::from(content));
/// #     let response = service.clone().oneshot(request?).await?;
/// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
/// # };
/// assert_eq!(status("red shoes").await?, "larder; fwd=uri-miss; stored");
/// assert_eq!(status("red shoes").await?, "larder; hit; ttl=60");
/// assert_eq!(status("blue shoes").await?, "larder; fwd=uri-miss; stored");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
#[doc(alias("post", "search", "graphql", "key_by_body"))]
pub struct BodyKeyLayer {
    options: Options,
}

/// The options of the layer.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The largest content that is read, in bytes.
    pub(super) limit: usize,
    /// The rules that declare a POST as a read. The first rule that concerns a request decides.
    pub(super) post_reads: Vec<PostRead>,
}

impl Default for Options {
    fn default() -> Self {
        Self { limit: 64 * 1024, post_reads: Vec::new() }
    }
}

/// A rule that declares a POST as a read.
#[derive(Clone)]
pub(super) struct PostRead {
    /// Whether the rule concerns a request with this head.
    pub(super) head: Arc<HeadPredicate>,
    /// Whether the content is that of a read. If absent, all content is.
    pub(super) content: Option<Arc<ContentPredicate>>,
}

type HeadPredicate = dyn Fn(&Head<'_>) -> bool + Send + Sync;
type ContentPredicate = dyn Fn(&Head<'_>, &[u8]) -> bool + Send + Sync;

impl BodyKeyLayer {
    /// Creates a layer that reads up to 64 KiB of content, and applies only to QUERY.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the limit of the content that is read; 64 KiB by default. The layer refuses a longer QUERY with 413. A longer
    /// POST passes through, and its response is not stored.
    pub fn limit(mut self, limit: ByteSize) -> Self {
        self.options.limit = limit.as_bytes();
        self
    }

    /// Declares that each POST for which `is_read` returns `true` is a read: its handler changes nothing, and its
    /// response depends on the address, the content, and the inputs of keys that the response cache has.
    ///
    /// larder may answer such a request from the store and send it to the handler again (to refresh its response), so
    /// the declaration must be true. Call this once for each group of routes; the first declaration that concerns a request decides.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use http::{Request, Response};
    /// # use http_body_util::Full;
    /// # use bytes::Bytes;
    /// # use larder_core::Larder;
    /// # use larder_http::{BodyKeyLayer, HttpCache};
    /// # use tower::{ServiceBuilder, ServiceExt, service_fn};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// # let search = service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("found"))) });
    /// let service = ServiceBuilder::new()
    ///     .layer(BodyKeyLayer::new().post_reads(|head| head.uri.path() == "/search"))
    ///     .layer(HttpCache::new(&larder).ttl(Duration::from_secs(60)))
    ///     .service(search);
    /// # let status = async |path: &str, content: &'static str| -> Result<String, Box<dyn std::error::Error>> {
    /// #     let response = service.clone().oneshot(Request::post(path).body(Full::from(content))?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status("/search", "q=red").await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status("/search", "q=red").await?, "larder; hit; ttl=60");
    /// assert_eq!(status("/search", "q=blue").await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status("/orders", "item=7").await?, "larder; fwd=method");
    /// # Ok(())
    /// # }
    /// ```
    pub fn post_reads(self, is_read: impl Fn(&Head<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with_rule(PostRead { head: Arc::new(is_read), content: None })
    }

    /// Declares that a POST is a read if both `concerns` and, for its content, `is_read` return `true`, as
    /// [`post_reads`](BodyKeyLayer::post_reads) does for the head alone. The layer reads the content of each POST for
    /// which `concerns` returns `true`.
    pub fn post_reads_by_content(
        self,
        concerns: impl Fn(&Head<'_>) -> bool + Send + Sync + 'static,
        is_read: impl Fn(&Head<'_>, &[u8]) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with_rule(PostRead { head: Arc::new(concerns), content: Some(Arc::new(is_read)) })
    }

    /// Declares that GraphQL queries over POST are reads, at the addresses for which `concerns` returns `true`.
    ///
    /// A request is a query if its content is JSON (one request or a batch) or `application/graphql`, and its documents
    /// contain neither `mutation` nor `subscription` at any place, so that no server runs anything but a query. Persisted
    /// documents that are only named, uploads, compressed content, requests with unknown members, and requests with
    /// parameters in the URL other than `op`, `operation` and `operationName` are ordinary POST requests.
    ///
    /// A GraphQL server reports most errors with status 200. So set the lifetime in the handler, for responses without
    /// `errors`, and not on the layer.
    ///
    /// # Source
    ///
    /// [GraphQL, section 2.3](https://spec.graphql.org/October2021/#sec-Language.Operations): a query "is a read-only fetch".
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use http::{Request, Response};
    /// # use http_body_util::Full;
    /// # use bytes::Bytes;
    /// # use larder_core::Larder;
    /// # use larder_http::{BodyKeyLayer, HttpCache};
    /// # use tower::{ServiceBuilder, ServiceExt, service_fn};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// # let graphql = service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("found"))) });
    /// let service = ServiceBuilder::new()
    ///     .layer(BodyKeyLayer::new().graphql_queries(|head| head.uri.path() == "/graphql"))
    ///     .layer(HttpCache::new(&larder).ttl(Duration::from_secs(60)))
    ///     .service(graphql);
    /// # let status = async |content: &'static str| -> Result<String, Box<dyn std::error::Error>> {
    /// #     let request = Request::post("/graphql").header("content-type", "application/json").body(Full::from(content))?;
    /// #     Ok(service.clone().oneshot(request).await?.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(r#"{"query":"{ shoes { name } }"}"#).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(r#"{"query":"{ shoes { name } }"}"#).await?, "larder; hit; ttl=60");
    /// assert_eq!(status(r#"{"query":"mutation { buy(shoe: 7) }"}"#).await?, "larder; fwd=method");
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "graphql")]
    #[cfg_attr(docsrs, doc(cfg(feature = "graphql")))]
    pub fn graphql_queries(
        self,
        concerns: impl Fn(&Head<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.post_reads_by_content(concerns, super::graphql::is_query)
    }

    fn with_rule(mut self, rule: PostRead) -> Self {
        self.options.post_reads.push(rule);
        self
    }
}

impl fmt::Debug for PostRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostRead")
            .field("by_content", &self.content.is_some())
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for BodyKeyLayer {
    type Service = BodyKeyService<S>;

    fn layer(&self, inner: S) -> BodyKeyService<S> {
        BodyKeyService::new(inner, Arc::new(self.options.clone()))
    }
}
