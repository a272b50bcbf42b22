//! A second level and an invalidation log for larder over Redis, Valkey and Redis Cluster, with which many processes
//! act as one cache.
//!
//! Applications depend on `larder`, which re-exports this crate as `larder::redis`.
//!
//! [`Redis`] provides the shared store (an entry that one process fills serves all of them) and the invalidation log
//! (an invalidation in one process reaches all of them). The log is a Redis Stream to which one script appends. Every
//! process reads it from its own position, so it misses no record if a connection is lost. By the epoch of the log,
//! larder detects a server that came back empty, was replaced, or lost its last records. It then treats every entry of
//! the old epoch as invalidated.
//!
//! An outage of Redis causes misses, but no request fails because of it. Invalidations act at once in the process that
//! made them, and are appended as soon as the log answers again. Reads of the store have a deadline, and after five
//! failures in a row, commands fail at once instead of waiting.
//!
//! ```no_run
//! use larder_core::Larder;
//! use larder_redis::Redis;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let larder = Larder::builder().second_level(Redis::open("redis://127.0.0.1:6379")?).build()?;
//! # Ok(()) }
//! ```
//!
//! # Before deploying
//!
//! - Memory: entries expire by themselves; the log stores about 150 bytes for each target that was invalidated within
//!   the longest lifetime. Eviction policies of Redis may drop entries; if they drop a key of the log, a new epoch
//!   begins, and every shared entry is filled again.
//! - Larders that share a log share their invalidations, so give each application its own [`name`](Redis::name).
//! - Fail-over: set `min-replicas-to-write 1` if a primary that is cut off must not accept invalidations that its
//!   replacement never receives.

#![cfg_attr(docsrs, feature(doc_cfg))]

use std::{fmt, sync::Arc, time::Duration};

use larder_core::{ByteSize, store::SecondLevel};

#[cfg(feature = "tls")]
pub use self::tls::{CertificateError, CertificateErrorKind, Certificates};
#[cfg(feature = "write-behind")]
pub use self::write_behind::RedisJournal;
pub use self::{
    advice::Advice,
    bus::RedisBus,
    store::{ReadFrom, RedisStore},
};
use self::{
    connection::SharedConnection,
    guarded_connection::GuardedConnection,
    report::RedisReport,
    server::{Addresses, Server},
};

mod advice;
mod breaker;
mod bus;
mod connection;
mod guarded_connection;
mod replica_ack;
mod report;
mod server;
mod store;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "write-behind")]
mod write_behind;

/// A Redis or Valkey server, or a cluster of them.
///
/// Opening a `Redis` does not connect. The first command connects, and the next command after a connection broke
/// connects again.
#[derive(Clone)]
#[must_use = "it does nothing until it is given to a builder"]
pub struct Redis {
    addresses: Addresses,
    server: Server,
    replicas: Vec<Server>,
    replica_urls: Vec<String>,
    read_from: ReadFrom,
    name: String,
    deadline: Duration,
    max_value: ByteSize,
    durable: u32,
}

