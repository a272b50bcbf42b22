//! Runs statements on SQLite.

use std::{
    any::Any,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use larder_core::store::CommitId;
use sqlx::{
    AssertSqlSafe, Column as _, Executor as _, Row as _, Sqlite, SqliteConnection, SqlitePool,
    TypeInfo as _, Value as _, ValueRef as _,
    sqlite::{SqliteArguments, SqliteQueryResult},
};
use tokio::task::JoinSet;

use super::gathered;
use crate::{
    analysis::SqlDialect,
    backend::{Backend, BackendTransaction, run_all, run_as},
    catalog::{self, Catalog},
    context::QueryContext,
    error::QueryError,
    outbox::{self, follower::OutboxReader},
    rows::{Rows, StatementOutcome},
    statement::Statement,
    value::SqlValue,
};

/// A pool of SQLite connections.
pub(crate) struct SqliteBackend {
    pool: SqlitePool,
    /// A random number that identifies an in-memory database, which has no other identity.
    id: u128,
}

impl SqliteBackend {
    pub(crate) fn new(pool: SqlitePool) -> Self {
        let half = || u128::from(RandomState::new().build_hasher().finish());
        Self { pool, id: half() << 64 | half() }
    }
}

impl Backend for SqliteBackend {
    fn dialect(&self) -> SqlDialect {
        SqlDialect::Sqlite
    }

    fn catalog(&self) -> BoxFuture<'_, sqlx::Result<Catalog>> {
        Box::pin(catalog::sqlite::read(&self.pool, self.id))
    }

    fn run(
        self: Arc<Self>,
        statement: Statement,
    ) -> BoxFuture<'static, sqlx::Result<StatementOutcome>> {
        Box::pin(async move {
            match statement.commit() {
                Some(commit) => run_as(&*self, commit, &statement).await,
                None => run(&mut *self.pool.acquire().await?, &statement).await,
            }
        })
    }

    fn begin(
        &self,
        commit: Option<CommitId>,
        writes: bool,
    ) -> BoxFuture<'_, sqlx::Result<Box<dyn BackendTransaction>>> {
        Box::pin(async move {
            // A transaction that reads first, and writes after another one has written, would fail without a wait.
            let mut inner = match writes {
                true => self.pool.begin_with("BEGIN IMMEDIATE").await?,
                false => self.pool.begin().await?,
            };
            let commit = match commit {
                Some(id) => outbox::sqlite::Commit::begin(id, &mut inner).await,
                None => None,
            };
            let transaction: Box<dyn BackendTransaction> =
                Box::new(SqliteTransaction { inner, commit });
            Ok(transaction)
        })
    }

    fn outbox_sql(&self) -> BoxFuture<'_, sqlx::Result<String>> {
        Box::pin(outbox::sqlite::definition(&self.pool))
    }

    fn run_all(&self, text: String) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move { run_all(&self.pool, &text).await })
    }

    fn follow(&self, context: Arc<QueryContext>) -> BoxFuture<'_, Result<JoinSet<()>, QueryError>> {
        Box::pin(async {
            let reader = outbox::sqlite::Reader::open(&self.pool).await?;
            let mut tasks = JoinSet::new();
            tasks.spawn(OutboxReader::begin(context, reader).await?.run());
            Ok(tasks)
        })
    }
}

struct SqliteTransaction {
    inner: sqlx::Transaction<'static, Sqlite>,
    commit: Option<outbox::sqlite::Commit>,
}

impl BackendTransaction for SqliteTransaction {
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, sqlx::Result<StatementOutcome>> {
        Box::pin(run(&mut self.inner, statement))
    }

    fn is_spoiled(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>> {
        Box::pin(async move {
            if let Some(commit) = self.commit.take() {
                commit.mark(&mut self.inner).await?;
            }
            self.inner.commit().await
        })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>> {
        Box::pin(self.inner.rollback())
    }

    fn connection(&mut self) -> &mut dyn Any {
        &mut *self.inner
    }
}

/// Runs a statement to its end.
async fn run(
    connection: &mut SqliteConnection,
    statement: &Statement,
) -> sqlx::Result<StatementOutcome> {
    // SQLite prepares a statement with the schema that this connection last read, and sqlx takes the names and the
    // number of columns from the prepared statement. So the connection checks the schema first, and prepares the
    // statement each time.
    sqlx::query(SEE_SCHEMA).execute(&mut *connection).await?;
    let mut query = sqlx::query::<Sqlite>(AssertSqlSafe(statement.text())).persistent(false);
    for value in statement.values() {
        query = bound(query, value);
    }
    gathered(connection.fetch_many(query), statement.text(), SqliteQueryResult::rows_affected, add)
        .await
}

/// Reads no row, but begins a read, during which SQLite detects that another connection has changed the schema.
const SEE_SCHEMA: &str = "SELECT 1 FROM sqlite_schema LIMIT 0";

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

fn bound<'q>(query: Query<'q>, value: &SqlValue) -> Query<'q> {
    match value {
        SqlValue::Null => query.bind(None::<i64>),
        SqlValue::Bool(value) => query.bind(*value),
        SqlValue::Int(value) => query.bind(*value),
        SqlValue::Real(value) => query.bind(*value),
        SqlValue::Text(value) => query.bind(value.clone()),
        SqlValue::Blob(value) => query.bind(value.clone()),
    }
}

fn add(row: &sqlx::sqlite::SqliteRow, rows: &mut Rows) -> sqlx::Result<()> {
    if rows.rows.is_empty() {
        rows.columns = row.columns().iter().map(|column| column.name().to_owned()).collect();
    }
    let values = (0..row.len()).map(|at| {
        let value = row.try_get_raw(at)?.to_owned();
        if value.is_null() {
            return Ok(SqlValue::Null);
        }
        // Decodes by the type of the value, not by the declared type of the column.
        Ok(match value.type_info().name() {
            "INTEGER" | "INT8" | "BOOLEAN" => SqlValue::Int(value.try_decode_unchecked()?),
            "REAL" => SqlValue::Real(value.try_decode_unchecked()?),
            "BLOB" => SqlValue::Blob(value.try_decode_unchecked()?),
            _ => SqlValue::Text(value.try_decode_unchecked()?),
        })
    });
    let values = values.collect::<sqlx::Result<Vec<_>>>()?;
    rows.rows.push(values);
    Ok(())
}
