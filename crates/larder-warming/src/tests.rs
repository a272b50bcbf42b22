//! Tests of a warmer in front of a small application, under paused time.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use larder_core::{Larder, Tag, Target};
use larder_http::{BoxError, CacheBody, ResponseCacheLayer, ResponseOverrides};
use larder_testkit::{MemoryStore, SeededRng, SharedLog};
use parking_lot::Mutex;
use tower::{ServiceExt as _, service_fn};
use tower_layer::Layer as _;

use crate::{AccessLog, AppHandle, HotUrls, WarmTarget, Warmer};

const SECOND: Duration = Duration::from_secs(1);
type Body = Full<Bytes>;

/// A user, as an authentication layer leaves it.
#[derive(Clone)]
struct User(u32);

/// What the handler has seen.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn paths(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

type Router = tower::util::BoxCloneSyncService<Request<Body>, Response<CacheBody<Body>>, BoxError>;

/// An application: each path is a page with its tag, `/slow…` takes ten seconds, `/broken` fails, and `/account` belongs to
/// a user.
fn app(larder: &Larder, seen: &Seen) -> Router {
    app_with(larder, seen, |layer| layer)
}

fn app_with(
    larder: &Larder,
    seen: &Seen,
    set: impl FnOnce(ResponseCacheLayer) -> ResponseCacheLayer,
) -> Router {
    let layer = ResponseCacheLayer::new(larder).name("pages").partition_by(|head| {
        let user = head.extensions.get::<User>().map(|user| user.0.to_string());
        Ok::<_, Infallible>(user)
    });
    let seen = seen.clone();
    let handler = service_fn(move |request: Request<Body>| {
        let seen = seen.clone();
        async move {
            let path = request.uri().path().to_owned();
            let language = request.headers().get(header::ACCEPT_LANGUAGE);
            let language =
                language.map(|language| language.to_str().unwrap_or_default().to_owned());
            seen.0.lock().push(format!(
                "{path}{}",
                language.as_ref().map(|l| format!(" {l}")).unwrap_or_default()
            ));
            if let Some(policy) = request.extensions().get::<ResponseOverrides>() {
                policy.tag(Tag::new(format!("page:{path}")));
            }
            assert!(path != "/panics", "this page is broken");
            if path.starts_with("/slow") {
                tokio::time::sleep(10 * SECOND).await;
            }
            let status =
                if path == "/broken" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
            let response = Response::builder()
                .status(status)
                .header(header::CACHE_CONTROL, "public, max-age=600");
            let response = match language {
                Some(_) => response.header(header::VARY, "accept-language"),
                None => response,
            };
            response.body(Full::new(Bytes::from(path)))
        }
    });
    let handler = tower::util::MapErr::new(handler, BoxError::from);
    let service = set(layer).layer(handler);
    tower::util::BoxCloneSyncService::new(service)
}

/// A request from the network.
async fn visit(app: &Router, path: &str, user: Option<User>) -> String {
    let mut request =
        Request::get(path).header(header::HOST, "shop.example").body(Body::default()).unwrap();
    request.extensions_mut().extend(
        user.map(|user| {
            let mut extensions = http::Extensions::new();
            extensions.insert(user);
            extensions
        })
        .unwrap_or_default(),
    );
    let response = app.clone().oneshot(request).await.unwrap();
    let status =
        response.headers().get("cache-status").map(|status| status.to_str().unwrap().to_owned());
    drop(http_body_util::BodyExt::collect(response.into_body()).await);
    status.unwrap_or_default()
}

fn warmer(larder: &Larder, app: &Router) -> Warmer {
    Warmer::new(larder, AppHandle::new(app.clone())).host("shop.example")
}

fn open() -> (Larder, Seen, Router, Warmer) {
    let larder = Larder::builder().build().unwrap();
    let seen = Seen::default();
    let app = app(&larder, &seen);
    let warmer = warmer(&larder, &app);
    (larder, seen, app, warmer)
}

