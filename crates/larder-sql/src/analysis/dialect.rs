//! The dialects of SQL.

use sqlparser::dialect::{Dialect, PostgreSqlDialect, SQLiteDialect};

/// A dialect of SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SqlDialect {
    /// The dialect of SQLite.
    Sqlite,
    /// The dialect of PostgreSQL.
    Postgres,
}

impl SqlDialect {
    pub(super) fn parser(self) -> &'static dyn Dialect {
        match self {
            Self::Sqlite => &SQLiteDialect {},
            Self::Postgres => &PostgreSqlDialect {},
        }
    }
}
