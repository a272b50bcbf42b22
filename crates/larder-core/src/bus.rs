//! The log of invalidations, and the [`Bus`] that carries it between processes.
//!
//! A [`Bus`] appends records, each with the next number of an *epoch*, and returns them in order. The log draws a new
//! epoch at random whenever it may no longer be the same log (a server came back empty, or a failover lost the last
//! records). Numbers of different epochs are never compared, so a log that has lost records invalidates all entries
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

use crate::{
    record_note::RecordNote,
    rules::Rules,
    target::{Mode, Selector},
};

/// The future of a store or a log.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Carries invalidations between the processes that share a cache.
///
/// The conformance suite of `larder-testkit` tests the contract of each method.
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Whether other processes append to this log too, so that it has to be followed.
    fn is_shared(&self) -> bool;

    /// Sets how long the log has to retain records, because no entry lives longer than `longest`. Larder calls this
    /// once, before the first append.
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

    /// Schedules a record. The next process that calls the log after the delay `after` appends the record, even if its
    /// writer has ended by then. Returns the end of the log, with the epoch in which the record is scheduled. A record
    /// that the same writer schedules twice under the same `id` is scheduled once.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`]. A local log does not outlive its process, so it stores nothing and returns its end.
    fn schedule<'a>(
        &'a self,
        id: u64,
        record: &'a Record,
        after: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>>;

    /// Returns the end of the log, which is the position of its last record.
    ///
    /// `lost` is an epoch in which the caller saw records that this log no longer has. If the log still has that epoch,
    /// it draws a new epoch first.
    ///
    /// # Errors
    ///
    /// If the log does not answer, or cannot prove that it is the current log (a replica, a primary without quorum).
    fn end(&self, lost: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>>;

    /// Returns the records after `after`, in order. Waits up to `wait` for the first record; an empty result does not
    /// prove that there are no records.
    ///
    /// # Errors
    ///
    /// [`BusErrorKind::Gone`] if the log has another epoch or has dropped records after `after`.
    fn read(
        &self,
        after: Position,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>>;

    /// Returns the time on the log's server, with the instant of this process at which that time was read. All
    /// processes compute the age of second-level entries from it, since their own clocks may differ. `None` if the log
    /// has no server; the wall clocks of all processes then have to agree within one second.
    fn server_time(&self) -> Option<(Instant, SystemTime)> {
        None
    }

    /// Publishes the dependency rules of this process beside the log, for clients that invalidate without being part of the
    /// application. Larder calls this when it begins to follow the log, and each ten minutes. A log that stores nothing
    /// beside its records may ignore it.
    ///
    /// # Errors
    ///
    /// If the rules are not known to be published.
    fn publish_rules<'a>(&'a self, rules: &'a Rules) -> BoxFuture<'a, Result<(), BusError>> {
        let _ = rules;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Returns the rules that processes have published within the last hour, all together. `None` if none has.
    ///
    /// # Errors
    ///
    /// If the log does not answer, or has rules that this version of larder cannot read.
    fn published_rules(&self) -> BoxFuture<'_, Result<Option<Rules>, BusError>> {
        Box::pin(std::future::ready(Ok(None)))
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
    /// The epoch and the last number at the time when the page was read.
    pub end: Position,
    /// Records up to this number may be missing, so second-level entries that were filled before it are invalid.
    pub horizon: u64,
    /// Numbers and records.
    pub records: Vec<(u64, Record)>,
    /// Whether a further page follows.
    pub more: bool,
}

/// One life of the log. Two logs have different epochs unless they are known to be the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch(u128);

impl Epoch {
    /// Draws a random epoch of 128 bits.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// Creates the epoch with these bits, as read from a log.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns its bits, for a log to store.
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

/// The identity of a writer of the log, drawn at random once for each [`Larder`](crate::Larder). The holder of a fill
/// lock is identified by a `WriterId` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriterId(u128);

impl WriterId {
    /// Draws a random identity of 128 bits.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// Returns its bits.
    pub const fn to_bits(self) -> u128 {
        self.0
    }
}

/// The identity of one committed transaction of a database, drawn at random. A record that names it covers changes of
/// that transaction, so a follower of the database's outbox does not have to invalidate them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommitId(u128);

impl CommitId {
    /// Draws a random identity of 128 bits.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// Parses the text that [`Display`](fmt::Display) writes: 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_whole = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_whole.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
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
    /// The transaction that made the changes, if the record was appended after its commit.
    pub commit: Option<CommitId>,
    /// The reason and the actor, which are not part of the encoding of a record. A log writes them apart from it.
    #[serde(skip)]
    pub note: RecordNote,
}

impl Record {
    /// Returns the records of an invalidation. A record must not be too large, because the log appends it as a whole, and
    /// each process that starts reads it as a whole.
    pub(crate) fn of(what: &[Selector], mode: Mode, origin: WriterId) -> Vec<Self> {
        let record = |what: &[Selector]| Self {
            origin,
            mode,
            what: what.to_vec(),
            commit: None,
            note: RecordNote::default(),
        };
        what.chunks(MOST_SELECTORS).map(record).collect()
    }
}

/// Maximum number of selectors in one record of the log.
const MOST_SELECTORS: usize = 5_000;

/// The log of a single process, which is only a counter.
#[derive(Debug)]
pub struct LocalBus {
    epoch: Epoch,
    last: AtomicU64,
}

impl LocalBus {
    /// Creates an empty log with a new epoch.
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

    /// Does nothing, because this log does not store records. The registry of the process decides which entries they
    /// reach.
    fn keep_for(&self, _: Duration) {}

    fn append<'a>(&'a self, _: &'a Record) -> BoxFuture<'a, Result<Position, BusError>> {
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        Box::pin(std::future::ready(Ok(self.at(number))))
    }

    /// Stores nothing, because the process that schedules a record holds it for as long as it runs.
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
    /// The log did not answer in time; it may have executed the command.
    Timeout,
    /// The log cannot be reached.
    Unreachable,
    /// The log has another epoch, or has dropped the requested records.
    Gone,
    /// The log refused the command because it is a replica, has no quorum or is out of memory.
    Refused,
    /// The record is in the log, but fewer servers have acknowledged it than required.
    Unconfirmed,
}

impl BusError {
    /// Creates an error of this kind.
    pub fn new(kind: BusErrorKind) -> Self {
        Self { kind, appended_at: None, source: None }
    }

    /// Creates the error for a record that is in the log at `at`, although fewer servers have acknowledged it than
    /// required. The record may be lost with its server; larder appends it again if that server is replaced.
    pub fn unconfirmed(at: Position) -> Self {
        Self { appended_at: Some(at), ..Self::new(BusErrorKind::Unconfirmed) }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns the position of the record, if it is in the log despite this error.
    pub fn appended_at(&self) -> Option<Position> {
        self.appended_at
    }

    /// Returns the kind of the failure.
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
                "the invalidation log has another epoch, or has dropped the requested records"
            }
            BusErrorKind::Refused => "the invalidation log refused the command",
            BusErrorKind::Unconfirmed => {
                "too few servers of the invalidation log have acknowledged the record"
            }
        })
    }
}

impl std::error::Error for BusError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// Returns 128 random bits from the seeds that the standard library draws for its hash maps, which needs no dependency.
fn random_bits() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = |salt: u8| u128::from(RandomState::new().hash_one((salt, std::process::id())));
    half(0) << 64 | half(1)
}
