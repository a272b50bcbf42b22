use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use larder_core::{ByteSize, Larder};
use tower::{Layer, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

use super::*;
use crate::{InvalidationLayer, ResponseCacheLayer};

fn ask(content: &'static str, kind: &'static str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::QUERY).uri("/search");
    request.header("content-type", kind).body(Full::from(content)).unwrap()
}

#[tokio::test]
async fn the_instance_that_was_polled_ready_is_the_one_that_is_called() {
    let inner = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let limited = ServiceBuilder::new()
        .layer(BodyKeyLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(inner);
    for _ in 0..3 {
        let answer = limited.clone().oneshot(ask("a", "text/plain")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_query_is_stored_by_content_and_type_and_invalidates_nothing() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let inner = service_fn(move |asked: Request<Full<Bytes>>| {
        let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            assert_eq!(*asked.method(), Method::QUERY, "the method stays");
            let content = asked.into_body().collect().await?.to_bytes();
            let text = format!("{call} {}", String::from_utf8_lossy(&content));
            let response = Response::builder().header("cache-control", "max-age=60");
            Ok::<_, Infallible>(response.body(Full::<Bytes>::from(text)).unwrap())
        }
    });
    let larder = Larder::builder().tag_table_slots(1 << 12).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(BodyKeyLayer::new())
        .layer(InvalidationLayer::new(&larder))
        .layer(ResponseCacheLayer::new(&larder))
        .service(inner);
    let text = async |content, kind| {
        let answer = service.clone().oneshot(ask(content, kind)).await.unwrap();
        let content = answer.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(content.to_vec()).unwrap()
    };
    assert_eq!(text("red", "text/plain").await, "1 red");
    assert_eq!(text("red", "text/plain").await, "1 red");
    assert_eq!(text("blue", "text/plain").await, "2 blue");
    assert_eq!(text("red", "text/html").await, "3 red");
    assert_eq!(text("red", "text/plain").await, "1 red");
    let get = Request::get("/search").body(Full::default()).unwrap();
    let get = service.clone().oneshot(get);
    assert!(tokio::spawn(get).await.is_err(), "a GET is not answered by a QUERY");
}

#[tokio::test]
async fn content_that_is_too_long_is_refused() {
    let inner = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let service = BodyKeyLayer::new().limit(ByteSize::bytes(3)).layer(inner);
    let answer = service.oneshot(ask("four", "text/plain")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}
