//! Queries that the application writes with sqlx: `query!`, `query_as!`, `query_scalar!`, and the functions of the same
//! names.

use std::{any::TypeId, fmt, marker::PhantomData, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use larder_core::{Lifetime, LoadError, Tag};
use larder_sql::{
    CachedRead, IntoValues, QueryError, SqlValue, Statement, Transaction, WeighedValue,
};

use super::{
    pool::{CachedDatabase, DatabaseHandle, Source},
    sqlx::{self, Database, Error},
};
use crate::rows::{SharedQueryRow, SharedQueryRows};

/// Caches the rows of a query that the application writes with sqlx. `make` makes the query, and `values` are the values
/// that are bound to it.
///
/// **Give the same values in the same order.** larder finds the rows on which the result depends by `values`. It refuses a
/// wrong number of them. If two are exchanged, calls with different values still do not share rows, but a write may not
/// invalidate the result.
///
/// larder analyses the text of the query once. Its result has the tags of its tables, or of its rows where the values pin
/// them, and a page or value that is built from the rows has them too. The types that the query declares, its `FromRow`
/// and its check at compile time stay as they are, and the rows do not have to be serialisable: larder stores them in the
/// memory of this process, and not in the second level.
///
/// `make` is called for each call, to find the text and the encoded values, and again if the query has to run. It must not
/// borrow, because larder runs the query in a task of its own: give it a copy of each value.
///
/// A query that writes (`UPDATE … RETURNING`) belongs into [`invalidating`]. If it comes here, it is not cached, and what it
/// changes is invalidated when the call returns, too.
///
/// A query with [`map`](sqlx::query::Query::map) is cached apart from the same query with another mapper. A mapper that
/// captures values does not compile, because they are not in the key: map the fetched rows instead.
///
/// # Memory
///
/// sqlx does not show larder the sizes of the rows of its macros. larder counts the size of the row type and 256 bytes for
/// each row; [`CachedQuery::weigh_by`] gives the bytes of larger rows. For the functions (`query_as`, `query_scalar`)
/// larder counts what the database sends.
///
/// # Examples
///
/// [`CachedPool`](super::CachedPool) has an example.
#[doc(alias("query_as!", "query!", "FromRow", "query cache"))]
pub fn cached<DB, Q, F>(values: impl IntoValues, make: F) -> CachedQuery<DB, Q, F>
where
    DB: CachedDatabase,
    Q: RowQuery<DB>,
    F: Fn() -> Q + Send + 'static,
{
    CachedQuery {
        values: values.into_values(),
        make,
        options: CacheOptions::default(),
        weigh: None,
        of: PhantomData,
    }
}

/// Runs a write that the application writes with sqlx, and invalidates everything that it may have changed when the call
/// returns, also if it fails or its caller is dropped. `make` makes the query, and `values` are the values that are bound
/// to it.
///
/// **Give the same values in the same order.** larder finds the rows that the write changes by `values`. If two are
/// exchanged, it invalidates other rows, and stale results remain.
///
/// In a [`CachedTransaction`](super::CachedTransaction) it invalidates at the commit.
///
/// # Examples
///
/// [`CachedPool`](super::CachedPool) has an example.
pub fn invalidating<Q, F>(values: impl IntoValues, make: F) -> InvalidatingQuery<F>
where
    F: Fn() -> Q + Send + 'static,
{
    InvalidatingQuery { values: values.into_values(), make }
}

/// The text of a query and what is bound to it.
#[doc(hidden)]
#[derive(Debug)]
pub struct QueryParts {
    pub(super) text: String,
    /// The number of the bound values.
    pub(super) bound: usize,
    /// The encoded values, in a form that differs for different values.
    pub(super) encoded: String,
}

impl QueryParts {
    /// Returns the statement of these values.
    fn statement(&self, values: Vec<SqlValue>) -> Result<Statement, Error> {
        let given = values.len();
        if given != self.bound {
            let (bound, text) = (self.bound, &self.text);
            return Err(Error::Protocol(format!(
                "{given} values are given to larder, and {bound} are bound to the statement: give all of them, in order, so that they are in the key: {text}"
            )));
        }
        Ok(Statement::new(self.text.clone()).bind_all(values))
    }
}

/// A query of sqlx that returns rows.
pub trait RowQuery<DB: Database>: Send + Sized + 'static {
    /// The type of a row.
    type Row: Send + Sync + 'static;

    /// The bytes of the values that the query captures for its rows.
    #[doc(hidden)]
    const CAPTURED_BYTES: usize = 0;

    #[doc(hidden)]
    fn parts(self) -> Result<QueryParts, Error>;

    #[doc(hidden)]
    fn rows(
        self,
        connection: &mut DB::Connection,
        only_first: bool,
    ) -> BoxFuture<'_, Result<WeighedValue<Vec<Self::Row>>, Error>>;
}

