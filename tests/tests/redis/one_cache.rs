//! Processes that share a Redis act as one cache, through every failure of the server.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use larder::{LoadHandle, Policy, store::Store as _};
use larder_redis::Redis;
use larder_testkit::conformance;

use super::server::{MINUTE, PATIENCE, Server, larder, load, synced, until};

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn redis_is_a_store_and_a_log() {
    let server = Server::start(&[]).await;
    conformance::store(&server.redis().store()).await;
    conformance::leases(&server.redis().store()).await;
    conformance::bus(&server.redis().bus()).await;
    assert!(
        server.cli(&["DBSIZE"]).contains('7'),
        "six keys of the log, and b: {}",
        server.cli(&["KEYS", "*"])
    );
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn redis_passes_the_conformance_suites_while_connections_break() {
    let server = Arc::new(Server::start(&[]).await);
    let (cut, done) = (Arc::clone(&server), Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&done);
    let cutting = tokio::task::spawn_blocking(move || {
        while !ended.load(Ordering::SeqCst) {
            cut.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
    });
    let bus = server.redis().bus();
    until("some have met a command", || async { conformance::bus_that_fails(&bus).await > 0 })
        .await;
    conformance::store_that_fails(&server.redis().store()).await;
    done.store(true, Ordering::SeqCst);
    cutting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_batch_is_one_mget_and_a_key_of_another_type_is_a_miss() {
    let server = Server::start(&[]).await;
    let store = server.redis().name("shop").store();
    let names: Vec<String> = (0..100).map(|number| format!("larder:o:{number}")).collect();
    for name in &names {
        store.set(name, name.clone().into(), MINUTE).await.unwrap();
    }
    let all = server.cli(&["KEYS", "*larder:o:50"]);
    let other_type = all.lines().next().unwrap().trim();
    server.cli(&["DEL", other_type]);
    server.cli(&["LPUSH", other_type, "x"]);
    server.cli(&["CONFIG", "RESETSTAT"]);
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let found = store.get_many(&wanted).await;
    for (number, (found, name)) in found.into_iter().zip(&names).enumerate() {
        let expected = (number != 50).then(|| name.clone().into_bytes().into());
        assert_eq!(found.unwrap(), expected, "{name}");
    }
    let commands = server.cli(&["INFO", "commandstats"]);
    assert!(commands.contains("cmdstat_mget:calls=1,"), "{commands}");
    assert!(!commands.contains("cmdstat_get:"), "{commands}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn processes_share_entries_and_invalidations() {
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
async fn processes_recover_from_a_server_that_lost_its_data() {
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
        // Both processes share a cache again.
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
async fn entries_are_not_trusted_after_the_log_lost_invalidations() {
    // The entry is still in Redis; the invalidation that matched it is lost.
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
async fn a_new_process_applies_earlier_invalidations() {
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
    assert_eq!(
        load(&early, 8).await,
        1,
        "an entry that was not invalidated is a hit, after several pages of the log"
    );
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
        let flags = [
            "shop",
            "--products",
            "50",
            "--admin-token",
            "a-token-of-two-shops",
            "--database",
            &database,
        ];
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
        let request = if method == "PUT" {
            request.header("authorization", "Bearer a-token-of-two-shops")
        } else {
            request
        };
        let answer = client.request(request.body(body.into()).unwrap()).await.unwrap();
        let status = answer.headers().get("cache-status").cloned();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let status = status.map(|status| status.to_str().unwrap().to_owned());
        (status.unwrap_or_default(), String::from_utf8(text.to_vec()).unwrap())
    };
    ask(0, "GET", "").await;
    until("a page that one shop rendered is a hit in the other", || async {
        ask(1, "GET", "").await.0.contains("hit")
    })
    .await;
    ask(0, "PUT", r#"{"price_cents": 424242}"#).await;
    assert!(ask(0, "GET", "").await.1.contains("424242"));
    until("the other follows", || async { ask(1, "GET", "").await.1.contains("424242") }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn an_unreachable_server_costs_hits_and_never_responses() {
    let mut server = Server::start(&[]).await;
    let one = larder(server.redis());
    synced(&one).await;
    for way in ["STOP", "KILL"] {
        server.signal(way);
        let began = Instant::now();
        for number in 0..40_u32 {
            let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(number) };
            let name = format!("{way} {number}");
            let loaded = one.get_or_load(name, Policy::ttl(MINUTE), load).await.unwrap();
            assert_eq!(*loaded, number);
        }
        // The first five reads wait for their deadline; then the circuit opens and reads fail at once.
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
async fn a_process_starts_without_the_server_and_connects_later() {
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
