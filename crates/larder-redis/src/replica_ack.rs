//! Whether replicas have what was appended.
//!
//! `WAIT` holds up all that follows on its connection, so it has one of its own. A server passes on what it is told
//! in order: a replica that has what this connection wrote has all that any connection wrote before. So one
//! question answers for all appends before it, and at most two are waited for: the one under way, which may have
//! been asked too early, and the one after it.

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

/// Asks how many replicas have what was appended.
#[derive(Debug)]
pub(crate) struct ReplicaAck {
    link: Arc<SharedConnection>,
    /// A key in the slot of the log, which chooses its server.
    home: String,
    last: Mutex<Last>,
    /// How many questions were begun.
    begun: AtomicU64,
}

/// The question before, and what came of it.
#[derive(Debug)]
struct Last {
    begun: u64,
    answer: Option<Answer>,
}

/// How far the log of the server had come, and how many replicas have all of that.
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

    /// Whether that many replicas have what was appended here. An answer that does not come is none.
    pub(crate) async fn is_on(&self, replicas: u32, appended: Position) -> bool {
        let came = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        let tells = |answer: &Answer| {
            answer.at.epoch == appended.epoch && answer.at.number >= appended.number
        };
        // One that was begun since would have told, had it been answered: it is not asked once more by each who waited.
        if last.begun <= came && !last.answer.as_ref().is_some_and(tells) {
            let begun = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            *last = Last { begun, answer: self.ask(replicas).await };
        }
        // Another epoch is another server: what it has says nothing of what was appended.
        last.answer.as_ref().is_some_and(|answer| tells(answer) && answer.copies >= replicas)
    }

    async fn ask(&self, replicas: u32) -> Option<Answer> {
        let home = &self.home;
        let asking = |mut connection| async move { copies(&mut connection, home, replicas).await };
        let answer = match self.link.run(PATIENCE, asking).await {
            Ok(answer) => answer,
            Err(failure) => {
                tracing::debug!(target: "larder", ?failure, "redis does not say what replicas have");
                None
            }
        };
        if answer.is_none_or(|answer| answer.copies < replicas) {
            // Perhaps it is no longer the server that the appends go to.
            self.link.forget();
        }
        answer
    }
}

/// How many replicas have what this connection has written, and all that was in the log before.
async fn copies(
    connection: &mut Connection,
    home: &str,
    replicas: u32,
) -> RedisResult<Option<Answer>> {
    let millis = u64::try_from(REPLICA_LIMIT.as_millis()).unwrap_or(u64::MAX);
    // A cluster would ask all its primaries; the key before it chooses the one. It has to be a write: what a
    // connection has not written it does not wait for.
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

/// How long replicas may take to have a record.
const REPLICA_LIMIT: Duration = Duration::from_millis(500);
/// And the server to say so.
const PATIENCE: Duration = Duration::from_secs(1);
