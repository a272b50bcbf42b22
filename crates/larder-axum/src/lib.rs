//! larder for axum.
//!
//! Applications depend on `larder`, which re-exports this crate as `larder::axum`.
//!
//! The layers come from `larder-http`. With its feature `axum`, which this crate enables, they read the URI that the
//! client requested, as it was before nesting stripped a prefix from it. Handlers use these extractors:
//!
//! - [`CachePolicy`]: the lifetime and the tags of this response;
//! - [`Invalidate`]: the targets that this write invalidates;
//! - [`Conditional`]: 304 or 412 before the handler does its work;
//! - [`FragmentCache`]: fragments of a page, which are cached separately.
//!
//! [`MatchedPathLayer`] tells a cache around a router which route has matched, for metrics.
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, body::Body, extract::Path, http::Request, routing::get};
//! use larder_axum::{CachePolicy, HttpCache, Invalidate};
//! use larder_core::Larder;
//! use tower::ServiceExt;
//!
//! async fn show(policy: CachePolicy, Path(id): Path<u64>) -> String {
//!     policy.ttl(Duration::from_secs(300)).tag(("product", id));
//!     format!("product {id}")
//! }
//!
//! async fn update(invalidate: Invalidate, Path(id): Path<u64>) {
//!     // ... write, commit ...
//!     invalidate.tag(("product", id));
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let larder = Larder::builder().build()?;
//! let app: Router = Router::new()
//!     .route("/products/{id}", get(show).put(update))
//!     .layer(HttpCache::new(&larder));
//! let request = || Request::get("/products/42").body(Body::empty());
//! app.clone().oneshot(request()?).await?;
//! let hit = app.oneshot(request()?).await?;
//! assert_eq!(hit.headers()["cache-status"], "larder; hit; ttl=299");
//! # Ok(())
//! # }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

pub use self::{
    conditional::{ConditionUnmet, Conditional},
    fragment::FragmentCache,
    invalidate::Invalidate,
    missing::MissingLayer,
    policy::CachePolicy,
};

#[cfg(feature = "read-your-writes")]
pub use larder_http::ReadYourWrites;
pub use larder_http::{
    ConditionalLayer, FinalHeadLayer, Head, HttpCache, Identity, IdentityLayer, InvalidationLayer,
    MatchedPathLayer, PartitionName, QueryRule, ResponseCacheLayer, Scheme,
};

#[cfg(feature = "admin")]
pub mod admin;
mod conditional;
mod fragment;
pub mod identity;
mod invalidate;
mod missing;
mod policy;

#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod tests;