impl Redis {
    /// Opens a single server, such as `redis://user:password@127.0.0.1:6379/0` or `redis+unix:///run/redis.sock`, or
    /// `rediss://…` with the feature `tls`.
    ///
    /// # Errors
    ///
    /// When the URL is not a Redis URL.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_core::Larder;
    /// use larder_redis::Redis;
    ///
    /// // Neither line connects: the first request does.
    /// let redis = Redis::open("redis://127.0.0.1:6379/0")?;
    /// let larder = Larder::builder().second_level(redis).build()?;
    ///
    /// // The error does not show the password.
    /// let refused = Redis::open("http://user:password@127.0.0.1").map_err(|error| error.to_string());
    /// assert!(refused.is_err_and(|text| text.starts_with("\"http://…@127.0.0.1\" is not a Redis URL")));
    /// # drop(larder);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(url: &str) -> Result<Self, RedisUrlError> {
        Self::of(Addresses::new(vec![url.to_owned()], false))
    }

    /// Opens a cluster, given the URLs of some of its nodes.
    ///
    /// # Errors
    ///
    /// When there is no URL, or one of the URLs is not a Redis URL.
    #[doc(alias("sharding", "hash slots"))]
    pub fn cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, RedisUrlError> {
        Self::of(Addresses::new(urls.into_iter().map(str::to_owned).collect(), true))
    }

    fn of(addresses: Addresses) -> Result<Self, RedisUrlError> {
        Ok(Self {
            server: addresses.server(false).map_err(|error| addresses.refused(error))?,
            addresses,
            replicas: Vec::new(),
            replica_urls: Vec::new(),
            read_from: ReadFrom::Primary,
            name: "larder".to_owned(),
            deadline: Duration::from_millis(40),
            max_value: ByteSize::mib(1),
            durable: 0,
        })
    }

    /// Trusts and presents these certificates on all `rediss://` connections, including the connections to
    /// [`replicas`](Self::replicas).
    ///
    /// # Errors
    ///
    /// When a URL is not a TLS URL, or a certificate does not match its key.
    #[cfg(feature = "tls")]
    pub fn certificates(mut self, certificates: Certificates) -> Result<Self, CertificateError> {
        let mut urls = self.addresses.urls.iter().chain(&self.replica_urls);
        if !urls.all(|url| server::is_tls(url)) {
            return Err(CertificateError::new(CertificateErrorKind::NoTls));
        }
        self.addresses.certificates = certificates;
        self.server = self.addresses.server(false).map_err(CertificateError::unusable)?;
        self.replicas = self
            .replica_urls
            .iter()
            .map(|url| self.addresses.replica(url))
            .collect::<Result<_, _>>()
            .map_err(CertificateError::unusable)?;
        Ok(self)
    }

    /// Sets the name of the log, which is also the prefix of the keys of entries; `larder` by default. Larders with the
    /// same name on one server share entries and invalidations.
    ///
    /// # Panics
    ///
    /// If the name is empty, or has a `{` or `}`, which Redis Cluster would treat as a hash tag.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_core::Larder;
    /// use larder_redis::Redis;
    ///
    /// // Two applications on one server.
    /// let server = Redis::open("redis://127.0.0.1:6379")?;
    /// let shop = Larder::builder().second_level(server.clone().name("shop")).build()?;
    /// let blog = Larder::builder().second_level(server.name("blog")).build()?;
    /// assert!(shop.stats().log.shared && blog.stats().log.shared);
    /// assert!(!shop.stats().log.synchronised, "no server has answered yet");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(mut self, name: &str) -> Self {
        let is_valid = !name.is_empty() && !name.contains(['{', '}']);
        assert!(
            is_valid,
            "the name of a Redis level is {name:?}, allowed is any non-empty text without braces"
        );
        name.clone_into(&mut self.name);
        self
    }

    /// Sets the time that a read of the store may take before it is treated as a miss; 40 ms by default. With replicas,
    /// a read that fails earlier is tried once more on another server, so the two reads together may take twice this
    /// time. All reads of one request together wait for at most 60 ms, or for this time if it is longer, unless the
    /// builder sets a store wait limit.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the largest compressed size of a value in the store; 1 MiB by default. Larger values stay in the memory of
    /// their process, and [`SecondLevelStats::too_large`](larder_core::SecondLevelStats::too_large) counts them.
    ///
    /// All values share one connection, and each value has to arrive within the [`deadline`](Self::deadline). At 1
    /// Gbit/s, a value of 1 MiB takes 9 ms and a value of 8 MiB takes 70 ms, and small values after it wait as long. If
    /// you raise this limit, raise the deadline, too.
    #[doc(alias("large values", "big keys"))]
    pub fn max_value(mut self, most: ByteSize) -> Self {
        self.max_value = most;
        self
    }

    /// Sets how many replicas must also have an invalidation before it is treated as logged; none by default. If they
    /// do not acknowledge it within half a second, the invalidation is `Queued`: it acts everywhere, and is appended
    /// again if its server is replaced. This costs one more round trip, and reduces the invalidations that a fail-over
    /// can lose.
    ///
    /// Source: [`WAIT`](https://redis.io/docs/latest/commands/wait/)
    #[doc(alias("WAIT", "synchronous replication"))]
    pub fn durable(mut self, replicas: u32) -> Self {
        self.durable = replicas;
        self
    }

    /// Adds the replicas of a single server, given their URLs. A cluster reports its own replicas.
    ///
    /// # Errors
    ///
    /// When one of the URLs is not a Redis URL.
    pub fn replicas<'a>(
        mut self,
        urls: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RedisUrlError> {
        for url in urls {
            let replica = self.addresses.replica(url).map_err(|e| RedisUrlError::new(url, e))?;
            self.replicas.push(replica);
            self.replica_urls.push(url.to_owned());
        }
        Ok(self)
    }

    /// Sets the servers from which entries are read; the primary by default. If no replica is known, all reads go to
    /// the primary.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder_redis::{ReadFrom, Redis};
    ///
    /// let redis = Redis::open("redis://primary.example:6379")?
    ///     .replicas(["redis://one.example:6379", "redis://two.example:6379"])?
    ///     .read_from(ReadFrom::AnyReplica)
    ///     .deadline(Duration::from_millis(20));
    ///
    /// // A cluster names its replicas itself.
    /// let cluster = Redis::cluster(["redis://node.example:6379"])?.read_from(ReadFrom::PrimaryThenReplica);
    /// # drop((redis, cluster));
    /// # Ok::<(), larder_redis::RedisUrlError>(())
    /// ```
    #[doc(alias("read replicas", "READONLY"))]
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.read_from = read_from;
        self
    }

    /// Returns the shared store.
    pub fn store(&self) -> RedisStore {
        // Each command of the store has its own deadline.
        let place = |name, server, address: &str| {
            let link = self.link(server, None);
            let connection = if self.addresses.is_cluster {
                GuardedConnection::of_cluster(name, link)
            } else {
                GuardedConnection::new(name, link)
            };
            connection.at(address)
        };
        let address = self.addresses.shown();
        let primary = place("store", &self.server, &address);
        let replicas = match (self.read_from, self.addresses.is_cluster) {
            (ReadFrom::Primary, _) => Vec::new(),
            // `open` or `cluster` has already accepted these addresses without replicas.
            (_, true) => self.addresses.server(true).into_iter().collect(),
            (_, false) => self.replicas.clone(),
        };
        let shown: Vec<String> = self.replica_urls.iter().map(|url| server::shown(url)).collect();
        let replicas = replicas.iter().enumerate().map(|(at, server)| {
            place("replica", server, shown.get(at).map_or(&address, String::as_str))
        });
        RedisStore::new(
            primary,
            replicas.collect(),
            self.read_from,
            self.deadline,
            self.max_value.as_bytes(),
            &self.name,
        )
    }

    /// Lists the settings of the server that cost hits or invalidations. The log also checks them when it first reaches
    /// its server, and logs warnings.
    ///
    /// # Errors
    ///
    /// When the server does not answer.
    pub async fn advice(&self) -> Result<Vec<Advice>, larder_core::store::BusError> {
        self.bus().advice().await
    }

    /// Returns the invalidation log.
    pub fn bus(&self) -> RedisBus {
        let links = [SHORT, SHORT, None].map(|patience| self.link(&self.server, patience));
        RedisBus::new(links, &self.name, self.durable, &self.addresses.shown())
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

/// The response timeout of connections whose commands the server answers at once.
const SHORT: Option<Duration> = Some(Duration::from_secs(5));

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Redis").field("name", &self.name).finish_non_exhaustive()
    }
}

