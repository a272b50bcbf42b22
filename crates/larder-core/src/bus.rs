//! The log of invalidations, and the [`Bus`] that carries it between processes.
//!
//! A [`Bus`] appends records, each with the next number of an *epoch*, and returns them in order. A new epoch is
//! drawn at random whenever the log may no longer be the same (a server that came back empty, a fail-over that lost
//! the last records). Numbers of two epochs are never compared, so a log that lost records invalidates all entries
//! that were filled before.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::target::{Mode, Selector};

/// The future of a store or a log.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Carries invalidations between the processes that share a cache.
///
/// The conformance suite of `larder-testkit` tests the contract of each method.
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Whether other processes append to this log too, so that it has to be followed.
    fn is_shared(&self) -> bool;

    /// Sets how long records matter: no entry lives longer than `longest`. Called once, before the first append.
    fn keep_for(&self, longest: Duration);

    /// Appends a record and returns its position.
    ///
    /// Returns only when the record is in the log. Appending a record twice is harmless.
    ///
    /// # Errors
    ///
    /// Any error means *not known to be appended*, and the caller appends again, unless the error carries the
    /// [position](BusError::appended_at) of the record.
    fn append<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<Position, BusError>>;

    /// Schedules a record: the next process that calls the log after the delay `after` appends it, even if its
    /// writer has ended by then. Returns the end of the log, with the epoch in which the record is scheduled. A
    /// record that the same writer schedules twice under the same `id` is scheduled once.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`]. A local log ends with its process, so it stores nothing and returns its end.
    fn schedule<'a>(
        &'a self,
        id: u64,
        record: &'a Record,
        after: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>>;

    /// Returns the end of the log: the position of its last record.
    ///
    /// `lost` names an epoch in which the caller saw records that this log no longer has: if the log still has that
    /// epoch, it draws a new one first.
    ///
    /// # Errors
    ///
    /// If the log does not answer, or cannot prove that it is the current one (a replica, a primary without
    /// quorum).
    fn end(&self, lost: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>>;

    /// Returns the records after `after`, in order. Waits up to `wait` for the first; an empty result proves
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`BusErrorKind::Gone`] if the log has another epoch or has dropped records after `after`.
    fn read(
        &self,
        after: Position,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>>;

    /// The time on the log's server, with the instant of this process at which it was read. All processes compute
    /// the age of second-level entries from it, since their own clocks may differ. `None` without such a server;
    /// then the wall clocks of all processes have to agree within a second.
    fn server_time(&self) -> Option<(Instant, SystemTime)> {
        None
    }

    /// Returns one page of the compacted log after number `after`: for each target the newest record of each mode,
    /// in order of number. All targets of one number are on the same page.
    ///
    /// # Errors
    ///
    /// As [`Bus::end`].
    fn compacted(&self, after: u64) -> BoxFuture<'_, Result<LogPage, BusError>>;
}

/// A page of the compacted log.
#[derive(Clone, Debug)]
pub struct LogPage {
    /// The epoch and the last number, both as they stood when the page was read.
    pub end: Position,
    /// Records up to this number may be missing: second-level entries that were filled before it are invalid.
    pub horizon: u64,
    /// Numbers and records.
    pub records: Vec<(u64, Record)>,
    /// Whether a further page follows.
    pub more: bool,
}

/// One life of the log. Two logs that cannot be known to be the same have different epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch(u128);

impl Epoch {
    /// Draws a random epoch of 128 bits.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// The epoch with these bits, as read from a log.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Its bits, to be stored in a log.
    pub const fn to_bits(self) -> u128 {
        self.0
    }
}

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the log.
    pub epoch: Epoch,
    /// The number of a record, 0 before the first.
    pub number: u64,
}

/// The identity of a writer of the log, drawn once for each [`Larder`](crate::Larder); also that of a fill lock's
/// holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriterId(u128);

impl WriterId {
    /// Draws a random identity of 128 bits.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// Its bits.
    pub const fn to_bits(self) -> u128 {
        self.0
    }
}

