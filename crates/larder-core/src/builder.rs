//! The builder of a larder: every option with its default and its limits.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    bus::{Bus, LocalBus},
    clock::Clock,
    engine::{Engine, EngineParts},
    kernel::Kernel,
    larder::Larder,
    memory::{Eviction, Memory},
    registry::{Options, Registry},
    reports::Reports,
    rules::Rules,
    second_level::SecondLevelOptions,
    store::FillLocks,
    tag::Tag,
};
#[cfg(feature = "second-level")]
use crate::{sealing::SealingKeys, store::Store};

/// A number of bytes.
///
/// # Examples
///
/// ```
/// use larder_core::ByteSize;
/// assert_eq!(ByteSize::mib(1), ByteSize::bytes(1024 * 1024));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(usize);

impl ByteSize {
    /// Creates a size of this many bytes.
    pub const fn bytes(bytes: usize) -> Self {
        Self(bytes)
    }

    /// Creates a size of this many times 1,024 bytes.
    pub const fn kib(kib: usize) -> Self {
        Self(kib.saturating_mul(1 << 10))
    }

    /// Creates a size of this many times 1,048,576 bytes.
    pub const fn mib(mib: usize) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// Creates a size of this many times 1,073,741,824 bytes.
    pub const fn gib(gib: usize) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// Returns the number of bytes.
    pub const fn as_bytes(self) -> usize {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// The builder of a [`Larder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct LarderBuilder {
    memory: ByteSize,
    eviction: Eviction,
    max_lifetime: Duration,
    version: String,
    publish_every: Option<Duration>,
    cells: usize,
    max_tags: usize,
    fill_budget: ByteSize,
    refreshes: usize,
    max_lag: Duration,
    failover_bound: Duration,
    second_level: SecondLevelOptions,
    /// The second level that is given as a whole.
    level: Option<crate::store::SecondLevel>,
    fill_locks: Option<Arc<dyn FillLocks>>,
    bus: Option<Arc<dyn Bus>>,
    rules: Rules,
    wall_clock: Option<SystemTime>,
}

impl Default for LarderBuilder {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(64),
            eviction: Eviction::TinyLfu,
            max_lifetime: Duration::from_secs(7 * 24 * 60 * 60),
            version: String::new(),
            publish_every: None,
            cells: 1 << 20,
            max_tags: 2_048,
            fill_budget: ByteSize::mib(64),
            refreshes: 64,
            max_lag: Duration::from_secs(2),
            failover_bound: Duration::from_secs(60),
            second_level: SecondLevelOptions::default(),
            level: None,
            fill_locks: None,
            bus: None,
            rules: Rules::default(),
            wall_clock: None,
        }
    }
}

impl LarderBuilder {
    /// Sets the size of the first level (process memory), including keys, tags and bookkeeping; 64 MiB by default, 64
    /// KiB to 1 TiB allowed.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_core::{ByteSize, Larder};
    ///
    /// let larder = Larder::builder().memory(ByteSize::mib(256)).build()?;
    /// assert_eq!(larder.stats().memory.capacity_bytes, 256 * 1024 * 1024);
    ///
    /// let too_small = Larder::builder().memory(ByteSize::kib(1)).build();
    /// assert!(too_small.is_err_and(|error| error.option() == "memory"));
    /// # Ok::<(), larder_core::BuildError>(())
    /// ```
    pub fn memory(mut self, size: ByteSize) -> Self {
        self.memory = size;
        self
    }

    /// Uses this wall time as the present instead of the system clock, to test wrong clocks.
    pub fn wall_clock(mut self, now: SystemTime) -> Self {
        self.wall_clock = Some(now);
        self
    }

    /// Sets how long one request waits in total, over all of its reads and fill locks, for a second level that does not
    /// answer; 60 ms by default, or one deadline of the store if that is longer; 1 ms to 1 minute allowed. After that
    /// time the request continues as if the store were empty. Waits for a store that answers do not count, and
    /// background refreshes have no such limit.
    #[cfg(feature = "second-level")]
    #[doc(alias("timeout budget"))]
    pub fn store_wait_limit(mut self, limit: Duration) -> Self {
        self.second_level.wait_limit = Some(limit);
        self
    }

