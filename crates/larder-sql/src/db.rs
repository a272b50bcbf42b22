//! A database handle that is used like sqlx.

use std::{borrow::Cow, ops::Deref, sync::Arc, time::Duration};

use larder_core::{Invalidated, Lifetime, Tag, Target};
use serde::{Serialize, Serializer};

use crate::{
    analysis::ChangedColumns,
    catalog::{Catalog, folded},
    database::DatabaseService,
    error::{QueryError, QueryErrorKind},
    service::{CacheableRow, Database, Fetch, QueryCache, QueryOptions},
    statement::Statement,
    value::SqlValue,
};

/// A database with a query cache in front of it. Clones share both.
#[derive(Clone, Debug)]
pub struct Db<S = DatabaseService> {
    cache: QueryCache<S>,
}

impl<S> Db<S> {
    /// Creates a handle to a query cache.
    pub fn new(cache: QueryCache<S>) -> Self {
        Self { cache }
    }

    pub(crate) fn cache(&self) -> &QueryCache<S> {
        &self.cache
    }

    /// Replaces the catalog, for example after another process has migrated the database.
    pub fn learn(&self, catalog: Catalog) {
        self.cache.learn(catalog);
    }

    /// Returns the tag of a table, for a value that depends on the whole table and that another driver loads:
    /// `fill.tag(db.table_tag("products"))`. Every change of the table invalidates it. To invalidate after a write, call
    /// [`invalidate_table`](Self::invalidate_table), which also reaches what depends on rows or columns of the table.
    pub fn table_tag(&self, table: &str) -> Tag {
        self.cache.context().tags.table(&folded(table))
    }

    /// Returns the tag of a row, given the values of its key in order. Everything that depends on this row, but not on
    /// the whole table, has the tag.
    pub fn row_tag<K: ToString>(&self, table: &str, key: impl IntoIterator<Item = K>) -> Tag {
        let (context, table) = (self.cache.context(), folded(table));
        let known = context.known();
        let columns = known.catalog().map_or(&[][..], |catalog| catalog.key(&table));
        let value = |(at, value): (usize, K)| {
            let value = value.to_string();
            let kind = columns.get(at).map(|column| column.kind);
            let canonical = kind.and_then(|kind| kind.canonical(&value)).map(Cow::into_owned);
            canonical.unwrap_or(value)
        };
        let key: Vec<String> = key.into_iter().enumerate().map(value).collect();
        context.tags.row(&table, &key)
    }

    /// Invalidates everything that depends on a table or its rows. Call it after a write that bypasses the [`Db`].
    ///
    /// # Panics
    ///
    /// If it is called outside a tokio runtime while the log is shared with other processes.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use larder_core::Larder;
    /// # use larder_sql::*;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # let schema = "CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO stock VALUES (42, 8)";
    /// # sqlx::raw_sql(schema).execute(&pool).await?;
    /// # let larder = Larder::builder().build()?;
    /// let db = larder_sqlx::v0_9::sqlite(pool.clone()).cached(&larder).await?;
    /// let stock = || db.query("SELECT n FROM stock WHERE id = ?").bind(42).fetch_scalar::<i64>();
    /// assert_eq!(stock().await?, 8);
    ///
    /// sqlx::query("UPDATE stock SET n = 7").execute(&pool).await?;
    /// assert_eq!(stock().await?, 8, "the cache does not see a write that bypasses it");
    /// let _logged = db.invalidate_table("stock").await;
    /// assert_eq!(stock().await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn invalidate_table(&self, table: &str) -> Invalidated {
        let context = self.cache.context();
        context.kernel.invalidate(context.tags.any_row(&folded(table))).await
    }

    /// Invalidates everything that depends on this database.
    ///
    /// # Panics
    ///
    /// If it is called outside a tokio runtime while the log is shared with other processes.
    pub async fn invalidate_all(&self) -> Invalidated {
        self.cache.context().invalidate_all().await
    }

    /// Invalidates everything that depends on a row, given the values of its key in order, on its table as a whole, or on
    /// rows of the table by another column than its key.
    ///
    /// # Panics
    ///
    /// If it is called outside a tokio runtime while the log is shared with other processes.
    pub async fn invalidate_row<K: ToString>(
        &self,
        table: &str,
        key: impl IntoIterator<Item = K>,
    ) -> Invalidated {
        let context = self.cache.context();
        let tags = [self.table_tag(table), self.row_tag(table, key)];
        let lookups = context.tags.any_lookup(&folded(table));
        let columns = context.tags.changed_columns(&folded(table), &ChangedColumns::Any);
        let targets = tags.map(Target::tag).into_iter().chain([lookups]).chain(columns);
        context.kernel.invalidate(targets.collect::<Vec<_>>()).await
    }
}

impl<S: Database> Db<S> {
    /// Creates a query or another statement. Never write user input into its text; bind it instead.
    pub fn query(&self, text: impl Into<Cow<'static, str>>) -> Query<'_, S> {
        self.statement(Statement::new(text))
    }

    /// Creates a query from a statement that was built separately, for example by a query builder.
    pub fn statement(&self, statement: Statement) -> Query<'_, S> {
        Query { db: self, statement, options: QueryOptions::default() }
    }
}

