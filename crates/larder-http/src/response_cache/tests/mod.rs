use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use larder_core::{ByteSize, Larder, Lifetime, Target, kernel::TagSource};
use tokio::sync::{Notify, mpsc};
use tower::{
    Layer, Service, ServiceExt,
    limit::{ConcurrencyLimit, ConcurrencyLimitLayer},
    service_fn,
    util::BoxCloneService,
};

use super::*;
use crate::{CacheBody, ConditionalLayer, InvalidationLayer, QueryRule};

mod advice;
mod explaining;
mod final_head;
mod herds;
mod key_inputs;
mod observing;
mod opt_in;
mod outcomes;
mod refresh_ahead;
mod setters;
mod shadowing;

type TestBody = UnsyncBoxBody<Bytes, io::Error>;
type Layered = BoxCloneService<Request<Empty<Bytes>>, Response<CacheBody<TestBody>>, Infallible>;

const MINUTE: Duration = Duration::from_secs(60);

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

fn text(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn stream(frames: mpsc::Receiver<Result<Frame<Bytes>, io::Error>>) -> TestBody {
    let next = |mut frames: mpsc::Receiver<_>| async move {
        frames.recv().await.map(|frame| (frame, frames))
    };
    StreamBody::new(futures_util::stream::unfold(frames, next)).boxed_unsync()
}

fn request(uri: &str) -> http::request::Builder {
    Request::get(uri).header("host", "shop.example")
}

fn empty(request: http::request::Builder) -> Request<Empty<Bytes>> {
    request.body(Empty::new()).unwrap()
}

/// A service that counts its calls and answers by a closure.
#[derive(Clone)]
struct Origin {
    calls: Arc<AtomicUsize>,
    service: Layered,
}

impl Origin {
    fn new<F>(layer: ResponseCacheLayer, answer: F) -> Self
    where
        F: Fn(Request<Empty<Bytes>>, usize) -> Response<TestBody> + Clone + Send + 'static,
    {
        Self::asynchronous(layer, move |request, call| std::future::ready(answer(request, call)))
    }

    #[allow(clippy::needless_pass_by_value, reason = "every test makes a layer of its own")]
    fn asynchronous<F, Fut>(layer: ResponseCacheLayer, answer: F) -> Self
    where
        F: Fn(Request<Empty<Bytes>>, usize) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Response<TestBody>> + Send + 'static,
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let inner = service_fn(move |request| {
            let answered = answer(request, counted.fetch_add(1, Ordering::SeqCst) + 1);
            async move { Ok::<_, Infallible>(answered.await) }
        });
        Self { calls, service: BoxCloneService::new(layer.layer(inner)) }
    }

    fn send(
        &self,
        request: http::request::Builder,
    ) -> impl Future<Output = Response<CacheBody<TestBody>>> + use<> {
        let answer = self.service.clone().oneshot(empty(request));
        async { answer.await.unwrap() }
    }

    fn get(&self, uri: &str) -> impl Future<Output = (String, String)> + use<> {
        let answer = self.send(request(uri));
        async { read(answer.await).await }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Returns `Cache-Status` and the content.
async fn read(response: Response<CacheBody<TestBody>>) -> (String, String) {
    let status = response.headers()[header::CACHE_STATUS].to_str().unwrap().to_owned();
    let content = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(content.to_vec()).unwrap())
}

fn numbered(_: Request<Empty<Bytes>>, call: usize) -> Response<TestBody> {
    Response::new(text(format!("answer {call}")))
}

fn with(
    fields: &'static [(&'static str, &'static str)],
) -> impl Fn(Request<Empty<Bytes>>, usize) -> Response<TestBody> + Clone + Send {
    move |_, call| {
        let mut response = Response::builder();
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        response.body(text(format!("answer {call}"))).unwrap()
    }
}

fn layer(larder: &Larder) -> ResponseCacheLayer {
    ResponseCacheLayer::new(larder).ttl(MINUTE)
}

#[tokio::test]
async fn a_service_that_was_polled_ready_is_the_one_that_is_called() {
    let inner = ConcurrencyLimitLayer::new(1).layer(service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(text("hello")))
    }));
    let _: &ConcurrencyLimit<_> = &inner;
    let mut service = layer(&larder()).layer(inner);
    for uri in ["/a", "/a", "/b", "/b?x", "/a"] {
        let ready = service.ready().await.unwrap();
        let response = ready.call(empty(request(uri))).await.unwrap();
        drop(response);
    }
    let post = empty(request("/a").method(Method::POST));
    service.ready().await.unwrap().call(post).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_miss_is_stored_and_hit_until_it_expires() {
    let origin = Origin::new(layer(&larder()), numbered);
    assert_eq!(origin.get("/").await, ("larder; fwd=uri-miss; stored".into(), "answer 1".into()));
    tokio::time::advance(Duration::from_secs(10)).await;
    let hit = origin.send(request("/")).await;
    assert_eq!(hit.headers()[header::AGE], "10");
    assert_eq!(hit.headers()[header::CACHE_CONTROL], "no-cache");
    assert!(hit.headers().contains_key(header::ETAG));
    assert!(hit.headers().contains_key(header::DATE));
    assert_eq!(read(hit).await, ("larder; hit; ttl=50".into(), "answer 1".into()));
    tokio::time::advance(MINUTE).await;
    assert_eq!(origin.get("/").await, ("larder; fwd=stale; stored".into(), "answer 2".into()));
}