    /// Publishes larder's metrics through the [`metrics`](https://docs.rs/metrics) facade at this interval, from the first
    /// request on; 100 ms to 1 hour allowed. By default larder publishes them only when
    /// [`Larder::publish_metrics`](crate::Larder::publish_metrics) is called.
    ///
    /// Hits are counted without the facade, so that publishing costs them nothing. A reading of all counters takes some
    /// microseconds for each series. The guide has a table of the metrics.
    #[cfg(feature = "metrics")]
    #[doc(alias("prometheus", "opentelemetry", "statsd"))]
    pub fn publish_metrics(mut self, every: Duration) -> Self {
        self.publish_every = Some(every);
        self
    }

    /// Sets the eviction policy of the first level; [`Eviction::TinyLfu`] by default.
    #[doc(alias("LRU", "LFU", "TinyLFU", "eviction policy"))]
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.eviction = eviction;
        self
    }

    /// Sets the maximum lifetime of an entry, including its stale windows, regardless of its policy or response; 7 days
    /// by default, 1 s to 366 days allowed. A shared log retains its records for that time.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Larder;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    /// let larder = Larder::builder().max_lifetime(minute).build()?;
    /// let rate = async |loaded: u32| {
    ///     larder.get_or_load("rate", hour, move |_| async move { Ok::<_, Infallible>(loaded) }).await
    /// };
    /// assert_eq!(*rate(1).await?, 1);
    /// tokio::time::advance(minute).await;
    /// assert_eq!(*rate(2).await?, 2, "the larder allows a minute, so the hour of the policy does not count");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("max age"))]
    pub fn max_lifetime(mut self, longest: Duration) -> Self {
        self.max_lifetime = longest;
        self
    }

    /// Sets the version of the application, which is part of every key and of generated validators, so that a deploy
    /// with another version never serves entries of the old version. Empty by default, at most 256 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_core::Larder;
    ///
    /// // The version of the package; the hash of a commit does as well.
    /// let larder = Larder::builder().version(env!("CARGO_PKG_VERSION")).build()?;
    /// assert_eq!(larder.kernel().version(), env!("CARGO_PKG_VERSION"));
    ///
    /// let too_long = Larder::builder().version("v".repeat(257)).build();
    /// assert!(too_long.is_err_and(|error| error.option() == "version"));
    /// # Ok::<(), larder_core::BuildError>(())
    /// ```
    #[doc(alias("version invalidation", "cache busting", "build id"))]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Sets the number of slots in each of the two tag tables, a power of two from 2^10 to 2^28; 2^20 by default. A
    /// slot takes 32 bytes in both tables together, or 64 bytes with a second level. Only slots whose tags were
    /// invalidated take resident memory.
    pub fn tag_table_slots(mut self, cells: usize) -> Self {
        self.cells = cells;
        self
    }

    /// Sets the maximum number of tags of an entry, including larder's own tags and the tags of its parts; 2,048 by
    /// default, 8 to 10,000 allowed. An entry with more tags is not stored.
    pub fn max_tags(mut self, tags: usize) -> Self {
        self.max_tags = tags;
        self
    }

    /// Sets how many bytes all running fills together may hold; 64 MiB by default, 64 KiB to 1 TiB allowed. The result
    /// of a fill that exceeds the budget is sent to its client and not stored.
    pub fn fill_budget(mut self, size: ByteSize) -> Self {
        self.fill_budget = size;
        self
    }

    /// Sets how many refreshes of stale entries may run concurrently; 64 by default, 1 to 100,000 allowed.
    pub fn refresh_budget(mut self, refreshes: usize) -> Self {
        self.refreshes = refreshes;
        self
    }

    /// Sets the second level, a store that several processes share. None by default.
    #[cfg(feature = "second-level")]
    #[doc(alias("L2", "distributed cache", "second level cache"))]
    pub fn store(mut self, store: impl Store) -> Self {
        self.second_level.store = Some(Arc::new(store));
        self
    }

    /// Sets a second level with its fill locks and its log, such as `Redis`. A part that [`store`](Self::store),
    /// [`fill_locks`](Self::fill_locks) or [`bus`](Self::bus) sets takes precedence over the part of this level.
    #[cfg(feature = "second-level")]
    #[doc(alias("L2", "redis", "distributed cache", "backplane"))]
    pub fn second_level(mut self, level: impl Into<crate::store::SecondLevel>) -> Self {
        self.level = Some(level.into());
        self
    }

    /// Sets the fill locks for [`fill_once_per_cluster`](crate::Policy::fill_once_per_cluster). None by default, so
    /// that each process fills for itself.
    #[cfg(feature = "second-level")]
    pub fn fill_locks(mut self, fill_locks: impl FillLocks) -> Self {
        self.fill_locks = Some(Arc::new(fill_locks));
        self
    }

    /// Seals entries in the second level (encrypts and authenticates them), and refuses unsealed entries from there.
    /// Without keys, anyone with write access to the store can forge pages.
    #[cfg(feature = "second-level")]
    pub fn seal_with(mut self, keys: SealingKeys) -> Self {
        self.second_level.sealing = Some(keys);
        self
    }

    /// Sets the log that carries invalidations between processes; a [`LocalBus`] by default.
    #[doc(alias("backplane", "cache coherence", "pub/sub"))]
    pub fn bus(mut self, bus: impl Bus) -> Self {
        self.bus = Some(Arc::new(bus));
        self
    }

    /// Sets the maximum lag behind a shared log at which this process is considered up to date; 2 s by default, 10 ms
    /// to 1 minute allowed.
    pub fn max_lag(mut self, max_lag: Duration) -> Self {
        self.max_lag = max_lag;
        self
    }

    /// Sets how long this process retains its invalidations, to append them again if a shared log is replaced by a log
    /// that has lost them; 60 s by default, 1 s to 1 hour allowed.
    pub fn failover_bound(mut self, bound: Duration) -> Self {
        self.failover_bound = bound;
        self
    }

    /// Adds a rule, by which invalidating `when` invalidates `also` too. A `when` that ends in `*` stands for all tags
    /// with that prefix. Rules also apply to tags that rules have added. Every process must have the same rules.
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_core::Larder;
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Policy;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().depends("product:*", "catalog").build()?;
    /// let catalog = async |products: u32| {
    ///     let policy = Policy::ttl(Duration::from_secs(60)).tag("catalog");
    ///     larder.get_or_load("products", policy, move |_| async move { Ok::<_, Infallible>(products) }).await
    /// };
    /// assert_eq!(*catalog(10).await?, 10);
    /// let _logged = larder.invalidate(("product", 42)).await;
    /// assert_eq!(*catalog(11).await?, 11);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("dependency invalidation", "cascade"))]
    pub fn depends(mut self, when: impl Into<Tag>, also: impl Into<Tag>) -> Self {
        self.rules.add(when, also);
        self
    }

    /// Builds the larder. This does not need a runtime, and the larder is not tied to a runtime.
    ///
    /// # Errors
    ///
    /// If an option is outside its limits. The error names the option, its value and the allowed values.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_core::{ByteSize, Larder};
    ///
    /// let larder = Larder::builder().memory(ByteSize::mib(16)).version("1.0").build()?;
    /// assert_eq!(larder.stats().memory.entries, 0);
    ///
    /// let refused = Larder::builder().max_tags(0).build().map_err(|error| error.to_string());
    /// assert_eq!(refused.err().as_deref(), Some("max_tags is 0, allowed is 8 to 10000"));
    /// # Ok::<(), larder_core::BuildError>(())
    /// ```
    pub fn build(mut self) -> Result<Larder, BuildError> {
        self.check()?;
        let mut report = None;
        if let Some(level) = self.level.take() {
            report = level.report;
            self.second_level.use_store(level.store);
            self.fill_locks = self.fill_locks.or(level.fill_locks);
            self.bus = self.bus.or(level.bus);
        }
        let bus = self.bus.unwrap_or_else(|| Arc::new(LocalBus::new()));
        bus.keep_for(self.max_lifetime);
        if self.second_level.has_store() && !bus.is_shared() {
            // A local log has its own epoch in each process, and a new epoch at each start.
            tracing::warn!(
                target: "larder",
                "a second level without a shared log never uses entries that other processes have written. \
                 Pass a log that the processes share to `LarderBuilder::bus`."
            );
        }
        let clock = self.wall_clock.map_or_else(Clock::start, Clock::start_at);
        let failover_bound = if bus.is_shared() { self.failover_bound } else { Duration::ZERO };
        let registry = Registry::new(Options {
            cells: self.cells,
            shared: self.second_level.has_store(),
            longest: self.max_lifetime,
            failover_bound,
        });
        Ok(Larder::of(Kernel::new(Engine::new(EngineParts {
            registry,
            memory: Memory::new(self.memory.as_bytes(), self.eviction, clock),
            clock,
            shared: self.second_level.build(),
            fill_locks: self.fill_locks,
            bus,
            rules: self.rules,
            version: self.version,
            max_lifetime: self.max_lifetime,
            max_tags: self.max_tags,
            max_lag: self.max_lag,
            fill_bytes: self.fill_budget.as_bytes(),
            refreshes: self.refreshes,
            reports: Reports::new(report),
            publish_every: self.publish_every,
        }))))
    }

    fn check(&self) -> Result<(), BuildError> {
        let (kib, tib) = (1_usize << 10, 1_usize << 40);
        within("memory", self.memory.as_bytes(), 64 * kib..=tib, " bytes")?;
        within("fill_budget", self.fill_budget.as_bytes(), 64 * kib..=tib, " bytes")?;
        within("tag_table_slots", self.cells, 1 << 10..=1 << 28, "")?;
        if !self.cells.is_power_of_two() {
            return Err(BuildError::new("tag_table_slots", self.cells, "a power of two"));
        }
        within("max_tags", self.max_tags, 8..=10_000, "")?;
        within("refresh_budget", self.refreshes, 1..=100_000, "")?;
        let (second, year) = (Duration::from_secs(1), Duration::from_secs(366 * 86_400));
        within_time("max_lifetime", self.max_lifetime, second..=year)?;
        if let Some(every) = self.publish_every {
            within_time("publish_metrics", every, Duration::from_millis(100)..=3600 * second)?;
        }
        within_time("max_lag", self.max_lag, Duration::from_millis(10)..=60 * second)?;
        if let Some(limit) = self.second_level.wait_limit() {
            within_time("store_wait_limit", limit, Duration::from_millis(1)..=60 * second)?;
        }
        within_time("failover_bound", self.failover_bound, second..=3600 * second)?;
        if self.version.len() > MAX_VERSION_BYTES {
            let given = format!("{} bytes", self.version.len());
            return Err(BuildError::new("version", given, "at most 256 bytes"));
        }
        Ok(())
    }
}

