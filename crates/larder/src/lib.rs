//! Caching for Tower and Axum services: layers and extractors over one engine. Every stored response carries the
//! tags of the data that it was made of, so one invalidation after a write reaches every copy that depends on it.
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
//!     policy.ttl(Duration::from_secs(300)).tag(("product", id));
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
//! The handler sets the lifetime of its response and tags the data it depends on. larder neither answers an
//! authenticated request from the cache nor stores its response until the layer declares
//! [how responses differ by user](guide::identity). [`ResponseCacheLayer::ttl`](http::ResponseCacheLayer::ttl) sets one
//! lifetime for all routes; [the guide](guide::lifetimes) lists its restrictions.
//!
//! # Contents
//!
//! - **The guide**: adding larder to an application that exists already (`guide::existing`), [recipes](guide::recipes),
//!   [coming from another cache](guide::migration); choosing (`guide::choosing`), [users and credentials](guide::identity), [the order of layers](guide::layers),
//!   [lifetimes](guide::lifetimes), [values and fragments](guide::values), [stampedes](guide::stampede),
//!   [invalidation](guide::invalidation), cached queries (`guide::queries`), [many processes](guide::many_processes),
//!   operating Redis (`guide::redis`), [each header and directive](guide::headers), [each word of
//!   `Cache-Status`](guide::cache_status).
//! - **Whole responses**: [`http::ResponseCacheLayer`] lists which responses larder stores, which it does not, and why.
//! - **Session layers outside of the cache**: [`http::FinalHeadLayer`].
//! - **Conditional requests**: [`http::ConditionalLayer`].
//! - **Invalidation after writes**: [`http::InvalidationLayer`]; by hand with [`Larder::invalidate`]; its targets:
//!   [`Target`].
//! - **Objects**: [`Larder::get_or_load`], with a [`Policy`].
//! - **Fragments of pages**: `axum::FragmentCache`.
//! - **Counters**: [`Larder::stats`].
//! - **A second level and a shared log**: [`store::Store`] and [`store::Bus`].
//!
//! # Features
//!
//! - `axum` (default): the module `axum`; the layers read the URI from before nesting (axum's `OriginalUri`).
//! - `tower-sessions`, `tower-sessions-014`, `axum-login`, `axum-extra`: the users of sessions and cookies, in `axum::identity`; with the first
//!   also `ResponseCacheLayer::refuse_written_sessions`.
//! - `graphql`: [`http::BodyKeyLayer`] tells GraphQL queries over POST from mutations.
//! - `redis`: the module `redis`, the second level and the log on Redis, Valkey or Redis Cluster; `redis-tls` for
//!   `rediss://`.
//! - `sqlite`, `postgres`: cached queries over sqlx 0.9, in the modules `sql` and `sqlx`; `sqlite-sqlx-08`,
//!   `postgres-sqlx-08`: over sqlx 0.8, in `sqlx_08`; `rusqlite` and `tokio-postgres`: over these drivers; `sql`: over another driver; `sea-query` for statements built by
//!   sea-query or SeaORM.
//! - `warming`: the module `warming`; `progress-bar` for a bar on a terminal, `cron` for schedules by the clock.
//! - `write-behind`: the module `write_behind`, and with `sqlite` or `postgres` `sql::TableSink`.
//! - `macros`: the attributes `cached` and `cached_fragment`.
//! - `admin`: the admin API and the dashboard, `axum::admin`.
//! - `metrics`: metrics through the `metrics` facade: [`LarderBuilder::publish_metrics`], [`guide::metrics`].

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "second-level")]
pub use larder_core::SealingKeys;
pub use larder_core::{
    BuildError, ByteSize, CacheCounters, CacheStats, Consistency, Eviction, Evictions, IntoName,
    Invalidated, Invalidation, InvalidationEvent, InvalidationFeed, Key, Kind, Larder,
    LarderBuilder, Latency, Lifetime, LoadError, LoadHandle, LogStats, MAX_TAG_BYTES, MemoryStats,
    Mode, Policy, Reason, RouteStats, Saved, Scoped, SecondLevelStats, Selector, Stats, Tag,
    Target, Tiers, WriteBehindStats, tag,
};

pub mod guide;

#[cfg(feature = "macros")]
#[doc(inline)]
pub use larder_macros::{cached, cached_fragment};

#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod macros;

/// Compiles the code of the README as doc tests.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../../../README.md")]
pub struct Readme;

/// The layers, for any Tower service.
pub mod http {
    pub use larder_http::*;
}

/// For authors of second levels and of logs: the traits that a store and a bus implement.
pub mod store {
    pub use larder_core::store::*;
}

/// Domain events: [`Larder::on`], [`Larder::emit`].
pub mod events {
    pub use larder_core::events::*;
}

/// Values by name, without a loader: [`Larder::values`], [`Larder::read_point`].
pub mod values {
    pub use larder_core::values::*;
}

/// The second level and the invalidation log on Redis, Valkey or Redis Cluster.
#[cfg(feature = "redis")]
pub mod redis {
    pub use larder_redis::*;
}

/// Cached SQL queries, invalidated by the statements that write their tables and rows.
#[cfg(feature = "sql")]
pub mod sql {
    pub use larder_sql::*;
}

/// Cached queries over the connection pools of sqlx 0.9.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod sqlx {
    pub use larder_sqlx::v0_9::*;
}

/// Cached queries over the connection pools of sqlx 0.8.
#[cfg(any(feature = "postgres-sqlx-08", feature = "sqlite-sqlx-08"))]
pub mod sqlx_08 {
    pub use larder_sqlx::v0_8::*;
}

/// Cached queries on SQLite through rusqlite.
#[cfg(feature = "rusqlite")]
pub mod rusqlite {
    pub use larder_rusqlite::*;
}

/// Cached queries on PostgreSQL through tokio-postgres and deadpool-postgres.
#[cfg(feature = "tokio-postgres")]
pub mod tokio_postgres {
    pub use larder_tokio_postgres::*;
}

/// Warming: fills the cache before requests need it.
#[cfg(feature = "warming")]
pub mod warming {
    pub use larder_warming::*;
}

/// Write-behind queues: callers write to a queue, and larder writes to the database in batches.
#[cfg(feature = "write-behind")]
pub mod write_behind {
    pub use larder_write_behind::*;
}

/// The extractors for axum, and the layers of [`http`] that routers use most.
#[cfg(feature = "axum")]
pub mod axum {
    pub use larder_axum::*;
}
