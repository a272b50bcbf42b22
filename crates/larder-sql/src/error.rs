//! The error of a query, and its kinds.

use std::{fmt, sync::Arc};

/// A query failed. Cheap to clone: the leader and all waiters of a fill get the same error.
#[derive(Clone, Debug)]
pub struct QueryError {
    kind: QueryErrorKind,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
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
    /// The query cache failed, not the database; the reason is the source of the error: for example a fill that waits
    /// for itself. Long texts and values do not fail, since the key has a hash of them.
    TooLong,
    /// The statement begins or ends a transaction, which a query must not: [`Db::begin`](crate::Db) begins a
    /// transaction, `begin` of a transaction a nested one, and `commit` and `rollback` end them.
    NotAllowed,
    /// An in-memory database has no outbox to follow.
    NothingToFollow,
    /// The transaction was rolled back instead of committed: a statement in it had failed.
    RolledBack,
    /// The database driver panicked. A write may have been applied all the same, so everything that it changes was
    /// invalidated.
    Panicked,
    /// The statement was executed, but the rows that it returned cannot be read: a column has a type that cannot be
    /// fetched, or a row is not of the requested type. Running it again writes twice.
    WrittenUnread,
    /// The runtime was shut down while the query ran.
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

    /// Replaces the kind, and leaves the source.
    pub(crate) fn of_kind(self, kind: QueryErrorKind) -> Self {
        Self { kind, ..self }
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn database(error: sqlx::Error) -> Self {
        Self::because(QueryErrorKind::Database, error)
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
                "an in-memory database has no other writers: there is nothing to follow"
            }
            QueryErrorKind::RolledBack => {
                "a statement of the transaction had failed: the transaction was rolled back instead of committed"
            }
            QueryErrorKind::Panicked => "the database driver panicked: a write may have been applied",
            QueryErrorKind::WrittenUnread => {
                "the statement was executed, but the rows that it returned cannot be read: do not run it again"
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