/// One record of the log: an invalidation, including the targets that rules added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The larder that appended it.
    pub origin: WriterId,
    /// Hard or soft.
    pub mode: Mode,
    /// The targets that it invalidates.
    pub what: Vec<Selector>,
}

/// The log of a single process: a counter.
#[derive(Debug)]
pub struct LocalBus {
    epoch: Epoch,
    last: AtomicU64,
}

impl LocalBus {
    /// An empty log of a new epoch.
    pub fn new() -> Self {
        Self { epoch: Epoch::random(), last: AtomicU64::new(0) }
    }

    fn at(&self, number: u64) -> Position {
        Position { epoch: self.epoch, number }
    }
}

impl Default for LocalBus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus for LocalBus {
    fn is_shared(&self) -> bool {
        false
    }

    /// Does nothing: this log stores no records. The registry of the process decides which entries they reach.
    fn keep_for(&self, _: Duration) {}

    fn append<'a>(&'a self, _: &'a Record) -> BoxFuture<'a, Result<Position, BusError>> {
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        Box::pin(std::future::ready(Ok(self.at(number))))
    }

    /// Stores nothing: the process that schedules a record holds it for as long as it runs.
    fn schedule<'a>(
        &'a self,
        _: u64,
        _: &'a Record,
        _: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>> {
        self.end(None)
    }

    fn end(&self, _: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>> {
        Box::pin(std::future::ready(Ok(self.at(self.last.load(Ordering::Acquire)))))
    }

    fn read(
        &self,
        _: Position,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>> {
        // The larder applied its own records when it appended them, and no other process appends here.
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            Ok(Vec::new())
        })
    }

    fn compacted(&self, _: u64) -> BoxFuture<'_, Result<LogPage, BusError>> {
        let end = self.at(self.last.load(Ordering::Acquire));
        let page = LogPage { end, horizon: end.number, records: Vec::new(), more: false };
        Box::pin(std::future::ready(Ok(page)))
    }
}

/// A failed call to the log.
#[derive(Debug)]
pub struct BusError {
    kind: BusErrorKind,
    appended_at: Option<Position>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kind of a failure of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusErrorKind {
    /// No answer in time; the command may have been carried out.
    Timeout,
    /// The log cannot be reached.
    Unreachable,
    /// The log has another epoch, or has dropped the records asked for.
    Gone,
    /// The log refused the command: it is a replica, has no quorum or is out of memory.
    Refused,
    /// The record is in the log, but fewer servers have acknowledged it than required.
    Unconfirmed,
}

impl BusError {
    /// An error of this kind.
    pub fn new(kind: BusErrorKind) -> Self {
        Self { kind, appended_at: None, source: None }
    }

    /// The record is in the log at `at`, but fewer servers have acknowledged it than required. It may be lost with
    /// its server; larder appends it again if that server is replaced.
    pub fn unconfirmed(at: Position) -> Self {
        Self { appended_at: Some(at), ..Self::new(BusErrorKind::Unconfirmed) }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The position of the record, if it is in the log despite this error.
    pub fn appended_at(&self) -> Option<Position> {
        self.appended_at
    }

    /// The kind of the failure.
    pub fn kind(&self) -> BusErrorKind {
        self.kind
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            BusErrorKind::Timeout => "the invalidation log did not answer in time",
            BusErrorKind::Unreachable => "the invalidation log cannot be reached",
            BusErrorKind::Gone => {
                "the invalidation log has another epoch, or has dropped the records asked for"
            }
            BusErrorKind::Refused => "the invalidation log refused the command",
            BusErrorKind::Unconfirmed => "too few servers have acknowledged the record",
        })
    }
}

impl std::error::Error for BusError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// 128 bits from the seeds that the standard library draws for its hash maps: random, and no dependency.
fn random_bits() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = |salt: u8| u128::from(RandomState::new().hash_one((salt, std::process::id())));
    half(0) << 64 | half(1)
}
