//! A shadow compares hits with the responses of the handler, and has no effect.

use larder_core::{Invalidation, ObservedHits, Policy, Target};

use super::*;
use crate::invalidation::PendingInvalidations;

fn observed(larder: &Larder) -> ObservedHits {
    let stats = larder.stats();
    stats.cache("responses").unwrap().observed.get("unmatched").copied().unwrap_or_default()
}

async fn settle() {
    tokio::time::sleep(MINUTE / 2).await;
}

fn always(larder: &Larder) -> ResponseCacheLayer {
    ResponseCacheLayer::new(larder).ttl(100 * MINUTE).shadow(1.0)
}

#[tokio::test(start_paused = true)]
async fn hits_are_compared_by_their_kind_and_the_client_gets_the_hit() {
    let version = Arc::new(AtomicUsize::new(1));
    let larder = larder();
    let current = Arc::clone(&version);
    let origin = Origin::new(always(&larder), move |_, _| {
        Response::new(text(current.load(Ordering::SeqCst).to_string()))
    });
    origin.get("/").await;
    origin.get("/").await;
    settle().await;
    assert_eq!((observed(&larder).same, origin.calls()), (1, 2));
    version.store(2, Ordering::SeqCst);
    let (status, content) = origin.get("/").await;
    assert!(
        status.contains("hit") && content == "1",
        "the client gets the hit: {status} {content}"
    );
    settle().await;
    assert_eq!(observed(&larder).stale, 1);
    assert_eq!(
        larder.stats().cache("responses").unwrap().total.stored,
        1,
        "a shadow stores nothing"
    );

    let larder = self::larder();
    let by_user = Origin::new(always(&larder).shared(), |request, _| {
        let user = request.headers().get("cookie").map_or("nobody", |it| it.to_str().unwrap());
        Response::new(text(user.to_owned()))
    });
    by_user.get("/").await;
    let hit = by_user.send(request("/").header("cookie", "ada")).await;
    assert_eq!(read(hit).await.1, "nobody");
    settle().await;
    assert_eq!(observed(&larder).differs_by_user, 1);

    let larder = self::larder();
    let random = Origin::new(always(&larder), numbered);
    for _ in 0..4 {
        random.get("/").await;
        settle().await;
    }
    let hits = observed(&larder);
    assert_eq!(
        (hits.stale, hits.not_deterministic),
        (1, 2),
        "the first difference could be a change"
    );
}

/// Rule: its scope neither stores nor invalidates nor emits.
#[tokio::test(start_paused = true)]
async fn a_shadow_stores_invalidates_and_emits_nothing() {
    #[derive(Clone, Debug)]
    struct Happened;
    let emitted = Arc::new(AtomicUsize::new(0));
    let loaded = Arc::new(AtomicUsize::new(0));
    let larder = larder();
    let counted = Arc::clone(&emitted);
    larder.on(move |_: &Happened| {
        counted.fetch_add(1, Ordering::SeqCst);
        Invalidation::from(Target::tag("event"))
    });
    let (in_handler, loads) = (larder.clone(), Arc::clone(&loaded));
    let calls = Arc::new(AtomicUsize::new(0));
    let in_shadow = Arc::clone(&calls);
    let origin = Origin::asynchronous(always(&larder), move |request, call| {
        let (larder, loads, calls) = (in_handler.clone(), loads.clone(), in_shadow.clone());
        async move {
            calls.fetch_add(1, Ordering::SeqCst);
            let load = move |_: larder_core::LoadHandle| async move {
                loads.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(7_u64)
            };
            let value = larder.get_or_load("value", Policy::ttl(MINUTE * 100), load).await.unwrap();
            if call > 1 {
                // Only the shadow comes here.
                let name = format!("only in the shadow {call}");
                let load = |_: larder_core::LoadHandle| async { Ok::<_, Infallible>(8_u64) };
                larder.get_or_load(name, Policy::ttl(MINUTE), load).await.unwrap();
                let _logged = larder.invalidate(Target::everything()).await;
                let _logged = larder.emit(&Happened).await.unwrap();
                let pending = request.extensions().get::<PendingInvalidations>().unwrap();
                pending.add(Target::everything());
            }
            Response::new(text(value.to_string()))
        }
    });
    origin.get("/").await;
    let before = (larder.stats().memory.entries, larder.stats().invalidations);
    for _ in 0..3 {
        assert!(origin.get("/").await.0.contains("hit"));
        settle().await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 4, "three shadows were rendered");
    assert_eq!((larder.stats().memory.entries, larder.stats().invalidations), before);
    assert_eq!(emitted.load(Ordering::SeqCst), 0);
    assert_eq!(loaded.load(Ordering::SeqCst), 4, "nothing in a shadow comes from the cache");
    assert_eq!(observed(&larder).same, 3);
    let _logged = larder.emit(&Happened).await.unwrap();
    assert_eq!(emitted.load(Ordering::SeqCst), 1, "outside of the shadow it is emitted");
}

#[tokio::test(start_paused = true)]
async fn only_a_share_of_the_hits_is_compared_and_by_default_none() {
    for (share, least, most) in [(None, 0, 0), (Some(0.1), 50, 200)] {
        let larder = larder();
        let layer = ResponseCacheLayer::new(&larder).ttl(100 * MINUTE);
        let layer = match share {
            Some(share) => layer.shadow(share),
            None => layer,
        };
        let origin = Origin::new(layer, with(&[]));
        for _ in 0..1_000 {
            origin.get("/").await;
        }
        settle().await;
        let shadows = origin.calls() - 1;
        assert!((least..=most).contains(&shadows), "{share:?}: {shadows}");
    }
    let refused = std::panic::catch_unwind(|| ResponseCacheLayer::new(&larder()).shadow(1.5));
    assert!(refused.is_err());
}
