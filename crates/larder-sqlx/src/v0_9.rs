//! Cached queries over the connection pools of sqlx 0.9.

use ::sqlx;

#[cfg(feature = "postgres")]
pub use self::postgres::postgres;
#[cfg(feature = "sqlite")]
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
#[cfg(feature = "postgres")]
#[path = "adapter/postgres.rs"]
mod postgres;
#[cfg(feature = "sqlite")]
#[path = "adapter/sqlite.rs"]
mod sqlite;

/// The parts of the interface of sqlx that differ between its versions.
mod compat {
    use sqlx::AssertSqlSafe;
    #[cfg(feature = "postgres")]
    use sqlx::{SqlSafeStr as _, SqlStr};

    /// A text that larder or the application has written.
    pub(super) fn sql(text: &str) -> AssertSqlSafe<&str> {
        AssertSqlSafe(text)
    }

    /// The text of a statement that is prepared.
    #[cfg(feature = "postgres")]
    pub(super) fn prepared_sql(text: &str) -> SqlStr {
        AssertSqlSafe(text).into_sql_str()
    }

    /// The text that begins a transaction.
    pub(super) fn begin_sql(text: &str) -> AssertSqlSafe<&str> {
        AssertSqlSafe(text)
    }

    /// The text of a query.
    pub(super) fn text_of<DB: sqlx::Database, Q: sqlx::Execute<'static, DB>>(query: Q) -> String {
        query.sql().as_str().to_owned()
    }

    /// The values that are bound to a query of SQLite.
    #[cfg(feature = "sqlite")]
    pub(super) type SqliteBound = sqlx::sqlite::SqliteArguments;

    #[cfg(feature = "sqlite")]
    pub(super) type SqliteQuery<'q> =
        sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;
}

#[cfg(test)]
#[path = "adapter/tests.rs"]
mod tests;
