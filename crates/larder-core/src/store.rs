//! The traits of a second level, in which several processes share bytes.

pub use crate::{
    bus::{
        BoxFuture, Bus, BusError, BusErrorKind, CommitId, Epoch, LocalBus, LogPage, Position,
        Record, WriterId,
    },
    log_client::{LogClient, LogClientError, LogTail},
    record_note::RecordNote,
    reports::{ServerReport, ServerState, ServerUsage},
    rules::Rules,
};

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

/// A shared store, which holds bytes under a key for a time. It does not have to be reliable: larder checks the stamp
/// of every entry that it reads, so a store may lose, repeat, delay or reorder writes.
///
/// Each method may fail. After a failure larder continues without the store, so requests still get their responses. The
/// conformance suite of `larder-testkit` tests the requirements.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Returns the bytes under a key, if there are any.
    ///
    /// # Errors
    ///
    /// If it is unknown whether there are any.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// Returns the bytes under each of these keys, in the order of `keys`: one result for each key, so that one key that
    /// cannot be read does not fail the others. As one round trip, if the store can.
    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>>;

    /// Stores bytes under a key for `lifetime`, and replaces the present bytes.
    ///
    /// # Errors
    ///
    /// If it is unknown whether they are stored.
    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Replaces the bytes under a key by `value` for `lifetime`, if they are still `read`. Returns whether they were.
    ///
    /// Larder uses it to extend the lifetime of an entry without replacing the entry of another fill.
    ///
    /// # Errors
    ///
    /// If it is unknown whether they were replaced.
    fn replace<'a>(
        &'a self,
        key: &'a str,
        read: Bytes,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Removes the bytes under a key.
    ///
    /// # Errors
    ///
    /// If it is unknown whether they are removed.
    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Returns the maximum duration of a read, if the store enforces one. If not, larder abandons a read after 50 ms.
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// Returns the maximum size of a value in bytes. Larder does not write larger values to the store, and counts them
    /// in [`SecondLevelStats::too_large`](crate::SecondLevelStats::too_large). `None` for no limit.
    fn max_value_bytes(&self) -> Option<usize> {
        None
    }
}

/// Fill locks that all processes share. A [`Store`] that supports them implements this trait too.
///
/// The conformance suite of `larder-testkit` tests the contract of each method.
pub trait FillLocks: fmt::Debug + Send + Sync + 'static {
    /// Takes the fill lock of a key for `holder`, for at most `expiry`.
    ///
    /// # Errors
    ///
    /// If it is not known whether the lock was taken. The lock may then be held until it expires.
    fn take<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        expiry: Duration,
    ) -> BoxFuture<'a, Result<FillLockState, StoreError>>;

    /// Releases a fill lock, if `holder` still has it. If `vain` is set, the value was not storable, and for that time
    /// [`FillLocks::take`] returns [`FillLockState::NotStorable`], so that no process waits for the key.
    ///
    /// # Errors
    ///
    /// If it is not known whether the lock was released. It expires later.
    fn give_back<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        vain: Option<Duration>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// A store with the fill locks and the log that belong to it, for
/// [`LarderBuilder::second_level`](crate::LarderBuilder::second_level).
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is given to a builder"]
pub struct SecondLevel {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) fill_locks: Option<Arc<dyn FillLocks>>,
    pub(crate) bus: Option<Arc<dyn Bus>>,
    pub(crate) report: Option<Arc<dyn ServerReport>>,
}

impl SecondLevel {
    /// Creates a second level with this store.
    pub fn new(store: impl Store) -> Self {
        Self { store: Arc::new(store), fill_locks: None, bus: None, report: None }
    }

    /// Adds the fill locks for [`fill_once_per_cluster`](crate::Policy::fill_once_per_cluster).
    pub fn fill_locks(mut self, fill_locks: impl FillLocks) -> Self {
        self.fill_locks = Some(Arc::new(fill_locks));
        self
    }

    /// Adds the log that carries invalidations between processes.
    pub fn bus(mut self, bus: impl Bus) -> Self {
        self.bus = Some(Arc::new(bus));
        self
    }

    /// Adds the report on the servers of the store and the log.
    pub fn report(mut self, report: impl ServerReport) -> Self {
        self.report = Some(Arc::new(report));
        self
    }
}

/// The result of taking a fill lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FillLockState {
    /// The caller has taken it.
    Acquired,
    /// Another holder has it.
    Held,
    /// The value of the last holder was not storable, so there is no entry to wait for.
    NotStorable,
}

/// The error of a store.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kind of a failure of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store did not answer in time; it may have executed the command.
    Timeout,
    /// The store cannot be reached.
    Unreachable,
    /// The store refused the command.
    Refused,
}

impl StoreError {
    /// Creates an error of this kind.
    pub fn new(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns the kind of the failure.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Timeout => "the store did not answer in time",
            StoreErrorKind::Unreachable => "the store cannot be reached",
            StoreErrorKind::Refused => "the store refused the command",
        })
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
