//! Several processes that share a cache, simulated in one process and in simulated time.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use larder_core::{Larder, LarderBuilder};
use parking_lot::Mutex;

use crate::{
    log::{LogLine, SharedLog},
    seeded_rng::SeededRng,
    store::{FaultyStore, MemoryStore},
};

/// A cluster of processes that share a store, fill locks and an invalidation log, each with a connection to the log
/// that can be cut.
///
/// With tokio's paused time a simulated minute takes no time, and the same seed gives the same schedule.
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Larder, Policy};
/// use larder_testkit::{SimulatedCluster, Source, assert_fresh};
///
/// /// The code under test: the cached price of a product.
/// async fn price(shop: &Larder, database: &Source<u32>) -> u32 {
///     let policy = Policy::ttl(Duration::from_secs(60)).tag("prices");
///     let database = database.clone();
///     let load = |_| async move { Ok::<_, std::convert::Infallible>(database.read().await) };
///     *shop.get_or_load("price", policy, load).await.expect("it cannot fail")
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let shops = SimulatedCluster::new(3);
/// shops.synced().await;
/// let database = Source::new(100);
/// for shop in shops.processes() {
///     assert_eq!(price(shop, &database).await, 100);
///     shops.settled().await;
/// }
/// database.assert_fills(1);
///
/// database.write(90);
/// let _ = shops.process(0).invalidate("prices").await;
/// assert_fresh!(database, price(shops.process(0), &database).await);
///
/// // The others apply it within `max_lag`, also a process that was cut off meanwhile.
/// shops.cut_off(2);
/// tokio::time::sleep(Duration::from_secs(60)).await;
/// shops.rejoin(2);
/// shops.settled().await;
/// assert_fresh!(database, price(shops.process(1), &database).await);
/// assert_fresh!(database, price(shops.process(2), &database).await);
/// # }
/// ```
#[derive(Debug)]
pub struct SimulatedCluster {
    larders: Vec<Larder>,
    lines: Vec<LogLine>,
    log: SharedLog,
    store: MemoryStore,
}

/// The delays and failures of all traffic between the processes.
#[derive(Clone, Debug)]
pub struct NetworkConditions {
    /// The random numbers, from a seed.
    pub dice: SeededRng,
    /// The percentage of commands that fail. A failed write to the store is nevertheless executed in half of the cases;
    /// an append to the log fails with this probability before it is executed, and again afterwards. With the same
    /// probability the store repeats an old write, or returns the answer to the previous read.
    pub failing_percent: u64,
    /// The maximum delay on the way to the store or the log, and on the way back.
    pub longest: Duration,
}

impl NetworkConditions {
    /// Creates conditions without failures, and with delays of at most ten microseconds.
    pub fn calm() -> Self {
        Self { dice: SeededRng::new(0), failing_percent: 0, longest: Duration::from_micros(10) }
    }
}

impl SimulatedCluster {
    /// Creates this many processes, with the defaults of larder except for small tag tables.
    pub fn new(processes: usize) -> Self {
        Self::under(&NetworkConditions::calm(), processes, |builder| builder)
    }

    /// Creates processes under these network conditions, each built with these options.
    ///
    /// # Panics
    ///
    /// If the options are not valid.
    pub fn under(
        weather: &NetworkConditions,
        processes: usize,
        options: impl Fn(LarderBuilder) -> LarderBuilder,
    ) -> Self {
        let (log, store) = (SharedLog::new(), MemoryStore::new());
        let NetworkConditions { dice, failing_percent, longest } = weather;
        let lines: Vec<_> =
            (0..processes).map(|_| log.line(dice.clone(), *failing_percent, *longest)).collect();
        let larders = lines.iter().map(|line| {
            let faulty = FaultyStore::new(store.clone(), dice.clone(), *failing_percent, *longest);
            let builder = Larder::builder().tag_table_slots(1 << 10).bus(line.clone());
            let builder = options(builder.store(faulty.clone()).fill_locks(faulty));
            builder.build().expect("the options are valid")
        });
        Self { larders: larders.collect(), lines, log, store }
    }

