//! Cached queries over the connection pools of sqlx 0.8. The items are those of [`v0_9`](crate::v0_9).

use sqlx_08 as sqlx;

#[cfg(feature = "postgres-08")]
pub use self::postgres::postgres;
#[cfg(feature = "sqlite-08")]
pub use self::sqlite::sqlite;
pub use self::{
    application_query::{
        CachedQuery, InvalidatingQuery, RowQuery, WriteQuery, cached, invalidating,
    },
    pool::{CachedDatabase, CachedPool, CachedTransaction, DatabaseHandle},
};
pub use crate::rows::{SharedQueryRow, SharedQueryRows};

#[macro_use]
#[path = "adapter/application_query.rs"]
mod application_query;
#[macro_use]
#[path = "adapter/connection.rs"]
mod connection;
#[path = "adapter/gathered.rs"]
mod gathered;
#[path = "adapter/pool.rs"]
mod pool;
#[cfg(feature = "postgres-08")]
#[path = "adapter/postgres.rs"]
mod postgres;
#[cfg(feature = "sqlite-08")]
#[path = "adapter/sqlite.rs"]
mod sqlite;

/// The parts of the interface of sqlx that differ between its versions.
mod compat {
    use std::borrow::Cow;

    /// A text that larder or the application has written.
    pub(super) fn sql(text: &str) -> &str {
        text
    }

    /// The text of a statement that is prepared.
    #[cfg(feature = "postgres-08")]
    pub(super) fn prepared_sql(text: &str) -> &str {
        text
    }

    /// The text that begins a transaction.
    pub(super) fn begin_sql(text: &str) -> Cow<'static, str> {
        Cow::Owned(text.to_owned())
    }

    /// The text of a query.
    #[allow(clippy::needless_pass_by_value)] // as in sqlx 0.9, which consumes the query
    pub(super) fn text_of<DB, Q>(query: Q) -> String
    where
        DB: sqlx_08::Database,
        Q: sqlx_08::Execute<'static, DB>,
    {
        query.sql().to_owned()
    }

    /// The values that are bound to a query of SQLite.
    #[cfg(feature = "sqlite-08")]
    pub(super) type SqliteBound = sqlx_08::sqlite::SqliteArguments<'static>;

    #[cfg(feature = "sqlite-08")]
    pub(super) type SqliteQuery<'q> =
        sqlx_08::query::Query<'q, sqlx_08::Sqlite, sqlx_08::sqlite::SqliteArguments<'q>>;
}

#[cfg(test)]
#[path = "adapter/tests.rs"]
mod tests;
