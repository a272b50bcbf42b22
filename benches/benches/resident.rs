//! The resident memory while slow clients request a million URLs.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::header, response::Response, routing::get};
use benches::{Row, report, request};
use bytes::Bytes;
use futures_util::stream;
use http_body::Body as _;
use larder::{ByteSize, Larder, axum::ResponseCacheLayer};
use tower::ServiceExt;

const MIB: f64 = 1_048_576.0;
const CHUNK: usize = 16 * 1024;
const CHUNKS: usize = 4;

fn main() {
    let urls = number_from("LARDER_URLS", 1_000_000);
    let clients = 10_000;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let before = resident("VmRSS");
    let larder = Larder::builder()
        .memory(ByteSize::mib(64))
        .fill_budget(ByteSize::mib(64))
        .build()
        .expect("the options are valid");
    let app = Router::new()
        .route("/products/{id}", get(page))
        .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(3_600)))
        .with_state(());
    let next = Arc::new(AtomicUsize::new(0));
    let mut early = 0.0;
    runtime.block_on(async {
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..clients {
            asking.spawn(ask_slowly(app.clone(), Arc::clone(&next), urls));
        }
        while next.load(Ordering::Relaxed) < urls / 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        early = resident("VmHWM");
        asking.join_all().await;
    });
    let most = resident("VmHWM");
    let stats = larder.stats();
    println!(
        "{urls} URLs of {} KiB, {clients} clients at a time; {} entries of {:.1} MiB at the end",
        CHUNK * CHUNKS / 1024,
        stats.memory.entries,
        stats.memory.bytes as f64 / MIB
    );
    let row = |case: &str, ours: f64, baseline: f64, budget| Row {
        case: case.into(),
        ours,
        baseline,
        ratio: ours - baseline,
        budget,
        unit: "MiB",
    };
    report(
        "Resident memory (the ratio is the difference)",
        &[
            row("most at any time, over that of the process before", most, before, Some(192.0)),
            row("most after all URLs, over that after a tenth of them", most, early, Some(16.0)),
        ],
    );
}

/// A body of 64 KiB, generated while it is read.
async fn page() -> Response {
    let chunk = |_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; CHUNK]));
    let chunks = stream::iter((0..CHUNKS).map(chunk));
    Response::builder()
        .header(header::CONTENT_LENGTH, CHUNK * CHUNKS)
        .body(Body::from_stream(chunks))
        .expect("a valid response")
}

/// Reads each body frame by frame, with a pause of 50 ms after each.
async fn ask_slowly(app: Router, next: Arc<AtomicUsize>, urls: usize) {
    loop {
        let url = next.fetch_add(1, Ordering::Relaxed);
        if url >= urls {
            return;
        }
        let asked = app.clone().oneshot(request(&format!("/products/{url}")));
        let mut body = std::pin::pin!(asked.await.expect("it cannot fail").into_body());
        let mut read = 0;
        while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let data = frame.expect("the body is whole").into_data().expect("no trailers");
            read += data.len();
            drop(data);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(read, CHUNK * CHUNKS);
    }
}

/// A memory figure of this process from `/proc/self/status`, in MiB.
fn resident(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this bench needs Linux");
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.expect("the field is there") / 1024.0
}

fn number_from(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
