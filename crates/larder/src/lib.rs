//! Caching for Tower and Axum services: a family of layers and extractors over one engine, that knows what
//! every response was made of, so that one write makes every copy that depends on it disappear.
//!
//! # The first hit
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, body::Body, extract::Path, http::Request, routing::get};
//! use larder::{
//!     ByteSize, Larder,
//!     axum::{CachePolicy, HttpCache, Invalidate},
//! };
//! use tower::ServiceExt;
//!
//! async fn show(policy: CachePolicy, Path(id): Path<u64>) -> String {
//!     policy.ttl(Duration::from_mins(5)).tag(("product", id));
//!     format!("product {id}")
//! }
//!
//! async fn update(invalidate: Invalidate, Path(id): Path<u64>) {
//!     // ... write, commit, then:
//!     invalidate.tag(("product", id));
//! }
//!
//! # type Error = Box<dyn std::error::Error>;
//! # async fn status(app: &Router, method: &str) -> Result<String, Error> {
//! #     let request = Request::builder().method(method).uri("/products/42").body(Body::empty())?;
//! #     let response = app.clone().oneshot(request).await?;
//! #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
//! # }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
//! let larder = Larder::builder().memory(ByteSize::mib(256)).version("1.0").build()?;
//! let app: Router = Router::new()
//!     .route("/products/{id}", get(show).put(update))
//!     .layer(HttpCache::new(&larder));
//! assert_eq!(status(&app, "GET").await?, "larder; fwd=uri-miss; stored");
//! assert_eq!(status(&app, "GET").await?, "larder; hit; ttl=299");
//! assert_eq!(status(&app, "PUT").await?, "larder; fwd=method");
//! assert_eq!(status(&app, "GET").await?, "larder; fwd=stale; stored");
//! # Ok(())
//! # }
//! ```
//!
//! The handler says how long its response lives and on what it depends. A request with credentials passes by until the
//! layer says [what differs by user](guide::identity); a lifetime for all routes at once is
//! [`ResponseCacheLayer::ttl`](http::ResponseCacheLayer::ttl), and [the guide](guide::lifetimes) says what it means.
//!
//! # Where to go on
//!
//! - **The guide**: [users and credentials](guide::identity), [the order of layers](guide::layers),
//!   [lifetimes](guide::lifetimes), [values and fragments](guide::values), [stampedes](guide::stampede),
//!   [invalidation](guide::invalidation), cached queries (`guide::queries`), [many processes](guide::many_processes),
//!   operating Redis (`guide::redis`), [each header and directive](guide::headers), [each word of
//!   `Cache-Status`](guide::cache_status).
//! - **Whole responses**: [`http::response_cache`] says which responses larder stores, which it does not, and why.
//! - **Sessions outside of the cache**: [`http::final_head`].
//! - **Conditional requests**: [`http::conditional`].
//! - **Invalidation after writes**: [`http::invalidation`]; by hand with [`Larder::invalidate`]; what can be
//!   named: [`Target`].
//! - **Objects**: [`Larder::get_or_load`], with a [`Policy`].
//! - **Fragments of pages**: `axum::FragmentCache`.
//! - **What is counted**: [`Larder::stats`].
//! - **A second level and a shared log**: [`Store`] and [`Bus`].
//!
//! # Features
//!
//! - `axum` (default): the module `axum`; the layers read the URI that axum notes before nesting strips its prefix.
//! - `tower-sessions`: `ResponseCacheLayer::refuse_written_sessions`.
//! - `redis`: the module `redis`, the shared store and the log on Redis, Valkey or Redis Cluster; `redis-tls` for
//!   `rediss://`.
//! - `sql`, `sqlite`, `postgres`: the module `sql`, cached queries; `sea-query` for statements of that builder, and of SeaORM.
//! - `metrics`: counters through the `metrics` facade, `larder_events_total{cache, event}`.

pub use larder_core::{
    BuildError, ByteSize, CacheCounters, CacheStats, Consistency, Eviction, Evictions, IntoName,
    Invalidated, Invalidation, InvalidationEvent, InvalidationFeed, Key, Kind, Larder,
    LarderBuilder, Latency, Lifetime, LoadError, Loading, LogStats, MAX_TAG_BYTES, MemoryStats,
    Mode, Policy, Scoped, SealingKeys, SecondLevelStats, Selector, Stats, Tag, Target, Tiers, tag,
};

pub mod guide;

/// What the README shows compiles.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../../../README.md")]
pub struct Readme;

/// The layers, for any tower service.
pub mod http {
    pub use larder_http::*;
}

/// For authors of second levels and of logs: the traits that a store and a bus implement.
pub mod store {
    pub use larder_core::store::*;
}

/// Many processes as one cache, over Redis, Valkey or Redis Cluster.
#[cfg(feature = "redis")]
pub mod redis {
    pub use larder_redis::*;
}

/// Queries that are cached with one line and dropped by what is written.
#[cfg(feature = "sql")]
pub mod sql {
    pub use larder_sql::*;
}

/// Extractors, and the layers of [`http`] under the names that routers of axum use.
#[cfg(feature = "axum")]
pub mod axum {
    pub use larder_axum::*;
}
