//! SQL values, in one form for all databases.

use std::{
    fmt::{self, Write as _},
    ops::Bound,
};

use serde::{Deserialize, Serialize};

/// A value that is bound to a statement or returned by it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SqlValue {
    /// SQL `NULL`.
    #[default]
    Null,
    /// A boolean. SQLite stores booleans as the integers 1 and 0.
    Bool(bool),
    /// A signed 64-bit integer.
    Int(i64),
    /// A floating-point number.
    Real(f64),
    /// Text, and also decimals, times and UUIDs, because not all databases have types for them.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
    /// A JSON document, as its text.
    Json(String),
    /// An array of PostgreSQL. One of several dimensions is an array of arrays.
    Array(Vec<SqlValue>),
    /// A value of a composite type of PostgreSQL: its fields with their names.
    Record(Vec<(String, SqlValue)>),
    /// A range of PostgreSQL: its lower and its upper bound. `None` is the empty range.
    Range(Option<Box<(Bound<SqlValue>, Bound<SqlValue>)>>),
}

impl SqlValue {
    /// Creates an array of PostgreSQL.
    pub fn array<V: Into<Self>>(values: impl IntoIterator<Item = V>) -> Self {
        Self::Array(values.into_iter().map(Into::into).collect())
    }

    /// Creates a text from a value as it is written, for types without a conversion: `SqlValue::text(decimal)`.
    pub fn text(value: impl std::fmt::Display) -> Self {
        Self::Text(value.to_string())
    }

    /// Appends this value to a cache key, with its type, so that different values are written differently.
    pub(crate) fn name(&self, name: &mut String) {
        let mut all = |first: char, values: &mut dyn Iterator<Item = &Self>| {
            name.push(first);
            values.for_each(|value| value.name(name));
            name.push('e');
        };
        let written = match self {
            Self::Array(values) => return all('a', &mut values.iter()),
            Self::Record(fields) => return all('c', &mut fields.iter().map(|(_, value)| value)),
            Self::Range(_) => write!(name, "g{}:{self}", self.to_string().len()),
            Self::Json(text) => write!(name, "j{}:{text}", text.len()),
            Self::Null => write!(name, "n"),
            Self::Bool(value) => write!(name, "o{}", u8::from(*value)),
            Self::Int(value) => write!(name, "i{value}"),
            // Writes the bits, because two different numbers may print the same.
            Self::Real(value) => write!(name, "r{:x}", value.to_bits()),
            Self::Text(value) => write!(name, "t{}:{value}", value.len()),
            Self::Blob(value) => {
                name.push('b');
                value.iter().try_for_each(|byte| write!(name, "{byte:02x}"))
            }
        };
        written.expect("writing to a string cannot fail");
        name.push(';');
    }
}

macro_rules! from {
    ($($from:ty => $value:ident as $variant:expr;)*) => {
        $(impl From<$from> for SqlValue {
            fn from($value: $from) -> Self {
                $variant
            }
        })*
    };
}

from! {
    bool => value as Self::Bool(value);
    i8 => value as Self::Int(value.into());
    i16 => value as Self::Int(value.into());
    i32 => value as Self::Int(value.into());
    i64 => value as Self::Int(value);
    u8 => value as Self::Int(value.into());
    u16 => value as Self::Int(value.into());
    u32 => value as Self::Int(value.into());
    f32 => value as Self::Real(value.into());
    f64 => value as Self::Real(value);
    &str => value as Self::Text(value.to_owned());
    &String => value as Self::Text(value.clone());
    String => value as Self::Text(value);
    &[u8] => value as Self::Blob(value.to_vec());
    Vec<u8> => value as Self::Blob(value);
    serde_json::Value => value as Self::Json(value.to_string());
    &serde_json::Value => value as Self::Json(value.to_string());
}

/// Arrays of PostgreSQL.
macro_rules! arrays {
    ($($element:ty)*) => {
        $(impl From<Vec<$element>> for SqlValue {
            fn from(values: Vec<$element>) -> Self {
                Self::array(values)
            }
        }

        impl From<&[$element]> for SqlValue {
            fn from(values: &[$element]) -> Self {
                Self::array(values.iter().cloned())
            }
        })*
    };
}

