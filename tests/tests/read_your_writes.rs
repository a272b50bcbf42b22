//! A client sees its own writes, in every process that serves its next request.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use larder::{
    Larder, LoadHandle, Policy, SealingKeys,
    http::{CacheBody, InvalidationLayer, ReadYourWrites, ResponseCacheLayer},
};
use larder_testkit::{LogLine, SeededRng, SharedLog};
use tower::{Layer as _, ServiceExt as _, service_fn, util::BoxCloneService};

const MINUTE: Duration = Duration::from_secs(60);

type Page = BoxCloneService<Request<Full<Bytes>>, Response<CacheBody<Full<Bytes>>>, Infallible>;

/// Two processes in front of one origin. The second receives the records of the first after up to `slow`.
struct World {
    log: SharedLog,
    lines: [LogLine; 2],
    larders: [Larder; 2],
    pages: [Page; 2],
}

impl World {
    async fn new(slow: Duration, positions: fn(SealingKeys) -> ReadYourWrites) -> Self {
        let log = SharedLog::new();
        let mut seeds = 0;
        let lines = [Duration::from_micros(10), slow].map(|slow| {
            seeds += 1;
            log.line(SeededRng::new(seeds), 0, slow)
        });
        let larders = [0, 1].map(|at: usize| {
            Larder::builder().tag_table_slots(1 << 10).bus(lines[at].clone()).build().unwrap()
        });
        for larder in &larders {
            larder.synced().await;
        }
        let row = Arc::new(AtomicU32::new(0));
        let pages = [0, 1].map(|at: usize| {
            let row = row.clone();
            let origin = service_fn(move |request: Request<Full<Bytes>>| {
                assert!(!request.headers().contains_key("larder-position"), "taken off");
                let version = match *request.method() {
                    Method::GET => row.load(Ordering::SeqCst),
                    _ => row.fetch_add(1, Ordering::SeqCst) + 1,
                };
                let answer = Response::new(Full::<Bytes>::from(version.to_string()));
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let cached = ResponseCacheLayer::new(&larders[at]).ttl(MINUTE);
            let positions = positions(SealingKeys::new([3; 32]));
            let layer = InvalidationLayer::new(&larders[at]).read_your_writes(positions);
            BoxCloneService::new(layer.layer(cached.layer(origin)))
        });
        Self { log, lines, larders, pages }
    }

    async fn ask(&self, at: usize, method: Method, headers: &HeaderMap) -> (String, HeaderMap) {
        let mut request = Request::builder()
            .method(method)
            .uri("http://a.example/")
            .body(Full::default())
            .unwrap();
        *request.headers_mut() = headers.clone();
        let answer = self.pages[at].clone().oneshot(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (String::from_utf8(body.to_vec()).unwrap(), head.headers)
    }

    async fn get(&self, at: usize, headers: &HeaderMap) -> (String, String) {
        let (body, headers) = self.ask(at, Method::GET, headers).await;
        (body, headers["cache-status"].to_str().unwrap().to_owned())
    }

    /// Writes in the first process, and returns the fields that the client has to send back.
    async fn write(&self) -> HeaderMap {
        let (_, headers) = self.ask(0, Method::POST, &HeaderMap::new()).await;
        let mut carried = HeaderMap::new();
        if let Some(position) = headers.get("larder-position") {
            carried.insert("larder-position", position.clone());
        }
        if let Some(cookie) = headers.get(header::SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            assert!(cookie.contains("Max-Age=60; HttpOnly; SameSite=Lax"), "{cookie}");
            let pair = cookie.split(';').next().unwrap();
            carried.insert(header::COOKIE, HeaderValue::from_str(pair).unwrap());
        }
        carried
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_client_that_wrote_waits_for_its_write() {
    for positions in [ReadYourWrites::by_field, ReadYourWrites::by_cookie] {
        let world = World::new(Duration::from_millis(40), positions).await;
        let nothing = HeaderMap::new();
        for round in 1..20_u32 {
            let before = (round - 1).to_string();
            world.get(1, &nothing).await;
            assert_eq!(world.get(1, &nothing).await.0, before);
            let carried = world.write().await;
            assert_eq!(carried.len(), 1);
            assert_eq!(world.get(1, &nothing).await.0, before, "another may be a moment behind");
            assert_eq!(world.get(1, &carried).await.0, round.to_string());
            let (body, status) = world.get(1, &carried).await;
            assert_eq!(body, round.to_string());
            assert!(
                status.contains("hit"),
                "and its position does not count as credentials: {status}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_position_that_is_not_reached_bypasses_the_cache() {
    let world = World::new(Duration::from_millis(1), ReadYourWrites::by_field).await;
    let nothing = HeaderMap::new();
    assert_eq!(world.get(1, &nothing).await.0, "0");
    world.lines[1].cut(true);
    let carried = world.write().await;
    let began = tokio::time::Instant::now();
    let (body, status) = world.get(1, &carried).await;
    assert_eq!(body, "1");
    assert!(status.contains("fwd=bypass; detail=unsynchronised"), "{status}");
    assert!(began.elapsed() < Duration::from_millis(150), "it waits for no longer than it may");
    assert_eq!(world.get(1, &nothing).await.0, "0", "and the bypassed response was not stored");
    // A position of an epoch that the process does not know is not waited for.
    world.lines[1].cut(false);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.get(1, &nothing).await.0, "1");
    let carried = world.write().await;
    world.lines[1].cut(true);
    world.log.replace();
    world.larders[0].synced().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let later = world.write().await;
    for carried in [&carried, &later] {
        assert_eq!(world.get(1, carried).await.0, "3");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_write_is_not_logged_bypasses_the_cache() {
    let world = World::new(Duration::from_millis(1), ReadYourWrites::by_field).await;
    let nothing = HeaderMap::new();
    assert_eq!(world.get(1, &nothing).await.0, "0");
    world.lines[0].cut(true);
    let carried = world.write().await;
    assert_eq!(carried.len(), 1);
    assert_eq!(world.get(1, &carried).await.0, "1");
    assert_eq!(world.get(1, &nothing).await.0, "0");
}

#[tokio::test(start_paused = true)]
async fn a_read_gives_no_position_and_a_forged_one_is_ignored() {
    let world = World::new(Duration::from_millis(1), ReadYourWrites::by_field).await;
    let (_, headers) = world.ask(0, Method::GET, &HeaderMap::new()).await;
    assert!(!headers.contains_key("larder-position"));
    let forged = [(
        http::HeaderName::from_static("larder-position"),
        HeaderValue::from_static(
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ),
    )];
    let forged = forged.into_iter().collect();
    assert!(world.get(0, &forged).await.1.contains("hit"));
}

/// A handler that reads a row through the cache of its process, and writes it on PUT.
fn row_of(
    larder: &Larder,
    row: &Arc<AtomicU32>,
) -> BoxCloneService<Request<Full<Bytes>>, Response<Full<Bytes>>, Infallible> {
    let (larder, row) = (larder.clone(), row.clone());
    BoxCloneService::new(service_fn(move |request: Request<Full<Bytes>>| {
        let (larder, row) = (larder.clone(), row.clone());
        async move {
            if request.method() == Method::PUT {
                row.fetch_add(1, Ordering::SeqCst);
                let _logged = larder.invalidate("row").await;
            }
            let load =
                move |_: LoadHandle| async move { Ok::<_, Infallible>(row.load(Ordering::SeqCst)) };
            let policy = Policy::ttl(MINUTE).tag("row");
            let read = larder.get_or_load("row", policy, load).await.unwrap();
            Ok(Response::new(Full::<Bytes>::from(read.to_string())))
        }
    }))
}

async fn text(
    answer: Response<impl http_body::Body<Data = Bytes, Error: std::fmt::Debug>>,
) -> Bytes {
    answer.into_body().collect().await.unwrap().to_bytes()
}

fn asked(method: Method, carried: Option<&HeaderValue>) -> Request<Full<Bytes>> {
    let mut request =
        Request::builder().method(method).uri("http://a.example/").body(Full::default()).unwrap();
    if let Some(carried) = carried {
        request.headers_mut().insert("larder-position", carried.clone());
    }
    request
}

#[tokio::test(start_paused = true)]
async fn a_write_that_reads_first_has_seen_the_write_before_it() {
    let World { larders, .. } =
        World::new(Duration::from_millis(40), ReadYourWrites::by_field).await;
    let row = Arc::new(AtomicU32::new(0));
    let pages = [0, 1].map(|at: usize| {
        let positions = ReadYourWrites::by_field(SealingKeys::new([3; 32]));
        let layer = InvalidationLayer::new(&larders[at]).read_your_writes(positions);
        layer.layer(row_of(&larders[at], &row))
    });
    for round in 1..10_u32 {
        pages[1].clone().oneshot(asked(Method::GET, None)).await.unwrap();
        let written = pages[0].clone().oneshot(asked(Method::PUT, None)).await.unwrap();
        let carried = written.headers()["larder-position"].clone();
        let post = pages[1].clone().oneshot(asked(Method::POST, Some(&carried))).await.unwrap();
        assert_eq!(text(post).await, round.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn with_the_layer_inside_the_cache_a_page_keeps_its_tags() {
    let World { larders, .. } =
        World::new(Duration::from_millis(1), ReadYourWrites::by_field).await;
    let row = Arc::new(AtomicU32::new(0));
    let positions = ReadYourWrites::by_field(SealingKeys::new([3; 32]));
    let inner = InvalidationLayer::new(&larders[0]).read_your_writes(positions);
    let cached = ResponseCacheLayer::new(&larders[0]).ttl(MINUTE);
    let page = cached.layer(inner.layer(row_of(&larders[0], &row)));
    let written = page.clone().oneshot(asked(Method::PUT, None)).await.unwrap();
    let carried = written.headers()["larder-position"].clone();
    let get = async || {
        let answer = page.clone().oneshot(asked(Method::GET, Some(&carried))).await.unwrap();
        text(answer).await
    };
    assert_eq!(get().await, "1");
    row.store(5, Ordering::SeqCst);
    assert_eq!(get().await, "1", "it is kept");
    let _logged = larders[0].invalidate("row").await;
    assert_eq!(get().await, "5");
}
