//! The edge, in front of an origin, over real sockets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, body::Body, extract::State, response::Response, routing::any};
use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

type Calls = Arc<AtomicUsize>;

struct Edge {
    address: SocketAddr,
    calls: Calls,
    // Aborted when dropped, also if the test fails.
    _serving: JoinSet<()>,
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Answers with the header fields that the query of the request lists, and with the request it received.
async fn origin(State(calls): State<Calls>, request: Request<Body>) -> Response {
    let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
    let mut response = Response::builder();
    for pair in request.uri().query().unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap();
        response = match name {
            "status" => response.status(value.parse::<u16>().unwrap()),
            name => response.header(name, value.replace("%20", " ")),
        };
    }
    let host = request.headers()[header::HOST].to_str().unwrap();
    let text = format!("{call} {} {host}", request.method());
    response.body(Body::from(text)).unwrap()
}

impl Edge {
    async fn open(flags: &[&str]) -> Self {
        let calls = Calls::default();
        let app = Router::new().fallback(any(origin)).with_state(calls.clone());
        Self { calls, ..Self::before(app, flags).await }
    }

    /// In front of another origin, whose requests are not counted.
    async fn before(app: Router, flags: &[&str]) -> Self {
        let (behind, front) = (listener().await, listener().await);
        let (origin, address) = (behind.local_addr().unwrap(), front.local_addr().unwrap());
        let origin = format!("http://{origin}");
        let own = ["edge", "--origin", &origin];
        let options = edge::Options::parse_from(own.iter().chain(flags).copied());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(behind, app).await.unwrap() });
        serving.spawn(async move {
            edge::Edge::new(&options).unwrap().serve(front, std::future::pending()).await;
        });
        Self { address, calls: Calls::default(), _serving: serving }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, String) {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut request =
            Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = client.request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(text.to_vec()).unwrap())
    }

    async fn text(&self, path: &str, fields: &[(&str, &str)]) -> String {
        self.send(Method::GET, path, fields).await.2
    }
}