/// A query of sqlx that is executed for its effect.
pub trait WriteQuery<DB: Database>: Send + Sized + 'static {
    #[doc(hidden)]
    fn parts(self) -> Result<QueryParts, Error>;

    #[doc(hidden)]
    fn run(self, connection: &mut DB::Connection) -> BoxFuture<'_, Result<DB::QueryResult, Error>>;
}

#[derive(Clone, Debug, Default)]
struct CacheOptions {
    lifetime: Option<Lifetime>,
    tags: Vec<Tag>,
    uncached: bool,
    deadline: Option<Duration>,
}

impl CacheOptions {
    fn apply(self, mut read: CachedRead) -> CachedRead {
        if let Some(lifetime) = self.lifetime {
            read = read.cached_for(lifetime);
        }
        if let Some(deadline) = self.deadline {
            read = read.deadline(deadline);
        }
        if self.uncached {
            read = read.uncached();
        }
        read.tags(self.tags)
    }
}

/// A query of the application that has not run yet. [`cached`] creates it.
#[must_use = "a query does nothing until it is fetched"]
pub struct CachedQuery<DB: CachedDatabase, Q: RowQuery<DB>, F> {
    values: Vec<SqlValue>,
    make: F,
    options: CacheOptions,
    weigh: Option<fn(&Q::Row) -> usize>,
    of: PhantomData<fn() -> (DB, Q)>,
}

