//! Runs one statement, and converts its values.

use larder_sql::{
    Rows, SqlValue, Statement, StatementOutcome,
    driver::{DriverError, DriverErrorKind},
};
use rusqlite::{
    Batch, Connection,
    types::{Value, ValueRef},
};

/// Runs all statements of a text to their ends.
pub(super) fn run(
    connection: &mut Connection,
    statement: &Statement,
) -> Result<StatementOutcome, DriverError> {
    let values = statement.values().iter().map(value).collect::<Result<Vec<_>, _>>()?;
    // SQLite prepares a statement with the schema that this connection last read. So the connection checks the schema
    // first, and then names and number of the columns are those of the rows.
    connection.execute_batch(SEE_SCHEMA).map_err(driver_error)?;
    let (mut outcome, mut unread) = (StatementOutcome::default(), None);
    let mut bound = 0;
    let mut batch = Batch::new(connection, statement.text());
    while let Some(mut prepared) = batch.next().map_err(driver_error)? {
        for at in 1..=prepared.parameter_count() {
            let missing = || {
                let given = values.len();
                let text = format!(
                    "the statement has more parameters than the {given} values that are bound"
                );
                DriverError::new(DriverErrorKind::NotSent, text)
            };
            let value = values.get(bound).ok_or_else(missing)?;
            prepared.raw_bind_parameter(at, value).map_err(driver_error)?;
            bound += 1;
        }
        let names: Vec<String> =
            prepared.column_names().into_iter().map(ToOwned::to_owned).collect();
        let is_read_only = prepared.readonly();
        let mut rows = prepared.raw_query();
        while let Some(row) = rows.next().map_err(driver_error)? {
            let read = (0..names.len()).map(|at| value_of(row.get_ref(at).map_err(driver_error)?));
            // Continues to the end, because a write must be complete before its error is returned.
            match read.collect::<Result<Vec<_>, DriverError>>() {
                Ok(read) => add(&mut outcome.rows, &names, read),
                Err(error) => unread = unread.or(Some(error)),
            }
        }
        drop(rows);
        if !is_read_only {
            outcome.affected += connection.changes();
        }
    }
    match unread {
        Some(error) => Err(error),
        None => Ok(outcome),
    }
}

fn add(rows: &mut Rows, names: &[String], values: Vec<SqlValue>) {
    if rows.rows.is_empty() {
        rows.columns = names.to_vec();
    }
    rows.rows.push(values);
}

/// Converts a value of larder.
fn value(value: &SqlValue) -> Result<Value, DriverError> {
    Ok(match value {
        SqlValue::Null => Value::Null,
        SqlValue::Bool(value) => Value::Integer(i64::from(*value)),
        SqlValue::Int(value) => Value::Integer(*value),
        SqlValue::Real(value) => Value::Real(*value),
        SqlValue::Text(value) | SqlValue::Json(value) => Value::Text(value.to_string()),
        SqlValue::Blob(value) => Value::Blob(value.to_vec()),
        other => {
            let text = format!("SQLite has no type for {other:?}: bind JSON instead");
            return Err(DriverError::new(DriverErrorKind::NotSent, text));
        }
    })
}

/// Converts a value of SQLite, by the type of the value and not by the declared type of its column.
fn value_of(value: ValueRef<'_>) -> Result<SqlValue, DriverError> {
    Ok(match value {
        ValueRef::Null => SqlValue::Null,
        ValueRef::Integer(value) => SqlValue::Int(value),
        ValueRef::Real(value) => SqlValue::Real(value),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => SqlValue::from(text),
            Err(error) => return Err(DriverError::new(DriverErrorKind::Unreadable, error)),
        },
        ValueRef::Blob(bytes) => SqlValue::from(bytes.to_vec()),
    })
}

/// Converts an error of rusqlite.
pub(super) fn driver_error(error: rusqlite::Error) -> DriverError {
    let code = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.extended_code.to_string()),
        _ => None,
    };
    let converted = DriverError::failed(error);
    match code {
        Some(code) => converted.with_code(&code),
        None => converted,
    }
}

/// Reads no row, but begins a read, during which SQLite detects that another connection has changed the schema.
const SEE_SCHEMA: &str = "SELECT 1 FROM sqlite_schema LIMIT 0";