#[tokio::test]
async fn only_responses_the_origin_allows_are_stored_and_no_etag_is_added() {
    let edge = Edge::open(&[]).await;
    let path = "/a?cache-control=max-age=60";
    let (_, first, one) = edge.send(Method::GET, path, &[]).await;
    let (_, second, two) = edge.send(Method::GET, path, &[]).await;
    assert_eq!(one, two);
    assert_eq!(first[header::CACHE_CONTROL], "max-age=60");
    assert!(!first.contains_key(header::ETAG) && !second.contains_key(header::ETAG));
    assert!(second[header::CACHE_STATUS].to_str().unwrap().starts_with("larder; hit"));
    assert!(second.contains_key(header::AGE));
    edge.text("/plain", &[]).await;
    edge.text("/plain", &[]).await;
    assert_eq!(edge.calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_host_reaches_the_origin_and_hop_by_hop_fields_do_not_leave() {
    let edge = Edge::open(&[]).await;
    let text = edge.text("/", &[("host", "shop.example")]).await;
    assert_eq!(text, "1 GET shop.example");
    let (_, headers, _) = edge.send(Method::GET, "/?connection=x-hop&x-hop=1&x-end=2", &[]).await;
    assert!(!headers.contains_key("x-hop"));
    assert_eq!(headers["x-end"], "2");
}

#[tokio::test]
async fn the_profiles_differ_where_the_page_says_so() {
    let path = "/?cache-control=max-age=60&set-cookie=a=b";
    for (flags, calls) in [(&[][..], 2), (&["--conformance"][..], 1)] {
        let edge = Edge::open(flags).await;
        edge.text(path, &[]).await;
        edge.text(path, &[]).await;
        assert_eq!(edge.calls.load(Ordering::SeqCst), calls, "{flags:?}");
    }
}

#[tokio::test]
async fn a_write_invalidates_its_address_and_an_error_does_not() {
    let edge = Edge::open(&[]).await;
    let kept = "/a?cache-control=max-age=60";
    edge.text(kept, &[]).await;
    edge.send(Method::POST, "/a?status=500", &[]).await;
    assert_eq!(edge.text(kept, &[]).await, edge.text(kept, &[]).await);
    assert_eq!(edge.calls.load(Ordering::SeqCst), 2);
    edge.send(Method::POST, "/a", &[]).await;
    edge.text(kept, &[]).await;
    assert_eq!(edge.calls.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn fields_named_by_connection_are_removed_before_the_key_is_built() {
    let edge = Edge::open(&[]).await;
    let path = "/?cache-control=max-age=60&vary=accept-language";
    let hostile = [("accept-language", "de"), ("connection", "accept-language")];
    let default = edge.text(path, &hostile).await;
    assert_ne!(edge.text(path, &[("accept-language", "de")]).await, default);
    assert_eq!(edge.text(path, &[]).await, default);
    let host = [("host", "shop.example"), ("connection", "host")];
    assert!(edge.text("/", &host).await.ends_with("GET shop.example"));
}

#[tokio::test]
async fn a_query_request_is_keyed_by_its_content() {
    let edge = Edge::open(&[]).await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let ask = async |content: &'static str| {
        let uri = format!("http://{}/?cache-control=max-age=60", edge.address);
        let request = Request::builder().method(Method::QUERY).uri(uri);
        let request = request.body(Full::<Bytes>::from(content)).unwrap();
        let answer = client.request(request).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes()
    };
    let [red, again, blue] = [ask("red").await, ask("red").await, ask("blue").await];
    assert_eq!(red, again);
    assert_ne!(red, blue);
    assert_eq!(edge.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_dead_origin_gives_502_and_a_large_header_affects_no_other_request() {
    let options = edge::Options::parse_from(["edge", "--origin", "http://127.0.0.1:9"]);
    let front = listener().await;
    let address = front.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        edge::Edge::new(&options).unwrap().serve(front, std::future::pending()).await;
    });
    let gone = Edge { address, calls: Calls::default(), _serving: serving };
    assert_eq!(gone.send(Method::GET, "/", &[]).await.0, StatusCode::BAD_GATEWAY);

    let edge = Edge::open(&[]).await;
    let path = "/?cache-control=max-age=60";
    let good = edge.text(path, &[]).await;
    let huge = "x".repeat(1 << 20);
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::get(format!("http://{}{path}", edge.address)).header("x-huge", huge);
    // Refused by the server, or cut off: either way no response to it is stored.
    drop(client.request(request.body(Full::<Bytes>::default()).unwrap()).await);
    assert_eq!(edge.text(path, &[]).await, good);
}

/// Regression: a download in progress was cut off at shutdown, since the wait for it was created and dropped at once.
#[tokio::test]
async fn a_download_that_has_begun_ends_before_the_proxy_does() {
    let go = Arc::new(tokio::sync::Notify::new());
    let gate = Arc::clone(&go);
    let slow = move || {
        let gate = Arc::clone(&gate);
        async move {
            let second = futures_util::stream::once(async move {
                gate.notified().await;
                Ok::<_, std::io::Error>(Bytes::from_static(b"second"))
            });
            let first = futures_util::stream::once(async { Ok(Bytes::from_static(b"first ")) });
            Body::from_stream(futures_util::StreamExt::chain(first, second))
        }
    };
    let behind = listener().await;
    let origin = format!("http://{}", behind.local_addr().unwrap());
    let mut serving = JoinSet::new();
    let app = Router::new().route("/", any(slow));
    serving.spawn(async move { axum::serve(behind, app).await.unwrap() });
    let options = edge::Options::parse_from(["edge", "--origin", &origin]);
    let front = listener().await;
    let address = front.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut proxy = JoinSet::new();
    proxy.spawn(edge::Edge::new(&options).unwrap().serve(front, async { drop(stopped.await) }));
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let ask = Request::get(format!("http://{address}/")).body(Full::default()).unwrap();
    let mut body = client.request(ask).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "first ");
    stop.send(()).unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(proxy.try_join_next().is_none(), "it waits for what has begun");
    go.notify_one();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "second");
    drop(client);
    proxy.join_next().await.unwrap().unwrap();
}

/// A raw origin: it reads each request to the end of its head and answers with these bytes, or closes the connection.
struct RawOrigin {
    edge: SocketAddr,
    requests: Calls,
    _serving: JoinSet<()>,
}

impl RawOrigin {
    async fn open(
        answer: impl Fn(usize) -> Option<Vec<u8>> + Clone + Send + Sync + 'static,
    ) -> Self {
        let (behind, front) = (listener().await, listener().await);
        let (origin, edge) = (behind.local_addr().unwrap(), front.local_addr().unwrap());
        let requests = Calls::default();
        let mut serving = JoinSet::new();
        let counted = requests.clone();
        serving.spawn(async move {
            loop {
                let (mut stream, _) = behind.accept().await.unwrap();
                let (answer, counted) = (answer.clone(), counted.clone());
                tokio::spawn(async move {
                    let mut read = Vec::new();
                    while stream.read_buf(&mut read).await.is_ok_and(|bytes| bytes > 0) {
                        if !read.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        read.clear();
                        let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
                        let Some(bytes) = answer(call) else { return };
                        stream.write_all(&bytes).await.unwrap();
                    }
                });
            }
        });
        let flags = ["edge", "--origin", &format!("http://{origin}")].map(str::to_owned);
        let options = edge::Options::parse_from(flags);
        serving.spawn(async move {
            edge::Edge::new(&options).unwrap().serve(front, std::future::pending()).await;
        });
        Self { edge, requests, _serving: serving }
    }

    /// Sends these bytes, closes the sending side, and returns everything that is received.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.edge).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n")).await
    }
}