impl<DB, Q, F> CachedQuery<DB, Q, F>
where
    DB: CachedDatabase,
    Q: RowQuery<DB>,
    F: Fn() -> Q + Send + 'static,
{
    /// Stores the rows for this lifetime, even if the query is volatile.
    pub fn cached_for(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.lifetime = Some(lifetime.into());
        self
    }

    /// Adds tags to the tags that the analysis finds.
    pub fn tags<G: Into<Tag>>(mut self, tags: impl IntoIterator<Item = G>) -> Self {
        self.options.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Bypasses the cache for this call.
    pub fn uncached(mut self) -> Self {
        self.options.uncached = true;
        self
    }

    /// Sets the time after which larder gives up the fill; by default a query has no deadline, as without the cache.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = Some(deadline);
        self
    }

    /// Sets the function that returns the bytes that a row takes in memory.
    pub fn weigh_by(mut self, weigh: fn(&Q::Row) -> usize) -> Self {
        self.weigh = Some(weigh);
        self
    }

    /// Fetches all rows.
    ///
    /// # Errors
    ///
    /// As the query itself. The error of a fill is shared by its waiters, so it is one of `sqlx::Error` that can be
    /// copied: `RowNotFound`, `PoolTimedOut` and `PoolClosed` stay as they are, `Database` has the same message, code, kind,
    /// constraint and table, but does not downcast to the type of the driver, and any other is `AnyDriverError` with the
    /// original as its text and source.
    pub fn fetch_all<'a>(
        self,
        database: impl Into<DatabaseHandle<'a, DB>>,
    ) -> BoxFuture<'a, Result<SharedQueryRows<Q::Row>, Error>> {
        let database = database.into();
        Box::pin(async move { self.fetch(database, false).await.map(SharedQueryRows::new) })
    }

    /// Fetches the first row, if there is one.
    ///
    /// # Errors
    ///
    /// As [`CachedQuery::fetch_all`].
    pub fn fetch_optional<'a>(
        self,
        database: impl Into<DatabaseHandle<'a, DB>>,
    ) -> BoxFuture<'a, Result<Option<SharedQueryRow<Q::Row>>, Error>> {
        let database = database.into();
        Box::pin(async move { self.fetch(database, true).await.map(SharedQueryRow::of) })
    }

    /// Fetches the first row.
    ///
    /// # Errors
    ///
    /// As [`CachedQuery::fetch_all`], and with `RowNotFound` if there is none. The absence of a row is stored, too, for
    /// [`empty_ttl`](larder_sql::QueryCacheLayer::empty_ttl).
    pub fn fetch_one<'a>(
        self,
        database: impl Into<DatabaseHandle<'a, DB>>,
    ) -> BoxFuture<'a, Result<SharedQueryRow<Q::Row>, Error>> {
        let found = self.fetch_optional(database);
        Box::pin(async move { found.await?.ok_or(Error::RowNotFound) })
    }

    async fn fetch(
        self,
        database: DatabaseHandle<'_, DB>,
        only_first: bool,
    ) -> Result<Arc<WeighedValue<Vec<Q::Row>>>, Error> {
        let Self { values, make, options, weigh, .. } = self;
        let parts = make().parts()?;
        let statement = parts.statement(values)?;
        let pool = match database.0 {
            Source::Pool(pool) => pool,
            Source::Transaction(transaction) => {
                let query = make();
                let run = async move |connection: &mut DB::Connection| {
                    query.rows(connection, only_first).await
                };
                return in_transaction::<DB, _>(transaction, statement, run).await.map(Arc::new);
            }
        };
        let read = options.apply(pool.cached(statement));
        // The encoded values repeat the values of the statement. If one of those is wrong, two calls still do not share
        // rows that are bound to different values.
        // Queries with one text may still make different rows of it: the type of the query has the type of its mapper,
        // which has no state.
        const {
            assert!(
                Q::CAPTURED_BYTES == 0,
                "the rows of a cached query must not depend on values that `map` or `try_map` captures, because they are not in the key: map the rows after they are fetched"
            );
        }
        let read = read.key(only_first).key(parts.encoded);
        let read = read.key(format_args!("{:?}", TypeId::of::<Q>()));
        let pool = pool.pool().clone();
        let load = move || async move {
            let query = make();
            // Not borrowed beyond this line, so that `F` does not have to be `Sync`.
            drop(make);
            let mut connection = pool.acquire().await?;
            let rows = query.rows(&mut connection, only_first).await?;
            Ok(match weigh {
                Some(weigh) => WeighedValue { bytes: rows.value.iter().map(weigh).sum(), ..rows },
                None => rows,
            })
        };
        read.load_local(load).await.map_err(sqlx_error)
    }
}

impl<DB: CachedDatabase, Q: RowQuery<DB>, F> fmt::Debug for CachedQuery<DB, Q, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedQuery").field("values", &self.values).finish_non_exhaustive()
    }
}

/// A write of the application that has not run yet. [`invalidating`] creates it.
///
/// Everything that it may have changed is invalidated when one of its methods returns, also if it returns an error; in a
/// transaction, at its commit.
#[must_use = "a query does nothing until it is executed"]
pub struct InvalidatingQuery<F> {
    values: Vec<SqlValue>,
    make: F,
}

