//! Reads the settings of a server, and lists the settings that cost hits or invalidations.

use std::{fmt, time::Duration};

use redis::{RedisResult, cmd};

use crate::connection::Connection;

/// A setting of a server that costs hits or invalidations.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// When memory is full, the server refuses writes, so invalidations remain queued until there is room.
    Noeviction,
    /// When memory is full, the server may drop keys of the log, after which every shared entry is filled again.
    LogMayBeEvicted {
        /// The value of `maxmemory-policy`.
        policy: String,
    },
    /// A primary that is cut off from its replicas still accepts invalidations, which are lost if a replica replaces
    /// it.
    MayWriteAlone {
        /// The number of replicas of the primary.
        replicas: u32,
    },
    /// Replacing a primary of the cluster may take longer than larder retains invalidations in order to append them
    /// again.
    SlowFailover {
        /// The time after which the cluster treats a node as failed.
        node_timeout: Duration,
    },
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Noeviction => f.write_str(
                "maxmemory-policy is noeviction: once memory is full no invalidation reaches other processes; \
                 set it to volatile-lfu",
            ),
            Self::LogMayBeEvicted { policy } => write!(
                f,
                "maxmemory-policy is {policy}: once memory is full the log may be evicted, and then every shared \
                 entry is filled again; set it to volatile-lfu"
            ),
            Self::MayWriteAlone { replicas } => write!(
                f,
                "min-replicas-to-write is 0 with {replicas} replicas: a primary that is cut off accepts \
                 invalidations that are lost with it; set it to 1"
            ),
            Self::SlowFailover { node_timeout } => write!(
                f,
                "cluster-node-timeout is {node_timeout:?}: invalidations are retained for a minute to be appended \
                 again, and a fail-over may take longer; set it to 15 s or less"
            ),
        }
    }
}

/// The settings of a server. A setting that cannot be read is treated as correct.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Settings {
    maxmemory: u64,
    policy: String,
    replicas: u32,
    min_replicas: Option<u32>,
    is_cluster: bool,
    node_timeout: Option<Duration>,
}

impl Settings {
    fn advice(&self) -> Vec<Advice> {
        let mut advice = Vec::new();
        match &*self.policy {
            _ if self.maxmemory == 0 => {}
            "noeviction" => advice.push(Advice::Noeviction),
            policy if policy.starts_with("allkeys-") => {
                advice.push(Advice::LogMayBeEvicted { policy: policy.to_owned() });
            }
            _ => {}
        }
        // In a cluster, a primary that cannot reach the majority refuses writes by itself.
        if self.replicas > 0 && self.min_replicas == Some(0) && !self.is_cluster {
            advice.push(Advice::MayWriteAlone { replicas: self.replicas });
        }
        if let Some(node_timeout) = self.node_timeout.filter(|timeout| *timeout > LONGEST_TIMEOUT) {
            advice.push(Advice::SlowFailover { node_timeout });
        }
        advice
    }

    async fn read(connection: &mut Connection, home: &str) -> RedisResult<Self> {
        let memory = info(connection, home, "memory").await?;
        let replication = info(connection, home, "replication").await?;
        let cluster = info(connection, home, "cluster").await?;
        let is_cluster = field(&cluster, "cluster_enabled") == Some("1");
        let min_replicas = config(connection, home, "min-replicas-to-write").await;
        let node_timeout = config(connection, home, "cluster-node-timeout").await;
        Ok(Self {
            maxmemory: field(&memory, "maxmemory").and_then(|n| n.parse().ok()).unwrap_or_default(),
            policy: field(&memory, "maxmemory_policy").unwrap_or_default().to_owned(),
            replicas: field(&replication, "connected_slaves")
                .and_then(|n| n.parse().ok())
                .unwrap_or_default(),
            min_replicas: min_replicas.and_then(|n| u32::try_from(n).ok()),
            is_cluster,
            node_timeout: node_timeout.filter(|_| is_cluster).map(Duration::from_millis),
        })
    }
}

/// Checks a server, or the node of a cluster that holds the log.
pub(crate) async fn ask(mut connection: Connection, home: String) -> RedisResult<Vec<Advice>> {
    Ok(Settings::read(&mut connection, &home).await?.advice())
}

async fn info(connection: &mut Connection, home: &str, section: &str) -> RedisResult<String> {
    // A script runs on the node of its key; the `INFO` command would go to all nodes of a cluster.
    let mut asked = cmd("EVAL");
    asked.arg("return redis.call('INFO', ARGV[1])").arg(1).arg(home).arg(section);
    asked.query_async(connection).await
}

/// Returns `None` if the server does not allow `CONFIG`.
async fn config(connection: &mut Connection, home: &str, name: &str) -> Option<u64> {
    // The key of the first command chooses the node.
    let mut asked = redis::pipe();
    asked.cmd("EXISTS").arg(home).ignore();
    asked.cmd("CONFIG").arg("GET").arg(name);
    let (found,) = asked.query_async::<((String, String),)>(connection).await.ok()?;
    found.1.parse().ok()
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_harmful_setting_gives_its_advice() {
        let of =
            |policy: &str| Settings { maxmemory: 1, policy: policy.into(), ..Default::default() };
        let evicted = |policy: &str| vec![Advice::LogMayBeEvicted { policy: policy.into() }];
        let slow = Duration::from_secs(60);
        let rows = [
            (Settings::default(), vec![]),
            (Settings { maxmemory: 0, ..of("noeviction") }, vec![]),
            (of("noeviction"), vec![Advice::Noeviction]),
            (of("allkeys-lru"), evicted("allkeys-lru")),
            (of("allkeys-lfu"), evicted("allkeys-lfu")),
            (of("allkeys-random"), evicted("allkeys-random")),
            (of("volatile-lru"), vec![]),
            (of("volatile-lfu"), vec![]),
            (of("volatile-random"), vec![]),
            (of("volatile-ttl"), vec![]),
            (
                Settings { replicas: 2, min_replicas: Some(0), ..Default::default() },
                vec![Advice::MayWriteAlone { replicas: 2 }],
            ),
            (Settings { replicas: 2, min_replicas: Some(1), ..Default::default() }, vec![]),
            (Settings { replicas: 2, min_replicas: None, ..Default::default() }, vec![]),
            (
                Settings { node_timeout: Some(slow), ..Default::default() },
                vec![Advice::SlowFailover { node_timeout: slow }],
            ),
        ];
        for (settings, expected) in rows {
            assert_eq!(settings.advice(), expected, "{settings:?}");
        }
    }
}
