//! The cost of bypasses, unsafe requests and misses, of invalidation, and of hits under load.

use std::{
    convert::Infallible,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Request, StatusCode, header},
    routing::get,
};
use benches::{Row, app, ask, baseline, fill, median, now, report, request, take_turns, turns};
use bytes::Bytes;
use larder::{
    Larder, LoadHandle, Policy,
    axum::{InvalidationLayer, ResponseCacheLayer},
    http::BodyKeyLayer,
};
use larder_semantics::{
    freshness,
    storing::{self, Profile, RequestIdentity, Role},
    targeted,
    validation::Validators,
    vary,
};

fn main() {
    let body = Bytes::from(vec![b'x'; 1024]);
    report(
        "Requests that are no hits, over LIMIT (the ratio is microseconds more)",
        &passing(&body),
    );
    report("Invalidating a tag (microseconds; the ratio is microseconds)", &invalidating());
    report(
        "The fields of a response that a miss reads (microseconds; the ratio is microseconds)",
        &[judging()],
    );
    report("Hits under pressure", &[under_invalidation(&body), two_threads(&body)]);
}

/// Parses and judges the fields of a typical response, as a miss does.
fn judging() -> Row {
    const TIMES: usize = 20_000;
    let mut fields = HeaderMap::new();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=300, stale-while-revalidate=60"),
        (header::ETAG, "\"5f2a-61c8e0a1b2c3d\""),
        (header::LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (header::DATE, "Sat, 21 Nov 2026 12:00:00 GMT"),
        (header::VARY, "accept-encoding, accept-language"),
        (header::CONTENT_ENCODING, "gzip"),
        (header::SERVER, "origin"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    let now = SystemTime::now();
    let judge = || {
        let control = targeted::control_of(&fields, &[targeted::CDN_CACHE_CONTROL]);
        let rules = (Profile::Careful, Role::Shared);
        let stored =
            storing::check(RequestIdentity::default(), StatusCode::OK, &fields, &control, rules)
                .is_ok();
        let fresh = freshness::lifetime(&fields, &control, now, Role::Shared);
        let age = freshness::age_on_receipt(&fields, now, now);
        black_box((stored, fresh, age, Validators::of(&fields), vary::names(&fields)))
    };
    let rounds = (0..31).map(|_| {
        let began = Instant::now();
        (0..TIMES).for_each(|_| drop(judge()));
        began.elapsed().as_secs_f64() * 1e6 / TIMES as f64
    });
    let ours = median(rounds.collect());
    Row {
        case: "the fields of a typical response, read and judged".into(),
        ours,
        baseline: 0.0,
        ratio: ours,
        budget: Some(2.0),
        unit: "us",
    }
}

fn method(method: &str, path: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "shop.example")
        .body(Body::empty())
        .expect("a valid request")
}

fn graphql(key: u64) -> Request<Body> {
    let query =
        "query Product($id: ID!) { product(id: $id) { name price pictures { url width height } } }";
    let content = format!(
        r#"{{"operationName":"Product","variables":{{"id":{key}}},"query":"{query}","extensions":{{}}}}"#
    );
    let mut request = method("POST", "/products/graphql");
    request
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *request.body_mut() = Body::from(content);
    request
}

/// The cost of a bypass, an unsafe request and a miss.
fn passing(body: &Bytes) -> Vec<Row> {
    const REQUESTS: usize = 2_000;
    let page = body.clone();
    let handler = move || {
        let page = page.clone();
        async move { page }
    };
    let plain = Router::new().route("/products/{id}", get(handler.clone()).post(handler));
    let limit = plain.clone().with_state(());
    let larder = baseline::larder();
    let cached = plain.clone().layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)));
    let writing = plain.layer(
        tower::ServiceBuilder::new()
            .layer(InvalidationLayer::new(&larder))
            .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60))),
    );
    let (cached, writing) = (cached.with_state(()), writing.with_state(()));
    let reads = BodyKeyLayer::new().graphql_queries(|_| true);
    let searching = cached.clone().layer(reads).with_state(());
    let mut fresh = 0_u64;
    let figures = turns(7, 31, |at, keys| {
        now(async {
            let start = Instant::now();
            for _ in 0..REQUESTS {
                let key = keys.next(1000);
                fresh += 1;
                match at {
                    0 => ask(&limit, method("GET", &format!("/products/{key}"))).await,
                    1 => ask(&limit, method("POST", &format!("/products/{key}"))).await,
                    2 => ask(&cached, method("POST", &format!("/products/{key}"))).await,
                    3 => ask(&writing, method("POST", &format!("/products/{key}"))).await,
                    5 => ask(&limit, graphql(key)).await,
                    6 => ask(&searching, graphql(key)).await,
                    _ => ask(&cached, method("GET", &format!("/products/{fresh}"))).await,
                }
            }
            start.elapsed().as_nanos() as f64 / REQUESTS as f64 / 1000.0
        })
    });
    let row = |case: &str, at: usize, base: usize, budget| Row {
        case: case.to_owned(),
        ours: figures[at].0,
        baseline: figures[base].0,
        ratio: figures[at].0 - figures[base].0,
        budget: Some(budget),
        unit: "us",
    };
    vec![
        row("a bypass", 2, 1, 2.0),
        row("an unsafe request with its implicit invalidation", 3, 1, 5.0),
        row("a miss of a handler that returns at once", 4, 0, 50.0),
        row("a hit of a GraphQL query of 180 bytes over POST", 6, 5, 8.0),
    ]
}

