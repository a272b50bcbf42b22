//! Caches the results of SQL queries, finds the rows and tables that they read, and invalidates them when these are
//! written.
//!
//! Applications depend on `larder`, which re-exports this crate as `larder::sql`.
//!
//! - A [`Db`] reads like sqlx: `db.query("SELECT …").bind(id).fetch_all::<Product>()`. The first call queries the
//!   database; later calls get the same values, shared.
//! - Each statement text is analysed once: which tables it reads and, where its `WHERE` names the primary key, which
//!   rows. These are the tags of the result, and of every fragment, page and object that is built from it.
//! - `db.query("UPDATE …").execute()` invalidates the rows that the statement names, or the table, and everything that
//!   changes with them by foreign keys and triggers. When it returns, no result that was read before is served.
//! - A query that cannot be analysed is not stored. A statement that may write anything invalidates everything, with
//!   one warning per statement for the first 1,000 statements.
//!
//! The rules, and the reasons why they miss no write, are at the head of `analysis/mod.rs`.
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! use larder_core::Larder;
//! use larder_sql::SqlxService;
//! # use sqlx::sqlite::SqlitePoolOptions;
//!
//! #[derive(Debug, serde::Serialize, serde::Deserialize)]
//! struct Product { id: i64, price_cents: i64 }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
//! # sqlx::raw_sql("CREATE TABLE products (id INTEGER PRIMARY KEY, price_cents INTEGER); INSERT INTO products VALUES (42, 1999)").execute(&pool).await?;
//! let larder = Larder::builder().build()?;
//! let db = SqlxService::sqlite(pool).cached(&larder).await?;
//! let product = || db.query("SELECT id, price_cents FROM products WHERE id = ?").bind(42);
//! assert_eq!(product().fetch_one::<Product>().await?.price_cents, 1999);
//!
//! db.query("UPDATE products SET price_cents = ? WHERE id = ?").bind(999).bind(42).execute().await?;
//! assert_eq!(product().fetch_one::<Product>().await?.price_cents, 999);
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```
//!
//! # Before deploying
//!
//! 1. Writes that bypass a [`Db`] are seen by a process that follows the [`Outbox`]: writes of other programs, by hand,
//!    and of a process that died between its commit and its invalidation. Without it, report them by
//!    [`Db::invalidate_table`] and [`Db::invalidate_row`]; otherwise stale results are served until they expire.
//! 2. The catalog has only the tables of the main schema (`main`, in PostgreSQL `public`). A query is not stored if it
//!    reads other tables, or temporary, attached, virtual, foreign or materialized ones, or tables with row-level
//!    security. A statement that writes one of those invalidates everything (except full-text and R-tree tables of
//!    SQLite). A temporary table must not have the name of another table.
//! 3. Schema changes by other programs (`ALTER TABLE`) are not detected: call [`Db::learn`] or restart, and install the
//!    outbox again.
//! 4. There is no streaming: read results that are too large to be stored whole through sqlx.
//! 5. MySQL is not supported: its `ON DUPLICATE KEY UPDATE` and its collations identify rows by rules of their own.
//!
//! Query builders: [`Statement`] accepts the statements of sea-query, and of SeaORM with it (feature `sea-query`).
//! sqlx's `QueryBuilder` gives its text by `sql()`, but not its values: bind them to the [`Statement`] instead.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "sea-query")]
pub use self::sea_query::BindError;
pub use self::{
    analysis::SqlDialect,
    catalog::{Catalog, KeyKind, Table},
    db::{Db, DefaultDatabase, Query, SharedRow},
    error::{QueryError, QueryErrorKind},
    explain::Explanation,
    layer::QueryCacheLayer,
    rows::{DecodeError, Rows, StatementOutcome},
    service::{CacheableRow, Database, Fetch, QueryCache},
    statement::Statement,
    value::SqlValue,
};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use self::{
    outbox::{Outbox, OutboxFollower},
    sqlx_service::SqlxService,
    transaction::{NestedTransaction, Transaction, TransactionQuery},
};

mod analysis;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod backend;
mod catalog;
mod context;
mod db;
mod error;
mod explain;
mod layer;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod outbox;

mod rows;
#[cfg(feature = "sea-query")]
mod sea_query;
mod service;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sqlx_service;
mod statement;
mod tags;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod transaction;
mod value;

#[cfg(test)]
mod tests;
