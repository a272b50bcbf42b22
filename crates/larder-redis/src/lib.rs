//! larder over Redis, Valkey and Redis Cluster: many processes as one cache.
//!
//! [`Redis`] brings the shared store (what one process fills, all may use) and the invalidation log (what one
//! invalidates is gone in all). The log is a Redis Stream that one script appends to and every process reads
//! from where it stood: a lost connection loses nothing. A server that came back empty, was replaced, or lost
//! its tail is found out by the epoch of the log, and then larder forgets rather than trusts.
//!
//! Redis being away costs hits, never responses: invalidations act in their own process at once and are
//! appended as soon as the log is there again; reads of the store have a deadline; after a few failures in a
//! row nobody waits for it.
//!
//! ```no_run
//! use larder_core::Larder;
//! use larder_redis::{Redis, WithRedis as _};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let larder = Larder::builder().redis(Redis::open("redis://127.0.0.1:6379")?).build()?;
//! # Ok(()) }
//! ```
//!
//! # Before deploying
//!
//! - Memory: entries expire by themselves; the log keeps about 150 bytes for each target that was invalidated
//!   within the longest lifetime. Eviction policies of Redis may drop entries; a key of the log that was dropped
//!   makes a new epoch, and with it every shared entry is filled anew.
//! - Larders that share a log share their invalidations: give each application its own
//!   [`name`](Redis::name).
//! - Fail-over: set `min-replicas-to-write 1` where a primary that was cut off must not take invalidations
//!   that are lost with it.

use std::{fmt, time::Duration};

use larder_core::LarderBuilder;
use redis::cluster::ClusterClient;

use self::link::{Link, Server};
pub use self::{bus::RedisBus, store::RedisStore};

mod breaker;
mod bus;
mod link;
mod store;

/// A Redis or Valkey server, or a cluster of them.
///
/// Opening connects to nobody: that happens when it is first needed, and again whenever it broke.
#[derive(Clone)]
#[must_use = "it does nothing until it is given to a builder"]
pub struct Redis {
    server: Server,
    name: String,
    deadline: Duration,
}

impl Redis {
    /// One server, such as `redis://user:password@127.0.0.1:6379/0` or `redis+unix:///run/redis.sock`.
    ///
    /// # Errors
    ///
    /// When the URL is not one of a Redis server.
    pub fn open(url: &str) -> Result<Self, RedisUrlError> {
        let client = redis::Client::open(url).map_err(|error| RedisUrlError::new(url, error))?;
        Ok(Self::of(Server::Single(Box::new(client))))
    }

    /// A cluster, by some of its nodes.
    ///
    /// # Errors
    ///
    /// When there is no URL, or one of them is not one of a Redis server.
    pub fn cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisUrlError> {
        let urls: Vec<&str> = urls.into_iter().collect();
        let client = ClusterClient::builder(urls.clone())
            .retries(2)
            .connection_timeout(Duration::from_secs(1))
            .response_timeout(Duration::from_secs(5))
            .build();
        let client = client.map_err(|error| RedisUrlError::new(&urls.join(", "), error))?;
        Ok(Self::of(Server::Cluster(Box::new(client))))
    }

    fn of(server: Server) -> Self {
        Self { server, name: "larder".to_owned(), deadline: Duration::from_millis(40) }
    }

    /// The name of the log, and what keys of entries begin with; `larder` by default, and for an empty text.
    /// Larders with the same name on one server share entries and invalidations.
    pub fn name(mut self, name: &str) -> Self {
        let name = if name.is_empty() { "larder" } else { name };
        self.name = name.replace(['{', '}'], "_");
        self
    }

    /// How long a read of the store may take before it counts as a miss; 40 ms by default. larder itself goes
    /// on without it after 50 ms.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The shared store.
    pub fn store(&self) -> RedisStore {
        RedisStore::new(self.link(Some(Duration::from_secs(5))), self.deadline, &self.name)
    }

    /// The invalidation log.
    pub fn bus(&self) -> RedisBus {
        RedisBus::new(self.link(Some(Duration::from_secs(5))), self.link(None), &self.name)
    }

    fn link(&self, patience: Option<Duration>) -> std::sync::Arc<Link> {
        Link::new(self.server.clone(), patience)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Redis").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Gives a larder a Redis as its second level and as its log.
pub trait WithRedis: sealed::Sealed {
    /// Shares entries and invalidations through this Redis.
    #[must_use]
    fn redis(self, redis: Redis) -> Self;
}

impl WithRedis for LarderBuilder {
    fn redis(self, redis: Redis) -> Self {
        self.store(redis.store()).bus(redis.bus())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for larder_core::LarderBuilder {}
}

/// A text that is no URL of a Redis server.
#[derive(Debug)]
pub struct RedisUrlError {
    given: String,
    source: redis::RedisError,
}

impl RedisUrlError {
    fn new(given: &str, source: redis::RedisError) -> Self {
        Self { given: without_secrets(given), source }
    }
}

/// What stands before an `@`, after a `?` or after a colon may be a password.
fn without_secrets(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (Some((scheme, _)), None) => format!("{scheme}://…"),
        (None, _) if url.contains([':', '@']) => "…".to_owned(),
        (None, _) => url.to_owned(),
    }
}

impl fmt::Display for RedisUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no URL of a Redis server, allowed is redis://HOST:PORT", self.given)
    }
}

impl std::error::Error for RedisUrlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_tells_a_password() {
        for url in [
            "redis://user:secret@[",
            "redis://:secret",
            "redis+unix:///run/redis.sock?db=x&pass=secret",
            "user:secret@host",
            "http://secret",
        ] {
            let shown = without_secrets(url);
            assert!(!shown.contains("secret"), "{shown}");
        }
        assert_eq!(without_secrets("nonsense"), "nonsense");
    }
}
