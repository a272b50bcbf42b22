//! The query cache service: answers queries from the cache or the database, and invalidates after writes.

use std::{
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use larder_core::{
    Kind, Lifetime, LoadError, LoadHandle, Reason, Tag,
    kernel::{Kernel, Schema},
};
use serde::{Serialize, de::DeserializeOwned};
use tower_service::Service;

use crate::{
    analysis::StatementKind,
    catalog::Catalog,
    context::{PreparedStatement, QueryAdmission, QueryContext},
    driver::{DriverError, DriverErrorKind},
    error::{QueryError, QueryErrorKind},
    layer::Options,
    rows::StatementOutcome,
    statement::Statement,
};

/// A query whose rows are decoded into values of `T`. It is one of the two request types of a [`QueryCache`].
pub struct Fetch<T> {
    statement: Statement,
    options: QueryOptions,
    rows: PhantomData<fn() -> T>,
}

/// The options of a single query.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueryOptions {
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) uncached: bool,
    pub(crate) deadline: Option<Duration>,
    pub(crate) coalesce_timeout: Option<Duration>,
}

impl<T> Fetch<T> {
    /// Creates a query for the rows of this statement.
    pub fn new(statement: Statement) -> Self {
        Self::wishing(statement, QueryOptions::default())
    }

    pub(crate) fn wishing(statement: Statement, options: QueryOptions) -> Self {
        Self { statement, options, rows: PhantomData }
    }

    /// Stores the rows for this lifetime, even if the query is volatile, for example because it calls `now()`. A page
    /// or value that is built from the rows is fresh no longer than the rows are.
    #[must_use]
    pub fn cached_for(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.lifetime = Some(lifetime.into());
        self
    }

    /// Bypasses the cache, so that larder queries the database and does not store the result.
    #[must_use]
    pub fn uncached(mut self) -> Self {
        self.options.uncached = true;
        self
    }

    /// Sets the time after which larder gives up the fill of the query, with [`QueryErrorKind::TimedOut`]. If neither
    /// this nor [`QueryCacheLayer::deadline`](crate::QueryCacheLayer::deadline) is set, a query has no deadline, as
    /// without the cache. Queries that bypass the cache, and writes, never have a deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = Some(deadline);
        self
    }

    /// Sets how long a waiter waits for a fill in flight before larder starts another fill in parallel; 10 s by
    /// default. At most four fills of the same query and values run concurrently.
    #[must_use]
    pub fn coalesce_timeout(mut self, limit: Duration) -> Self {
        self.options.coalesce_timeout = Some(limit);
        self
    }

    /// Adds tags to the tags that the analysis finds. A query that bypasses the cache ignores the added tags.
    #[must_use]
    pub fn tags<G: Into<Tag>>(mut self, tags: impl IntoIterator<Item = G>) -> Self {
        self.options.tags.extend(tags.into_iter().map(Into::into));
        self
    }
}

/// A type into which rows are decoded. The first level shares the values as they are; for the second level, they are
/// serialised.
pub trait CacheableRow: Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> CacheableRow for T {}

/// A service that runs statements: a database, or a stand-in for a database.
pub trait Database:
    Service<Statement, Response = StatementOutcome, Error: Into<BoxError>, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}
impl<S> Database for S where
    S: Service<
            Statement,
            Response = StatementOutcome,
            Error: Into<BoxError>,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A service that stores the results of queries. [`QueryCacheLayer`](crate::QueryCacheLayer) builds it.
///
/// It takes two types of requests. It answers a [`Fetch`] from the cache if possible, with shared values instead of
/// copies; a [`Statement`] always goes to the database.
pub struct QueryCache<S> {
    inner: S,
    context: Arc<QueryContext>,
}

impl<S> QueryCache<S> {
    pub(crate) fn new(inner: S, kernel: &Kernel, options: Options) -> Self {
        Self { inner, context: Arc::new(QueryContext::new(kernel, options)) }
    }

    pub(crate) fn context(&self) -> &Arc<QueryContext> {
        &self.context
    }

    pub(crate) fn inner(&self) -> &S {
        &self.inner
    }

    /// Replaces the catalog, for example after another process has migrated the database.
    pub fn learn(&self, catalog: Catalog) {
        self.context.learn(catalog);
    }
}

impl<S: Database> QueryCache<S> {
    /// Returns the rows of a query, from the cache if possible.
    pub(crate) async fn fetch<T: CacheableRow>(
        &self,
        fetch: Fetch<T>,
    ) -> Result<Arc<Vec<T>>, QueryError> {
        let Fetch { statement, options, .. } = fetch;
        let prepared = self.context.prepare(statement);
        match self.context.admit(&prepared, &options) {
            QueryAdmission::Cached => {
                let name = format!("{}{}", self.context.name(&prepared), Schema::of::<T>());
                let policy = self.context.policy(&options);
                let (inner, context) = (self.inner.clone(), Arc::clone(&self.context));
                let load = move |fill| load::<S, T>(inner, context, prepared, options, fill);
                let kernel = &self.context.kernel;
                kernel.get_or_fill(Kind::Query, name, policy, load).await.map_err(unwrapped)
            }
            QueryAdmission::Bypass(why) => {
                self.context.note_bypass(&prepared, why);
                let answer = ask(self.inner.clone(), prepared.statement).await?;
                decoded(&answer)
            }
            QueryAdmission::Write => {
                let answer = self.write(prepared).await?;
                decoded(&answer).map_err(|error| error.of_kind(QueryErrorKind::WrittenUnread))
            }
            QueryAdmission::Refused => Err(QueryError::new(QueryErrorKind::NotAllowed)),
        }
    }

