//! Caches the results of SQL queries, finds the tables and rows that each query reads, and invalidates a result when a
//! statement writes to them.
//!
//! Applications depend on `larder`, which re-exports this crate as `larder::sql`.
//!
//! - A [`Db`] is used like sqlx: `db.query("SELECT …").bind(id).fetch_all::<Product>()`. The first call queries the
//!   database; later calls share its values.
//! - larder analyses each statement text once, to find the tables that it reads and, if its `WHERE` names the primary
//!   key, the rows. They become the tags of the result, and of every fragment, page and object that is built from it.
//! - `db.query("UPDATE …").execute()` invalidates the rows that the statement names, or the whole table, and everything
//!   that changes with them by foreign keys and triggers. Once it has returned, larder serves no affected result that
//!   was read before.
//! - The result of a query that cannot be analysed is not stored. A statement that may write to any table invalidates
//!   everything, and larder logs one warning for each of the first 1,000 such statements.
//!
//! The module documentation of `analysis/mod.rs` has the rules, and the reasons why they do not miss a write.
//!
//! ```
//! use larder_core::Larder;
//! # use sqlx::sqlite::SqlitePoolOptions;
//!
//! #[derive(Debug, serde::Serialize, serde::Deserialize)]
//! struct Product { id: i64, price_cents: i64 }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
//! # sqlx::raw_sql("CREATE TABLE products (id INTEGER PRIMARY KEY, price_cents INTEGER); INSERT INTO products VALUES (42, 1999)").execute(&pool).await?;
//! let larder = Larder::builder().build()?;
//! let db = larder_sqlx::v0_9::sqlite(pool).cached(&larder).await?;
//! let product = || db.query("SELECT id, price_cents FROM products WHERE id = ?").bind(42);
//! assert_eq!(product().fetch_one::<Product>().await?.price_cents, 1999);
//!
//! db.query("UPDATE products SET price_cents = ? WHERE id = ?").bind(999).bind(42).execute().await?;
//! assert_eq!(product().fetch_one::<Product>().await?.price_cents, 999);
//! # Ok(()) }
//! ```
//!
//! # Before deploying
//!
//! 1. A process that follows the [`Outbox`] also invalidates after writes that bypass its [`Db`]: writes by other
//!    programs, writes made by hand, and writes of a process that died between its commit and its invalidation. If you
//!    do not follow the outbox, report such writes with [`Db::invalidate_table`] and [`Db::invalidate_row`]; otherwise
//!    stale results are served until they expire.
//! 2. The catalog has only the tables of the main schema (`main`, in PostgreSQL `public`). A query is not stored if it
//!    reads a table of another schema, a temporary, attached, virtual or foreign table, a materialized view, or a table
//!    with row-level security. A statement that writes to such a table invalidates everything (except full-text and
//!    R-tree tables of SQLite). A temporary table must not have the name of another table.
//! 3. larder does not detect schema changes by other programs (`ALTER TABLE`). After such a change, call [`Db::learn`]
//!    or restart the process, and install the outbox again.
//! 4. Results are not streamed. Use sqlx directly for results that are too large to be stored.
//! 5. MySQL is not supported, because its `ON DUPLICATE KEY UPDATE` and its collations identify rows by different
//!    rules.
//!
//! A [`Statement`] can be made from a statement of the query builders sea-query and SeaORM (feature `sea-query`).
//! sqlx's `QueryBuilder` returns its text with `sql()`, but not its values, so bind the values to the [`Statement`].

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "sea-query")]
pub use self::sea_query::BindError;
#[cfg(feature = "write-behind")]
pub use self::table_sink::{SqlColumn, SqlColumns, TableSink, TableSnapshot};
pub use self::{
    analysis::SqlDialect,
    application_queries::{CachedRead, WeighedValue},
    catalog::{Catalog, KeyKind, Table},
    database::DatabaseService,
    db::{Db, Query, SharedRow},
    error::{QueryError, QueryErrorKind},
    explain::Explanation,
    layer::QueryCacheLayer,
    rows::{DecodeError, Rows, StatementOutcome},
    service::{CacheableRow, Database, Fetch, QueryCache},
    statement::Statement,
    value::{IntoValues, SqlValue},
};
pub use self::{
    outbox::{Outbox, OutboxFollower},
    transaction::{NestedTransaction, RunningStatement, Transaction, TransactionQuery},
};

mod analysis;
mod application_queries;
mod catalog;
mod context;
mod database;
mod db;
pub mod driver;
mod error;
mod explain;
mod layer;
mod outbox;
#[cfg(feature = "postgres")]
pub mod postgres;

mod rows;
#[cfg(feature = "sea-query")]
mod sea_query;
mod service;
mod statement;
#[cfg(feature = "write-behind")]
mod table_sink;
mod tags;
mod transaction;
mod value;

#[cfg(test)]
mod retry_tests;
