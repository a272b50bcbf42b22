//! Queries that the application runs itself, with a driver and a row type of its own: larder needs only their texts and
//! values.

use std::{
    any::TypeId,
    fmt::{self, Write as _},
    future::Future,
    sync::Arc,
    time::Duration,
};

use larder_core::{
    Invalidated, Kind, Lifetime, LoadError, LoadHandle, Reason, Tag, kernel::Schema,
};

use crate::{
    analysis::digest,
    context::{PreparedStatement, QueryAdmission, QueryContext},
    db::Db,
    error::QueryErrorKind,
    service::{CacheableRow, QueryOptions},
    statement::Statement,
};

impl<S> Db<S> {
    /// Caches the result of a read that the application runs itself, with any driver.
    ///
    /// larder analyses the text of the query and gives the result the tags of its tables, or of its rows where the values
    /// pin them, as it does for [`Db::query`]. The key has the text and the values, so **every input on which the result
    /// depends must be one of the values**, or part of [`CachedRead::key`]. Bind the same values in the same order.
    ///
    /// For sqlx, `larder_sqlx::v0_9::cached` takes the query itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_core::Larder;
    /// # use larder_sql::*;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # let schema = "CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO stock VALUES (42, 8)";
    /// # sqlx::raw_sql(schema).execute(&pool).await?;
    /// # let larder = Larder::builder().build()?;
    /// let db = larder_sqlx::v0_9::sqlite(pool.clone()).cached(&larder).await?;
    /// const STOCK: &str = "SELECT n FROM stock WHERE id = ?";
    ///
    /// let stock = || {
    ///     let pool = pool.clone();
    ///     let read = db.cached(Statement::new(STOCK).bind(42));
    ///     read.load(move || async move {
    ///         sqlx::query_scalar::<_, i64>(STOCK).bind(42).fetch_one(&pool).await
    ///     })
    /// };
    /// assert_eq!(*stock().await?, 8);
    ///
    /// db.query("UPDATE stock SET n = 7 WHERE id = 42").execute().await?;
    /// assert_eq!(*stock().await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("cache-aside", "query cache", "sqlx macros", "diesel", "tokio-postgres"))]
    pub fn cached(&self, statement: impl Into<Statement>) -> CachedRead {
        let context = Arc::clone(self.cache().context());
        let statements = vec![context.prepare(statement.into())];
        CachedRead { context, statements, options: QueryOptions::default(), key: String::new() }
    }

    /// Runs a write that the application runs itself, with any driver, and then invalidates everything that its statement
    /// may have changed. The write runs in a task of its own, and larder invalidates even if it fails or panics, or the
    /// caller is dropped.
    ///
    /// # Errors
    ///
    /// With the error of the write, or with [`LoadError::Panicked`] or [`LoadError::Cancelled`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_core::Larder;
    /// # use larder_sql::*;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # let schema = "CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO stock VALUES (42, 8)";
    /// # sqlx::raw_sql(schema).execute(&pool).await?;
    /// # let larder = Larder::builder().build()?;
    /// # let db = larder_sqlx::v0_9::sqlite(pool.clone()).cached(&larder).await?;
    /// let stock = || db.query("SELECT n FROM stock WHERE id = ?").bind(42).fetch_scalar::<i64>();
    /// assert_eq!(stock().await?, 8);
    ///
    /// const SELL: &str = "UPDATE stock SET n = n - 1 WHERE id = ?";
    /// let sell = async move { sqlx::query(SELL).bind(42).execute(&pool).await };
    /// db.write(Statement::new(SELL).bind(42), sell).await?;
    /// assert_eq!(stock().await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn write<T, E>(
        &self,
        statement: impl Into<Statement>,
        running: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, LoadError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let context = self.cache().context();
        let prepared = context.prepare(statement.into());
        written(context.write(&[prepared], None, running).await)
    }

    /// Invalidates everything that a statement may have changed, after the application has run it itself and it is
    /// committed. If the process dies before this call, only the [outbox](crate::Outbox) reports the write;
    /// [`Db::write`] narrows that gap.
    ///
    /// # Panics
    ///
    /// If it is called outside a tokio runtime while the log is shared with other processes.
    pub async fn wrote(&self, statement: impl Into<Statement>) -> Invalidated {
        let context = self.cache().context();
        let prepared = context.prepare(statement.into());
        context.note_written(&prepared);
        let targets = context.written_by(&prepared).all(&context.tags);
        if prepared.may_redefine() {
            let _logged_or_queued = context.kernel.invalidate(targets.clone()).await;
            context.relearn().await;
            context.reinstall().await;
        }
        context.kernel.invalidate(targets).await
    }
}

