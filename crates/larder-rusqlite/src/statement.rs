//! Runs one statement, and converts its values.

#[allow(
    unused_imports,
    reason = "from rusqlite 0.37 on, `Batch` is such an iterator; before, it has a method of the same name"
)]
use fallible_iterator::FallibleIterator as _;
use larder_sql::{
    SqlValue, Statement, StatementOutcome,
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
    let (mut outcome, mut unread) = (StatementOutcome::default(), None);
    let (mut plain, mut has_run) = (0, false);
    let mut batch = Batch::new(connection, statement.text());
    while let Some(mut prepared) = batch.next().map_err(driver_error)? {
        bind(&mut prepared, &values, &mut plain).map_err(|text| {
            // Nothing was sent, unless an earlier statement of the text has run.
            let kind = if has_run { DriverErrorKind::Failed } else { DriverErrorKind::NotSent };
            DriverError::new(kind, text)
        })?;
        has_run = true;
        let is_read_only = prepared.readonly();
        let mut rows = prepared.raw_query();
        while let Some(row) = rows.next().map_err(driver_error)? {
            // The first step prepares a statement anew whose schema has changed, so the names are read after it.
            let prepared: &rusqlite::Statement<'_> = row.as_ref();
            if outcome.rows.rows.is_empty() {
                let names = prepared.column_names();
                outcome.rows.columns = names.into_iter().map(ToOwned::to_owned).collect();
            }
            let columns = 0..prepared.column_count();
            let read = columns.map(|at| value_of(row.get_ref(at).map_err(driver_error)?));
            // Continues to the end, because a write must be complete before its error is returned.
            match read.collect::<Result<Vec<_>, DriverError>>() {
                Ok(read) => outcome.rows.rows.push(read),
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

/// Binds the parameters of a statement. SQLite gives `$2` the index of its first occurrence, and larder the second value,
/// as PostgreSQL does. A `?` without a number takes the next value; `plain` counts those of the whole text.
fn bind(
    prepared: &mut rusqlite::Statement<'_>,
    values: &[Value],
    plain: &mut usize,
) -> Result<(), String> {
    for at in 1..=prepared.parameter_count() {
        let name = prepared.parameter_name(at).map(ToOwned::to_owned);
        let number = match &name {
            None => {
                *plain += 1;
                *plain
            }
            Some(name) => {
                name.get(1..).and_then(|number| number.parse().ok()).ok_or_else(|| {
                    format!("the parameter is {name}, and must be ?, ?1, ?2, … or $1, $2, …")
                })?
            }
        };
        let value = number.checked_sub(1).and_then(|at| values.get(at)).ok_or_else(|| {
            format!("the statement has parameter {number}, and {} values are bound", values.len())
        })?;
        prepared.raw_bind_parameter(at, value).map_err(|error| error.to_string())?;
    }
    Ok(())
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
    let code = error.sqlite_error().map(|failure| failure.extended_code.to_string());
    let converted = DriverError::failed(error);
    match code {
        Some(code) => converted.with_code(&code),
        None => converted,
    }
}
