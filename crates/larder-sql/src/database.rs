//! A database as a tower service, over any [`Driver`].

use std::{
    fmt,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use larder_core::{Larder, store::CommitId};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tower_layer::Layer as _;
use tower_service::Service;

use crate::{
    analysis::SqlDialect,
    catalog::{self, Catalog},
    context::QueryContext,
    db::Db,
    driver::{Connection, Driver, DriverError, DriverErrorKind, TransactionConnection},
    error::QueryError,
    layer::QueryCacheLayer,
    outbox::{self, follower::OutboxReader},
    rows::StatementOutcome,
    statement::Statement,
    value::SqlValue,
};

/// A service that runs statements on the connection pool of a driver. Clones share the pool.
///
/// An adapter creates it, such as `larder_sqlx::v0_9::sqlite` or `larder_sqlx::v0_9::postgres`. The type does not depend on the
/// kind of database, so the same program can run on SQLite or PostgreSQL.
#[derive(Clone)]
pub struct DatabaseService {
    driver: Arc<dyn Driver>,
    /// A random number that identifies an in-memory database, which has no other identity.
    id: u128,
}

impl DatabaseService {
    /// Creates a service over a driver.
    pub fn new(driver: impl Driver) -> Self {
        let half = || u128::from(RandomState::new().build_hasher().finish());
        Self { driver: Arc::new(driver), id: half() << 64 | half() }
    }

    /// Returns the driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Returns the SQL dialect of this database.
    pub fn dialect(&self) -> SqlDialect {
        self.driver.dialect()
    }

    /// Reads the catalog of the database.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn catalog(&self) -> Result<Catalog, QueryError> {
        self.read_catalog().await.map_err(QueryError::database)
    }

    async fn read_catalog(&self) -> Result<Catalog, DriverError> {
        match self.dialect() {
            SqlDialect::Sqlite => {
                catalog::sqlite::read(&mut *self.driver.acquire().await?, self.id).await
            }
            SqlDialect::Postgres => {
                let mut snapshot = self.driver.begin(READ_ONLY_SNAPSHOT).await?;
                let catalog = catalog::postgres::read(&mut *snapshot).await?;
                snapshot.rollback().await?;
                Ok(catalog)
            }
        }
    }

    /// Puts a query cache in front of this database, with the catalog of the database.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn cached(self, larder: &Larder) -> Result<Db, QueryError> {
        let layer = QueryCacheLayer::new(larder, self.dialect());
        self.cached_by(layer).await
    }

    /// Does the same as [`DatabaseService::cached`] with the given layer. The dialect and the catalog of this database
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
    /// let db = larder_sqlx::v0_9::sqlite(pool).cached_by(layer).await?;
    ///
    /// for _ in 0..2 {
    ///     let n: i64 = db.query("SELECT n FROM stock WHERE id = ?").bind(42).fetch_scalar().await?;
    ///     assert_eq!(n, 8);
    /// }
    /// assert_eq!(larder.stats().cache("shop queries").map(|queries| queries.total.hits), Some(1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cached_by(self, layer: QueryCacheLayer) -> Result<Db, QueryError> {
        let mut layer = layer.catalog(self.catalog().await?);
        layer.options.dialect = self.dialect();
        let database = self.clone();
        layer.options.source = Some(Arc::new(move || {
            let database = database.clone();
            Box::pin(async move { database.catalog().await.ok() })
        }));
        Ok(Db::new(layer.layer(self)))
    }

    /// Runs a statement to its end, outside of a transaction, or in one of its own if the statement has a [`CommitId`].
    pub(crate) async fn run(&self, statement: &Statement) -> Result<StatementOutcome, DriverError> {
        let Some(commit) = statement.commit() else {
            return run_anew(&mut *self.driver.acquire().await?, statement).await;
        };
        match self.run_as(commit, statement).await {
            // Nothing is committed, and the connection that ran it prepares the statement again.
            Err(error) if is_outdated(&error) => self.run_as(commit, statement).await,
            outcome => outcome,
        }
    }

    /// Runs a statement in a transaction of its own with an identity.
    async fn run_as(
        &self,
        commit: CommitId,
        statement: &Statement,
    ) -> Result<StatementOutcome, DriverError> {
        let mut transaction = self.begin(Some(commit), true).await?;
        let outcome = transaction.run(statement).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    /// Begins a transaction. If it has an identity, its rows in the outbox get that identity. If it `writes`, it waits for the
    /// writer before it instead of failing later, where the database has one writer at a time.
    pub(crate) async fn begin(
        &self,
        commit: Option<CommitId>,
        writes: bool,
    ) -> Result<DatabaseTransaction, DriverError> {
        let (dialect, begin) = (self.dialect(), "BEGIN");
        let begin = match (dialect, commit) {
            // Both statements take one round trip. The setting ends with the transaction.
            (SqlDialect::Postgres, Some(commit)) => {
                &*format!("BEGIN; SELECT set_config('larder.commit', '{commit}', true)")
            }
            // A transaction that reads first, and writes after another one has written, would fail without a wait.
            (SqlDialect::Sqlite, _) if writes => "BEGIN IMMEDIATE",
            _ => begin,
        };
        let mut inner = self.driver.begin(begin).await?;
        let mark = match commit.filter(|_| dialect == SqlDialect::Sqlite) {
            Some(id) => outbox::sqlite::CommitMark::begin(id, &mut *inner).await,
            None => None,
        };
        Ok(DatabaseTransaction { inner, dialect, mark })
    }

    /// Returns the SQL that creates the outbox and its triggers.
    pub(crate) async fn outbox_sql(&self) -> Result<String, DriverError> {
        match self.dialect() {
            SqlDialect::Sqlite => {
                outbox::sqlite::definition(&mut *self.driver.acquire().await?).await
            }
            SqlDialect::Postgres => Ok(outbox::postgres::DEFINITION.to_owned()),
        }
    }

    /// Runs all statements of a text in one transaction.
    pub(crate) async fn run_all(&self, script: &str) -> Result<(), DriverError> {
        let mut transaction = self.driver.begin("BEGIN").await?;
        transaction.run_script(script).await?;
        transaction.commit().await
    }

    /// Follows the outbox in these tasks.
    pub(crate) async fn follow(
        &self,
        context: Arc<QueryContext>,
    ) -> Result<JoinSet<()>, QueryError> {
        let mut tasks = JoinSet::new();
        match self.dialect() {
            SqlDialect::Sqlite => {
                let reader = outbox::sqlite::Reader::open(&*self.driver).await?;
                tasks.spawn(OutboxReader::begin(context, reader).await?.run());
            }
            SqlDialect::Postgres => {
                let driver = Arc::clone(&self.driver);
                let reader = outbox::postgres::Reader::open(driver, &mut tasks).await;
                let reader = reader.map_err(QueryError::database)?;
                tasks.spawn(OutboxReader::begin(context, reader).await?.run());
            }
        }
        Ok(tasks)
    }
}

