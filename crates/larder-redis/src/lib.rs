//! larder over Redis, Valkey and Redis Cluster: many processes as one cache.
//!
//! Applications depend on `larder`, which has all of this as `larder::redis`.
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

use std::{fmt, sync::Arc, time::Duration};

use larder_core::{ByteSize, LarderBuilder};

#[cfg(feature = "tls")]
pub use self::tls::{CertificateError, CertificateErrorKind, Certificates};
pub use self::{
    advice::Advice,
    bus::RedisBus,
    store::{ReadFrom, RedisStore},
};
use self::{
    connection::SharedConnection,
    guarded_connection::GuardedConnection,
    server::{Addresses, Server},
};

mod advice;
mod breaker;
mod bus;
mod connection;
mod guarded_connection;
mod replica_ack;
mod server;
mod store;
#[cfg(feature = "tls")]
mod tls;

/// A Redis or Valkey server, or a cluster of them.
///
/// Opening connects to nobody: that happens when it is first needed, and again whenever it broke.
#[derive(Clone)]
#[must_use = "it does nothing until it is given to a builder"]
pub struct Redis {
    addresses: Addresses,
    server: Server,
    replicas: Vec<Server>,
    read_from: ReadFrom,
    name: String,
    deadline: Duration,
    max_value: ByteSize,
    durable: u32,
}

impl Redis {
    /// One server, such as `redis://user:password@127.0.0.1:6379/0` or `redis+unix:///run/redis.sock`, or
    /// `rediss://…` with the feature `tls`.
    ///
    /// # Errors
    ///
    /// When the URL is not one of a Redis server.
    pub fn open(url: &str) -> Result<Self, RedisUrlError> {
        Self::of(Addresses::new(vec![url.to_owned()], false))
    }

    /// A cluster, by some of its nodes.
    ///
    /// # Errors
    ///
    /// When there is no URL, or one of them is not one of a Redis server.
    #[doc(alias("sharding", "hash slots"))]
    pub fn cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisUrlError> {
        Self::of(Addresses::new(urls.into_iter().map(str::to_owned).collect(), true))
    }

    fn of(addresses: Addresses) -> Result<Self, RedisUrlError> {
        Ok(Self {
            server: addresses.server(false).map_err(|error| addresses.refused(error))?,
            addresses,
            replicas: Vec::new(),
            read_from: ReadFrom::Primary,
            name: "larder".to_owned(),
            deadline: Duration::from_millis(40),
            max_value: ByteSize::mib(1),
            durable: 0,
        })
    }

    /// Trusts and shows these certificates on `rediss://` connections. Before [`replicas`](Self::replicas).
    ///
    /// # Errors
    ///
    /// When the URL is not one of TLS, or a certificate does not fit its key.
    #[cfg(feature = "tls")]
    pub fn certificates(mut self, certificates: Certificates) -> Result<Self, CertificateError> {
        if !self.addresses.urls.iter().all(|url| server::is_tls(url)) {
            return Err(CertificateError::new(CertificateErrorKind::NoTls));
        }
        self.addresses.certificates = certificates;
        self.server = self.addresses.server(false).map_err(CertificateError::unusable)?;
        Ok(self)
    }

    /// The name of the log, and the prefix of the keys of entries; `larder` by default.
    /// Larders with the same name on one server share entries and invalidations.
    ///
    /// # Panics
    ///
    /// If the name is empty, or has a `{` or `}`: Redis Cluster takes those for a hash tag.
    pub fn name(mut self, name: &str) -> Self {
        let is_valid = !name.is_empty() && !name.contains(['{', '}']);
        assert!(
            is_valid,
            "the name of a Redis level is {name:?}, allowed is a text without braces that is not empty"
        );
        name.clone_into(&mut self.name);
        self
    }

    /// How long a read of the store may take before it counts as a miss; 40 ms by default. larder itself goes
    /// on without it after 50 ms.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Values of more bytes than this, compressed, are not written to the store and stay in the memory of their process; 1 MiB
    /// by default. They are counted in [`SecondLevelStats::too_large`](larder_core::SecondLevelStats::too_large).
    ///
    /// A value comes over the same connection as all others, and has to arrive within the [`deadline`](Self::deadline): at 1
    /// Gbit/s one of 1 MiB takes 9 ms, one of 8 MiB 70 ms, and small ones behind it wait as long. Who raises this raises
    /// the deadline too.
    #[doc(alias("large values", "big keys"))]
    pub fn max_value(mut self, most: ByteSize) -> Self {
        self.max_value = most;
        self
    }

