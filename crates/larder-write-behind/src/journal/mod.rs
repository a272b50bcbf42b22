//! Journals: where operations are until the sink has them.
//!
//! A journal numbers the operations of a queue in the order in which it accepts them. It stores an operation before the
//! caller hears that it is accepted, and removes it after the sink has it. Operations that the sink rejects go to a second
//! list, in the same step in which they leave the first.

#[cfg(feature = "disk")]
pub(crate) mod disk;
#[cfg(all(test, feature = "disk"))]
mod disk_tests;
pub(crate) mod memory;
mod record;

use std::fmt;

use larder_core::store::BoxFuture;

pub use self::record::{DeadRecord, Draft, JournalId, Record, Recovered};

/// Stores the operations of one queue.
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    /// Whether accepted operations survive the end of the process.
    fn is_durable(&self) -> bool;

    /// Whether several processes write to this journal. Then each of them has to [follow](Self::follow) it.
    fn is_shared(&self) -> bool {
        false
    }

    /// Begins to pass the events of a shared journal to `events`, in the order of their numbers. An operation of this process
    /// is accepted after its own event was passed. Larder calls this once, after [`recover`](Self::recover); an event may
    /// repeat what that returned.
    fn follow(&self, events: JournalEvents) {
        drop(events);
    }

    /// Waits until the events of all operations were passed that any process was told are accepted.
    ///
    /// # Errors
    ///
    /// If that does not happen in time.
    fn catch_up(&self) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Takes or extends the lease to write the operations of a partition to the sink. It only saves work: the position of
    /// the sink decides.
    ///
    /// # Errors
    ///
    /// If the journal does not answer.
    fn flush_lease(&self, partition: u32) -> BoxFuture<'_, Result<FlushLease, JournalError>> {
        let _ = partition;
        Box::pin(std::future::ready(Ok(FlushLease::Held)))
    }

    /// Returns everything that is stored. Larder calls this once, first.
    ///
    /// # Errors
    ///
    /// If the journal cannot be read, or was created for another number of partitions.
    fn recover(&self, partitions: u32) -> BoxFuture<'_, Result<Recovered, JournalError>>;

    /// Stores an operation, and calls `accepted` with its number once it is durable. The calls are made one at a time and
    /// in the order of the numbers, which is the order of the calls of `append`.
    fn append(&self, draft: Draft, accepted: Accepted);

    /// Moves dead records back, in order and under new numbers, in one step that is durable when it returns. Returns the new
    /// numbers.
    ///
    /// # Errors
    ///
    /// If that is not known to be durable. The records are dead, then.
    fn revive(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<Vec<u64>, JournalError>>;

    /// Notes that the sink has all operations of a partition up to a number, which are removed. If the process ends
    /// before that is durable, the sink is given them again.
    fn applied(&self, partition: u32, number: u64);

    /// Moves records to the list of dead records, in one step that is durable when it returns.
    ///
    /// # Errors
    ///
    /// If that is not known to be durable. The records are not dead, then.
    fn bury(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<(), JournalError>>;

    /// Removes records from both lists, in one step that is durable when it returns.
    ///
    /// # Errors
    ///
    /// If that is not known to be durable.
    fn discard(&self, numbers: Vec<u64>) -> BoxFuture<'_, Result<(), JournalError>>;

    /// Notes that the sink has a position for this journal, and that later operations get numbers above `last`.
    ///
    /// # Errors
    ///
    /// If that is not known to be durable.
    fn register(&self, last: u64) -> BoxFuture<'_, Result<(), JournalError>>;

    /// Stores what was given to the journal before, and releases it, so that another process can open it.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Receives the events of a shared journal.
pub type JournalEvents = std::sync::Arc<dyn Fn(JournalEvent) + Send + Sync>;

/// A change of a shared journal.
#[derive(Clone, Debug)]
pub enum JournalEvent {
    /// An operation was accepted.
    Added {
        /// The operation.
        record: Record,
        /// Whether this process has written it.
        is_own: bool,
    },
    /// The sink has the operations of a partition up to a number.
    Applied {
        /// The partition.
        partition: u32,
        /// The number.
        number: u64,
    },
    /// Operations became dead.
    Buried(Vec<DeadRecord>),
    /// Operations were discarded, or dead ones were revived under other numbers.
    Removed(Vec<u64>),
    /// The journal cannot be followed any more, for this reason.
    Lost(String),
}

/// The right to write the operations of a partition to the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushLease {
    /// Another process has it.
    Other,
    /// This process had it already.
    Held,
    /// This process has just taken it.
    Taken,
}

/// Receives the number of an operation, or the reason why it is not accepted.
pub type Accepted = Box<dyn FnOnce(Result<u64, JournalError>) + Send>;

/// A failure of a journal.
#[derive(Clone, Debug)]
pub struct JournalError(std::sync::Arc<JournalFailure>);

#[derive(Debug)]
struct JournalFailure {
    what: String,
    is_overtaken: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl JournalError {
    /// Creates an error with a message.
    pub fn new(what: impl Into<String>) -> Self {
        Self(std::sync::Arc::new(JournalFailure {
            what: what.into(),
            is_overtaken: false,
            source: None,
        }))
    }

    /// Creates the error of a step that another process has overtaken, so that it has to be prepared anew.
    pub fn overtaken() -> Self {
        Self(std::sync::Arc::new(JournalFailure {
            what: "another process has changed the queue in the meantime".to_owned(),
            is_overtaken: true,
            source: None,
        }))
    }

    pub(crate) fn is_overtaken(&self) -> bool {
        self.0.is_overtaken
    }

    /// Creates an error with a message and a cause.
    pub fn because(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = Some(source.into());
        Self(std::sync::Arc::new(JournalFailure { what: what.into(), is_overtaken: false, source }))
    }
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)
    }
}

impl std::error::Error for JournalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}
