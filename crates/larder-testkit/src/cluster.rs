//! Several processes as one cache, in one process and in simulated time.

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

/// Processes that share a store, its leases and an invalidation log, each with a line to the log that can be cut.
///
/// With tokio's paused time a minute of it takes no time, and the same seed gives the same schedule.
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Larder, Policy};
/// use larder_testkit::{SimulatedCluster, Source, assert_fresh};
///
/// /// What is tested: the price of a product, cached.
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
/// // The others hear of it within the lease, also one that was cut off meanwhile.
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

/// How slow and how reliable everything between the processes is.
#[derive(Clone, Debug)]
pub struct NetworkConditions {
    /// Chance, from a seed.
    pub dice: SeededRng,
    /// How many commands in a hundred fail, half of them after they were carried out. Of as many the store
    /// repeats an old write or gives the answer to another question.
    pub failing_percent: u64,
    /// How long a command takes at most.
    pub longest: Duration,
}

impl NetworkConditions {
    /// Nothing fails, and nothing takes longer than ten microseconds.
    pub fn calm() -> Self {
        Self { dice: SeededRng::new(0), failing_percent: 0, longest: Duration::from_micros(10) }
    }
}

impl SimulatedCluster {
    /// This many processes, with the defaults of larder but for small tables.
    pub fn new(processes: usize) -> Self {
        Self::under(&NetworkConditions::calm(), processes, |builder| builder)
    }

    /// Processes under this weather, each built with these options.
    ///
    /// # Panics
    ///
    /// When the options are not valid.
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

    /// The larder of a process.
    ///
    /// # Panics
    ///
    /// When there are not so many.
    pub fn process(&self, at: usize) -> &Larder {
        &self.larders[at]
    }

    /// The larders of all processes.
    pub fn processes(&self) -> &[Larder] {
        &self.larders
    }

    /// What they invalidate through.
    pub fn log(&self) -> &SharedLog {
        &self.log
    }

    /// Where they share entries.
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// Cuts a process off from the log: it serves what it has, and hears of nothing.
    pub fn cut_off(&self, at: usize) {
        self.lines[at].cut(true);
    }

    /// Mends the line of a process that was cut off.
    pub fn rejoin(&self, at: usize) {
        self.lines[at].cut(false);
    }

    /// Waits until every process has joined.
    pub async fn synced(&self) {
        for larder in &self.larders {
            larder.synced().await;
        }
    }

    /// Waits until what was under way is done everywhere: writes to the store, and what the others have
    /// invalidated, for as long as a lease takes.
    pub async fn settled(&self) {
        for larder in &self.larders {
            larder.close(Duration::from_secs(60)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// A source of truth that counts how often it is read. A clone is the same.
#[derive(Clone, Debug)]
pub struct Source<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    value: Mutex<T>,
    reads: AtomicUsize,
    takes: Duration,
}

impl<T: Clone> Source<T> {
    /// A source that answers at once.
    pub fn new(value: T) -> Self {
        Self::slow(value, Duration::ZERO)
    }

    /// A source that takes this long on either side of its read.
    pub fn slow(value: T, takes: Duration) -> Self {
        Self(Arc::new(Inner { value: Mutex::new(value), reads: AtomicUsize::new(0), takes }))
    }

    /// Changes what it has.
    pub fn write(&self, value: T) {
        *self.0.value.lock() = value;
    }

    /// What it has, without counting.
    pub fn current(&self) -> T {
        self.0.value.lock().clone()
    }

    /// Reads it, as a loader or a handler does.
    pub async fn read(&self) -> T {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.0.takes).await;
        let value = self.current();
        tokio::time::sleep(self.0.takes).await;
        value
    }

    /// Asserts that it was read this often since the last time this was asserted.
    ///
    /// # Panics
    ///
    /// When it was read more often, or less.
    #[track_caller]
    pub fn assert_fills(&self, expected: usize) {
        let fills = self.0.reads.swap(0, Ordering::SeqCst);
        assert!(fills == expected, "{fills} fills reached the source, expected were {expected}");
    }
}

impl<T: Clone + PartialEq + fmt::Debug> Source<T> {
    /// What [`assert_fresh!`](crate::assert_fresh) asserts.
    ///
    /// # Panics
    ///
    /// When `served` is not what the source has.
    #[track_caller]
    pub fn assert_is(&self, served: &T) {
        let current = self.current();
        assert!(*served == current, "stale: {served:?} was served, the source has {current:?}");
    }
}

/// Asserts that what was served is what the source has now.
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
    fn what_is_stale_is_told() {
        let source = Source::new(1);
        source.write(2);
        assert_fresh!(source, 1);
    }

    #[tokio::test]
    #[should_panic(expected = "2 fills reached the source, expected were 1")]
    async fn more_fills_than_expected_are_told() {
        let source = Source::new(1);
        source.read().await;
        source.assert_fills(1);
        source.read().await;
        source.read().await;
        source.assert_fills(1);
    }
}
