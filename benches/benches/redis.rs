//! The cost of Redis: a hit of the second level compared with a bare `GET`, the delay until other processes apply an
//! invalidation, the delay of other commands by an invalidation, and the cost of a server that does not answer.
//!
//! Starts a `redis-server` of its own on a free port.

use std::{
    convert::Infallible,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use benches::{Row, median, report};
use futures_util::{StreamExt as _, stream};
use larder::{
    ByteSize, Larder, LoadHandle, Policy, Selector, Tiers, redis::Redis, values::Missing,
};
use redis::aio::MultiplexedConnection;

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("there is a free port")
            .port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .expect("this bench needs redis-server");
        Self { child, port }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn larder(&self) -> Larder {
        let redis = Redis::open(&self.url()).expect("a valid URL");
        let builder = Larder::builder().memory(ByteSize::mib(64)).second_level(redis);
        builder.build().expect("the options are valid")
    }

    async fn bare(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("a valid URL");
        client.get_multiplexed_async_connection().await.expect("it is there")
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        drop(Command::new("kill").args([&format!("-{name}"), &*id]).status());
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let server = Server::start();
    let [one, other] = [server.larder(), server.larder()];
    one.synced().await;
    other.synced().await;
    for bytes in [1_000, 16_000] {
        let rows = second_level(&server, &one, bytes).await;
        report(&format!("A hit of the second level, {bytes} bytes"), &rows);
    }
    report("A batch of 100 values of 1,000 bytes", &[batch(&server, &one).await]);
    if std::env::args().any(|argument| argument == "hit") {
        return;
    }
    report("An invalidation at 1,000 a second, in another process", &follow(&one, &other).await);
    report("10,000 missed records", &[catch_up(&server, &one).await]);
    report("A tag of 1,000,000 entries", &large_tag(&server, &one).await);
    report("A server that does not answer", &stopped(&server, &one).await);
}

fn row(case: &str, ours: f64, budget: Option<f64>, unit: &'static str) -> Row {
    Row { case: case.into(), ours, baseline: 0.0, ratio: ours, budget, unit }
}

/// Text that does not compress.
fn noise(number: u64, bytes: usize) -> String {
    let mut state = number;
    let letters = (0..bytes).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + ((state >> 33) % 90) as u8)
    });
    letters.collect()
}

async fn load(larder: &Larder, name: u64, tiers: Tiers) -> Arc<String> {
    load_sized(larder, name, tiers, 1_000).await
}

async fn load_sized(larder: &Larder, name: u64, tiers: Tiers, bytes: usize) -> Arc<String> {
    let policy = Policy::ttl(Duration::from_secs(3600)).tag("all").tiers(tiers);
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(noise(name, bytes)) };
    larder.get_or_load(name, policy, load).await.expect("it cannot fail")
}

/// The CPU time of this process, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    ticks(11).zip(ticks(12)).map_or(f64::NAN, |(user, system)| (user + system) / 100.0)
}

/// Runs `act` `turns` times, 64 at a time, each in a task of its own as requests are. Returns the elapsed time and the
/// CPU time, in seconds.
async fn in_flight<F, Fut>(turns: u64, act: F) -> (f64, f64)
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    const TASKS: u64 = 64;
    let began = (Instant::now(), cpu_seconds());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let act = act.clone();
        tasks.spawn(async move {
            for turn in 0..turns / TASKS {
                act(turn * TASKS + task).await;
            }
        });
    }
    tasks.join_all().await;
    (began.0.elapsed().as_secs_f64(), cpu_seconds() - began.1)
}