fn within(
    option: &'static str,
    given: usize,
    allowed: RangeInclusive<usize>,
    unit: &str,
) -> Result<(), BuildError> {
    if allowed.contains(&given) {
        return Ok(());
    }
    let allowed = format!("{}{unit} to {}{unit}", allowed.start(), allowed.end());
    Err(BuildError::new(option, format!("{given}{unit}"), allowed))
}

fn within_time(
    option: &'static str,
    given: Duration,
    allowed: RangeInclusive<Duration>,
) -> Result<(), BuildError> {
    if allowed.contains(&given) {
        return Ok(());
    }
    let allowed = format!("{:?} to {:?}", allowed.start(), allowed.end());
    Err(BuildError::new(option, format!("{given:?}"), allowed))
}

/// The error of [`LarderBuilder::build`] for an option that is outside its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    option: &'static str,
    given: String,
    allowed: String,
}

impl BuildError {
    fn new(option: &'static str, given: impl fmt::Display, allowed: impl fmt::Display) -> Self {
        Self { option, given: format!("{given}"), allowed: format!("{allowed}") }
    }

    /// Returns the name of the option, which is the name of its method of [`LarderBuilder`].
    pub fn option(&self) -> &'static str {
        self.option
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, allowed is {}", self.option, self.given, self.allowed)
    }
}

impl std::error::Error for BuildError {}

const MAX_VERSION_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_error_names_the_option_and_its_limits() {
        let cases = [
            (Larder::builder().memory(ByteSize::bytes(1)), "memory is 1 bytes, allowed is 65536 "),
            (
                Larder::builder().tag_table_slots(1500),
                "tag_table_slots is 1500, allowed is a power",
            ),
            (Larder::builder().max_tags(0), "max_tags is 0, allowed is 8 to 10000"),
            (Larder::builder().max_lifetime(Duration::ZERO), "max_lifetime is 0ns, allowed is 1s"),
        ];
        for (builder, message) in cases {
            let error = builder.build().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn building_needs_no_runtime() {
        assert!(Larder::builder().build().is_ok());
    }
}