/// A read that the application runs itself, and that has not run yet. [`Db::cached`] creates it.
#[derive(Clone)]
#[must_use = "a read does nothing until it is loaded"]
pub struct CachedRead {
    context: Arc<QueryContext>,
    statements: Vec<PreparedStatement>,
    options: QueryOptions,
    key: String,
}

impl CachedRead {
    /// Adds another statement that the loader runs, with its values.
    pub fn and(mut self, statement: impl Into<Statement>) -> Self {
        self.statements.push(self.context.prepare(statement.into()));
        self
    }

    /// Adds an input to the key, on which the result depends although no statement has it as a value.
    pub fn key(mut self, input: impl fmt::Display) -> Self {
        let mut input = input.to_string();
        if input.len() > LONGEST_INPUT {
            // A cryptographic hash is short, and two different inputs do not have the same hash.
            input = format!("#{}", digest(&input, 32));
        }
        write!(self.key, "{}:{input}", input.len()).expect("writing to a string cannot fail");
        self
    }

    /// Does the same as [`Fetch::cached_for`](crate::Fetch::cached_for).
    pub fn cached_for(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.lifetime = Some(lifetime.into());
        self
    }

    /// Does the same as [`Fetch::uncached`](crate::Fetch::uncached).
    pub fn uncached(mut self) -> Self {
        self.options.uncached = true;
        self
    }

