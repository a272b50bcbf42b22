//! Stale copies survive their process: a new process serves them from the second level by the rules of memory.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use larder::{Invalidation, Larder, Lifetime, Policy, Target, http::ResponseCacheLayer};
use larder_testkit::{MemoryStore, SharedLog};
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::second_level::{process, settled};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A source that can be down, and counts its loads.
#[derive(Clone, Default)]
struct Source {
    is_down: Arc<AtomicBool>,
    loads: Arc<AtomicU32>,
}

impl Source {
    fn is_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    async fn read(self) -> Result<u32, &'static str> {
        let load = self.loads.fetch_add(1, Ordering::SeqCst) + 1;
        if self.is_down.load(Ordering::SeqCst) { Err("down") } else { Ok(load) }
    }

    async fn value(&self, larder: &Larder, policy: Policy) -> Option<u32> {
        let source = self.clone();
        let load = move |_| async move { source.read().await };
        larder.get_or_load("a", policy, load).await.ok().map(|value| *value)
    }

    async fn page(&self, larder: &Larder, layer: ResponseCacheLayer) -> (u16, String) {
        let _ = larder;
        let source = self.clone();
        let inner = service_fn(move |_: Request<Full<Bytes>>| {
            let source = source.clone();
            async move {
                let response = Response::builder().header("vary", "accept-language");
                Ok::<_, Infallible>(match source.read().await {
                    Ok(load) => response.body(Full::from(load.to_string())).unwrap(),
                    Err(_) => response.status(503).body(Full::from("down")).unwrap(),
                })
            }
        });
        let request =
            Request::get("/").header("host", "shop.example").body(Full::default()).unwrap();
        let response = layer.layer(inner).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

struct Cluster {
    log: SharedLog,
    store: MemoryStore,
}

impl Cluster {
    fn new() -> Self {
        Self { log: SharedLog::new(), store: MemoryStore::new() }
    }

    /// A process that starts now.
    async fn start(&self) -> Larder {
        let larder = process(&self.log, &self.store, |builder| builder);
        settled(&[&larder]).await;
        larder
    }
}

fn policy(lifetime: Lifetime, locks: bool) -> Policy {
    let policy = Policy::from(lifetime);
    if locks { policy.fill_once_per_cluster(SECOND) } else { policy }
}

#[tokio::test(start_paused = true)]
async fn a_new_process_serves_a_stale_value_while_it_refreshes() {
    for locks in [false, true] {
        let (cluster, source) = (Cluster::new(), Source::default());
        let lifetime = Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE);
        let policy = || policy(lifetime, locks);
        let first = cluster.start().await;
        assert_eq!(source.value(&first, policy()).await, Some(1));
        settled(&[&first]).await;
        drop(first);
        tokio::time::sleep(MINUTE + SECOND).await;
        let second = cluster.start().await;
        assert_eq!(source.value(&second, policy()).await, Some(1), "stale, locks: {locks}");
        settled(&[&second]).await;
        assert_eq!(source.loads.load(Ordering::SeqCst), 2, "one refresh");
        assert_eq!(source.value(&second, policy()).await, Some(2));
        tokio::time::sleep(3 * MINUTE).await;
        let third = cluster.start().await;
        assert_eq!(source.value(&third, policy()).await, Some(3), "the window is over");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_process_serves_a_stale_value_while_its_source_is_down() {
    for (what, invalidation, survives) in [
        ("nothing", None, true),
        ("another name", Some(Invalidation::of(["b"])), true),
        ("the name", Some(Invalidation::of(["a"])), false),
        ("everything", Some(Target::everything().into()), false),
    ] {
        let (cluster, source) = (Cluster::new(), Source::default());
        let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(10 * MINUTE);
        let value = async |larder: &Larder| source.value(larder, lifetime.into()).await;
        let first = cluster.start().await;
        value(&first).await;
        settled(&[&first]).await;
        if let Some(invalidation) = invalidation {
            let _ = first.invalidate(invalidation).await;
        }
        settled(&[&first]).await;
        drop(first);
        tokio::time::sleep(2 * MINUTE).await;
        source.is_down(true);
        let second = cluster.start().await;
        assert_eq!(value(&second).await, survives.then_some(1), "{what}");
        assert_eq!(value(&second).await, survives.then_some(1), "{what}, again");
        tokio::time::sleep(10 * MINUTE).await;
        assert_eq!(value(&second).await, None, "the window is over");
        let third = cluster.start().await;
        assert_eq!(value(&third).await, None, "the window is over");
    }
}

/// A stale copy that was read before an invalidation does not come back after it.
#[tokio::test(start_paused = true)]
async fn a_refresh_of_a_stale_copy_has_the_stamp_from_before_its_lookup() {
    let (cluster, source) = (Cluster::new(), Source::default());
    let lifetime = Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE);
    let first = cluster.start().await;
    source.value(&first, lifetime.into()).await;
    settled(&[&first]).await;
    tokio::time::sleep(MINUTE + SECOND).await;
    let second = cluster.start().await;
    let (began, go) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (reading, gate) = (began.clone(), go.clone());
    let load = move |_| async move {
        reading.notify_one();
        gate.notified().await;
        Ok::<u32, &'static str>(7)
    };
    assert_eq!(*second.get_or_load("a", lifetime, load).await.unwrap(), 1);
    began.notified().await;
    let _ = second.invalidate("a").await;
    go.notify_one();
    settled(&[&second]).await;
    assert_eq!(source.value(&second, lifetime.into()).await, Some(2), "neither 1 nor 7");
}

#[tokio::test(start_paused = true)]
async fn a_batch_serves_stale_copies_and_refreshes_them_by_one_call() {
    let cluster = Cluster::new();
    let lifetime = Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE);
    let calls = Arc::new(AtomicU32::new(0));
    let get = async |larder: &Larder| {
        let calls = calls.clone();
        let load = move |missing: larder::values::Missing<u32>| {
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                let names = missing.into_names().into_iter();
                Ok::<_, Infallible>(names.map(|name| (name, call)).collect::<Vec<_>>())
            }
        };
        let found = larder.values::<u32>(lifetime).get_or_load_many([1, 2], load).await.unwrap();
        found.iter().map(|value| **value.as_ref().unwrap()).collect::<Vec<_>>()
    };
    let first = cluster.start().await;
    assert_eq!(get(&first).await, [1, 1]);
    settled(&[&first]).await;
    tokio::time::sleep(MINUTE + SECOND).await;
    let second = cluster.start().await;
    assert_eq!(get(&second).await, [1, 1]);
    settled(&[&second]).await;
    assert_eq!(get(&second).await, [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_new_process_serves_a_stale_response_while_it_refreshes_or_its_origin_is_down() {
    for revalidates in [true, false] {
        let (cluster, source) = (Cluster::new(), Source::default());
        let layer = |larder: &Larder| {
            let layer = ResponseCacheLayer::new(larder).ttl(MINUTE);
            match revalidates {
                true => layer.stale_while_revalidate(MINUTE),
                false => layer.stale_if_error(MINUTE),
            }
        };
        let first = cluster.start().await;
        assert_eq!(source.page(&first, layer(&first)).await.1, "1");
        settled(&[&first]).await;
        drop(first);
        tokio::time::sleep(MINUTE + SECOND).await;
        source.is_down(!revalidates);
        let second = cluster.start().await;
        assert_eq!(source.page(&second, layer(&second)).await, (200, "1".into()), "{revalidates}");
        settled(&[&second]).await;
        let expected = if revalidates { "2" } else { "1" };
        assert_eq!(source.page(&second, layer(&second)).await.1, expected);
        let _ = second.invalidate(Target::path("/")).await;
        source.is_down(true);
        assert_eq!(source.page(&second, layer(&second)).await.0, 503, "nothing after it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_ahead_takes_what_another_process_has_refreshed() {
    let (cluster, source) = (Cluster::new(), Source::default());
    let policy = || Policy::ttl(MINUTE).refresh_ahead(0.5);
    let [one, two] = [cluster.start().await, cluster.start().await];
    for larder in [&one, &two] {
        assert_eq!(source.value(larder, policy()).await, Some(1));
        settled(&[larder]).await;
    }
    let page = |larder: &Larder| ResponseCacheLayer::new(larder).ttl(MINUTE).refresh_ahead(0.5);
    for larder in [&one, &two] {
        assert_eq!(source.page(larder, page(larder)).await.1, "2");
        settled(&[larder]).await;
    }
    tokio::time::sleep(MINUTE / 3 * 2).await;
    for larder in [&one, &two] {
        assert_eq!(source.value(larder, policy()).await, Some(1));
        settled(&[larder]).await;
        assert_eq!(source.page(larder, page(larder)).await.1, "2");
        settled(&[larder]).await;
    }
    assert_eq!(source.loads.load(Ordering::SeqCst), 4, "one refresh each, of the first process");
    assert_eq!(source.value(&two, policy()).await, Some(3));
    assert_eq!(source.page(&two, page(&two)).await.1, "4");
}

/// A stale copy of the store must not displace a newer entry of memory.
#[tokio::test(start_paused = true)]
async fn an_older_copy_of_the_store_does_not_replace_a_newer_value_of_memory() {
    let (cluster, source) = (Cluster::new(), Source::default());
    let lifetime = Lifetime::fresh_for(10 * MINUTE).stale_if_error(60 * MINUTE);
    let larder = cluster.start().await;
    assert_eq!(source.value(&larder, lifetime.into()).await, Some(1));
    settled(&[&larder]).await;
    tokio::time::sleep(5 * MINUTE).await;
    // The newer value is in memory alone.
    let reload = Policy::from(lifetime).max_age(MINUTE).tiers(larder::Tiers::MEMORY);
    assert_eq!(source.value(&larder, reload).await, Some(2));
    let _ = larder.invalidate("something else").await;
    settled(&[&larder]).await;
    tokio::time::sleep(2 * MINUTE).await;
    source.is_down(true);
    // This call reads the store, whose copy is older.
    let strict = Policy::from(lifetime).max_age(MINUTE);
    assert_eq!(source.value(&larder, strict).await, None, "the policy allows neither value");
    assert_eq!(source.value(&larder, lifetime.into()).await, Some(2), "the newer one stays");
}

#[tokio::test(start_paused = true)]
async fn refreshes_that_fail_pause_although_the_store_has_the_value() {
    let (cluster, source) = (Cluster::new(), Source::default());
    let policy = || Policy::ttl(60 * MINUTE).refresh_ahead(0.9);
    let larder = cluster.start().await;
    source.value(&larder, policy()).await;
    settled(&[&larder]).await;
    source.is_down(true);
    tokio::time::sleep(7 * MINUTE).await;
    for _ in 0..64 {
        assert_eq!(source.value(&larder, policy()).await, Some(1));
        tokio::time::sleep(SECOND).await;
    }
    let loads = source.loads.load(Ordering::SeqCst);
    assert!((5..9).contains(&loads), "a minute of pauses that double: {loads}");
}

#[tokio::test(start_paused = true)]
async fn a_new_process_with_a_fill_lock_serves_a_stale_value_if_its_first_load_fails() {
    let (cluster, source) = (Cluster::new(), Source::default());
    let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(10 * MINUTE);
    let first = cluster.start().await;
    source.value(&first, policy(lifetime, true)).await;
    settled(&[&first]).await;
    drop(first);
    tokio::time::sleep(2 * MINUTE).await;
    source.is_down(true);
    let second = cluster.start().await;
    assert_eq!(source.value(&second, policy(lifetime, true)).await, Some(1));
}
