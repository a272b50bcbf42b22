//! Sinks: where the operations of a queue end up.

use std::{fmt, hash::Hash};

use larder_core::store::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};

use crate::{journal::JournalId, operation::Operation};

/// A key of a queue. Any type that qualifies implements it.
///
/// [`Display`](fmt::Display) writes the tag of the value, after the name of the queue, so two keys must not have the same text.
/// The serialised form decides the partition, so it must not change while operations are queued.
pub trait SinkKey:
    Clone
    + Eq
    + Hash
    + Ord
    + fmt::Debug
    + fmt::Display
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> SinkKey for K where
    K: Clone
        + Eq
        + Hash
        + Ord
        + fmt::Debug
        + fmt::Display
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// Writes the operations of a queue to where they belong: a database, a service.
///
/// A sink that writes to a database stores the position of each partition in the transaction of the writes, so that a batch
/// whose outcome is unknown is not applied twice ([`Sink::position`]). A sink that cannot, as for an HTTP API, uses
/// [`Delivery`](crate::Delivery).
pub trait Sink: Send + Sync + 'static {
    /// The type of the keys.
    type Key: SinkKey;
    /// The type of the operations.
    type Operation: Operation;

    /// Returns the position of a partition of a queue. `None` if the sink has none.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    fn position(
        &self,
        queue: &str,
        partition: u32,
    ) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>>;

    /// Stores a position in place of any other, when the queue is opened.
    ///
    /// # Errors
    ///
    /// If it is not known to be stored.
    fn set_position(
        &self,
        queue: &str,
        partition: u32,
        position: SinkPosition,
    ) -> BoxFuture<'_, Result<(), SinkError>>;

    /// Writes a batch, and moves the position of its partition from `batch.after` to `batch.last` in the same transaction.
    ///
    /// # Errors
    ///
    /// If the batch is not known to be written. [`SinkErrorKind::Displaced`] if the position is not the expected one.
    fn write<'a>(
        &'a self,
        batch: &'a Batch<Self::Key, Self::Operation>,
    ) -> BoxFuture<'a, Result<(), SinkError>>;

    /// Whether the sink stores positions. If not, operations are not folded, and may be written more than once.
    fn stores_positions(&self) -> bool {
        true
    }
}

/// A sink whose values can be read together with its position.
pub trait ReadableSink: Sink {
    /// A snapshot of the values and positions.
    type Snapshot: SinkSnapshot<Self::Key, <Self::Operation as Operation>::Value>;

    /// Begins a snapshot. Values and positions that are read from it belong together.
    ///
    /// # Errors
    ///
    /// If the sink does not answer.
    fn snapshot(&self) -> BoxFuture<'_, Result<Self::Snapshot, SinkError>>;
}

/// A snapshot of a [`ReadableSink`].
pub trait SinkSnapshot<K, V>: Send + 'static {
    /// Returns the position of a partition of a queue. `None` if the sink has none.
    ///
    /// # Errors
    ///
    /// If the sink does not answer.
    fn position(
        &mut self,
        queue: &str,
        partition: u32,
    ) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>>;

    /// Returns the values of these keys, in order. `None` for a key without a value.
    ///
    /// # Errors
    ///
    /// If the sink does not answer, or a value cannot be read.
    fn values<'a>(&'a mut self, keys: &'a [K]) -> BoxFuture<'a, Result<Vec<Option<V>>, SinkError>>;
}

/// The position of a partition in a sink: everything up to this number of this journal is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkPosition {
    /// The journal whose operations were written.
    pub journal: JournalId,
    /// The number of the last operation that was written; 0 before the first.
    pub number: u64,
}

/// Operations of one partition.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Batch<K, O> {
    /// The name of the queue.
    pub queue: String,
    /// The partition.
    pub partition: u32,
    /// The journal that numbers the operations.
    pub journal: JournalId,
    /// The position that the sink must have before.
    pub after: u64,
    /// The position that the sink has afterwards.
    pub last: u64,
    /// The operations. Those of one key are in the order in which they were accepted, and those that could be folded are one.
    pub operations: Vec<BatchOperation<K, O>>,
}

/// An operation of a batch: one of a caller, or several of one key that were folded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatchOperation<K, O> {
    /// Its key.
    pub key: K,
    /// The operation.
    pub operation: O,
    /// The number of the last operation in it.
    pub number: u64,
}

/// A failure of a sink.
#[derive(Debug)]
pub struct SinkError {
    kind: SinkErrorKind,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// What a failure of a sink means for the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SinkErrorKind {
    /// The sink cannot be reached or is busy. The same operations are tried again, for as long as it takes.
    Unavailable,
    /// The sink does not accept an operation of the batch. The batch is halved until that operation is alone.
    Rejected,
    /// The position is not the expected one, because another process has written, or the sink was replaced.
    Displaced,
}

impl SinkError {
    /// Creates an error of this kind with its cause.
    pub fn new(
        kind: SinkErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, source: source.into() }
    }

    /// Creates the error of a sink that cannot be reached.
    pub fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(SinkErrorKind::Unavailable, source)
    }

    /// Creates the error of a sink that does not accept an operation.
    pub fn rejected(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(SinkErrorKind::Rejected, source)
    }

    /// Returns the kind of the failure.
    pub fn kind(&self) -> SinkErrorKind {
        self.kind
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            SinkErrorKind::Unavailable => "the sink cannot be reached",
            SinkErrorKind::Rejected => "the sink rejects an operation",
            SinkErrorKind::Displaced => "the sink has another position",
        };
        write!(f, "{what}: {}", self.source)
    }
}

impl std::error::Error for SinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}
