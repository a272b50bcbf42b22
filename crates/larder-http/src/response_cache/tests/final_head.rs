//! The cache waits for the changes of outer layers before it stores a response and before a waiter gets it.

use std::sync::atomic::AtomicBool;

use http::HeaderValue;
use tower::ServiceBuilder;

use super::*;
use crate::FinalHeadLayer;

/// A session layer like those of many applications: it puts a handle into each request, and sets a cookie on the
/// response if the handler has written to the session.
#[derive(Clone, Default)]
struct Session {
    is_written: Arc<AtomicBool>,
}

type Change = fn(&mut Response<CacheBody<TestBody>>);

/// The change that an outer layer makes to the first response.
#[derive(Clone, Copy)]
enum Adds {
    Nothing,
    This(Change),
    CookieOfTheSession,
}

struct App {
    service: BoxCloneService<Request<Empty<Bytes>>, Response<CacheBody<TestBody>>, Infallible>,
    calls: Arc<AtomicUsize>,
}

/// A handler inside a cache inside a session layer, with or without [`FinalHeadLayer`] around them.
fn app(
    is_told: bool,
    adds: Adds,
    cache: &ResponseCacheLayer,
    handler: impl Fn(Request<Empty<Bytes>>, usize) -> Response<TestBody> + Clone + Send + 'static,
) -> App {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let inner = service_fn(move |request| {
        let response = handler(request, counted.fetch_add(1, Ordering::SeqCst) + 1);
        async move { Ok::<_, Infallible>(response) }
    });
    let cached = cache.layer(inner);
    let sessions = service_fn(move |mut request: Request<Empty<Bytes>>| {
        let session = Session::default();
        request.extensions_mut().insert(session.clone());
        let answer = cached.clone().oneshot(request);
        async move {
            let mut response = answer.await?;
            let is_first = response.headers()[header::CACHE_STATUS] != "larder; hit; ttl=59";
            match adds {
                Adds::This(change) if is_first => change(&mut response),
                Adds::CookieOfTheSession if session.is_written.load(Ordering::SeqCst) => {
                    let cookie = HeaderValue::from_static("session=1");
                    response.headers_mut().insert(header::SET_COOKIE, cookie);
                }
                _ => {}
            }
            Ok::<_, Infallible>(response)
        }
    });
    let service = match is_told {
        true => BoxCloneService::new(
            ServiceBuilder::new().layer(FinalHeadLayer::new()).service(sessions),
        ),
        false => BoxCloneService::new(sessions),
    };
    App { service, calls }
}

impl App {
    async fn get(&self) -> (String, String) {
        read(self.service.clone().oneshot(empty(request("/"))).await.unwrap()).await
    }
}

fn add(name: &'static str, value: &'static str) -> impl Fn(&mut Response<CacheBody<TestBody>>) {
    move |response| drop(response.headers_mut().insert(name, HeaderValue::from_static(value)))
}

#[tokio::test]
async fn a_change_by_an_outer_layer_makes_a_response_not_storable() {
    let rows: [(&str, Adds, Option<&str>); 8] = [
        ("nothing", Adds::Nothing, None),
        ("a cookie", Adds::This(|it| add("set-cookie", "a=b")(it)), Some("final-set-cookie")),
        ("no-store", Adds::This(|it| add("cache-control", "no-store")(it)), Some("final-no-store")),
        ("private", Adds::This(|it| add("cache-control", "private")(it)), Some("final-private")),
        (
            "a private field",
            Adds::This(|it| add("cache-control", "private=\"x\"")(it)),
            Some("final-private"),
        ),
        (
            "an error in its place",
            Adds::This(|it| *it.status_mut() = StatusCode::FORBIDDEN),
            Some("final-status"),
        ),
        ("a field of security", Adds::This(|it| add("x-frame-options", "DENY")(it)), None),
        ("a field about storing", Adds::This(|it| add("cache-control", "max-age=9")(it)), None),
    ];
    for (what, adds, refused) in rows {
        let app = app(true, adds, &layer(&larder()), numbered);
        let (status, _) = app.get().await;
        let expected = match refused {
            Some(why) => format!("larder; fwd=uri-miss; detail={why}"),
            None => "larder; fwd=uri-miss; stored".to_owned(),
        };
        assert_eq!(status, expected, "{what}");
        tokio::task::yield_now().await;
        let (status, text) = app.get().await;
        let expected = if refused.is_some() { "answer 2" } else { "answer 1" };
        assert_eq!(text, expected, "{what}: {status}");
    }
}

