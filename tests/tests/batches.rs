//! Batches, negative results and codecs with a second level.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use larder::{
    Larder, Policy,
    values::{Json, Missing, Values},
};
use larder_testkit::{MemoryStore, SharedLog, SimulatedCluster};

use crate::second_level::{OneBadKey, process, settled};

const MINUTE: Duration = Duration::from_secs(60);

/// The names of each call of the loader.
type Loads = Arc<Mutex<Vec<Vec<&'static str>>>>;

/// Loads the length of each name but `none`, which has no value.
async fn lengths(
    larder: &Larder,
    policy: impl Into<Policy>,
    loads: &Loads,
    names: &[&'static str],
) -> Vec<Option<usize>> {
    let loads = loads.clone();
    let load = move |missing: Missing<&'static str>| {
        let loads = loads.clone();
        async move {
            loads.lock().unwrap().push(missing.names().to_vec());
            tokio::time::sleep(Duration::from_millis(100)).await;
            let names = missing.into_names().into_iter().filter(|name| *name != "none");
            Ok::<_, Infallible>(names.map(|name| (name, name.len())).collect::<Vec<_>>())
        }
    };
    let values = larder.values::<usize>(policy);
    let found = values.get_or_load_many(names.iter().copied(), load).await.unwrap();
    found.iter().map(|value| value.as_deref().copied()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_reads_the_store_once_and_loads_only_what_no_process_has() {
    let (log, reads) = (SharedLog::new(), Arc::new(AtomicU32::new(0)));
    let store = OneBadKey { store: MemoryStore::new(), reads: reads.clone() };
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    let loads = Loads::default();
    assert_eq!(
        lengths(&one, MINUTE, &loads, &["a", "none", "bad"]).await,
        [Some(1), None, Some(3)]
    );
    settled(&[&one, &two]).await;
    reads.store(0, Ordering::SeqCst);
    let found = lengths(&two, MINUTE, &loads, &["bad", "none", "a", "long"]).await;
    assert_eq!(found, [Some(3), None, Some(1), Some(4)]);
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    let (first, second) = (vec!["a", "none", "bad"], vec!["bad", "long"]);
    assert_eq!(
        *loads.lock().unwrap(),
        [first, second],
        "the key that cannot be read costs its own hit"
    );
    assert_eq!(two.stats().shared.hits, 2, "one of them the record that `none` has no value");
}

#[tokio::test(start_paused = true)]
async fn a_negative_result_of_another_process_falls_with_an_invalidation() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    let find = async |larder: &Larder, row: Option<u32>| {
        let load = move |_| async move { Ok::<_, Infallible>(row) };
        let found = larder.values::<u32>(MINUTE).get_or_load_optional(("user", 7), load).await;
        found.unwrap().as_deref().copied()
    };
    assert_eq!(find(&one, None).await, None);
    settled(&[&one, &two]).await;
    assert_eq!(find(&two, Some(1)).await, None, "of the store");
    assert_eq!(two.stats().shared.hits, 1);
    let _ = one.invalidate(("user", 7)).await;
    settled(&[&one, &two]).await;
    assert_eq!(find(&two, Some(1)).await, Some(1));
    settled(&[&one, &two]).await;
    assert_eq!(find(&one, None).await, Some(1), "the value has replaced the negative result");
}

/// A caller that needs a value does not take a negative result for one.
#[tokio::test(start_paused = true)]
async fn a_negative_result_of_the_store_is_a_miss_for_a_caller_that_needs_a_value() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    let none = |_| async { Ok::<Option<u32>, Infallible>(None) };
    one.values::<u32>(MINUTE).get_or_load_optional("a", none).await.unwrap();
    settled(&[&one, &two]).await;
    let load = |_| async { Ok::<u32, Infallible>(7) };
    assert_eq!(*two.get_or_load("a", MINUTE, load).await.unwrap(), 7);
    assert_eq!(two.values::<u32>(MINUTE).get("a").await.as_deref(), Some(&7));
}

/// Two processes, each of which leads a name whose fill lock the other waits for.
#[tokio::test(start_paused = true)]
async fn batches_of_two_processes_load_each_name_once_per_cluster_and_do_not_wait_in_a_circle() {
    let cluster = SimulatedCluster::new(3);
    cluster.synced().await;
    let (loads, policy) = (Loads::default(), Policy::ttl(MINUTE).fill_once_per_cluster(MINUTE));
    let batches: [&[&str]; 3] = [&["a", "bb", "ccc"], &["ccc", "bb", "dddd"], &["dddd", "a"]];
    let all = batches.iter().zip(cluster.processes()).map(|(names, larder)| {
        let (larder, policy, loads) = (larder.clone(), policy.clone(), loads.clone());
        async move { lengths(&larder, policy, &loads, names).await }
    });
    let found = tokio::time::timeout(MINUTE / 2, join_all(all)).await.unwrap();
    assert_eq!(found[1], [Some(3), Some(2), Some(4)]);
    let mut loaded: Vec<_> = loads.lock().unwrap().iter().flatten().copied().collect();
    loaded.sort_unstable();
    assert_eq!(loaded, ["a", "bb", "ccc", "dddd"]);
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_another_codec_is_a_miss_and_memory_serves_both() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    let json = |larder| Values::<Vec<String>>::with_codec::<Json>(larder, MINUTE);
    let packed = |larder: &Larder| larder.values::<Vec<String>>(MINUTE);
    json(&one).set(&one.read_point(), "a", vec!["Ada".to_owned()]).await;
    settled(&[&one, &two]).await;
    assert_eq!(packed(&two).get("a").await, None, "MessagePack");
    assert_eq!(json(&two).get("a").await.as_deref(), Some(&vec!["Ada".to_owned()]));
    assert!(packed(&two).get("a").await.is_some(), "the first level does not encode");
    let _ = two.invalidate("a").await;
    settled(&[&one, &two]).await;
    assert_eq!(json(&one).get("a").await, None);
}

#[tokio::test(start_paused = true)]
async fn values_that_stay_in_the_process_are_not_written_to_the_store() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let larder = process(&log, &store, |builder| builder);
    settled(&[&larder]).await;
    let values = Values::<std::time::Instant>::local(&larder, MINUTE);
    values.set(&larder.read_point(), "a", std::time::Instant::now()).await;
    settled(&[&larder]).await;
    assert!(values.get("a").await.is_some());
    assert!(store.keys().is_empty());
    assert_eq!(larder.stats().shared.writes, 0);
}
