//! The second level: bytes that several processes share.

pub use crate::{
    bus::{Bus, BusError, BusErrorKind, Epoch, LocalBus, LogPage, Position, Record, WriterId},
    fill_lock::{FillLockState, FillLocks},
};

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// Keeps bytes under a text for a time. What it keeps need not be right: larder judges every entry that
/// comes back by its stamp, so a store may lose, repeat, delay or reorder writes.
///
/// Each method may fail; a failure costs a hit, never a response. What it owes is tested by the
/// conformance suite of `larder-testkit`.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The bytes under a key, if there are any.
    ///
    /// # Errors
    ///
    /// When it is not known whether there are.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// The bytes under each of these keys, in the order asked for.
    ///
    /// # Errors
    ///
    /// As [`Store::get`], when it is not known for one of them.
    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, StoreError>>;

    /// Keeps bytes under a key for `lifetime`, in place of what is there.
    ///
    /// # Errors
    ///
    /// When it is not known whether they are kept.
    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes what is under a key.
    ///
    /// # Errors
    ///
    /// When it is not known whether it is gone.
    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// How long a read takes at the longest, where the store itself sees to that. Where it does not, larder gives a read up
    /// after 50 ms.
    fn deadline(&self) -> Option<Duration> {
        None
    }

    /// Values of more bytes than this are not written to the store, and counted in
    /// [`SecondLevelStats::too_large`](crate::SecondLevelStats::too_large). Without a limit all are.
    fn max_value_bytes(&self) -> Option<usize> {
        None
    }
}

/// A store did not do what it was asked for.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Why a store failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No answer in time; the command may have been carried out.
    Timeout,
    /// The store cannot be reached.
    Unreachable,
    /// The store answered that it would not.
    Refused,
}

impl StoreError {
    /// An error of this kind.
    pub fn new(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// With what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Why it failed.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Timeout => "the store did not answer in time",
            StoreErrorKind::Unreachable => "the store cannot be reached",
            StoreErrorKind::Refused => "the store refused",
        })
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
