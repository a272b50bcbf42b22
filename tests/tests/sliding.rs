//! Sliding and extended lifetimes in several processes.

use std::time::Duration;

use larder::{Larder, Policy, Tiers, values::Values};
use larder_testkit::{MemoryStore, SharedLog};

use crate::second_level::{process, settled};

const MINUTE: Duration = Duration::from_secs(60);

async fn two() -> (MemoryStore, [Larder; 2]) {
    let (store, [one, two, _]) = three().await;
    (store, [one, two])
}

async fn three() -> (MemoryStore, [Larder; 3]) {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let larders = [1, 2, 3].map(|_| process(&log, &store, |builder| builder));
    settled(&[&larders[0], &larders[1], &larders[2]]).await;
    (store, larders)
}

async fn get(larder: &Larder, values: &Values<u32>) -> Option<u32> {
    let value = values.get("a").await.as_deref().copied();
    settled(&[larder]).await;
    value
}

#[tokio::test(start_paused = true)]
async fn a_read_in_one_process_keeps_a_sliding_value_alive_in_another() {
    for tiers in [Tiers::BOTH, Tiers::SHARED] {
        let (_, [one, two]) = two().await;
        let policy = Policy::ttl(100 * MINUTE).sliding(10 * MINUTE).tiers(tiers);
        let [first, second] = [&one, &two].map(|larder| larder.values::<u32>(policy.clone()));
        first.set(&one.read_point(), "a", 1).await;
        settled(&[&one]).await;
        for _ in 0..3 {
            tokio::time::sleep(8 * MINUTE).await;
            assert_eq!(get(&one, &first).await, Some(1));
        }
        tokio::time::sleep(8 * MINUTE).await;
        assert_eq!(get(&two, &second).await, Some(1), "the store knows of the reads, {tiers:?}");
        tokio::time::sleep(12 * MINUTE).await;
        assert_eq!((get(&one, &first).await, get(&two, &second).await), (None, None), "idle");
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_is_written_at_most_once_a_minute() {
    let (store, [one, _]) = two().await;
    let values = one.values::<u32>(Policy::ttl(100 * MINUTE).sliding(10 * MINUTE));
    values.set(&one.read_point(), "a", 1).await;
    settled(&[&one]).await;
    let bytes = async || {
        use larder::store::Store as _;
        let keys = store.keys();
        store.get(keys.first().unwrap()).await.unwrap().unwrap()
    };
    let mut versions = vec![bytes().await];
    let began = tokio::time::Instant::now();
    while began.elapsed() < 5 * MINUTE {
        tokio::time::sleep(MINUTE / 60).await;
        assert!(values.get("a").await.is_some());
        settled(&[&one]).await;
        let now = bytes().await;
        if versions.last() != Some(&now) {
            versions.push(now);
        }
    }
    assert!((4..=6).contains(&versions.len()), "{}", versions.len());
}

#[tokio::test(start_paused = true)]
async fn an_extension_replaces_only_the_entry_that_it_read() {
    let (_, [one, two, three]) = three().await;
    let [first, second] = [&one, &two].map(|larder| larder.values::<u32>(5 * MINUTE));
    first.set(&one.read_point(), "a", 1).await;
    settled(&[&one, &two]).await;
    tokio::time::sleep(2 * MINUTE).await;
    // Another process replaces the entry in the store, without an invalidation.
    second.set(&two.read_point(), "a", 2).await;
    settled(&[&one, &two]).await;
    assert!(first.extend("a", 20 * MINUTE).await.is_some());
    settled(&[&one, &two]).await;
    let in_store = three.values::<u32>(Policy::ttl(MINUTE).tiers(Tiers::SHARED));
    assert_eq!(in_store.get("a").await.as_deref(), Some(&2), "the other entry is still there");
    assert!(in_store.remaining_ttl("a").await < Some(5 * MINUTE));
}

#[tokio::test(start_paused = true)]
async fn an_extension_reaches_another_process_and_an_invalidation_ends_it_there() {
    let (_, [one, two]) = two().await;
    let [first, second] = [&one, &two].map(|larder| larder.values::<u32>(5 * MINUTE));
    first.set(&one.read_point(), "a", 1).await;
    settled(&[&one]).await;
    tokio::time::sleep(2 * MINUTE).await;
    first.extend("a", 20 * MINUTE).await.unwrap();
    settled(&[&one, &two]).await;
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(second.get("a").await.as_deref(), Some(&1));
    let _ = one.invalidate("a").await;
    settled(&[&one, &two]).await;
    assert_eq!((first.get("a").await, second.get("a").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_shorter_lifetime_reaches_the_store_at_once() {
    let (_, [one, two, _]) = three().await;
    let [first, second] = [&one, &two].map(|larder| larder.values::<u32>(60 * MINUTE));
    first.set(&one.read_point(), "a", 1).await;
    settled(&[&one]).await;
    first.extend("a", MINUTE).await.unwrap();
    settled(&[&one]).await;
    assert!(second.remaining_ttl("a").await <= Some(MINUTE));
    tokio::time::sleep(MINUTE).await;
    assert_eq!((first.get("a").await, second.get("a").await), (None, None));
}
