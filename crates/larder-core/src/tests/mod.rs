//! Tests of the whole engine with objects: races, stampedes, errors.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

mod advice;
mod batches;
mod events;
mod herds;
mod inspecting;
mod lifetimes;
#[cfg(feature = "metrics")]
mod published_metrics;
mod replaying;
mod values;
mod write_through;

use crate::{
    Invalidation, Larder, Lifetime, LoadError, LoadHandle, Policy, Target, kernel::Audience,
};

const MINUTE: Duration = Duration::from_secs(60);

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

async fn load(larder: &Larder, name: &str, value: u32) -> u32 {
    let policy = Policy::ttl(MINUTE).tag("t");
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
    *larder.get_or_load(name, policy, load).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_loaded_value_is_stored_until_it_expires() {
    let larder = larder();
    assert_eq!(load(&larder, "a", 1).await, 1);
    assert_eq!(load(&larder, "a", 2).await, 1);
    tokio::time::advance(MINUTE).await;
    assert_eq!(load(&larder, "a", 3).await, 3);
}

#[tokio::test]
async fn a_fill_overtaken_by_an_invalidation_is_not_served_to_later_calls() {
    let larder = larder();
    let (read, commit) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let filling = tokio::spawn({
        let (larder, read, commit) = (larder.clone(), read.clone(), commit.clone());
        async move {
            let policy = Policy::ttl(MINUTE).tag("t");
            let load = move |_: LoadHandle| async move {
                read.notify_one();
                commit.notified().await;
                Ok::<_, Infallible>("old".to_owned())
            };
            larder.get_or_load("a", policy, load).await.unwrap().to_string()
        }
    });
    read.notified().await;
    let _ = larder.invalidate("t").await;
    let later = tokio::spawn({
        let larder = larder.clone();
        async move {
            let load = |_: LoadHandle| async { Ok::<_, Infallible>("new".to_owned()) };
            larder.get_or_load("a", Policy::ttl(MINUTE).tag("t"), load).await
        }
    });
    tokio::task::yield_now().await;
    commit.notify_one();
    // The call that started before the invalidation may get the old value, but the call that arrived after it may not.
    assert!(filling.await.is_ok());
    assert_eq!(*later.await.unwrap().unwrap(), "new");
}

#[tokio::test]
async fn ten_thousand_misses_of_one_key_are_one_load() {
    let larder = larder();
    let loads = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..10_000)
        .map(|_| {
            let (larder, loads) = (larder.clone(), loads.clone());
            tokio::spawn(async move {
                let load = move |_: LoadHandle| async move {
                    loads.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    Ok::<_, Infallible>(7)
                };
                *larder.get_or_load("a", MINUTE, load).await.unwrap()
            })
        })
        .collect();
    for one in waiting {
        assert_eq!(one.await.unwrap(), 7);
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_dropped_caller_does_not_stop_the_load() {
    let larder = larder();
    let (go, gate) = oneshot::channel::<()>();
    let began = Arc::new(Notify::new());
    let leader = tokio::spawn({
        let (larder, began) = (larder.clone(), began.clone());
        async move {
            let load = move |_: LoadHandle| async move {
                began.notify_one();
                gate.await.unwrap();
                Ok::<_, Infallible>(1_u32)
            };
            larder.get_or_load("a", MINUTE, load).await.map(|value| *value)
        }
    });
    began.notified().await;
    leader.abort();
    let waiter = tokio::spawn({
        let larder = larder.clone();
        async move { load(&larder, "a", 2).await }
    });
    tokio::task::yield_now().await;
    go.send(()).unwrap();
    assert_eq!(waiter.await.unwrap(), 1);
}

#[tokio::test]
async fn a_panic_of_the_loader_reaches_the_caller_and_frees_the_key() {
    let larder = larder();
    let call = larder.clone();
    let panicked = tokio::spawn(async move {
        let load = |_: LoadHandle| async {
            if true {
                panic!("the loader fell over");
            }
            Ok::<u32, Infallible>(0)
        };
        call.get_or_load("a", MINUTE, load).await.map(|value| *value)
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(load(&larder, "a", 2).await, 2);
}

#[tokio::test]
async fn an_error_is_returned_and_not_stored() {
    let larder = larder();
    let failing = |_: LoadHandle| async { Err::<u32, _>("no database") };
    let error = larder.get_or_load("a", MINUTE, failing).await.unwrap_err();
    assert!(matches!(error, LoadError::Failed(error) if *error == "no database"));
    assert_eq!(load(&larder, "a", 2).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_at_once_while_one_refresh_runs() {
    let larder = larder();
    let policy = || Policy::from(Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE));
    let ask = |value: u32| {
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
        larder.get_or_load("a", policy(), load)
    };
    assert_eq!(*ask(1).await.unwrap(), 1);
    tokio::time::advance(MINUTE).await;
    assert_eq!(*ask(2).await.unwrap(), 1);
    assert!(larder.close(MINUTE).await);
    assert_eq!(*ask(3).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_on_error_unless_it_was_invalidated() {
    let larder = larder();
    let policy = || Policy::from(Lifetime::fresh_for(MINUTE).stale_if_error(MINUTE)).tag("t");
    let ask = |value: Result<u32, &'static str>| {
        larder.get_or_load("a", policy(), move |_: LoadHandle| async move { value })
    };
    assert_eq!(*ask(Ok(1)).await.unwrap(), 1);
    tokio::time::advance(MINUTE).await;
    assert_eq!(*ask(Err("down")).await.unwrap(), 1);
    let _ = larder.invalidate("t").await;
    assert!(ask(Err("down")).await.is_err());
}

#[tokio::test]
async fn one_key_with_two_types_is_an_error_that_names_both() {
    let larder = larder();
    load(&larder, "a", 1).await;
    let other = |_: LoadHandle| async { Ok::<_, Infallible>(String::new()) };
    let error = larder.get_or_load("a", MINUTE, other).await.unwrap_err().to_string();
    assert!(error.contains("u32") && error.contains("String"), "{error}");
}

#[tokio::test]
async fn a_value_depends_on_the_values_loaded_inside_it() {
    let larder = larder();
    let outer = |value: u32| {
        let inside = larder.clone();
        larder.get_or_load("outer", MINUTE, move |_: LoadHandle| async move {
            let part = Policy::ttl(MINUTE).tag("part");
            let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
            inside.get_or_load("inner", part, load).await.map(|part| *part * 10)
        })
    };
    assert_eq!(*outer(1).await.unwrap(), 10);
    assert_eq!(*outer(2).await.unwrap(), 10);
    let _ = larder.invalidate("part").await;
    assert_eq!(*outer(3).await.unwrap(), 30);
    let _ = larder.invalidate(Target::name("inner")).await;
    assert_eq!(*outer(4).await.unwrap(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_ends_earlier_ends_the_whole_unless_it_lives_until_invalidated() {
    for (until_invalidated, expected) in [(false, 2), (true, 1)] {
        let larder = larder();
        let outer = |value: u32| {
            let inside = larder.clone();
            larder.get_or_load("outer", MINUTE, move |_: LoadHandle| async move {
                let mut part = Policy::ttl(MINUTE / 2).tag("part");
                if until_invalidated {
                    part = part.until_invalidated();
                }
                let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
                inside.get_or_load("inner", part, load).await.map(|part| *part)
            })
        };
        outer(1).await.unwrap();
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(*outer(2).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_loader_that_requests_its_own_value_does_not_wait_for_itself() {
    let larder = larder();
    let inside = larder.clone();
    let outer =
        move |_: LoadHandle| async move { Ok::<_, Infallible>(load(&inside, "a", 5).await) };
    assert_eq!(*larder.get_or_load("a", MINUTE, outer).await.unwrap(), 5);
}

#[tokio::test]
async fn namespaces_share_neither_keys_nor_tags_nor_clear() {
    let larder = larder();
    let (a, b) = (larder.namespace("a"), larder.namespace("b"));
    assert_eq!(load(&a, "x", 1).await, 1);
    assert_eq!(load(&b, "x", 2).await, 2);
    let _ = a.invalidate("t").await;
    assert_eq!(load(&a, "x", 3).await, 3);
    assert_eq!(load(&b, "x", 4).await, 2);
    let _ = b.clear().await;
    assert_eq!(load(&a, "x", 5).await, 3);
    assert_eq!(load(&b, "x", 6).await, 6);
    let _ = larder.clear().await;
    assert_eq!(load(&a, "x", 7).await, 7);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_invalidation_acts_after_its_delay_and_not_before() {
    let larder = larder();
    assert_eq!(load(&larder, "a", 1).await, 1);
    let _ = larder.invalidate(Invalidation::from("t").after(MINUTE / 2)).await;
    assert_eq!(load(&larder, "a", 2).await, 1);
    tokio::time::advance(MINUTE / 2).await;
    assert_eq!(load(&larder, "a", 3).await, 3);
}

#[tokio::test]
async fn a_loader_can_add_tags_and_refuse_storing() {
    let larder = larder();
    let ask = |value: u32| {
        larder.get_or_load("a", MINUTE, move |fill: LoadHandle| async move {
            if value == 1 {
                fill.no_store();
            }
            fill.tag(("value", value));
            Ok::<_, Infallible>(value)
        })
    };
    assert_eq!(*ask(1).await.unwrap(), 1);
    assert_eq!(*ask(2).await.unwrap(), 2);
    assert_eq!(*ask(3).await.unwrap(), 2);
    let _ = larder.invalidate(("value", 2)).await;
    assert_eq!(*ask(4).await.unwrap(), 4);
    let stats = larder.stats();
    let objects = stats.cache("objects").unwrap();
    assert_eq!(objects.refusals["no-store"], 1);
    assert_eq!((objects.total.hits, objects.total.stored, objects.total.invalid), (1, 2, 1));
}

#[tokio::test]
async fn a_rule_extends_an_invalidation() {
    let larder = Larder::builder().depends("row:*", "t").build().unwrap();
    assert_eq!(load(&larder, "a", 1).await, 1);
    let _ = larder.invalidate(("row", 5)).await;
    assert_eq!(load(&larder, "a", 2).await, 2);
}

#[tokio::test]
async fn data_that_a_handler_held_before_an_invalidation_is_not_stored_as_valid() {
    let larder = larder();
    let scope = larder.kernel().open_scope().gathering(Audience::Everyone);
    let handler = async {
        let held_since_before = 1;
        let _ = larder.invalidate("t").await;
        load(&larder, "a", held_since_before).await
    };
    assert_eq!(scope.scoped(handler).await, 1);
    assert_eq!(load(&larder, "a", 2).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_value_with_a_part_that_is_not_stored_is_not_stored_either() {
    let larder = larder();
    let outer = |value: u32| {
        let inside = larder.clone();
        let lifetime = Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE);
        larder.get_or_load("outer", lifetime, move |_: LoadHandle| async move {
            let load = move |fill: LoadHandle| async move {
                fill.no_store();
                Ok::<_, Infallible>(value)
            };
            inside.get_or_load("token", MINUTE, load).await.map(|part| *part)
        })
    };
    assert_eq!(*outer(1).await.unwrap(), 1);
    assert_eq!(*outer(2).await.unwrap(), 2);
}

/// Runs three concurrent calls whose loader takes a second and calls `no_store` at its end and, if `at_once` is set, at
/// its start. Returns how long the three calls took.
async fn three_loads_of_an_unstored_value(larder: &Larder, at_once: bool) -> Duration {
    let second = Duration::from_secs(1);
    let ask = || {
        let larder = larder.clone();
        tokio::spawn(async move {
            let load = move |fill: LoadHandle| async move {
                if at_once {
                    fill.no_store();
                }
                tokio::time::sleep(second).await;
                fill.no_store();
                Ok::<_, Infallible>(1)
            };
            larder.get_or_load("a", MINUTE, load).await.map(|value| *value)
        })
    };
    let began = tokio::time::Instant::now();
    for asked in futures_util::future::join_all([ask(), ask(), ask()]).await {
        assert_eq!(asked.unwrap().unwrap(), 1);
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn calls_do_not_wait_for_a_value_that_is_not_stored() {
    let (told, silent) = (larder(), larder());
    let second = Duration::from_secs(1);
    assert_eq!(
        three_loads_of_an_unstored_value(&told, true).await,
        second,
        "waiters go on at the call of `no_store`"
    );
    assert_eq!(
        three_loads_of_an_unstored_value(&silent, false).await,
        2 * second,
        "each waited once"
    );
    assert_eq!(three_loads_of_an_unstored_value(&silent, false).await, second, "and not again");
}

async fn failing(
    larder: &Larder,
    loads: &Arc<AtomicUsize>,
) -> Result<u32, LoadError<&'static str>> {
    let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(10 * MINUTE);
    let loads = Arc::clone(loads);
    let load = move |_: LoadHandle| async move {
        loads.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err("down")
    };
    larder.get_or_load("a", lifetime, load).await.map(|value| *value)
}

/// Regression: after four failed fills in a row all other waiters loaded at once, from an origin already in trouble.
#[tokio::test(start_paused = true)]
async fn waiters_of_a_failing_origin_do_not_all_load_at_once() {
    let (larder, loads) = (larder(), Arc::new(AtomicUsize::new(0)));
    let answers =
        futures_util::future::join_all((0..1_000).map(|_| failing(&larder, &loads))).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(LoadError::Failed(error)) if **error == "down"))
    );
    assert!(loads.load(Ordering::Relaxed) <= 4, "{loads:?}");
}

#[tokio::test(start_paused = true)]
async fn all_waiters_take_the_stale_value_if_the_fill_fails() {
    let (larder, loads) = (larder(), Arc::new(AtomicUsize::new(0)));
    let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(10 * MINUTE);
    let load = |_: LoadHandle| async { Ok::<_, &str>(7_u32) };
    assert_eq!(*larder.get_or_load("a", lifetime, load).await.unwrap(), 7);
    tokio::time::advance(2 * MINUTE).await;
    let answers = futures_util::future::join_all((0..20).map(|_| failing(&larder, &loads))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(7))), "{answers:?}");
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    let stats = larder.stats();
    let objects = &stats.cache("objects").unwrap().total;
    assert_eq!((objects.stale_on_error, objects.misses, objects.hits), (20, 21, 0));
}

/// Regression: the failed fill made the page not storable before the stale value was found for it.
#[tokio::test(start_paused = true)]
async fn a_page_with_a_part_served_on_error_is_stale_and_still_storable() {
    let (larder, loads) = (larder(), Arc::new(AtomicUsize::new(0)));
    let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(10 * MINUTE);
    let load = |_: LoadHandle| async { Ok::<_, &str>(7_u32) };
    assert_eq!(*larder.get_or_load("a", lifetime, load).await.unwrap(), 7);
    tokio::time::advance(2 * MINUTE).await;
    let page = larder.kernel().open_scope().gathering(Audience::Everyone);
    assert_eq!(page.clone().scoped(failing(&larder, &loads)).await.unwrap(), 7);
    let gathered = page.gathered();
    assert!(gathered.stale && gathered.no_store.is_none(), "{gathered:?}");
}

/// Regression: each fill was overtaken, and the next leader filled under the stamp of its own arrival.
#[tokio::test(start_paused = true)]
async fn waiters_share_fills_through_many_invalidations() {
    let (larder, loads) = (larder(), Arc::new(AtomicUsize::new(0)));
    let step = Duration::from_millis(100);
    let ask = |at: u32| {
        let (larder, loads) = (larder.clone(), Arc::clone(&loads));
        async move {
            tokio::time::sleep(step / 10 * at).await;
            let load = move |_: LoadHandle| async move {
                loads.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(2 * step).await;
                Ok::<_, Infallible>(at)
            };
            larder.get_or_load("a", Policy::ttl(MINUTE).tag("t"), load).await.map(|value| *value)
        }
    };
    let waiting = futures_util::future::join_all((0..200).map(ask));
    let invalidating = async {
        for _ in 0..50 {
            tokio::time::sleep(step).await;
            let _ = larder.invalidate("t").await;
        }
    };
    let (answers, ()) = futures_util::join!(waiting, invalidating);
    assert!(answers.iter().all(Result::is_ok));
    assert!(loads.load(Ordering::Relaxed) <= 14, "{loads:?}");
}

#[tokio::test]
async fn a_name_that_is_too_long_bypasses_the_cache() {
    let larder = larder();
    let name = "x".repeat(70_000);
    assert_eq!(load(&larder, &name, 1).await, 1);
    assert_eq!(load(&larder, &name, 2).await, 2);
    assert_eq!(larder.stats().cache("objects").unwrap().bypasses["key-too-long"], 2);
}

#[tokio::test]
async fn namespaces_with_similar_names_share_nothing() {
    let larder = larder();
    let views = [
        larder.clone(),
        larder.namespace(""),
        larder.namespace("acme").namespace("eu"),
        larder.namespace("acme/eu"),
        larder.namespace("acme%2Feu"),
        larder.namespace("%"),
    ];
    for (at, view) in (1..).zip(&views) {
        assert_eq!(load(view, "x", at).await, at, "a key of its own");
    }
    let _ = views[1].clear().await;
    assert_eq!(load(&views[1], "x", 9).await, 9);
    for (at, view) in (1..).zip(&views).filter(|(at, _)| *at != 2) {
        assert_eq!(load(view, "x", 9).await, at, "no other namespace cleared it");
    }
}

/// Regression: a task of a handler loaded a cart outside of the scope of its request, and all clients shared the cart.
#[tokio::test]
async fn a_spawned_task_takes_its_scope_along_or_its_values_are_counted() {
    let larder = larder();
    let request = larder.kernel().scope().gathering(Audience::Partition(b"ada"[..].into()));
    let own = larder.clone();
    let handler = async {
        let carried = own.clone();
        tokio::spawn(own.scoped(async move { load(&carried, "cart", 1).await })).await.unwrap()
    };
    assert_eq!(request.clone().scoped(handler).await, 1);
    assert!(request.gathered().private && !request.gathered().tags.is_empty(), "the page knows");
    assert_eq!(larder.stats().values_outside_scopes, 0);
    assert_eq!(load(&larder, "cart", 2).await, 2, "not ada's");
    assert_eq!(larder.stats().values_outside_scopes, 1);
}

#[tokio::test]
async fn a_shared_value_with_a_part_for_one_variant_is_not_stored() {
    let larder = larder();
    let variant = larder.kernel().open_scope().gathering(Audience::Variant(b"acme"[..].into()));
    let whole = |value: u32| {
        let inside = larder.clone();
        let policy = Policy::ttl(MINUTE).shared();
        larder.get_or_load("whole", policy, move |_: LoadHandle| async move {
            Ok::<_, Infallible>(load(&inside, "part", value).await)
        })
    };
    assert_eq!(*variant.clone().scoped(whole(1)).await.unwrap(), 1);
    assert_eq!(*whole(2).await.unwrap(), 2, "no other variant gets the part of acme");
    assert_eq!(larder.stats().cache("objects").unwrap().refusals["varied-part"], 1);
    let partition = larder.kernel().open_scope().gathering(Audience::Partition(b"acme"[..].into()));
    assert_eq!(partition.scoped(load(&larder, "part", 3)).await, 3, "a partition is no variant");
}

#[tokio::test(start_paused = true)]
async fn the_feed_reports_a_scheduled_invalidation_when_it_acts() {
    let larder = larder();
    let mut heard = larder.invalidations();
    let _ = larder.invalidate(Invalidation::from("t").after(MINUTE)).await;
    assert!(futures_util::poll!(Box::pin(heard.next())).is_pending());
    tokio::time::advance(MINUTE).await;
    load(&larder, "a", 1).await;
    assert_eq!(heard.next().await.unwrap().what, [crate::Selector::Tag("t".into())]);
    assert_eq!(larder.stats().invalidations, 1);
}

#[tokio::test]
async fn different_spellings_of_a_target_are_equal() {
    let larder = larder();
    let policy = || Policy::ttl(MINUTE).tag(("product", 42));
    let ask =
        |value: u32| {
            larder.get_or_load("a", policy(), move |_: LoadHandle| async move {
                Ok::<_, Infallible>(value)
            })
        };
    assert_eq!(*ask(1).await.unwrap(), 1);
    let _ = larder.invalidate(Target::prefix("product:")).await;
    assert_eq!(*ask(2).await.unwrap(), 2);
    assert_eq!(Target::path("products/42?page=2"), Target::path("/products/42"));
    assert_eq!(
        Target::path_on("HTTPS://Shop.Example:443/", "x"),
        Target::path_on("https://shop.example", "/x")
    );
}

/// Regression: a handler read data, the data was changed and invalidated, and then the refresh after a stale hit loaded
/// its value from the data that the handler held. Under a new stamp that value was stored as valid.
#[tokio::test(start_paused = true)]
async fn a_refresh_has_the_stamp_of_the_request_that_started_it() {
    let larder = larder();
    let lifetime = Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE);
    let ask = |held: u32| {
        let load = move |fill: LoadHandle| async move {
            fill.tag("source");
            Ok::<_, Infallible>(held)
        };
        larder.get_or_load("a", lifetime, load)
    };
    let first = |_: LoadHandle| async { Ok::<_, Infallible>(0_u32) };
    assert_eq!(*larder.get_or_load("a", lifetime, first).await.unwrap(), 0);
    tokio::time::advance(MINUTE).await;
    let request = larder.kernel().open_scope().gathering(Audience::Everyone);
    let handler = async {
        let held = 1;
        let _ = larder.invalidate("source").await;
        *ask(held).await.unwrap()
    };
    assert_eq!(request.scoped(handler).await, 0, "stale, while it is refreshed");
    assert!(larder.close(MINUTE).await);
    let served = *ask(2).await.unwrap();
    assert_ne!(served, 1, "data from before the invalidation is not stored after it");
}

/// Regression: waiters got the error of the first fill although they had also waited for a second fill that succeeded.
#[tokio::test(start_paused = true)]
async fn an_error_is_not_returned_after_a_later_fill_has_succeeded() {
    let larder = larder();
    let turn = Arc::new(AtomicUsize::new(0));
    let ask = || {
        let (larder, turn) = (larder.clone(), Arc::clone(&turn));
        tokio::spawn(async move {
            let load = move |fill: LoadHandle| async move {
                let turn = turn.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                fill.no_store();
                if turn == 0 { Err("down") } else { Ok(7) }
            };
            larder.get_or_load("a", MINUTE, load).await.map(|value| *value)
        })
    };
    let answers = futures_util::future::join_all([ask(), ask(), ask()]).await;
    let well = answers.into_iter().filter(|answer| matches!(answer, Ok(Ok(7)))).count();
    assert_eq!(well, 2, "all but the one that led into the error");
}

/// Regression: the hit-for-miss note replaced the stored value that was to be served on errors.
#[tokio::test(start_paused = true)]
async fn a_hit_for_miss_note_does_not_replace_the_stored_value() {
    let larder = larder();
    let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(10 * MINUTE);
    let ask = |answer: Result<u32, &'static str>| {
        larder.get_or_load("a", lifetime, move |fill: LoadHandle| async move {
            if answer == Ok(2) {
                fill.no_store();
            }
            answer
        })
    };
    assert_eq!(*ask(Ok(1)).await.unwrap(), 1);
    tokio::time::advance(2 * MINUTE).await;
    assert_eq!(*ask(Ok(2)).await.unwrap(), 2, "not to be kept");
    assert_eq!(*ask(Err("down")).await.unwrap(), 1, "the stored value is served on error");
}

#[tokio::test]
async fn the_name_of_a_value_is_a_tag_of_it() {
    type Verdict = fn() -> Invalidation;
    let rows: [(&str, Verdict, bool); 8] = [
        ("the same pair", || ("user", 7).into(), true),
        ("its text", || "user:7".into(), true),
        ("a name", || Target::name(("user", 7)).into(), true),
        ("a prefix above it", || Target::prefix("user").into(), true),
        ("a pattern", || Target::pattern("user:?").into(), true),
        ("another name", || ("user", 8).into(), false),
        ("a prefix that is no ancestor", || Target::prefix("use").into(), false),
        ("a prefix below it", || Target::prefix(("user:7", 1)).into(), false),
    ];
    for (what, invalidation, reached) in rows {
        for view in [larder(), larder().namespace("acme")] {
            let load = |value: u32| {
                let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
                let larder = view.clone();
                async move { *larder.get_or_load(("user", 7), MINUTE, load).await.unwrap() }
            };
            assert_eq!(load(1).await, 1);
            let _ = view.invalidate(invalidation()).await;
            assert_eq!(load(2).await == 2, reached, "{what}");
        }
    }
}

#[tokio::test]
async fn invalidating_the_name_of_a_part_invalidates_the_page() {
    let larder = larder();
    let page = |value: u32| {
        let inner = larder.clone();
        let load = move |_: LoadHandle| async move {
            let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
            inner.get_or_load(("user", 7), MINUTE, load).await.map(|value| *value)
        };
        let larder = larder.clone();
        async move { *larder.get_or_load("page", MINUTE, load).await.unwrap() }
    };
    assert_eq!(page(1).await, 1);
    assert_eq!(page(2).await, 1);
    let _ = larder.invalidate(("user", 7)).await;
    assert_eq!(page(3).await, 3);
}