/// Batches that are not promoted, one after the other, compared with a bare `MGET` of the same bytes.
async fn batch(server: &Server, larder: &Larder) -> Row {
    const BATCH: u64 = 100;
    const TURN: usize = 300;
    let mut bare = server.bare().await;
    let policy = Policy::ttl(Duration::from_secs(3600)).tiers(Tiers::SHARED).tag("batch");
    let values = larder.values::<String>(policy);
    let load = |missing: Missing<(&'static str, u64)>| async move {
        let names = missing.into_names().into_iter();
        Ok::<_, Infallible>(names.map(|name| (name, noise(name.1, 1_000))).collect::<Vec<_>>())
    };
    let names = || (0..BATCH).map(|number| ("batch", number));
    for _ in 0..2 {
        values.get_or_load_many(names(), load).await.expect("it cannot fail");
        larder.close(Duration::from_secs(10)).await;
    }
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("larder:larder:o:*batch*")
        .query_async(&mut bare)
        .await
        .expect("keys");
    assert_eq!(keys.len() as u64, BATCH);
    let before = larder.stats().shared.hits;
    let mut pairs = Vec::new();
    for _ in 0..15 {
        let began = Instant::now();
        for _ in 0..TURN {
            let found = values.get_or_load_many(names(), load).await.expect("it cannot fail");
            assert!(found.iter().all(Option::is_some));
        }
        let ours = began.elapsed().as_secs_f64() * 1e6 / TURN as f64;
        let began = Instant::now();
        for _ in 0..TURN {
            let mut get = redis::cmd("MGET");
            get.arg(&keys);
            let found: Vec<bytes::Bytes> =
                get.query_async(&mut bare).await.expect("they are there");
            assert_eq!(found.len(), keys.len());
        }
        pairs.push((ours, began.elapsed().as_secs_f64() * 1e6 / TURN as f64));
    }
    let hits = larder.stats().shared.hits - before;
    assert!(hits > 15 * 300 * BATCH * 99 / 100, "all are hits of the second level: {hits}");
    Row {
        case: "time of `get_or_load_many`, beside a bare MGET".into(),
        ours: median(pairs.iter().map(|pair| pair.0).collect()),
        baseline: median(pairs.iter().map(|pair| pair.1).collect()),
        ratio: median(pairs.iter().map(|(ours, theirs)| ours / theirs).collect()),
        budget: Some(3.0),
        unit: "us",
    }
}

/// Hits that are not promoted, 64 in flight, compared with bare `GET`s of the same bytes.
async fn second_level(server: &Server, larder: &Larder, bytes: usize) -> [Row; 2] {
    const KEYS: u64 = 2_000;
    const TURN: u64 = 100_000;
    let _logged = larder.clear().await;
    let mut bare = server.bare().await;
    redis::cmd("EVAL")
        .arg("for _, key in ipairs(redis.call('KEYS', 'larder:larder:o:*')) do redis.call('DEL', key) end")
        .arg(0)
        .query_async::<()>(&mut bare)
        .await
        .expect("it may");
    larder.kernel().catch_up(larder::Consistency::Strong).await;
    // Twice: a value filled before the process has received its own record of `clear` is not shared.
    for _ in 0..2 {
        for key in 0..KEYS {
            load_sized(larder, key, Tiers::SHARED, bytes).await;
            if key % 500 == 0 {
                larder.close(Duration::from_secs(10)).await;
            }
        }
        larder.close(Duration::from_secs(10)).await;
    }
    let names: Vec<String> =
        redis::cmd("KEYS").arg("larder:larder:o:*").query_async(&mut bare).await.expect("keys");
    assert_eq!(names.len() as u64, KEYS);
    let before = larder.stats().shared.misses;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    let names = Arc::new(names);
    for _ in 0..9 {
        let larder = larder.clone();
        let ours = in_flight(TURN, move |turn| {
            let larder = larder.clone();
            async move { drop(load_sized(&larder, turn % KEYS, Tiers::SHARED, bytes).await) }
        });
        let ours = ours.await;
        let (bare, names) = (bare.clone(), Arc::clone(&names));
        let theirs = in_flight(TURN, move |turn| {
            let (mut bare, names) = (bare.clone(), Arc::clone(&names));
            async move {
                let mut get = redis::cmd("GET");
                get.arg(&names[(turn % KEYS) as usize]);
                drop(get.query_async::<bytes::Bytes>(&mut bare).await.expect("it is there"));
            }
        });
        let theirs = theirs.await;
        rates.push((ours.0, theirs.0));
        costs.push((ours.1, theirs.1));
    }
    // Concurrent requests for the same key share one read.
    let misses = larder.stats().shared.misses - before;
    // If the machine pauses for 40 ms, all reads in flight time out, and the breaker opens for a moment.
    assert!(misses < 9 * TURN / 100, "all are hits but those that took too long: {misses}");
    let of = |pairs: &[(f64, f64)], case: &str, budget| {
        let micros =
            |at: fn(&(f64, f64)) -> f64| median(pairs.iter().map(at).collect()) / TURN as f64 * 1e6;
        Row {
            case: case.into(),
            ours: micros(|pair| pair.0),
            baseline: micros(|pair| pair.1),
            ratio: median(pairs.iter().map(|(ours, theirs)| ours / theirs).collect()),
            budget: Some(budget),
            unit: "us",
        }
    };
    [
        of(
            &rates,
            "time of a hit, 64 in flight, beside a bare GET",
            if bytes <= 1_000 { 1.5 } else { 1.15 },
        ),
        of(&costs, "CPU of the same", if bytes <= 1_000 { 1.8 } else { 1.45 }),
    ]
}

