//! The second level returns the value that was stored, to processes that may read it, for as long as it is fresh; and a
//! slow store delays a request by no more than its limit.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use larder::{
    Larder, LarderBuilder, Lifetime, LoadHandle, Policy, Reason, Tag, Target, Tiers,
    store::{FillLockState, FillLocks, Store, StoreError, StoreErrorKind, WriterId},
    values::SetOutcome,
};
use larder_testkit::{MemoryStore, SeededRng, SharedLog, SimulatedCluster};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::store::Limited;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn process(
    log: &SharedLog,
    store: &(impl Store + Clone),
    change: impl FnOnce(LarderBuilder) -> LarderBuilder,
) -> Larder {
    let line = log.line(SeededRng::new(7), 0, Duration::from_micros(10));
    let builder = Larder::builder().tag_table_slots(1 << 10).store(store.clone()).bus(line);
    change(builder).build().unwrap()
}

/// Waits until each process has applied the log and every write has reached the store.
pub(crate) async fn settled(larders: &[&Larder]) {
    for larder in larders {
        larder.synced().await;
        assert!(larder.close(MINUTE).await);
    }
    tokio::time::sleep(SECOND / 10).await;
}

async fn load<T>(larder: &Larder, policy: impl Into<Policy>, value: T) -> Arc<T>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
    larder.get_or_load("a", policy, load).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_value_that_does_not_survive_serialization_stays_in_its_process() {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Answer {
        found: Option<Option<u32>>,
    }
    for (found, shared) in [(Some(None), false), (Some(Some(1)), true), (None, true)] {
        let (log, store) = (SharedLog::new(), MemoryStore::new());
        let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
        settled(&[&one, &two]).await;
        let value = Answer { found };
        assert_eq!(*load(&one, MINUTE, value.clone()).await, value);
        assert_eq!(*load(&one, MINUTE, Answer { found: None }).await, value, "in memory");
        settled(&[&one, &two]).await;
        assert_eq!(one.stats().shared.lossy, u64::from(!shared));
        assert_eq!(*load(&two, MINUTE, value.clone()).await, value, "elsewhere");
        assert_eq!(two.stats().shared.hits, u64::from(shared));
    }
}

/// Serializes as a string, and deserializes from a number.
#[derive(Debug, PartialEq)]
struct Lopsided(u32);