/// Invalidates a tag of a thousand entries, and one of a million.
fn invalidating() -> Vec<Row> {
    let mut figures = Vec::new();
    for entries in [1_000_u32, 1_000_000] {
        let larder =
            Larder::builder().memory(larder::ByteSize::gib(4)).build().expect("valid options");
        now(async {
            for number in 0..entries {
                let load = |_: LoadHandle| async { Ok::<_, Infallible>(7_u8) };
                let policy = Policy::ttl(Duration::from_secs(3_000)).tag("all");
                let loaded = larder.get_or_load(("n", number), policy, load).await;
                loaded.expect("it cannot fail");
            }
            assert_eq!(larder.stats().memory.entries, entries as usize);
        });
        let figure = now(async {
            let mut micros = Vec::new();
            for _ in 0..1_000 {
                let start = Instant::now();
                let _ = black_box(larder.invalidate("all").await);
                micros.push(start.elapsed().as_nanos() as f64 / 1000.0);
            }
            median(micros)
        });
        figures.push(figure);
    }
    let row = |case: &str, ours: f64| Row {
        case: case.to_owned(),
        ours,
        baseline: figures[0],
        ratio: ours,
        budget: Some(10.0),
        unit: "us",
    };
    vec![row("a tag with 1,000 entries", figures[0]), row("a tag with 1,000,000", figures[1])]
}

/// Hits with eight tags while other tags are invalidated a thousand times a second.
fn under_invalidation(body: &Bytes) -> Row {
    const KEYS: u64 = 10_000;
    let (quiet, busy) = (baseline::larder(), baseline::larder());
    let untagged = baseline::one_layer(&quiet, body, 0);
    let tagged = baseline::one_layer(&busy, body, 8);
    fill(&untagged, KEYS);
    fill(&tagged, KEYS);
    let stop = Arc::new(AtomicBool::new(false));
    let invalidating = std::thread::spawn({
        let (stop, busy) = (stop.clone(), busy.clone());
        move || {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..5 {
                    number += 1;
                    let _ = now(busy.invalidate(("other", number)));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let before = busy.stats();
    let figures = take_turns(&mut [app(untagged), app(tagged)], KEYS, 61, 8_000);
    stop.store(true, Ordering::Relaxed);
    drop(invalidating.join());
    let after = busy.stats();
    let of =
        |stats: &larder::Stats| stats.cache("responses").map_or(0, |cache| cache.total.invalid);
    println!(
        "needless misses: {} of {} hits, under {} invalidations",
        of(&after) - of(&before),
        61 * 8_000,
        after.invalidations
    );
    Row {
        case: "a hit with 8 tags under 1,000 invalidations a second".to_owned(),
        ours: figures[1].0,
        baseline: figures[0].0,
        ratio: figures[1].1,
        budget: Some(1.2),
        unit: "ns",
    }
}

/// Two threads on one hot key, compared with two threads on LIMIT.
fn two_threads(body: &Bytes) -> Row {
    const REQUESTS: usize = 40_000;
    let larder = baseline::larder();
    let (limit, layer) = (baseline::limit(body), baseline::one_layer(&larder, body, 4));
    fill(&layer, 8);
    let rate = |router: &Router, threads: usize| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let mut router = router.clone();
                scope.spawn(move || {
                    for _ in 0..REQUESTS {
                        black_box(benches::send(&mut router, request("/products/7")));
                    }
                });
            }
        });
        (threads * REQUESTS) as f64 / start.elapsed().as_secs_f64()
    };
    let speed_up = |router: &Router| rate(router, 2) / rate(router, 1);
    let figures = turns(2, 15, |at, _| 1.0 / speed_up(if at == 0 { &limit } else { &layer }));
    Row {
        case: "two threads on one hot key: time for twice the work".to_owned(),
        ours: figures[1].0,
        baseline: figures[0].0,
        ratio: figures[1].1,
        budget: Some(1.25),
        unit: "x",
    }
}
