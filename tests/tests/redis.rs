//! Real Redis servers, started for each test on free ports and stopped by their own process ids.

use std::{
    convert::Infallible,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use larder::{Fill, Larder, Policy};
use larder_redis::{Redis, WithRedis as _};
use larder_testkit::{History, conformance};

const MINUTE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that ends with the test, also with one that fails.
struct Server {
    child: Child,
    port: u16,
    directory: PathBuf,
    flags: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

fn free_port() -> u16 {
    // A cluster wants the port that is 10,000 higher, too.
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
}

impl Server {
    async fn start(flags: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("larder-redis-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let port = free_port();
        let child = spawn(port, &directory, &flags);
        let server = Self { child, port, directory, flags };
        server.listens().await;
        server
    }

    fn redis(&self) -> Redis {
        Redis::open(&format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }

    async fn listens(&self) {
        let began = Instant::now();
        while self.cli(&["PING"]).trim() != "PONG" && !self.cli(&["PING"]).contains("NOAUTH") {
            assert!(began.elapsed() < PATIENCE, "the server does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn cli(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(command).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        drop(Command::new("kill").args([&format!("-{name}"), &*id]).status());
    }

    /// Ends without a word, and forgets everything.
    fn kill(&mut self) {
        self.signal("KILL");
        self.child.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.child = spawn(self.port, &self.directory, &self.flags);
        self.listens().await;
    }
}

fn spawn(port: u16, directory: &PathBuf, flags: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--protected-mode", "no"])
        .args(flags)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn larder(redis: Redis) -> Larder {
    Larder::builder().cells(1 << 18).lease(Duration::from_millis(300)).redis(redis).build().unwrap()
}

async fn load(larder: &Larder, value: u32) -> u32 {
    let load = move |_: Fill| async move { Ok::<_, Infallible>(value) };
    *larder.get_or_load("a", Policy::ttl(MINUTE).tag("t"), load).await.unwrap()
}

/// Waits until it holds; whoever waits too long has failed.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn synced(larder: &Larder) {
    tokio::time::timeout(PATIENCE, larder.synced()).await.expect("it joins");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn redis_is_a_store_and_a_log() {
    let server = Server::start(&[]).await;
    conformance::store(&server.redis().store()).await;
    conformance::leases(&server.redis().store()).await;
    conformance::bus(&server.redis().bus()).await;
    assert!(
        server.cli(&["DBSIZE"]).contains('6'),
        "five keys of the log, and b: {}",
        server.cli(&["KEYS", "*"])
    );
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_cluster_is_a_store_and_a_log() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        nodes.push(Server::start(&flags).await);
    }
    let addresses: Vec<String> =
        nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let create = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .args(["--cluster-replicas", "0", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(create.status.success(), "{}", String::from_utf8_lossy(&create.stdout));
    until("the cluster is ready", || async {
        nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
    })
    .await;
    let urls: Vec<String> = addresses.iter().map(|address| format!("redis://{address}")).collect();
    let redis = Redis::cluster(urls.iter().map(String::as_str)).unwrap();
    let redis = redis.deadline(Duration::from_secs(2));
    conformance::store(&redis.store()).await;
    conformance::leases(&redis.store()).await;
    conformance::bus(&redis.bus()).await;
    // Text that a client chose does not choose a slot.
    let larders = [larder(redis.clone()), larder(redis)];
    for larder in &larders {
        synced(larder).await;
    }
    for number in 0..60 {
        let load = move |_: Fill| async move { Ok::<_, Infallible>(number) };
        let name = format!("{{a}}{number}");
        larders[0].get_or_load(name, Policy::ttl(MINUTE).tag("t"), load).await.unwrap();
    }
    assert!(larders[0].close(PATIENCE).await);
    for node in &nodes {
        let keys = node.cli(&["DBSIZE"]).trim().parse::<u32>().unwrap();
        assert!(keys >= 5, "they spread: {keys} keys on one node");
    }
    let _queued_or_logged = larders[0].invalidate("t").await;
    until("the other follows", || async { larders[1].stats().invalidations == 0 }).await;
    until("it is gone in both", || async {
        let load = |_: Fill| async { Ok::<_, Infallible>(1000) };
        let policy = Policy::ttl(MINUTE).tag("t");
        *larders[1].get_or_load("{a}1", policy, load).await.unwrap() == 1000
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn what_one_process_fills_another_uses_and_what_one_invalidates_is_gone_in_both() {
    let server = Server::start(&[]).await;
    let [one, other] = [larder(server.redis()), larder(server.redis())];
    synced(&one).await;
    synced(&other).await;
    assert_eq!(load(&one, 1).await, 1);
    assert!(one.close(PATIENCE).await);
    assert_eq!(load(&other, 2).await, 1, "from Redis");
    let _queued_or_logged = one.invalidate("t").await;
    assert_eq!(load(&one, 3).await, 3, "at once where it was said");
    until("and soon elsewhere", || async { load(&other, 4).await != 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_server_that_forgets_makes_everybody_forget_and_go_on() {
    for way in ["FLUSHALL", "kill", "DEL", "CLIENT KILL"] {
        let mut server = Server::start(&[]).await;
        let [one, other] = [larder(server.redis()), larder(server.redis())];
        synced(&one).await;
        synced(&other).await;
        assert_eq!(load(&one, 1).await, 1);
        assert!(one.close(PATIENCE).await);
        assert_eq!(load(&other, 2).await, 1, "{way}");
        match way {
            "FLUSHALL" => drop(server.cli(&["FLUSHALL"])),
            "DEL" => drop(server.cli(&["DEL", "larder:log:{larder}:compact"])),
            "CLIENT KILL" => drop(server.cli(&["CLIENT", "KILL", "TYPE", "normal"])),
            _ => {
                server.kill();
                server.restart().await;
            }
        }
        let _queued_or_logged = one.invalidate("t").await;
        assert_eq!(load(&one, 3).await, 3, "{way}: at once where it was said");
        until(way, || async { load(&other, 4).await != 1 }).await;
        // And both are one cache again.
        until("they share again", || async {
            let _queued_or_logged = one.invalidate("t").await;
            let mine = load(&one, 50).await;
            one.close(PATIENCE).await && {
                tokio::time::sleep(Duration::from_millis(20)).await;
                load(&other, 60).await == mine
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn what_a_log_has_forgotten_is_not_trusted() {
    // The entry lies in Redis, the invalidation that reached it does not any more.
    for lost in [
        &["compact"][..],
        &["clock"],
        &["stream"],
        &["meta"],
        &["due"],
        &["compact", "stream", "meta", "clock", "due"],
    ] {
        let server = Server::start(&[]).await;
        let one = larder(server.redis());
        synced(&one).await;
        assert_eq!(load(&one, 1).await, 1);
        assert!(one.close(PATIENCE).await);
        let _logged = one.invalidate("t").await;
        for key in lost {
            server.cli(&["DEL", &format!("larder:log:{{larder}}:{key}")]);
        }
        let late = larder(server.redis());
        synced(&late).await;
        assert_eq!(load(&late, 9).await, 9, "{lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_process_that_starts_knows_what_was_invalidated_before() {
    let server = Server::start(&[]).await;
    let one = larder(server.redis());
    synced(&one).await;
    assert_eq!(load(&one, 1).await, 1);
    assert!(one.close(PATIENCE).await);
    for number in 0..2_500 {
        let _logged = one.invalidate(("other", number)).await;
    }
    let early = larder(server.redis());
    synced(&early).await;
    assert_eq!(load(&early, 8).await, 1, "what was not invalidated is there, beyond several pages");
    let _logged = one.invalidate("t").await;
    let late = larder(server.redis());
    synced(&late).await;
    assert_eq!(load(&late, 9).await, 9);
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn two_shops_of_one_database_are_one_cache() {
    use clap::Parser as _;
    let server = Server::start(&[]).await;
    let database = format!("sqlite://{}", server.directory.join("shop.db").display());
    let redis = format!("redis://127.0.0.1:{}", server.port);
    let mut addresses = Vec::new();
    let mut serving = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let flags = ["shop", "--products", "50", "--admin-token", "t", "--database", &database];
        let options = shop::Options::parse_from(flags.into_iter().chain(["--redis", &redis]));
        let app = shop::App::open(&options).await.unwrap();
        synced(app.larder()).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        serving.spawn(async move { axum::serve(listener, shop::router(app)).await.unwrap() });
    }
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<http_body_util::Full<bytes::Bytes>>();
    let ask = async |at: usize, method: &str, body: &'static str| {
        use http_body_util::BodyExt as _;
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}/api/products/7", addresses[at]))
            .header("content-type", "application/json");
        let request =
            if method == "PUT" { request.header("authorization", "Bearer t") } else { request };
        let answer = client.request(request.body(body.into()).unwrap()).await.unwrap();
        let status = answer.headers().get("cache-status").cloned();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let status = status.map(|status| status.to_str().unwrap().to_owned());
        (status.unwrap_or_default(), String::from_utf8(text.to_vec()).unwrap())
    };
    ask(0, "GET", "").await;
    until("what one shop has rendered the other serves", || async {
        ask(1, "GET", "").await.0.contains("hit")
    })
    .await;
    ask(0, "PUT", r#"{"price_cents": 424242}"#).await;
    assert!(ask(0, "GET", "").await.1.contains("424242"));
    until("the other follows", || async { ask(1, "GET", "").await.1.contains("424242") }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_server_that_is_stopped_or_away_costs_hits_and_never_answers() {
    let mut server = Server::start(&[]).await;
    let one = larder(server.redis());
    synced(&one).await;
    for way in ["STOP", "KILL"] {
        server.signal(way);
        let began = Instant::now();
        for number in 0..40_u32 {
            let load = move |_: Fill| async move { Ok::<_, Infallible>(number) };
            let name = format!("{way} {number}");
            let loaded = one.get_or_load(name, Policy::ttl(MINUTE), load).await.unwrap();
            assert_eq!(*loaded, number);
        }
        // Each of the first few waits for its deadline, then nobody waits any more.
        assert!(began.elapsed() < PATIENCE, "{way}: {:?}", began.elapsed());
        let _queued = tokio::time::timeout(PATIENCE, one.invalidate("t")).await.expect("an answer");
        if way == "STOP" {
            server.signal("CONT");
            until("what was queued is appended", || async {
                one.stats().invalidations_pending == 0
            })
            .await;
        }
    }
    server.child.wait().unwrap();
    server.restart().await;
    until("what was queued is appended", || async { one.stats().invalidations_pending == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_process_starts_without_its_server_and_joins_later() {
    let mut server = Server::start(&[]).await;
    server.kill();
    let one = larder(server.redis());
    assert_eq!(load(&one, 1).await, 1);
    assert_eq!(load(&one, 2).await, 1, "memory is there without it");
    server.restart().await;
    synced(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_wrong_password_costs_hits_and_a_right_one_works() {
    let server = Server::start(&["--requirepass", "secret"]).await;
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", server.port);
    let wrong = larder(Redis::open(&url("wrong")).unwrap());
    assert_eq!(load(&wrong, 1).await, 1);
    let right = larder(Redis::open(&url("secret")).unwrap());
    synced(&right).await;
    let error = Redis::open("redis://user:secret@[").unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}

const KEYS: u64 = 3;

/// An item through the cache of one process; the origin takes its time on both sides of its read.
async fn item(larder: &Larder, history: &Arc<History>, key: u64) -> u64 {
    let history = Arc::clone(history);
    let load = move |_: Fill| async move {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let version = history.current(key);
        tokio::time::sleep(Duration::from_millis(3)).await;
        Ok::<_, Infallible>(version)
    };
    let policy = Policy::ttl(MINUTE).tag(("item", key));
    *larder.get_or_load(("item", key), policy, load).await.expect("not one failed response")
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn under_load_no_server_that_dies_stops_or_forgets_makes_anybody_read_what_he_invalidated() {
    let mut server = Server::start(&[]).await;
    let history = Arc::new(History::new(None));
    let larders: Arc<Vec<Larder>> = Arc::new((0..3).map(|_| larder(server.redis())).collect());
    for larder in larders.iter() {
        synced(larder).await;
    }
    let mut load = tokio::task::JoinSet::new();
    for process in 0..3 {
        let (own, told) = (Arc::clone(&larders), Arc::clone(&history));
        load.spawn(async move {
            for turn in 0_u64.. {
                let key = turn % KEYS;
                let version = told.commit(key);
                let _queued_or_logged = own[process].invalidate(("item", key)).await;
                told.invalidated(process, key, version);
                tokio::time::sleep(Duration::from_millis(7 + process as u64)).await;
            }
        });
        for reader in 0..2_u64 {
            let (larders, history) = (Arc::clone(&larders), Arc::clone(&history));
            load.spawn(async move {
                for turn in reader.. {
                    let (key, began) = (turn % KEYS, tokio::time::Instant::now());
                    let version = item(&larders[process], &history, key).await;
                    history.read(process, key, began, version);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
    }
    for way in ["none", "CLIENT KILL", "FLUSHALL", "STOP", "KILL", "none"] {
        match way {
            "CLIENT KILL" => drop(server.cli(&["CLIENT", "KILL", "TYPE", "normal"])),
            "FLUSHALL" => drop(server.cli(&["FLUSHALL"])),
            "STOP" => {
                server.signal("STOP");
                tokio::time::sleep(Duration::from_millis(500)).await;
                server.signal("CONT");
            }
            "KILL" => {
                server.kill();
                tokio::time::sleep(Duration::from_millis(300)).await;
                server.restart().await;
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    load.shutdown().await;
    let violations: Vec<String> = history.violations().iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{violations:?}");
    until("all come to the same", || async {
        let mut same = true;
        for larder in larders.iter() {
            for key in 0..KEYS {
                same &= item(larder, &history, key).await == history.current(key);
            }
        }
        same
    })
    .await;
}
