//! Keys and values of a queue as columns of a table.

use std::collections::BTreeSet;

use crate::value::SqlValue;

/// A type that is one or more columns of a table, in a fixed order.
///
/// Integers, texts, booleans, numbers, bytes, JSON documents, and sets of texts or integers (both as JSON text), options of them, and tuples of up
/// to four of them implement it. Implement it for a struct of your own.
///
/// # Examples
///
/// ```
/// use larder_sql::{SqlColumns, SqlValue};
///
/// #[derive(Debug, PartialEq)]
/// struct Position { lat: f64, lon: f64 }
///
/// impl SqlColumns for Position {
///     fn to_columns(&self) -> Vec<SqlValue> {
///         (self.lat, self.lon).to_columns()
///     }
///
///     fn of_columns(columns: Vec<SqlValue>) -> Option<Self> {
///         let (lat, lon) = SqlColumns::of_columns(columns)?;
///         Some(Self { lat, lon })
///     }
/// }
///
/// let here = Position { lat: 52.5, lon: 13.4 };
/// assert_eq!(Position::of_columns(here.to_columns()), Some(here));
/// ```
pub trait SqlColumns: Sized {
    /// Returns the columns.
    fn to_columns(&self) -> Vec<SqlValue>;

    /// Reads the columns. `None` if they have other types, or another number.
    fn of_columns(columns: Vec<SqlValue>) -> Option<Self>;
}

/// A type that is one column of a table.
pub trait SqlColumn: Sized {
    /// Returns the value of the column.
    fn to_column(&self) -> SqlValue;

    /// Reads the value of the column. `None` if it has another type.
    fn of_column(column: SqlValue) -> Option<Self>;
}

macro_rules! column {
    ($($type:ty: $value:ident => $to:expr, $($pattern:pat => $of:expr),+;)*) => {
        $(impl SqlColumn for $type {
            fn to_column(&self) -> SqlValue {
                let $value = self;
                $to
            }

            fn of_column(column: SqlValue) -> Option<Self> {
                match column {
                    $($pattern => $of,)+
                    _ => None,
                }
            }
        })*
    };
}

column! {
    i64: value => SqlValue::Int(*value), SqlValue::Int(value) => Some(value);
    i32: value => SqlValue::Int((*value).into()), SqlValue::Int(value) => value.try_into().ok();
    u32: value => SqlValue::Int((*value).into()), SqlValue::Int(value) => value.try_into().ok();
    f64: value => SqlValue::Real(*value), SqlValue::Real(value) => Some(value), SqlValue::Int(value) => Some(value as f64);
    // SQLite stores booleans as integers.
    bool: value => SqlValue::Bool(*value), SqlValue::Bool(value) => Some(value), SqlValue::Int(value @ (0 | 1)) => Some(value == 1);
    String: value => SqlValue::Text(value.clone()), SqlValue::Text(value) => Some(value);
    Vec<u8>: value => SqlValue::Blob(value.clone()), SqlValue::Blob(value) => Some(value);
    BTreeSet<String>: value => SqlValue::Text(serde_json::json!(value).to_string()), SqlValue::Text(value) => serde_json::from_str(&value).ok();
    BTreeSet<i64>: value => SqlValue::Text(serde_json::json!(value).to_string()), SqlValue::Text(value) => serde_json::from_str(&value).ok();
    serde_json::Value: value => SqlValue::Text(value.to_string()), SqlValue::Text(value) => serde_json::from_str(&value).ok();
}

impl<T: SqlColumn> SqlColumn for Option<T> {
    fn to_column(&self) -> SqlValue {
        self.as_ref().map_or(SqlValue::Null, T::to_column)
    }

    fn of_column(column: SqlValue) -> Option<Self> {
        match column {
            SqlValue::Null => Some(None),
            column => T::of_column(column).map(Some),
        }
    }
}

impl<T: SqlColumn> SqlColumns for T {
    fn to_columns(&self) -> Vec<SqlValue> {
        vec![self.to_column()]
    }

    fn of_columns(columns: Vec<SqlValue>) -> Option<Self> {
        let [column] = <[SqlValue; 1]>::try_from(columns).ok()?;
        T::of_column(column)
    }
}

macro_rules! tuple {
    ($($count:literal: $($part:ident),+;)*) => {
        $(impl<$($part: SqlColumn),+> SqlColumns for ($($part,)+) {
            fn to_columns(&self) -> Vec<SqlValue> {
                #[allow(non_snake_case)]
                let ($($part,)+) = self;
                vec![$($part.to_column()),+]
            }

            fn of_columns(columns: Vec<SqlValue>) -> Option<Self> {
                #[allow(non_snake_case)]
                let [$($part),+] = <[SqlValue; $count]>::try_from(columns).ok()?;
                Some(($($part::of_column($part)?,)+))
            }
        })*
    };
}

tuple! {
    2: A, B;
    3: A, B, C;
    4: A, B, C, D;
}
