//! The journal of a queue that may be lost with its process.

use larder_core::store::BoxFuture;
use parking_lot::Mutex;

use super::{Accepted, DeadRecord, Draft, Journal, JournalError, JournalId, Recovered};

/// Stores nothing. Operations that the sink does not have are lost when the process ends, whether or not they were
/// accepted.
#[derive(Debug, Default)]
#[doc(alias("volatile"))]
pub struct Memory {
    last: Mutex<u64>,
}

impl Memory {
    /// Creates the journal. Choose it only for operations that may be lost.
    pub fn lost_on_crash() -> Self {
        Self::default()
    }
}

impl Journal for Memory {
    fn is_durable(&self) -> bool {
        false
    }

    fn recover(&self, _: u32) -> BoxFuture<'_, Result<Recovered, JournalError>> {
        let recovered = Recovered {
            id: JournalId::random(),
            is_registered: false,
            last: 0,
            applied: Default::default(),
            records: Vec::new(),
            dead: Vec::new(),
        };
        Box::pin(std::future::ready(Ok(recovered)))
    }

    fn append(&self, _: Draft, accepted: Accepted) {
        // The lock keeps the calls in the order of the numbers.
        let mut last = self.last.lock();
        *last += 1;
        accepted(Ok(*last));
    }

    fn revive(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<Vec<u64>, JournalError>> {
        let mut last = self.last.lock();
        let first = *last + 1;
        *last += dead.len() as u64;
        Box::pin(std::future::ready(Ok((first..=*last).collect())))
    }

    fn applied(&self, _: u32, _: u64) {}

    fn bury(&self, _: Vec<DeadRecord>) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn discard(&self, _: Vec<u64>) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn register(&self, _: u64) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
