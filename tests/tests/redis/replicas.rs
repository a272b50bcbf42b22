//! Reading entries from replicas, and waiting for replica acknowledgement of invalidations.

use larder::{Consistency, Invalidated, Larder};
use larder_redis::{ReadFrom, Redis};

use super::server::{Cluster, PATIENCE, Server, larder, load, synced, until};

struct Pair {
    primary: Server,
    replica: Server,
}

impl Pair {
    async fn start() -> Self {
        let primary = Server::start(&[]).await;
        let of = format!("127.0.0.1 {}", primary.port);
        let replica = Server::start(&["--replicaof", &of]).await;
        let pair = Self { primary, replica };
        pair.in_step().await;
        pair
    }

    async fn in_step(&self) {
        until("the replica has it all", || async {
            let field = |server: &Server, name: &str| {
                let info = server.cli(&["INFO", "replication"]);
                let line = info.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                line.map(|line| line.trim().to_owned())
            };
            let written = field(&self.primary, "master_repl_offset:");
            field(&self.replica, "master_link_status:").as_deref() == Some("up")
                && field(&self.replica, "slave_repl_offset:") == written
        })
        .await;
    }

    /// Returns a process that has filled an entry, which both servers have.
    async fn filled(&self) -> Larder {
        let one = larder(self.primary.redis());
        synced(&one).await;
        assert_eq!(load(&one, 1).await, 1);
        assert!(one.close(PATIENCE).await);
        self.in_step().await;
        one
    }

    fn redis(&self, from: ReadFrom) -> Redis {
        let replica = format!("redis://127.0.0.1:{}", self.replica.port);
        self.primary.redis().replicas([&*replica]).unwrap().read_from(from)
    }

    fn gets(server: &Server) -> u32 {
        let stats = server.cli(&["INFO", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
        calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn read_from_chooses_the_server_of_reads() {
    let pair = Pair::start().await;
    let _one = pair.filled().await;
    for (from, by_replica) in [
        (ReadFrom::Primary, false),
        (ReadFrom::PrimaryThenReplica, false),
        (ReadFrom::AnyReplica, true),
    ] {
        let before = (Pair::gets(&pair.primary), Pair::gets(&pair.replica));
        let other = larder(pair.redis(from));
        synced(&other).await;
        assert_eq!(load(&other, 2).await, 1, "{from:?}");
        let after = (Pair::gets(&pair.primary), Pair::gets(&pair.replica));
        assert_eq!(after.0 > before.0, !by_replica, "{from:?}");
        assert_eq!(after.1 > before.1, by_replica, "{from:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_lagging_replica_costs_misses_and_never_serves_an_invalidated_entry() {
    let pair = Pair::start().await;
    let one = pair.filled().await;
    // It still answers, but receives no more writes.
    pair.replica.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(one.invalidate("t").await, Invalidated::Logged);
    until("its own record has come back", || async {
        one.kernel().catch_up(Consistency::Strong).await
    })
    .await;
    assert_eq!(load(&one, 2).await, 2);
    assert!(one.close(PATIENCE).await);
    let from_replica = larder(pair.redis(ReadFrom::AnyReplica));
    synced(&from_replica).await;
    assert_eq!(
        load(&from_replica, 3).await,
        3,
        "the replica has the old entry, which is invalidated"
    );
    assert_eq!(from_replica.stats().shared.misses, 1);
    let from_primary = larder(pair.primary.redis());
    synced(&from_primary).await;
    let shared = load(&from_primary, 4).await;
    assert!(shared == 2 || shared == 3, "{shared}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn if_the_first_server_is_stopped_the_second_answers() {
    for (from, stopped) in
        [(ReadFrom::AnyReplica, "replica"), (ReadFrom::PrimaryThenReplica, "primary")]
    {
        let pair = Pair::start().await;
        let _one = pair.filled().await;
        let store = pair.redis(from).store();
        let key = pair.replica.cli(&["KEYS", "larder:larder:o:*"]);
        let key = key.trim().strip_prefix("larder:").unwrap().to_owned();
        let get = async || larder::store::Store::get(&store, &key).await;
        assert!(get().await.unwrap().is_some());
        match stopped {
            "replica" => pair.replica.signal("STOP"),
            _ => pair.primary.signal("STOP"),
        }
        until("after five timeouts reads no longer wait", || async {
            get().await.is_ok_and(|found| found.is_some())
        })
        .await;
        pair.replica.signal("CONT");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_durable_invalidation_waits_for_replica_acknowledgement() {
    let pair = Pair::start().await;
    let one = larder(pair.primary.redis().durable(1));
    synced(&one).await;
    until("the replica answers in time", || async {
        one.invalidate("t").await == Invalidated::Logged
    })
    .await;
    pair.replica.cli(&["REPLICAOF", "NO", "ONE"]);
    until("the primary knows", || async {
        pair.primary.cli(&["INFO", "replication"]).contains("connected_slaves:0")
    })
    .await;
    let before = one.stats().log.applied;
    assert_eq!(one.invalidate("t").await, Invalidated::Queued);
    // The log has it once, and it acts in every process.
    until("it comes back", || async { one.kernel().catch_up(Consistency::Strong).await }).await;
    assert_eq!(one.stats().log.applied, before + 1);
    assert_eq!(one.stats().invalidations_pending, 0);
    pair.replica.cli(&["REPLICAOF", "127.0.0.1", &pair.primary.port.to_string()]);
    until("a replica has it", || async { one.invalidate("t").await == Invalidated::Logged }).await;
}

/// Regression: each append waited for its own `WAIT` on one connection, the later ones until their deadline, and was
/// appended again: in the end the log was so full that everything was dropped.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn unacknowledged_invalidations_are_in_the_log_once_each() {
    let server = Server::start(&[]).await;
    let one = larder(server.redis().durable(1));
    synced(&one).await;
    let all = (0..50).map(|number| one.invalidate(("t", number)));
    let outcomes = futures_util::future::join_all(all).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Invalidated::Queued), "{outcomes:?}");
    until("all is applied", || async { one.kernel().catch_up(Consistency::Strong).await }).await;
    let stats = one.stats();
    assert_eq!((stats.log.applied, stats.invalidations_pending), (50, 0));
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn in_a_cluster_appends_wait_for_the_replica_of_the_log() {
    let cluster = Cluster::start(3, 1).await;
    let one = larder(cluster.redis().durable(1));
    synced(&one).await;
    until("its replica has it", || async { one.invalidate("t").await == Invalidated::Logged })
        .await;
    let two = larder(cluster.redis().durable(2));
    synced(&two).await;
    assert_eq!(two.invalidate("t").await, Invalidated::Queued, "there is only one");
    cluster.assert_no_cross_slot();
}
