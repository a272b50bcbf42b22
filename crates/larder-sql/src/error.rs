//! Why a query brought nothing.

use std::{fmt, sync::Arc};

/// A query failed. Cheap to clone: all who waited for it get the same.
#[derive(Clone, Debug)]
pub struct QueryError {
    kind: QueryErrorKind,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Why a query failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueryErrorKind {
    /// The database refused, or did not answer.
    Database,
    /// A row is not of the type that was asked for.
    Decode,
    /// One row was asked for, and there is none.
    NoRow,
    /// It took longer than the policy allows.
    TimedOut,
    /// It cannot be kept: its text or its values are too long.
    TooLong,
    /// A statement may not begin or end a transaction: [`Db::begin`](crate::Db) begins one, `begin` of a transaction a nested
    /// one, and `commit` and `rollback` end them.
    NotAllowed,
    /// The outbox of a database in memory cannot be followed.
    NothingToFollow,
    /// The transaction cannot be committed: a statement in it has failed.
    RolledBack,
    /// The driver of the database panicked. A write may have been done all the same; what it changes was invalidated.
    Panicked,
    /// The statement has written, but what it returned cannot be read: a column is of a type that cannot be fetched, or a
    /// row is not of the type that was asked for. Running it again writes twice.
    WrittenUnread,
    /// The runtime was shut down meanwhile.
    Cancelled,
}

impl QueryError {
    pub(crate) fn new(kind: QueryErrorKind) -> Self {
        Self { kind, source: None }
    }

    pub(crate) fn because(
        kind: QueryErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, source: Some(source.into().into()) }
    }

    /// The same error, as one of this kind.
    pub(crate) fn of_kind(self, kind: QueryErrorKind) -> Self {
        Self { kind, ..self }
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn database(error: sqlx::Error) -> Self {
        Self::because(QueryErrorKind::Database, error)
    }

    /// Why it failed.
    pub fn kind(&self) -> QueryErrorKind {
        self.kind
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            QueryErrorKind::Database => "the database failed",
            QueryErrorKind::Decode => "a row is not of the type that was asked for",
            QueryErrorKind::NoRow => "one row was asked for, and there is none",
            QueryErrorKind::TimedOut => "the query took longer than the policy allows",
            QueryErrorKind::TooLong => {
                "the text or the values of the query are too long to be kept"
            }
            QueryErrorKind::NotAllowed => {
                "a statement may not begin or end a transaction: use begin(), commit() and rollback()"
            }
            QueryErrorKind::NothingToFollow => {
                "a database in memory is written by nobody else: there is nothing to follow"
            }
            QueryErrorKind::RolledBack => {
                "a statement of the transaction has failed: it was rolled back instead of committed"
            }
            QueryErrorKind::Panicked => "the driver of the database panicked",
            QueryErrorKind::WrittenUnread => {
                "the statement has written, but what it returned cannot be read: do not run it again"
            }
            QueryErrorKind::Cancelled => "the runtime was shut down while the query ran",
        })
    }
}

impl std::error::Error for QueryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
