//! Runs statements on SQLite.

use sqlx::{
    AssertSqlSafe, Column as _, Executor as _, Row as _, Sqlite, SqliteConnection, TypeInfo as _,
    Value as _, ValueRef as _,
    sqlite::{SqliteArguments, SqliteQueryResult},
};

use super::gathered;
use crate::{
    rows::{Rows, StatementOutcome},
    statement::Statement,
    value::SqlValue,
};

/// Runs a statement to its end.
pub(crate) async fn run(
    connection: &mut SqliteConnection,
    statement: &Statement,
) -> sqlx::Result<StatementOutcome> {
    // SQLite prepares by the schema that this connection has last seen, and sqlx takes the names and the number of
    // columns from the prepared statement. So the connection checks the schema first, and prepares each time.
    sqlx::query(SEE_SCHEMA).execute(&mut *connection).await?;
    let mut query = sqlx::query::<Sqlite>(AssertSqlSafe(statement.text())).persistent(false);
    for value in statement.values() {
        query = bound(query, value);
    }
    gathered(connection.fetch_many(query), statement.text(), SqliteQueryResult::rows_affected, add)
        .await
}

/// Reads no row, but begins a read, in which SQLite notices that another connection has changed the schema.
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
        // By the type of the value, not by the declared type of the column.
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
