//! Common middleware around and inside the cache, in each order that makes sense.

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use larder::{
    Larder,
    axum::{HttpCache, InvalidationLayer, ResponseCacheLayer},
    http::{ConditionalLayer, FinalHeadLayer},
};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, cors::CorsLayer,
    limit::RequestBodyLimitLayer, normalize_path::NormalizePathLayer,
    propagate_header::PropagateHeaderLayer, sensitive_headers::SetSensitiveHeadersLayer,
    set_header::SetResponseHeaderLayer, timeout::TimeoutLayer, trace::TraceLayer,
};
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

const PAGE: &str = "a page that is long enough to be worth compressing, said over and over. ";

fn page() -> Router {
    Router::new()
        .route("/", get(|| async { PAGE.repeat(20) }))
        .route("/slow", get(std::future::pending::<()>))
        .route(
            "/panic",
            get(|| async {
                if true {
                    panic!("a handler fell over");
                }
            }),
        )
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

fn stack(router: Router, larder: &Larder) -> Router {
    router.layer(HttpCache::new(larder).ttl(Duration::from_secs(60)))
}

async fn ask(app: &Router, fields: &[(&str, &str)]) -> http::Response<Body> {
    let mut request = Request::get("/");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

fn compression(name: &str, router: Router) -> Router {
    match name {
        "compression" => router.layer(CompressionLayer::new()),
        "cors" => router.layer(CorsLayer::permissive()),
        "trace" => router.layer(TraceLayer::new_for_http()),
        "catch-panic" => router.layer(CatchPanicLayer::new()),
        _ => router.layer(TimeoutLayer::with_status_code(
            StatusCode::GATEWAY_TIMEOUT,
            Duration::from_secs(5),
        )),
    }
}

#[tokio::test]
async fn every_layer_works_on_either_side() {
    for name in ["compression", "cors", "trace", "catch-panic", "timeout"] {
        for outside in [true, false] {
            let larder = larder();
            let app = if outside {
                compression(name, stack(page(), &larder))
            } else {
                stack(compression(name, page()), &larder)
            };
            for (accept, coded) in [("gzip", true), ("identity", false), ("gzip", true)] {
                let fields = [("accept-encoding", accept), ("origin", "http://a.example")];
                for hit in [false, true] {
                    let answer = ask(&app, &fields).await;
                    assert_eq!(answer.status(), 200, "{name} outside={outside}");
                    let status = answer.headers()[header::CACHE_STATUS].to_str().unwrap();
                    assert!(!hit || status.contains("hit"), "{name} outside={outside}: {status}");
                    let is_coded = answer.headers().contains_key(header::CONTENT_ENCODING);
                    assert_eq!(is_coded, coded && name == "compression", "{name} {outside}");
                    let body = answer.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(body.starts_with(PAGE.as_bytes()), !is_coded);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_304_leaves_through_compression() {
    let larder = larder();
    let app = compression("compression", stack(page(), &larder));
    let first = ask(&app, &[("accept-encoding", "gzip")]).await;
    let etag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
    let second = ask(&app, &[("accept-encoding", "gzip"), ("if-none-match", &etag)]).await;
    assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_and_a_panic_of_a_handler_reach_the_outer_layers() {
    let larder = larder();
    let app = compression("timeout", compression("catch-panic", stack(page(), &larder)));
    let status = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap().status()
    };
    assert_eq!(status("/slow").await, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(status("/panic").await, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn sessions_are_not_shared_on_either_side() {
    let visits = |session: Session| async move {
        let visits = session.get::<u32>("visits").await.unwrap().unwrap_or_default() + 1;
        session.insert("visits", visits).await.unwrap();
        format!("visit {visits}")
    };
    for outside in [true, false] {
        let larder = larder();
        let page = Router::new().route("/", get(visits));
        let sessions = SessionManagerLayer::new(MemoryStore::default());
        let cache = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60));
        let app = if outside {
            // The cookie is set outside the cache: the session type in the extensions counts as the credentials.
            page.layer(cache.credential_extension::<Session>()).layer(sessions)
        } else {
            page.layer(sessions).layer(cache)
        };
        let mut cookies = Vec::new();
        for _ in 0..2 {
            let first = ask(&app, &[]).await;
            let cookie = first.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
            let body = first.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "visit 1", "outside={outside}");
            assert!(!cookies.contains(&cookie), "each has a session of their own");
            cookies.push(cookie);
        }
        let again = ask(&app, &[("cookie", cookies[0].split(';').next().unwrap())]).await;
        assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), "visit 2");
    }
}

/// The table of the guide, as one `ServiceBuilder`.
#[tokio::test]
async fn the_documented_order_is_one_service_builder() {
    let larder = larder();
    let layers = ServiceBuilder::new()
        .layer(FinalHeadLayer::new())
        .layer(TraceLayer::new_for_http())
        .layer(CatchPanicLayer::new())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(5)))
        .layer(CorsLayer::permissive())
        .layer(CompressionLayer::new())
        .layer(SessionManagerLayer::new(MemoryStore::default()))
        .layer(ConditionalLayer::new(&larder))
        .layer(InvalidationLayer::new(&larder))
        .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)));
    let app: Router = page().layer(layers);
    for hit in [false, true, true] {
        let answer = ask(&app, &[("accept-encoding", "gzip")]).await;
        let status = answer.headers()[header::CACHE_STATUS].to_str().unwrap().to_owned();
        assert_eq!(answer.headers()[header::CONTENT_ENCODING], "gzip");
        assert_eq!(status.contains("; hit"), hit, "{status}");
        answer.into_body().collect().await.unwrap();
    }
}

/// Layers that replace the response by an empty body, or by one of their own.
#[tokio::test]
async fn layers_that_replace_responses_compile_on_both_sides() {
    let larder = larder();
    let name = http::HeaderName::from_static("x-any");
    let limit =
        || TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(5));
    let layers = ServiceBuilder::new()
        .layer(CorsLayer::permissive())
        .layer(limit())
        .layer(SetSensitiveHeadersLayer::new([header::COOKIE]))
        .layer(PropagateHeaderLayer::new(name.clone()))
        .layer(NormalizePathLayer::trim_trailing_slash())
        .layer(ConditionalLayer::new(&larder))
        .layer(CorsLayer::permissive())
        .layer(limit())
        .layer(InvalidationLayer::new(&larder))
        .layer(CorsLayer::permissive())
        .layer(limit())
        .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)))
        .layer(CorsLayer::permissive())
        .layer(limit())
        .layer(SetResponseHeaderLayer::overriding(name, http::HeaderValue::from_static("x")))
        .layer(CatchPanicLayer::new())
        .layer(RequestBodyLimitLayer::new(1024));
    let app: Router = page().layer(layers);
    for hit in [false, true] {
        let answer = ask(&app, &[]).await;
        let status = answer.headers()[header::CACHE_STATUS].to_str().unwrap();
        assert_eq!(status.contains("; hit"), hit, "{status}");
    }
}
