//! The pool of an application with the query cache in front of it, and its transactions.

use std::{fmt, marker::PhantomData, ops::Deref};

use larder_core::Larder;
use larder_sql::{
    DatabaseService, Db, NestedTransaction, QueryCacheLayer, QueryError, Transaction,
};

use super::sqlx::{Database, Pool};

/// A database that a [`CachedPool`] supports: `sqlx::Postgres` or `sqlx::Sqlite`.
pub trait CachedDatabase: Database<Connection: 'static> {
    #[doc(hidden)]
    fn service(pool: Pool<Self>) -> DatabaseService;
}

/// A connection pool of sqlx with a query cache in front of it, for an application with queries of its own
/// ([`cached`](super::cached), [`invalidating`](super::invalidating)). Clones share both.
///
/// It dereferences to a [`Db`], which has larder's own queries, the tags of tables and rows, and the outbox.
///
/// # Examples
///
/// ```
/// use larder_core::Larder;
/// use larder_sqlx::v0_9::{CachedPool, cached, invalidating};
/// # use sqlx::sqlite::SqlitePoolOptions;
///
/// #[derive(sqlx::FromRow)]
/// struct Product { id: i64, price_cents: i64 }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
/// # sqlx::raw_sql("CREATE TABLE products (id INTEGER PRIMARY KEY, price_cents INTEGER); INSERT INTO products VALUES (42, 1999)").execute(&pool).await?;
/// let larder = Larder::builder().build()?;
/// let pool = CachedPool::new(pool, &larder).await?;
///
/// let product = async |id: i64| {
///     cached([id], move || {
///         sqlx::query_as::<_, Product>("SELECT id, price_cents FROM products WHERE id = ?").bind(id)
///     })
///     .fetch_one(&pool)
///     .await
/// };
/// assert_eq!(product(42).await?.price_cents, 1999);
///
/// invalidating([999, 42], || {
///     sqlx::query("UPDATE products SET price_cents = ? WHERE id = ?").bind(999).bind(42)
/// })
/// .execute(&pool)
/// .await?;
/// assert_eq!(product(42).await?.price_cents, 999);
/// # Ok(()) }
/// ```
pub struct CachedPool<DB: Database> {
    pool: Pool<DB>,
    db: Db,
}

impl<DB: CachedDatabase> CachedPool<DB> {
    /// Puts a query cache in front of a pool, with the catalog of its database.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn new(pool: Pool<DB>, larder: &Larder) -> Result<Self, QueryError> {
        let service = DB::service(pool.clone());
        let layer = QueryCacheLayer::new(larder, service.dialect());
        Self::with_layer(pool, layer).await
    }

    /// Does the same with the options of this layer, such as a lifetime.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn with_layer(pool: Pool<DB>, layer: QueryCacheLayer) -> Result<Self, QueryError> {
        let db = DB::service(pool.clone()).cached_by(layer).await?;
        Ok(Self { pool, db })
    }

    /// Returns the pool, for statements that larder does not see. The [outbox](Db::outbox) reports what they write.
    pub fn pool(&self) -> &Pool<DB> {
        &self.pool
    }

    /// Returns the handle of the query cache.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Begins a transaction. Its reads bypass the cache, and what it writes is invalidated when it is committed.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn begin(&self) -> Result<CachedTransaction<'static, DB>, QueryError> {
        let begun = self.db.begin().await?;
        Ok(CachedTransaction { inner: Inner::Outer(Box::new(begun)), of: PhantomData })
    }
}

impl<DB: Database> Deref for CachedPool<DB> {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

impl<DB: Database> Clone for CachedPool<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), db: self.db.clone() }
    }
}

impl<DB: Database> fmt::Debug for CachedPool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedPool").field("database", &DB::NAME).finish_non_exhaustive()
    }
}

/// A transaction of a [`CachedPool`], or a savepoint in one. If it is dropped, it is rolled back.
///
/// [`larder_sql::Transaction`] describes which of its failures invalidate.
pub struct CachedTransaction<'a, DB: Database> {
    inner: Inner<'a>,
    of: PhantomData<DB>,
}

enum Inner<'a> {
    Outer(Box<Transaction>),
    Nested(NestedTransaction<'a>),
}

