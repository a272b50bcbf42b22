//! The numbers that larder reports, where several crates make them.

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use http::Request;
use larder::{
    Larder,
    axum::{CachePolicy, HttpCache, MatchedPathLayer},
    sql::Db,
};
use larder_testkit::{MemoryStore, SharedLog};
use tower::{Layer as _, ServiceExt as _};

use crate::{
    redis::server::{Cluster, Server, larder, load, synced},
    second_level::{process, settled},
};

const MINUTE: Duration = Duration::from_secs(60);

/// Sends GET requests to a service.
macro_rules! get {
    ($app:expr, $($path:expr),*) => {
        for path in [$($path),*] {
            let request = Request::get(path).header("host", "shop.example").body(Body::empty()).unwrap();
            let response = $app.clone().oneshot(request).await.unwrap();
            axum::body::to_bytes(Body::new(response.into_body()), usize::MAX).await.unwrap();
        }
    };
}

/// Returns each route of the cache `responses` with its requests and its hits.
fn routes(larder: &Larder) -> Vec<(String, u64, u64)> {
    let stats = larder.stats();
    let routes = stats.cache("responses").map(|cache| cache.routes.clone()).unwrap_or_default();
    let mut all: Vec<_> =
        routes.into_iter().map(|route| (route.route, route.requests, route.hits)).collect();
    all.sort();
    all
}

fn router() -> Router {
    let products = Router::new().route("/{id}", get(async || "a product"));
    Router::new().route("/", get(async || "home")).nest("/products", products)
}

#[tokio::test(start_paused = true)]
async fn a_cache_inside_a_router_counts_by_the_whole_template_and_one_around_it_too() {
    let expected = [
        ("/".to_owned(), 2, 1),
        ("/products/{id}".to_owned(), 4, 2),
        ("unmatched".to_owned(), 1, 0),
    ];
    let inside = Larder::builder().build().unwrap();
    let app = router().layer(HttpCache::new(&inside).ttl(MINUTE));
    get!(app, "/", "/", "/products/1", "/products/1", "/products/2", "/products/2", "/missing");
    assert_eq!(routes(&inside), expected);

    let around = Larder::builder().build().unwrap();
    let told = router().layer(MatchedPathLayer::new());
    let app = HttpCache::new(&around).ttl(MINUTE).layer(told);
    get!(app, "/", "/", "/products/1", "/products/1", "/products/2", "/products/2", "/missing");
    assert_eq!(routes(&around), expected);
}

#[tokio::test(start_paused = true)]
async fn an_extractor_tells_a_cache_around_the_router_which_route_has_matched() {
    let larder = Larder::builder().build().unwrap();
    let show = async |policy: CachePolicy| {
        policy.ttl(MINUTE);
        "a page"
    };
    let router = Router::new().route("/pages/{name}", get(show)).route("/plain", get(async || ""));
    let app = HttpCache::new(&larder).ttl(MINUTE).layer(router);
    get!(app, "/pages/a", "/pages/a", "/plain", "/plain");
    assert_eq!(routes(&larder), [("/pages/{name}".into(), 2, 1), ("unmatched".into(), 2, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_one_process_has_learnt_reaches_the_others_with_the_entry() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let mut requests = Vec::new();
    for _ in 0..2 {
        let larder = process(&log, &store, |builder| builder);
        larder.synced().await;
        let told = router().layer(MatchedPathLayer::new());
        let app = HttpCache::new(&larder).ttl(MINUTE).layer(told);
        get!(app, "/products/1", "/products/1");
        settled(&[&larder]).await;
        requests.extend(routes(&larder));
        let stats = larder.stats();
        assert!(stats.shared.read_time.p50_nanos > 0, "a read of the store was measured");
    }
    let product = "/products/{id}".to_owned();
    assert_eq!(requests, [(product.clone(), 2, 1), (product, 2, 2)]);
}

#[tokio::test]
async fn a_hit_saves_the_queries_of_its_fill() {
    let larder = Larder::builder().build().unwrap();
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = options.connect("sqlite::memory:").await.unwrap();
    sqlx::raw_sql("CREATE TABLE t (id integer PRIMARY KEY)").execute(&pool).await.unwrap();
    let db: Db = larder::sqlx::sqlite(pool).cached(&larder).await.unwrap();
    let list = async move || {
        let one = db.query("SELECT id FROM t").fetch_all::<(i64,)>().await.unwrap();
        let other = db.query("SELECT id FROM t WHERE id > 3").fetch_all::<(i64,)>().await.unwrap();
        let random = db.query("SELECT random()").fetch_all::<(i64,)>().await.unwrap();
        (one.len() + other.len() + random.len()).to_string()
    };
    let router = Router::new().route("/", get(list));
    let app = router.layer(HttpCache::new(&larder).ttl(MINUTE));
    let mut path = "/";
    for _ in 0..2_000 {
        get!(app, path);
        path = "/";
    }
    let saved = larder.stats().cache("responses").unwrap().total.saved;
    assert_eq!(saved.queries, 3 * saved.bytes, "two cached queries, and one that is not");
    assert!(saved.bytes > 1_000, "the body has one byte: {saved:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_server_that_stops_answering_shows_as_an_open_circuit_and_its_usage_is_known_before() {
    let server =
        Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lfu"]).await;
    let larder = larder(server.redis());
    synced(&larder).await;
    assert_eq!(load(&larder, 1).await, 1);
    larder.kernel().ask_for_usage().await;
    let stats = larder.stats();
    let usage = stats.shared.usage.unwrap();
    assert!(usage.bytes > 100_000 && usage.entries > 0, "{usage:?}");
    assert_eq!(usage.capacity_bytes, Some(100 << 20));
    let address = format!("127.0.0.1:{}", server.port);
    let open = |larder: &Larder| {
        let servers = larder.stats().servers;
        assert!(servers.iter().all(|server| server.address == address), "{servers:?}");
        let roles: Vec<_> = servers.iter().map(|server| server.role).collect();
        assert_eq!(roles, ["store", "log"]);
        servers.iter().map(|server| server.open_circuits).collect::<Vec<_>>()
    };
    assert_eq!(open(&larder), [0, 0]);
    server.signal("STOP");
    for number in 0..8_u32 {
        let load = |_| async { Ok::<_, std::convert::Infallible>(7_u64) };
        larder.get_or_load(("key", number), MINUTE, load).await.unwrap();
    }
    assert_eq!(open(&larder)[0], 1);
    let other = crate::redis::server::larder(server.redis());
    other.kernel().ask_for_usage().await;
    assert_eq!(other.stats().shared.usage, None, "the usage of a server that is silent is unknown");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn the_usage_of_a_cluster_is_that_of_all_its_primaries() {
    let cluster = Cluster::start(3, 0).await;
    let larder = larder(cluster.redis());
    synced(&larder).await;
    for number in 0..50_u32 {
        let load = |_| async { Ok::<_, std::convert::Infallible>(7_u64) };
        larder.get_or_load(("key", number), MINUTE, load).await.unwrap();
    }
    assert!(larder.close(MINUTE).await);
    larder.kernel().ask_for_usage().await;
    let stats = larder.stats();
    let usage = stats.shared.usage.unwrap();
    assert!(usage.entries >= 50, "{usage:?}");
    assert_eq!(usage.capacity_bytes, None);
    let store = &stats.servers[0];
    assert_eq!((store.role, store.circuits, store.open_circuits), ("store", 64, 0));
    assert_eq!(store.address.split(',').count(), cluster.nodes.len());
}
