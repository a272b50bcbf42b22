//! A connection pool of sqlx, as a tower service.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{TryStreamExt as _, future::BoxFuture, stream::BoxStream};
use larder_core::Larder;
use sqlx::Either;
#[cfg(feature = "postgres")]
use sqlx::PgPool;
#[cfg(feature = "sqlite")]
use sqlx::SqlitePool;
use tower_layer::Layer as _;
use tower_service::Service;

use crate::{
    analysis::{SqlDialect, is_empty},
    backend::Backend,
    catalog::Catalog,
    db::Db,
    layer::QueryCacheLayer,
    rows::{Rows, StatementOutcome},
    statement::Statement,
};

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// A service that runs statements on a pool of sqlx. Clones share the pool.
///
/// The kind of database is chosen when the service is created, so the same program can run on SQLite or PostgreSQL.
#[derive(Clone)]
pub struct SqlxService {
    backend: Arc<dyn Backend>,
}

impl SqlxService {
    /// Creates a service over a pool of SQLite connections.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(pool: SqlitePool) -> Self {
        Self { backend: Arc::new(sqlite::SqliteBackend::new(pool)) }
    }

    /// Creates a service over a pool of PostgreSQL connections.
    ///
    /// Placeholders are `$1`, `$2`, … (SQLite accepts them, too). Integers are bound as `bigint`, other numbers as
    /// `double precision`; the server infers the type of a text or a null from its context. If it cannot infer the
    /// type, it returns an error; then write `CAST($1 AS text)`, for example. Columns of type `numeric`, `uuid`,
    /// `json`, `date`, `time` and `timestamp` are returned as text, with times as in RFC 3339; for other types
    /// (`interval`, arrays, …) select `column::text`.
    #[cfg(feature = "postgres")]
    pub fn postgres(pool: PgPool) -> Self {
        Self { backend: Arc::new(postgres::PostgresBackend { pool }) }
    }

    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Returns the SQL dialect of this database.
    pub fn dialect(&self) -> SqlDialect {
        self.backend.dialect()
    }

    /// Reads the catalog of the database.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn catalog(&self) -> sqlx::Result<Catalog> {
        self.backend.catalog().await
    }

    /// Puts a query cache in front of this database, with the catalog of the database.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn cached(self, larder: &Larder) -> sqlx::Result<Db> {
        let layer = QueryCacheLayer::new(larder, self.dialect());
        self.cached_by(layer).await
    }

    /// Does the same as [`SqlxService::cached`] with the given layer. The dialect and the catalog of this database
    /// replace those of the layer.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
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
    /// let layer = QueryCacheLayer::new(&larder, SqlDialect::Sqlite)
    ///     .database("shop")
    ///     .ttl(Duration::from_secs(3600))
    ///     .name("shop queries");
    /// let db = SqlxService::sqlite(pool).cached_by(layer).await?;
    ///
    /// for _ in 0..2 {
    ///     let n: i64 = db.query("SELECT n FROM stock WHERE id = ?").bind(42).fetch_scalar().await?;
    ///     assert_eq!(n, 8);
    /// }
    /// assert_eq!(larder.stats().cache("shop queries").map(|queries| queries.total.hits), Some(1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cached_by(self, layer: QueryCacheLayer) -> sqlx::Result<Db> {
        let mut layer = layer.catalog(self.catalog().await?);
        layer.options.dialect = self.dialect();
        let database = self.clone();
        layer.options.source = Some(Arc::new(move || {
            let database = database.clone();
            Box::pin(async move { database.catalog().await.ok() })
        }));
        Ok(Db::new(layer.layer(self)))
    }
}

/// Gathers all rows of a statement, and the number of changed rows.
async fn gathered<D, R>(
    mut brought: BoxStream<'_, sqlx::Result<Either<D, R>>>,
    text: &str,
    affected: fn(&D) -> u64,
    add: fn(&R, &mut Rows) -> sqlx::Result<()>,
) -> sqlx::Result<StatementOutcome> {
    let is_empty = is_empty(text);
    let (mut answer, mut is_done, mut unread) = (StatementOutcome::default(), false, None);
    while let Some(next) = brought.try_next().await? {
        match next {
            Either::Left(done) => {
                answer.affected += affected(&done);
                is_done = true;
            }
            // Continues to the end, because a write must be complete before its error is returned.
            Either::Right(row) => unread = unread.or(add(&row, &mut answer.rows).err()),
        }
    }
    match unread {
        Some(error) => Err(error),
        None if answer.rows.rows.iter().any(|row| row.len() != answer.rows.columns.len()) => {
            Err(sqlx::Error::Protocol("the columns changed while the rows were read".to_owned()))
        }
        // If the driver fails while it reads, the stream ends without an error and without this final count.
        None if !is_done && !is_empty => Err(sqlx::Error::Protocol(
            "the result of the statement ended early, without a count of rows".to_owned(),
        )),
        None => Ok(answer),
    }
}

impl Service<Statement> for SqlxService {
    type Response = StatementOutcome;
    type Error = sqlx::Error;
    type Future = BoxFuture<'static, sqlx::Result<StatementOutcome>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<sqlx::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, statement: Statement) -> Self::Future {
        Arc::clone(&self.backend).run(statement)
    }
}

impl fmt::Debug for SqlxService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxService").field("dialect", &self.dialect()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _, stream};

    use super::*;

    type Said = sqlx::Result<Either<u64, &'static [i64]>>;

    /// The outcome of a stream with these items.
    fn gathering(said: Vec<Said>, text: &str) -> sqlx::Result<StatementOutcome> {
        let add = |row: &&'static [i64], rows: &mut Rows| {
            if row.is_empty() {
                return Err(sqlx::Error::ColumnNotFound("v".to_owned()));
            }
            rows.columns = vec!["v".to_owned()];
            rows.rows.push(row.iter().map(|value| (*value).into()).collect());
            Ok(())
        };
        let gathered = gathered(stream::iter(said).boxed(), text, |done: &u64| *done, add);
        gathered.now_or_never().expect("the stream is ready")
    }

    #[test]
    fn a_statement_outcome_is_complete_or_an_error() {
        let whole =
            gathering(vec![Ok(Either::Right(&[1])), Ok(Either::Left(3))], "SELECT").unwrap();
        assert_eq!((whole.affected, whole.rows.rows.len()), (3, 1));
        // If the driver fails while it reads, the stream ends.
        assert!(gathering(vec![], "SELECT 1").is_err());
        assert!(gathering(vec![Ok(Either::Right(&[1]))], "SELECT 1").is_err());
        // The columns changed while the rows were read.
        assert!(
            gathering(vec![Ok(Either::Right(&[1, 2])), Ok(Either::Left(0))], "SELECT").is_err()
        );
        // A row cannot be read, and another row follows.
        let unread = vec![Ok(Either::Right(&[][..])), Ok(Either::Right(&[1])), Ok(Either::Left(1))];
        assert!(matches!(gathering(unread, "SELECT"), Err(sqlx::Error::ColumnNotFound(_))));
        for nothing in ["", " ;", "-- nothing", "/* nothing */"] {
            assert_eq!(gathering(vec![], nothing).unwrap().affected, 0, "{nothing}");
        }
    }
}
