use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::Request;
use http_body_util::BodyExt;
use larder_core::{Larder, Policy, Target};
use larder_http::ConditionalLayer;
use larder_semantics::validation::EntityTag;
use tower::ServiceExt;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

async fn ask(app: &Router, request: http::request::Builder) -> (u16, String) {
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn get_text(app: &Router, uri: &str) -> String {
    ask(app, Request::get(uri)).await.1
}

#[tokio::test]
async fn an_extractor_without_its_layer_names_the_layer() {
    let app = Router::new()
        .route("/policy", get(|_: CachePolicy| async {}))
        .route("/invalidate", get(|_: Invalidate| async {}))
        .route("/conditional", get(|_: Conditional| async {}))
        .route("/fragment", get(|_: FragmentCache| async {}));
    for (uri, layer) in [
        ("/policy", "ResponseCacheLayer"),
        ("/invalidate", "InvalidationLayer"),
        ("/conditional", "ConditionalLayer"),
        ("/fragment", "ResponseCacheLayer"),
    ] {
        let (status, text) = ask(&app, Request::get(uri)).await;
        assert_eq!(status, 500);
        assert!(text.contains(layer), "{text}");
    }
}

#[tokio::test]
async fn every_extractor_works_as_the_last_argument_on_every_path_through_the_cache() {
    let larder = larder();
    let all = |_: CachePolicy, _: FragmentCache, _: Conditional, _: Invalidate| async { "ok" };
    let app: Router = Router::new().route("/", get(all).post(all)).layer(
        tower::ServiceBuilder::new()
            .layer(ConditionalLayer::new(&larder))
            .layer(InvalidationLayer::new(&larder))
            .layer(ResponseCacheLayer::new(&larder)),
    );
    for request in [
        Request::get("/"),
        Request::get("/").header("cookie", "a=b"),
        Request::get("/").header("upgrade", "websocket"),
        Request::get("/").header("if-none-match", "\"a\""),
        Request::head("/"),
        Request::post("/"),
    ] {
        assert_eq!(ask(&app, request).await.0, 200);
    }
}

#[tokio::test]
async fn two_nested_routers_do_not_share_an_entry() {
    let larder = larder();
    let router = |name: &'static str| {
        let router: Router = Router::new().route("/list", get(move || async move { name }));
        router.layer(ResponseCacheLayer::new(&larder).ttl(MINUTE))
    };
    let app = Router::new().nest("/a", router("a")).nest("/b", router("b"));
    assert_eq!(get_text(&app, "/a/list").await, "a");
    assert_eq!(get_text(&app, "/b/list").await, "b");
    assert_eq!(get_text(&app, "/a/list").await, "a");
    let before = larder.stats().cache("responses").unwrap().total.misses;
    let _ = larder.invalidate(Target::path("/a/list")).await;
    get_text(&app, "/b/list").await;
    get_text(&app, "/a/list").await;
    let after = larder.stats().cache("responses").unwrap().total.misses;
    assert_eq!(after - before, 1);
}

#[tokio::test]
async fn invalidating_a_fragment_invalidates_its_page() {
    let larder = larder();
    let renders = Arc::new(AtomicUsize::new(0));
    let counted = renders.clone();
    let page = move |fragments: FragmentCache| {
        let renders = counted.clone();
        async move {
            let nested = fragments.clone();
            let policy = Policy::ttl(MINUTE).tag(("product", 1));
            let outer =
                fragments.get_or_render(("list", "all"), Policy::ttl(MINUTE), move || async move {
                    let render = move || async move {
                        let number = renders.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, Infallible>(format!("card {number}"))
                    };
                    nested
                        .get_or_render(("card", 1), policy, render)
                        .await
                        .map(|card| format!("[{card}]"))
                });
            outer.await.unwrap().to_string()
        }
    };
    let app: Router =
        Router::new().route("/", get(page)).layer(ResponseCacheLayer::new(&larder).ttl(MINUTE));
    assert_eq!(get_text(&app, "/").await, "[card 0]");
    assert_eq!(get_text(&app, "/").await, "[card 0]");
    let _ = larder.invalidate(("product", 1)).await;
    assert_eq!(get_text(&app, "/").await, "[card 1]");
    assert_eq!(get_text(&app, "/?other").await, "[card 1]");
    assert_eq!(renders.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_fragment_of_one_user_does_not_reach_another() {
    let larder = larder();
    let page = |fragments: FragmentCache, headers: http::HeaderMap| async move {
        let user = headers["cookie"].to_str().unwrap().to_owned();
        let render = move || async move { Ok::<_, Infallible>(user) };
        fragments.get_or_render("hello", MINUTE, render).await.unwrap().to_string()
    };
    let app: Router =
        Router::new().route("/", get(page)).layer(ResponseCacheLayer::new(&larder).ttl(MINUTE));
    for user in ["alice", "bob", "alice"] {
        assert_eq!(ask(&app, Request::get("/").header("cookie", user)).await.1, user);
    }
}

#[tokio::test]
async fn a_write_is_seen_by_the_next_read() {
    let larder = larder();
    let price = Arc::new(AtomicUsize::new(1));
    let (shown, changed) = (price.clone(), price.clone());
    let show = move |policy: CachePolicy| async move {
        policy.tag(("product", 1));
        shown.load(Ordering::SeqCst).to_string()
    };
    let update = move |invalidate: Invalidate| async move {
        changed.fetch_add(1, Ordering::SeqCst);
        invalidate.tag(("product", 1));
    };
    let stack = || {
        tower::ServiceBuilder::new()
            .layer(InvalidationLayer::new(&larder))
            .layer(ResponseCacheLayer::new(&larder).ttl(MINUTE))
    };
    let app: Router = Router::new()
        .route("/show", get(show))
        .route("/update", axum::routing::put(update))
        .layer(stack());
    for expected in ["1", "2", "3"] {
        assert_eq!(get_text(&app, "/show").await, expected);
        assert_eq!(get_text(&app, "/show").await, expected);
        ask(&app, Request::put("/update")).await;
    }
}

#[tokio::test]
async fn preconditions_are_checked_before_the_work_is_done() {
    let larder = larder();
    let handler = |conditional: Conditional| async move {
        conditional.check(EntityTag::strong("now").unwrap())?;
        Ok::<_, ConditionUnmet>("the work")
    };
    let app: Router =
        Router::new().route("/", get(handler).put(handler)).layer(ConditionalLayer::new(&larder));
    let status = async |request: http::request::Builder| ask(&app, request).await.0;
    assert_eq!(status(Request::get("/").header("if-none-match", "\"now\"")).await, 304);
    assert_eq!(status(Request::put("/").header("if-match", "\"then\"")).await, 412);
    assert_eq!(status(Request::put("/").header("if-match", "\"now\"")).await, 200);
}

#[tokio::test]
async fn the_cache_layer_works_on_routers_routes_and_fallbacks() {
    let larder = larder();
    let layer = || ResponseCacheLayer::new(&larder).ttl(MINUTE);
    let routes = || Router::<()>::new().route("/", get(|| async { "hello" }));
    let everywhere: [Router; 3] = [
        routes().layer(layer()),
        routes().route_layer(layer()),
        Router::new().fallback_service(tower::Layer::layer(&layer(), routes())),
    ];
    for app in everywhere {
        assert_eq!(get_text(&app, "/").await, "hello");
    }
}
