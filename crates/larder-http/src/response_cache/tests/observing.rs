//! A cache that only observes changes nothing, and tells what the cache would do.

use std::sync::Mutex;

use larder_core::{AdviceKind, ObservedHits, Reason};

use super::*;
use crate::HttpCache;

fn observed(larder: &Larder, route: &str) -> ObservedHits {
    larder.stats().cache("responses").unwrap().observed.get(route).copied().unwrap_or_default()
}

fn counts(larder: &Larder) -> (u64, u64, u64, u64) {
    let total = larder.stats().cache("responses").unwrap().total;
    (total.hits, total.misses, total.stored, total.bypassed)
}

/// Rule: it hides, strips and adds nothing. Requests and responses are the same as without it, for requests of all kinds.
#[tokio::test(start_paused = true)]
async fn requests_and_responses_are_the_same_as_without_it() {
    type Seen = Arc<Mutex<Vec<String>>>;
    let answer = |seen: Seen| {
        move |request: Request<Empty<Bytes>>, _: usize| {
            let mut fields: Vec<_> = request.headers().iter().map(|it| format!("{it:?}")).collect();
            fields.sort();
            seen.lock().unwrap().push(format!("{} {} {fields:?}", request.method(), request.uri()));
            let mut response = Response::builder().header("x-served-by", "a").header("age", "3");
            if request.uri().path() == "/cookie" {
                response = response.header("set-cookie", "a=b");
            }
            if request.uri().path() == "/etag" {
                response = response.header("etag", "\"a\"").header("cache-control", "max-age=60");
            }
            response
                .status(if request.uri().path() == "/gone" { 404 } else { 200 })
                .body(text("a page"))
                .unwrap()
        }
    };
    let larder = larder();
    let (bare, through): (Seen, Seen) = Default::default();
    let cache = HttpCache::new(&larder).ttl(MINUTE).shared().observe_only();
    let plain = |seen: &Seen| {
        let (answer, seen) = (answer(seen.clone()), seen.clone());
        drop(seen);
        service_fn(move |request| {
            let answered = answer(request, 0);
            async move { Ok::<_, Infallible>(answered) }
        })
    };
    let (bare_service, service) = (plain(&bare), cache.layer(plain(&through)));
    let kinds: Vec<fn() -> http::request::Builder> = vec![
        || request("/a?b=c&utm_source=d"),
        || request("/a").header("cookie", "session=1").header("authorization", "Bearer x"),
        || request("/etag").header("if-none-match", "\"a\""),
        || request("/etag").header("range", "bytes=0-1"),
        || request("/a").method(Method::HEAD),
        || request("/a").method(Method::POST).header("if-match", "\"b\""),
        || request("/a").header("cache-control", "only-if-cached"),
        || request("/a").header("cache-control", "no-cache"),
        || request("/cookie"),
        || request("/gone"),
        || request("/a").header("host", "not a host"),
        || request("/a").header("x-unknown", "1"),
    ];
    for round in 0..3 {
        for kind in &kinds {
            let expected = bare_service.clone().oneshot(empty(kind())).await.unwrap();
            let got = service.clone().oneshot(empty(kind())).await.unwrap();
            assert_eq!(
                (got.status(), got.headers()),
                (expected.status(), expected.headers()),
                "{round}"
            );
            let hint = (got.size_hint().exact(), expected.size_hint().exact());
            assert_eq!(hint.0, hint.1);
            let (got, expected) =
                (got.into_body().collect().await, expected.into_body().collect().await);
            assert_eq!(got.unwrap().to_bytes(), expected.unwrap().to_bytes());
        }
    }
    assert_eq!(
        *through.lock().unwrap(),
        *bare.lock().unwrap(),
        "each request reaches the handler as it was sent"
    );
    let (hits, misses, stored, bypassed) = counts(&larder);
    assert!(
        hits > 0 && misses > 0 && stored > 0 && bypassed > 0,
        "{hits} {misses} {stored} {bypassed}"
    );
}

/// The counters are those that the same requests have with the cache.
#[tokio::test(start_paused = true)]
async fn the_counters_are_those_of_the_cache() {
    let all = async |observes: bool| {
        let larder = larder();
        let layer = layer(&larder);
        let layer = if observes { layer.observe_only() } else { layer };
        let origin = Origin::new(layer, |request, _| match request.uri().path() {
            "/private" => Response::builder().header("set-cookie", "a=b").body(text("")).unwrap(),
            path => Response::new(text(path.to_owned())),
        });
        for round in 0..5 {
            for path in ["/a", "/b", "/private"] {
                drop(origin.send(request(path)).await.into_body().collect().await.unwrap());
            }
            drop(origin.send(request("/a").method(Method::POST)).await);
            let _logged = match round {
                1 => Some(larder.invalidate(larder_core::Target::path("/b")).await),
                3 => {
                    tokio::time::advance(MINUTE).await;
                    None
                }
                _ => None,
            };
        }
        let stats = larder.stats().cache("responses").unwrap().clone();
        (
            stats.total.hits,
            stats.total.misses,
            stats.total.stored,
            stats.bypasses.get(&Reason::Method).copied(),
            origin.calls(),
        )
    };
    let (with, observed) = (all(false).await, all(true).await);
    assert_eq!((with.0, with.2, with.3), (observed.0, observed.2, observed.3));
    assert_eq!(observed.4, 20, "the handler answers each request");
}

