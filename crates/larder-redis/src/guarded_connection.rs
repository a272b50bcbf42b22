//! A connection to one server or one cluster, guarded by circuit breakers.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use larder_core::store::ServerState;
use redis::{RedisError, RedisResult};

use crate::{
    breaker::{Breaker, FailureKind},
    connection::{Connection, Failure, SharedConnection},
};

#[derive(Debug)]
pub(crate) struct GuardedConnection {
    name: &'static str,
    /// The address for reports, without credentials.
    address: String,
    link: Arc<SharedConnection>,
    /// One breaker for a single server. A cluster has a breaker for each range of slots, because its servers fail
    /// independently. A single breaker would stay closed while the other servers answer, and each command for a key of
    /// the failed server would wait.
    circuits: Box<[Breaker]>,
    open: AtomicUsize,
    /// Whether every failure drops the connection.
    is_impatient: bool,
}

impl GuardedConnection {
    pub(crate) fn new(name: &'static str, link: Arc<SharedConnection>) -> Self {
        Self::with_circuits(name, link, 1)
    }

    pub(crate) fn of_cluster(name: &'static str, link: Arc<SharedConnection>) -> Self {
        Self::with_circuits(name, link, CIRCUITS)
    }

    /// Sets the address for reports.
    pub(crate) fn at(self, address: &str) -> Self {
        Self { address: address.to_owned(), ..self }
    }

    /// Returns the state of the connection for [`Stats`](larder_core::Stats).
    pub(crate) fn state(&self) -> ServerState {
        let open = self.open.load(Ordering::Relaxed);
        ServerState::new(self.name, &*self.address).circuits(self.circuits.len(), open)
    }

    /// Creates a connection to the server of the log. Its commands are rare, so it already reconnects after the first
    /// failure, so that other processes see invalidations sooner after a failure.
    pub(crate) fn of_log(link: Arc<SharedConnection>) -> Self {
        Self { is_impatient: true, ..Self::with_circuits("log", link, 1) }
    }

    fn with_circuits(name: &'static str, link: Arc<SharedConnection>, circuits: usize) -> Self {
        let circuits = (0..circuits).map(|_| Breaker::new()).collect();
        let (address, open) = (String::new(), AtomicUsize::new(0));
        Self { name, address, link, circuits, open, is_impatient: false }
    }

    /// Returns the index of the breaker for a key, which is given in pieces.
    pub(crate) fn circuit_of(&self, pieces: &[&str]) -> usize {
        self.slot_of(pieces) / (SLOTS / self.circuits.len())
    }

    /// Returns the slot of a key, which is given in pieces; 0 if there is a single server.
    ///
    /// Source: [the cluster specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
    /// No key of larder has braces that would choose another slot.
    pub(crate) fn slot_of(&self, pieces: &[&str]) -> usize {
        if self.circuits.len() == 1 {
            return 0;
        }
        let mut slot = crc16::State::<crc16::XMODEM>::new();
        pieces.iter().for_each(|piece| slot.update(piece.as_bytes()));
        usize::from(slot.get()) % SLOTS
    }

    /// Runs commands for at most `deadline`; runs none while the circuit is open.
    pub(crate) async fn run<T, F, Fut>(
        &self,
        circuit: usize,
        deadline: Duration,
        commands: F,
    ) -> Result<T, Failure>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let circuit = &self.circuits[circuit];
        if !circuit.allows() {
            return Err(Failure::Unconnected);
        }
        let answers = circuit.answers();
        let outcome = self.link.run(deadline, commands).await;
        match &outcome {
            // The server answered other commands in the meantime, so only this command is slow, for example because it
            // or its answer is large.
            Err(Failure::Late) if circuit.answers() != answers => {}
            Ok(_) => self.note_success(circuit),
            Err(Failure::Redis(error)) if is_an_answer(error) => {
                self.note_success(circuit);
                if is_of_another_server(error) {
                    self.link.forget();
                }
            }
            Err(_) => self.note_failure(circuit),
        }
        outcome
    }

    fn note_success(&self, circuit: &Breaker) {
        if circuit.succeeded() && self.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!(target: "larder", server = self.name, "redis answers again: the circuit is closed");
        }
    }

    fn note_failure(&self, circuit: &Breaker) {
        let failed = circuit.failed();
        // A server that was suspended keeps its connections open forever, so the connection is dropped. A cluster
        // client detects that by itself, and a new client would query all servers while the commands for the healthy
        // servers wait.
        if self.circuits.len() == 1 && (failed != FailureKind::Closed || self.is_impatient) {
            self.link.forget();
        }
        if failed == FailureKind::Opened && self.open.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(target: "larder", server = self.name, "redis does not answer: the circuit is open, commands fail at once");
        }
    }

    /// Drops the connection; the next command opens a new one.
    pub(crate) fn forget(&self) {
        self.link.forget();
    }
}