#[tokio::test(start_paused = true)]
async fn a_warmed_page_is_a_hit_and_warming_is_no_traffic() {
    let (larder, seen, app, warmer) = open();
    let report = warmer.warm(["/a", "/b"]).await;
    assert_eq!((report.filled, report.fresh, report.failed), (2, 0, 0));
    let rows = futures_util::stream::iter(["/a".to_owned(), "/c".to_owned()]);
    let report = warmer.warm_stream(rows).await;
    assert_eq!((report.filled, report.fresh), (1, 1));
    let stats = larder.stats();
    assert!(stats.cache("pages").is_none_or(|pages| pages.total.hits + pages.total.misses == 0));
    let warming = stats.cache("warming").unwrap().total;
    assert_eq!((warming.hits, warming.misses), (1, 3));
    assert!(visit(&app, "/a", None).await.contains("; hit"));
    assert_eq!(seen.paths(), ["/a", "/b", "/c"]);
    assert_eq!(larder.stats().cache("pages").unwrap().total.hits, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_bypasses_the_cache_does_not_reach_the_handler() {
    let larder = Larder::builder().build().unwrap();
    let seen = Seen::default();
    let app = app_with(&larder, &seen, |layer| layer.bypass_if(|_| true));
    let report = warmer(&larder, &app).warm(["/logout"]).await;
    assert_eq!((report.failed, seen.paths().len()), (1, 0));
    visit(&app, "/logout", None).await;
    assert_eq!(seen.paths().len(), 1, "a request from the network does");
}

#[tokio::test(start_paused = true)]
async fn a_path_of_a_log_needs_a_route_that_allows_it() {
    let (_larder, seen, _app, warmer) = open();
    let line = |path: &str| {
        format!("::1 - - [30/Nov/2026:10:00:00 +0000] \"GET {path} HTTP/1.1\" 200 5\n")
    };
    let log = ["/products/1", "/products/2?page=3", "/logout", "/products/1", "/invite/secret"]
        .map(line)
        .concat();
    let log = AccessLog::read(log.as_bytes()).unwrap();
    let report = warmer.clone().warm(log.clone().top(10)).await;
    assert_eq!((report.skipped, report.filled), (4, 0), "without routes");
    let report = warmer.routes(["/products/{id}", "/"]).warm(log.top(10)).await;
    assert_eq!((report.skipped, report.filled), (2, 2));
    assert_eq!(seen.paths(), ["/products/1", "/products/2"]);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_never_sent() {
    let (_larder, seen, _app, warmer) = open();
    let with_cookie =
        Request::get("https://shop.example/a").header("cookie", "session=1").body(()).unwrap();
    let target = WarmTarget::try_from(with_cookie).unwrap();
    let report = warmer.warm([target]).await;
    assert_eq!((report.failed, seen.paths().len()), (1, 0));
    let post = WarmTarget::try_from(Request::post("/a").body(()).unwrap()).unwrap_err();
    assert_eq!(post.to_string(), "the method is POST, and only GET warms the cache");
    let refused = std::panic::catch_unwind(AssertUnwindSafe(|| {
        warmer.clone().header(header::AUTHORIZATION, ["Basic x"])
    }));
    assert!(refused.is_err());
}

#[tokio::test(start_paused = true)]
async fn responses_of_a_partition_are_not_remembered_and_are_warmed_for_their_principal() {
    let (larder, seen, app, warmer) = open();
    for _ in 0..5 {
        visit(&app, "/account", Some(User(7))).await;
        visit(&app, "/", None).await;
    }
    visit(&app, "/about", None).await;
    let hot = HotUrls::of(&larder, 10);
    assert_eq!(hot.urls(), ["http://shop.example/", "http://shop.example/about"]);
    let _logged = larder.clear().await;
    let report = warmer.warm_for(User(7), ["/account"]).await;
    assert_eq!(report.filled, 1);
    let filled = seen.paths().len();
    assert!(visit(&app, "/account", Some(User(7))).await.contains("; hit"));
    assert!(!visit(&app, "/account", Some(User(8))).await.contains("; hit"));
    assert!(!visit(&app, "/account", None).await.contains("; hit"));
    assert_eq!(seen.paths().len(), filled + 2);
}

#[tokio::test(start_paused = true)]
async fn the_hottest_urls_are_remembered_in_a_file_and_in_a_store() {
    let (larder, _seen, app, _warmer) = open();
    for (path, times) in [("/a", 2), ("/b?x=1", 9), ("/c", 5)] {
        for _ in 0..times {
            visit(&app, path, None).await;
        }
    }
    let hot = HotUrls::of(&larder, 2);
    assert_eq!(hot.urls(), ["http://shop.example/b?x=1", "http://shop.example/c"]);
    let file = std::env::temp_dir().join(format!("larder-hot-urls-{}.txt", std::process::id()));
    assert_eq!(HotUrls::load(&file).unwrap(), HotUrls::default(), "there is no file");
    hot.save(&file).unwrap();
    assert_eq!(HotUrls::load(&file).unwrap(), hot);
    std::fs::remove_file(file).unwrap();
    let store = MemoryStore::new();
    assert_eq!(HotUrls::load_from(&store, "shop").await.unwrap(), HotUrls::default());
    hot.save_to(&store, "shop", SECOND).await.unwrap();
    assert_eq!(HotUrls::load_from(&store, "shop").await.unwrap(), hot);
    // The next process.
    let (_larder, seen, app, warmer) = open();
    assert_eq!(warmer.warm(hot).await.filled, 2);
    assert!(visit(&app, "/b?x=1", None).await.contains("; hit"));
    assert_eq!(seen.paths(), ["/b", "/c"]);
}

#[tokio::test(start_paused = true)]
async fn linked_pages_and_all_combinations_of_fields_are_requested() {
    let (_larder, seen, _app, warmer) = open();
    let warmer = warmer
        .link("/products/{id}", ["/products/{id}/reviews", "/also/{id}"])
        .header(header::ACCEPT_LANGUAGE, ["de", "en"])
        .header(header::ACCEPT_ENCODING, ["gzip", "br"])
        .concurrency(1);
    let report = warmer.warm(["/products/7?x=1"]).await;
    assert_eq!((report.filled, report.fresh), (6, 6), "each language once, whatever the encoding");
    let of = |path: &str| ["de", "en"].map(|language| format!("{path} {language}"));
    let expected = ["/products/7", "/products/7/reviews", "/also/7"].map(of).concat();
    assert_eq!(seen.paths(), expected);
}

/// Without a partition, the page of a user would be stored for all: a warm request has no credentials that would prevent it.
#[tokio::test(start_paused = true)]
async fn a_page_of_a_principal_is_never_warmed_for_all() {
    let larder = Larder::builder().build().unwrap();
    let seen = Seen::default();
    let app = app_with(&larder, &seen, |layer| {
        layer.partition_by(|_| Ok::<_, Infallible>(None::<String>))
    });
    let report = warmer(&larder, &app).warm_for(User(7), ["/account"]).await;
    assert_eq!((report.failed, seen.paths().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn responses_of_other_servers_are_not_remembered() {
    let larder = Larder::builder().build().unwrap();
    let seen = Seen::default();
    let client = app_with(&larder, &seen, ResponseCacheLayer::private_cache);
    visit(&client, "/reindex?key=secret", None).await;
    assert!(visit(&client, "/reindex?key=secret", None).await.contains("; hit"));
    assert_eq!(HotUrls::of(&larder, 10), HotUrls::default());
}

#[tokio::test(start_paused = true)]
async fn a_short_run_does_not_forget_what_a_longer_one_knew() {
    let of = |text: &str| {
        let name = format!("larder-hot-{}-{}", text.len(), std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, text).unwrap();
        let urls = HotUrls::load(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        urls
    };
    let both = of("a\nb\n").followed_by(of("c\nb\nd\n"), 3);
    assert_eq!(both.urls(), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_fails_stops_nothing() {
    let (_larder, _seen, _app, warmer) = open();
    let warmer = warmer.deadline(5 * SECOND);
    let report = warmer.warm(["/a", "/broken", "/panics", "/slow", "not valid \u{7f}", "/b"]).await;
    assert_eq!((report.filled, report.failed), (2, 4));
    let counted = AtomicUsize::new(0);
    let report = warmer
        .each(0..4, async |item| {
            counted.fetch_add(1, Ordering::Relaxed);
            assert!(item != 3, "this value is broken");
            if item == 2 { Err("no such value") } else { Ok(()) }
        })
        .await;
    assert_eq!((report.filled, report.failed, counted.into_inner()), (2, 2, 4));
}

#[tokio::test(start_paused = true)]
async fn concurrency_and_rate_are_bounded() {
    let (_larder, _seen, _app, warmer) = open();
    let slow = |n| format!("/slow/{n}");
    let report = warmer.clone().concurrency(3).warm((0..9).map(slow)).await;
    assert_eq!((report.filled, report.took), (9, 30 * SECOND), "three at a time, ten seconds each");
    let fast = |n| format!("/fast/{n}");
    let report = warmer.clone().per_second(2).warm((0..9).map(fast)).await;
    assert_eq!((report.filled, report.took), (9, 4 * SECOND));
    // A slow request is no reason to make up for lost time.
    let slow_first = ["/slow/z", "/fast/x", "/fast/y", "/fast/z"];
    let report = warmer.concurrency(1).per_second(1).warm(slow_first).await;
    assert_eq!((report.filled, report.took), (4, 12 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_warming_and_no_longer_than_its_deadline() {
    let (_larder, seen, _app, warmer) = open();
    let mut warming = warmer.start(["/slow/1", "/b"]);
    assert_eq!(warming.warmed(SECOND).await, None);
    let report = warming.warmed(20 * SECOND).await.unwrap();
    assert_eq!((report.filled, seen.paths().len()), (2, 2));
    let stopped = warmer.clone().concurrency(1).start((0..100).map(|n| format!("/slow/x{n}")));
    tokio::time::sleep(25 * SECOND).await;
    drop(stopped);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(seen.paths().len(), 2 + 3, "no further request begins");
}

#[tokio::test(start_paused = true)]
async fn a_schedule_warms_at_each_interval_until_it_is_dropped() {
    let (larder, seen, _app, warmer) = open();
    let hourly = warmer.every(3_600 * SECOND, || async { ["/a"] });
    tokio::time::sleep(SECOND).await;
    assert_eq!(seen.paths().len(), 1);
    tokio::time::sleep(3_600 * SECOND).await;
    assert_eq!(seen.paths().len(), 2, "its lifetime of ten minutes has ended");
    drop(hourly);
    let _logged = larder.clear().await;
    tokio::time::sleep(7_200 * SECOND).await;
    assert_eq!(seen.paths().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_hottest_pages_are_warm_again_after_an_invalidation() {
    let (larder, seen, app, warmer) = open();
    for (path, times) in [("/a", 2), ("/b", 9), ("/c", 5)] {
        for _ in 0..times {
            visit(&app, path, None).await;
        }
    }
    let _rewarming = warmer.rewarm(2, SECOND / 10);
    let _logged = larder.invalidate([Target::tag("page:/a"), Target::tag("page:/b")]).await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(
        seen.paths()[3..],
        ["/b"],
        "it is the only one of the two hottest that is not fresh"
    );
    assert!(visit(&app, "/b", None).await.contains("; hit"));
    // Invalidations that never pause do not delay it for ever.
    for _ in 0..40 {
        let _logged = larder.invalidate("page:/b").await;
        tokio::time::sleep(SECOND / 20).await;
    }
    assert!(seen.paths().len() > 4);
}

#[tokio::test(start_paused = true)]
async fn processes_that_share_a_second_level_fill_once() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let seen = Seen::default();
    let mut warming = Vec::new();
    for _ in 0..3 {
        let line = log.line(SeededRng::new(7), 0, SECOND / 100_000);
        let builder = Larder::builder().store(store.clone()).fill_locks(store.clone()).bus(line);
        let larder = builder.build().unwrap();
        larder.synced().await;
        let app = app(&larder, &seen);
        let warmer = warmer(&larder, &app);
        warming.push(tokio::spawn(async move { warmer.warm(["/slow/a", "/slow/b"]).await }));
    }
    for report in warming {
        let report = report.await.unwrap();
        assert_eq!((report.failed, report.filled + report.fresh), (0, 2));
    }
    assert_eq!(seen.paths().len(), 2, "{:?}", seen.paths());
}
