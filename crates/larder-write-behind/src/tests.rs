//! Tests of a whole queue, with sinks and journals that fail, under paused time.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use larder_core::{Larder, Policy, Target, store::BoxFuture};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    Add, Batch, MapSink, Max, Memory, OpenErrorKind, Operation, QueueBound, ReadableSink, Sink,
    SinkError, SinkErrorKind, SinkPosition, Write, WriteBehind, WriteBehindBuilder, WriteErrorKind,
    journal::{Accepted, DeadRecord, Draft, Journal, JournalError, JournalId, Record, Recovered},
};

const MINUTE: Duration = Duration::from_secs(60);

/// A durable journal that is a list, and survives the queue.
#[derive(Clone, Debug)]
struct ListJournal(Arc<Mutex<List>>);

#[derive(Clone, Debug)]
struct List {
    id: JournalId,
    is_registered: bool,
    last: u64,
    applied: BTreeMap<u32, u64>,
    records: BTreeMap<u64, Draft>,
    dead: BTreeMap<u64, DeadRecord>,
    fails: bool,
}

impl Default for ListJournal {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(List {
            id: JournalId::random(),
            is_registered: false,
            last: 0,
            applied: BTreeMap::new(),
            records: BTreeMap::new(),
            dead: BTreeMap::new(),
            fails: false,
        })))
    }
}

impl ListJournal {
    /// Returns a copy as it is now, to which clones of the other do not write.
    fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().clone())))
    }

    fn outcome(&self) -> BoxFuture<'_, Result<(), JournalError>> {
        let fails = self.0.lock().fails;
        let outcome = if fails { Err(JournalError::new("the disk is full")) } else { Ok(()) };
        Box::pin(std::future::ready(outcome))
    }
}

impl Journal for ListJournal {
    fn is_durable(&self) -> bool {
        true
    }

    fn recover(&self, _: u32) -> BoxFuture<'_, Result<Recovered, JournalError>> {
        let List { id, is_registered, last, applied, records, dead, .. } = self.0.lock().clone();
        let records = records.into_iter().map(|(number, draft)| Record { number, draft }).collect();
        let dead = dead.into_values().collect();
        let recovered = Recovered { id, is_registered, last, applied, records, dead };
        Box::pin(std::future::ready(Ok(recovered)))
    }

    fn append(&self, draft: Draft, accepted: Accepted) {
        let mut list = self.0.lock();
        if list.fails {
            return accepted(Err(JournalError::new("the disk is full")));
        }
        list.last += 1;
        let number = list.last;
        list.records.insert(number, draft);
        accepted(Ok(number));
    }

    fn revive(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<Vec<u64>, JournalError>> {
        let mut list = self.0.lock();
        if list.fails {
            let failed = Err(JournalError::new("the disk is full"));
            return Box::pin(std::future::ready(failed));
        }
        let mut numbers = Vec::new();
        for dead in dead {
            list.last += 1;
            let number = list.last;
            list.dead.remove(&dead.record.number);
            list.records.insert(number, dead.record.draft);
            numbers.push(number);
        }
        Box::pin(std::future::ready(Ok(numbers)))
    }

    fn applied(&self, partition: u32, number: u64) {
        let mut list = self.0.lock();
        list.records.retain(|other, draft| draft.partition != partition || *other > number);
        list.applied.insert(partition, number);
    }

    fn bury(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<(), JournalError>> {
        let mut list = self.0.lock();
        if !list.fails {
            for dead in dead {
                list.records.remove(&dead.record.number);
                list.dead.insert(dead.record.number, dead);
            }
        }
        drop(list);
        self.outcome()
    }

    fn discard(&self, numbers: Vec<u64>) -> BoxFuture<'_, Result<(), JournalError>> {
        let mut list = self.0.lock();
        list.records.retain(|number, _| !numbers.contains(number));
        list.dead.retain(|number, _| !numbers.contains(number));
        drop(list);
        self.outcome()
    }

    fn register(&self, last: u64) -> BoxFuture<'_, Result<(), JournalError>> {
        let mut list = self.0.lock();
        list.is_registered = true;
        list.last = list.last.max(last);
        drop(list);
        self.outcome()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A map that takes time, and fails before or after it has written.
#[derive(Clone, Debug)]
struct FlakySink<O: Operation> {
    map: MapSink<String, O>,
    seed: Arc<AtomicU64>,
    is_flaky: Arc<AtomicBool>,
}

impl<O: Operation> FlakySink<O> {
    fn new(seed: u64) -> Self {
        let seed = Arc::new(AtomicU64::new(seed));
        Self { map: MapSink::default(), seed, is_flaky: Arc::new(AtomicBool::new(true)) }
    }

    fn draw(&self, below: u64) -> u64 {
        drawn(&self.seed, below)
    }
}

/// The next number of a sequence (SplitMix64).
fn drawn(seed: &AtomicU64, below: u64) -> u64 {
    let mut z = seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % below
}

impl<O: Operation> Sink for FlakySink<O> {
    type Key = String;
    type Operation = O;

    fn position(
        &self,
        queue: &str,
        partition: u32,
    ) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>> {
        self.map.position(queue, partition)
    }

    fn set_position(
        &self,
        queue: &str,
        partition: u32,
        position: SinkPosition,
    ) -> BoxFuture<'_, Result<(), SinkError>> {
        self.map.set_position(queue, partition, position)
    }

    fn write<'a>(&'a self, batch: &'a Batch<String, O>) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            if !self.is_flaky.load(Ordering::Relaxed) {
                return self.map.write(batch).await;
            }
            tokio::time::sleep(Duration::from_millis(self.draw(80))).await;
            if self.draw(4) == 0 {
                return Err(SinkError::unavailable("the network is down"));
            }
            self.map.write(batch).await?;
            tokio::time::sleep(Duration::from_millis(self.draw(40))).await;
            match self.draw(4) {
                0 => Err(SinkError::unavailable("the answer to COMMIT was lost")),
                _ => Ok(()),
            }
        })
    }
}

