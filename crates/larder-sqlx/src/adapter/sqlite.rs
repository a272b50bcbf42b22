//! Runs statements on SQLite.

use std::any::Any;

use super::{
    application_query::{QueryParts, RowQuery, UNSEEN_BYTES, WriteQuery},
    compat::{SqliteBound, SqliteQuery, begin_sql, sql, text_of},
    gathered::{driver_error, gathered},
    pool::CachedDatabase,
    sqlx::{
        self, Column as _, ConnectOptions as _, Connection as _, Executor as _, Row as _, Sqlite,
        SqliteConnection, SqlitePool, Transaction, TypeInfo as _, Value as _, ValueRef as _,
        pool::PoolConnection,
        sqlite::{SqliteQueryResult, SqliteRow},
    },
};
use larder_core::store::BoxFuture;
use larder_sql::{
    DatabaseService, Rows, SqlDialect, SqlValue, Statement, StatementOutcome, WeighedValue,
    driver::{Connection, Driver, DriverError, TransactionConnection},
};

/// Creates a service over a pool of SQLite connections.
pub fn sqlite(pool: SqlitePool) -> DatabaseService {
    Sqlite::service(pool)
}

application_queries!(Sqlite, SqliteBound, SqliteRow, SqliteDriver);

/// A pool of SQLite connections.
struct SqliteDriver {
    pool: SqlitePool,
}

impl Driver for SqliteDriver {
    fn dialect(&self) -> SqlDialect {
        SqlDialect::Sqlite
    }

    fn acquire(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async {
            let connection = self.pool.acquire().await.map_err(driver_error)?;
            Ok(Box::new(PooledConnection(connection)) as Box<dyn Connection>)
        })
    }

    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async {
            let connection = self.pool.connect_options().connect().await.map_err(driver_error)?;
            Ok(Box::new(OwnConnection(connection)) as Box<dyn Connection>)
        })
    }

    fn begin<'a>(
        &'a self,
        begin: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn TransactionConnection>, DriverError>> {
        Box::pin(async move {
            let begun = self.pool.begin_with(begin_sql(begin)).await.map_err(driver_error)?;
            Ok(Box::new(OpenTransaction(begun)) as Box<dyn TransactionConnection>)
        })
    }
}

struct PooledConnection(PoolConnection<Sqlite>);
struct OwnConnection(SqliteConnection);
struct OpenTransaction(Transaction<'static, Sqlite>);

connection!(PooledConnection, OwnConnection, OpenTransaction: SqliteConnection);
transaction!(OpenTransaction);

/// Runs a statement to its end.
async fn run(
    connection: &mut SqliteConnection,
    statement: &Statement,
) -> Result<StatementOutcome, sqlx::Error> {
    // SQLite prepares a statement with the schema that this connection last read, and sqlx takes the names and the
    // number of columns from the prepared statement. So the connection checks the schema first, and prepares the
    // statement each time.
    sqlx::query(SEE_SCHEMA).execute(&mut *connection).await?;
    let mut query = sqlx::query::<Sqlite>(sql(statement.text())).persistent(false);
    for value in statement.values() {
        query = bound(query, value)?;
    }
    gathered(connection.fetch_many(query), statement.text(), SqliteQueryResult::rows_affected, add)
        .await
}

/// Reads no row, but begins a read, during which SQLite detects that another connection has changed the schema.
const SEE_SCHEMA: &str = "SELECT 1 FROM sqlite_schema LIMIT 0";

fn bound<'q>(query: SqliteQuery<'q>, value: &SqlValue) -> Result<SqliteQuery<'q>, sqlx::Error> {
    Ok(match value {
        SqlValue::Null => query.bind(None::<i64>),
        SqlValue::Bool(value) => query.bind(*value),
        SqlValue::Int(value) => query.bind(*value),
        SqlValue::Real(value) => query.bind(*value),
        SqlValue::Text(value) | SqlValue::Json(value) => query.bind(value.clone()),
        SqlValue::Blob(value) => query.bind(value.clone()),
        other => {
            let error = format!("SQLite has no type for {other:?}: bind JSON instead");
            return Err(sqlx::Error::Encode(error.into()));
        }
    })
}

/// The bytes of a row as SQLite stores its values.
fn weight(row: &SqliteRow) -> usize {
    let of = |at: usize| {
        let value = row.try_get_raw(at).ok()?.to_owned();
        match value.type_info().name() {
            "TEXT" => value.try_decode_unchecked::<String>().ok().map(|text| text.len()),
            "BLOB" => value.try_decode_unchecked::<Vec<u8>>().ok().map(|bytes| bytes.len()),
            _ => None,
        }
    };
    (0..row.len()).filter_map(of).sum()
}

fn add(row: &SqliteRow, rows: &mut Rows) -> Result<(), sqlx::Error> {
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
    let values = values.collect::<Result<Vec<_>, sqlx::Error>>()?;
    rows.rows.push(values);
    Ok(())
}
