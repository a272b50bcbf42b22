//! `CachePolicy`: how a handler decides what becomes of its response.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;
use larder_core::{Lifetime, Tag};
use larder_http::ResponseOverrides;

use crate::missing::MissingLayer;

/// Decides how this response is kept. Needs a [`ResponseCacheLayer`](crate::ResponseCacheLayer); with
/// `Option<CachePolicy>` it may be missing.
///
/// What is chosen here comes before what the layer says, and before `Cache-Control` as far as this cache
/// is concerned.
#[doc(alias("surrogate control", "output cache policy", "page cache"))]
#[derive(Clone, Debug)]
pub struct CachePolicy(ResponseOverrides);

impl CachePolicy {
    /// How long the response is kept.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) -> &Self {
        self.0.ttl(lifetime);
        self
    }

    /// Adds a tag; invalidating it drops the response.
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

    /// The response is not kept.
    pub fn no_store(&self) -> &Self {
        self.0.no_store();
        self
    }

    /// The response is the same for everyone: requests that say who asks may have it too.
    pub fn public(&self) -> &Self {
        self.0.public();
        self
    }

    /// What browsers are told: the text of `Cache-Control`. `no-cache` without it.
    pub fn browser_cache_control(&self, cache_control: &str) -> &Self {
        self.0.browser_cache_control(cache_control);
        self
    }

    /// What a content delivery network is told: the text of `CDN-Cache-Control`.
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
