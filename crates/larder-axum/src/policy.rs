//! `CachePolicy`: sets how the response of a handler is cached.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;
use larder_core::{Lifetime, Tag};
use larder_http::ResponseOverrides;

use crate::missing::MissingLayer;

/// The cache policy of this response. Needs a [`ResponseCacheLayer`](crate::ResponseCacheLayer); with
/// `Option<CachePolicy>` the layer may be missing.
///
/// Its choices take precedence over the options of the layer, except `override_ttl`, and for this cache over
/// `Cache-Control`.
#[doc(alias("surrogate control", "output cache policy", "page cache"))]
#[derive(Clone, Debug)]
pub struct CachePolicy(ResponseOverrides);

impl CachePolicy {
    /// Sets the lifetime of the response.
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
    pub fn tags<T: Into<Tag>>(&self, tags: impl IntoIterator<Item = T>) -> &Self {
        for tag in tags {
            self.0.tag(tag);
        }
        self
    }

    /// Makes the response not storable.
    pub fn no_store(&self) -> &Self {
        self.0.no_store();
        self
    }

    /// Declares the response the same for all clients: authenticated requests may get it too.
    pub fn public(&self) -> &Self {
        self.0.public();
        self
    }

    /// Sets the `Cache-Control` that browsers get, in place of the handler's own. If neither is set, nor one on the
    /// layer, browsers get `no-cache` for a lifetime that was chosen here or on the layer.
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
        Ok(parts.extensions.get().cloned().map(Self))
    }
}
