//! Runs one statement to its end.

use std::pin::pin;

use deadpool_postgres::ClientWrapper;
use futures_util::TryStreamExt as _;
use larder_sql::{
    SqlValue, Statement, StatementOutcome,
    driver::{DriverError, DriverErrorKind},
    postgres::{PostgresType, declared_type, read_value, text_with_types},
};
use tokio_postgres::{
    Row,
    types::{Kind, Type},
};

use crate::types::{Parameter, RawValue, type_of};

/// Prepares a statement, unless the connection has it prepared, and runs it.
pub(super) async fn run(
    client: &ClientWrapper,
    statement: &Statement,
) -> Result<StatementOutcome, DriverError> {
    let text = text_with_types(statement);
    let declared = statement.values().iter().map(|value| match declared_type(value) {
        Some(oid) => Type::from_oid(oid).unwrap_or_else(inferred),
        None => inferred(),
    });
    let declared: Vec<Type> = declared.collect();
    if client.statement_cache.size() >= MOST_PREPARED {
        client.statement_cache.clear();
    }
    let prepared = client.prepare_typed_cached(&text, &declared).await.map_err(driver_error)?;
    let (given, wanted) = (statement.values().len(), prepared.params().len());
    if given != wanted {
        let text = format!("the statement has {wanted} parameters, and {given} values are bound");
        return Err(DriverError::new(DriverErrorKind::NotSent, text));
    }
    let parameters = statement.values().iter().zip(prepared.params());
    let parameters = parameters.map(|(value, kind)| Parameter::new(value, kind));
    let parameters = parameters.collect::<Result<Vec<_>, _>>().map_err(not_sent)?;
    let types: Vec<PostgresType> =
        prepared.columns().iter().map(|column| type_of(column.type_())).collect();

    let (mut outcome, mut unread) = (StatementOutcome::default(), None);
    let rows = client.query_raw(&prepared, parameters).await.map_err(driver_error)?;
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(driver_error)? {
        if outcome.rows.columns.is_empty() {
            let names = row.columns().iter().map(|column| column.name().to_owned());
            outcome.rows.columns = names.collect();
        }
        // Continues to the end, because a write must be complete before its error is returned.
        match values(&row, &types) {
            Ok(values) => outcome.rows.rows.push(values),
            Err(error) => unread = unread.or(Some(error)),
        }
    }
    outcome.affected = rows.rows_affected().unwrap_or_default();
    match unread {
        Some(error) => Err(error),
        None => Ok(outcome),
    }
}

/// Forgets the prepared statements of a connection, and the types that they have.
pub(super) fn forget_prepared(client: &ClientWrapper) {
    client.statement_cache.clear();
    client.clear_type_cache();
}

fn values(row: &Row, types: &[PostgresType]) -> Result<Vec<SqlValue>, DriverError> {
    let value = |(at, kind): (usize, &PostgresType)| {
        let raw: RawValue<'_> = row.try_get(at).map_err(unreadable)?;
        match raw.bytes() {
            None => Ok(SqlValue::Null),
            bytes => read_value(bytes, kind).map_err(unreadable),
        }
    };
    types.iter().enumerate().map(value).collect()
}

/// The type that the server infers.
fn inferred() -> Type {
    Type::new(String::new(), 0, Kind::Pseudo, String::new())
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn not_sent(error: BoxError) -> DriverError {
    DriverError::new(DriverErrorKind::NotSent, error)
}

fn unreadable(error: impl Into<BoxError>) -> DriverError {
    DriverError::new(DriverErrorKind::Unreadable, error)
}

/// Converts an error of tokio-postgres.
pub(super) fn driver_error(error: tokio_postgres::Error) -> DriverError {
    match error.code().map(|code| code.code().to_owned()) {
        Some(code) => DriverError::new(DriverErrorKind::of_sqlstate(&code), error).with_code(&code),
        None => DriverError::failed(error),
    }
}

/// The number of statements that stay prepared on a connection. A program that writes values into its texts has any number
/// of them.
const MOST_PREPARED: usize = 100;
