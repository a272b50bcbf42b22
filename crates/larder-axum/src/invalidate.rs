//! `Invalidate`: adds the targets that a write invalidates.

use axum_core::extract::FromRequestParts;
use http::request::Parts;
use larder_core::{IntoName, Invalidated, Invalidation, Tag, Target};
use larder_http::PendingInvalidations;

use crate::missing::MissingLayer;

/// Adds the targets that this request invalidates. Needs an [`InvalidationLayer`](crate::InvalidationLayer).
///
/// Targets that are added before the response of a write leaves are invalidated with it, for any status and even if the
/// handler panics; later ones, and those of a safe request, at once. Add them after the commit.
#[doc(alias("purge", "cache busting", "event invalidation"))]
#[derive(Clone, Debug)]
pub struct Invalidate(PendingInvalidations);

impl Invalidate {
    /// Invalidates all entries that have this tag.
    pub fn tag(&self, tag: impl Into<Tag>) -> &Self {
        self.target(Target::tag(tag))
    }

    /// Invalidates all entries that have this tag or one below it.
    pub fn prefix(&self, tag: impl Into<Tag>) -> &Self {
        self.target(Target::prefix(tag))
    }

    /// Invalidates the object or fragment of this name.
    pub fn name(&self, name: impl IntoName) -> &Self {
        self.target(Target::name(name))
    }

    /// Invalidates every response of this path.
    pub fn path(&self, path: impl AsRef<str>) -> &Self {
        self.target(Target::path(path))
    }

    /// Invalidates any target.
    pub fn target(&self, target: impl Into<Target>) -> &Self {
        self.0.add(target);
        self
    }

    /// Invalidates without waiting for the response: on return the invalidation has acted in this process. The only way
    /// to make entries merely stale, or to invalidate after a delay.
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
