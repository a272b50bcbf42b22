//! `CachePolicy`: sets how the response of a handler is cached.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;
use larder_core::{Lifetime, Tag};
use larder_http::ResponseOverrides;

use crate::missing::MissingLayer;

/// The cache policy of this response. This extractor needs a [`ResponseCacheLayer`](crate::ResponseCacheLayer); with
/// `Option<CachePolicy>` the layer may be missing.
///
/// Its choices take precedence over the options of the layer, except `override_ttl`, and, for this cache, over
/// `Cache-Control`.
#[doc(alias("surrogate control", "output cache policy", "page cache"))]
#[derive(Clone, Debug)]
pub struct CachePolicy(ResponseOverrides);

impl CachePolicy {
    /// Sets the lifetime of the response.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::{Router, body::Body, extract::Path, http::{Request, StatusCode}, routing::get};
    /// # use larder_axum::*;
    /// # use larder_core::{Invalidation, Larder, Lifetime, Policy};
    /// # use tower::ServiceExt as _;
    /// async fn page(policy: CachePolicy) -> &'static str {
    ///     // A `Duration`, or a `Lifetime` with its stale windows.
    ///     let minute = Duration::from_secs(60);
    ///     policy.ttl(Lifetime::fresh_for(minute).stale_while_revalidate(5 * minute));
    ///     "the catalog"
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let app: Router = Router::new().route("/", get(page)).layer(HttpCache::new(&larder));
    /// # let status = async |request: axum::http::request::Builder| -> Result<String, Box<dyn std::error::Error>> {
    /// #     let response = app.clone().oneshot(request.body(Body::empty())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=uri-miss; stored");
    /// tokio::time::advance(Duration::from_secs(61)).await;
    /// assert_eq!(status(Request::get("/")).await?, "larder; hit; ttl=-1");
    /// # Ok(())
    /// # }
    /// ```
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) -> &Self {
        self.0.ttl(lifetime);
        self
    }

    /// Adds a tag; invalidating the tag invalidates the response.
    pub fn tag(&self, tag: impl Into<Tag>) -> &Self {
        self.0.tag(tag);
        self
    }

    /// Adds tags.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::{Router, body::Body, extract::Path, http::{Request, StatusCode}, routing::get};
    /// # use larder_axum::*;
    /// # use larder_core::{Invalidation, Larder, Lifetime, Policy};
    /// # use tower::ServiceExt as _;
    /// async fn list(policy: CachePolicy) -> String {
    ///     let ids = [7, 42];
    ///     policy.ttl(Duration::from_secs(60)).tags(ids.map(|id| ("product", id)));
    ///     format!("products {ids:?}")
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let app: Router = Router::new().route("/", get(list)).layer(HttpCache::new(&larder));
    /// # let status = async |request: axum::http::request::Builder| -> Result<String, Box<dyn std::error::Error>> {
    /// #     let response = app.clone().oneshot(request.body(Body::empty())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=uri-miss; stored");
    /// let _logged = larder.invalidate(("product", 42)).await;
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=stale; stored");
    /// # Ok(())
    /// # }
    /// ```
    pub fn tags<T: Into<Tag>>(&self, tags: impl IntoIterator<Item = T>) -> &Self {
        for tag in tags {
            self.0.tag(tag);
        }
        self
    }

    /// Makes the response not storable.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::{Router, body::Body, extract::Path, http::{Request, StatusCode}, routing::get};
    /// # use larder_axum::*;
    /// # use larder_core::{Invalidation, Larder, Lifetime, Policy};
    /// # use tower::ServiceExt as _;
    /// async fn page(policy: CachePolicy, Path(id): Path<u64>) -> &'static str {
    ///     policy.ttl(Duration::from_secs(60));
    ///     if id == 0 {
    ///         policy.no_store();
    ///         return "a draft";
    ///     }
    ///     "a page"
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let app: Router = Router::new().route("/{id}", get(page)).layer(HttpCache::new(&larder));
    /// # let status = async |request: axum::http::request::Builder| -> Result<String, Box<dyn std::error::Error>> {
    /// #     let response = app.clone().oneshot(request.body(Body::empty())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/1")).await?, "larder; fwd=uri-miss; stored");
    /// assert_eq!(status(Request::get("/0")).await?, "larder; fwd=uri-miss; detail=policy");
    /// # Ok(())
    /// # }
    /// ```
    pub fn no_store(&self) -> &Self {
        self.0.no_store();
        self
    }

    /// Declares that the response is the same for all clients, so that authenticated requests may get it, too.
    pub fn public(&self) -> &Self {
        self.0.public();
        self
    }

    /// Sets the `Cache-Control` that browsers get, in place of the field that the handler sets. If neither the handler
    /// nor the layer sets the field, browsers get `no-cache` for a response whose lifetime was chosen here or on the
    /// layer.
    ///
    /// If the string is not a valid field value, larder logs a warning and sends `no-store`. The [setter of the
    /// layer](crate::ResponseCacheLayer::browser_cache_control) panics for such a string.
    pub fn browser_cache_control(&self, cache_control: &str) -> &Self {
        self.0.browser_cache_control(cache_control);
        self
    }

    /// Sets the `CDN-Cache-Control` that content delivery networks get.
    pub fn cdn_cache_control(&self, cache_control: &str) -> &Self {
        self.0.cdn_cache_control(cache_control);
        self
    }
}

impl<S: Send + Sync> FromRequestParts<S> for CachePolicy {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
        ResponseOverrides::note_matched_path(&parts.extensions);
        parts
            .extensions
            .get()
            .cloned()
            .map(Self)
            .ok_or(MissingLayer { extractor: "CachePolicy", layer: "ResponseCacheLayer" })
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for CachePolicy {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        ResponseOverrides::note_matched_path(&parts.extensions);
        Ok(parts.extensions.get().cloned().map(Self))
    }
}
