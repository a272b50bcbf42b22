//! A database through sqlx, as a tower service.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{TryStreamExt as _, future::BoxFuture};
use larder_core::Larder;
use sqlx::{
    AssertSqlSafe, Column as _, Either, Executor as _, Row as _, Sqlite, SqliteConnection,
    SqlitePool, TypeInfo as _, Value as _, ValueRef as _, sqlite::SqliteArguments,
};
use tower_layer::Layer as _;
use tower_service::Service;

use crate::{
    analysis::SqlDialect,
    catalog::{Catalog, sqlite},
    db::Db,
    layer::QueryCacheLayer,
    rows::{Answer, Rows},
    statement::Statement,
    value::SqlValue,
};

/// Answers statements from a pool of sqlx. A clone is the same pool.
#[derive(Clone)]
pub struct SqlxService {
    pool: SqlitePool,
}

impl SqlxService {
    /// Over a pool of SQLite connections.
    pub fn sqlite(pool: SqlitePool) -> Self {
        Self { pool }
    }

    pub(crate) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// What is known of the tables of the database, as it is now.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn catalog(&self) -> sqlx::Result<Catalog> {
        sqlite::read(&self.pool).await
    }

    /// This database behind a query cache, with all that is known of its tables.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn cached(self, larder: &Larder) -> sqlx::Result<Db> {
        let layer = QueryCacheLayer::new(larder, SqlDialect::Sqlite);
        self.cached_by(layer).await
    }

    /// As [`SqlxService::cached`], with a layer of one's own.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn cached_by(self, layer: QueryCacheLayer) -> sqlx::Result<Db> {
        let mut layer = layer.catalog(self.catalog().await?);
        let database = self.clone();
        layer.options.source = Some(Arc::new(move || {
            let database = database.clone();
            Box::pin(async move { database.catalog().await.ok() })
        }));
        Ok(Db::new(layer.layer(self)))
    }
}

impl Service<Statement> for SqlxService {
    type Response = Answer;
    type Error = sqlx::Error;
    type Future = BoxFuture<'static, sqlx::Result<Answer>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<sqlx::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, statement: Statement) -> Self::Future {
        let pool = self.pool.clone();
        Box::pin(async move {
            let mut connection = pool.acquire().await?;
            run(&mut connection, &statement).await
        })
    }
}

/// Runs a statement to its end.
pub(crate) async fn run(
    connection: &mut SqliteConnection,
    statement: &Statement,
) -> sqlx::Result<Answer> {
    let mut query = sqlx::query::<Sqlite>(AssertSqlSafe(statement.text()));
    for value in statement.values() {
        query = bound(query, value);
    }
    let mut answer = Answer::default();
    let mut brought = connection.fetch_many(query);
    while let Some(next) = brought.try_next().await? {
        match next {
            Either::Left(done) => answer.affected += done.rows_affected(),
            Either::Right(row) => add(&row, &mut answer.rows)?,
        }
    }
    Ok(answer)
}

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
        // What the value is, not what its column was declared to hold.
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

impl fmt::Debug for SqlxService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxService").finish_non_exhaustive()
    }
}