    /// Does the same as [`Fetch::deadline`](crate::Fetch::deadline).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = Some(deadline);
        self
    }

    /// Does the same as [`Fetch::tags`](crate::Fetch::tags).
    pub fn tags<G: Into<Tag>>(mut self, tags: impl IntoIterator<Item = G>) -> Self {
        self.options.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Returns the value, from the cache if possible, otherwise from the loader. Both levels store it.
    ///
    /// larder does not know the rows behind the value, so `max_bytes` and `empty_ttl` of the layer do not apply to it.
    ///
    /// If the result is not storable (`not_stored` of [`Db::explain`] returns the reason), the loader runs each time. If
    /// one of the statements writes, it runs as in [`Db::write`].
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub async fn load<T, E, F, Fut>(self, load: F) -> Result<Arc<T>, LoadError<E>>
    where
        T: CacheableRow,
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        if let Some(why) = self.bypass() {
            return self.run(why, load).await;
        }
        let name = self.name(&Schema::of::<T>());
        let (kernel, policy) = (self.context.kernel.clone(), self.context.policy(&self.options));
        let fill = move |fill| async move {
            self.context.note_query();
            self.tag(&fill, false);
            load().await
        };
        kernel.get_or_fill(Kind::Query, name, policy, fill).await
    }

    /// Returns the value, from the memory of this process if possible, otherwise from the loader. serde does not have to
    /// know its type. The loader also returns the number of bytes that the value takes in memory, and whether it has rows:
    /// [`QueryCacheLayer::empty_ttl`](crate::QueryCacheLayer::empty_ttl) is the lifetime of a result without rows.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    pub async fn load_local<T, E, F, Fut>(
        self,
        load: F,
    ) -> Result<Arc<WeighedValue<T>>, LoadError<E>>
    where
        T: Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<WeighedValue<T>, E>> + Send + 'static,
    {
        if let Some(why) = self.bypass() {
            return self.run(why, load).await;
        }
        // The name of a type may be the name of another type, too. The value does not leave this process.
        let name = self.name(&format_args!("local {:?}", TypeId::of::<T>()));
        let (kernel, policy) = (self.context.kernel.clone(), self.context.policy(&self.options));
        let fill = move |fill| async move {
            self.context.note_query();
            let value = load().await?;
            self.tag(&fill, value.has_rows && self.statements.len() == 1);
            self.context.limit_fill(&fill, &self.options, !value.has_rows, value.bytes);
            Ok(value)
        };
        kernel.get_or_fill_local(Kind::Query, name, policy, WeighedValue::weight, fill).await
    }

    /// Returns the reason why the result is not storable. `None` if it is storable.
    fn bypass(&self) -> Option<Reason> {
        self.statements.iter().find_map(|prepared| {
            match self.context.admit(prepared, &self.options) {
                QueryAdmission::Cached => None,
                QueryAdmission::Bypass(why) => Some(why),
                QueryAdmission::Write => Some(Reason::Write),
                QueryAdmission::Refused => Some(Reason::TransactionControl),
            }
        })
    }

    /// Runs the loader without the cache, and then invalidates what its statements write.
    async fn run<T, E, F, Fut>(self, why: Reason, load: F) -> Result<Arc<T>, LoadError<E>>
    where
        T: Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let failed = |error| LoadError::Failed(Arc::new(error));
        let reads = |prepared: &PreparedStatement| {
            use QueryAdmission::{Refused, Write};
            // A text that ends a transaction may write before that.
            !matches!(self.context.admit(prepared, &self.options), Write | Refused)
        };
        if self.statements.iter().all(reads) {
            self.statements.iter().for_each(|prepared| self.context.note_bypass(prepared, why));
            return load().await.map(Arc::new).map_err(failed);
        }
        let outcome = self.context.write(&self.statements, None, async move { load().await }).await;
        written(outcome).map(Arc::new)
    }

    fn name(&self, kind: &dyn fmt::Display) -> String {
        let mut name = String::new();
        for prepared in &self.statements {
            let one = self.context.name(prepared);
            write!(name, "{}:{one}", one.len()).expect("writing to a string cannot fail");
        }
        write!(name, "own {}:{}{kind}", self.key.len(), self.key)
            .expect("writing to a string cannot fail");
        name
    }

    fn tag(&self, fill: &LoadHandle, has_rows: bool) {
        self.statements.iter().for_each(|prepared| self.context.tag_fill(prepared, fill, has_rows));
        self.options.tags.iter().for_each(|tag| fill.tag(tag.clone()));
    }
}

/// A longer input of a key is hashed.
const LONGEST_INPUT: usize = 256;

fn written<T, E>(outcome: Result<Result<T, E>, QueryErrorKind>) -> Result<T, LoadError<E>> {
    match outcome {
        Ok(outcome) => outcome.map_err(|error| LoadError::Failed(Arc::new(error))),
        Err(QueryErrorKind::Panicked) => Err(LoadError::Panicked),
        Err(_) => Err(LoadError::Cancelled),
    }
}

impl fmt::Debug for CachedRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statements = self.statements.iter().map(|prepared| &prepared.statement);
        f.debug_struct("CachedRead")
            .field("statements", &statements.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A value with the number of bytes that it takes in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeighedValue<T> {
    /// The value.
    pub value: T,
    /// Its bytes, including those on the heap.
    pub bytes: usize,
    /// Whether the database has returned rows for it. `false` if that is unknown: a new row then invalidates it.
    pub has_rows: bool,
}

impl<T> WeighedValue<T> {
    fn weight(&self) -> usize {
        self.bytes
    }
}
