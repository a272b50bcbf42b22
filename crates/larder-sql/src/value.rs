//! Values of a database that are the same for all of them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// A value that is bound to a statement or comes back from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SqlValue {
    /// No value.
    #[default]
    Null,
    /// True or false; SQLite has 1 and 0 in its place.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating-point number.
    Real(f64),
    /// Text; also numbers, times and identifiers that are nothing else everywhere.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl SqlValue {
    /// Adds this value to the name of a query, with its type and without ambiguity.
    pub(crate) fn name(&self, name: &mut String) {
        let written = match self {
            Self::Null => write!(name, "n"),
            Self::Bool(value) => write!(name, "o{}", u8::from(*value)),
            Self::Int(value) => write!(name, "i{value}"),
            // Its bits: two numbers that print the same need not be the same.
            Self::Real(value) => write!(name, "r{:x}", value.to_bits()),
            Self::Text(value) => write!(name, "t{}:{value}", value.len()),
            Self::Blob(value) => {
                name.push('b');
                value.iter().try_for_each(|byte| write!(name, "{byte:02x}"))
            }
        };
        written.expect("a string takes whatever is written to it");
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

impl<T: Into<Self>> From<Option<T>> for SqlValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_differ_have_names_that_differ() {
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
