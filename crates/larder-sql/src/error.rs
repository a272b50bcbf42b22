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
    /// A transaction is ended by `commit` and `rollback`, and not by a statement.
    NotAllowed,
    /// The outbox of a database in memory cannot be followed.
    NothingToFollow,
    /// The transaction cannot be committed: a statement in it has failed.
    RolledBack,
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
                "a statement may not begin or end a transaction here, allowed are commit() and rollback()"
            }
            QueryErrorKind::NothingToFollow => {
                "a database in memory is written by nobody else: there is nothing to follow"
            }
            QueryErrorKind::RolledBack => {
                "a statement of the transaction has failed: it was rolled back instead of committed"
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
