//! Level placement, and fill locks: one process fills for all.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use larder::{
    Invalidated, Invalidation, Larder, LarderBuilder, Lifetime, LoadHandle, Policy, SealingKeys,
    Tiers, http::ResponseCacheLayer,
};
use larder_testkit::{NetworkConditions, SeededRng, SimulatedCluster};
use tokio::time::Instant;
use tower::{Layer as _, ServiceExt as _, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

async fn cluster(options: impl Fn(LarderBuilder) -> LarderBuilder) -> SimulatedCluster {
    let cluster = SimulatedCluster::under(&NetworkConditions::calm(), 3, options);
    cluster.synced().await;
    cluster
}

async fn load(larder: &Larder, policy: Policy, value: u32) -> u32 {
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
    *larder.get_or_load("a", policy, load).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_entry_for_one_level_is_in_no_other() {
    let cluster = cluster(|builder| builder).await;
    let policy = |tiers| Policy::ttl(MINUTE).tag("t").tiers(tiers);
    assert_eq!(load(cluster.process(0), policy(Tiers::MEMORY), 1).await, 1);
    cluster.settled().await;
    assert!(cluster.store().keys().is_empty());
    assert_eq!(load(cluster.process(0), policy(Tiers::MEMORY), 2).await, 1);

    let _logged = cluster.process(0).invalidate("t").await;
    cluster.settled().await;
    assert_eq!(load(cluster.process(0), policy(Tiers::SHARED), 3).await, 3);
    cluster.settled().await;
    for process in 0..3 {
        let hits = cluster.process(process).stats().shared.hits;
        assert_eq!(load(cluster.process(process), policy(Tiers::SHARED), 4).await, 3);
        assert_eq!(load(cluster.process(process), policy(Tiers::SHARED), 4).await, 3);
        assert_eq!(cluster.process(process).stats().shared.hits, hits + 2, "each from the store");
    }
    let _logged = cluster.process(1).invalidate("t").await;
    assert_eq!(load(cluster.process(1), policy(Tiers::SHARED), 5).await, 5);
}

#[tokio::test(start_paused = true)]
async fn each_level_has_a_lifetime_of_its_own() {
    let cluster = cluster(|builder| builder).await;
    let policy = || Policy::ttl(10 * MINUTE).tiers(Tiers::BOTH.memory_for(MINUTE));
    assert_eq!(load(cluster.process(0), policy(), 1).await, 1);
    cluster.settled().await;
    let hits = |process: usize| cluster.process(process).stats().shared.hits;
    for minutes in 1..6 {
        tokio::time::sleep(MINUTE).await;
        for _ in 0..3 {
            assert_eq!(load(cluster.process(0), policy(), 2).await, 1);
        }
        assert_eq!(hits(0), minutes, "once a minute it is fetched again");
    }
    tokio::time::sleep(5 * MINUTE).await;
    assert_eq!(load(cluster.process(0), policy(), 3).await, 3, "its own lifetime is not prolonged");
    cluster.settled().await;
    let short = || Policy::ttl(10 * MINUTE).name("b").tiers(Tiers::BOTH.shared_for(MINUTE));
    let _logged = cluster.process(0).clear().await;
    cluster.settled().await;
    assert_eq!(load(cluster.process(0), short(), 4).await, 4);
    cluster.settled().await;
    assert_eq!(load(cluster.process(1), short(), 5).await, 4);
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!(load(cluster.process(0), short(), 6).await, 4, "memory still has it");
    assert_eq!(load(cluster.process(2), short(), 7).await, 7, "the store has not");
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_requires_sealing_reaches_no_store_without_a_key() {
    let open = cluster(|builder| builder).await;
    let larder = open.process(0).clone();
    let require = || ResponseCacheLayer::new(&larder).require_sealing();
    let unsealed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(require));
    let refused = *unsealed.unwrap_err().downcast::<&str>().unwrap();
    assert!(refused.contains("LarderBuilder::seal_with"), "{refused}");
    let sealed = cluster(|builder| builder.seal_with(SealingKeys::new([7; 32]))).await;
    let policy = Policy::ttl(MINUTE).require_sealing();
    assert_eq!(load(sealed.process(0), policy.clone(), 1).await, 1);
    sealed.settled().await;
    assert_eq!(sealed.store().keys().len(), 1);
    assert_eq!(load(sealed.process(1), policy.clone(), 2).await, 1);
    // The same policy with a larder without a key.
    assert_eq!(load(open.process(0), policy, 3).await, 3);
    open.settled().await;
    assert!(open.store().keys().is_empty());
    // Without a store nothing leaves the process, so nothing is refused.
    let alone = Larder::builder().tag_table_slots(1 << 10).build().unwrap();
    assert!(!alone.kernel().has_store());
    drop(ResponseCacheLayer::new(&alone).require_sealing());
}

#[tokio::test(start_paused = true)]
async fn two_types_under_one_name_do_not_read_each_other() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Old {
        price: u32,
    }
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct New {
        price: u64,
    }
    let cluster = cluster(|builder| builder).await;
    let policy = || Policy::ttl(MINUTE).tag("t");
    for round in 0..2 {
        let old = |_: LoadHandle| async { Ok::<_, Infallible>(Old { price: 1 }) };
        let new = |_: LoadHandle| async { Ok::<_, Infallible>(New { price: 2 }) };
        // The two versions of an application in a rolling deploy, one after the other.
        assert_eq!(cluster.process(0).get_or_load("a", policy(), old).await.unwrap().price, 1);
        assert_eq!(cluster.process(1).get_or_load("a", policy(), new).await.unwrap().price, 2);
        cluster.settled().await;
        let shared = cluster.process(1).stats().shared;
        assert_eq!((shared.corrupt, cluster.store().keys().len()), (0, 2), "each has its own");
        let again = |_: LoadHandle| async { Ok::<_, Infallible>(New { price: 3 }) };
        let third = cluster.process(2).get_or_load("a", policy(), again).await.unwrap();
        assert_eq!(third.price, 2, "{round}: a third process reads its own");
        let _logged = cluster.process(0).invalidate("t").await;
        cluster.settled().await;
        let after = |_: LoadHandle| async { Ok::<_, Infallible>(New { price: 4 }) };
        let after = cluster.process(2).get_or_load("a", policy(), after).await.unwrap();
        assert_eq!(after.price, 4, "an invalidation reaches both");
        let _logged = cluster.process(0).invalidate("t").await;
        cluster.settled().await;
    }
}

/// Counts calls of a slow loader.
#[derive(Clone, Default)]
struct WriterId(Arc<AtomicU32>);

impl WriterId {
    async fn load(self, larder: Larder, policy: Policy) -> Result<u32, String> {
        let calls = self.0;
        let load = move |_: LoadHandle| async move {
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(SECOND).await;
            Ok::<_, String>(call)
        };
        larder.get_or_load("a", policy, load).await.map(|value| *value).map_err(|e| e.to_string())
    }

    fn calls(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

async fn all_at_once(cluster: &SimulatedCluster, origin: &WriterId, policy: &Policy) -> Vec<u32> {
    let loads = (0..30).map(|number| {
        let larder = cluster.process(number % 3).clone();
        tokio::spawn(origin.clone().load(larder, policy.clone()))
    });
    let loads: Vec<_> = loads.collect();
    let mut values = Vec::new();
    for load in loads {
        values.push(load.await.unwrap().unwrap());
    }
    values
}

#[tokio::test(start_paused = true)]
async fn one_process_loads_for_all() {
    let cluster = cluster(|builder| builder).await;
    let policy = Policy::ttl(MINUTE).tag("t").fill_once_per_cluster(10 * SECOND);
    let origin = WriterId::default();
    assert_eq!(all_at_once(&cluster, &origin, &policy).await, [1; 30]);
    assert_eq!(origin.calls(), 1);
    let _logged = cluster.process(1).invalidate("t").await;
    cluster.settled().await;
    assert_eq!(all_at_once(&cluster, &origin, &policy).await, [2; 30]);
    assert_eq!(origin.calls(), 2);
    // Without the fill lock each process loads for itself.
    let _logged = cluster.process(1).invalidate("t").await;
    cluster.settled().await;
    all_at_once(&cluster, &origin, &Policy::ttl(MINUTE).tag("t")).await;
    assert_eq!(origin.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn the_next_holder_of_a_fill_lock_finds_the_entry() {
    // Writes take a while to arrive, so a fill lock must not be released before them.
    for seed in 0..300 {
        let longest = Duration::from_millis(20);
        let weather = NetworkConditions { dice: SeededRng::new(seed), failing_percent: 0, longest };
        let cluster = SimulatedCluster::under(&weather, 3, |builder| builder);
        cluster.synced().await;
        let policy = Policy::ttl(MINUTE).fill_once_per_cluster(10 * SECOND);
        let origin = WriterId::default();
        assert_eq!(all_at_once(&cluster, &origin, &policy).await, [1; 30], "{seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_process_refreshes_for_all() {
    let cluster = cluster(|builder| builder).await;
    let lifetime = Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE);
    let policy = Policy::from(lifetime).fill_once_per_cluster(10 * SECOND);
    let origin = WriterId::default();
    all_at_once(&cluster, &origin, &policy).await;
    tokio::time::sleep(MINUTE).await;
    let began = Instant::now();
    assert_eq!(all_at_once(&cluster, &origin, &policy).await, [1; 30], "no request waits");
    assert!(began.elapsed() < SECOND / 2);
    cluster.settled().await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(origin.calls(), 2, "one refresh for all three");
    assert_eq!(all_at_once(&cluster, &origin, &policy).await, [2; 30]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_holder_of_a_fill_lock_delays_others_by_its_expiry_at_most() {
    let cluster = cluster(|builder| builder).await;
    let policy = Policy::ttl(MINUTE).fill_once_per_cluster(5 * SECOND);
    let origin = WriterId::default();
    // The process takes the fill lock, and never completes its fill.
    let hanging = |_: LoadHandle| std::future::pending::<Result<u32, String>>();
    let dead = cluster.process(0).clone();
    let held = policy.clone();
    drop(tokio::spawn(async move { dead.get_or_load("a", held, hanging).await }));
    tokio::time::sleep(SECOND / 10).await;
    let began = Instant::now();
    let value = origin.clone().load(cluster.process(1).clone(), policy.clone()).await.unwrap();
    assert_eq!(value, 1);
    let delayed = began.elapsed() - SECOND;
    assert!(delayed <= Duration::from_millis(5300), "{delayed:?}");
}

#[tokio::test(start_paused = true)]
async fn no_process_waits_for_a_fill_that_is_not_storable_or_fails() {
    let cluster = cluster(|builder| builder).await;
    let policy = || Policy::ttl(MINUTE).fill_once_per_cluster(30 * SECOND);
    let slow = |larder: Larder, outcome: Result<u32, String>| async move {
        let load = move |fill: LoadHandle| async move {
            tokio::time::sleep(SECOND).await;
            fill.no_store();
            outcome
        };
        drop(larder.get_or_load("a", policy(), load).await);
    };
    for outcome in [Ok(1), Err("no".to_owned())] {
        let began = Instant::now();
        let [a, b, c] = [0, 1, 2].map(|process| cluster.process(process).clone());
        tokio::join!(slow(a, outcome.clone()), slow(b, outcome.clone()), slow(c, outcome));
        // After a fill that is not storable the others load together, after an error one after the other.
        assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn one_process_renders_a_page_for_all() {
    let cluster = cluster(|builder| builder).await;
    let calls = Arc::new(AtomicU32::new(0));
    let pages = cluster.processes().iter().map(|larder| {
        let calls = calls.clone();
        let layer = ResponseCacheLayer::new(larder).ttl(MINUTE).fill_once_per_cluster(10 * SECOND);
        layer.layer(service_fn(move |_: Request<Full<Bytes>>| {
            let calls = calls.clone();
            async move {
                let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::time::sleep(SECOND).await;
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(call.to_string())))
            }
        }))
    });
    let pages: Vec<_> = pages.collect();
    let ask = async |page: usize| {
        let request = Request::builder().uri("http://a.example/").body(Full::default()).unwrap();
        let answer = pages[page].clone().oneshot(request).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes()
    };
    let answers = tokio::join!(ask(0), ask(1), ask(2), ask(1), ask(2));
    assert_eq!(answers, ("1".into(), "1".into(), "1".into(), "1".into(), "1".into()));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_invalidation_outlives_its_process() {
    let cluster = cluster(|builder| builder).await;
    let policy = || Policy::ttl(10 * MINUTE).tag("t");
    assert_eq!(load(cluster.process(1), policy(), 1).await, 1);
    let later = Invalidation::from("t").after(MINUTE);
    assert_eq!(cluster.process(0).invalidate(later).await, Invalidated::Scheduled);
    // The process that scheduled it is gone.
    cluster.cut_off(0);
    tokio::time::sleep(MINUTE - SECOND).await;
    assert_eq!(load(cluster.process(1), policy(), 2).await, 1, "not before its time");
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(load(cluster.process(1), policy(), 3).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_invalidation_survives_replacement_of_the_log() {
    let cluster = cluster(|builder| builder).await;
    let policy = || Policy::ttl(10 * MINUTE).tag("t");
    cluster.cut_off(0);
    let later = Invalidation::from("t").after(2 * MINUTE);
    assert_eq!(
        cluster.process(0).invalidate(later).await,
        Invalidated::Queued,
        "the log is out of reach"
    );
    cluster.rejoin(0);
    tokio::time::sleep(10 * SECOND).await;
    cluster.log().replace();
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(load(cluster.process(1), policy(), 1).await, 1);
    cluster.cut_off(0);
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!(load(cluster.process(1), policy(), 2).await, 2);
}