impl From<Redis> for SecondLevel {
    fn from(redis: Redis) -> Self {
        let (store, bus) = (redis.store(), redis.bus());
        let report = RedisReport { store: store.clone(), bus: bus.clone() };
        Self::new(store.clone()).fill_locks(store).bus(bus).report(report)
    }
}

/// The error for a text that is not a Redis URL.
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

/// Removes the parts of a URL that may hold a password: before an `@`, after a `?` or after a colon.
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
        write!(f, "{:?} is not a Redis URL, allowed is redis://HOST:PORT", self.given)
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
    fn errors_never_show_a_password() {
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

    #[cfg(feature = "tls")]
    #[test]
    fn certificates_apply_to_replicas_whichever_setter_comes_first() {
        let primary = || Redis::open("rediss://primary").unwrap();
        let plain = primary().replicas(["redis://replica"]).unwrap();
        let refused = plain.certificates(Certificates::default());
        assert_eq!(refused.unwrap_err().kind(), CertificateErrorKind::NoTls);
        let tls = primary().replicas(["rediss://replica"]).unwrap();
        let tls = tls.certificates(Certificates::default()).unwrap();
        assert_eq!(tls.replicas.len(), 1);
    }

    #[test]
    fn a_log_that_is_set_by_itself_takes_precedence_over_that_of_the_level() {
        use larder_core::{Larder, store::LocalBus};

        let redis = || Redis::open("redis://localhost").unwrap();
        for builder in [
            Larder::builder().second_level(redis()).bus(LocalBus::new()),
            Larder::builder().bus(LocalBus::new()).second_level(redis()),
        ] {
            assert!(!builder.build().unwrap().stats().log.shared);
        }
        assert!(Larder::builder().second_level(redis()).build().unwrap().stats().log.shared);
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
