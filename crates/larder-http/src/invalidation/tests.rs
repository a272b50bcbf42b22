use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use larder_core::{Larder, LoadHandle, Policy, Target};
use tokio::sync::Notify;
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

use super::*;

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

fn put() -> Request<Empty<Bytes>> {
    let request = Request::builder().method(Method::PUT).uri("/a").header("host", "a.example");
    request.body(Empty::new()).unwrap()
}

/// Loads a value that depends on a tag. Returns `true` when the loader ran.
async fn was_invalid(larder: &Larder, name: &str, tag: &str) -> bool {
    let loaded = Arc::new(AtomicBool::new(false));
    let noted = loaded.clone();
    let load = move |_: LoadHandle| async move {
        noted.store(true, Ordering::SeqCst);
        Ok::<_, Infallible>(())
    };
    let policy = Policy::ttl(Duration::from_secs(60)).tag(tag);
    larder.get_or_load(name, policy, load).await.unwrap();
    loaded.load(Ordering::SeqCst)
}

async fn answer(
    layer: InvalidationLayer,
    handler: impl Fn(PendingInvalidations) -> Result<Response<()>, Infallible> + Clone + Send + 'static,
) -> Response<()> {
    let inner = service_fn(move |request: Request<Empty<Bytes>>| {
        let requested = request.extensions().get::<PendingInvalidations>().unwrap().clone();
        std::future::ready(handler(requested))
    });
    layer.layer(inner).oneshot(put()).await.unwrap()
}

#[tokio::test]
async fn a_service_that_was_polled_ready_is_the_one_that_is_called() {
    let inner = ConcurrencyLimitLayer::new(1).layer(service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(()))
    }));
    let mut service = InvalidationLayer::new(&larder()).layer(inner);
    for _ in 0..3 {
        service.ready().await.unwrap().call(put()).await.unwrap();
    }
}

#[tokio::test]
async fn targets_of_the_handler_are_invalidated_for_every_status() {
    for status in [200, 404, 500] {
        let larder = larder();
        was_invalid(&larder, "x", "t").await;
        answer(InvalidationLayer::new(&larder), move |requested| {
            requested.add("t");
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok(response)
        })
        .await;
        assert!(was_invalid(&larder, "x", "t").await, "{status}");
    }
}

#[tokio::test]
async fn targets_of_the_route_are_invalidated_on_success_only_in_one_append() {
    for (status, expected) in [(204, true), (303, true), (409, false)] {
        let larder = larder();
        was_invalid(&larder, "x", "route").await;
        let layer = InvalidationLayer::new(&larder).targets(|_| vec![Target::tag("route")]);
        answer(layer, move |_| {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok(response)
        })
        .await;
        assert_eq!(was_invalid(&larder, "x", "route").await, expected, "{status}");
        assert_eq!(larder.stats().invalidations, u64::from(expected));
    }
}

#[tokio::test]
async fn targets_given_twice_are_all_invalidated() {
    let larder = larder();
    for tag in ["one", "two"] {
        was_invalid(&larder, tag, tag).await;
    }
    let layer = InvalidationLayer::new(&larder)
        .targets(|_| [Target::tag("one")])
        .targets(|_| [Target::tag("two")]);
    answer(layer, |_| Ok(Response::new(()))).await;
    for tag in ["one", "two"] {
        assert!(was_invalid(&larder, tag, tag).await, "{tag}");
    }
}

#[tokio::test]
async fn targets_of_a_handler_that_panics_are_invalidated() {
    let larder = larder();
    was_invalid(&larder, "x", "t").await;
    let layer = InvalidationLayer::new(&larder);
    let panicked = tokio::spawn(answer(layer, |requested| {
        requested.add("t");
        panic!("after the commit");
    }));
    assert!(panicked.await.unwrap_err().is_panic());
    assert!(was_invalid(&larder, "x", "t").await);
}

