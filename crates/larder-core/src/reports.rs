//! The state of parts that the engine does not own: the servers of a second level, and write-behind queues. They report
//! it for [`Stats`](crate::Stats).

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::store::{BoxFuture, StoreError};

/// The servers of a second level or of a log, which report their state.
pub trait ServerReport: fmt::Debug + Send + Sync + 'static {
    /// Returns the state of each connection, as this process knows it. It does not ask the servers.
    fn servers(&self) -> Vec<ServerState>;

    /// Asks the servers how much they store.
    ///
    /// # Errors
    ///
    /// If they do not answer.
    fn usage(&self) -> BoxFuture<'_, Result<ServerUsage, StoreError>>;
}

/// A write-behind queue, which reports its state.
pub trait QueueReport: Send + Sync + 'static {
    /// Returns the state of the queue.
    fn stats(&self) -> WriteBehindStats;
}

/// The state of a connection to a server, with its circuit breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServerState {
    /// What larder uses the server for: `store`, `replica` or `log`.
    pub role: &'static str,
    /// The address, such as `redis.example:6379`, without credentials.
    pub address: String,
    /// The circuits, each with a breaker of its own: one for a single server, and one for each range of slots of a
    /// cluster.
    pub circuits: usize,
    /// The circuits that are open: their commands fail at once, because the server does not answer.
    pub open_circuits: usize,
}

impl ServerState {
    /// Creates the state of a connection whose circuits are closed.
    pub fn new(role: &'static str, address: impl Into<String>) -> Self {
        Self { role, address: address.into(), circuits: 1, open_circuits: 0 }
    }

    /// Sets how many circuits there are, and how many of them are open.
    #[must_use]
    pub fn circuits(self, circuits: usize, open_circuits: usize) -> Self {
        Self { circuits, open_circuits, ..self }
    }
}

/// What the servers of a second level store, everything else in their database included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServerUsage {
    /// Keys.
    pub entries: u64,
    /// Bytes of memory.
    pub bytes: u64,
    /// The limit of these bytes; `None` if there is no limit.
    pub capacity_bytes: Option<u64>,
}

impl ServerUsage {
    /// Creates the usage of servers with these keys and bytes, without a limit.
    pub fn new(entries: u64, bytes: u64) -> Self {
        Self { entries, bytes, capacity_bytes: None }
    }

    /// Sets the limit of the bytes.
    #[must_use]
    pub fn capacity_bytes(self, bytes: u64) -> Self {
        Self { capacity_bytes: Some(bytes), ..self }
    }
}

/// The state of a write-behind queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WriteBehindStats {
    /// The name of the queue.
    pub name: String,
    /// The operations that the sink does not have.
    pub queued: usize,
    /// The time for which the oldest of them has been in the queue of this process.
    pub oldest: Duration,
    /// The operations that the sink has rejected, and those behind them.
    pub dead_letters: usize,
    /// The operations that were written since the queue was opened.
    pub written: u64,
    /// The transactions in which they were written.
    pub batches: u64,
    /// The attempts that failed.
    pub failures: u64,
    /// Why the queue has stopped, if it has.
    pub stopped: Option<String>,
}

/// The parts that report to one larder.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    servers: Option<Arc<dyn ServerReport>>,
    usage: Mutex<LastUsage>,
    queues: Mutex<Vec<Queue>>,
}

/// The last answer to the question how much the servers store.
#[derive(Clone, Copy, Debug, Default)]
struct LastUsage {
    asked: Option<Instant>,
    usage: Option<ServerUsage>,
}

/// A queue that reports as long as it exists.
struct Queue(Weak<dyn QueueReport>);

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queue").finish_non_exhaustive()
    }
}

impl Reports {
    pub(crate) fn new(servers: Option<Arc<dyn ServerReport>>) -> Self {
        Self { servers, ..Self::default() }
    }

    pub(crate) fn servers(&self) -> Vec<ServerState> {
        self.servers.as_ref().map(|servers| servers.servers()).unwrap_or_default()
    }

    /// Returns what the servers stored when they were last asked.
    pub(crate) fn usage(&self) -> Option<ServerUsage> {
        self.usage.lock().usage
    }

    /// Asks the servers how much they store, unless that was asked less than 10 s ago. The usage of servers that do not
    /// answer within a second is unknown.
    pub(crate) async fn ask_for_usage(&self) {
        let Some(servers) = &self.servers else { return };
        {
            let mut last = self.usage.lock();
            if last.asked.is_some_and(|asked| asked.elapsed() < BETWEEN_QUESTIONS) {
                return;
            }
            last.asked = Some(Instant::now());
        }
        let answer = tokio::time::timeout(LONGEST_QUESTION, servers.usage()).await;
        self.usage.lock().usage = answer.ok().and_then(Result::ok);
    }

    pub(crate) fn add_queue(&self, queue: Weak<dyn QueueReport>) {
        let mut queues = self.queues.lock();
        queues.retain(|queue| queue.0.strong_count() > 0);
        queues.push(Queue(queue));
    }

    pub(crate) fn queues(&self) -> Vec<WriteBehindStats> {
        let queues: Vec<_> =
            self.queues.lock().iter().filter_map(|queue| queue.0.upgrade()).collect();
        queues.iter().map(|queue| queue.stats()).collect()
    }
}

/// How often larder asks the servers of the second level how much they store.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(10);
/// How long larder waits for the answer.
const LONGEST_QUESTION: Duration = Duration::from_secs(1);
