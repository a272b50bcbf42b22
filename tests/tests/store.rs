//! Both levels as one cache: memory and the shared store.

use std::{
    cell::RefCell,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use larder::{
    Consistency, Invalidated, Invalidation, Larder, LoadHandle, Policy, Tiers,
    store::{Bus, BusError, BusErrorKind, Epoch, LogPage, Position, Record, Store, StoreError},
};
use larder_testkit::{
    FaultyStore, LogLine, MemoryStore, NetworkConditions, SeededRng, SharedLog, SimulatedCluster,
};

const MINUTE: Duration = Duration::from_secs(60);

fn pair(store: &MemoryStore) -> [Larder; 2] {
    let log = SharedLog::new();
    [1, 2].map(|seed| {
        let line = log.line(SeededRng::new(seed), 0, Duration::from_micros(10));
        let builder = Larder::builder().tag_table_slots(1 << 10).store(store.clone()).bus(line);
        builder.build().unwrap()
    })
}

async fn load(larder: &Larder, value: u32) -> u32 {
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
    *larder.get_or_load("a", Policy::ttl(MINUTE).tag("t"), load).await.unwrap()
}

async fn joined(larders: &[Larder; 2]) {
    for larder in larders {
        larder.synced().await;
    }
}

async fn settled(larders: &[Larder; 2]) {
    for larder in larders {
        assert!(larder.close(MINUTE).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn processes_share_entries_and_invalidations() {
    let store = MemoryStore::new();
    let larders = pair(&store);
    joined(&larders).await;
    assert_eq!(load(&larders[0], 1).await, 1);
    settled(&larders).await;
    assert_eq!(load(&larders[1], 2).await, 1, "from the shared store");
    assert_eq!(larders[1].stats().shared.hits, 1);
    let _ = larders[0].invalidate("t").await;
    // A value filled before the process has received its own record is not shared.
    settled(&larders).await;
    assert_eq!(load(&larders[0], 3).await, 3);
    settled(&larders).await;
    assert_eq!(load(&larders[1], 4).await, 3);
}

#[tokio::test(start_paused = true)]
async fn foreign_bytes_are_counted_misses() {
    let store = MemoryStore::new();
    let larders = pair(&store);
    joined(&larders).await;
    load(&larders[0], 1).await;
    settled(&larders).await;
    let key = store.keys().pop().unwrap();
    store.tamper(&key, |bytes| bytes[..bytes.len() - 1].to_vec());
    assert_eq!(load(&larders[1], 2).await, 2);
    assert_eq!(larders[1].stats().shared.corrupt, 1);
}

/// A value that its own type deserializes only while it is odd.
#[derive(serde::Serialize)]
struct Odd(u32);

impl<'de> serde::Deserialize<'de> for Odd {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(deserializer)?;
        (number % 2 == 1).then_some(Self(number)).ok_or_else(|| serde::de::Error::custom("even"))
    }
}

/// Regression: the entry stayed until the end of its lifetime, and cost a read for each miss.
#[tokio::test(start_paused = true)]
async fn an_entry_that_fails_to_deserialize_is_a_counted_miss_and_removed() {
    let store = MemoryStore::new();
    let larders = pair(&store);
    joined(&larders).await;
    // The first value of a type decides whether it can read its own serialization.
    let first = |_: LoadHandle| async { Ok::<_, Infallible>(Odd(1)) };
    let policy = Policy::ttl(Duration::from_millis(1)).tiers(Tiers::SHARED);
    larders[0].get_or_load("first", policy, first).await.unwrap();
    settled(&larders).await;
    for key in store.keys() {
        store.remove(&key).await.unwrap();
    }
    let ask = |at: usize, value: u32| {
        let load = move |fill: LoadHandle| async move {
            if at == 1 {
                fill.no_store();
            }
            Ok::<_, Infallible>(Odd(value))
        };
        larders[at].get_or_load("a", Policy::ttl(MINUTE).tiers(Tiers::SHARED), load)
    };
    assert_eq!(ask(0, 2).await.unwrap().0, 2);
    settled(&larders).await;
    assert_eq!(store.keys().len(), 1);
    assert_eq!(ask(1, 4).await.unwrap().0, 4);
    let stats = larders[1].stats().shared;
    assert_eq!((stats.corrupt, stats.misses), (1, 1));
    assert!(store.keys().is_empty(), "no other process has to read it");
}

/// Regression: a client that had seen the newer value got the older one.
#[tokio::test(start_paused = true)]
async fn an_older_fill_does_not_replace_a_newer_stale_entry() {
    let store = MemoryStore::new();
    let [larder, _] = pair(&store);
    larder.synced().await;
    let second = Duration::from_secs(1);
    let lifetime = larder::Lifetime::fresh_for(second).stale_while_revalidate(MINUTE);
    let ask = |value: u32, takes: Duration| {
        let larder = larder.clone();
        let load = move |_: LoadHandle| async move {
            tokio::time::sleep(takes).await;
            Ok::<_, Infallible>(value)
        };
        let policy = Policy::from(lifetime).tag("t").tiers(Tiers::MEMORY);
        tokio::spawn(async move { *larder.get_or_load("a", policy, load).await.unwrap() })
    };
    let older = ask(1, 5 * second);
    tokio::time::sleep(second).await;
    let _ = larder.invalidate(Invalidation::from("t").soft(None)).await;
    // The maximum lag has passed: the first fill is too old to be joined.
    tokio::time::sleep(2 * second).await;
    assert_eq!(ask(2, Duration::ZERO).await.unwrap(), 2);
    tokio::time::sleep(3 * second / 2).await;
    assert_eq!(older.await.unwrap(), 1);
    assert_eq!(ask(3, second).await.unwrap(), 2, "stale, and not older than the value seen before");
}

#[tokio::test(start_paused = true)]
async fn an_entry_past_its_memory_lifetime_is_not_served_stale() {
    let larder = Larder::builder().tag_table_slots(1 << 10).build().unwrap();
    let lifetime = larder::Lifetime::fresh_for(MINUTE * 60).stale_while_revalidate(MINUTE * 60);
    let ask = |value: u32| {
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
        let policy = Policy::from(lifetime).tag("t").tiers(Tiers::BOTH.memory_for(MINUTE));
        larder.get_or_load("a", policy, load)
    };
    assert_eq!(*ask(1).await.unwrap(), 1);
    let _ = larder.invalidate(Invalidation::from("t").soft(None)).await;
    tokio::time::advance(MINUTE + Duration::from_secs(1)).await;
    assert_eq!(*ask(2).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_or_slow_costs_hits_and_never_a_response() {
    for (percent, slow) in [(100, Duration::ZERO), (0, Duration::from_secs(60))] {
        let faulty = FaultyStore::new(MemoryStore::new(), SeededRng::new(7), percent, slow);
        let larder = Larder::builder().tag_table_slots(1 << 10).store(faulty).build().unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(load(&larder, 1).await, 1);
        assert!(began.elapsed() < Duration::from_millis(100), "the read has a deadline");
    }
}

#[tokio::test(start_paused = true)]
async fn a_soft_invalidated_entry_is_not_promoted_as_fresh() {
    let store = MemoryStore::new();
    let larders = pair(&store);
    joined(&larders).await;
    assert_eq!(load(&larders[0], 1).await, 1);
    settled(&larders).await;
    let _ = larders[0].invalidate(Invalidation::from("t").soft(None)).await;
    settled(&larders).await;
    assert_eq!(load(&larders[1], 2).await, 2);
}

#[tokio::test(start_paused = true)]
async fn misdirected_reads_and_replayed_writes_are_never_served() {
    let weather = NetworkConditions {
        dice: SeededRng::new(11),
        failing_percent: 40,
        longest: Duration::from_millis(9),
    };
    let cluster = SimulatedCluster::under(&weather, 2, |builder| builder);
    cluster.synced().await;
    for turn in 0..600_u32 {
        let (name, round) = (turn % 7, turn / 70);
        let larder = cluster.process(turn as usize % 2);
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>((name, round)) };
        let policy = Policy::ttl(MINUTE).tag(("round", round)).tiers(Tiers::SHARED);
        let served = *larder.get_or_load(name, policy, load).await.unwrap();
        assert_eq!(served, (name, round), "{turn}");
        if turn % 70 == 69 {
            // Every entry of this round that is still in flight is invalidated in both processes.
            while larder.invalidate(("round", round)).await != Invalidated::Logged {}
            cluster.settled().await;
        }
    }
    let shared = cluster.process(0).stats().shared;
    assert!(shared.hits > 50 && shared.corrupt > 10 && shared.errors > 10, "{shared:?}");
}

type Hook = Box<dyn FnOnce()>;

thread_local! {
    static WHILE_READING: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// A value that runs a hook while it is deserialized from the shared store.
#[derive(serde::Serialize)]
struct Hooked(u32);

impl<'de> serde::Deserialize<'de> for Hooked {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if let Some(hook) = WHILE_READING.take() {
            hook();
        }
        u32::deserialize(from).map(Self)
    }
}

/// Runs an invalidation from the first step to the last, on a thread of its own.
fn invalidate_meanwhile(larder: &Larder) {
    let larder = larder.clone();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _logged = runtime.block_on(async { larder.invalidate("t").await });
    };
    std::thread::spawn(work).join().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_entry_invalidated_during_its_promotion_is_not_served() {
    let store = MemoryStore::new();
    let larders = pair(&store);
    let load = async |larder: &Larder, value: u32| {
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(Hooked(value)) };
        larder.get_or_load("a", Policy::ttl(MINUTE).tag("t"), load).await.unwrap().0
    };
    joined(&larders).await;
    assert_eq!(load(&larders[0], 1).await, 1);
    settled(&larders).await;
    let reader = larders[1].clone();
    WHILE_READING.set(Some(Box::new(move || invalidate_meanwhile(&reader))));
    // The invalidation completes before the end of this request, and before the next one starts.
    assert_eq!(load(&larders[1], 2).await, 2);
    assert_eq!(
        load(&larders[1], 3).await,
        3,
        "a value whose fill spans the invalidation is not stored either"
    );
    assert!(WHILE_READING.take().is_none(), "the value was read from the shared store");
}

#[tokio::test(start_paused = true)]
async fn no_request_joins_a_fill_older_than_the_bound_of_other_processes() {
    let larders = pair(&MemoryStore::new());
    larders[0].synced().await;
    let first = tokio::spawn({
        let larder = larders[0].clone();
        async move {
            let slow = |_: LoadHandle| async {
                tokio::time::sleep(Duration::from_secs(20)).await;
                Ok::<_, Infallible>(1)
            };
            *larder.get_or_load("a", Policy::ttl(MINUTE), slow).await.unwrap()
        }
    });
    // Past the bound of other processes, and long before the end of the fill.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = tokio::time::Instant::now();
    let load = |_: LoadHandle| async { Ok::<_, Infallible>(2) };
    assert_eq!(*larders[0].get_or_load("a", Policy::ttl(MINUTE), load).await.unwrap(), 2);
    assert!(began.elapsed() < Duration::from_secs(1), "it did not wait");
    assert_eq!(first.await.unwrap(), 1);
}

/// A log with faults: its end cannot be read, a read skips a record, or another log replaces it.
#[derive(Debug)]
struct Turned {
    line: LogLine,
    /// Another log; `over` switches to it.
    other: Option<LogLine>,
    over: Arc<AtomicBool>,
    deaf: Arc<AtomicBool>,
    /// Whether the next read with several records omits the first.
    holed: Arc<AtomicBool>,
    /// Whether the answer about the end of the log takes five seconds.
    late: Arc<AtomicBool>,
}

impl Turned {
    fn new(line: LogLine) -> Self {
        Self {
            line,
            other: None,
            over: Arc::default(),
            deaf: Arc::default(),
            holed: Arc::default(),
            late: Arc::default(),
        }
    }

    fn line(&self) -> &LogLine {
        self.other.as_ref().filter(|_| self.over.load(Ordering::SeqCst)).unwrap_or(&self.line)
    }
}

impl Bus for Turned {
    fn is_shared(&self) -> bool {
        true
    }

    fn keep_for(&self, longest: Duration) {
        self.other.iter().chain([&self.line]).for_each(|line| line.keep_for(longest));
    }

    fn append<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<Position, BusError>> {
        self.line().append(record)
    }

    fn schedule<'a>(
        &'a self,
        id: u64,
        record: &'a Record,
        after: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>> {
        self.line().schedule(id, record, after)
    }

    fn end(&self, lost: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>> {
        match self.deaf.load(Ordering::SeqCst) {
            true => Box::pin(async { Err(BusError::new(BusErrorKind::Refused)) }),
            false => Box::pin(async move {
                let end = self.line().end(lost).await;
                if self.late.load(Ordering::SeqCst) {
                    tokio::time::sleep(LATE).await;
                }
                end
            }),
        }
    }

    fn read(
        &self,
        after: Position,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>> {
        Box::pin(async move {
            let mut records = self.line().read(after, wait).await?;
            if records.len() > 1 && self.holed.swap(false, Ordering::SeqCst) {
                records.remove(0);
            }
            Ok(records)
        })
    }

    fn compacted(&self, after: u64) -> BoxFuture<'_, Result<LogPage, BusError>> {
        self.line().compacted(after)
    }
}

#[tokio::test(start_paused = true)]
async fn stricter_consistency_is_met_or_the_origin_is_used() {
    let log = SharedLog::new();
    // One line is as slow as the maximum lag allows, the other is fast.
    let lines = [Duration::from_millis(400), Duration::from_micros(10)];
    let lines = lines.map(|slow| log.line(SeededRng::new(3), 0, slow));
    let cut = lines[0].clone();
    let larders =
        lines.map(|line| Larder::builder().tag_table_slots(1 << 10).bus(line).build().unwrap());
    joined(&larders).await;
    let load = async |consistency: Consistency, value: u32| {
        let policy = Policy::ttl(MINUTE).tag("t").consistency(consistency);
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
        *larders[0].get_or_load("a", policy, load).await.unwrap()
    };
    assert_eq!(load(Consistency::Eventual, 1).await, 1);
    for round in 1..20 {
        let _logged = larders[1].invalidate("t").await;
        assert_eq!(
            load(Consistency::Strong, 100 + round).await,
            100 + round,
            "it waits for the log"
        );
        assert_eq!(load(Consistency::Strong, 0).await, 100 + round, "and then it is a hit");
    }
    let bounded = Consistency::Bounded(Duration::from_secs(5));
    assert_eq!(load(bounded, 0).await, 119);
    cut.cut(true);
    assert_eq!(load(Consistency::Strong, 7).await, 7, "without the log the end is unknown");
    let outer = larders[0].clone();
    let page = move |_: LoadHandle| async move {
        let part = |_: LoadHandle| async { Ok::<_, Infallible>(77) };
        let part = outer.get_or_load("a", Policy::ttl(MINUTE).tag("t"), part).await;
        Ok::<_, Infallible>(*part.unwrap())
    };
    let strong = Policy::ttl(MINUTE).consistency(Consistency::Strong);
    let page = larders[0].get_or_load("page", strong, page).await.unwrap();
    assert_eq!(*page, 77, "nor for its parts");
    assert_eq!(load(bounded, 8).await, 119, "not long enough");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(load(bounded, 9).await, 9);
    assert_eq!(load(Consistency::Eventual, 10).await, 119);
    cut.cut(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(load(bounded, 11).await, 119, "it has proved itself again");
}

#[tokio::test(start_paused = true)]
async fn a_call_may_bound_the_age_of_the_entry() {
    let larder = Larder::builder().tag_table_slots(1 << 10).build().unwrap();
    let load = async |longest: u64, value: u32| {
        let policy = Policy::ttl(MINUTE).max_age(Duration::from_secs(longest));
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
        *larder.get_or_load("a", policy, load).await.unwrap()
    };
    assert_eq!(load(10, 1).await, 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(load(30, 2).await, 1);
    assert_eq!(load(10, 3).await, 3);
    assert_eq!(load(30, 4).await, 3, "and that is for all");
}

#[tokio::test(start_paused = true)]
async fn the_invalidation_feed_has_every_invalidation_in_log_order() {
    let larders = pair(&MemoryStore::new());
    joined(&larders).await;
    let mut heard = larders[0].invalidations();
    for (at, tag) in [(0, "a"), (1, "b"), (0, "c")] {
        let _logged = larders[at].invalidate(tag).await;
        let seen = heard.next().await.unwrap();
        assert_eq!(seen.own, at == 0);
        assert_eq!(seen.what, [larder::Selector::Tag(tag.into())]);
    }
    let alone = Larder::builder().tag_table_slots(1 << 10).build().unwrap();
    let mut heard = alone.invalidations();
    let _logged = alone.invalidate("a").await;
    assert!(heard.next().await.unwrap().own);
    for number in 0..3000_u32 {
        let _logged = alone.invalidate(("row", number)).await;
    }
    let missed = heard.next().await.unwrap();
    assert_eq!(missed.what, [larder::Selector::Everything], "too far behind");
}

#[tokio::test(start_paused = true)]
async fn an_empty_read_of_the_log_does_not_reduce_the_lag() {
    let line = SharedLog::new().line(SeededRng::new(1), 0, Duration::from_micros(10));
    let bus = Turned::new(line);
    let deaf = Arc::clone(&bus.deaf);
    let larder = Larder::builder().tag_table_slots(1 << 10).bus(bus).build().unwrap();
    larder.synced().await;
    tokio::time::sleep(MINUTE).await;
    assert!(larder.lag() < Duration::from_secs(2), "{:?}", larder.lag());
    deaf.store(true, Ordering::SeqCst);
    tokio::time::sleep(MINUTE).await;
    assert!(larder.lag() > Duration::from_secs(58), "{:?}", larder.lag());
}

/// An old primary that is cut off still accepts appends that the new one never receives.
#[tokio::test(start_paused = true)]
async fn records_that_only_the_old_log_took_are_appended_to_the_new_one() {
    let logs = [SharedLog::new(), SharedLog::new()];
    let process = |seed: u64| {
        let line = |log: &SharedLog| log.line(SeededRng::new(seed), 0, Duration::from_micros(10));
        let over = Arc::new(AtomicBool::new(false));
        let other = Some(line(&logs[1]));
        let bus = Turned { other, over: Arc::clone(&over), ..Turned::new(line(&logs[0])) };
        (Larder::builder().tag_table_slots(1 << 10).bus(bus).build().unwrap(), over)
    };
    let ((one, one_over), (other, other_over)) = (process(1), process(2));
    one.synced().await;
    other.synced().await;
    other_over.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(load(&other, 1).await, 1, "filled after it had found the new log");
    assert_eq!(one.invalidate("t").await, Invalidated::Logged, "by the old log");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(load(&other, 2).await, 1, "no other process receives it");
    one_over.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(load(&other, 3).await, 3);
}

const LATE: Duration = Duration::from_secs(5);

/// The answer does not include invalidations that others append while it is on its way.
#[tokio::test(start_paused = true)]
async fn the_lag_counts_from_the_time_the_end_was_requested() {
    let line = SharedLog::new().line(SeededRng::new(3), 0, Duration::from_micros(10));
    let bus = Turned::new(line);
    let late = Arc::clone(&bus.late);
    let larder = Larder::builder().tag_table_slots(1 << 10).bus(bus).build().unwrap();
    larder.synced().await;
    late.store(true, Ordering::SeqCst);
    tokio::time::sleep(LATE).await;
    for _ in 0..200 {
        tokio::time::sleep(LATE / 50).await;
        assert!(larder.lag() >= LATE && larder.lag() < 4 * LATE, "{:?}", larder.lag());
    }
}

/// Regression: a gap in the same log emptied memory, at the time of the highest load.
#[tokio::test(start_paused = true)]
async fn a_gap_in_the_log_invalidates_only_the_targets_of_missed_records() {
    let log = SharedLog::new();
    let line = |seed| log.line(SeededRng::new(seed), 0, Duration::from_micros(10));
    let bus = Turned::new(line(1));
    let holed = Arc::clone(&bus.holed);
    let larder = Larder::builder().tag_table_slots(1 << 10).bus(bus).build().unwrap();
    let other = Larder::builder().tag_table_slots(1 << 10).bus(line(2)).build().unwrap();
    larder.synced().await;
    other.synced().await;
    let ask = async |tag: &'static str, value: u32| {
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
        *larder.get_or_load(tag, Policy::ttl(MINUTE).tag(tag), load).await.unwrap()
    };
    for tag in ["hidden", "seen", "untouched"] {
        assert_eq!(ask(tag, 1).await, 1);
    }
    let mut heard = larder.invalidations();
    holed.store(true, Ordering::SeqCst);
    let hidden = other.invalidate("hidden");
    let seen = other.invalidate("seen");
    let _logged = futures_util::join!(hidden, seen);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!holed.load(Ordering::SeqCst), "there was a gap");
    assert_eq!(ask("hidden", 2).await, 2);
    assert_eq!(ask("seen", 2).await, 2);
    assert_eq!(ask("untouched", 2).await, 1);
    let told = heard.next().await.unwrap();
    assert!(told.missed && !told.own, "{told:?}");
    assert_ne!(
        told.what,
        [larder::Selector::Everything],
        "the targets of the missed record are known"
    );
}

/// Regression: the end was requested three times per maximum lag, however small the bound: most hits became bypasses.
#[tokio::test(start_paused = true)]
async fn a_small_bound_is_checked_often_enough() {
    let log = SharedLog::new();
    let line = log.line(SeededRng::new(3), 0, Duration::from_micros(10));
    let larder = Larder::builder().tag_table_slots(1 << 10).bus(line).build().unwrap();
    larder.synced().await;
    let bound = Consistency::Bounded(Duration::from_millis(100));
    larder.kernel().catch_up(bound).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..100 {
        assert!(larder.kernel().catch_up(bound).await);
        tokio::time::sleep(Duration::from_millis(37)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_nested_value_is_as_strict_as_its_request_also_while_waiting() {
    let log = SharedLog::new();
    let line = log.line(SeededRng::new(3), 0, Duration::from_micros(10));
    let larder = Larder::builder().tag_table_slots(1 << 10).bus(line.clone()).build().unwrap();
    larder.synced().await;
    let second = Duration::from_secs(1);
    let ask = async |value: u32| {
        let load = move |_: LoadHandle| async move {
            tokio::time::sleep(10 * second).await;
            Ok::<_, Infallible>(value)
        };
        *larder.get_or_load("a", Policy::ttl(60 * MINUTE), load).await.unwrap()
    };
    assert_eq!(ask(1).await, 1);
    let strict = || larder.kernel().open_scope().bounded(second);
    assert_eq!(strict().scoped(ask(2)).await, 1, "proved lately");
    line.cut(true);
    tokio::time::sleep(5 * second).await;
    assert_eq!(ask(3).await, 1, "eventually is good enough for others");
    assert_eq!(strict().scoped(ask(4)).await, 4, "though the value itself asks for no more");
    let failing = move |_: LoadHandle| async move {
        tokio::time::sleep(10 * second).await;
        Err::<u32, _>("down")
    };
    line.cut(false);
    tokio::time::sleep(5 * second).await;
    // Nor does a stale entry replace an error, once the lag has exceeded the bound meanwhile.
    let lifetime = larder::Lifetime::fresh_for(second).stale_if_error(MINUTE);
    let first = |_: LoadHandle| async { Ok::<u32, &str>(1) };
    larder.get_or_load("b", lifetime, first).await.unwrap();
    tokio::time::sleep(2 * second).await;
    let asking = strict().scoped(larder.get_or_load("b", lifetime, failing));
    line.cut(true);
    assert!(asking.await.is_err());
    line.cut(false);
    tokio::time::sleep(5 * second).await;
    // A waiter is not served a fill that completes when the lag has exceeded its bound.
    let _logged = larder.clear().await;
    let leading = ask(5);
    let waiting = async {
        tokio::time::sleep(second / 10).await;
        let waiting = strict().scoped(ask(6));
        line.cut(true);
        waiting.await
    };
    assert_eq!(futures_util::join!(leading, waiting), (5, 6));
}

/// Regression: a list of half a million tags blocked the log, and a process that started could not read it in one page.
#[tokio::test(start_paused = true)]
async fn many_targets_are_several_records_and_all_of_them_act() {
    let larders = pair(&MemoryStore::new());
    joined(&larders).await;
    let ask = async |larder: &Larder, value: u32| {
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
        let policy = Policy::ttl(MINUTE).tag(("t", 11_999)).tiers(Tiers::MEMORY);
        *larder.get_or_load("a", policy, load).await.unwrap()
    };
    for larder in &larders {
        assert_eq!(ask(larder, 1).await, 1);
    }
    let before = larders[0].stats().log.applied;
    let all = Invalidation::of((0..12_000).map(|number| larder::Target::tag(("t", number))));
    assert_eq!(larders[0].invalidate(all).await, Invalidated::Logged);
    assert_eq!(ask(&larders[0], 2).await, 2);
    settled(&larders).await;
    assert_eq!(larders[0].stats().log.applied, before + 3);
    assert_eq!(ask(&larders[1], 2).await, 2);
}

/// Regression: the relay of the guide lost records that it had not received.
#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_of_the_feed_is_told_that_it_missed_records() {
    let larder = Larder::builder().tag_table_slots(1 << 10).build().unwrap();
    let mut heard = larder.invalidations();
    for number in 0..1_500 {
        let _logged = larder.invalidate(("t", number)).await;
    }
    let first = heard.next().await.unwrap();
    assert!(first.missed && first.what == [larder::Selector::Everything], "{first:?}");
    let next = heard.next().await.unwrap();
    assert!(next.own && !next.missed);
}

/// A store with slow reads and configurable limits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limited {
    pub(crate) store: MemoryStore,
    pub(crate) takes: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) max_value_bytes: Option<usize>,
}

impl Store for Limited {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(async move {
            tokio::time::sleep(self.takes).await;
            self.store.get(key).await
        })
    }

    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>> {
        Box::pin(async move {
            tokio::time::sleep(self.takes).await;
            self.store.get_many(keys).await
        })
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.set(key, value, lifetime)
    }

    fn replace<'a>(
        &'a self,
        key: &'a str,
        read: Bytes,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.store.replace(key, read, value, lifetime)
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.remove(key)
    }

    fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn max_value_bytes(&self) -> Option<usize> {
        self.max_value_bytes
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_with_a_longer_deadline_is_waited_for() {
    for (deadline, expected) in [(Some(Duration::from_millis(200)), 1), (None, 2)] {
        let store = Limited { takes: Duration::from_millis(80), deadline, ..Limited::default() };
        let log = SharedLog::new();
        let larders = [1, 2].map(|seed| {
            let line = log.line(SeededRng::new(seed), 0, Duration::from_micros(10));
            let builder = Larder::builder().tag_table_slots(1 << 10).store(store.clone()).bus(line);
            builder.build().unwrap()
        });
        joined(&larders).await;
        assert_eq!(load(&larders[0], 1).await, 1);
        settled(&larders).await;
        assert_eq!(load(&larders[1], 2).await, expected, "{deadline:?}");
    }
}