impl<DB: CachedDatabase> CachedTransaction<'_, DB> {
    /// Returns the connection, for statements that larder does not see: helpers that take a `&mut PgConnection`, and
    /// features of sqlx that larder lacks. Report their writes with [`wrote`](Self::wrote), or follow the
    /// [outbox](Db::outbox).
    ///
    /// # Errors
    ///
    /// When a nested transaction that was dropped cannot be rolled back.
    pub async fn connection(&mut self) -> Result<&mut DB::Connection, QueryError> {
        let connection = self.transaction().connection().await?;
        Ok(connection.expect("a transaction of a pool has a connection of the same database"))
    }

    /// Notes a write that has run on the [`connection`](Self::connection): its text, with the bound values where they name
    /// rows. What it may have changed is invalidated when the transaction is committed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_sql::Statement;
    /// # async fn sell(pool: larder_sqlx::v0_9::CachedPool<sqlx::Sqlite>, id: i64) -> Result<(), Box<dyn std::error::Error>> {
    /// const SELL: &str = "UPDATE stock SET n = n - 1 WHERE id = ?";
    /// let mut transaction = pool.begin().await?;
    /// sqlx::query(SELL).bind(id).execute(transaction.connection().await?).await?;
    /// transaction.wrote(Statement::new(SELL).bind(id));
    /// transaction.commit().await?;
    /// # Ok(()) }
    /// ```
    pub fn wrote(&mut self, statement: impl Into<larder_sql::Statement>) {
        self.transaction().wrote(statement);
    }

    /// Begins a nested transaction: a savepoint. If it is rolled back or dropped, nothing is invalidated for its writes.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or in PostgreSQL after a failed statement.
    pub async fn begin(&mut self) -> Result<CachedTransaction<'_, DB>, QueryError> {
        let begun = self.transaction().begin().await?;
        Ok(CachedTransaction { inner: Inner::Nested(begun), of: PhantomData })
    }

    /// Commits. If this is no nested transaction, everything that it has changed is invalidated when this method returns,
    /// also if it returns an error.
    ///
    /// # Errors
    ///
    /// As [`Transaction::commit`].
    pub async fn commit(self) -> Result<(), QueryError> {
        match self.inner {
            Inner::Outer(transaction) => transaction.commit().await,
            Inner::Nested(transaction) => transaction.commit().await,
        }
    }

    /// Rolls back.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn rollback(self) -> Result<(), QueryError> {
        match self.inner {
            Inner::Outer(transaction) => transaction.rollback().await,
            Inner::Nested(transaction) => transaction.rollback().await,
        }
    }

    pub(super) fn transaction(&mut self) -> &mut Transaction {
        match &mut self.inner {
            Inner::Outer(transaction) => transaction,
            Inner::Nested(nested) => nested.outermost(),
        }
    }
}

impl<DB: Database> fmt::Debug for CachedTransaction<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedTransaction").field("database", &DB::NAME).finish_non_exhaustive()
    }
}

/// A pool or a transaction, as an argument of a helper: reads go through the cache of a [`CachedPool`], and bypass it in a
/// [`CachedTransaction`].
///
/// A helper takes `impl Into<DatabaseHandle<'_, DB>>`, so that it serves both: it is called with `&pool` or with
/// `&mut transaction`. One that runs several queries converts it once, and passes `&mut handle` to each.
///
/// # Examples
///
/// ```
/// use larder_sqlx::v0_9::{DatabaseHandle, SharedQueryRows, cached};
/// use sqlx::Sqlite;
///
/// async fn prices(
///     database: impl Into<DatabaseHandle<'_, Sqlite>>,
///     category: i64,
/// ) -> Result<SharedQueryRows<i64>, sqlx::Error> {
///     cached([category], move || {
///         sqlx::query_scalar("SELECT price FROM products WHERE category = ?").bind(category)
///     })
///     .fetch_all(database)
///     .await
/// }
/// ```
pub struct DatabaseHandle<'a, DB: Database>(pub(super) Source<'a, DB>);

pub(super) enum Source<'a, DB: Database> {
    Pool(&'a CachedPool<DB>),
    Transaction(&'a mut Transaction),
}

impl<'a, DB: Database> From<&'a CachedPool<DB>> for DatabaseHandle<'a, DB> {
    fn from(pool: &'a CachedPool<DB>) -> Self {
        Self(Source::Pool(pool))
    }
}

impl<'a, DB: CachedDatabase> From<&'a mut CachedTransaction<'_, DB>> for DatabaseHandle<'a, DB> {
    fn from(transaction: &'a mut CachedTransaction<'_, DB>) -> Self {
        Self(Source::Transaction(transaction.transaction()))
    }
}

impl<'a, DB: Database> From<&'a mut DatabaseHandle<'_, DB>> for DatabaseHandle<'a, DB> {
    fn from(handle: &'a mut DatabaseHandle<'_, DB>) -> Self {
        Self(match &mut handle.0 {
            Source::Pool(pool) => Source::Pool(pool),
            Source::Transaction(transaction) => Source::Transaction(transaction),
        })
    }
}

impl<DB: Database> fmt::Debug for DatabaseHandle<'_, DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            Source::Pool(_) => "DatabaseHandle::Pool",
            Source::Transaction(_) => "DatabaseHandle::Transaction",
        };
        f.write_str(name)
    }
}
