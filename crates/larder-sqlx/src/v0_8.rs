//! Cached queries over the connection pools of sqlx 0.8. The items are those of the [crate root](crate).

use sqlx_08 as sqlx;

#[cfg(feature = "postgres-08")]
pub use self::postgres::postgres;
#[cfg(feature = "sqlite-08")]
pub use self::sqlite::sqlite;

#[macro_use]
#[path = "adapter/connection.rs"]
mod connection;
#[path = "adapter/gathered.rs"]
mod gathered;
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

    #[cfg(feature = "sqlite-08")]
    pub(super) type SqliteQuery<'q> =
        sqlx_08::query::Query<'q, sqlx_08::Sqlite, sqlx_08::sqlite::SqliteArguments<'q>>;
}
