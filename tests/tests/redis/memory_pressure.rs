//! A server whose memory is full, under each of its policies: what becomes of entries and of the log is told in
//! the guide, and promise 1 holds under all of them.

use std::convert::Infallible;

use larder::{Larder, Loading, Policy};

use super::{
    server::{MINUTE, PATIENCE, Server, larder, synced, until},
    under_fire::Load,
};

/// Fills the memory of a server until it evicts or refuses.
async fn fill(larder: &Larder, server: &Server) {
    let full = || {
        let stats = server.cli(&["INFO", "stats"]) + &server.cli(&["INFO", "errorstats"]);
        !stats.contains("evicted_keys:0\r") || stats.contains("errorstat_OOM")
    };
    for number in 0..2_000_u64 {
        let load = move |_: Loading| async move {
            // Nothing that a compression could make smaller.
            let noise = (0..4_000_u64).map(|at| (at ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            Ok::<_, Infallible>(noise.collect::<Vec<_>>())
        };
        larder.get_or_load(("filling", number), Policy::ttl(MINUTE), load).await.unwrap();
        if number % 50 == 49 {
            assert!(
                larder.close(PATIENCE).await || server.cli(&["INFO", "errorstats"]).contains("OOM")
            );
            if full() {
                return;
            }
        }
    }
    panic!("the memory of the server is not full: {}", server.cli(&["INFO", "memory"]));
}

/// Load goes on while memory fills up. Says whether the log is the one it was, and whether appends were refused.
async fn under(policy: &str, more: &[&str]) -> (bool, bool) {
    let limits = ["--maxmemory", "12mb", "--maxmemory-policy", policy];
    let server = Server::start(&[&limits, more].concat()).await;
    let load = Load::start(&server.redis()).await;
    let epoch = load.stats(0).log.epoch;
    let filling = larder(server.redis());
    synced(&filling).await;
    fill(&filling, &server).await;
    // An eviction is chance: under `allkeys-*` the log need not be among what goes.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let same_log = load.stats(0).log.epoch == epoch;
    let refused = server.cli(&["INFO", "errorstats"]).contains("errorstat_OOM");
    if refused {
        until("invalidations are queued, and it shows", || async {
            load.stats(0).invalidations_pending > 0
        })
        .await;
        // There is room again.
        server.cli(&["CONFIG", "SET", "maxmemory", "1gb"]);
        until("what was queued is in the log", || async {
            load.stats(0).invalidations_pending < 3
        })
        .await;
    }
    load.assert_all_was_well().await;
    (same_log, refused)
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn where_entries_expire_and_the_log_does_not_only_entries_are_evicted() {
    for policy in ["volatile-lfu", "volatile-lru", "volatile-random", "volatile-ttl"] {
        assert_eq!(under(policy, &[]).await, (true, false), "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn where_the_log_may_be_evicted_nobody_reads_what_was_invalidated() {
    let durable = ["--save", "1 1", "--appendonly", "yes"];
    for (policy, more) in
        [("allkeys-lru", &durable[..]), ("allkeys-lfu", &[]), ("allkeys-random", &[])]
    {
        let (_, refused) = under(policy, more).await;
        assert!(!refused, "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn where_nothing_is_evicted_invalidations_are_queued_and_it_shows() {
    assert_eq!(under("noeviction", &[]).await, (true, true));
}

/// Every write that was refused for want of room made a new connection.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_server_without_room_is_not_connected_to_again_and_again() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]).await;
    let larder = larder(server.redis());
    synced(&larder).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let connections = || {
        let stats = server.cli(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = connections();
    for number in 0..100_u64 {
        let load = move |_: Loading| async move { Ok::<_, Infallible>(number) };
        larder.get_or_load(("refused", number), Policy::ttl(MINUTE), load).await.unwrap();
    }
    larder.close(PATIENCE).await;
    assert!(server.cli(&["INFO", "errorstats"]).contains("errorstat_OOM"));
    // One of them is this question's own.
    assert!(connections() - before < 6, "{} connections", connections() - before);
}
