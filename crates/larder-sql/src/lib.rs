//! Queries that are cached with one line, know what they have read, and are dropped by what is written.
//!
//! Applications depend on `larder`, which has all of this as `larder::sql`.
//!
//! - A [`Db`] reads like sqlx: `db.query("SELECT …").bind(id).fetch_all::<Product>()`. The first asks the database, the next
//!   gets the same values, shared.
//! - Each text is analysed once: which tables it reads, and where its `WHERE` names the primary key, which rows. Those are
//!   the tags of the result, and of every fragment, page and object that is made with it.
//! - `db.query("UPDATE …").execute()` invalidates what it changes: the rows that it names, or the table; with all that changes by
//!   foreign keys and triggers. When it returns, nothing that was read before is served.
//! - What cannot be understood is not kept, and what may write anything drops everything, with a warning once for each text.
//!
//! The rules, and why they miss nothing, are at the head of `analysis/mod.rs`.
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
//! 1. Writes that do not come through a [`Db`] are seen when somebody follows the [`Outbox`]: of other programs, by hand, and of
//!    a process that died between its commit and its invalidation. Without it they have to be told by
//!    [`Db::invalidate_table`] and [`Db::invalidate_row`], or are seen when the result's time is up.
//! 2. Only the tables of the main schema are known (`main`, in PostgreSQL `public`). What reads others, temporary, attached,
//!    virtual, foreign or materialized ones, or tables with row-level security, is not kept, and what writes them drops
//!    everything. A temporary table must not have the name of another.
//! 3. What others define (`ALTER TABLE`) is not seen: call [`Db::learn`] or begin anew, and install the outbox again.
//! 4. Streaming results are not cached, and not there: what is too large to be kept whole is asked of sqlx.
//! 5. MySQL is not supported: its `ON DUPLICATE KEY UPDATE` and its collations name rows by rules of their own.
//!
//! Statements of builders: [`Statement`] takes what sea-query has built, and SeaORM with it (feature `sea-query`). A
//! `QueryBuilder` of sqlx gives its text by `sql()`, but not its values: bind them to the [`Statement`] instead.

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
mod catalog;
mod db;
mod error;
mod explain;
mod layer;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod outbox;
mod plan;
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
