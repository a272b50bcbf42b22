//! The log of invalidations, and what carries it.
//!
//! A [`Bus`] appends records, each with the next number of an *epoch*, and gives them back in order. The
//! epoch is drawn at random whenever the log cannot be known to be the one it was (a server that came back
//! empty, a fail-over that lost its tail): numbers of two epochs are never compared, so a log that forgot
//! makes larder forget too.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::target::{Mode, Selector};

/// Carries invalidations between the processes that share a cache.
///
/// What each method owes is tested by the conformance suite of `larder-testkit`.
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Whether other processes append to this log too, so that it has to be followed.
    fn is_shared(&self) -> bool;

    /// Told once, before anything is appended: no entry lives longer, so no record matters for longer.
    fn keep_for(&self, longest: Duration);

    /// Appends a record and gives its place.
    ///
    /// Returns only when the record is in the log. Appending a record twice is harmless.
    ///
    /// # Errors
    ///
    /// Any error means *not known to be appended*, and the caller appends again, unless it says where it was
    /// [appended](BusError::appended_at).
    fn append<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<Position, BusError>>;

    /// Keeps a record, to be appended after a time by whoever comes next, also when the author is gone by then.
    /// Gives the end of the log in whose epoch it is kept. A record that is kept twice under the same `id` of the
    /// same author is kept once.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`]. A log that goes with its process has nothing to keep.
    fn schedule<'a>(
        &'a self,
        id: u64,
        record: &'a Record,
        after: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>>;

    /// The end of the log: the place of its last record.
    ///
    /// `lost` names an epoch in which the caller saw records that this log no longer has: if the log is
    /// still of that epoch, a new one is drawn first.
    ///
    /// # Errors
    ///
    /// When the log, or whoever may say that it is the current one, does not answer.
    fn end(&self, lost: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>>;

    /// The records after `after`, in order. Waits up to `wait` for the first; an empty answer proves nothing.
    ///
    /// # Errors
    ///
    /// [`BusErrorKind::Gone`] when the log is of another epoch or has dropped records after `after`.
    fn read(
        &self,
        after: Position,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>>;

    /// What time it was on the server of the log, at a moment of this process: for entries of a shared store, whose
    /// age no two processes should judge by clocks of their own. `None` where there is no such server; then the
    /// wall clocks of all processes have to agree within a second.
    fn server_time(&self) -> Option<(Instant, SystemTime)> {
        None
    }

    /// One page of the compacted log; the targets of one number are all on one page: for each target the newest record of each mode, in order of number,
    /// beginning after `after`.
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
    /// Nothing is known of what came up to this number: what was filled before is invalid.
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
    /// An epoch that nobody has drawn before.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// The epoch of these bits, as a log has kept them.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Its bits, for a log to keep.
    pub const fn to_bits(self) -> u128 {
        self.0
    }
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The life of the log.
    pub epoch: Epoch,
    /// The number of a record, 0 before the first.
    pub number: u64,
}

/// Who appended a record: drawn once for each [`Larder`](crate::Larder).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriterId(u128);

impl WriterId {
    /// An origin that nobody else has.
    pub fn random() -> Self {
        Self(random_bits())
    }

    /// Its bits.
    pub const fn to_bits(self) -> u128 {
        self.0
    }
}

/// One record of the log: an invalidation, with what the rules added to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who appended it.
    pub origin: WriterId,
    /// Hard or soft.
    pub mode: Mode,
    /// What it reaches.
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

    /// Entries that are older than a record judge it by the registry; this log keeps none.
    fn keep_for(&self, _: Duration) {}

    fn append<'a>(&'a self, _: &'a Record) -> BoxFuture<'a, Result<Position, BusError>> {
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        Box::pin(std::future::ready(Ok(self.at(number))))
    }

    /// It is kept for as long as the process is there, by whoever schedules it.
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
        // Whoever appended has applied the record itself; there is nobody else.
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

/// The log did not do what it was asked for.
#[derive(Debug)]
pub struct BusError {
    kind: BusErrorKind,
    appended_at: Option<Position>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Why the log failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusErrorKind {
    /// No answer in time; the command may have been carried out.
    Timeout,
    /// The log cannot be reached.
    Unreachable,
    /// The log is of another epoch, or has dropped the records that were asked for.
    Gone,
    /// The log refused, being a replica, without a quorum or out of memory.
    Refused,
    /// It is in the log, but not on as many servers as was asked for.
    Unconfirmed,
}

impl BusError {
    /// An error of this kind.
    pub fn new(kind: BusErrorKind) -> Self {
        Self { kind, appended_at: None, source: None }
    }

    /// The record is in the log, but not on as many servers as was asked for: it may be lost with the one that has
    /// it, and is appended again should that be replaced.
    pub fn unconfirmed(at: Position) -> Self {
        Self { appended_at: Some(at), ..Self::new(BusErrorKind::Unconfirmed) }
    }

    /// With what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Where the record is, if it is in the log all the same.
    pub fn appended_at(&self) -> Option<Position> {
        self.appended_at
    }

    /// Why it failed.
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
                "the invalidation log is another one, or has dropped those records"
            }
            BusErrorKind::Refused => "the invalidation log refused the record",
            BusErrorKind::Unconfirmed => "too few servers have the record",
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