#[tokio::test]
async fn a_request_whose_connection_the_origin_closed_is_retried_once() {
    let ok =
        |call: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{call}").into_bytes();
    // Every second request finds its connection closed.
    let origin = RawOrigin::open(move |call| (call % 2 == 1).then(|| ok(call))).await;
    for at in 0..20 {
        let answer = origin.get(&format!("/{at}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{at}: {answer}");
    }
    // A request that may have taken effect is not sent again.
    let post = "POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n";
    let answers = [origin.raw(post).await, origin.raw(post).await];
    assert!(answers.iter().any(|answer| answer.starts_with("HTTP/1.1 502")), "{answers:?}");
    let never = RawOrigin::open(|_| None).await;
    assert!(never.get("/").await.starts_with("HTTP/1.1 502"));
    assert_eq!(never.requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_framing_sent_on_is_the_one_parsed_from_the_origin() {
    let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n";
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let wrong = format!("{head}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    let origin = RawOrigin::open(move |_| Some(wrong.clone().into_bytes())).await;
    for _ in 0..2 {
        let answer = origin.get("/").await.to_lowercase();
        assert!(answer.contains("hello") && !answer.contains("content-length: 3"), "{answer}");
    }
    let coded = format!("{head}transfer-encoding: gzip, chunked\r\n\r\n{chunks}");
    let origin = RawOrigin::open(move |_| Some(coded.clone().into_bytes())).await;
    for _ in 0..2 {
        assert!(origin.get("/").await.starts_with("HTTP/1.1 502"));
    }
}

#[tokio::test]
async fn a_request_needs_exactly_one_valid_host() {
    let ok =
        b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok".to_vec();
    let origin = RawOrigin::open(move |_| Some(ok.clone())).await;
    for host in ["", "host:\r\n", "host: a.example\r\nhost: b.example\r\n", "host: a b\r\n"] {
        let answer = origin.raw(&format!("GET / HTTP/1.1\r\n{host}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{host:?}: {answer}");
    }
    assert_eq!(origin.requests.load(Ordering::SeqCst), 0);
    for host in ["a.example", "user:password@a.example", "A.example:80"] {
        let answer = origin.raw(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    assert_eq!(origin.requests.load(Ordering::SeqCst), 1, "one key for all");
}

#[tokio::test]
async fn the_scheme_of_a_trusted_proxy_stays() {
    for (flags, expected) in [(&["--trust-forwarded-proto"][..], "https"), (&[], "http")] {
        let app = Router::new().fallback(any(|headers: HeaderMap| async move {
            headers["x-forwarded-proto"].to_str().unwrap().to_owned()
        }));
        let edge = Edge::before(app, flags).await;
        assert_eq!(edge.text("/", &[("x-forwarded-proto", "https")]).await, expected);
    }
}
