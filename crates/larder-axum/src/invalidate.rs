//! `Invalidate`: what a write has made untrue.

use axum_core::extract::FromRequestParts;
use http::request::Parts;
use larder_core::{IntoName, Invalidated, Invalidation, Tag, Target};
use larder_http::PendingInvalidations;

use crate::missing::MissingLayer;

/// Says what this request has made untrue. Needs an [`InvalidationLayer`](crate::InvalidationLayer).
///
/// What is said before the response leaves acts with it, whatever its status and even if the handler
/// panics; what is said later acts at once. Say it after the commit.
#[doc(alias("purge", "cache busting", "event invalidation"))]
#[derive(Clone, Debug)]
pub struct Invalidate(PendingInvalidations);

impl Invalidate {
    /// All that carries this tag.
    pub fn tag(&self, tag: impl Into<Tag>) -> &Self {
        self.target(Target::tag(tag))
    }

    /// All that carries this tag or one below it.
    pub fn prefix(&self, tag: impl Into<Tag>) -> &Self {
        self.target(Target::prefix(tag))
    }

    /// The object or fragment of this name.
    pub fn name(&self, name: impl IntoName) -> &Self {
        self.target(Target::name(name))
    }

    /// Every response of this path.
    pub fn path(&self, path: impl AsRef<str>) -> &Self {
        self.target(Target::path(path))
    }

    /// Anything an invalidation can name.
    pub fn target(&self, target: impl Into<Target>) -> &Self {
        self.0.add(target);
        self
    }

    /// Invalidates before going on: when this returns, it has acted in this process. The only way to make
    /// something merely stale, or to invalidate later.
    pub async fn now(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        self.0.now(invalidation).await
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Invalidate {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
        let requested = parts.extensions.get().cloned().or_else(PendingInvalidations::current);
        requested
            .map(Self)
            .ok_or(MissingLayer { extractor: "Invalidate", layer: "InvalidationLayer" })
    }
}