impl<O: Operation> ReadableSink for FlakySink<O> {
    type Snapshot = <MapSink<String, O> as ReadableSink>::Snapshot;

    fn snapshot(&self) -> BoxFuture<'_, Result<Self::Snapshot, SinkError>> {
        Box::pin(async move {
            let snapshot = self.map.snapshot().await;
            tokio::time::sleep(Duration::from_millis(self.draw(30))).await;
            snapshot
        })
    }
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

fn queue<O: Operation>(
    sink: &MapSink<String, O>,
    journal: &ListJournal,
) -> WriteBehindBuilder<MapSink<String, O>> {
    WriteBehind::builder("q", &larder(), sink.clone(), journal.clone())
}

async fn add(queue: &WriteBehind<MapSink<String, Add>>, key: &str, n: i64) {
    let _logged = queue.write(key.to_owned(), Add(n)).await.unwrap();
}

async fn value<S>(queue: &WriteBehind<S>, key: &str) -> Option<i64>
where
    S: ReadableSink<Key = String>,
    S::Operation: Operation<Value = i64>,
{
    queue.get(&key.to_owned()).await.unwrap().as_deref().copied()
}

/// Several tasks write and read keys of their own, the sink fails, and the process is killed again and again. Every read
/// sees every accepted operation, and at the end the sink has each of them once.
async fn every_read_sees_every_accepted_operation<O>(
    seed: u64,
    operation: impl Fn(i64) -> O + Copy + Send + 'static,
) where
    O: Operation<Value = i64>,
{
    let (sink, journal) = (FlakySink::<O>::new(seed), ListJournal::default());
    let random = Arc::new(AtomicU64::new(seed ^ 0x5eed));
    let mut model: HashMap<String, Option<i64>> = HashMap::new();
    for _life in 0..4 {
        let larder = larder();
        let partitions = 1 + u32::try_from(seed % 3).unwrap();
        let builder = WriteBehind::builder("q", &larder, sink.clone(), journal.clone());
        let opened =
            builder.partitions(partitions).batch(1 + drawn(&random, 7) as usize).open().await;
        let queue = opened.unwrap();
        for (key, expected) in &model {
            assert_eq!(value(&queue, key).await, *expected, "after a restart, seed {seed}");
        }
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..3 {
            let (queue, random) = (queue.clone(), Arc::clone(&random));
            let mut own: HashMap<String, Option<i64>> = (0..2)
                .map(|key| format!("{task}-{key}"))
                .map(|key| (key.clone(), model.get(&key).copied().flatten()))
                .collect();
            tasks.spawn(async move {
                for _ in 0..12 {
                    let key = format!("{task}-{}", drawn(&random, 2));
                    if drawn(&random, 3) > 0 {
                        let operation = operation(drawn(&random, 100) as i64 - 20);
                        let _logged = queue.write(key.clone(), operation.clone()).await.unwrap();
                        operation.apply(own.get_mut(&key).unwrap());
                    }
                    assert_eq!(value(&queue, &key).await, own[&key], "{key}, seed {seed}");
                    tokio::time::sleep(Duration::from_millis(drawn(&random, 120))).await;
                    let mut snapshot = queue.snapshot().await.unwrap();
                    for (key, value) in snapshot.unflushed().await.unwrap() {
                        if let Some(expected) = own.get(&key) {
                            assert_eq!(value, *expected, "{key} in a snapshot, seed {seed}");
                        }
                    }
                }
                own
            });
        }
        for own in tasks.join_all().await {
            model.extend(own);
        }
        // The last handle is dropped: the workers stop in the middle of what they do.
    }
    sink.is_flaky.store(false, Ordering::Relaxed);
    let larder = larder();
    let partitions = 1 + u32::try_from(seed % 3).unwrap();
    let builder = WriteBehind::builder("q", &larder, sink.clone(), journal);
    let queue = builder.partitions(partitions).open().await.unwrap();
    assert_eq!(queue.close(MINUTE).await, 0);
    for (key, expected) in model {
        assert_eq!(sink.map.value(&key), expected, "{key} in the sink, seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn relative_operations_are_applied_once_whatever_fails() {
    for seed in 0..60 {
        every_read_sees_every_accepted_operation(seed, Add).await;
    }
}

#[tokio::test(start_paused = true)]
async fn absolute_operations_are_applied_in_order_whatever_fails() {
    for seed in 0..60 {
        let write = |n| if n % 5 == 0 { Write::Delete } else { Write::Put(n) };
        every_read_sees_every_accepted_operation(seed, write).await;
        every_read_sees_every_accepted_operation(seed, Max).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_committed_although_it_failed_is_not_written_again() {
    let sink = FlakySink::<Add>::new(0);
    let queue = WriteBehind::builder("q", &larder(), sink.clone(), ListJournal::default());
    let queue = queue.open().await.unwrap();
    for n in 0..200 {
        let _logged = queue.write("a".to_owned(), Add(1)).await.unwrap();
        assert_eq!(queue.flush(MINUTE).await, 0, "write {n}");
        assert_eq!(sink.map.value(&"a".to_owned()), Some(n + 1));
    }
    assert!(queue.stats().failures > 50, "{:?}", queue.stats());
    assert_eq!(sink.map.rows_written(), 200);
}

/// A shadow renders a response once more to compare it; an operation that it repeats must not count twice.
#[tokio::test(start_paused = true)]
async fn an_operation_in_a_shadow_is_not_written() {
    let (larder, sink) = (larder(), MapSink::<String, Add>::default());
    let builder = WriteBehind::builder("q", &larder, sink.clone(), ListJournal::default());
    let queue = builder.open().await.unwrap();
    add(&queue, "a", 1).await;
    let shadow = larder.kernel().scope().shadowing();
    shadow.scoped(add(&queue, "a", 1)).await;
    assert_eq!(queue.flush(MINUTE).await, 0);
    assert_eq!(value(&queue, "a").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_increments_of_a_counter_are_one_row() {
    let (sink, journal) = (MapSink::default(), ListJournal::default());
    let queue = queue(&sink, &journal).batch(2_000).open().await.unwrap();
    for _ in 0..1_000 {
        add(&queue, "a", 1).await;
    }
    assert_eq!(sink.value(&"a".to_owned()), None, "not written yet");
    assert_eq!(value(&queue, "a").await, Some(1_000));
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!((sink.value(&"a".to_owned()), sink.rows_written()), (Some(1_000), 1));
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_rejected_stops_only_its_key() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let is_strict = Arc::new(AtomicBool::new(true));
    let strict = Arc::clone(&is_strict);
    sink.fail(move |batch| {
        let is_bad = |operation: &crate::BatchOperation<String, Add>| operation.key == "bad";
        let rejects = strict.load(Ordering::Relaxed) && batch.operations.iter().any(is_bad);
        rejects.then(|| SinkError::rejected("a constraint is violated"))
    });
    let queue = queue(&sink, &journal).open().await.unwrap();
    for n in 0..20 {
        add(&queue, &format!("before-{n}"), n).await;
    }
    add(&queue, "bad", 1).await;
    for n in 0..20 {
        add(&queue, &format!("after-{n}"), n).await;
    }
    add(&queue, "bad", 10).await;
    assert_eq!(value(&queue, "bad").await, Some(11));
    assert_eq!(queue.flush(MINUTE).await, 0);
    for n in 0..20 {
        assert_eq!(sink.value(&format!("after-{n}")), Some(n));
    }
    let dead = queue.dead_letters();
    let of = |at: usize| (&*dead[at].key, dead[at].operation, dead[at].error.is_some());
    assert_eq!((of(0), of(1), dead.len()), (("bad", Add(1), true), ("bad", Add(10), false), 2));
    assert!(dead[0].error.as_ref().unwrap().contains("a constraint is violated"));
    assert_eq!(value(&queue, "bad").await, None, "reads do not see it");
    // It stays one after a restart, and later operations wait behind it.
    drop(queue);
    let queue = self::queue(&sink, &journal).open().await.unwrap();
    assert_eq!(queue.stats().dead_letters, 2);
    let reported = queue.inner.queue.larder.stats().queues;
    assert_eq!(reported, [queue.stats()], "the larder reports it, and no longer the dropped one");
    add(&queue, "bad", 100).await;
    add(&queue, "good", 1).await;
    assert_eq!(queue.flush(MINUTE).await, 0);
    assert_eq!((queue.stats().dead_letters, sink.value(&"good".to_owned())), (3, Some(1)));
    // One of them is discarded, another is added before the others come back.
    assert_eq!(queue.discard_dead(|_, add| add.0 == 10).await.unwrap(), 1);
    is_strict.store(false, Ordering::Relaxed);
    add(&queue, "bad", 1_000).await;
    assert_eq!(queue.revive(|key, _| key == "bad").await.unwrap(), 3);
    assert_eq!(value(&queue, "bad").await, Some(1_101));
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!((sink.value(&"bad".to_owned()), queue.stats().dead_letters), (Some(1_101), 0));
    assert!(journal.0.lock().dead.is_empty() && journal.0.lock().records.is_empty());
}

/// An operation that was queued behind dead ones must not overtake them when they come back.
#[tokio::test(start_paused = true)]
async fn revived_operations_come_before_those_that_were_written_later() {
    let (sink, journal) = (MapSink::<String, Write<i64>>::default(), ListJournal::default());
    let is_strict = Arc::new(AtomicBool::new(true));
    let strict = Arc::clone(&is_strict);
    sink.fail(move |_| strict.load(Ordering::Relaxed).then(|| SinkError::rejected("no")));
    let queue = queue(&sink, &journal).attempts(1).interval(MINUTE).open().await.unwrap();
    let put = async |n| {
        let _logged = queue.write("a".to_owned(), Write::Put(n)).await.unwrap();
    };
    put(1).await;
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(queue.stats().dead_letters, 1);
    is_strict.store(false, Ordering::Relaxed);
    put(2).await;
    put(3).await;
    assert_eq!(queue.revive(|_, _| true).await.unwrap(), 3);
    put(4).await;
    assert_eq!(value(&queue, "a").await, Some(4));
    let numbers: Vec<Write<i64>> = journal
        .0
        .lock()
        .records
        .values()
        .map(|draft| rmp_serde::from_slice(&draft.operation).unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4].map(Write::Put));
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(sink.value(&"a".to_owned()), Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_down_for_ten_minutes_loses_nothing_and_fills_the_queue() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let is_down = Arc::new(AtomicBool::new(true));
    let down = Arc::clone(&is_down);
    sink.fail(move |_| down.load(Ordering::Relaxed).then(|| SinkError::unavailable("no route")));
    let queue = queue(&sink, &journal).max_operations(500).open().await.unwrap();
    for n in 0..500 {
        add(&queue, &format!("{}", n % 10), 1).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    let began = tokio::time::Instant::now();
    let refused = queue.write("x".to_owned(), Add(1)).await.unwrap_err();
    assert_eq!(refused.kind(), WriteErrorKind::Full(QueueBound::Operations(500)));
    assert_eq!(
        refused.to_string(),
        "the queue is full: it has reached its bound of 500 operations"
    );
    assert_eq!(began.elapsed(), Duration::from_secs(5), "it waited for room");
    assert_eq!((value(&queue, "x").await, queue.stats().queued), (None, 500));
    assert!(queue.stats().oldest > 10 * MINUTE && queue.stats().dead_letters == 0);
    assert_eq!(value(&queue, "3").await, Some(50));
    // A write that waits for room gets it when the sink is back.
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.write("x".to_owned(), Add(7)).await }
    });
    is_down.store(false, Ordering::Relaxed);
    tokio::time::sleep(MINUTE).await;
    let _late = waiting.await.unwrap();
    add(&queue, "y", 1).await;
    assert_eq!(queue.close(MINUTE).await, 0);
    for n in 0..10 {
        assert_eq!(sink.value(&n.to_string()), Some(50));
    }
}

#[tokio::test(start_paused = true)]
async fn each_bound_refuses_with_its_name() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    sink.fail(|_| Some(SinkError::unavailable("no route")));
    let wait = Duration::from_secs(1);
    let full = async |queue: WriteBehind<MapSink<String, Add>>| {
        loop {
            if let Err(error) = queue.write("a".to_owned(), Add(1)).await {
                break error.kind();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let bytes = queue(&sink, &journal).max_bytes(1_000).full_wait(wait).open().await.unwrap();
    assert_eq!(full(bytes.clone()).await, WriteErrorKind::Full(QueueBound::Bytes(1_000)));
    let queued = bytes.stats().queued;
    drop(bytes);
    // What an earlier process has accepted may exceed the bound of this one.
    let small = queue(&sink, &journal).max_operations(1).full_wait(wait).open().await.unwrap();
    assert_eq!(small.stats().queued, queued);
    assert_eq!(full(small).await, WriteErrorKind::Full(QueueBound::Operations(1)));
    let old = queue(&sink, &journal).max_age(MINUTE).full_wait(wait).open().await.unwrap();
    assert_eq!(full(old).await, WriteErrorKind::Full(QueueBound::Age(MINUTE)));
    let closed = queue(&sink, &journal).open().await.unwrap();
    assert!(closed.close(wait).await > queued);
    assert_eq!(full(closed).await, WriteErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_the_journal_refuses_leaves_nothing() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let queue = queue(&sink, &journal).max_operations(2).open().await.unwrap();
    journal.0.lock().fails = true;
    for _ in 0..3 {
        let refused = queue.write("a".to_owned(), Add(1)).await.unwrap_err();
        assert_eq!(refused.kind(), WriteErrorKind::Journal, "and not full");
    }
    assert_eq!(value(&queue, "a").await, None);
    journal.0.lock().fails = false;
    add(&queue, "a", 1).await;
    assert_eq!(value(&queue, "a").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_journal_and_a_sink_that_do_not_belong_together_refuse_to_open() {
    type Case = (
        &'static str,
        fn(&mut (MapSink<String, Add>, ListJournal), (MapSink<String, Add>, ListJournal)),
    );
    let cases: [Case; 4] = [
        ("the sink was replaced", |now, _| now.0 = MapSink::default()),
        ("the journal", |now, _| now.1 = ListJournal::default()),
        ("the journal was restored from an older copy", |now, before| now.1 = before.1),
        ("the sink was restored from an older copy", |now, before| now.0 = before.0),
    ];
    for (expected, replace) in cases {
        let mut now = (MapSink::default(), ListJournal::default());
        let queue = queue(&now.0, &now.1).open().await.unwrap();
        add(&queue, "a", 1).await;
        queue.flush(MINUTE).await;
        let before = (now.0.copy(), now.1.copy());
        add(&queue, "a", 10).await;
        assert_eq!(queue.close(MINUTE).await, 0);
        drop(queue);
        replace(&mut now, before);
        let (sink, journal) = now;
        let refused = self::queue(&sink, &journal).open().await.unwrap_err();
        let id = journal.0.lock().id.to_string();
        assert_eq!(refused.kind(), OpenErrorKind::Mismatch);
        let message = refused.to_string();
        assert!(
            message.contains(expected) && message.contains(&format!("accept_journal(\"{id}\")")),
            "{message}"
        );
        let refused = self::queue(&sink, &journal).accept_journal("0123456789abcdef").open().await;
        assert_eq!(refused.unwrap_err().kind(), OpenErrorKind::Mismatch, "another journal");
        let left = sink.value(&"a".to_owned()).unwrap_or_default();
        let queue = self::queue(&sink, &journal).accept_journal(id).open().await.unwrap();
        add(&queue, "a", 100).await;
        assert_eq!(queue.close(MINUTE).await, 0, "{expected}");
        assert_eq!(sink.value(&"a".to_owned()), Some(left + 100), "{expected}");
        drop(queue);
        let queue = self::queue(&sink, &journal).open().await.unwrap();
        assert_eq!(queue.close(MINUTE).await, 0, "it belongs to the sink now");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_another_process_writes_stops_the_queue() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let queue = queue(&sink, &journal).open().await.unwrap();
    sink.set_position("q", 0, SinkPosition { journal: JournalId::random(), number: 7 })
        .await
        .unwrap();
    add(&queue, "a", 1).await;
    tokio::time::sleep(MINUTE).await;
    let refused = queue.write("a".to_owned(), Add(1)).await.unwrap_err();
    assert_eq!(refused.kind(), WriteErrorKind::Stopped);
    assert!(queue.stats().stopped.unwrap().contains("another process uses the queue"));
    assert_eq!(sink.value(&"a".to_owned()), None);
}

/// Two versions of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Old(u32);
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct New {
    metres: u64,
}

impl Operation for Old {
    type Value = i64;

    fn apply(&self, value: &mut Option<i64>) {
        *value = Some(i64::from(self.0));
    }
}

impl Operation for New {
    type Value = i64;
    const VERSION: u16 = 2;

    fn apply(&self, value: &mut Option<i64>) {
        *value = Some(self.metres as i64);
    }

    fn of_version(version: u16, bytes: &[u8]) -> Option<Self> {
        let old: Old = (version == 1).then(|| rmp_serde::from_slice(bytes).ok())??;
        Some(Self { metres: u64::from(old.0) * 1_000 })
    }
}

#[tokio::test(start_paused = true)]
async fn queued_operations_are_read_by_the_next_version_of_the_program_or_refuse_to_open() {
    let journal = ListJournal::default();
    let down = MapSink::<String, Old>::default();
    down.fail(|_| Some(SinkError::unavailable("no route")));
    let old = queue(&down, &journal).open().await.unwrap();
    let _logged = old.write("a".to_owned(), Old(3)).await.unwrap();
    drop(old);
    let (sink, copy) = (MapSink::<String, New>::default(), journal.copy());
    let position = SinkPosition { journal: journal.0.lock().id, number: 0 };
    sink.set_position("q", 0, position).await.unwrap();
    let new = queue(&sink, &journal).open().await.unwrap();
    assert_eq!(value(&new, "a").await, Some(3_000));
    assert_eq!(new.close(MINUTE).await, 0);
    copy.0.lock().records.values_mut().for_each(|draft| draft.version = 9);
    sink.set_position("q", 0, position).await.unwrap();
    let refused = queue(&sink, &copy).open().await.unwrap_err();
    assert_eq!(refused.kind(), OpenErrorKind::Unreadable);
    assert!(
        refused.to_string().contains("it has version 9, and this program reads version 2"),
        "{refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_operations_of_a_tenant_can_be_removed() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    sink.fail(|batch| {
        let is_bad = batch.operations.iter().any(|operation| operation.operation.0 < 0);
        is_bad.then(|| SinkError::rejected("negative"))
    });
    let queue = queue(&sink, &journal).attempts(1).interval(MINUTE).open().await.unwrap();
    add(&queue, "acme/a", -1).await;
    tokio::time::sleep(2 * MINUTE).await;
    for key in ["acme/a", "acme/b", "globex/a"] {
        add(&queue, key, 1).await;
    }
    let queued = queue.queued();
    let keys: Vec<&str> = queued.iter().map(|queued| &*queued.key).collect();
    assert_eq!(keys, ["acme/a", "acme/b", "globex/a"]);
    assert!(queued.is_sorted_by_key(|queued| queued.number));
    assert_eq!(queue.discard(|key, _| key.starts_with("acme/")).await.unwrap(), 3);
    assert_eq!((value(&queue, "acme/b").await, value(&queue, "globex/a").await), (None, Some(1)));
    let left: Vec<u64> = journal.0.lock().records.keys().copied().collect();
    assert_eq!((left.len(), journal.0.lock().dead.len()), (1, 0));
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(sink.value(&"acme/b".to_owned()), None);
}

/// A page that shows a value, and a page that shows the row of the database.
#[tokio::test(start_paused = true)]
async fn pages_made_of_a_value_fall_when_it_is_accepted_and_when_it_is_written() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let larder = larder();
    let builder = WriteBehind::builder("q", &larder, sink.clone(), journal.clone());
    let queue = builder.invalidates(|key, _| vec![Target::tag(("row", key))]).open().await.unwrap();
    let pages = Policy::ttl(60 * MINUTE);
    let page = async || {
        let queue = queue.clone();
        let load = move |_| async move { Ok::<_, Infallible>(value(&queue, "a").await) };
        *larder.get_or_load("page", pages.clone(), load).await.unwrap()
    };
    let row = async || {
        let map = sink.clone();
        let load = move |_| async move { Ok::<_, Infallible>(map.value(&"a".to_owned())) };
        *larder.get_or_load("row page", pages.clone().tag(("row", "a")), load).await.unwrap()
    };
    let listing = async || {
        let queue = queue.clone();
        let load = move |_| async move {
            let mut snapshot = queue.snapshot().await.unwrap();
            Ok::<_, Infallible>(snapshot.unflushed().await.unwrap().len())
        };
        *larder.get_or_load("listing", pages.clone(), load).await.unwrap()
    };
    assert_eq!((page().await, row().await, listing().await), (None, None, 0));
    add(&queue, "a", 5).await;
    assert_eq!((page().await, row().await, listing().await), (Some(5), None, 1), "not written yet");
    add(&queue, "b", 5).await;
    assert_eq!(listing().await, 2);
    assert_eq!(queue.flush(MINUTE).await, 0);
    assert_eq!((page().await, row().await, listing().await), (Some(5), Some(5), 0));
    // The value is a hit now.
    let hits = || larder.stats().cache("objects").unwrap().total.hits;
    assert_eq!(value(&queue, "a").await, Some(5));
    let before = hits();
    assert_eq!(value(&queue, "a").await, Some(5));
    assert_eq!(hits(), before + 1);
    let _logged = larder.invalidate("q:a").await;
    sink.set("a".to_owned(), 6);
    assert_eq!(value(&queue, "a").await, Some(6), "after an invalidation of the application");
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_caller_is_gone_is_written_and_invalidates() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let queue = queue(&sink, &journal).open().await.unwrap();
    {
        let mut writing = Box::pin(queue.write("a".to_owned(), Add(1)));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(writing.as_mut().poll(cx)))
                .await
                .is_pending()
        );
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(value(&queue, "a").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn options_that_make_no_sense_are_refused() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    for (builder, expected) in [
        (queue(&sink, &journal).partitions(0), "partitions is 0, and must be between 1 and 1024"),
        (queue(&sink, &journal).batch(0), "batch is 0, and must be at least 1"),
        (queue(&sink, &journal).attempts(0), "attempts is 0, and must be at least 1"),
        (
            WriteBehind::builder("a:b", &larder(), sink.clone(), Memory::lost_on_crash()),
            "the name of a queue is \"a:b\", and must be a text without colons",
        ),
        (
            WriteBehind::builder("", &larder(), sink.clone(), Memory::lost_on_crash()),
            "the name of a queue is \"\"",
        ),
    ] {
        let refused = builder.open().await.unwrap_err();
        assert_eq!(refused.kind(), OpenErrorKind::Option);
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    assert_eq!(SinkError::rejected("x").kind(), SinkErrorKind::Rejected);
}

/// A write whose caller is gone while it waits for room gives back what it has taken.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_dropped_while_it_waits_takes_no_room() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let queue = queue(&sink, &journal).max_operations(5).max_bytes(300).interval(MINUTE);
    let queue = queue.open().await.unwrap();
    add(&queue, "a", 1).await;
    let large = "x".repeat(200);
    for _ in 0..20 {
        let writing = queue.write(large.clone(), Add(1));
        assert!(tokio::time::timeout(Duration::from_secs(1), writing).await.is_err());
    }
    assert_eq!(queue.flush(MINUTE).await, 0);
    add(&queue, "a", 1).await;
    assert_eq!(queue.stats().queued, 1);
}

/// An operation that panics.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Broken;

impl Operation for Broken {
    type Value = i64;

    fn apply(&self, _: &mut Option<i64>) {
        panic!("this operation is broken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_an_operation_stops_the_queue_and_one_of_a_choice_does_not() {
    let (sink, journal) = (MapSink::<String, Broken>::default(), ListJournal::default());
    let queue = queue(&sink, &journal).open().await.unwrap();
    let panicked = queue.discard(|_, _| panic!("this choice is broken")).await;
    assert_eq!(panicked.unwrap(), 0, "there was nothing to choose from");
    let _logged = queue.write("a".to_owned(), Broken).await.unwrap();
    assert!(queue.discard(|_, _| panic!("this choice is broken")).await.is_err());
    tokio::time::sleep(MINUTE).await;
    let refused = queue.write("a".to_owned(), Broken).await.unwrap_err();
    assert_eq!(refused.kind(), WriteErrorKind::Stopped);
    assert!(queue.stats().stopped.unwrap().contains("panicked"));
}

#[tokio::test(start_paused = true)]
async fn many_operations_that_are_rejected_do_not_stop_the_others_for_long() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    sink.fail(|batch| {
        let is_bad = batch.operations.iter().any(|operation| operation.key.starts_with("bad"));
        is_bad.then(|| SinkError::rejected("a constraint is violated"))
    });
    let queue = queue(&sink, &journal).open().await.unwrap();
    for n in 0..100 {
        add(&queue, &format!("bad-{n}"), 1).await;
    }
    add(&queue, "good", 1).await;
    let began = tokio::time::Instant::now();
    assert_eq!(queue.flush(MINUTE).await, 0);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((sink.value(&"good".to_owned()), queue.stats().dead_letters), (Some(1), 100));
}

/// A copy of the journal has operations that the sink has already.
#[tokio::test(start_paused = true)]
async fn an_accepted_journal_does_not_repeat_what_the_sink_has_of_it() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let queue = queue(&sink, &journal).interval(MINUTE).open().await.unwrap();
    add(&queue, "a", 1).await;
    let copy = journal.copy();
    add(&queue, "a", 10).await;
    assert_eq!(queue.close(MINUTE).await, 0);
    let refused = self::queue(&sink, &copy).open().await.unwrap_err();
    assert_eq!(refused.kind(), OpenErrorKind::Mismatch);
    let id = copy.0.lock().id.to_string();
    let queue = self::queue(&sink, &copy).accept_journal(id).open().await.unwrap();
    add(&queue, "a", 100).await;
    assert_eq!(value(&queue, "a").await, Some(111));
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(sink.value(&"a".to_owned()), Some(111));
}

/// The process ended after the commit of the sink and before it could invalidate.
#[tokio::test(start_paused = true)]
async fn what_the_last_process_has_not_invalidated_is_invalidated_at_the_start() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let larder = larder();
    let open = async |journal: &ListJournal| {
        let queue = WriteBehind::builder("q", &larder, sink.clone(), journal.clone());
        let queue = queue.invalidates(|key, _| vec![Target::tag(("row", key))]);
        queue.interval(MINUTE).open().await.unwrap()
    };
    let queue = open(&journal).await;
    add(&queue, "a", 1).await;
    let page = larder.values::<i64>(Policy::ttl(60 * MINUTE).tag(("row", "a")));
    let before_the_commit = journal.copy();
    assert_eq!(queue.close(MINUTE).await, 0);
    page.get_or_load("page", |_| async { Ok::<_, Infallible>(0) }).await.unwrap();
    let _queue = open(&before_the_commit).await;
    assert_eq!(page.get("page").await, None);
}

#[tokio::test(start_paused = true)]
async fn revived_operations_invalidate_before_the_sink_has_them() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    sink.fail(|_| Some(SinkError::rejected("no")));
    let larder = larder();
    let queue = WriteBehind::builder("q", &larder, sink.clone(), journal);
    let queue = queue.attempts(1).open().await.unwrap();
    add(&queue, "a", 1).await;
    assert_eq!(queue.flush(MINUTE).await, 0);
    let page = async || {
        let queue = queue.clone();
        let load = move |_| async move { Ok::<_, Infallible>(value(&queue, "a").await) };
        *larder.get_or_load("page", MINUTE * 60, load).await.unwrap()
    };
    assert_eq!(page().await, None);
    sink.fail(|_| Some(SinkError::unavailable("no route")));
    assert_eq!(queue.revive(|_, _| true).await.unwrap(), 1);
    assert_eq!(page().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_queue_goes_on_when_its_position_is_back() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    let queue = queue(&sink, &journal).open().await.unwrap();
    let position = sink.position("q", 0).await.unwrap().unwrap();
    sink.set_position("q", 0, SinkPosition { number: 7, journal: JournalId::random() })
        .await
        .unwrap();
    add(&queue, "a", 1).await;
    tokio::time::sleep(MINUTE).await;
    assert!(queue.stats().stopped.is_some());
    sink.set_position("q", 0, position).await.unwrap();
    assert_eq!(queue.flush(MINUTE).await, 0);
    add(&queue, "a", 1).await;
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(sink.value(&"a".to_owned()), Some(2));
}

/// A caller that waits does not wait for the pause after the last failure.
#[tokio::test(start_paused = true)]
async fn closing_tries_again_at_once() {
    let (sink, journal) = (MapSink::<String, Add>::default(), ListJournal::default());
    sink.fail(|_| Some(SinkError::unavailable("no route")));
    let queue = queue(&sink, &journal).open().await.unwrap();
    add(&queue, "a", 1).await;
    tokio::time::sleep(10 * MINUTE).await;
    sink.fail(|_| None);
    assert_eq!(queue.close(Duration::from_secs(1)).await, 0);
}
