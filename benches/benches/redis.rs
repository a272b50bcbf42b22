//! What Redis adds: a hit of the second level, and how soon another process follows an invalidation.
//!
//! Starts a `redis-server` of its own on a free port.

use std::{
    convert::Infallible,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use benches::{Row, median, report};
use larder::{
    ByteSize, Fill, Larder, Policy,
    redis::{Redis, WithRedis as _},
};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(port: u16) -> Server {
    let child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .stdout(Stdio::null())
        .spawn()
        .expect("this bench needs redis-server");
    Server(child)
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("there is a free port")
        .port();
    let _server = start(port);
    let redis = Redis::open(&format!("redis://127.0.0.1:{port}")).expect("a valid URL");
    let build = |memory| {
        let builder = Larder::builder().memory(memory).redis(redis.clone());
        builder.build().expect("the options are valid")
    };
    let [one, other] = [build(ByteSize::mib(64)), build(ByteSize::mib(64))];
    one.synced().await;
    other.synced().await;

    let rows = [second_level(&one, &other).await];
    report("A hit of the second level (microseconds)", &rows);
    report("An invalidation in another process (milliseconds)", &follow(&one, &other).await);
}

async fn load(larder: &Larder, name: u64, value: u64) -> u64 {
    let policy = Policy::ttl(Duration::from_secs(600)).tag(("row", name));
    let load = move |_: Fill| async move { Ok::<_, Infallible>(value) };
    *larder.get_or_load(name, policy, load).await.expect("it cannot fail")
}

/// What one has filled the other fetches, beside a bare round trip.
async fn second_level(one: &Larder, other: &Larder) -> Row {
    const KEYS: u64 = 2_000;
    for key in 0..KEYS {
        load(one, key, key).await;
    }
    one.close(Duration::from_secs(10)).await;
    let mut hits = Vec::new();
    for key in 0..KEYS {
        let began = Instant::now();
        load(other, key, u64::MAX).await;
        hits.push(began.elapsed().as_secs_f64() * 1e6);
    }
    assert!(other.stats().shared.hits >= KEYS / 2, "they come from Redis");
    // The same command without larder: the end of the log is one round trip with a script.
    let mut bare = Vec::new();
    for _ in 0..KEYS {
        let began = Instant::now();
        other.catch_up(larder::Consistency::Strong).await;
        bare.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let (ours, baseline) = (median(hits), median(bare));
    Row {
        case: "hit of the second level, beside one round trip for the end of the log".into(),
        ours,
        baseline,
        ratio: ours / baseline,
        budget: None,
        unit: "us",
    }
}

/// From the call until the other process has applied it.
async fn follow(one: &Larder, other: &Larder) -> [Row; 2] {
    let mut seen = Vec::new();
    for round in 0..1_000_u64 {
        load(other, 1_000_000, round).await;
        let before = other.sequence();
        let began = Instant::now();
        let _logged = one.invalidate(("row", 1_000_000_u64)).await;
        while other.sequence() == before {
            tokio::task::yield_now().await;
        }
        seen.push(began.elapsed().as_secs_f64() * 1e3);
    }
    seen.sort_by(f64::total_cmp);
    let at = |part: usize| seen[seen.len() * part / 1000];
    let row = |case: &str, ours, budget| Row {
        case: case.into(),
        ours,
        baseline: 0.0,
        ratio: ours,
        budget,
        unit: "ms",
    };
    [row("median", at(500), None), row("p99", at(990), Some(10.0))]
}
