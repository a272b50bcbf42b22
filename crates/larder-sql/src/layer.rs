//! The query cache layer, and its options.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use larder_core::{ByteSize, Larder, Lifetime, kernel::Kernel};
use tower_layer::Layer;

use crate::{analysis::SqlDialect, catalog::Catalog, service::QueryCache};

/// A layer that stores the results of queries, and invalidates them when statements write.
///
/// The documentation of the [crate](crate) has its rules.
#[doc(alias("query cache", "second level cache", "result cache"))]
#[derive(Clone)]
#[must_use = "a layer does nothing until it is given to a service"]
pub struct QueryCacheLayer {
    pub(crate) kernel: Kernel,
    pub(crate) options: Options,
}

/// Reads the catalog from the database; returns `None` if the database does not answer.
pub(crate) type CatalogSource = Arc<dyn Fn() -> BoxFuture<'static, Option<Catalog>> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) database: String,
    pub(crate) dialect: SqlDialect,
    pub(crate) catalog: Option<Catalog>,
    pub(crate) source: Option<CatalogSource>,
    pub(crate) lifetime: Lifetime,
    pub(crate) empty_ttl: Duration,
    pub(crate) max_bytes: usize,
    pub(crate) name: &'static str,
    pub(crate) off: bool,
    pub(crate) deadline: Option<Duration>,
    pub(crate) coalesce_timeout: Option<Duration>,
}

impl QueryCacheLayer {
    /// Creates a query cache on this larder, for a database of this SQL dialect.
    pub fn new(larder: &Larder, dialect: SqlDialect) -> Self {
        let options = Options {
            database: "main".to_owned(),
            dialect,
            catalog: None,
            source: None,
            lifetime: Lifetime::fresh_for(Duration::from_secs(600)),
            empty_ttl: Duration::from_secs(10),
            max_bytes: 1 << 20,
            name: "queries",
            off: false,
            deadline: None,
            coalesce_timeout: None,
        };
        Self { kernel: larder.kernel().clone(), options }
    }

    /// Sets the name of the database in tags and keys; `main` by default. All processes must use the same name for the
    /// same database.
    ///
    /// With a [`DatabaseService`](crate::DatabaseService), two databases with the same name do not share results, because the
    /// key also has the identity of the database (the system identifier and the database of PostgreSQL, the file of
    /// SQLite) and the session settings on which results depend. But a write to one database also invalidates the
    /// results of the other. Give the databases different names if you use a custom service, or if the data directories
    /// of two PostgreSQL servers are copies of each other (a restored backup, a promoted replica), because such servers
    /// have the same system identifier.
    pub fn database(mut self, name: impl Into<String>) -> Self {
        self.options.database = name.into();
        self
    }

    /// Sets the catalog. Without a catalog, queries depend on whole tables, and each write invalidates everything.
    pub fn catalog(mut self, catalog: Catalog) -> Self {
        self.options.catalog = Some(catalog);
        self
    }

    /// Sets the lifetime of results; ten minutes by default. A write through this layer invalidates the affected
    /// results at once.
    pub fn ttl(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.lifetime = lifetime.into();
        self
    }

    /// Sets the lifetime of results without rows; ten seconds by default, and never longer than the lifetime of other
    /// results.
    #[doc(alias("negative caching"))]
    pub fn empty_ttl(mut self, time: Duration) -> Self {
        self.options.empty_ttl = time;
        self
    }

    /// Sets the size above which a result is not stored; 1 MiB by default.
    pub fn max_bytes(mut self, most: ByteSize) -> Self {
        self.options.max_bytes = most.as_bytes();
        self
    }

    /// Sets the time after which larder gives up the fill of a query, with
    /// [`QueryErrorKind::TimedOut`](crate::QueryErrorKind::TimedOut). By default a query has no deadline, as without
    /// the cache. Queries that bypass the cache, and writes, never have a deadline.
    #[doc(alias("hard timeout"))]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = Some(deadline);
        self
    }

    /// Sets how long a waiter waits for a fill in flight before larder starts another fill in parallel; 10 s by
    /// default. At most four fills of the same query and values run concurrently.
    pub fn coalesce_timeout(mut self, limit: Duration) -> Self {
        self.options.coalesce_timeout = Some(limit);
        self
    }

    /// Disables the cache, so that each query goes to the database. Writes still invalidate.
    pub fn disabled(mut self) -> Self {
        self.options.off = true;
        self
    }

    /// Sets the name under which [`Stats`](larder_core::Stats) counts this cache; `queries` by default.
    pub fn name(mut self, name: &'static str) -> Self {
        self.options.name = name;
        self
    }
}

impl<S> Layer<S> for QueryCacheLayer {
    type Service = QueryCache<S>;

    fn layer(&self, inner: S) -> QueryCache<S> {
        QueryCache::new(inner, &self.kernel, self.options.clone())
    }
}

impl fmt::Debug for QueryCacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryCacheLayer")
            .field("database", &self.options.database)
            .finish_non_exhaustive()
    }
}