impl Service<Statement> for DatabaseService {
    type Response = StatementOutcome;
    type Error = DriverError;
    type Future = BoxFuture<'static, Result<StatementOutcome, DriverError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DriverError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, statement: Statement) -> Self::Future {
        let database = self.clone();
        Box::pin(async move { database.run(&statement).await })
    }
}

impl fmt::Debug for DatabaseService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseService").field("dialect", &self.dialect()).finish_non_exhaustive()
    }
}

/// A transaction of a database. If it is dropped, it is rolled back.
pub(crate) struct DatabaseTransaction {
    inner: Box<dyn TransactionConnection>,
    dialect: SqlDialect,
    /// Marks its rows in the outbox of SQLite.
    mark: Option<outbox::sqlite::CommitMark>,
}

impl DatabaseTransaction {
    /// Runs a statement to its end.
    pub(crate) async fn run(
        &mut self,
        statement: &Statement,
    ) -> Result<StatementOutcome, DriverError> {
        run_within(&mut *self.inner, statement).await
    }

    /// Whether the transaction can only be rolled back, because a statement has failed. PostgreSQL would then report a
    /// commit but roll back.
    pub(crate) async fn is_spoiled(&mut self) -> bool {
        self.dialect == SqlDialect::Postgres
            && self.inner.run(&Statement::new("SELECT 1")).await.is_err()
    }