    /// Returns the larder of a process.
    ///
    /// # Panics
    ///
    /// If `at` is not less than the number of processes.
    pub fn process(&self, at: usize) -> &Larder {
        &self.larders[at]
    }

    /// Returns the larders of all processes.
    pub fn processes(&self) -> &[Larder] {
        &self.larders
    }

    /// Returns the log through which the processes invalidate.
    pub fn log(&self) -> &SharedLog {
        &self.log
    }

    /// Returns the store in which the processes share entries.
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// Cuts a process off from the log. It continues to serve the entries that it has, and does not receive
    /// invalidations.
    pub fn cut_off(&self, at: usize) {
        self.lines[at].cut(true);
    }

    /// Restores the connection of a process that was cut off.
    pub fn rejoin(&self, at: usize) {
        self.lines[at].cut(false);
    }

    /// Waits until every process follows the log.
    pub async fn synced(&self) {
        for larder in &self.larders {
            larder.synced().await;
        }
    }

    /// Waits until the background work of all processes is done, such as writes to the store. Then it waits for 2 s,
    /// the default `max_lag`, until the processes have applied each other's invalidations.
    pub async fn settled(&self) {
        for larder in &self.larders {
            larder.close(Duration::from_secs(60)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// A source of truth that counts its reads. Clones share its value and count.
#[derive(Clone, Debug)]
pub struct Source<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    value: Mutex<T>,
    reads: AtomicUsize,
    takes: Duration,
}

impl<T: Clone> Source<T> {
    /// Creates a source that answers immediately.
    pub fn new(value: T) -> Self {
        Self::slow(value, Duration::ZERO)
    }

    /// Creates a source that waits for `takes` before it reads its value, and again afterwards.
    pub fn slow(value: T, takes: Duration) -> Self {
        Self(Arc::new(Inner { value: Mutex::new(value), reads: AtomicUsize::new(0), takes }))
    }

    /// Replaces the value.
    pub fn write(&self, value: T) {
        *self.0.value.lock() = value;
    }

    /// Returns the value without counting a read.
    pub fn current(&self) -> T {
        self.0.value.lock().clone()
    }

    /// Reads the value and counts the read, as in a loader or a handler.
    pub async fn read(&self) -> T {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.0.takes).await;
        let value = self.current();
        tokio::time::sleep(self.0.takes).await;
        value
    }

    /// Asserts the number of reads since the previous call of this function.
    ///
    /// # Panics
    ///
    /// If the number of reads differs.
    #[track_caller]
    pub fn assert_fills(&self, expected: usize) {
        let fills = self.0.reads.swap(0, Ordering::SeqCst);
        assert!(fills == expected, "expected {expected} fills, but {fills} reached the source");
    }
}

impl<T: Clone + PartialEq + fmt::Debug> Source<T> {
    /// Asserts that `served` is the current value, for [`assert_fresh!`](crate::assert_fresh).
    ///
    /// # Panics
    ///
    /// If `served` is not the value of the source.
    #[track_caller]
    pub fn assert_is(&self, served: &T) {
        let current = self.current();
        assert!(*served == current, "stale: {served:?} was served, the source has {current:?}");
    }
}

/// Asserts that the served value is the current value of the source.
///
/// See [`SimulatedCluster`] for an example.
#[macro_export]
macro_rules! assert_fresh {
    ($source:expr, $served:expr $(,)?) => {
        $source.assert_is(&$served)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "stale: 1 was served, the source has 2")]
    fn a_stale_value_is_reported() {
        let source = Source::new(1);
        source.write(2);
        assert_fresh!(source, 1);
    }

    #[tokio::test]
    #[should_panic(expected = "expected 1 fills, but 2 reached the source")]
    async fn more_fills_than_expected_are_reported() {
        let source = Source::new(1);
        source.read().await;
        source.assert_fills(1);
        source.read().await;
        source.read().await;
        source.assert_fills(1);
    }
}