/// Whether the server answered, and refused the command.
fn is_an_answer(error: &RedisError) -> bool {
    !(error.is_timeout() || crate::connection::is_broken(error))
}

/// Whether this server is no longer the primary, or no longer accepts our credentials, so that a new connection may
/// lead to a server that does. Refusals for lack of memory or during loading are excluded, because any server would
/// refuse.
fn is_of_another_server(error: &RedisError) -> bool {
    const ELSEWHERE: [&str; 7] =
        ["READONLY", "MASTERDOWN", "NOREPLICAS", "MOVED", "CLUSTERDOWN", "NOAUTH", "WRONGPASS"];
    error.code().is_some_and(|code| ELSEWHERE.contains(&code))
}

/// Each breaker covers 256 adjacent slots, because a server of a cluster has ranges of adjacent slots.
const CIRCUITS: usize = 64;
const SLOTS: usize = 16_384;

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::server::Server;

    #[tokio::test]
    async fn after_five_timeouts_in_a_row_commands_fail_at_once() {
        // The server accepts connections, and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let place = GuardedConnection::new(
            "test",
            SharedConnection::new(Server::Single(Box::new(client)), None),
        );
        let ask = || {
            let ping = |mut connection| async move {
                redis::cmd("PING").query_async::<String>(&mut connection).await
            };
            place.run(0, Duration::from_millis(20), ping)
        };
        for _ in 0..5 {
            assert!(ask().await.is_err_and(|failure| failure.is_late()));
        }
        assert!(matches!(ask().await, Err(Failure::Unconnected)));
    }

    #[tokio::test]
    async fn a_timeout_while_other_commands_are_answered_opens_no_circuit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        let commands = buffer[..read].iter().filter(|byte| **byte == b'*').count();
                        stream.write_all("+OK\r\n".repeat(commands).as_bytes()).await.unwrap();
                    }
                });
            }
        });
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let place = GuardedConnection::new(
            "test",
            SharedConnection::new(Server::Single(Box::new(client)), None),
        );
        let ping = || {
            let ping = |mut connection| async move {
                redis::cmd("PING").query_async::<String>(&mut connection).await
            };
            place.run(0, Duration::from_secs(2), ping)
        };
        // The answer has not arrived completely at the deadline.
        let large = || place.run(0, Duration::from_millis(20), |_| std::future::pending());
        let large = async || -> Result<String, Failure> { large().await };
        assert!(ping().await.is_ok());
        for _ in 0..10 {
            let (late, small) = tokio::join!(large(), ping());
            assert!(small.is_ok() && late.is_err_and(|failure| failure.is_late()));
        }
        assert!(place.circuits[0].allows());
        for _ in 0..5 {
            assert!(large().await.is_err());
        }
        assert!(
            matches!(ping().await, Err(Failure::Unconnected)),
            "no other command was answered in the meantime"
        );
    }

    #[tokio::test]
    async fn in_a_cluster_the_circuit_opens_only_for_the_slots_that_fail() {
        let client = redis::Client::open("redis://127.0.0.1:1").unwrap();
        let link = SharedConnection::new(Server::Single(Box::new(client)), None);
        let place = GuardedConnection::of_cluster("test", link);
        // Slots 12,182 and 866, as in the specification: foo and hello.
        let [foo, hello] = ["foo", "hello"].map(|key| place.circuit_of(&[key]));
        assert_eq!((foo, hello), (12_182 / 256, 866 / 256));
        assert_eq!(place.circuit_of(&["f", "oo"]), foo);
        for _ in 0..5 {
            place.note_failure(&place.circuits[foo]);
        }
        assert!(!place.circuits[foo].allows() && place.circuits[hello].allows());
        assert_eq!(place.open.load(Ordering::Relaxed), 1);
        place.note_success(&place.circuits[hello]);
        place.note_success(&place.circuits[foo]);
        assert!(place.circuits[foo].allows() && place.open.load(Ordering::Relaxed) == 0);
    }
}
