//! The addresses of a server or a cluster, and the clients made from them.

use std::time::Duration;

use redis::{
    Client, RedisResult, cluster::ClusterClient, cluster_read_routing::RandomReplicaStrategy,
};

/// A server or a cluster.
#[derive(Clone)]
pub(crate) enum Server {
    Single(Box<Client>),
    Cluster(Box<ClusterClient>),
}

/// The URLs of a server or a cluster, and the certificates. All clients are made from these.
#[derive(Clone)]
pub(crate) struct Addresses {
    pub(crate) urls: Vec<String>,
    pub(crate) is_cluster: bool,
    #[cfg(feature = "tls")]
    pub(crate) certificates: crate::tls::Certificates,
}

impl Addresses {
    pub(crate) fn new(urls: Vec<String>, is_cluster: bool) -> Self {
        Self {
            urls,
            is_cluster,
            #[cfg(feature = "tls")]
            certificates: crate::tls::Certificates::default(),
        }
    }

    /// Returns the single server, or the cluster. With `replicas_too`, a cluster also reads from its replicas.
    pub(crate) fn server(&self, replicas_too: bool) -> RedisResult<Server> {
        if !self.is_cluster {
            let url = self.urls.first().map_or("", String::as_str);
            return Ok(Server::Single(Box::new(self.client(url)?)));
        }
        let cluster = ClusterClient::builder(self.urls.iter().map(String::as_str))
            .retries(2)
            .connection_timeout(Duration::from_secs(1))
            .response_timeout(Duration::from_secs(5));
        let cluster = if replicas_too {
            cluster.read_routing_strategy(RandomReplicaStrategy)
        } else {
            cluster
        };
        #[cfg(feature = "tls")]
        let cluster = if self.urls.iter().any(|url| is_tls(url)) {
            self.certificates.given_to(cluster)
        } else {
            cluster
        };
        Ok(Server::Cluster(Box::new(cluster.build()?)))
    }

    /// Returns a replica of a single server.
    pub(crate) fn replica(&self, url: &str) -> RedisResult<Server> {
        Ok(Server::Single(Box::new(self.client(url)?)))
    }

    /// Returns the addresses for reports.
    pub(crate) fn shown(&self) -> String {
        self.urls.iter().map(|url| shown(url)).collect::<Vec<_>>().join(",")
    }

    /// A single server.
    pub(crate) fn client(&self, url: &str) -> RedisResult<Client> {
        #[cfg(feature = "tls")]
        if is_tls(url) {
            return self.certificates.client(url);
        }
        Client::open(url)
    }
}

/// Returns the address of a URL, without credentials and options: `host:port`, or the path of a socket.
pub(crate) fn shown(url: &str) -> String {
    let Some(url) = redis::parse_redis_url(url) else { return String::new() };
    match url.host_str() {
        Some(host) => format!("{host}:{}", url.port().unwrap_or(REDIS_PORT)),
        None => url.path().to_owned(),
    }
}

const REDIS_PORT: u16 = 6379;

#[cfg(feature = "tls")]
pub(crate) fn is_tls(url: &str) -> bool {
    url.starts_with("rediss:") || url.starts_with("valkeys:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_address_has_no_credentials() {
        for (url, address) in [
            ("redis://user:secret@redis.example:7000/3", "redis.example:7000"),
            ("redis://redis.example", "redis.example:6379"),
            ("redis+unix:///run/redis.sock?db=1&pass=secret", "/run/redis.sock"),
            ("nonsense", ""),
        ] {
            assert_eq!(shown(url), address, "{url}");
        }
    }
}
