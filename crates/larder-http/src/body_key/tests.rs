use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use larder_core::{ByteSize, Larder, Lifetime, Tag, Target};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn,
    util::BoxCloneService,
};

use super::*;
use crate::{
    ConditionalLayer, HttpCache, InvalidationLayer, PendingInvalidations, ResponseCacheLayer,
};

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
    let inner = service_fn(move |request: Request<Full<Bytes>>| {
        let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            assert_eq!(*request.method(), Method::QUERY, "the method stays");
            let content = request.into_body().collect().await?.to_bytes();
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

/// An application that counts its calls, and answers with the number of the call, the method and the content.
#[derive(Clone, Default)]
struct Application(Arc<AtomicUsize>);

impl Application {
    fn service(&self) -> BoxCloneService<Request<Full<Bytes>>, Response<Full<Bytes>>, Infallible> {
        let calls = Arc::clone(&self.0);
        BoxCloneService::new(service_fn(move |request: Request<Full<Bytes>>| {
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                let method = request.method().clone();
                let content = request.into_body().collect().await?.to_bytes();
                let text = format!("{call} {method} {}", String::from_utf8_lossy(&content));
                let response = Response::builder().header("cache-control", "max-age=60");
                Ok::<_, Infallible>(response.body(Full::<Bytes>::from(text)).unwrap())
            }
        }))
    }
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

fn searches() -> BodyKeyLayer {
    BodyKeyLayer::new().post_reads(|head| head.uri.path() == "/search")
}

fn post(path: &str, content: &'static str) -> Request<Full<Bytes>> {
    Request::post(path).body(Full::from(content)).unwrap()
}

async fn answer<S, R>(service: &S, request: Request<Full<Bytes>>) -> (String, String)
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>, Error = Infallible> + Clone,
    R: http_body::Body<Data = Bytes>,
    R::Error: std::fmt::Debug,
{
    let response = service.clone().oneshot(request).await.unwrap();
    let status = response.headers().get("cache-status").map(|status| status.to_str().unwrap());
    let status = status.unwrap_or("-").to_owned();
    let content = response.into_body().collect().await.unwrap().to_bytes();
    (String::from_utf8(content.to_vec()).unwrap(), status)
}

#[tokio::test(start_paused = true)]
async fn a_post_that_reads_is_stored_by_address_method_and_content() {
    let application = Application::default();
    let service = ServiceBuilder::new()
        .layer(searches().post_reads(|head| head.uri.path() == "/find"))
        .layer(HttpCache::new(&larder()))
        .service(application.service());
    let text = async |request| answer(&service, request).await.0;
    assert_eq!(text(post("/search", "red")).await, "1 POST red");
    assert_eq!(text(post("/search", "red")).await, "1 POST red");
    assert_eq!(text(post("/search", "blue")).await, "2 POST blue");
    assert_eq!(text(post("/find", "red")).await, "3 POST red");
    let query = Request::builder().method(Method::QUERY).uri("/search");
    assert_eq!(text(query.body(Full::from("red")).unwrap()).await, "4 QUERY red");
    assert_eq!(text(Request::get("/search").body(Full::default()).unwrap()).await, "5 GET ");
    assert_eq!(text(post("/search", "red")).await, "1 POST red", "no request invalidated it");
    assert_eq!(text(post("/orders", "red")).await, "6 POST red");
    assert_eq!(text(post("/orders", "red")).await, "7 POST red");
}

#[tokio::test(start_paused = true)]
async fn a_post_that_reads_invalidates_nothing_wherever_the_invalidation_layer_is() {
    let larder = larder();
    let application = Application::default();
    let service = ServiceBuilder::new()
        .layer(InvalidationLayer::new(&larder).targets(|_| [Target::everything()]))
        .layer(searches())
        .layer(ResponseCacheLayer::new(&larder))
        .service(application.service());
    let text = async |request| answer(&service, request).await.0;
    assert_eq!(text(post("/search", "red")).await, "1 POST red");
    assert_eq!(text(post("/search", "blue")).await, "2 POST blue");
    assert_eq!(text(post("/search", "red")).await, "1 POST red");
    assert_eq!(text(post("/orders", "red")).await, "3 POST red");
    assert_eq!(text(post("/search", "red")).await, "4 POST red", "the write invalidated it");
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_a_read_can_invalidate() {
    let larder = larder();
    let inner = service_fn(|request: Request<Full<Bytes>>| async move {
        let pending = request.extensions().get::<PendingInvalidations>().cloned();
        let pending = pending.or_else(PendingInvalidations::current).unwrap();
        if request.into_body().collect().await?.to_bytes() == "write" {
            pending.add(Tag::new("stock"));
        }
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    for outside in [true, false] {
        let invalidation = InvalidationLayer::new(&larder);
        let layers = ServiceBuilder::new()
            .option_layer(outside.then(|| invalidation.clone()))
            .layer(searches())
            .option_layer((!outside).then(|| invalidation.clone()))
            .layer(ResponseCacheLayer::new(&larder));
        let service = layers.service(inner);
        let before = larder.stats().invalidations;
        service.clone().oneshot(post("/search", "read")).await.unwrap();
        assert_eq!(larder.stats().invalidations, before, "{outside}");
        service.oneshot(post("/search", "write")).await.unwrap();
        assert_eq!(larder.stats().invalidations, before + 1, "{outside}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_that_reads_obeys_the_rules_of_users() {
    #[derive(Clone)]
    struct User(&'static str);

    let application = Application::default();
    let service = ServiceBuilder::new()
        .layer(searches())
        .layer(
            HttpCache::new(&larder())
                .partition_by(|head| head.extensions.get::<User>().map(|user| user.0.to_owned())),
        )
        .service(application.service());
    let by = |user: &'static str, content: &'static str| {
        let mut request = post("/search", content);
        request.extensions_mut().insert(User(user));
        request
    };
    assert_eq!(answer(&service, by("ada", "red")).await.0, "1 POST red");
    assert_eq!(answer(&service, by("bob", "red")).await.0, "2 POST red");
    assert_eq!(answer(&service, by("ada", "red")).await.0, "1 POST red");
    assert_eq!(answer(&service, post("/search", "red")).await.0, "3 POST red");
    let mut with_cookie = post("/search", "blue");
    with_cookie.headers_mut().insert("cookie", "session=1".parse().unwrap());
    let (text, status) = answer(&service, with_cookie.clone()).await;
    assert_eq!((&*text, &*status), ("4 POST blue", "larder; fwd=uri-miss; detail=identified"));
    assert_eq!(answer(&service, with_cookie).await.0, "5 POST blue");
}

#[tokio::test(start_paused = true)]
async fn a_post_with_conditions_or_a_range_is_left_to_its_handler() {
    let application = Application::default();
    let service = ServiceBuilder::new()
        .layer(searches())
        .layer(ResponseCacheLayer::new(&larder()))
        .service(application.service());
    answer(&service, post("/search", "red")).await;
    for (name, value) in [("if-none-match", "*"), ("range", "bytes=0-1"), ("if-match", "*")] {
        let mut request = post("/search", "red");
        request.headers_mut().insert(name, value.parse().unwrap());
        let (_, status) = answer(&service, request).await;
        assert_eq!(status, "larder; fwd=bypass; detail=guarded", "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn content_decides_after_the_head() {
    let application = Application::default();
    let reads = BodyKeyLayer::new().post_reads_by_content(
        |head| head.uri.path() == "/graphql",
        |_, content| !content.starts_with(b"mutation"),
    );
    let larder = larder();
    let service = ServiceBuilder::new()
        .layer(reads)
        .layer(HttpCache::new(&larder))
        .service(application.service());
    let text = async |content| answer(&service, post("/graphql", content)).await.0;
    assert_eq!(text("query").await, "1 POST query");
    assert_eq!(text("query").await, "1 POST query");
    assert_eq!(text("mutation").await, "2 POST mutation");
    assert_eq!(text("query").await, "3 POST query", "a mutation invalidates the address");
    assert_eq!(answer(&service, post("/other", "query")).await.0, "4 POST query");
    assert_eq!(answer(&service, post("/other", "query")).await.0, "5 POST query");
}

#[tokio::test(start_paused = true)]
async fn a_post_of_any_length_reaches_its_handler() {
    let application = Application::default();
    let service = ServiceBuilder::new()
        .layer(searches().limit(ByteSize::bytes(3)))
        .layer(ResponseCacheLayer::new(&larder()))
        .service(application.service());
    let unread = "larder; fwd=bypass; detail=request-body";
    for call in [1, 2] {
        let (text, status) = answer(&service, post("/search", "four")).await;
        assert_eq!((text, &*status), (format!("{call} POST four"), unread));
    }
    let mut with_trailers = post("/search", "");
    with_trailers.headers_mut().insert("trailer", "digest".parse().unwrap());
    assert_eq!(answer(&service, with_trailers).await.1, unread);
    assert_eq!(answer(&service, post("/search", "red")).await.1, "larder; fwd=uri-miss; stored");
}

#[tokio::test(start_paused = true)]
async fn a_post_without_an_announced_length_reaches_its_handler() {
    let inner = service_fn(|request: Request<BoxBody>| async {
        let content = request.into_body().collect().await.unwrap().to_bytes();
        let response = Response::builder().header("cache-control", "max-age=60");
        Ok::<_, Infallible>(response.body(Full::<Bytes>::from(content)).unwrap())
    });
    let service = ServiceBuilder::new()
        .layer(searches())
        .layer(ResponseCacheLayer::new(&larder()))
        .service(inner);
    for _ in 0..2 {
        let frames = ["a", "b"].map(|text| Ok(Frame::data(Bytes::from(text))));
        let body = BoxBody(StreamBody::new(stream::iter(frames)).boxed_unsync());
        let request = Request::post("/search").body(body).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let unread = "larder; fwd=bypass; detail=request-body";
        assert_eq!(response.headers()["cache-status"], unread);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ab");
    }
}

/// A body of unknown length.
struct BoxBody(UnsyncBoxBody<Bytes, Infallible>);

impl From<Bytes> for BoxBody {
    fn from(content: Bytes) -> Self {
        Self(Full::from(content).boxed_unsync())
    }
}

impl http_body::Body for BoxBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_is_refreshed_with_the_content_of_its_request() {
    let application = Application::default();
    let lifetime = Lifetime::fresh_for(Duration::from_secs(60))
        .stale_while_revalidate(Duration::from_secs(60));
    let inner = application.service();
    let inner = tower::ServiceExt::map_response(inner, |mut response: Response<Full<Bytes>>| {
        response.headers_mut().remove("cache-control");
        response
    });
    let service = ServiceBuilder::new()
        .layer(searches())
        .layer(ResponseCacheLayer::new(&larder()).ttl(lifetime))
        .service(inner);
    assert_eq!(answer(&service, post("/search", "red")).await.0, "1 POST red");
    tokio::time::advance(Duration::from_secs(90)).await;
    assert_eq!(answer(&service, post("/search", "red")).await.0, "1 POST red");
    while application.0.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert_eq!(answer(&service, post("/search", "red")).await.0, "2 POST red");
}

#[tokio::test(start_paused = true)]
async fn a_method_that_changes_inside_is_another_request() {
    let application = Application::default();
    let larder = larder();
    let service = ServiceBuilder::new()
        .layer(searches())
        .map_request(|mut request: Request<Full<Bytes>>| {
            if let Some(method) = request.headers().get("x-http-method-override") {
                *request.method_mut() = method.to_str().unwrap().parse().unwrap();
            }
            request
        })
        .layer(HttpCache::new(&larder))
        .service(application.service());
    answer(&service, post("/search", "red")).await;
    let overridden = |from: Method, to: &str| {
        let request = Request::builder().method(from).uri("/search");
        request.header("x-http-method-override", to).body(Full::from("red")).unwrap()
    };
    assert_eq!(answer(&service, overridden(Method::POST, "DELETE")).await.0, "2 DELETE red");
    assert_eq!(answer(&service, post("/search", "red")).await.0, "3 POST red");
    assert_eq!(answer(&service, overridden(Method::QUERY, "POST")).await.0, "4 POST red");
    assert_eq!(answer(&service, post("/search", "red")).await.0, "5 POST red");
}

#[tokio::test(start_paused = true)]
async fn a_method_that_changes_inside_of_the_invalidation_layer_is_a_write() {
    for reads_outside in [true, false] {
        let larder = larder();
        let invalidation = InvalidationLayer::new(&larder);
        let override_method = |mut request: Request<Full<Bytes>>| {
            if request.headers().contains_key("x-http-method-override") {
                *request.method_mut() = Method::DELETE;
            }
            request
        };
        let service = ServiceBuilder::new()
            .option_layer((!reads_outside).then(|| invalidation.clone()))
            .layer(searches())
            .option_layer(reads_outside.then(|| invalidation.clone()))
            .map_request(override_method)
            .layer(ResponseCacheLayer::new(&larder))
            .service(Application::default().service());
        let send = async |overridden: bool| {
            let mut request = post("/search", "red");
            if overridden {
                request.headers_mut().insert("x-http-method-override", "DELETE".parse().unwrap());
            }
            let response = service.clone().oneshot(request).await.unwrap();
            let content = response.into_body().collect().await.unwrap().to_bytes();
            String::from_utf8(content.to_vec()).unwrap()
        };
        assert_eq!(send(false).await, "1 POST red", "{reads_outside}");
        assert_eq!(send(false).await, "1 POST red", "{reads_outside}");
        assert_eq!(send(true).await, "2 DELETE red", "{reads_outside}");
        assert_eq!(send(false).await, "3 POST red", "{reads_outside}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_invalidation_layer_learns_that_a_post_reads() {
    let larder = larder();
    let application = Application::default();
    let service = ServiceBuilder::new()
        .layer(InvalidationLayer::new(&larder))
        .layer(InvalidationLayer::new(&larder))
        .layer(searches())
        .layer(ResponseCacheLayer::new(&larder))
        .service(application.service());
    assert_eq!(answer(&service, post("/search", "red")).await.0, "1 POST red");
    assert_eq!(answer(&service, post("/search", "red")).await.0, "1 POST red");
}

#[tokio::test(start_paused = true)]
async fn a_stale_post_is_read_again_without_conditions() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let inner = service_fn(move |request: Request<Full<Bytes>>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            // An origin answers a POST with 412, and not with 304.
            let is_conditional = request.headers().contains_key("if-none-match");
            let status =
                if is_conditional { StatusCode::PRECONDITION_FAILED } else { StatusCode::OK };
            let response = Response::builder().status(status).header("etag", "\"v1\"");
            let response = response.header("cache-control", "max-age=60");
            Ok::<_, Infallible>(response.body(Full::<Bytes>::from("found")).unwrap())
        }
    });
    let service = ServiceBuilder::new()
        .layer(searches())
        .layer(ResponseCacheLayer::new(&larder()))
        .service(inner);
    assert_eq!(answer(&service, post("/search", "red")).await.0, "found");
    tokio::time::advance(Duration::from_secs(90)).await;
    let response = service.clone().oneshot(post("/search", "red")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_graphql_mutation_invalidates_and_a_query_does_not() {
    let application = Application::default();
    let service = ServiceBuilder::new()
        .layer(BodyKeyLayer::new().graphql_queries(|head| head.uri.path() == "/graphql"))
        .layer(HttpCache::new(&larder()))
        .service(application.service());
    let send = async |content: &'static str| {
        let mut request = post("/graphql", content);
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        answer(&service, request).await.0
    };
    let query = r#"{"query":"{ me }"}"#;
    assert!(send(query).await.starts_with("1 "));
    assert!(send(query).await.starts_with("1 "));
    assert!(send(r#"{"query":"mutation { buy }"}"#).await.starts_with("2 "));
    assert!(send(query).await.starts_with("3 "));
}

#[tokio::test(start_paused = true)]
async fn a_read_needs_no_precondition() {
    let larder = larder();
    let service = ServiceBuilder::new()
        .layer(searches())
        .layer(ConditionalLayer::new(&larder).require_preconditions())
        .service(Application::default().service());
    let status = async |path| service.clone().oneshot(post(path, "red")).await.unwrap().status();
    assert_eq!(status("/search").await, StatusCode::OK);
    assert_eq!(status("/orders").await, StatusCode::PRECONDITION_REQUIRED);
}