#[tokio::test]
async fn a_response_that_is_not_storable_names_the_reason() {
    let rows: [(&'static [(&'static str, &'static str)], &str); 6] = [
        (&[("cache-control", "no-store")], "no-store"),
        (&[("cache-control", "private, max-age=60")], "private"),
        (&[("set-cookie", "session=alice"), ("cache-control", "public, max-age=60")], "set-cookie"),
        (&[("vary", "*")], "vary-star"),
        (&[("content-type", "text/event-stream")], "endless"),
        (&[("cache-control", "max-age=60, no-cache")], "no-cache"),
    ];
    for (fields, reason) in rows {
        let origin = Origin::new(layer(&larder()), with(fields));
        let expected = format!("larder; fwd=uri-miss; detail={reason}");
        assert_eq!(origin.get("/").await, (expected.clone(), "answer 1".into()));
        assert_eq!(origin.get("/").await, (expected, "answer 2".into()));
    }
}

#[tokio::test]
async fn a_response_to_an_authenticated_request_is_not_shared() {
    for field in ["cookie", "authorization", "x-api-key", "x-forwarded-user"] {
        let origin = Origin::new(layer(&larder()), |request, call| {
            let user = request.headers().values().map(|v| v.to_str().unwrap()).collect::<String>();
            Response::new(text(format!("{user} {call}")))
        });
        let ask = |user: &'static str| origin.send(request("/me").header(field, user));
        assert!(read(ask("alice").await).await.1.contains("alice"));
        assert!(read(ask("bob").await).await.1.contains("bob"));
        let anonymous = origin.get("/me").await.1;
        assert!(!anonymous.contains("alice") && !anonymous.contains("bob"));
        // And an authenticated request does not get the anonymous response.
        assert!(read(ask("carol").await).await.1.contains("carol"));
    }
}

#[tokio::test]
async fn authenticated_requests_get_a_public_response() {
    let origin = Origin::new(layer(&larder()), with(&[("cache-control", "public, max-age=60")]));
    let ask = || origin.send(request("/").header("cookie", "a=b"));
    assert_eq!(read(ask().await).await.1, "answer 1");
    assert_eq!(read(ask().await).await.1, "answer 1");
    assert_eq!(origin.get("/").await.1, "answer 1");
}

#[tokio::test]
async fn a_shared_layer_strips_credentials_and_shares_the_response() {
    let origin = Origin::new(layer(&larder()).shared(), |request, call| {
        assert!(!request.headers().contains_key("cookie"));
        Response::new(text(format!("answer {call}")))
    });
    let ask = |user: &'static str| origin.send(request("/").header("cookie", user));
    assert_eq!(read(ask("alice").await).await.1, "answer 1");
    assert_eq!(read(ask("bob").await).await.1, "answer 1");
}

#[tokio::test]
async fn each_partition_has_an_entry_that_leaves_as_private() {
    let layer = layer(&larder()).partition_by(|head| {
        head.headers.get("x-user").map(|user| Bytes::copy_from_slice(user.as_bytes()))
    });
    let origin = Origin::new(layer, with(&[("cache-control", "public, max-age=60")]));
    let ask = |user: &'static str| origin.send(request("/").header("x-user", user));
    let first = ask("alice").await;
    assert_eq!(first.headers()[header::CACHE_CONTROL], "private, max-age=60");
    assert_eq!(read(first).await.1, "answer 1");
    assert_eq!(read(ask("bob").await).await.1, "answer 2");
    let hit = ask("alice").await;
    assert_eq!(hit.headers()[header::CACHE_CONTROL], "private, max-age=60");
    assert_eq!(read(hit).await.1, "answer 1");
}

#[tokio::test]
async fn a_credential_extension_bypasses() {
    #[derive(Clone)]
    struct Session;
    let origin = Origin::new(layer(&larder()).credential_extension::<Session>(), numbered);
    assert_eq!(origin.get("/").await.1, "answer 1");
    let mut with_session = empty(request("/"));
    with_session.extensions_mut().insert(Session);
    let answer = origin.service.clone().oneshot(with_session).await.unwrap();
    assert_eq!(
        read(answer).await,
        ("larder; fwd=bypass; detail=identity".into(), "answer 2".into())
    );
}

#[tokio::test]
async fn hosts_schemes_queries_and_methods_do_not_share_an_entry() {
    let origin = Origin::new(layer(&larder()), numbered);
    assert_eq!(origin.get("/a").await.1, "answer 1");
    assert_eq!(origin.get("/a?").await.1, "answer 2");
    assert_eq!(origin.get("/a?x=1").await.1, "answer 3");
    assert_eq!(origin.get("/A").await.1, "answer 4");
    assert_eq!(origin.get("/a/").await.1, "answer 5");
    assert_eq!(origin.get("/%61").await.1, "answer 6");
    let other = Request::get("/a").header("host", "other.example");
    assert_eq!(read(origin.send(other).await).await.1, "answer 7");
    let post = request("/a").method(Method::POST);
    assert_eq!(read(origin.send(post).await).await.1, "answer 8");
    let two = request("/a").header("host", "other.example");
    assert_eq!(origin.send(two).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(origin.get("/a").await.1, "answer 1");
}

#[tokio::test]
async fn head_is_answered_from_the_entry_of_get_and_never_stored() {
    let origin = Origin::new(layer(&larder()), numbered);
    let head = || origin.send(request("/").method(Method::HEAD));
    head().await;
    assert_eq!(origin.get("/").await.1, "answer 2");
    let hit = head().await;
    assert_eq!(hit.headers()[header::CONTENT_LENGTH], "8");
    assert_eq!(read(hit).await.1, "");
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn an_answer_that_is_being_sent_outlives_its_entry() {
    let larder = larder();
    let origin = Origin::new(layer(&larder), numbered);
    origin.get("/a").await;
    let answer = origin.send(request("/a")).await;
    assert_eq!(answer.headers()[header::CONTENT_LENGTH], "8");
    let _logged = larder.clear().await;
    assert!(origin.get("/a").await.0.contains("fwd"), "another entry has replaced it");
    drop((larder, origin));
    assert_eq!(read(answer).await.1, "answer 1");
}

#[tokio::test]
async fn variants_are_stored_side_by_side() {
    let origin = Origin::new(layer(&larder()).max_variants(2), |request, call| {
        let language = request.headers().get("accept-language");
        let language = language.map_or("none", |value| value.to_str().unwrap());
        Response::builder()
            .header("vary", "Accept-Language")
            .body(text(format!("{language} {call}")))
            .unwrap()
    });
    let ask = |language: &'static str| {
        let origin = origin.clone();
        async move { read(origin.send(request("/").header("accept-language", language)).await).await }
    };
    assert_eq!(ask("de").await.1, "de 1");
    assert_eq!(ask("fr").await, ("larder; fwd=vary-miss; stored".into(), "fr 2".into()));
    assert_eq!(ask("de").await.1, "de 1");
    assert_eq!(ask("FR").await.1, "fr 2");
    assert_eq!(origin.get("/").await.1, "none 3", "a missing field selects another variant");
    assert_eq!(ask("de").await.1, "de 4", "the least recently used variant was evicted");
}

#[tokio::test]
async fn an_invalidation_of_a_path_reaches_every_query() {
    let larder = larder();
    let origin = Origin::new(layer(&larder), numbered);
    for uri in ["/p", "/p?x=1", "/q"] {
        origin.get(uri).await;
    }
    let _ = larder.invalidate(Target::path("/p")).await;
    assert_eq!(origin.get("/p").await.1, "answer 4");
    assert_eq!(origin.get("/p?x=1").await.1, "answer 5");
    assert_eq!(origin.get("/q").await.1, "answer 3");
}

#[tokio::test]
async fn a_fill_that_an_invalidation_overtakes_is_not_served_later() {
    let larder = larder();
    let (read_it, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let origin = Origin::asynchronous(layer(&larder), {
        let (read_it, go) = (read_it.clone(), go.clone());
        move |_, call| {
            let (read_it, go) = (read_it.clone(), go.clone());
            async move {
                if call == 1 {
                    read_it.notify_one();
                    go.notified().await;
                }
                Response::new(text(format!("answer {call}")))
            }
        }
    });
    let first = tokio::spawn({
        let origin = origin.clone();
        async move { origin.get("/").await.1 }
    });
    read_it.notified().await;
    let _ = larder.invalidate(Target::path("/")).await;
    let second = tokio::spawn({
        let origin = origin.clone();
        async move { origin.get("/").await.1 }
    });
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(first.await.unwrap(), "answer 1");
    assert_eq!(second.await.unwrap(), "answer 2");
    assert_eq!(origin.get("/").await.1, "answer 2");
}

#[tokio::test(start_paused = true)]
async fn a_revalidation_that_an_invalidation_overtakes_is_not_served_later() {
    let larder = larder();
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let origin = Origin::asynchronous(ResponseCacheLayer::new(&larder), {
        let (asked, go) = (asked.clone(), go.clone());
        move |request, call| {
            let (asked, go) = (asked.clone(), go.clone());
            async move {
                let response = Response::builder().header("cache-control", "max-age=60");
                if !request.headers().contains_key("if-none-match") {
                    let response = response.header("etag", format!("\"{call}\""));
                    return response.body(text(format!("answer {call}"))).unwrap();
                }
                asked.notify_one();
                go.notified().await;
                response.status(304).header("etag", "\"1\"").body(text("")).unwrap()
            }
        }
    });
    origin.get("/").await;
    tokio::time::sleep(2 * MINUTE).await;
    let first = tokio::spawn({
        let origin = origin.clone();
        async move { origin.get("/").await.1 }
    });
    asked.notified().await;
    let _ = larder.invalidate(Target::path("/")).await;
    go.notify_one();
    assert_eq!(first.await.unwrap(), "answer 1", "it came before the invalidation");
    assert_eq!(origin.get("/").await.1, "answer 3");
}

/// A form inside of both layers that answers with its new state. `meanwhile` runs during each POST.
fn form(larder: &Larder, meanwhile: impl Fn(&Larder) + Clone + Send + 'static) -> Origin {
    let (calls, larder) = (Arc::new(AtomicUsize::new(0)), larder.clone());
    let (counted, within) = (Arc::clone(&calls), larder.clone());
    let inner = service_fn(move |request: Request<Empty<Bytes>>| {
        let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
        if *request.method() == Method::POST {
            meanwhile(&within);
        }
        let response = Response::builder()
            .header("cache-control", "max-age=60")
            .header("content-location", "/form")
            .body(text(format!("answer {call}")));
        async move { Ok::<_, Infallible>(response.unwrap()) }
    });
    let service = tower::ServiceBuilder::new()
        .layer(InvalidationLayer::new(&larder))
        .layer(ResponseCacheLayer::new(&larder))
        .service(inner);
    Origin { calls, service: BoxCloneService::new(service) }
}

#[tokio::test]
async fn a_response_to_post_is_stored_for_get_unless_something_else_was_invalidated() {
    let post = |uri: &str| request(uri).method(Method::POST);
    let quiet = form(&larder(), |_| {});
    assert_eq!(read(quiet.send(post("/form")).await).await.1, "answer 1");
    assert_eq!(quiet.get("/form").await, ("larder; hit; ttl=59".into(), "answer 1".into()));
    assert_eq!(quiet.get("/other").await.1, "answer 2", "only its own address");
    assert_eq!(read(quiet.send(post("/form")).await).await.1, "answer 3");
    assert_eq!(quiet.get("/form").await.1, "answer 3", "the write invalidated the stored response");
    let _ = quiet.send(post("/other")).await;
    assert_eq!(quiet.get("/other").await.1, "answer 5", "it names another address");

    let busy = form(&larder(), |larder| {
        let something = larder.invalidate(Target::tag("something"));
        let _ = futures_util::FutureExt::now_or_never(something);
    });
    assert_eq!(read(busy.send(post("/form")).await).await.1, "answer 1");
    assert_eq!(busy.get("/form").await.1, "answer 2", "the POST may have read older data");

    // The stored response has the tags that were added while the POST was answered.
    let with_part = larder();
    let part = form(&with_part, |larder| {
        larder
            .kernel()
            .current_scope()
            .unwrap()
            .add_tags(TagSource::Handler, [larder_core::Tag::new("part")]);
    });
    assert_eq!(read(part.send(post("/form")).await).await.1, "answer 1");
    assert_eq!(part.get("/form").await.1, "answer 1");
    let _ = with_part.invalidate("part").await;
    assert_eq!(part.get("/form").await.1, "answer 2");
}

#[tokio::test]
async fn ten_thousand_misses_cause_one_call_and_authenticated_requests_do_not_wait() {
    let origin = Origin::asynchronous(layer(&larder()), |_, call| async move {
        tokio::task::yield_now().await;
        Response::new(text(format!("answer {call}")))
    });
    let ask = |cookie: Option<usize>| {
        let origin = origin.clone();
        tokio::spawn(async move {
            let mut request = request("/");
            if let Some(cookie) = cookie {
                request = request.header("cookie", format!("user={cookie}"));
            }
            read(origin.send(request).await).await.1
        })
    };
    let anonymous: Vec<_> = (0..10_000).map(|_| ask(None)).collect();
    for answer in anonymous {
        assert_eq!(answer.await.unwrap(), "answer 1");
    }
    assert_eq!(origin.calls(), 1);
    let known: Vec<_> = (0..10_000).map(|user| ask(Some(user))).collect();
    let mut answers = std::collections::HashSet::new();
    for answer in known {
        assert!(answers.insert(answer.await.unwrap()), "two users got one answer");
    }
    assert_eq!(origin.calls(), 10_001);
}

#[tokio::test]
async fn the_first_chunk_is_sent_at_once_and_waiters_read_it_too() {
    let (frames, body) = mpsc::channel(4);
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let origin = Origin::new(layer(&larder()), move |_, _| {
        let body = stream(body.lock().take().unwrap());
        Response::builder().header("content-length", "10").body(body).unwrap()
    });
    frames.send(Ok(Frame::data("hello".into()))).await.unwrap();
    let mut first = origin.send(request("/")).await;
    let waiting = tokio::spawn({
        let origin = origin.clone();
        async move { origin.send(request("/")).await }
    });
    let chunk = first.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(chunk, "hello");
    let mut second = waiting.await.unwrap();
    assert!(second.headers()["cache-status"].to_str().unwrap().contains("collapsed"));
    let chunk = second.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(chunk, "hello");
    frames.send(Ok(Frame::data("world".into()))).await.unwrap();
    drop(frames);
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "world");
    assert_eq!(second.into_body().collect().await.unwrap().to_bytes(), "world");
    assert_eq!(origin.get("/").await.1, "helloworld");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_request_after_an_invalidation_does_not_join_an_earlier_fill() {
    let larder = larder();
    let (frames, body) = mpsc::channel(4);
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let origin = Origin::new(layer(&larder), move |_, call| {
        let Some(body) = body.lock().take() else {
            return Response::new(text(format!("answer {call}")));
        };
        Response::builder().header("content-length", "10").body(stream(body)).unwrap()
    });
    frames.send(Ok(Frame::data("hello".into()))).await.unwrap();
    let first = origin.send(request("/")).await;
    let _ = larder.invalidate(Target::path("/")).await;
    let late = tokio::spawn({
        let origin = origin.clone();
        async move { origin.get("/").await.1 }
    });
    tokio::task::yield_now().await;
    frames.send(Ok(Frame::data("world".into()))).await.unwrap();
    drop(frames);
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "helloworld");
    assert_eq!(late.await.unwrap(), "answer 2");
}

#[tokio::test]
async fn a_fill_serves_its_waiters_although_its_client_disconnects() {
    let (go, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let origin = Origin::asynchronous(layer(&larder()), {
        let (go, began) = (go.clone(), began.clone());
        move |_, call| {
            let (go, began) = (go.clone(), began.clone());
            async move {
                began.notify_one();
                go.notified().await;
                Response::new(text(format!("answer {call}")))
            }
        }
    });
    let leader = tokio::spawn({
        let origin = origin.clone();
        async move { origin.get("/").await }
    });
    began.notified().await;
    leader.abort();
    let waiter = tokio::spawn({
        let origin = origin.clone();
        async move { origin.get("/").await.1 }
    });
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(waiter.await.unwrap(), "answer 1");
}

#[tokio::test]
async fn a_handler_that_panics_releases_its_waiters() {
    let origin = Origin::asynchronous(layer(&larder()), |_, call| async move {
        tokio::task::yield_now().await;
        assert!(call > 1, "the first call panics");
        Response::new(text(format!("answer {call}")))
    });
    let ask = || {
        let origin = origin.clone();
        tokio::spawn(async move { origin.get("/").await.1 })
    };
    let (leader, waiter) = (ask(), ask());
    assert!(leader.await.unwrap_err().is_panic());
    assert_eq!(waiter.await.unwrap(), "answer 2");
}

#[tokio::test]
async fn a_body_beyond_the_limit_reaches_its_client_whole_and_is_not_stored() {
    let layer = layer(&larder()).body_limit(ByteSize::bytes(8));
    let origin = Origin::new(layer, |_, call| {
        let (frames, body) = mpsc::channel(4);
        tokio::spawn(async move {
            for _ in 0..5 {
                frames.send(Ok(Frame::data(format!("{call}abc").into()))).await.unwrap();
            }
        });
        Response::new(stream(body))
    });
    assert_eq!(origin.get("/").await.1, "1abc".repeat(5));
    assert_eq!(
        origin.get("/").await,
        ("larder; fwd=uri-miss; detail=too-large".into(), "2abc".repeat(5))
    );
}

#[tokio::test]
async fn trailers_reach_the_client_and_prevent_storing() {
    for at_once in [true, false] {
        let origin = Origin::new(layer(&larder()), move |_, _| {
            let (frames, body) = mpsc::channel(4);
            tokio::spawn(async move {
                if !at_once {
                    tokio::task::yield_now().await;
                }
                let trailers = [(header::ETAG, "\"a\"".parse().unwrap())].into_iter().collect();
                for frame in [Frame::data("data".into()), Frame::trailers(trailers)] {
                    frames.send(Ok(frame)).await.unwrap();
                }
            });
            Response::new(stream(body))
        });
        for call in 1..=2 {
            let answer = origin.send(request("/")).await.into_body().collect().await.unwrap();
            assert_eq!(answer.trailers().unwrap()[header::ETAG], "\"a\"");
            assert_eq!(answer.to_bytes(), "data");
            assert_eq!(origin.calls(), call, "the origin is called each time");
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_stored() {
    let origin = Origin::new(layer(&larder()), |_, call| {
        let (frames, body) = mpsc::channel(4);
        frames.try_send(Ok(Frame::data("half".into()))).unwrap();
        if call == 1 {
            frames.try_send(Err(io::Error::other("the database went away"))).unwrap();
        }
        Response::new(stream(body))
    });
    let broken = origin.send(request("/")).await.into_body().collect().await.unwrap_err();
    assert_eq!(broken.to_string(), "the database went away");
    assert_eq!(origin.get("/").await.1, "half");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_does_not_block_its_waiters() {
    let origin = Origin::new(layer(&larder()), |_, call| {
        let (frames, body) = mpsc::channel(4);
        tokio::spawn(async move {
            while frames.send(Ok(Frame::data(format!("{call}").into()))).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        Response::new(stream(body))
    });
    let mut first = origin.send(request("/")).await;
    let second = tokio::time::timeout(MINUTE, origin.send(request("/"))).await;
    let mut second = second.expect("the wait limit frees it");
    for (response, expected) in [(&mut first, "1"), (&mut second, "2")] {
        let chunk = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(chunk, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_hit_is_served_at_once_while_one_refresh_runs() {
    let larder = larder();
    let origin = Origin::new(layer(&larder).stale_while_revalidate(MINUTE), numbered);
    origin.get("/").await;
    tokio::time::advance(MINUTE + Duration::from_secs(3)).await;
    assert_eq!(origin.get("/").await, ("larder; hit; ttl=-3".into(), "answer 1".into()));
    assert!(larder.close(MINUTE).await);
    assert_eq!(origin.get("/").await.1, "answer 2");
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn stale_if_error_serves_no_invalidated_response() {
    let larder = larder();
    let layer = layer(&larder).stale_if_error(MINUTE);
    let origin = Origin::new(layer, |_, call| match call {
        1 => Response::new(text("good")),
        _ => Response::builder().status(503).body(text("down")).unwrap(),
    });
    origin.get("/").await;
    tokio::time::advance(MINUTE).await;
    assert_eq!(origin.get("/").await.1, "good");
    let _ = larder.invalidate(Target::path("/")).await;
    assert_eq!(origin.get("/").await.1, "down");
}

#[tokio::test]
async fn errors_are_stored_only_with_negative_ttl() {
    let missing = |_: Request<_>, call: usize| {
        Response::builder().status(404).body(text(format!("answer {call}"))).unwrap()
    };
    let origin = Origin::new(layer(&larder()), missing);
    origin.get("/").await;
    assert_eq!(origin.get("/").await.1, "answer 2");
    let negative = layer(&larder()).negative_ttl([StatusCode::NOT_FOUND], Duration::from_secs(5));
    let origin = Origin::new(negative, missing);
    origin.get("/").await;
    assert_eq!(origin.get("/").await.1, "answer 1");
}

#[tokio::test]
async fn a_fill_sends_no_precondition_and_stores_the_full_response_for_a_range() {
    let origin = Origin::new(layer(&larder()), |request, call| {
        for name in ["if-none-match", "if-modified-since"] {
            assert!(!request.headers().contains_key(name));
        }
        Response::new(text(format!("answer {call}")))
    });
    let ask = request("/").header("if-none-match", "\"x\"").header("range", "bytes=0-1");
    assert_eq!(read(origin.send(ask).await).await.1, "an");
    assert_eq!(origin.get("/").await.1, "answer 1", "the whole response was stored");
}

#[tokio::test]
async fn fields_of_a_single_response_are_not_replayed() {
    let fields = &[("x-request-id", "1"), ("server-timing", "db;dur=5"), ("x-theme", "dark")];
    let origin = Origin::new(layer(&larder()), with(fields));
    assert_eq!(origin.send(request("/")).await.headers()["x-request-id"], "1");
    let hit = origin.send(request("/")).await;
    assert!(!hit.headers().contains_key("x-request-id"));
    assert!(!hit.headers().contains_key("server-timing"));
    assert_eq!(hit.headers()["x-theme"], "dark");
}

#[tokio::test]
async fn parameters_outside_the_key_do_not_reach_the_handler() {
    let layer = layer(&larder()).query_params(QueryRule::without_trackers());
    let origin = Origin::new(layer, |request, call| {
        Response::new(text(format!("{} {call}", request.uri())))
    });
    assert_eq!(origin.get("/a?utm_source=x&page=2").await.1, "/a?page=2 1");
    assert_eq!(origin.get("/a?page=2&fbclid=7").await.1, "/a?page=2 1");
}

#[tokio::test]
async fn a_client_may_demand_a_fill_or_only_a_stored_response() {
    let origin = Origin::new(layer(&larder()), numbered);
    let ask = |control: &'static str| origin.send(request("/").header("cache-control", control));
    let none = ask("only-if-cached").await;
    assert_eq!(none.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(none.headers()[header::CACHE_STATUS], "larder; detail=only-if-cached");
    assert_eq!(origin.get("/").await.1, "answer 1");
    assert_eq!(read(ask("no-cache").await).await.0, "larder; fwd=request; stored");
    assert_eq!(origin.get("/").await.1, "answer 2");
    assert_eq!(read(ask("no-store").await).await.1, "answer 3");
    let deaf = Origin::new(layer(&larder()).ignore_request_cache_control(), numbered);
    deaf.get("/").await;
    let ask = request("/").header("cache-control", "no-cache");
    assert_eq!(read(deaf.send(ask).await).await.1, "answer 1");
}

#[tokio::test]
async fn an_inner_layer_overrides_the_outer_one_and_nothing_is_stored_twice() {
    let larder = larder();
    let short =
        ResponseCacheLayer::new(&larder).override_ttl(Lifetime::fresh_for(Duration::from_secs(5)));
    let inner = short.layer(service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(text("hello")))
    }));
    let service = layer(&larder).layer(inner);
    let ask = || service.clone().oneshot(empty(request("/")));
    ask().await.unwrap();
    let hit = ask().await.unwrap();
    let status: Vec<_> = hit.headers().get_all("cache-status").iter().collect();
    assert!(
        status.last().unwrap().to_str().unwrap().starts_with("larder; hit; ttl=4"),
        "{status:?}"
    );
    assert_eq!(larder.stats().memory.entries, 1);
}

#[tokio::test]
async fn a_whole_stack_revalidates_and_invalidates() {
    let larder = larder();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let inner = service_fn(move |_: Request<Empty<Bytes>>| {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok::<_, Infallible>(Response::new(text(format!("answer {call}")))) }
    });
    let service = tower::ServiceBuilder::new()
        .layer(ConditionalLayer::new(&larder))
        .layer(InvalidationLayer::new(&larder))
        .layer(layer(&larder))
        .service(inner);
    let ask = |request: http::request::Builder| service.clone().oneshot(empty(request));
    let first = ask(request("/")).await.unwrap();
    let tag = first.headers()[header::ETAG].clone();
    let second = ask(request("/").header("if-none-match", &tag)).await.unwrap();
    assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(second.headers()[header::ETAG], tag);
    assert!(second.body().size_hint().exact() == Some(0));
    ask(request("/").method(Method::PUT)).await.unwrap();
    let third = ask(request("/").header("if-none-match", &tag)).await.unwrap();
    assert_eq!(third.status(), StatusCode::OK);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_fill_beyond_the_fill_budget_is_served_and_not_stored() {
    let larder = Larder::builder().fill_budget(ByteSize::kib(64)).build().unwrap();
    let origin = Origin::new(layer(&larder), |_, _| Response::new(text(vec![b'x'; 100 * 1024])));
    assert_eq!(origin.get("/").await.1.len(), 100 * 1024);
    assert_eq!(larder.stats().memory.entries, 1, "only the hit-for-miss entry");
}

#[tokio::test(start_paused = true)]
async fn a_stale_hit_of_head_is_refreshed_by_a_get() {
    let larder = larder();
    let origin = Origin::new(layer(&larder).stale_while_revalidate(MINUTE), |request, call| {
        let body = if request.method() == Method::HEAD { String::new() } else { call.to_string() };
        Response::new(text(body))
    });
    origin.get("/").await;
    tokio::time::advance(MINUTE).await;
    origin.send(request("/").method(Method::HEAD)).await;
    assert!(larder.close(MINUTE).await);
    assert_eq!(origin.get("/").await.1, "2");
}

#[tokio::test]
async fn an_error_is_not_stored_for_the_lifetime_that_the_handler_chose() {
    let origin = Origin::new(layer(&larder()), |request, call| {
        request.extensions().get::<ResponseOverrides>().unwrap().ttl(MINUTE);
        Response::builder().status(500).body(text(call.to_string())).unwrap()
    });
    assert_eq!(origin.get("/").await.1, "1");
    assert_eq!(origin.get("/").await.1, "2");
}

#[tokio::test]
async fn a_body_shorter_than_its_content_length_is_not_stored() {
    let origin = Origin::new(layer(&larder()), |_, call| {
        let (frames, body) = mpsc::channel(4);
        frames.try_send(Ok(Frame::data(format!("half {call}").into()))).unwrap();
        Response::builder().header("content-length", "100").body(stream(body)).unwrap()
    });
    assert_eq!(origin.get("/").await.1, "half 1");
    assert_eq!(origin.get("/").await.1, "half 2");
}

#[tokio::test]
async fn an_inner_cache_with_more_key_inputs_keeps_the_outer_one_from_storing() {
    let larder = larder();
    let tenants = layer(&larder).name("tenants").vary_by(
        "tenant",
        [HeaderName::from_static("x-tenant")],
        |head| {
            head.headers.get("x-tenant").map_or("", |value| value.to_str().unwrap_or("")).to_owned()
        },
    );
    let inner = tenants.layer(service_fn(|request: Request<Empty<Bytes>>| async move {
        let tenant = request.headers()["x-tenant"].clone();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(tenant.as_bytes().to_vec())))
    }));
    let service = layer(&larder).layer(inner);
    for tenant in ["a", "a", "b", "a"] {
        let ask = empty(request("/").header("x-tenant", tenant));
        let answer = service.clone().oneshot(ask).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), tenant);
    }
}

#[tokio::test]
async fn unkeyed_inputs_do_not_reach_the_handler() {
    let origin = Origin::new(layer(&larder()), |request, _| {
        assert!(!request.headers().contains_key("x-forwarded-host"));
        Response::new(text("clean"))
    });
    let ask = request("/").header("x-forwarded-host", "evil.example");
    assert_eq!(read(origin.send(ask).await).await.1, "clean");
}

#[tokio::test]
async fn values_loaded_by_a_write_under_a_shared_layer_are_not_shared() {
    let larder = larder();
    let inside = larder.clone();
    let origin = Origin::asynchronous(layer(&larder).shared(), move |request, _| {
        let larder = inside.clone();
        async move {
            let user =
                request.headers().get("cookie").map(|user| user.to_str().unwrap().to_owned());
            let load = move |_| async move { Ok::<_, Infallible>(user) };
            let nav = larder.get_or_load("nav", MINUTE, load).await.unwrap();
            Response::new(text(format!("{nav:?}")))
        }
    });
    let post = request("/").method(Method::POST).header("cookie", "alice");
    assert!(read(origin.send(post).await).await.1.contains("alice"));
    assert_eq!(origin.get("/").await.1, "None");
}

#[tokio::test]
async fn an_inner_cache_does_not_share_an_entry_between_partitions() {
    let larder = larder();
    let user = |head: &crate::Head<'_>| {
        head.headers.get("x-user").map(|user| Bytes::copy_from_slice(user.as_bytes()))
    };
    let themes = layer(&larder).name("themes").vary_by("theme", [], |_| "dark");
    let inner = themes.layer(service_fn(|request: Request<Empty<Bytes>>| async move {
        let user = request.headers()["x-user"].clone();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(user.as_bytes().to_vec())))
    }));
    let service = layer(&larder).partition_by(user).layer(inner);
    for user in ["alice", "bob", "alice", "bob"] {
        let ask = empty(request("/").header("x-user", user));
        let answer = service.clone().oneshot(ask).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), user);
    }
}

#[tokio::test]
async fn a_credential_extension_without_a_partition_bypasses() {
    #[derive(Clone)]
    struct Session;
    let layer = layer(&larder()).credential_extension::<Session>().partition_by(|_| None::<Bytes>);
    let origin = Origin::new(layer, numbered);
    let mut with_session = empty(request("/"));
    with_session.extensions_mut().insert(Session);
    let answer = origin.service.clone().oneshot(with_session).await.unwrap();
    assert_eq!(read(answer).await.0, "larder; fwd=bypass; detail=identity");
    assert_eq!(origin.get("/").await.1, "answer 2");
}

#[tokio::test]
async fn infinite_timeouts_are_accepted() {
    let layer = layer(&larder()).coalesce_timeout(Duration::MAX).fill_timeout(Duration::MAX);
    let origin = Origin::new(layer, numbered);
    assert_eq!(origin.get("/").await.1, "answer 1");
}

/// A shared layer strips credentials, and a route inside of it cannot restore them, so a bypass must not strip them.
#[tokio::test]
async fn a_bypass_keeps_the_credentials_of_its_request() {
    let layer = layer(&larder()).shared().bypass_if(|head| head.uri.path() == "/cart");
    let origin = Origin::new(layer, |request: Request<Empty<Bytes>>, _| {
        let cookie = request.headers().get(header::COOKIE).map(|cookie| cookie.as_bytes().to_vec());
        Response::new(text(cookie.unwrap_or_default()))
    });
    let cart = || request("/cart").header("cookie", "of ada");
    for _ in 0..2 {
        let answer = read(origin.send(cart()).await).await;
        assert_eq!(answer, ("larder; fwd=bypass; detail=by-choice".into(), "of ada".into()));
    }
    let page = read(origin.send(request("/").header("cookie", "of ada")).await).await;
    assert_eq!(page.1, "");
}

#[tokio::test]
async fn a_body_known_to_be_too_large_is_not_reported_as_stored() {
    let layer = layer(&larder()).body_limit(ByteSize::kib(1));
    let origin = Origin::new(layer, |_, _| {
        let frames = (0..4).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 512]))));
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
    });
    let (status, body) = origin.get("/").await;
    assert_eq!((&*status, body.len()), ("larder; fwd=uri-miss; detail=too-large", 2048));
}