impl Serialize for Lopsided {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Lopsided {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        u32::deserialize(from).map(Self)
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_that_cannot_read_its_own_serialization_is_not_stored() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let one = process(&log, &store, |builder| builder);
    settled(&[&one]).await;
    assert_eq!(*load(&one, MINUTE, Lopsided(5)).await, Lopsided(5));
    settled(&[&one]).await;
    assert!(store.keys().is_empty());
    assert_eq!(one.stats().shared.lossy, 1);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_neither_extends_a_lifetime_nor_stops_sharing() {
    let now = SystemTime::now();
    for (what, clock, tells_time) in [
        ("behind", now - HOUR, true),
        ("ahead", now + HOUR, true),
        ("right", now, true),
        ("behind, and no server to ask", now - HOUR, false),
        ("ahead, and no server to ask", now + HOUR, false),
        ("a little behind, and no server to ask", now - SECOND / 2, false),
    ] {
        let (log, store) = (SharedLog::new(), MemoryStore::new());
        if !tells_time {
            log.keep_no_time();
        }
        let writer = process(&log, &store, |builder| builder.wall_clock(now));
        let reader = process(&log, &store, |builder| builder.wall_clock(clock));
        settled(&[&writer, &reader]).await;
        load(&writer, 6 * SECOND, 1).await;
        settled(&[&writer, &reader]).await;
        tokio::time::sleep(3 * SECOND).await;
        let read = *load(&reader, 6 * SECOND, 2).await;
        let close = tells_time || what.starts_with("a little");
        assert_eq!(read, if close { 1 } else { 2 }, "{what}");
        if close {
            // Six seconds after the fill, and a second of skew where the log has no server with a clock.
            tokio::time::sleep(2 * SECOND).await;
            assert_eq!(*load(&reader, 6 * SECOND, 3).await, 1, "{what}");
            tokio::time::sleep(2 * SECOND).await;
            assert_eq!(*load(&reader, 6 * SECOND, 4).await, 4, "{what}: after its life");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_corrected_does_not_end_sharing() {
    // The clock was wrong when this process started; processes that start later have the right time.
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let now = SystemTime::now();
    let early = process(&log, &store, |builder| builder.wall_clock(now - 24 * HOUR));
    let late = process(&log, &store, |builder| builder.wall_clock(now));
    settled(&[&early, &late]).await;
    for (writer, reader, value) in [(&early, &late, 1), (&late, &early, 2)] {
        let _logged = writer.clear().await;
        settled(&[writer, reader]).await;
        load(writer, MINUTE, value).await;
        settled(&[writer, reader]).await;
        assert_eq!(*load(reader, MINUTE, 9).await, value);
    }
}

#[tokio::test(start_paused = true)]
async fn two_versions_of_an_application_do_not_read_each_other() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let old = process(&log, &store, |builder| builder.version("1"));
    let new = process(&log, &store, |builder| builder.version("2"));
    settled(&[&old, &new]).await;
    assert_eq!(*load(&old, MINUTE, 1).await, 1);
    settled(&[&old, &new]).await;
    assert_eq!(*load(&new, MINUTE, 2).await, 2);
    settled(&[&old, &new]).await;
    let third = process(&log, &store, |builder| builder.version("2"));
    settled(&[&third]).await;
    assert_eq!(*load(&third, MINUTE, 3).await, 2, "its own");
    let _logged = old.invalidate("a").await;
    settled(&[&old, &new, &third]).await;
    for larder in [&old, &new, &third] {
        assert_eq!(*load(larder, MINUTE, 4).await, 4, "an invalidation reaches all");
        let _logged = larder.invalidate("a").await;
        settled(&[&old, &new, &third]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_lifetime_of_a_process_limits_entries_of_other_processes() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let patient = process(&log, &store, |builder| builder.max_lifetime(HOUR));
    let strict = process(&log, &store, |builder| builder.max_lifetime(MINUTE));
    settled(&[&patient, &strict]).await;
    let lifetime = Lifetime::fresh_for(HOUR / 2).stale_if_error(HOUR);
    load(&patient, lifetime, 1).await;
    settled(&[&patient, &strict]).await;
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(*load(&strict, lifetime, 2).await, 1, "within its own minute");
    tokio::time::sleep(31 * SECOND).await;
    assert_eq!(*load(&strict, lifetime, 3).await, 3, "a minute after the fill");
    assert_eq!(*load(&patient, lifetime, 4).await, 1);
}

#[tokio::test(start_paused = true)]
async fn waiters_do_not_depend_on_the_leader_being_polled() {
    let log = SharedLog::new();
    let slow = Limited { takes: Duration::from_millis(20), ..Limited::default() };
    let larder = process(&log, &slow, |builder| builder);
    settled(&[&larder]).await;
    let mut first = Box::pin(load(&larder, MINUTE, 1));
    // As in a `select!` whose other branch is slow.
    assert!(futures_util::poll!(&mut first).is_pending());
    let began = Instant::now();
    let others = join_all((0..10).map(|_| load(&larder, MINUTE, 2))).await;
    assert!(others.iter().all(|value| **value == 2), "one of the waiters has led a new fill");
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    first.await;
}

#[tokio::test(start_paused = true)]
async fn a_value_that_one_process_has_set_is_returned_in_another_until_it_is_removed() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    let outcome = one.read_point().set("a", MINUTE, 7_u32).await;
    assert_eq!(outcome, SetOutcome::Stored);
    settled(&[&one, &two]).await;
    let elsewhere = two.values::<u32>(MINUTE);
    assert_eq!(elsewhere.remaining_ttl("a").await.map(|left| left > MINUTE / 2), Some(true));
    assert_eq!(elsewhere.get("a").await.as_deref(), Some(&7));
    let in_store = elsewhere.clone().with(Policy::ttl(MINUTE).tiers(Tiers::SHARED));
    assert_eq!(in_store.get("a").await.as_deref(), Some(&7), "promotion leaves it in the store");
    let point = two.read_point();
    let _ = one.values::<u32>(MINUTE).remove("a").await;
    settled(&[&one, &two]).await;
    assert_eq!(elsewhere.get("a").await, None);
    assert_eq!(in_store.get("a").await, None);
    let late = point.set("a", MINUTE, 7_u32).await;
    assert_eq!(late, SetOutcome::NotStored(Reason::Overtaken), "removed in another process");
}

/// A store in which one key cannot be read, and that counts its reads.
#[derive(Clone, Debug)]
pub(crate) struct OneBadKey {
    pub(crate) store: MemoryStore,
    pub(crate) reads: Arc<AtomicU32>,
}

impl Store for OneBadKey {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        self.store.get(key)
    }

    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let found = self.store.get_many(keys).await;
            let refused = || Err(StoreError::new(StoreErrorKind::Refused));
            let answer =
                |(key, found): (&&str, _)| if key.contains("bad") { refused() } else { found };
            keys.iter().zip(found).map(answer).collect()
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
}

#[tokio::test(start_paused = true)]
async fn get_many_reads_the_store_once_and_a_key_that_fails_costs_only_its_own_hit() {
    let (log, reads) = (SharedLog::new(), Arc::new(AtomicU32::new(0)));
    let store = OneBadKey { store: MemoryStore::new(), reads: reads.clone() };
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    let point = one.read_point();
    point.set_many(MINUTE, ["a", "bad", "b", "removed"].map(|name| (name, name.to_owned()))).await;
    settled(&[&one, &two]).await;
    let _ = one.invalidate("removed").await;
    settled(&[&one, &two]).await;
    let values = two.values::<String>(MINUTE);
    let names = || values.get_many(["a", "bad", "none", "b", "removed"]);
    let found: Vec<_> =
        names().await.into_iter().map(|value| value.map(|it| it.to_string())).collect();
    assert_eq!(found, [Some("a".into()), None, None, Some("b".into()), None]);
    assert_eq!(reads.load(Ordering::SeqCst), 1, "one round trip for all");
    assert_eq!(two.stats().shared.errors, 1);
    names().await;
    assert_eq!(two.stats().shared.hits, 2, "the found values were promoted");
    let hot = values.get_many(["a", "b"]).await;
    assert_eq!((hot.len(), reads.load(Ordering::SeqCst)), (2, 2), "hits of memory read no store");
}

#[tokio::test(start_paused = true)]
async fn get_many_returns_nothing_that_is_invalidated_while_it_reads_the_store() {
    let (log, store) = (SharedLog::new(), Limited { takes: SECOND / 50, ..Limited::default() });
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    one.read_point().set_many(MINUTE, [("a", 1_u32), ("b", 2)]).await;
    settled(&[&one, &two]).await;
    let values = two.values::<u32>(MINUTE);
    let invalidating = async {
        tokio::time::sleep(SECOND / 100).await;
        let _ = two.invalidate("a").await;
    };
    let (found, ()) = futures_util::join!(values.get_many(["a", "b"]), invalidating);
    let found: Vec<_> = found.iter().map(|value| value.as_deref().copied()).collect();
    assert_eq!(found, [None, Some(2)]);
    assert_eq!(values.get("a").await, None, "nor later");
}

#[tokio::test(start_paused = true)]
async fn one_process_loads_after_the_holder_of_the_fill_lock_dies() {
    let cluster = SimulatedCluster::new(8);
    cluster.synced().await;
    let policy = Policy::ttl(MINUTE).fill_once_per_cluster(2 * SECOND);
    let hanging = |_: LoadHandle| std::future::pending::<Result<u32, Infallible>>();
    let (dead, held) = (cluster.process(0).clone(), policy.clone());
    drop(tokio::spawn(async move { dead.get_or_load("a", held, hanging).await }));
    tokio::time::sleep(SECOND / 10).await;
    let (loads, running, most) = <(Arc<AtomicU32>, Arc<AtomicU32>, Arc<AtomicU32>)>::default();
    let all = (1..8).map(|at| {
        let (larder, policy) = (cluster.process(at).clone(), policy.clone());
        let (loads, running, most) = (loads.clone(), running.clone(), most.clone());
        tokio::spawn(async move {
            let load = move |_: LoadHandle| async move {
                loads.fetch_add(1, Ordering::SeqCst);
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(SECOND).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Infallible>(7)
            };
            *larder.get_or_load("a", policy, load).await.unwrap()
        })
    });
    let began = Instant::now();
    for value in join_all(all.collect::<Vec<_>>()).await {
        assert_eq!(value.unwrap(), 7);
    }
    assert_eq!((loads.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (1, 1));
    assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
}

/// A store that is reachable, and never answers.
#[derive(Clone, Debug, Default)]
struct Frozen {
    asked: Arc<AtomicU32>,
}

impl Store for Frozen {
    fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::pending())
    }

    fn get_many<'a>(
        &'a self,
        _: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>> {
        Box::pin(std::future::pending())
    }

    fn set<'a>(
        &'a self,
        _: &'a str,
        _: Bytes,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(std::future::pending())
    }

    fn replace<'a>(
        &'a self,
        _: &'a str,
        _: Bytes,
        _: Bytes,
        _: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(std::future::pending())
    }