#[tokio::test]
async fn a_write_invalidates_its_targets_although_its_client_disconnects() {
    let larder = larder();
    was_invalid(&larder, "x", "t").await;
    let (committed, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let inner = service_fn({
        let (committed, go) = (committed.clone(), go.clone());
        move |request: Request<Empty<Bytes>>| {
            let (committed, go) = (committed.clone(), go.clone());
            async move {
                committed.notify_one();
                go.notified().await;
                request.extensions().get::<PendingInvalidations>().unwrap().add("t");
                Ok::<_, Infallible>(Response::new(()))
            }
        }
    });
    let service = InvalidationLayer::new(&larder).layer(inner);
    let client = tokio::spawn(service.oneshot(put()));
    committed.notified().await;
    client.abort();
    assert!(client.await.is_err());
    go.notify_one();
    assert!(larder.close(Duration::from_secs(5)).await);
    assert!(was_invalid(&larder, "x", "t").await);
}

#[tokio::test]
async fn a_target_added_after_the_head_is_invalidated_at_once() {
    let larder = larder();
    was_invalid(&larder, "x", "t").await;
    let kept = Arc::new(parking_lot::Mutex::new(None));
    let later = kept.clone();
    answer(InvalidationLayer::new(&larder), move |requested| {
        *later.lock() = Some(requested);
        Ok(Response::new(()))
    })
    .await;
    assert!(!was_invalid(&larder, "x", "t").await);
    kept.lock().take().unwrap().add("t");
    assert!(larder.close(Duration::from_secs(5)).await);
    assert!(was_invalid(&larder, "x", "t").await);
}

#[tokio::test]
async fn a_nested_layer_is_the_enclosing_one_only_during_its_polls() {
    let [outside, inside] = [larder(), larder()];
    let expected = inside.clone();
    let is_around = move |larder: &Larder| {
        PendingInvalidations::current().is_some_and(|it| it.is_of(larder.kernel()))
    };
    let inner = service_fn(move |_: Request<Empty<Bytes>>| {
        assert!(is_around(&expected), "in the call");
        let expected = expected.clone();
        async move {
            assert!(is_around(&expected), "when polled first");
            tokio::task::yield_now().await;
            assert!(is_around(&expected), "when polled again");
            Ok::<_, Infallible>(Response::new(()))
        }
    });
    let nested = InvalidationLayer::new(&inside).layer(inner);
    let (outer, between) = (outside.clone(), outside.clone());
    let looks = tower::service_fn(move |request: Request<Empty<Bytes>>| {
        let called = nested.clone().call(request);
        assert!(is_around(&between), "after the inner call");
        let between = between.clone();
        let mut called = Box::pin(called);
        std::future::poll_fn(move |cx| {
            let polled = called.as_mut().poll(cx);
            assert!(is_around(&between), "after each inner poll");
            polled
        })
    });
    let get = Request::builder().uri("/a").body(Empty::new()).unwrap();
    let mut answer = Box::pin(InvalidationLayer::new(&outer).layer(looks).oneshot(get));
    while futures_util::poll!(&mut answer).is_pending() {
        assert!(PendingInvalidations::current().is_none(), "no layer encloses a task that waits");
    }
    assert!(PendingInvalidations::current().is_none());
}

#[tokio::test]
async fn a_handler_that_panics_leaves_no_enclosing_layer_on_its_thread() {
    let get = || Request::builder().uri("/a").body(Empty::new()).unwrap();
    for in_call in [true, false] {
        let inner = service_fn(move |_: Request<Empty<Bytes>>| {
            assert!(!in_call, "the handler panics when it is called");
            async move {
                assert!(in_call, "the handler panics when it is polled");
                Ok::<_, Infallible>(Response::new(()))
            }
        });
        let serving = InvalidationLayer::new(&larder()).layer(inner).oneshot(get());
        let served = std::panic::AssertUnwindSafe(serving).catch_unwind().await;
        assert!(served.is_err());
        assert!(PendingInvalidations::current().is_none(), "in the call: {in_call}");
    }
}

/// Regression: the invalidation was left to a task, which the next request of the same client could overtake.
#[tokio::test]
async fn a_target_of_a_safe_request_is_invalidated_before_add_returns() {
    let larder = larder();
    was_invalid(&larder, "x", "t").await;
    let inner = service_fn(|_: Request<Empty<Bytes>>| async {
        PendingInvalidations::current().expect("the layer is around").add("t");
        Ok::<_, Infallible>(Response::new(()))
    });
    let get = Request::builder().uri("/a").body(Empty::new()).unwrap();
    let before = larder.kernel().sequence();
    let service = InvalidationLayer::new(&larder).layer(inner);
    service.oneshot(get).now_or_never().unwrap().unwrap();
    assert!(larder.kernel().sequence() > before);
    assert!(was_invalid(&larder, "x", "t").await);
}
