//! The whole stack over real sockets, HTTP/1.1 and HTTP/2, with clients and handlers that misbehave.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::get,
};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use larder::{Larder, axum::HttpCache};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::timeout,
};

/// Counters and signals of the handlers.
#[derive(Default)]
struct Stage {
    calls: AtomicUsize,
    value: AtomicUsize,
    entered: Notify,
    released: Notify,
}

type Shared = State<Arc<Stage>>;

async fn slow(State(stage): Shared) -> String {
    let call = stage.calls.fetch_add(1, Ordering::SeqCst) + 1;
    stage.entered.notify_one();
    stage.released.notified().await;
    format!("call {call}")
}

async fn read(State(stage): Shared) -> String {
    format!("value {}", stage.value.load(Ordering::SeqCst))
}

/// Commits, and is slow to answer.
async fn write(State(stage): Shared) -> StatusCode {
    stage.value.fetch_add(1, Ordering::SeqCst);
    stage.entered.notify_one();
    stage.released.notified().await;
    StatusCode::NO_CONTENT
}

async fn falls_over(State(stage): Shared) -> String {
    let call = stage.calls.fetch_add(1, Ordering::SeqCst) + 1;
    assert!(call > 1, "the first call falls over");
    format!("call {call}")
}

/// Chunks without end, at most a few ahead of the reader.
async fn endless() -> Body {
    let chunks = futures_util::stream::repeat_with(|| Ok::<_, Infallible>(vec![b'x'; 16 * 1024]));
    Body::from_stream(chunks)
}

/// Sends the first byte at once, the second when released.
async fn drip(State(stage): Shared) -> Body {
    let bytes = futures_util::stream::unfold(0, move |sent| {
        let stage = Arc::clone(&stage);
        async move {
            match sent {
                0 => {}
                1 => stage.released.notified().await,
                _ => return None,
            }
            Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), sent + 1))
        }
    });
    Body::from_stream(bytes)
}

/// Switches protocols: echoes everything it receives.
async fn upgrade(request: Request) -> Response {
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "echo")
        .body(Body::empty())
        .unwrap()
}

struct Site {
    address: SocketAddr,
    stage: Arc<Stage>,
    http2: bool,
    // Aborted when dropped, also if the test fails.
    _serving: JoinSet<()>,
}

type Caller = Client<HttpConnector, Full<Bytes>>;

impl Site {
    async fn open(http2: bool) -> Self {
        let larder = Larder::builder().tag_table_slots(1 << 12).build().unwrap();
        let stage = Arc::new(Stage::default());
        let app = Router::new()
            .route("/slow", get(slow))
            .route("/value", get(read).put(write))
            .route("/falls-over", get(falls_over))
            .route("/endless", get(endless))
            .route("/drip", get(drip))
            .route("/upgrade", get(upgrade))
            .layer(HttpCache::new(&larder).ttl(Duration::from_secs(60)))
            .with_state(Arc::clone(&stage));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, stage, http2, _serving: serving }
    }

    /// A client with connections of its own.
    fn caller(&self) -> Caller {
        Client::builder(TokioExecutor::new()).http2_only(self.http2).build_http()
    }

    fn request(&self, method: Method, path: &str) -> http::Request<Full<Bytes>> {
        let uri = format!("http://{}{path}", self.address);
        http::Request::builder().method(method).uri(uri).body(Full::default()).unwrap()
    }

    async fn ask(&self, path: &str) -> http::Response<Incoming> {
        let asked = self.caller().request(self.request(Method::GET, path)).await;
        asked.unwrap()
    }

    async fn text(&self, path: &str) -> String {
        let body = self.ask(path).await.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// Sends a request, and closes the connection once its handler runs.
    async fn hang_up(&self, method: Method, path: &str) {
        let caller = self.caller();
        let asked = tokio::spawn(caller.request(self.request(method, path)));
        self.stage.entered.notified().await;
        asked.abort();
        drop((asked.await, caller));
    }
}

/// Runs a test for both protocols; a test that hangs fails.
async fn on_both<F: Future<Output = ()>>(test: impl Fn(Site) -> F) {
    for http2 in [false, true] {
        let site = Site::open(http2).await;
        timeout(PATIENCE, test(site)).await.expect("nobody hangs");
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_client_that_disconnects_during_a_fill_leaves_it_to_the_waiters() {
    on_both(|site| async move {
        site.hang_up(Method::GET, "/slow").await;
        let others = async { tokio::join!(site.text("/slow"), site.text("/slow")) };
        let released = async { site.stage.released.notify_one() };
        let ((one, other), ()) = tokio::join!(others, released);
        assert_eq!((&*one, &*other), ("call 1", "call 1"));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_disconnects_between_commit_and_response_does_not_stop_the_invalidation() {
    on_both(|site| async move {
        assert_eq!(site.text("/value").await, "value 0");
        site.hang_up(Method::PUT, "/value").await;
        assert_eq!(site.text("/value").await, "value 0", "the handler has not answered yet");
        site.stage.released.notify_one();
        while site.text("/value").await != "value 1" {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_handler_panic_affects_only_its_own_client() {
    on_both(|site| async move {
        let caller = site.caller();
        let first = caller.request(site.request(Method::GET, "/falls-over")).await;
        assert!(first.is_err(), "the connection broke: {first:?}");
        assert_eq!(site.text("/falls-over").await, "call 2");
        assert_eq!(site.text("/falls-over").await, "call 2", "and that is kept");
    })
    .await;
}

#[tokio::test]
async fn an_endless_body_reaches_its_readers_and_affects_no_other_request() {
    on_both(|site| async move {
        let mut readers = Vec::new();
        for _ in 0..3 {
            let mut body = site.ask("/endless").await.into_body();
            let mut read = 0;
            // More bytes than the limit of a stored body.
            while read < 3 << 20 {
                let frame = body.frame().await.expect("it has no end").unwrap();
                read += frame.into_data().map_or(0, |data| data.len());
            }
            readers.push(body);
        }
        assert_eq!(site.text("/value").await, "value 0");
        drop(readers);
        assert_eq!(site.text("/value").await, "value 0");
    })
    .await;
}

#[tokio::test]
async fn a_slow_body_is_passed_on_byte_by_byte() {
    on_both(|site| async move {
        let mut first = site.ask("/drip").await.into_body();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "x");
        site.stage.released.notify_one();
        assert_eq!(first.collect().await.unwrap().to_bytes(), "x");
        assert_eq!(site.text("/drip").await, "xx", "kept");
    })
    .await;
}

#[tokio::test]
async fn a_stampede_is_one_call_that_answers_every_client() {
    on_both(|site| async move {
        let site = Arc::new(site);
        // As many connections as HTTP/1.1 needs, within the usual limit of open files.
        let room = Arc::new(Semaphore::new(100));
        let mut asking = JoinSet::new();
        for _ in 0..300 {
            let (site, room) = (Arc::clone(&site), Arc::clone(&room));
            asking.spawn(async move {
                let _permit = room.acquire().await.unwrap();
                site.text("/slow").await
            });
        }
        site.stage.entered.notified().await;
        site.stage.released.notify_one();
        while let Some(text) = asking.join_next().await {
            assert_eq!(text.unwrap(), "call 1");
        }
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_passes_through_all_layers() {
    let site = Site::open(false).await;
    let talk = async {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        let head =
            "GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n") {
            heard.push(stream.read_u8().await.unwrap());
        }
        assert!(heard.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&heard));
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
    };
    timeout(PATIENCE, talk).await.expect("nobody hangs");
}