    fn remove<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(std::future::pending())
    }
}

impl FillLocks for Frozen {
    fn take<'a>(
        &'a self,
        _: &'a str,
        _: WriterId,
        _: Duration,
    ) -> BoxFuture<'a, Result<FillLockState, StoreError>> {
        Box::pin(std::future::pending())
    }

    fn give_back<'a>(
        &'a self,
        _: &'a str,
        _: WriterId,
        _: Option<Duration>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn one_request_waits_no_longer_than_its_limit_for_a_store_that_does_not_answer() {
    for limit in [None, Some(5), Some(200)].map(|limit| limit.map(Duration::from_millis)) {
        let (log, store) = (SharedLog::new(), Frozen::default());
        let larder = process(&log, &store, |builder| {
            let builder = builder.fill_locks(store.clone());
            match limit {
                Some(limit) => builder.store_wait_limit(limit),
                None => builder,
            }
        });
        larder.synced().await;
        let limit = limit.unwrap_or(Duration::from_millis(60));
        for _ in 0..3 {
            // A value that nests twenty others, one after the other, each with a fill lock.
            let began = Instant::now();
            let nested = larder.clone();
            let load = move |_: LoadHandle| async move {
                for part in 0..20 {
                    let part_of = move |_: LoadHandle| async move { Ok::<_, Infallible>(part) };
                    let policy =
                        Policy::ttl(MINUTE).fill_once_per_cluster(SECOND).tags([Tag::new("part")]);
                    nested.get_or_load(("part", part), policy, part_of).await.unwrap();
                }
                Ok::<_, Infallible>(1)
            };
            let policy = Policy::ttl(MINUTE).fill_once_per_cluster(SECOND);
            larder.get_or_load("whole", policy, load).await.unwrap();
            let (took, asked) = (began.elapsed(), store.asked.swap(0, Ordering::SeqCst));
            assert!(took <= limit + Duration::from_millis(5), "{limit:?}: {took:?}");
            assert!(asked > 0, "the next request tries again");
            let _logged_or_queued =
                larder.invalidate([Target::name("whole"), Target::tag("part")].to_vec()).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_for_the_store_is_not_written() {
    let store = Limited { max_value_bytes: Some(1_000), ..Limited::default() };
    let log = SharedLog::new();
    let one = process(&log, &store, |builder| builder);
    settled(&[&one]).await;
    let noise =
        |bytes: u32| (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (bytes, written) in [(5_000, 0), (100, 1)] {
        let value: Vec<u8> = noise(bytes);
        assert_eq!(*load(&one, MINUTE, value.clone()).await, value);
        settled(&[&one]).await;
        assert_eq!((store.store.keys().len(), one.stats().shared.too_large), (written, 1));
        let _logged = one.invalidate("a").await;
    }
}
