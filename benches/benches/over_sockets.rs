//! The CPU time of a server for a hit over loopback, and the delay of the first byte of a miss.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use benches::{Keys, Row, baseline, fill, now, report, request, turns};
use bytes::Bytes;
use http_body::Body as _;
use larder::axum::ResponseCacheLayer;
use tower::ServiceExt;

fn main() {
    report("First byte of a miss (milliseconds)", &[first_byte()]);
    report("Server CPU of a hit over loopback (microseconds)", &loopback());
}

/// The first byte of a handler that takes 5 ms, with the layer and without.
fn first_byte() -> Row {
    let page = || async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Bytes::from_static(&[b'x'; 1024])
    };
    let plain = Router::new().route("/products/{id}", get(page)).with_state(());
    let larder = baseline::larder();
    let cache = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60));
    let cached = plain.clone().layer(cache).with_state(());
    let mut fresh = 0_u64;
    let figures = turns(2, 61, |at, _| {
        let app = [&plain, &cached][at].clone();
        fresh += 1;
        now(async {
            let asked = request(&format!("/products/{fresh}"));
            let began = Instant::now();
            let response = app.oneshot(asked).await.expect("it cannot fail");
            let mut body = std::pin::pin!(response.into_body());
            std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
            began.elapsed().as_secs_f64() * 1e3
        })
    });
    Row {
        case: "first byte of a miss, handler of 5 ms".into(),
        ours: figures[1].0,
        baseline: figures[0].0,
        ratio: figures[1].1,
        budget: Some(1.05),
        unit: "ms",
    }
}

/// A server on a thread of its own, and the file in which Linux reports the CPU time of that thread.
struct Server {
    connections: Vec<TcpStream>,
    times: PathBuf,
}

impl Server {
    fn start(app: Router) -> Self {
        let (ready, started) = mpsc::channel::<(SocketAddr, PathBuf)>();
        // Stops with the process.
        std::thread::spawn(move || {
            let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
            now(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                let times = PathBuf::from("/proc").join(thread).join("schedstat");
                ready.send((listener.local_addr()?, times)).expect("the main thread waits");
                axum::serve(listener, app).await
            })
            .expect("it serves");
        });
        let (address, times) = started.recv().expect("the server starts");
        let connect = |_| {
            let stream = TcpStream::connect(address).expect("the server listens");
            stream.set_nodelay(true).expect("a socket can be told so");
            stream
        };
        Self { connections: (0..CONNECTIONS).map(connect).collect(), times }
    }

    /// The CPU time of the server's thread so far, in nanoseconds.
    fn spent(&self) -> f64 {
        let text = std::fs::read_to_string(&self.times).expect("this bench needs Linux");
        text.split(' ').next().and_then(|field| field.parse().ok()).expect("a number comes first")
    }

    /// Sends a round of requests, and returns the CPU time per request in microseconds.
    fn round(&mut self, keys: &mut Keys) -> f64 {
        let before = self.spent();
        for _ in 0..ROUND_TRIPS {
            for connection in &mut self.connections {
                let key = keys.next(KEYS);
                let head = format!(
                    "GET /products/{key} HTTP/1.1\r\nhost: shop.example\r\naccept: text/html\r\nuser-agent: bench\r\n\r\n"
                );
                connection.write_all(head.as_bytes()).expect("the server reads");
            }
            self.connections.iter_mut().for_each(read_answer);
        }
        (self.spent() - before) / 1e3 / (ROUND_TRIPS * CONNECTIONS) as f64
    }
}

fn read_answer(connection: &mut TcpStream) {
    let mut buffer = [0; 4096];
    let mut read = 0;
    loop {
        read += connection.read(&mut buffer[read..]).expect("the server answers");
        let end = buffer[..read].windows(4).position(|window| window == b"\r\n\r\n");
        if end.is_some_and(|end| read >= end + 4 + BODY) {
            return;
        }
    }
}

fn loopback() -> Vec<Row> {
    let body = Bytes::from(vec![b'x'; BODY]);
    let [larder, stack_larder] = [baseline::larder(), baseline::larder()];
    let layer = baseline::one_layer(&larder, &body, 4);
    let stack = baseline::stack(&stack_larder, &body);
    for service in [&layer, &stack] {
        (0..17).for_each(|_| fill::<Router>(service, KEYS));
    }
    let mut servers = [baseline::limit(&body), layer, stack].map(Server::start);
    let figures = turns(servers.len(), 31, |at, keys| servers[at].round(keys));
    let row = |at: usize, name: &str, budget| Row {
        case: format!("hit over loopback, {CONNECTIONS} connections: {name}"),
        ours: figures[at].0,
        baseline: figures[0].0,
        ratio: figures[at].1,
        budget,
        unit: "us",
    };
    vec![row(0, "LIMIT", None), row(1, "one layer", Some(1.10)), row(2, "whole stack", Some(1.10))]
}

const BODY: usize = 1024;
const KEYS: u64 = 10_000;
const CONNECTIONS: usize = 16;
const ROUND_TRIPS: usize = 200;
