use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use larder_core::Larder;
use larder_semantics::validation::{EntityTag, Validators};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

use super::*;
use crate::BoxError;

fn larder() -> Larder {
    Larder::builder().version("1").tag_table_slots(1 << 12).build().unwrap()
}

fn request(method: Method, fields: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(method).uri("/");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

async fn hello(_: Request<Empty<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

#[tokio::test]
async fn a_service_that_was_polled_ready_is_the_one_that_is_called() {
    let validate = |_: crate::Head<'_>| async { None };
    for layer in
        [ConditionalLayer::new(&larder()), ConditionalLayer::new(&larder()).validate_with(validate)]
    {
        let mut service = layer.layer(ConcurrencyLimitLayer::new(1).layer(service_fn(hello)));
        for _ in 0..3 {
            let ready = service.ready().await.unwrap();
            ready.call(request(Method::GET, &[("if-none-match", "\"a\"")])).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_304_has_the_fields_that_belong_there_and_no_others() {
    let inner = service_fn(|_: Request<Empty<Bytes>>| async {
        let response = Response::builder()
            .header("etag", "\"a\"")
            .header("vary", "accept")
            .header("cache-control", "max-age=5")
            .header("content-type", "text/plain")
            .header("content-length", "5");
        Ok::<_, Infallible>(response.body(Full::<Bytes>::from("hello")).unwrap())
    });
    let service = ConditionalLayer::new(&larder()).layer(inner);
    let ask = request(Method::GET, &[("if-none-match", "W/\"x\", W/\"a\"")]);
    let answer = service.oneshot(ask).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
    let names: Vec<_> = answer.headers().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["etag", "vary", "cache-control"]);
}

#[tokio::test]
async fn a_streamed_body_is_not_delayed_for_an_etag() {
    let inner = service_fn(|_: Request<Empty<Bytes>>| async {
        let first = Ok::<_, BoxError>(Frame::data(Bytes::from("first")));
        let frames = futures_util::stream::iter([first]);
        let endless = futures_util::StreamExt::chain(frames, futures_util::stream::pending());
        Ok::<_, Infallible>(Response::new(StreamBody::new(endless)))
    });
    let service = ConditionalLayer::new(&larder()).layer(inner);
    let mut answer = service.oneshot(request(Method::GET, &[])).await.unwrap();
    assert!(!answer.headers().contains_key(header::ETAG));
    let first = answer.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first");
}

#[tokio::test]
async fn another_build_version_has_another_etag() {
    let tag = async |version: &str| {
        let larder = Larder::builder().version(version).tag_table_slots(1 << 12).build().unwrap();
        let service = ConditionalLayer::new(&larder).layer(service_fn(hello));
        let answer = service.oneshot(request(Method::GET, &[])).await.unwrap();
        answer.headers()[header::ETAG].clone()
    };
    assert_eq!(tag("1").await, tag("1").await);
    assert_ne!(tag("1").await, tag("2").await);
}

#[tokio::test]
async fn a_handler_checks_preconditions_before_its_work() {
    let inner = service_fn(|request: Request<Empty<Bytes>>| async move {
        let conditions = request.extensions().get::<Conditions>().cloned();
        let conditions = conditions.unwrap_or_else(Conditions::none);
        let mut response = Response::new(Full::<Bytes>::from("done"));
        if let Err(unmet) = conditions.check(EntityTag::strong("now").unwrap()) {
            *response.status_mut() = unmet.status();
        }
        Ok::<_, Infallible>(response)
    });
    let larder = larder();
    let service = ConditionalLayer::new(&larder).layer(inner);
    let status = async |method, fields: &[(&str, &str)]| {
        service.clone().oneshot(request(method, fields)).await.unwrap().status().as_u16()
    };
    assert_eq!(status(Method::PUT, &[("if-match", "\"then\"")]).await, 412);
    assert_eq!(status(Method::PUT, &[("if-match", "\"now\"")]).await, 200);
    assert_eq!(status(Method::GET, &[("if-none-match", "\"now\"")]).await, 304);
    assert!(larder.stats().cache("conditional").unwrap().errors.is_empty());
}

#[tokio::test]
async fn an_unchecked_precondition_is_counted_or_refused() {
    let larder = larder();
    let guarded = || request(Method::PUT, &[("if-match", "\"a\"")]);
    let layer = ConditionalLayer::new(&larder);
    let answer = layer.layer(service_fn(hello)).oneshot(guarded()).await.unwrap();
    assert_eq!(answer.status(), 200);
    let stats = larder.stats();
    assert_eq!(stats.cache("conditional").unwrap().errors["unchecked-condition"], 1);
    let refusing = ConditionalLayer::new(&larder).refuse_unchecked().layer(service_fn(hello));
    assert_eq!(refusing.oneshot(guarded()).await.unwrap().status(), 412);
    let requiring = ConditionalLayer::new(&larder).require_preconditions().layer(service_fn(hello));
    assert_eq!(requiring.oneshot(request(Method::PUT, &[])).await.unwrap().status(), 428);
}

#[tokio::test]
async fn validate_with_answers_without_the_handler() {
    let layer = ConditionalLayer::new(&larder())
        .validate_with(|_| async { Some(Validators::from(EntityTag::strong("now").unwrap())) });
    let inner = service_fn(|_: Request<Empty<Bytes>>| async {
        panic!("the handler must not be called");
        #[allow(unreachable_code, reason = "it names the type")]
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let service = layer.layer(inner);
    let put = request(Method::PUT, &[("if-match", "\"then\"")]);
    assert_eq!(service.clone().oneshot(put).await.unwrap().status(), 412);
    let get = request(Method::GET, &[("if-none-match", "\"now\"")]);
    assert_eq!(service.oneshot(get).await.unwrap().status(), 304);
}

/// A write with `If-None-Match: *` is guarded like a write with `If-Match`.
#[tokio::test]
async fn a_write_that_must_not_overwrite_is_guarded() {
    let create = || request(Method::PUT, &[("if-none-match", "*")]);
    let required =
        ConditionalLayer::new(&larder()).require_preconditions().layer(service_fn(hello));
    assert_eq!(required.oneshot(create()).await.unwrap().status(), StatusCode::OK);
    let refusing = ConditionalLayer::new(&larder()).refuse_unchecked().layer(service_fn(hello));
    let refused = refusing.clone().oneshot(create()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED, "the layer cannot check it");
    let checked = |current: Validators| {
        let layer = ConditionalLayer::new(&larder()).refuse_unchecked();
        let layer = layer.validate_with(move |_| std::future::ready(Some(current.clone())));
        layer.layer(service_fn(hello)).oneshot(create())
    };
    assert_eq!(checked(Validators::absent()).await.unwrap().status(), StatusCode::OK);
    let there = checked(EntityTag::strong("a").unwrap().into()).await.unwrap();
    assert_eq!(there.status(), StatusCode::PRECONDITION_FAILED);
    let read = request(Method::GET, &[("if-none-match", "*")]);
    assert_ne!(refusing.oneshot(read).await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn a_304_of_a_route_with_only_a_date_has_last_modified() {
    let changed = std::time::UNIX_EPOCH + std::time::Duration::from_secs(784_111_777);
    let validate = move |_: crate::Head<'_>| async move { Some(Validators::from(changed)) };
    let service = ConditionalLayer::new(&larder()).validate_with(validate).layer(service_fn(hello));
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let ask = request(Method::GET, &[("if-modified-since", date)]);
    let answer = service.oneshot(ask).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(answer.headers()[header::LAST_MODIFIED], date);
}