/// Measures from the call until the other process has applied the invalidation.
async fn follow(one: &Larder, other: &Larder) -> [Row; 2] {
    const COUNT: usize = 5_000;
    let mut heard = other.invalidations();
    let hearing = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < COUNT {
            let Some(invalidation) = heard.next().await else { break };
            if let [Selector::Tag(tag)] = &invalidation.what[..]
                && let Some(number) = tag.as_str().strip_prefix("row:")
            {
                seen.push((number.parse::<usize>().expect("a number"), Instant::now()));
            }
        }
        seen
    });
    let mut pace = tokio::time::interval(Duration::from_millis(1));
    let mut said = Vec::new();
    for number in 0..COUNT {
        pace.tick().await;
        said.push(Instant::now());
        let larder = one.clone();
        tokio::spawn(async move { larder.invalidate(("row", number)).await });
    }
    let seen = hearing.await.expect("it ends");
    let mut millis: Vec<f64> = seen
        .into_iter()
        .map(|(number, at)| at.duration_since(said[number]).as_secs_f64() * 1e3)
        .collect();
    millis.sort_by(f64::total_cmp);
    [
        row("median", millis[COUNT / 2], None, "ms"),
        row("p99", millis[COUNT * 99 / 100], Some(10.0), "ms"),
    ]
}

/// Measures from the first missed record that arrives until the last is applied. The process has a Redis user of its
/// own, which is disabled while it is cut off.
async fn catch_up(server: &Server, one: &Larder) -> Row {
    const MISSED: u32 = 10_000;
    let mut bare = server.bare().await;
    let mut user = async |rights: &[&str]| {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER").arg("cut").arg(rights);
        set.query_async::<()>(&mut bare).await.expect("it may");
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("USER").arg("cut");
        drop(kill.query_async::<u32>(&mut bare).await);
    };
    user(&["on", "nopass", "~*", "+@all"]).await;
    let url = format!("redis://cut:x@127.0.0.1:{}", server.port);
    let redis = Redis::open(&url).expect("a valid URL");
    let cut = Larder::builder().second_level(redis).build().expect("the options are valid");
    cut.synced().await;
    let mut heard = cut.invalidations();
    let mut all = Vec::new();
    for _ in 0..5 {
        user(&["off"]).await;
        let began = Instant::now();
        for number in 0..MISSED {
            let _logged = one.invalidate(("missed", number)).await;
        }
        tokio::time::sleep(Duration::from_secs(10).saturating_sub(began.elapsed())).await;
        user(&["on"]).await;
        heard.next().await;
        let first = Instant::now();
        let end = one.kernel().written();
        while cut.stats().log.applied < end.map_or(0, |end| end.number) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        all.push(first.elapsed().as_secs_f64() * 1e3);
        while tokio::time::timeout(Duration::from_millis(200), heard.next()).await.is_ok() {}
    }
    row("to catch up, after 10 s", median(all), Some(100.0), "ms")
}

