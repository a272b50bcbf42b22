//! SQL values, in one form for all databases.

use std::fmt::Write as _;

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
}

impl SqlValue {
    /// Creates a text from a value as it is written, for types without a conversion: `SqlValue::text(decimal)`.
    pub fn text(value: impl std::fmt::Display) -> Self {
        Self::Text(value.to_string())
    }

    /// Appends this value to a cache key, with its type, so that different values are written differently.
    pub(crate) fn name(&self, name: &mut String) {
        let written = match self {
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
        let values: [SqlValue; 10] = [
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
