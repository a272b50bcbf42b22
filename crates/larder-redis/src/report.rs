//! Reports the state of the servers for [`Stats`](larder_core::Stats).

use larder_core::store::{BoxFuture, ServerReport, ServerState, ServerUsage, StoreError};

use crate::{bus::RedisBus, store::RedisStore};

/// The servers of a second level and its log.
#[derive(Debug)]
pub(crate) struct RedisReport {
    pub(crate) store: RedisStore,
    pub(crate) bus: RedisBus,
}

impl ServerReport for RedisReport {
    fn servers(&self) -> Vec<ServerState> {
        let mut servers = self.store.states();
        servers.push(self.bus.state());
        servers
    }

    fn usage(&self) -> BoxFuture<'_, Result<ServerUsage, StoreError>> {
        Box::pin(self.store.usage())
    }
}

/// Returns the usage that the answers to `INFO memory` of all servers give, with the number of keys.
pub(crate) fn usage_of<'a>(entries: u64, infos: impl IntoIterator<Item = &'a str>) -> ServerUsage {
    let (mut used, mut limit, mut is_limited) = (0_u64, 0_u64, true);
    for info in infos {
        let of = |name: &str| -> u64 {
            let line =
                info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|number| number.parse().ok()).unwrap_or_default()
        };
        used += of("used_memory");
        let most = of("maxmemory");
        is_limited &= most > 0;
        limit += most;
    }
    let usage = ServerUsage::new(entries, used);
    if is_limited && limit > 0 { usage.capacity_bytes(limit) } else { usage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_the_sum_of_all_servers_and_has_a_limit_if_each_has_one() {
        let limited = "# Memory\r\nused_memory:1000\r\nused_memory_rss:9\r\nmaxmemory:4000\r\n";
        let open = "used_memory:500\r\nmaxmemory:0\r\n";
        assert_eq!(usage_of(3, [limited]), ServerUsage::new(3, 1000).capacity_bytes(4000));
        assert_eq!(usage_of(3, [limited, limited]), ServerUsage::new(3, 2000).capacity_bytes(8000));
        assert_eq!(usage_of(3, [limited, open]), ServerUsage::new(3, 1500));
        assert_eq!(usage_of(0, []), ServerUsage::new(0, 0));
    }
}