impl<F> InvalidatingQuery<F> {
    /// Runs the write.
    ///
    /// # Errors
    ///
    /// As the query itself.
    pub fn execute<'a, DB, Q>(
        self,
        database: impl Into<DatabaseHandle<'a, DB>>,
    ) -> BoxFuture<'a, Result<DB::QueryResult, Error>>
    where
        DB: CachedDatabase,
        Q: WriteQuery<DB>,
        F: Fn() -> Q + Send + 'static,
    {
        let database = database.into();
        Box::pin(async move {
            let statement = (self.make)().parts()?.statement(self.values)?;
            let query = (self.make)();
            // Not borrowed beyond this line, so that `F` does not have to be `Sync`.
            drop(self.make);
            match database.0 {
                Source::Pool(pool) => {
                    let connections = pool.pool().clone();
                    let write = async move { query.run(&mut *connections.acquire().await?).await };
                    pool.write(statement, write).await.map_err(sqlx_error)
                }
                Source::Transaction(transaction) => {
                    let run =
                        async move |connection: &mut DB::Connection| query.run(connection).await;
                    in_transaction::<DB, _>(transaction, statement, run).await
                }
            }
        })
    }

    /// Runs the write, and returns its rows (`RETURNING`).
    ///
    /// # Errors
    ///
    /// As the query itself.
    pub fn fetch_all<'a, DB, Q>(
        self,
        database: impl Into<DatabaseHandle<'a, DB>>,
    ) -> BoxFuture<'a, Result<Vec<Q::Row>, Error>>
    where
        DB: CachedDatabase,
        Q: RowQuery<DB>,
        F: Fn() -> Q + Send + 'static,
    {
        self.rows(database.into(), false)
    }

    /// Runs the write, and returns its first row, if there is one.
    ///
    /// # Errors
    ///
    /// As the query itself.
    pub fn fetch_optional<'a, DB, Q>(
        self,
        database: impl Into<DatabaseHandle<'a, DB>>,
    ) -> BoxFuture<'a, Result<Option<Q::Row>, Error>>
    where
        DB: CachedDatabase,
        Q: RowQuery<DB>,
        F: Fn() -> Q + Send + 'static,
    {
        let rows = self.rows(database.into(), true);
        Box::pin(async move { Ok(rows.await?.into_iter().next()) })
    }

    /// Runs the write, and returns its first row.
    ///
    /// # Errors
    ///
    /// As the query itself, and with `RowNotFound` if there is none.
    pub fn fetch_one<'a, DB, Q>(
        self,
        database: impl Into<DatabaseHandle<'a, DB>>,
    ) -> BoxFuture<'a, Result<Q::Row, Error>>
    where
        DB: CachedDatabase,
        Q: RowQuery<DB>,
        F: Fn() -> Q + Send + 'static,
    {
        let row = self.fetch_optional(database);
        Box::pin(async move { row.await?.ok_or(Error::RowNotFound) })
    }

    fn rows<DB, Q>(
        self,
        database: DatabaseHandle<'_, DB>,
        only_first: bool,
    ) -> BoxFuture<'_, Result<Vec<Q::Row>, Error>>
    where
        DB: CachedDatabase,
        Q: RowQuery<DB>,
        F: Fn() -> Q + Send + 'static,
    {
        Box::pin(async move {
            let statement = (self.make)().parts()?.statement(self.values)?;
            let query = (self.make)();
            drop(self.make);
            let rows = match database.0 {
                Source::Pool(pool) => {
                    let connections = pool.pool().clone();
                    let write = async move {
                        query.rows(&mut *connections.acquire().await?, only_first).await
                    };
                    pool.write(statement, write).await.map_err(sqlx_error)
                }
                Source::Transaction(transaction) => {
                    let run = async move |connection: &mut DB::Connection| {
                        query.rows(connection, only_first).await
                    };
                    in_transaction::<DB, _>(transaction, statement, run).await
                }
            };
            rows.map(|rows| rows.value)
        })
    }
}

