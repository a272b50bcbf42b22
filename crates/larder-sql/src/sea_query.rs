//! Converts statements that sea-query or SeaORM has built.

use std::{borrow::Cow, fmt};

use sea_query::{Value, Values};

use crate::{statement::Statement, value::SqlValue};

/// Converts the output of sea-query's `build`, or the two parts of a SeaORM statement.
///
/// ```
/// use larder_sql::Statement;
/// use sea_query::{Alias, Expr, ExprTrait, Query, SqliteQueryBuilder};
///
/// let select = Query::select()
///     .column(Alias::new("name"))
///     .from(Alias::new("products"))
///     .and_where(Expr::col(Alias::new("id")).eq(42))
///     .build(SqliteQueryBuilder);
/// let statement = Statement::try_from(select)?;
/// assert_eq!(statement.text(), r#"SELECT "name" FROM "products" WHERE "id" = ?"#);
/// assert_eq!(statement.values(), [42.into()]);
/// # Ok::<(), larder_sql::BindError>(())
/// ```
///
/// # Errors
///
/// When no [`SqlValue`] can hold a value. Bind such a value as text.
impl TryFrom<(String, Values)> for Statement {
    type Error = BindError;

    fn try_from((text, values): (String, Values)) -> Result<Self, BindError> {
        let values: Result<Vec<SqlValue>, _> = values.into_iter().map(value).collect();
        Ok(values?.into_iter().fold(Self::new(Cow::Owned(text)), Self::bind))
    }
}

fn value(value: Value) -> Result<SqlValue, BindError> {
    Ok(match value {
        Value::Bool(value) => value.into(),
        Value::TinyInt(value) => value.into(),
        Value::SmallInt(value) => value.into(),
        Value::Int(value) => value.into(),
        Value::BigInt(value) => value.into(),
        Value::TinyUnsigned(value) => value.into(),
        Value::SmallUnsigned(value) => value.into(),
        Value::Unsigned(value) => value.into(),
        Value::BigUnsigned(Some(value)) => {
            i64::try_from(value).map_err(|_| BindError(value.to_string()))?.into()
        }
        Value::BigUnsigned(None) => SqlValue::Null,
        Value::Float(value) => value.into(),
        Value::Double(value) => value.into(),
        Value::String(value) => value.into(),
        Value::Char(value) => value.map(|letter| letter.to_string()).into(),
        Value::Bytes(value) => value.into(),
        // Further features of sea-query add more types.
        #[allow(
            unreachable_patterns,
            reason = "without further features of sea-query there are no other types"
        )]
        other => return Err(BindError(format!("{other:?}"))),
    })
}

/// A value of sea-query that no [`SqlValue`] can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindError(String);

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed =
            "allowed are booleans, signed 64-bit integers, floating-point numbers, text and bytes";
        write!(f, "{} cannot be bound, {allowed}: bind it as text", self.0)
    }
}

impl std::error::Error for BindError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_type_and_unsupported_ones_are_refused() {
        let values = Values(vec![
            true.into(),
            7_i8.into(),
            7_u32.into(),
            0.5_f64.into(),
            "x".into(),
            vec![1_u8].into(),
            Value::Int(None),
        ]);
        let statement = Statement::try_from((String::new(), values)).unwrap();
        let expected: [SqlValue; 7] = [
            true.into(),
            7.into(),
            7.into(),
            0.5.into(),
            "x".into(),
            vec![1_u8].into(),
            SqlValue::Null,
        ];
        assert_eq!(statement.values(), expected);
        let large = (String::new(), Values(vec![u64::MAX.into()]));
        let error = Statement::try_from(large).unwrap_err().to_string();
        assert!(error.contains("18446744073709551615") && error.contains("as text"), "{error}");
    }
}
