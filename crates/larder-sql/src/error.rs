//! The error of a query, and its kinds.

use std::{fmt, sync::Arc};

use crate::driver::DriverError;

/// The error of a failed query. It is cheap to clone, because the leader and all waiters of a fill get the same error.
#[derive(Clone, Debug)]
pub struct QueryError {
    kind: QueryErrorKind,
    cause: Option<Cause>,
}

#[derive(Clone, Debug)]
enum Cause {
    Driver(DriverError),
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

/// The reason why a query failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueryErrorKind {
    /// The database refused the statement, or did not answer.
    Database,
    /// A row cannot be decoded into the requested type.
    Decode,
    /// One row was requested, and the result has none.
    NoRow,
    /// The query took longer than its deadline.
    TimedOut,
    /// The query cache, and not the database, failed, for example because a fill waits for itself. The source of this
    /// error has the reason. Long texts and values do not cause this error, because the key has hashes of them.
    TooLong,
    /// The statement begins or ends a transaction, which a query must not do. Use [`Db::begin`](crate::Db) to begin a
    /// transaction, `Transaction::begin` to begin a nested transaction, and `commit` or `rollback` to end it.
    NotAllowed,
    /// An in-memory database has no outbox to follow.
    NothingToFollow,
    /// The transaction was rolled back instead of committed, because a statement in it had failed.
    RolledBack,
    /// The database driver panicked. A write may have been applied nevertheless, so larder has invalidated everything
    /// that it changes.
    Panicked,
    /// The statement was executed, but the rows that it returned cannot be read, because a column has a type that
    /// larder cannot read, or because a row cannot be decoded into the requested type. If you run the statement again,
    /// it writes twice.
    WrittenUnread,
    /// A domain event cannot be serialised, or its handler has failed. If the transaction was being committed, it is
    /// committed, and the event is in the outbox, from which it is emitted again.
    Event,
    /// The runtime was shut down while the query ran.
    Cancelled,
}

impl QueryError {
    pub(crate) fn new(kind: QueryErrorKind) -> Self {
        Self { kind, cause: None }
    }

    pub(crate) fn because(
        kind: QueryErrorKind,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let cause = match cause.into().downcast() {
            Ok(error) => Cause::Driver(*error),
            Err(other) => Cause::Other(other.into()),
        };
        Self { kind, cause: Some(cause) }
    }

    /// Replaces the kind, and leaves the source unchanged.
    pub(crate) fn of_kind(self, kind: QueryErrorKind) -> Self {
        Self { kind, ..self }
    }

    pub(crate) fn database(error: DriverError) -> Self {
        Self::because(QueryErrorKind::Database, error)
    }

    /// Returns the error of the driver, if the driver has failed. The [`source`](std::error::Error::source) of this error
    /// is the driver's own error, such as `sqlx::Error`.
    pub fn driver_error(&self) -> Option<&DriverError> {
        match &self.cause {
            Some(Cause::Driver(error)) => Some(error),
            _ => None,
        }
    }

    /// Returns the reason why the query failed.
    pub fn kind(&self) -> QueryErrorKind {
        self.kind
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            QueryErrorKind::Database => "the database refused the statement or did not answer",
            QueryErrorKind::Decode => "a row cannot be decoded into the requested type",
            QueryErrorKind::NoRow => "one row was requested, and the result has none",
            QueryErrorKind::TimedOut => "the query took longer than its deadline",
            QueryErrorKind::TooLong => {
                "the query cache could not serve the query: see the source of this error"
            }
            QueryErrorKind::NotAllowed => {
                "a statement must not begin or end a transaction: use begin(), commit() and rollback()"
            }
            QueryErrorKind::NothingToFollow => {
                "an in-memory database has no other writers, so it has no outbox to follow"
            }
            QueryErrorKind::RolledBack => {
                "the transaction was rolled back instead of committed, because one of its statements had failed"
            }
            QueryErrorKind::Panicked => "the database driver panicked: a write may have been applied",
            QueryErrorKind::WrittenUnread => {
                "the statement was executed, but the rows that it returned cannot be read: do not run it again"
            }
            QueryErrorKind::Event => {
                "a domain event cannot be serialised, or its handler has failed: a transaction that was being committed is committed"
            }
            QueryErrorKind::Cancelled => "the runtime was shut down while the query ran",
        })
    }
}

impl std::error::Error for QueryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.cause.as_ref()? {
            Cause::Driver(error) => Some(error.cause()),
            Cause::Other(error) => Some(&**error),
        }
    }
}
