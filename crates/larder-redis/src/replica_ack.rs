//! Replica acknowledgement: checks that replicas have the records that were appended.
//!
//! `WAIT` blocks all commands after it on its connection, so it has its own connection. A server replicates its writes
//! in order, so a replica that has the write of this connection has every earlier write of any connection, too. So one
//! `WAIT` acknowledges all earlier appends, and an append waits for at most two: the `WAIT` in progress, which may have
//! begun too early, and the `WAIT` after it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use larder_core::store::Position;
use redis::RedisResult;
use tokio::sync::Mutex;

use crate::{
    bus::epoch_of,
    connection::{Connection, SharedConnection},
};

/// Asks the server how many replicas have the records that were appended.
#[derive(Debug)]
pub(crate) struct ReplicaAck {
    link: Arc<SharedConnection>,
    /// A key in the slot of the log, so that commands go to the server of the log.
    home: String,
    last: Mutex<Last>,
    /// The number of `WAIT`s that have begun so far.
    begun: AtomicU64,
}

/// The previous `WAIT` and its answer.
#[derive(Debug)]
struct Last {
    begun: u64,
    answer: Option<Answer>,
}

/// The position of the server's log, and how many replicas have everything up to it.
#[derive(Clone, Copy, Debug)]
struct Answer {
    at: Position,
    copies: u32,
}

impl ReplicaAck {
    pub(crate) fn new(link: Arc<SharedConnection>, home: String) -> Self {
        let last = Mutex::const_new(Last { begun: 0, answer: None });
        Self { link, home, last, begun: AtomicU64::new(0) }
    }

    /// Whether that many replicas have the record at `appended`. Returns `false` if `WAIT` is not answered.
    pub(crate) async fn is_on(&self, replicas: u32, appended: Position) -> bool {
        let came = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        let tells = |answer: &Answer| {
            answer.at.epoch == appended.epoch && answer.at.number >= appended.number
        };
        // A `WAIT` that began after this call covers the record. If it was not answered, the waiters do not each repeat
        // it.
        if last.begun <= came && !last.answer.as_ref().is_some_and(tells) {
            let begun = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            *last = Last { begun, answer: self.ask(replicas).await };
        }
        // Another epoch may be that of another server, whose replicas need not have this record.
        last.answer.as_ref().is_some_and(|answer| tells(answer) && answer.copies >= replicas)
    }

    async fn ask(&self, replicas: u32) -> Option<Answer> {
        let home = &self.home;
        let asking = |mut connection| async move { copies(&mut connection, home, replicas).await };
        let answer = match self.link.run(PATIENCE, asking).await {
            Ok(answer) => answer,
            Err(failure) => {
                tracing::debug!(target: "larder", ?failure, "redis did not answer WAIT: replicas are treated as if they did not have the record");
                None
            }
        };
        if answer.is_none_or(|answer| answer.copies < replicas) {
            // Appends may go to another server by now.
            self.link.forget();
        }
        answer
    }
}

/// Counts the replicas that have the write of this connection, and with it all earlier records of the log.
async fn copies(
    connection: &mut Connection,
    home: &str,
    replicas: u32,
) -> RedisResult<Option<Answer>> {
    let millis = u64::try_from(REPLICA_LIMIT.as_millis()).unwrap_or(u64::MAX);
    // The key before `WAIT` chooses the node of a cluster; `WAIT` alone would go to all primaries. `WAIT` covers only
    // writes of its own connection, so `HSET` writes a field first.
    let mut asked = redis::pipe();
    asked.cmd("HMGET").arg(home).arg("epoch").arg("last");
    asked.cmd("HSET").arg(home).arg("confirmed").arg(1).ignore();
    asked.cmd("WAIT").arg(replicas).arg(millis);
    type Reply = ((Option<String>, Option<u64>), u32);
    let ((epoch, number), copies): Reply = asked.query_async(connection).await?;
    let epoch = epoch.as_deref().and_then(epoch_of);
    let at = epoch.zip(number).map(|(epoch, number)| Position { epoch, number });
    Ok(at.map(|at| Answer { at, copies }))
}

/// The time that replicas have to acknowledge a record.
const REPLICA_LIMIT: Duration = Duration::from_millis(500);
/// The time that the server has to answer, including the `WAIT`.
const PATIENCE: Duration = Duration::from_secs(1);