/// A handler that writes a token of a new session into its page, as for a form.
#[expect(clippy::needless_pass_by_value, reason = "a handler takes its request")]
fn signup(request: Request<Empty<Bytes>>, call: usize) -> Response<TestBody> {
    let session = request.extensions().get::<Session>().unwrap();
    session.is_written.store(true, Ordering::SeqCst);
    Response::new(text(format!("token {call}")))
}

#[tokio::test]
async fn the_session_token_of_one_client_reaches_no_other() {
    let refuses = |session: &Session| session.is_written.load(Ordering::SeqCst);
    for (what, is_told, cache) in [
        ("told of the final head", true, &layer(&larder())),
        ("asking the session", false, &layer(&larder()).refuse_if(refuses)),
        ("both", true, &layer(&larder()).refuse_if(refuses)),
    ] {
        let app = app(is_told, Adds::CookieOfTheSession, cache, signup);
        let visitors = (0..20).map(|_| app.get());
        let mut texts: Vec<String> =
            futures_util::future::join_all(visitors).await.into_iter().map(|it| it.1).collect();
        texts.push(app.get().await.1);
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 21, "{what}: each has a token of its own");
        assert_eq!(app.calls.load(Ordering::SeqCst), 21);
    }
}

#[tokio::test]
async fn a_page_that_does_not_write_to_the_session_is_shared() {
    let refuses = |session: &Session| session.is_written.load(Ordering::SeqCst);
    let app = app(true, Adds::CookieOfTheSession, &layer(&larder()).refuse_if(refuses), numbered);
    let visitors = futures_util::future::join_all((0..20).map(|_| app.get())).await;
    assert!(visitors.into_iter().all(|(_, text)| text == "answer 1"));
    assert!(app.get().await.0.contains("; hit"));
}

#[tokio::test]
async fn a_session_write_during_the_body_prevents_storing() {
    let refuses = |session: &Session| session.is_written.load(Ordering::SeqCst);
    let (go, waiting) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (go, waiting) = (go.clone(), waiting.clone());
        move |request: Request<Empty<Bytes>>, call| {
            let session = request.extensions().get::<Session>().unwrap().clone();
            let (frames, body) = mpsc::channel(2);
            let (go, waiting) = (go.clone(), waiting.clone());
            tokio::spawn(async move {
                frames.send(Ok(Frame::data(format!("{call}").into()))).await.unwrap();
                waiting.notify_one();
                go.notified().await;
                session.is_written.store(true, Ordering::SeqCst);
            });
            Response::new(stream(body))
        }
    };
    let app = app(false, Adds::Nothing, &layer(&larder()).refuse_if(refuses), handler);
    for call in ["1", "2"] {
        let answer = tokio::spawn(app.service.clone().oneshot(empty(request("/"))));
        let reached = tokio::time::timeout(Duration::from_secs(5), waiting.notified());
        assert!(reached.await.is_ok(), "request {call} reaches the handler");
        go.notify_one();
        assert_eq!(read(answer.await.unwrap().unwrap()).await.1, call);
    }
}

/// The second of two frames is sent when the test allows it, and has a token of the session in it.
#[tokio::test]
async fn a_waiter_gets_no_body_while_the_session_may_be_written() {
    let refuses = |session: &Session| session.is_written.load(Ordering::SeqCst);
    let go = Arc::new(Notify::new());
    let handler = {
        let go = go.clone();
        move |request: Request<Empty<Bytes>>, call| {
            let session = request.extensions().get::<Session>().unwrap().clone();
            let (frames, body) = mpsc::channel(2);
            let go = go.clone();
            tokio::spawn(async move {
                frames.send(Ok(Frame::data("token ".into()))).await.unwrap();
                go.notified().await;
                session.is_written.store(true, Ordering::SeqCst);
                frames.send(Ok(Frame::data(format!("{call:04}").into()))).await.unwrap();
            });
            Response::builder().header("content-length", "10").body(stream(body)).unwrap()
        }
    };
    for is_told in [false, true] {
        let cache = layer(&larder()).refuse_if(refuses);
        let app = app(is_told, Adds::Nothing, &cache, handler.clone());
        let leader = app.service.clone().oneshot(empty(request("/"))).await.unwrap();
        let waiter = tokio::spawn(app.service.clone().oneshot(empty(request("/"))));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        assert_eq!(read(leader).await.1, "token 0001");
        let waiter = tokio::time::timeout(Duration::from_secs(5), waiter).await.unwrap();
        go.notify_one();
        let (status, text) = read(waiter.unwrap().unwrap()).await;
        assert_eq!(text, "token 0002", "{status}");
    }
}