/// Measures the delay of other commands while all entries of a tag are invalidated.
async fn large_tag(server: &Server, larder: &Larder) -> [Row; 2] {
    const ENTRIES: u64 = 1_000_000;
    let fills = stream::iter(0..ENTRIES).map(|number| async move {
        let policy = Policy::ttl(Duration::from_secs(3600)).tag("many").tiers(Tiers::SHARED);
        let load = |_: LoadHandle| async { Ok::<_, Infallible>(0_u8) };
        larder.get_or_load(("many", number), policy, load).await.expect("it cannot fail");
        if number % 500 == 0 {
            larder.close(Duration::from_secs(10)).await;
        }
    });
    fills.buffer_unordered(200).for_each(|()| std::future::ready(())).await;
    larder.close(Duration::from_secs(10)).await;
    let mut bare = server.bare().await;
    let kept: u64 = redis::cmd("DBSIZE").query_async(&mut bare).await.expect("it answers");
    println!("\n{kept} keys in Redis");
    let done = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&done);
    let pinging = tokio::spawn(async move {
        let mut waits = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let began = Instant::now();
            redis::cmd("PING").query_async::<()>(&mut bare).await.expect("it answers");
            waits.push(began.elapsed().as_secs_f64() * 1e3);
        }
        waits
    });
    let mut took = Vec::new();
    for _ in 0..1_000 {
        let began = Instant::now();
        let _logged = larder.invalidate("many").await;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    done.store(true, Ordering::Relaxed);
    let mut waits = pinging.await.expect("it ends");
    waits.sort_by(f64::total_cmp);
    [
        row("to invalidate it: one round trip", median(took), None, "ms"),
        row("p99 of a PING meanwhile", waits[waits.len() * 99 / 100], Some(5.0), "ms"),
    ]
}

/// Hits of memory and misses, with a server that answers and with one that is stopped.
async fn stopped(server: &Server, larder: &Larder) -> [Row; 4] {
    for key in 0..1_000 {
        load(larder, 5_000_000 + key, Tiers::MEMORY).await;
    }
    let hits = async || {
        let mut micros = Vec::new();
        for turn in 0..300_000 {
            let began = Instant::now();
            load(larder, 5_000_000 + turn % 1_000, Tiers::MEMORY).await;
            micros.push(began.elapsed().as_secs_f64() * 1e6);
        }
        micros.sort_by(f64::total_cmp);
        micros[micros.len() * 99 / 100]
    };
    let misses = async |from: u64, count: u64| {
        let mut millis = Vec::new();
        for number in 0..count {
            let began = Instant::now();
            load(larder, from + number, Tiers::BOTH).await;
            millis.push(began.elapsed().as_secs_f64() * 1e3);
        }
        millis.sort_by(f64::total_cmp);
        millis
    };
    misses(6_000_000, 100).await;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    with.push(hits().await);
    let healthy = misses(6_100_000, 1_000).await;
    server.signal("STOP");
    let first = misses(6_200_000, 20).await;
    let later = misses(6_300_000, 1_000).await;
    for _ in 0..4 {
        without.push(hits().await);
        server.signal("CONT");
        tokio::time::sleep(Duration::from_secs(3)).await;
        with.push(hits().await);
        server.signal("STOP");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    server.signal("CONT");
    let (ours, baseline) = (median(without), median(with));
    let hit = Row {
        case: "p99 of a hit of memory, beside the same with a server that answers".into(),
        ours,
        baseline,
        ratio: ours / baseline,
        budget: Some(1.1),
        unit: "us",
    };
    let p99 = |sorted: &[f64]| sorted[sorted.len() * 99 / 100];
    [
        hit,
        row("p99 of a miss with a server that answers", p99(&healthy), None, "ms"),
        row(
            "the slowest of the first misses without: the total wait of a request",
            p99(&first),
            Some(60.0),
            "ms",
        ),
        row("p99 of a miss once the breaker is open", p99(&later), Some(60.0), "ms"),
    ]
}
