//! The counters of routes: each request has one outcome, and belongs to one route.

use larder_core::{CacheStats, Reason, RouteStats};

use super::*;

/// Answers with the path, and notes the route as a layer inside a router does.
fn routed(request: &Request<Empty<Bytes>>) {
    if let Some(id) = request.uri().path().strip_prefix("/products/") {
        assert!(!id.is_empty());
        request.extensions().get::<ResponseOverrides>().unwrap().note_route("/products/{id}");
    }
}

fn stats(larder: &Larder) -> CacheStats {
    larder.stats().cache("responses").cloned().unwrap_or_else(|| panic!("it was used"))
}

fn route(larder: &Larder, name: &str) -> RouteStats {
    let stats = stats(larder);
    let found = stats.routes.iter().find(|route| route.route == name).cloned();
    found.unwrap_or_else(|| panic!("{name} is not in {stats:?}"))
}

#[tokio::test(start_paused = true)]
async fn a_cache_around_a_router_learns_the_route_at_the_fill_and_counts_its_hits() {
    let larder = larder();
    let origin = Origin::new(ResponseCacheLayer::new(&larder).ttl(MINUTE), |request, call| {
        routed(&request);
        Response::new(text(call.to_string()))
    });
    for _ in 0..3 {
        origin.get("/products/1").await;
        origin.get("/products/2?secret=3").await;
        origin.get("/elsewhere/ada@example.com").await;
    }
    origin.send(request("/products/1").method(Method::POST)).await;
    let products = route(&larder, "/products/{id}");
    assert_eq!((products.requests, products.misses, products.hits), (7, 2, 4));
    assert_eq!((products.bypassed, products.refusals[&Reason::Method]), (1, 1));
    let unmatched = route(&larder, "unmatched");
    assert_eq!((unmatched.requests, unmatched.misses, unmatched.hits), (3, 1, 2));
    let all = format!("{:?}", larder.stats());
    assert!(!all.contains("secret") && !all.contains("ada@"), "no path is in any counter");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_stored_counts_as_refused_for_its_route() {
    let larder = larder();
    let origin = Origin::new(ResponseCacheLayer::new(&larder).ttl(MINUTE), |request, _| {
        routed(&request);
        Response::builder().header("set-cookie", "a=b").body(text("")).unwrap()
    });
    origin.get("/products/1").await;
    assert_eq!(route(&larder, "/products/{id}").refusals[&Reason::SetCookie], 1);
}

/// Sends requests of all kinds, some of them at once, and some that are dropped: the sum of the outcomes is the number
/// of requests, for the cache and for its routes.
#[tokio::test(start_paused = true)]
async fn each_request_has_exactly_one_outcome() {
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder)
        .ttl(Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE).stale_if_error(10 * MINUTE))
        .bypass_if(|head| head.uri.path() == "/by-choice");
    let origin = Origin::asynchronous(layer, |request, call| async move {
        routed(&request);
        tokio::time::sleep(Duration::from_millis(10)).await;
        match request.uri().path() {
            "/private" => Response::builder().header("set-cookie", "a=b").body(text("")).unwrap(),
            "/fails" if call % 3 != 0 => Response::builder().status(503).body(text("")).unwrap(),
            _ => Response::new(text(call.to_string())),
        }
    });
    let paths = ["/", "/products/1", "/products/2", "/private", "/fails", "/by-choice"];
    let mut sent = 0;
    for round in 0..120_usize {
        let path = paths[round % paths.len()];
        let requests = (0..6).map(|number| {
            let request = match (round / paths.len() + number) % 9 {
                0 => request(path).header("cache-control", "no-cache"),
                1 => request(path).header("cache-control", "only-if-cached"),
                2 => request(path).header("range", "bytes=0-1"),
                3 => request(path).method(Method::HEAD),
                4 => request(path).method(Method::POST),
                5 => request(path).header("cookie", "session=1"),
                _ => request(path),
            };
            origin.send(request)
        });
        // A client that disconnects while it leads a fill has an outcome; one that disconnects while it waits has none.
        let is_dropped = round % 7 == 0;
        let requests: Vec<_> = requests.take(if is_dropped { 1 } else { 6 }).collect();
        sent += requests.len() as u64;
        if is_dropped {
            let all = futures_util::future::join_all(requests);
            drop(tokio::time::timeout(Duration::from_millis(5), all).await);
        } else {
            for response in futures_util::future::join_all(requests).await {
                drop(response.into_body().collect().await);
            }
        }
        tokio::time::advance(Duration::from_secs([1, 7, 70][round / 6 % 3])).await;
    }
    larder.close(MINUTE).await;
    let stats = stats(&larder);
    let total = stats.total;
    let outcomes = total.hits + total.stale_hits + total.collapsed + total.misses + total.bypassed;
    assert_eq!(outcomes, sent, "{total:?}");
    assert!(
        [
            total.hits,
            total.stale_hits,
            total.collapsed,
            total.misses,
            total.bypassed,
            total.stale_on_error
        ]
        .iter()
        .all(|count| *count > 0),
        "{total:?}"
    );
    assert_eq!(stats.routes.iter().map(|route| route.requests).sum::<u64>(), sent);
    assert_eq!(stats.routes.iter().map(|route| route.hits).sum::<u64>(), total.hits);
    assert_eq!(stats.routes.iter().map(|route| route.misses).sum::<u64>(), total.misses);
}

#[tokio::test(start_paused = true)]
async fn hits_save_the_time_and_the_bytes_of_the_fill() {
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder).ttl(10 * MINUTE);
    let origin = Origin::asynchronous(layer, |_, _| async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        Response::new(text("ten bytes."))
    });
    origin.get("/").await;
    for _ in 0..4_000 {
        origin.get("/").await;
    }
    // One hit in 16 stands for the others, so the numbers are estimates.
    let saved = stats(&larder).total.saved;
    let hits = saved.bytes / 10;
    assert!((3_000..5_000).contains(&hits), "{saved:?}");
    assert_eq!(saved.fill_time_micros, hits * 40_000);
}
