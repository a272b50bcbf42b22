//! A server whose memory is full, under each `maxmemory-policy`: the guide documents the fate of entries and of the
//! log, and promise 1 holds under all policies.

use std::convert::Infallible;

use larder::{Larder, LoadHandle, Policy};

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
        let load = move |_: LoadHandle| async move {
            // Noise that compression cannot shrink.
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

/// Runs load while memory fills up. Returns whether the log kept its epoch, and whether appends were refused.
async fn under(policy: &str, more: &[&str]) -> (bool, bool) {
    let limits = ["--maxmemory", "12mb", "--maxmemory-policy", policy];
    let server = Server::start(&[&limits, more].concat()).await;
    let load = Load::start(&server.redis()).await;
    let epoch = load.stats(0).log.epoch;
    let filling = larder(server.redis());
    synced(&filling).await;
    fill(&filling, &server).await;
    // Eviction is random: under `allkeys-*` the keys of the log need not be among the evicted ones.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let same_log = load.stats(0).log.epoch == epoch;
    let refused = server.cli(&["INFO", "errorstats"]).contains("errorstat_OOM");
    if refused {
        until("the statistics show queued invalidations", || async {
            load.stats(0).invalidations_pending > 0
        })
        .await;
        // Make room again.
        server.cli(&["CONFIG", "SET", "maxmemory", "1gb"]);
        until("the queued invalidations are in the log", || async {
            load.stats(0).invalidations_pending < 3
        })
        .await;
    }
    load.assert_all_was_well().await;
    (same_log, refused)
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn volatile_policies_evict_entries_and_never_the_log() {
    for policy in ["volatile-lfu", "volatile-lru", "volatile-random", "volatile-ttl"] {
        assert_eq!(under(policy, &[]).await, (true, false), "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn under_allkeys_policies_no_process_reads_an_invalidated_entry() {
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
async fn under_noeviction_invalidations_are_queued_and_reported() {
    assert_eq!(under("noeviction", &[]).await, (true, true));
}

/// Regression: every write that was refused for lack of memory opened a new connection.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn writes_refused_for_lack_of_memory_keep_the_connection() {
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
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(number) };
        larder.get_or_load(("refused", number), Policy::ttl(MINUTE), load).await.unwrap();
    }
    larder.close(PATIENCE).await;
    assert!(server.cli(&["INFO", "errorstats"]).contains("errorstat_OOM"));
    // One of them is the connection of `redis-cli` itself.
    assert!(connections() - before < 6, "{} connections", connections() - before);
}
