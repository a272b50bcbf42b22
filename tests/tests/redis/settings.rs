//! The rights larder needs on a server, and its advice about the settings.

use std::time::Duration;

use larder_redis::{Advice, Redis};
use larder_testkit::conformance;

use super::server::{Cluster, Server, larder, load, synced};

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn harmful_settings_are_reported() {
    let server = Server::start(&["--maxmemory", "100mb"]).await;
    let advice = async || server.redis().advice().await.unwrap();
    assert_eq!(advice().await, [Advice::Noeviction]);
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    assert_eq!(advice().await, [Advice::LogMayBeEvicted { policy: "allkeys-lru".into() }]);
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-lfu"]);
    assert_eq!(advice().await, []);
    let cluster = Cluster::start(3, 0).await;
    assert_eq!(cluster.redis().advice().await.unwrap(), []);
    for node in &cluster.nodes {
        node.cli(&["CONFIG", "SET", "cluster-node-timeout", "60000"]);
    }
    let slow = Advice::SlowFailover { node_timeout: Duration::from_secs(60) };
    assert_eq!(cluster.redis().advice().await.unwrap(), [slow]);
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn the_acl_of_the_guide_allows_what_larder_needs_and_no_more() {
    let guide = include_str!("../../../crates/larder/src/guide/redis.md");
    let rules = guide.lines().find(|line| line.starts_with("ACL SETUSER")).unwrap();
    let rules: Vec<&str> = rules.split_whitespace().collect();
    let server = Server::start(&[]).await;
    let set = server.cli(&rules);
    assert!(set.contains("OK"), "{set}");
    let url = format!("redis://larder:secret@127.0.0.1:{}", server.port);
    let redis = || Redis::open(&url).unwrap().name("shop");
    conformance::store(&redis().store()).await;
    conformance::leases(&redis().store()).await;
    conformance::bus(&redis().bus()).await;
    let one = larder(redis());
    synced(&one).await;
    assert_eq!(load(&one, 1).await, 1);
    let denied = |command: &[&str]| {
        let with_user =
            [&["--user", "larder", "--pass", "secret", "--no-auth-warning"], command].concat();
        server.cli(&with_user).contains("NOPERM")
    };
    assert!(denied(&["FLUSHALL"]) && denied(&["KEYS", "*"]) && denied(&["CONFIG", "GET", "*"]));
    assert!(
        denied(&["GET", "another:application"]) && denied(&["SET", "another:application", "x"])
    );
}