/// A statement that has not run yet.
#[derive(Debug)]
#[must_use = "a query does nothing until it is fetched or executed"]
pub struct Query<'a, S = DatabaseService> {
    db: &'a Db<S>,
    statement: Statement,
    options: QueryOptions,
}

impl<S: Database> Query<'_, S> {
    /// Binds the next value.
    pub fn bind(mut self, value: impl Into<SqlValue>) -> Self {
        self.statement = self.statement.bind(value);
        self
    }

    /// Does the same as [`Fetch::cached_for`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use larder_core::Larder;
    /// # use larder_sql::*;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # let schema = "CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO stock VALUES (42, 8)";
    /// # sqlx::raw_sql(schema).execute(&pool).await?;
    /// # let larder = Larder::builder().build()?;
    /// # let db = larder_sqlx::v0_9::sqlite(pool).cached(&larder).await?;
    /// // The result of a volatile function is stored only for a lifetime that the query sets.
    /// let draw = || db.query("SELECT random()");
    /// assert_ne!(draw().fetch_scalar::<i64>().await?, draw().fetch_scalar::<i64>().await?);
    ///
    /// let minute = Duration::from_secs(60);
    /// let winner: i64 = draw().cached_for(minute).fetch_scalar().await?;
    /// assert_eq!(draw().cached_for(minute).fetch_scalar::<i64>().await?, winner);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cached_for(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.lifetime = Some(lifetime.into());
        self
    }

    /// Does the same as [`Fetch::uncached`].
    pub fn uncached(mut self) -> Self {
        self.options.uncached = true;
        self
    }

    /// Does the same as [`Fetch::deadline`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = Some(deadline);
        self
    }

    /// Does the same as [`Fetch::coalesce_timeout`].
    pub fn coalesce_timeout(mut self, limit: Duration) -> Self {
        self.options.coalesce_timeout = Some(limit);
        self
    }

    /// Does the same as [`Fetch::tags`].
    pub fn tags<G: Into<Tag>>(mut self, tags: impl IntoIterator<Item = G>) -> Self {
        self.options.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Fetches all rows. A struct is decoded by the names of the columns, a tuple by the order of the columns, and any
    /// other type from the only column. All callers of the same query share the values.
    ///
    /// # Errors
    ///
    /// When the database fails, or when a row cannot be decoded into the type; [`QueryError::kind`] returns the reason.
    /// It is [`QueryErrorKind::TimedOut`] after the [`deadline`](Self::deadline), and [`QueryErrorKind::NotAllowed`]
    /// for a statement that begins or ends a transaction.
    pub async fn fetch_all<T: CacheableRow>(self) -> Result<Arc<Vec<T>>, QueryError> {
        self.db.cache.fetch(Fetch::wishing(self.statement, self.options)).await
    }

    /// Fetches the first row, if there is one. larder reads and stores all rows of the statement, so add `LIMIT 1` if
    /// there may be many.
    ///
    /// # Errors
    ///
    /// As [`Query::fetch_all`].
    pub async fn fetch_optional<T: CacheableRow>(self) -> Result<Option<SharedRow<T>>, QueryError> {
        Ok(SharedRow::of(self.fetch_all().await?))
    }

    /// Fetches the first row. As with [`Query::fetch_optional`], all rows are read.
    ///
    /// # Errors
    ///
    /// As [`Query::fetch_all`], and with [`QueryErrorKind::NoRow`] if there is no row.
    pub async fn fetch_one<T: CacheableRow>(self) -> Result<SharedRow<T>, QueryError> {
        self.fetch_optional().await?.ok_or_else(|| QueryError::new(QueryErrorKind::NoRow))
    }

    /// Fetches the only value of the first row.
    ///
    /// # Errors
    ///
    /// As [`Query::fetch_one`].
    pub async fn fetch_scalar<T: CacheableRow + Clone>(self) -> Result<T, QueryError> {
        self.fetch_one::<T>().await.map(|one| T::clone(&one))
    }

    /// Runs the statement, and returns the number of changed rows. Everything that the statement may have changed is
    /// invalidated when this method returns, even if it returns an error.
    ///
    /// # Errors
    ///
    /// When the database fails; [`QueryError::kind`] returns the reason. It is [`QueryErrorKind::WrittenUnread`] if the
    /// statement was executed but its rows cannot be read, and [`QueryErrorKind::NotAllowed`] if the statement begins
    /// or ends a transaction.
    pub async fn execute(self) -> Result<u64, QueryError> {
        self.db.cache.run(self.statement).await.map(|answer| answer.affected)
    }
}

/// One row, shared by all callers of the same query.
#[derive(Debug)]
pub struct SharedRow<T>(Arc<Vec<T>>);

impl<T> SharedRow<T> {
    pub(crate) fn of(rows: Arc<Vec<T>>) -> Option<Self> {
        (!rows.is_empty()).then_some(Self(rows))
    }
}

impl<T> Deref for SharedRow<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T> Clone for SharedRow<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Serialize> Serialize for SharedRow<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize(self, serializer)
    }
}