impl<F> fmt::Debug for InvalidatingQuery<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidatingQuery").field("values", &self.values).finish_non_exhaustive()
    }
}

/// Runs a statement in a transaction, which invalidates at its commit.
async fn in_transaction<DB: CachedDatabase, T>(
    transaction: &mut Transaction,
    statement: Statement,
    run: impl AsyncFnOnce(&mut DB::Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    let running = transaction.begin_statement(statement).await.map_err(larder_error)?;
    let connection = transaction.driver_connection::<DB::Connection>();
    let outcome =
        run(connection.expect("a transaction of a pool has a connection of the same database"))
            .await;
    transaction.end_statement(running, outcome.is_ok());
    outcome
}

/// An error of larder itself.
fn larder_error(error: QueryError) -> Error {
    Error::AnyDriverError(Box::new(error))
}

/// Converts the error of a fill, which its waiters share.
fn sqlx_error(error: LoadError<Error>) -> Error {
    let LoadError::Failed(error) = error else { return Error::AnyDriverError(Box::new(error)) };
    match Arc::try_unwrap(error) {
        Ok(error) => error,
        Err(shared) => match &*shared {
            Error::RowNotFound => Error::RowNotFound,
            Error::PoolTimedOut => Error::PoolTimedOut,
            Error::PoolClosed => Error::PoolClosed,
            Error::Database(_) => Error::Database(Box::new(SharedDatabaseError(shared))),
            _ => Error::AnyDriverError(Box::new(SharedError(shared))),
        },
    }
}

/// An error that the waiters of a fill share.
#[derive(Debug)]
struct SharedError(Arc<Error>);

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// The error of a database that the waiters of a fill share. It is not the type of the driver, so it does not downcast to it.
#[derive(Debug)]
struct SharedDatabaseError(Arc<Error>);

impl SharedDatabaseError {
    fn shared(&self) -> &dyn sqlx::error::DatabaseError {
        self.0.as_database_error().expect("it is made of the error of a database")
    }
}

impl fmt::Display for SharedDatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.shared(), f)
    }
}

impl std::error::Error for SharedDatabaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

impl sqlx::error::DatabaseError for SharedDatabaseError {
    fn message(&self) -> &str {
        self.shared().message()
    }

    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.shared().code()
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn is_transient_in_connect_phase(&self) -> bool {
        self.shared().is_transient_in_connect_phase()
    }

    fn constraint(&self) -> Option<&str> {
        self.shared().constraint()
    }

    fn table(&self) -> Option<&str> {
        self.shared().table()
    }

    fn kind(&self) -> sqlx::error::ErrorKind {
        self.shared().kind()
    }
}

/// The bytes that are counted for a row of a macro beside its type.
pub(super) const UNSEEN_BYTES: usize = 256;