    /// Runs a statement, and invalidates everything that it may have changed.
    pub(crate) async fn run(&self, statement: Statement) -> Result<StatementOutcome, QueryError> {
        let prepared = self.context.prepare(statement);
        match self.context.admit(&prepared, &QueryOptions::default()) {
            QueryAdmission::Write => self.write(prepared).await,
            QueryAdmission::Refused => Err(QueryError::new(QueryErrorKind::NotAllowed)),
            QueryAdmission::Cached | QueryAdmission::Bypass(_) => {
                self.context.note_bypass(&prepared, Reason::Statement);
                ask(self.inner.clone(), prepared.statement).await
            }
        }
    }

    /// Runs a write, and then invalidates.
    async fn write(&self, prepared: PreparedStatement) -> Result<StatementOutcome, QueryError> {
        let commit = self.context.commit_id();
        let commit = commit.filter(|_| prepared.analysis.nature == StatementKind::Write);
        let statement = prepared.statement.clone().committed_as(commit);
        let running = ask(self.inner.clone(), statement);
        let outcome = self.context.write(&[prepared], commit, running).await;
        outcome.map_err(QueryError::new)?.map_err(written_unread)
    }
}

async fn load<S: Database, T: CacheableRow>(
    inner: S,
    context: Arc<QueryContext>,
    prepared: PreparedStatement,
    options: QueryOptions,
    fill: LoadHandle,
) -> Result<Vec<T>, QueryError> {
    options.tags.iter().for_each(|tag| fill.tag(tag.clone()));
    context.note_query();
    let rows = ask(inner, prepared.statement.clone()).await?.rows;
    context.tag_fill(&prepared, &fill, !rows.rows.is_empty());
    context.limit_fill(&fill, &options, rows.rows.is_empty(), rows.weight());
    rows.decode().map_err(|error| QueryError::because(QueryErrorKind::Decode, error))
}

async fn ask<S: Database>(
    mut inner: S,
    statement: Statement,
) -> Result<StatementOutcome, QueryError> {
    let failed = |error: S::Error| QueryError::because(QueryErrorKind::Database, error);
    std::future::poll_fn(|cx| inner.poll_ready(cx)).await.map_err(failed)?;
    inner.call(statement).await.map_err(failed)
}

/// Turns the error of a write into `WrittenUnread` if the statement was executed but its rows could not be read.
pub(crate) fn written_unread(error: QueryError) -> QueryError {
    match error.driver_error().map(DriverError::kind) {
        Some(DriverErrorKind::Unreadable) => error.of_kind(QueryErrorKind::WrittenUnread),
        _ => error,
    }
}

fn decoded<T: CacheableRow>(answer: &StatementOutcome) -> Result<Arc<Vec<T>>, QueryError> {
    let values = answer.rows.decode();
    values.map(Arc::new).map_err(|error| QueryError::because(QueryErrorKind::Decode, error))
}

fn unwrapped(error: LoadError<QueryError>) -> QueryError {
    match error {
        LoadError::Failed(error) => QueryError::clone(&error),
        LoadError::TimedOut { deadline } => {
            QueryError::because(QueryErrorKind::TimedOut, format!("the deadline is {deadline:?}"))
        }
        LoadError::Cancelled => QueryError::new(QueryErrorKind::Cancelled),
        LoadError::Panicked => QueryError::new(QueryErrorKind::Panicked),
        // The only other error is that a fill waits for itself, because the key has the type and all fills fail with a
        // `QueryError`.
        other => QueryError::because(QueryErrorKind::TooLong, other.to_string()),
    }
}

impl<S: Database> Service<Statement> for QueryCache<S> {
    type Response = StatementOutcome;
    type Error = QueryError;
    type Future = BoxFuture<'static, Result<StatementOutcome, QueryError>>;

    /// Always returns ready, because a hit does not wait for the database. Each request that reaches the inner service
    /// polls its own clone of it until it is ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), QueryError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, statement: Statement) -> Self::Future {
        let cache = self.clone();
        Box::pin(async move { cache.run(statement).await })
    }
}

impl<S: Database, T: CacheableRow> Service<Fetch<T>> for QueryCache<S> {
    type Response = Arc<Vec<T>>;
    type Error = QueryError;
    type Future = BoxFuture<'static, Result<Arc<Vec<T>>, QueryError>>;

    /// Always returns ready, as for a [`Statement`].
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), QueryError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, fetch: Fetch<T>) -> Self::Future {
        let cache = self.clone();
        Box::pin(async move { cache.fetch(fetch).await })
    }
}

impl<S: Clone> Clone for QueryCache<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), context: Arc::clone(&self.context) }
    }
}

impl<S: fmt::Debug> fmt::Debug for QueryCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryCache").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<T> Clone for Fetch<T> {
    fn clone(&self) -> Self {
        Self::wishing(self.statement.clone(), self.options.clone())
    }
}

impl<T> fmt::Debug for Fetch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("statement", &self.statement).finish_non_exhaustive()
    }
}