arrays! { bool i16 i32 i64 f64 String &str }

/// Writes a value as a database writes its text; a range as PostgreSQL does.
impl fmt::Display for SqlValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
            Self::Text(text) | Self::Json(text) => f.write_str(text),
            Self::Blob(bytes) => {
                f.write_str("\\x")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Array(values) => {
                f.write_char('{')?;
                for (at, value) in values.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    value.fmt(f)?;
                }
                f.write_char('}')
            }
            Self::Record(fields) => {
                f.write_char('(')?;
                for (at, (_, value)) in fields.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    value.fmt(f)?;
                }
                f.write_char(')')
            }
            Self::Range(None) => f.write_str("empty"),
            Self::Range(Some(bounds)) => {
                let (lower, upper) = &**bounds;
                match lower {
                    Bound::Included(value) => write!(f, "[{value},")?,
                    Bound::Excluded(value) => write!(f, "({value},")?,
                    Bound::Unbounded => f.write_str("(,")?,
                }
                match upper {
                    Bound::Included(value) => write!(f, "{value}]"),
                    Bound::Excluded(value) => write!(f, "{value})"),
                    Bound::Unbounded => f.write_char(')'),
                }
            }
        }
    }
}

#[cfg(feature = "uuid")]
impl From<Vec<uuid::Uuid>> for SqlValue {
    fn from(values: Vec<uuid::Uuid>) -> Self {
        Self::array(values)
    }
}

#[cfg(feature = "uuid")]
impl From<uuid::Uuid> for SqlValue {
    fn from(value: uuid::Uuid) -> Self {
        Self::Text(value.to_string())
    }
}

impl<T: Into<Self>> From<Option<T>> for SqlValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The values of a statement, in order: an array of one type, a tuple of several types, or `()`.
pub trait IntoValues {
    /// Converts them.
    fn into_values(self) -> Vec<SqlValue>;
}

/// Converts the [values](IntoValues) of a statement at once. Use it where a value is borrowed from a variable that a following
/// `move` closure takes.
///
/// # Examples
///
/// ```
/// use larder_sql::{SqlValue, values};
///
/// let name = "pear".to_owned();
/// assert_eq!(values![7, &name], [SqlValue::Int(7), SqlValue::Text("pear".into())]);
/// ```
#[macro_export]
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        ::std::vec![$($crate::SqlValue::from($value)),*]
    };
}

impl IntoValues for () {
    fn into_values(self) -> Vec<SqlValue> {
        Vec::new()
    }
}

impl IntoValues for Vec<SqlValue> {
    fn into_values(self) -> Vec<SqlValue> {
        self
    }
}

impl<V: Into<SqlValue>, const N: usize> IntoValues for [V; N] {
    fn into_values(self) -> Vec<SqlValue> {
        self.into_iter().map(Into::into).collect()
    }
}

macro_rules! tuples {
    ($(($($letter:ident)+))+) => {
        $(impl<$($letter: Into<SqlValue>),+> IntoValues for ($($letter,)+) {
            #[allow(non_snake_case)]
            fn into_values(self) -> Vec<SqlValue> {
                let ($($letter,)+) = self;
                vec![$($letter.into()),+]
            }
        })+
    };
}

tuples! { (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) (A B C D E F G) (A B C D E F G H) }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_values_are_written_differently_into_keys() {
        let values: [SqlValue; 16] = [
            vec![1_i64, 2].into(),
            vec![12_i64].into(),
            SqlValue::array([SqlValue::array([1]), SqlValue::array([2])]),
            serde_json::json!(1).into(),
            SqlValue::Record(vec![("a".to_owned(), 1.into()), ("b".to_owned(), 2.into())]),
            SqlValue::Range(None),
            1.into(),
            "1".into(),
            true.into(),
            1.0.into(),
            None::<i64>.into(),
            "".into(),
            "i1;".into(),
            b"1"[..].into(),
            (-0.0).into(),
            0.0.into(),
        ];
        let names: std::collections::BTreeSet<String> = values
            .iter()
            .map(|value| {
                let mut name = String::new();
                value.name(&mut name);
                name
            })
            .collect();
        assert_eq!(names.len(), values.len());
    }
}
