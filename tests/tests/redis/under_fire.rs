//! Load goes on while servers are killed, stopped, cut off and emptied: not one response fails, and no process reads an
//! entry that it has invalidated.

use std::{convert::Infallible, sync::Arc, time::Duration};

use larder::{Consistency, Invalidated, Larder, LoadHandle, Policy};
use larder_redis::Redis;
use larder_testkit::{History, conformance};
use tokio::task::JoinSet;

use super::server::{Cluster, MINUTE, PATIENCE, Server, larder, synced, until};

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_cluster_is_a_store_and_a_log() {
    let cluster = Cluster::start(3, 0).await;
    let redis = cluster.redis();
    let redis = redis.deadline(Duration::from_secs(2));
    conformance::store(&redis.store()).await;
    conformance::leases(&redis.store()).await;
    conformance::bus(&redis.bus()).await;
    // Text chosen by a client does not choose a slot.
    let larders = [larder(redis.clone()), larder(redis)];
    for larder in &larders {
        synced(larder).await;
    }
    for number in 0..60 {
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(number) };
        let name = format!("{{a}}{number}");
        larders[0].get_or_load(name, Policy::ttl(MINUTE).tag("t"), load).await.unwrap();
    }
    assert!(larders[0].close(PATIENCE).await);
    for node in &cluster.nodes {
        let keys = node.cli(&["DBSIZE"]).trim().parse::<u32>().unwrap();
        assert!(keys >= 5, "they spread: {keys} keys on one node");
    }
    let _queued_or_logged = larders[0].invalidate("t").await;
    until("it is gone in both", || async {
        let load = |_: LoadHandle| async { Ok::<_, Infallible>(1000) };
        let policy = Policy::ttl(MINUTE).tag("t");
        *larders[1].get_or_load("{a}1", policy, load).await.unwrap() == 1000
    })
    .await;
    cluster.assert_no_cross_slot();
}

/// Three processes that read and write all the time; each read is checked against the common history.
pub(super) struct Load {
    larders: Arc<Vec<Larder>>,
    history: Arc<History>,
    tasks: JoinSet<()>,
}

impl Load {
    pub(super) async fn start(redis: &Redis) -> Self {
        let larders = (0..3).map(|_| larder(redis.clone())).collect();
        let (larders, history) = (Arc::new(larders), Arc::new(History::new(None)));
        let mut load = Self { larders, history, tasks: JoinSet::new() };
        for process in 0..3 {
            synced(&load.larders[process]).await;
            load.tasks.spawn(write(process, load.larders[process].clone(), load.history.clone()));
            for consistency in [Consistency::Eventual, Consistency::Bounded(BOUND)] {
                let (larder, history) = (load.larders[process].clone(), load.history.clone());
                load.tasks.spawn(read(process, larder, history, consistency));
            }
        }
        load
    }

    pub(super) fn stats(&self, process: usize) -> larder::Stats {
        self.larders[process].stats()
    }

    /// Stops the load, and asserts that no response has failed, that no process has read an invalidated version, and
    /// that all processes end with the same versions.
    pub(super) async fn assert_all_was_well(mut self) {
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            assert!(ended.is_err_and(|error| error.is_cancelled()), "not one response fails");
        }
        let violations: Vec<_> =
            self.history.violations().iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{violations:?}");
        until("all come to the same", || async {
            let mut same = true;
            for larder in self.larders.iter() {
                for key in 0..KEYS {
                    let served = item(larder, &self.history, key, Consistency::Eventual).await;
                    same &= served == self.history.current(key);
                }
            }
            same
        })
        .await;
    }
}

async fn write(process: usize, larder: Larder, history: Arc<History>) {
    for turn in 0_u64.. {
        let key = turn % KEYS;
        let version = history.commit(key);
        match larder.invalidate(("item", key)).await {
            Invalidated::Logged => history.invalidated(process, key, version),
            _ => history.queued(process, key, version),
        }
        tokio::time::sleep(Duration::from_millis(7 + process as u64)).await;
    }
}

async fn read(process: usize, larder: Larder, history: Arc<History>, consistency: Consistency) {
    let bound = match consistency {
        // The lag within the bound, and the time of a read while the server does not answer.
        Consistency::Bounded(bound) => Some(bound + Duration::from_secs(1)),
        _ => None,
    };
    for turn in 0_u64.. {
        let (key, began) = (turn % KEYS, history.begin());
        let version = item(&larder, &history, key, consistency).await;
        history.read_within(bound, process, key, began, version);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Loads an item through the cache of one process; the origin is slow before and after its read.
async fn item(larder: &Larder, told: &Arc<History>, key: u64, consistency: Consistency) -> u64 {
    let history = Arc::clone(told);
    let load = move |_: LoadHandle| async move {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let version = history.current(key);
        tokio::time::sleep(Duration::from_millis(3)).await;
        Ok::<_, Infallible>(version)
    };
    let policy = Policy::ttl(MINUTE).tag(("item", key)).consistency(consistency);
    *larder.get_or_load(("item", key), policy, load).await.expect("not one failed response")
}

const KEYS: u64 = 3;
const BOUND: Duration = Duration::from_secs(1);

async fn for_a_while() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn no_process_reads_invalidated_entries_while_the_server_fails() {
    let mut server = Server::start(&[]).await;
    let load = Load::start(&server.redis()).await;
    for way in ["none", "CLIENT KILL", "FLUSHALL", "STOP", "KILL", "none"] {
        match way {
            "CLIENT KILL" => drop(server.cli(&["CLIENT", "KILL", "TYPE", "normal"])),
            "FLUSHALL" => drop(server.cli(&["FLUSHALL"])),
            "STOP" => {
                server.signal("STOP");
                for_a_while().await;
                server.signal("CONT");
            }
            "KILL" => {
                server.kill();
                for_a_while().await;
                server.restart().await;
            }
            _ => {}
        }
        for_a_while().await;
    }
    load.assert_all_was_well().await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_cluster_may_lose_all_its_primaries_one_after_the_other() {
    let mut cluster = Cluster::start(3, 1).await;
    let load = Load::start(&cluster.redis()).await;
    for_a_while().await;
    for primary in 0..3 {
        let id = cluster.nodes[primary].cli(&["CLUSTER", "MYID"]).trim().to_owned();
        cluster.nodes[primary].kill();
        let survivors = &cluster.nodes[primary + 1..];
        until("a replica takes over", || async {
            // The primary has failed, not only `fail?`, and three nodes serve its slots and the others.
            let replaced = |node: &Server| {
                let nodes = node.cli(&["CLUSTER", "NODES"]);
                let is_gone = |line: &str| {
                    line.starts_with(&id) && line.contains("fail") && !line.contains("fail?")
                };
                let serves = |line: &str| line.contains("master") && !line.contains("fail");
                nodes.lines().any(is_gone) && nodes.lines().filter(|line| serves(line)).count() == 3
            };
            let is_well = |node: &Server| node.cli(&["CLUSTER", "INFO"]).contains("state:ok");
            survivors.iter().all(|node| replaced(node) && is_well(node))
        })
        .await;
        // All processes follow the log again.
        until("the queued invalidations are in the log", || async {
            (0..3).all(|process| {
                let stats = load.stats(process);
                stats.invalidations_pending < 3 && stats.log.synchronised
            })
        })
        .await;
        for_a_while().await;
    }
    cluster.nodes.drain(..3);
    cluster.assert_no_cross_slot();
    load.assert_all_was_well().await;
}