    /// Says that an invalidation is logged once this many replicas have it too; none by default. Where they do not
    /// answer within half a second it is `Queued`: it acts everywhere, and is appended again should its server be
    /// replaced. Costs a round trip more, and narrows what a fail-over can lose.
    ///
    /// Source: [`WAIT`](https://redis.io/docs/latest/commands/wait/)
    #[doc(alias("WAIT", "synchronous replication"))]
    pub fn durable(mut self, replicas: u32) -> Self {
        self.durable = replicas;
        self
    }

    /// The replicas of a single server, by their URLs. A cluster knows its own.
    ///
    /// # Errors
    ///
    /// When one of them is not a URL of a Redis server.
    pub fn replicas<'a>(
        mut self,
        urls: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RedisUrlError> {
        for url in urls {
            let client = self.addresses.client(url).map_err(|e| RedisUrlError::new(url, e))?;
            self.replicas.push(Server::Single(Box::new(client)));
        }
        Ok(self)
    }

    /// From whom entries are read; from the primary by default. Where no replica is known all of it comes from
    /// there.
    #[doc(alias("read replicas", "READONLY"))]
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.read_from = read_from;
        self
    }

    /// The shared store.
    pub fn store(&self) -> RedisStore {
        // Each command of the store has a deadline of its own.
        let place = |name, server| {
            let link = self.link(server, None);
            if self.addresses.is_cluster {
                GuardedConnection::of_cluster(name, link)
            } else {
                GuardedConnection::new(name, link)
            }
        };
        let primary = place("store", &self.server);
        let replicas = match (self.read_from, self.addresses.is_cluster) {
            (ReadFrom::Primary, _) => Vec::new(),
            // The addresses were good for the same without replicas.
            (_, true) => self.addresses.server(true).into_iter().collect(),
            (_, false) => self.replicas.clone(),
        };
        let replicas = replicas.iter().map(|server| place("replica", server));
        RedisStore::new(
            primary,
            replicas.collect(),
            self.read_from,
            self.deadline,
            self.max_value.as_bytes(),
            &self.name,
        )
    }

    /// What about the settings of the server is not as larder wants it. A log asks by itself when it first
    /// reaches its server, and warns.
    ///
    /// # Errors
    ///
    /// When the server does not answer.
    pub async fn advice(&self) -> Result<Vec<Advice>, larder_core::store::BusError> {
        self.bus().advice().await
    }

    /// The invalidation log.
    pub fn bus(&self) -> RedisBus {
        let links = [SHORT, SHORT, None].map(|patience| self.link(&self.server, patience));
        RedisBus::new(links, &self.name, self.durable)
    }

    fn link(&self, server: &Server, patience: Option<Duration>) -> Arc<SharedConnection> {
        SharedConnection::new(server.clone(), patience)
    }
}

impl Addresses {
    fn refused(&self, error: redis::RedisError) -> RedisUrlError {
        let given: Vec<_> = self.urls.iter().map(|url| without_secrets(url)).collect();
        RedisUrlError { given: given.join(", "), source: error }
    }
}

/// For commands that answer at once.
const SHORT: Option<Duration> = Some(Duration::from_secs(5));

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Redis").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Gives a larder a Redis as its second level and as its log.
pub trait WithRedis: sealed::SealedTrait {
    /// Shares entries and invalidations through this Redis.
    #[must_use]
    fn redis(self, redis: Redis) -> Self;
}

impl WithRedis for LarderBuilder {
    fn redis(self, redis: Redis) -> Self {
        let store = redis.store();
        self.store(store.clone()).fill_locks(store).bus(redis.bus())
    }
}

mod sealed {
    pub trait SealedTrait {}
    impl SealedTrait for larder_core::LarderBuilder {}
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
        let urls = ["redis://u:secret@one", "redis://u:secret", "u:secret@["];
        let error = Redis::cluster(urls).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn names_that_would_be_hash_tags_are_refused() {
        for name in ["", "a{b}", "}"] {
            let named = || Redis::open("redis://localhost").unwrap().name(name);
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(named)).unwrap_err();
            let text = panic.downcast_ref::<String>().unwrap();
            assert!(text.contains(&format!("{name:?}")), "{text}");
        }
    }
}