#[tokio::test(start_paused = true)]
async fn would_be_hits_that_would_be_wrong_are_counted_by_their_kind() {
    let larder = larder();
    let version = Arc::new(AtomicUsize::new(1));
    let current = Arc::clone(&version);
    let origin = Origin::new(layer(&larder).shared().observe_only(), move |request, _| {
        let path = request.uri().path().to_owned();
        let route = path.clone();
        request.extensions().get::<ResponseOverrides>().unwrap().note_route(&route);
        let user = request
            .headers()
            .get("cookie")
            .and_then(|it| it.to_str().ok())
            .unwrap_or("nobody")
            .to_owned();
        Response::new(text(match &*path {
            "/cart" => format!("the cart of {user}"),
            "/price" => format!("costs {}", current.load(Ordering::SeqCst)),
            _ => "the same".to_owned(),
        }))
    });
    let get = async |path: &str, user: Option<&str>| {
        let request = request(path);
        let request = user.into_iter().fold(request, |it, user| it.header("cookie", user));
        let body = origin.send(request).await.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    for path in ["/about", "/cart", "/price"] {
        get(path, Some("ada")).await;
    }
    // What `shared` would serve to others was made for ada.
    assert_eq!(get("/cart", Some("bob")).await, "the cart of bob", "and never serves");
    assert_eq!(get("/cart", None).await, "the cart of nobody");
    assert_eq!(get("/about", Some("bob")).await, "the same");
    assert_eq!(observed(&larder, "/cart").differs_by_user, 2);
    assert_eq!(observed(&larder, "/about").same, 1);

    // A price changes and is not invalidated: it would have been stale, but only after `max_lag` is that known.
    let _logged = larder.invalidate(larder_core::Target::path("/price")).await;
    get("/price", None).await;
    version.store(2, Ordering::SeqCst);
    get("/price", None).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(observed(&larder, "/price").stale, 0);
    tokio::time::sleep(MINUTE / 2).await;
    assert_eq!(observed(&larder, "/price").stale, 1);
    // The next change is invalidated a little later than the handler sees it.
    let _logged = larder.invalidate(larder_core::Target::path("/price")).await;
    get("/price", None).await;
    version.store(3, Ordering::SeqCst);
    get("/price", None).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let _logged = larder.invalidate(larder_core::Target::path("/price")).await;
    tokio::time::sleep(MINUTE / 2).await;
    let price = observed(&larder, "/price");
    assert_eq!((price.stale, price.late), (1, 1), "{price:?}");
    let advice = larder.advice();
    let about: Vec<_> = advice.iter().map(|it| (it.kind, it.route.as_deref().unwrap())).collect();
    let expected = [(AdviceKind::DiffersByUser, "/cart"), (AdviceKind::StaleHits, "/price")];
    assert_eq!(about, expected, "{advice:?}");
    assert!(advice[0].text.starts_with("Of 2 compared hits, 2 were made for another user"));
}

/// Rule: no other layer serves what an observing one has stored, from which nothing of the user was hidden.
#[tokio::test(start_paused = true)]
async fn an_observed_response_is_served_by_no_other_layer() {
    let larder = larder();
    let answer = |request: Request<Empty<Bytes>>, _: usize| {
        let user =
            request.headers().get("cookie").map_or("nobody", |it| it.to_str().unwrap()).to_owned();
        Response::new(text(user))
    };
    let observing = Origin::new(layer(&larder).shared().observe_only(), answer);
    let serving = Origin::new(layer(&larder).shared(), answer);
    drop(observing.send(request("/").header("cookie", "ada")).await.into_body().collect().await);
    let (status, content) = serving.get("/").await;
    assert!(status.contains("fwd=uri-miss") && content == "nobody", "{status} {content}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_read_to_its_end_is_not_stored() {
    let larder = larder();
    let origin = Origin::new(layer(&larder).observe_only(), |_, _| {
        let (send, frames) = mpsc::channel(4);
        send.try_send(Ok(Frame::data(Bytes::from("half")))).unwrap();
        drop(send);
        Response::builder().header("content-length", "8").body(stream(frames)).unwrap()
    });
    let mut body = origin.send(request("/")).await.into_body();
    drop(body.frame().await);
    drop(body);
    assert_eq!(counts(&larder).2, 0);
}