#[tokio::test]
async fn waiters_get_nothing_before_the_head_has_left() {
    // Outside the cache every response waits for a notification by the test.
    let go = Arc::new(Notify::new());
    let cached = layer(&larder()).layer(service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(text("one")))
    }));
    let slow = {
        let go = go.clone();
        service_fn(move |request: Request<Empty<Bytes>>| {
            let (answer, go) = (cached.clone().oneshot(request), go.clone());
            async move {
                let mut response = answer.await?;
                if !response.headers()[header::CACHE_STATUS].to_str().unwrap().contains("collapsed")
                {
                    go.notified().await;
                    add("set-cookie", "a=b")(&mut response);
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
    let service = FinalHeadLayer::new().layer(slow);
    let leader = tokio::spawn(service.clone().oneshot(empty(request("/"))));
    tokio::task::yield_now().await;
    let waiter = tokio::spawn(service.clone().oneshot(empty(request("/"))));
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!waiter.is_finished(), "the waiter waits for the verdict");
    go.notify_one();
    assert!(leader.await.unwrap().unwrap().headers().contains_key(header::SET_COOKIE));
    go.notify_one();
    let waiter = waiter.await.unwrap().unwrap();
    let status = waiter.headers()[header::CACHE_STATUS].to_str().unwrap();
    assert!(!status.contains("collapsed"), "{status}: it called the handler itself");
}

#[tokio::test]
async fn a_client_that_disconnects_before_the_head_leaves_no_entry() {
    let app = app(true, Adds::Nothing, &layer(&larder()), numbered);
    let answer = app.service.clone().oneshot(empty(request("/")));
    let mut answer = Box::pin(answer);
    // The request is polled until its fill runs, and no further.
    assert!(futures_util::poll!(&mut answer).is_pending());
    drop(answer);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(app.calls.load(Ordering::SeqCst), 1);
    assert_eq!(
        app.get().await.1,
        "answer 2",
        "the final head of the first response was never reported"
    );
    tokio::task::yield_now().await;
    assert!(app.get().await.0.contains("; hit"));
}

#[tokio::test]
async fn a_slow_body_is_coalesced_once_its_head_has_left() {
    let (frames, body) = mpsc::channel(4);
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let handler = move |_: Request<Empty<Bytes>>, _| {
        let body = stream(body.lock().take().expect("one request reaches the handler"));
        Response::builder().header("content-length", "10").body(body).unwrap()
    };
    let app = app(true, Adds::Nothing, &layer(&larder()), handler);
    frames.send(Ok(Frame::data("hello".into()))).await.unwrap();
    let first = app.service.clone().oneshot(empty(request("/"))).await.unwrap();
    let second = app.service.clone().oneshot(empty(request("/"))).await.unwrap();
    frames.send(Ok(Frame::data("world".into()))).await.unwrap();
    drop(frames);
    assert_eq!(read(first).await.1, "helloworld");
    let (status, text) = read(second).await;
    assert!(status.contains("collapsed") && text == "helloworld", "{status}");
    assert!(app.get().await.0.contains("; hit"));
}

#[tokio::test]
async fn a_slow_body_with_a_head_that_is_not_storable_is_not_coalesced() {
    let (frames, body) = mpsc::channel(4);
    let bodies = Arc::new(parking_lot::Mutex::new(vec![stream(body)]));
    let handler = move |_: Request<Empty<Bytes>>, call| {
        let body = bodies.lock().pop().unwrap_or_else(|| text(format!("answer {call}")));
        Response::builder().header("content-length", "10").body(body).unwrap()
    };
    let cookie = Adds::This(|it| add("set-cookie", "a=b")(it));
    let app = app(true, cookie, &layer(&larder()), handler);
    frames.send(Ok(Frame::data("hello".into()))).await.unwrap();
    let first = app.service.clone().oneshot(empty(request("/"))).await.unwrap();
    assert_eq!(
        first.headers()[header::CACHE_STATUS],
        "larder; fwd=uri-miss; detail=final-set-cookie"
    );
    // The first body is half sent, and no other client may read it.
    let (status, text) = app.get().await;
    assert!(!status.contains("collapsed"), "{status}");
    assert_eq!(text, "answer 2", "{status}");
    frames.send(Ok(Frame::data("world".into()))).await.unwrap();
    drop(frames);
    assert_eq!(read(first).await.1, "helloworld", "its own client gets all of it");
    assert_eq!(app.get().await.1, "answer 3", "neither was stored");
}
