//! The engine as a whole, on objects: the races, the herd, the errors.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use crate::{Fill, Invalidation, Larder, Lifetime, LoadError, Policy, Target};

const MINUTE: Duration = Duration::from_secs(60);

fn larder() -> Larder {
    Larder::builder().cells(1 << 12).build().unwrap()
}

async fn load(larder: &Larder, name: &str, value: u32) -> u32 {
    let policy = Policy::ttl(MINUTE).tag("t");
    let load = move |_: Fill| async move { Ok::<_, Infallible>(value) };
    *larder.get_or_load(name, policy, load).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_is_kept_until_it_expires() {
    let larder = larder();
    assert_eq!(load(&larder, "a", 1).await, 1);
    assert_eq!(load(&larder, "a", 2).await, 1);
    tokio::time::advance(MINUTE).await;
    assert_eq!(load(&larder, "a", 3).await, 3);
}

#[tokio::test]
async fn a_fill_that_an_invalidation_overtakes_is_not_served_to_who_comes_later() {
    let larder = larder();
    let (read, commit) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let filling = tokio::spawn({
        let (larder, read, commit) = (larder.clone(), read.clone(), commit.clone());
        async move {
            let policy = Policy::ttl(MINUTE).tag("t");
            let load = move |_: Fill| async move {
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
            let load = |_: Fill| async { Ok::<_, Infallible>("new".to_owned()) };
            larder.get_or_load("a", Policy::ttl(MINUTE).tag("t"), load).await
        }
    });
    tokio::task::yield_now().await;
    commit.notify_one();
    // The one that began before may have the old value, the one that came after may not.
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
                let load = move |_: Fill| async move {
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
async fn a_caller_who_hangs_up_does_not_stop_the_load() {
    let larder = larder();
    let (go, gate) = oneshot::channel::<()>();
    let began = Arc::new(Notify::new());
    let leader = tokio::spawn({
        let (larder, began) = (larder.clone(), began.clone());
        async move {
            let load = move |_: Fill| async move {
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
async fn a_panic_goes_on_in_the_caller_and_frees_those_who_wait() {
    let larder = larder();
    let call = larder.clone();
    let panicked = tokio::spawn(async move {
        let load = |_: Fill| async {
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
async fn an_error_is_handed_out_and_not_kept() {
    let larder = larder();
    let failing = |_: Fill| async { Err::<u32, _>("no database") };
    let error = larder.get_or_load("a", MINUTE, failing).await.unwrap_err();
    assert!(matches!(error, LoadError::Failed(error) if *error == "no database"));
    assert_eq!(load(&larder, "a", 2).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_answers_at_once_while_one_refresh_runs() {
    let larder = larder();
    let policy = || Policy::from(Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE));
    let ask = |value: u32| {
        let load = move |_: Fill| async move { Ok::<_, Infallible>(value) };
        larder.get_or_load("a", policy(), load)
    };
    assert_eq!(*ask(1).await.unwrap(), 1);
    tokio::time::advance(MINUTE).await;
    assert_eq!(*ask(2).await.unwrap(), 1);
    assert!(larder.close(MINUTE).await);
    assert_eq!(*ask(3).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_answers_for_a_loader_that_fails_but_not_when_it_was_invalidated() {
    let larder = larder();
    let policy = || Policy::from(Lifetime::fresh_for(MINUTE).stale_if_error(MINUTE)).tag("t");
    let ask = |value: Result<u32, &'static str>| {
        larder.get_or_load("a", policy(), move |_: Fill| async move { value })
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
    let other = |_: Fill| async { Ok::<_, Infallible>(String::new()) };
    let error = larder.get_or_load("a", MINUTE, other).await.unwrap_err().to_string();
    assert!(error.contains("u32") && error.contains("String"), "{error}");
}

#[tokio::test]
async fn a_value_is_made_of_what_was_loaded_inside_it() {
    let larder = larder();
    let outer = |value: u32| {
        let inside = larder.clone();
        larder.get_or_load("outer", MINUTE, move |_: Fill| async move {
            let part = Policy::ttl(MINUTE).tag("part");
            let load = move |_: Fill| async move { Ok::<_, Infallible>(value) };
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
            larder.get_or_load("outer", MINUTE, move |_: Fill| async move {
                let mut part = Policy::ttl(MINUTE / 2).tag("part");
                if until_invalidated {
                    part = part.until_invalidated();
                }
                let load = move |_: Fill| async move { Ok::<_, Infallible>(value) };
                inside.get_or_load("inner", part, load).await.map(|part| *part)
            })
        };
        outer(1).await.unwrap();
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(*outer(2).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_load_that_asks_for_itself_does_not_wait_for_itself() {
    let larder = larder();
    let inside = larder.clone();
    let outer = move |_: Fill| async move { Ok::<_, Infallible>(load(&inside, "a", 5).await) };
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
async fn an_invalidation_for_later_acts_then_and_not_before() {
    let larder = larder();
    assert_eq!(load(&larder, "a", 1).await, 1);
    let _ = larder.invalidate(Invalidation::from("t").after(MINUTE / 2)).await;
    assert_eq!(load(&larder, "a", 2).await, 1);
    tokio::time::advance(MINUTE / 2).await;
    assert_eq!(load(&larder, "a", 3).await, 3);
}

#[tokio::test]
async fn what_the_loader_wishes_is_done() {
    let larder = larder();
    let ask = |value: u32| {
        larder.get_or_load("a", MINUTE, move |fill: Fill| async move {
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
async fn a_rule_carries_an_invalidation_on() {
    let larder = Larder::builder().depends("row:*", "t").build().unwrap();
    assert_eq!(load(&larder, "a", 1).await, 1);
    let _ = larder.invalidate(("row", 5)).await;
    assert_eq!(load(&larder, "a", 2).await, 2);
}

#[tokio::test]
async fn what_a_handler_already_held_is_not_kept_as_if_it_were_read_now() {
    let larder = larder();
    let scope = larder.open_scope().gathering(crate::Audience::Everyone);
    let handler = async {
        let held_since_before = 1;
        let _ = larder.invalidate("t").await;
        load(&larder, "a", held_since_before).await
    };
    assert_eq!(scope.scoped(handler).await, 1);
    assert_eq!(load(&larder, "a", 2).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_whole_with_a_part_that_is_not_kept_is_not_kept_either() {
    let larder = larder();
    let outer = |value: u32| {
        let inside = larder.clone();
        let lifetime = Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE);
        larder.get_or_load("outer", lifetime, move |_: Fill| async move {
            let load = move |fill: Fill| async move {
                fill.no_store();
                Ok::<_, Infallible>(value)
            };
            inside.get_or_load("token", MINUTE, load).await.map(|part| *part)
        })
    };
    assert_eq!(*outer(1).await.unwrap(), 1);
    assert_eq!(*outer(2).await.unwrap(), 2);
}