/// Implements [`RowQuery`] and [`WriteQuery`] for the queries of sqlx of one database.
macro_rules! application_queries {
    ($database:ident, $arguments:ty, $row:ident, $driver:ident) => {
        impl CachedDatabase for $database {
            fn service(pool: sqlx::Pool<Self>) -> DatabaseService {
                DatabaseService::new($driver { pool })
            }
        }

        impl<O, M> RowQuery<$database> for sqlx::query::Map<'static, $database, M, $arguments>
        where
            O: Send + Sync + Unpin + 'static,
            M: FnMut($row) -> Result<O, sqlx::Error> + Send + 'static,
        {
            type Row = O;

            const CAPTURED_BYTES: usize = size_of::<M>();

            fn parts(self) -> Result<QueryParts, sqlx::Error> {
                parts(self)
            }

            fn rows(
                self,
                connection: &mut <$database as sqlx::Database>::Connection,
                only_first: bool,
            ) -> BoxFuture<'_, Result<WeighedValue<Vec<O>>, sqlx::Error>> {
                Box::pin(async move {
                    let fetched = match only_first {
                        true => self.fetch_optional(&mut *connection).await.map(Vec::from_iter),
                        false => self.fetch_all(&mut *connection).await,
                    };
                    if fetched.is_err() {
                        // The mapper may have refused a row while the statement still runs. A write must be complete
                        // before larder invalidates, and the next command of a connection waits for the last one.
                        let _the_first_error_counts = connection.ping().await;
                    }
                    let value = fetched?;
                    let bytes = value.len() * (size_of::<O>() + UNSEEN_BYTES);
                    Ok(WeighedValue { has_rows: !value.is_empty(), value, bytes })
                })
            }
        }

        impl<O> RowQuery<$database> for sqlx::query::QueryAs<'static, $database, O, $arguments>
        where
            O: for<'r> sqlx::FromRow<'r, $row> + Send + Sync + Unpin + 'static,
        {
            type Row = O;

            fn parts(self) -> Result<QueryParts, sqlx::Error> {
                parts(self)
            }

            fn rows(
                self,
                connection: &mut <$database as sqlx::Database>::Connection,
                only_first: bool,
            ) -> BoxFuture<'_, Result<WeighedValue<Vec<O>>, sqlx::Error>> {
                Box::pin(async move {
                    let raw = raw_rows(connection, self, only_first).await?;
                    let value: Vec<O> = raw.iter().map(O::from_row).collect::<Result<_, _>>()?;
                    let bytes = raw.iter().map(weight).sum::<usize>() + size_of_val(&*value);
                    Ok(WeighedValue { has_rows: !value.is_empty(), value, bytes })
                })
            }
        }

        impl<O> RowQuery<$database> for sqlx::query::QueryScalar<'static, $database, O, $arguments>
        where
            O: Send + Sync + Unpin + 'static,
            (O,): for<'r> sqlx::FromRow<'r, $row>,
        {
            type Row = O;

            fn parts(self) -> Result<QueryParts, sqlx::Error> {
                parts(self)
            }

            fn rows(
                self,
                connection: &mut <$database as sqlx::Database>::Connection,
                only_first: bool,
            ) -> BoxFuture<'_, Result<WeighedValue<Vec<O>>, sqlx::Error>> {
                Box::pin(async move {
                    let raw = raw_rows(connection, self, only_first).await?;
                    let one = |row| <(O,) as sqlx::FromRow<$row>>::from_row(row).map(|row| row.0);
                    let value: Vec<O> = raw.iter().map(one).collect::<Result<_, _>>()?;
                    let bytes = raw.iter().map(weight).sum::<usize>() + size_of_val(&*value);
                    Ok(WeighedValue { has_rows: !value.is_empty(), value, bytes })
                })
            }
        }

        impl WriteQuery<$database> for sqlx::query::Query<'static, $database, $arguments> {
            fn parts(self) -> Result<QueryParts, sqlx::Error> {
                parts(self)
            }

            fn run(
                self,
                connection: &mut <$database as sqlx::Database>::Connection,
            ) -> BoxFuture<'_, Result<<$database as sqlx::Database>::QueryResult, sqlx::Error>>
            {
                Box::pin(self.execute(connection))
            }
        }

        /// Takes a query apart.
        fn parts(
            mut query: impl sqlx::Execute<'static, $database>,
        ) -> Result<QueryParts, sqlx::Error> {
            let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
            let bound = arguments.as_ref().map_or(0, sqlx::Arguments::len);
            let encoded = format!("{arguments:?}");
            Ok(QueryParts { text: text_of::<$database, _>(query), bound, encoded })
        }

        async fn raw_rows(
            connection: &mut <$database as sqlx::Database>::Connection,
            query: impl sqlx::Execute<'static, $database> + 'static,
            only_first: bool,
        ) -> Result<Vec<$row>, sqlx::Error> {
            Ok(match only_first {
                true => Vec::from_iter(connection.fetch_optional(query).await?),
                false => connection.fetch_all(query).await?,
            })
        }
    };
}
