//! Real Redis servers, each started for one test on a free port and stopped by process id.

use std::{
    convert::Infallible,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use larder::{Larder, LoadHandle, Policy};
use larder_redis::Redis;
pub(crate) use tests::{PATIENCE, until};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A server that stops at the end of the test, also if that fails.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) port: u16,
    pub(crate) directory: PathBuf,
    flags: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

pub(crate) fn free_port() -> u16 {
    // A cluster node also needs the port that is 10,000 higher.
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
}

impl Server {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("larder-redis-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let port = free_port();
        let child = spawn(port, &directory, &flags);
        let server = Self { child, port, directory, flags };
        server.listens().await;
        server
    }

    pub(crate) fn redis(&self) -> Redis {
        Redis::open(&format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }

    async fn listens(&self) {
        let began = Instant::now();
        while self.cli(&["PING"]).trim() != "PONG" && !self.cli(&["PING"]).contains("NOAUTH") {
            assert!(began.elapsed() < PATIENCE, "the server does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn cli(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(command).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let mut kill = Command::new("kill");
        drop(kill.args([&format!("-{name}"), &*id]).stderr(Stdio::null()).status());
    }

    /// Kills the server, which loses all of its data.
    pub(crate) fn kill(&mut self) {
        self.signal("KILL");
        self.child.wait().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.port, &self.directory, &self.flags);
        self.listens().await;
    }
}

/// A cluster of servers: primaries, with the given number of replicas each.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    pub(crate) async fn start(primaries: usize, replicas: usize) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..primaries * (1 + replicas) {
            let flags = [
                ["--cluster-enabled", "yes"],
                ["--cluster-node-timeout", "2000"],
                // A replica without contact to its primary for a while may take over all the same.
                ["--cluster-replica-validity-factor", "0"],
            ];
            nodes.push(Server::start(flags.as_flattened()).await);
        }
        let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let create = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"])
            .output()
            .unwrap();
        assert!(create.status.success(), "{}", String::from_utf8_lossy(&create.stdout));
        let cluster = Self { nodes };
        until("the cluster is ready", || async {
            // A replica without data could not take over.
            let is_ready = |node: &Server| {
                let role = node.cli(&["INFO", "replication"]);
                let has_all = role.contains("role:master") || role.contains("link_status:up");
                has_all && node.cli(&["CLUSTER", "INFO"]).contains("state:ok")
            };
            cluster.nodes.iter().all(is_ready)
        })
        .await;
        cluster
    }

    pub(crate) fn redis(&self) -> Redis {
        let urls = self.nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.port));
        let urls: Vec<_> = urls.collect();
        Redis::cluster(urls.iter().map(String::as_str)).unwrap()
    }

    /// Asserts that no command ever spanned several slots.
    pub(crate) fn assert_no_cross_slot(&self) {
        for node in &self.nodes {
            let errors = node.cli(&["INFO", "errorstats"]);
            assert!(!errors.contains("CROSSSLOT"), "{errors}");
        }
    }
}

fn spawn(port: u16, directory: &PathBuf, flags: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--protected-mode", "no"])
        .args(["--repl-diskless-sync-delay", "0"])
        .args(flags)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

pub(crate) fn larder(redis: Redis) -> Larder {
    Larder::builder()
        .tag_table_slots(1 << 18)
        .max_lag(Duration::from_millis(300))
        .second_level(redis)
        .build()
        .unwrap()
}

pub(crate) async fn load(larder: &Larder, value: u32) -> u32 {
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(value) };
    *larder.get_or_load("a", Policy::ttl(MINUTE).tag("t"), load).await.unwrap()
}

pub(crate) async fn synced(larder: &Larder) {
    tokio::time::timeout(PATIENCE, larder.synced()).await.expect("it joins");
}
