//! Domain events.

use std::sync::atomic::{AtomicBool, AtomicU32};

use super::*;
use crate::events::{Invalidations, StoredEvent};

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Updated {
    id: u32,
}

impl StoredEvent for Updated {
    const NAME: &'static str = "updated-1";
}

async fn loaded(larder: &Larder, name: &str) -> bool {
    let is_loaded = Arc::new(AtomicBool::new(false));
    let noted = is_loaded.clone();
    let load = move |_: LoadHandle| async move {
        noted.store(true, Ordering::SeqCst);
        Ok::<_, Infallible>(1_u32)
    };
    larder.get_or_load(name, MINUTE, load).await.unwrap();
    is_loaded.load(Ordering::SeqCst)
}

#[tokio::test]
async fn an_event_invalidates_what_all_its_handlers_return_in_one_append() {
    let larder = larder();
    larder.on(|event: &Updated| [Target::tag(("a", event.id)), Target::tag("b")]);
    larder.on(|event: &Updated| ("c", event.id));
    larder.on_async(|event: Updated| async move {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(vec![Target::tag(("d", event.id))])
    });
    let names = ["a:1", "b", "c:1", "d:1", "a:2"];
    for name in names {
        loaded(&larder, name).await;
    }
    let _ = larder.emit(&Updated { id: 1 }).await.unwrap();
    assert_eq!(larder.stats().invalidations, 1);
    for name in names {
        assert_eq!(loaded(&larder, name).await, name != "a:2", "{name}");
    }
}

#[tokio::test]
async fn invalidations_of_other_modes_take_an_append_each() {
    let larder = larder();
    larder.on(|_: &Updated| {
        Invalidations::from(vec![
            Invalidation::of(["a"]),
            Invalidation::of(["b"]).soft(MINUTE),
            Invalidation::of(["c"]),
        ])
    });
    let _ = larder.emit(&Updated { id: 1 }).await.unwrap();
    assert_eq!(larder.stats().invalidations, 2);
}

#[tokio::test]
async fn a_handler_that_fails_or_panics_makes_emit_an_error_and_stops_no_other() {
    let larder = larder();
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = is_broken.clone();
    larder.on_async(move |_: Updated| {
        let is_broken = broken.load(Ordering::SeqCst);
        async move { if is_broken { Err("the database is down") } else { Ok("a") } }
    });
    let broken = is_broken.clone();
    larder.on(move |_: &Updated| {
        assert!(!broken.load(Ordering::SeqCst), "a mistake of the handler");
        "b"
    });
    larder.on(|_: &Updated| "c");
    for name in ["a", "b", "c"] {
        loaded(&larder, name).await;
    }
    let error = larder.emit(&Updated { id: 1 }).await.unwrap_err();
    assert_eq!(error.failures().len(), 2);
    assert!(error.to_string().contains("the database is down"), "{error}");
    assert!(loaded(&larder, "c").await, "the invalidations of the others are in effect");
    assert!(!loaded(&larder, "a").await);
    is_broken.store(false, Ordering::SeqCst);
    let _ = larder.emit(&Updated { id: 1 }).await.unwrap();
    assert!(loaded(&larder, "a").await && loaded(&larder, "b").await);
}

#[tokio::test]
async fn a_caller_that_is_dropped_does_not_stop_its_event() {
    let larder = larder();
    let gate = Arc::new(Notify::new());
    let opened = gate.clone();
    larder.on_async(move |_: Updated| {
        let opened = opened.clone();
        async move {
            opened.notified().await;
            Ok::<_, Infallible>("a")
        }
    });
    loaded(&larder, "a").await;
    let event = Updated { id: 1 };
    let mut emitting = Box::pin(larder.emit(&event));
    assert!(futures_util::poll!(&mut emitting).is_pending());
    drop(emitting);
    gate.notify_one();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(loaded(&larder, "a").await, "the event is in effect");
}

#[tokio::test]
async fn events_of_a_namespace_invalidate_there_and_those_without_a_handler_nothing() {
    let larder = larder();
    larder.on(|_: &Updated| "a");
    let acme = larder.namespace("acme");
    for view in [&larder, &acme] {
        loaded(view, "a").await;
    }
    let _ = acme.emit(&Updated { id: 1 }).await.unwrap();
    assert!(loaded(&acme, "a").await && !loaded(&larder, "a").await);
    let _ = larder.emit(&7_u32).await.unwrap();
    assert_eq!(larder.stats().invalidations, 1);
}

#[tokio::test]
async fn a_stored_event_comes_back_by_its_name() {
    let larder = larder();
    let handled = Arc::new(AtomicU32::new(0));
    let counted = handled.clone();
    larder.on(move |event: &Updated| {
        counted.fetch_add(event.id, Ordering::SeqCst);
        "a"
    });
    larder.receive_stored::<Updated>();
    let body = larder.kernel().stored_event(&Updated { id: 7 }).unwrap();
    let emitted = larder.kernel().emit_stored("updated-1", body.as_bytes()).await;
    assert!(emitted.unwrap().is_ok());
    assert_eq!(handled.load(Ordering::SeqCst), 7);
    assert!(larder.kernel().emit_stored("updated-1", b"{}").await.unwrap().is_err());
    assert!(larder.kernel().emit_stored("updated-2", b"{}").await.is_none(), "an unknown name");
}

#[tokio::test]
async fn a_stored_event_without_a_handler_is_unknown() {
    let larder = larder();
    larder.receive_stored::<Updated>();
    assert!(larder.kernel().emit_stored("updated-1", br#"{"id": 1}"#).await.is_none());
}

#[tokio::test]
async fn a_handler_that_panics_before_its_future_stops_no_other() {
    let larder = larder();
    larder.on_async(|event: Updated| {
        assert!(event.id > 100, "a mistake of the handler");
        async { Ok::<_, Infallible>("a") }
    });
    larder.on(|_: &Updated| "b");
    loaded(&larder, "b").await;
    let error = larder.emit(&Updated { id: 1 }).await.unwrap_err();
    assert!(error.to_string().contains("the handler panicked"), "{error}");
    assert!(loaded(&larder, "b").await);
}