    /// Commits.
    pub(crate) async fn commit(mut self) -> Result<(), DriverError> {
        if let Some(mark) = self.mark.take() {
            mark.write(&mut *self.inner).await?;
        }
        self.inner.commit().await
    }

    /// Rolls back.
    pub(crate) async fn rollback(self) -> Result<(), DriverError> {
        self.inner.rollback().await
    }

    /// The connection of the driver.
    pub(crate) fn connection(&mut self) -> &mut dyn Connection {
        &mut *self.inner
    }
}

fn is_outdated(error: &DriverError) -> bool {
    matches!(error.kind(), DriverErrorKind::Outdated | DriverErrorKind::NotSent)
}

/// Runs a statement to its end outside of a transaction. Runs it once more if a schema change has outdated its prepared
/// form, unless the statement may have committed a part of its changes.
async fn run_anew(
    connection: &mut dyn Connection,
    statement: &Statement,
) -> Result<StatementOutcome, DriverError> {
    match connection.run(statement).await {
        Err(error) if is_outdated(&error) => {
            connection.forget_prepared().await?;
            if commits_by_itself(statement.text()) {
                return Err(error);
            }
            connection.run(statement).await
        }
        outcome => outcome,
    }
}

/// Whether a statement may have committed a part of its changes before it failed, as procedures and anonymous blocks
/// can.
fn commits_by_itself(text: &str) -> bool {
    // A comment or bracket before the first word hides it. The statement is then treated as a procedure call.
    let word: String = text.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
    ["", "CALL", "DO"].iter().any(|other| word.eq_ignore_ascii_case(other))
}

/// Runs a statement to its end within a transaction. If a schema change has outdated its prepared form, returns the
/// error of the server, which does not accept another statement in this transaction. The next transaction prepares the
/// statement again.
async fn run_within(
    connection: &mut dyn Connection,
    statement: &Statement,
) -> Result<StatementOutcome, DriverError> {
    match connection.run(statement).await {
        Err(error) if error.kind() == DriverErrorKind::NotSent => {
            // Nothing was sent, so the transaction can continue.
            connection.forget_prepared().await?;
            match connection.run(statement).await {
                Err(again) if again.kind() == DriverErrorKind::NotSent => Err(error),
                outcome => outcome,
            }
        }
        Err(error) if error.kind() == DriverErrorKind::Outdated => {
            connection.forget_prepared().await?;
            Err(error)
        }
        outcome => outcome,
    }
}

/// Runs a statement of larder's own, and decodes its rows.
pub(crate) async fn fetch<T: DeserializeOwned>(
    connection: &mut dyn Connection,
    text: &'static str,
    values: impl IntoIterator<Item = SqlValue>,
) -> Result<Vec<T>, DriverError> {
    let statement = values.into_iter().fold(Statement::new(text), Statement::bind);
    let outcome = connection.run(&statement).await?;
    outcome.rows.decode().map_err(|error| DriverError::new(DriverErrorKind::Unreadable, error))
}

/// Does the same as [`fetch`] for a statement that returns one row.
pub(crate) async fn fetch_one<T: DeserializeOwned>(
    connection: &mut dyn Connection,
    text: &'static str,
    values: impl IntoIterator<Item = SqlValue>,
) -> Result<T, DriverError> {
    let row = fetch(connection, text, values).await?.into_iter().next();
    row.ok_or_else(|| DriverError::failed("a statement that returns one row has returned none"))
}

/// The catalog is read in one snapshot.
const READ_ONLY_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
