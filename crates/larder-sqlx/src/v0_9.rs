//! For sqlx 0.9.

use ::sqlx;

#[cfg(feature = "postgres")]
pub use self::postgres::postgres;
#[cfg(feature = "sqlite")]
pub use self::sqlite::sqlite;

#[macro_use]
#[path = "adapter/connection.rs"]
mod connection;
#[path = "adapter/gathered.rs"]
mod gathered;
#[cfg(feature = "postgres")]
#[path = "adapter/postgres.rs"]
mod postgres;
#[cfg(feature = "sqlite")]
#[path = "adapter/sqlite.rs"]
mod sqlite;

/// The parts of the interface of sqlx that differ between its versions.
mod compat {
    use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

    /// A text that larder or the application has written.
    pub(super) fn sql(text: &str) -> AssertSqlSafe<&str> {
        AssertSqlSafe(text)
    }

    /// The text of a statement that is prepared.
    pub(super) fn prepared_sql(text: &str) -> SqlStr {
        AssertSqlSafe(text).into_sql_str()
    }

    /// The text that begins a transaction.
    pub(super) fn begin_sql(text: &str) -> AssertSqlSafe<&str> {
        AssertSqlSafe(text)
    }

    #[cfg(feature = "sqlite")]
    pub(super) type SqliteQuery<'q> =
        sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;
}
