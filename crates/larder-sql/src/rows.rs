//! The rows that a statement returns, in one form for all databases, and their decoding into types of the application.
//!
//! `serde` decodes rows, not sqlx's `FromRow`, because stored values must be serialised for the second level, and
//! because a query must return the same values from each database.

use std::fmt;

use serde::{
    Deserialize, Serialize,
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess,
        SeqAccess, Visitor,
        value::{BorrowedBytesDeserializer, BorrowedStrDeserializer},
    },
};

use crate::value::SqlValue;

/// The outcome of a statement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatementOutcome {
    /// The rows that the statement returned, if any.
    pub rows: Rows,
    /// The number of changed rows. PostgreSQL also counts the rows that a query returns.
    pub affected: u64,
}

/// Rows with the names of their columns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// A value for each column, for each row.
    pub rows: Vec<Vec<SqlValue>>,
}

impl Rows {
    /// Decodes all rows into values of a type. A struct is decoded by the names of the columns, a tuple by the order of
    /// the columns, and any other type from the only column.
    ///
    /// # Errors
    ///
    /// When a row cannot be decoded into the type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<Vec<T>, DecodeError> {
        let row = |values: &Vec<SqlValue>| T::deserialize(Row { columns: &self.columns, values });
        self.rows.iter().map(row).collect()
    }

    /// Returns the approximate size of all values, in bytes.
    pub fn weight(&self) -> usize {
        let of = |value: &SqlValue| {
            size_of::<SqlValue>()
                + match value {
                    SqlValue::Text(text) => text.len(),
                    SqlValue::Blob(bytes) => bytes.len(),
                    _ => 0,
                }
        };
        self.rows.iter().flatten().map(of).sum()
    }
}

/// A row cannot be decoded into the requested type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError(String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a row cannot be decoded into the requested type: {}", self.0)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

#[derive(Clone, Copy)]
struct Row<'a> {
    columns: &'a [String],
    values: &'a [SqlValue],
}

impl<'a> Row<'a> {
    fn only(self) -> Result<Cell<'a>, DecodeError> {
        match self.values {
            [value] => Ok(Cell(value)),
            values => {
                Err(DecodeError(format!("one column is expected, the row has {}", values.len())))
            }
        }
    }
}

/// Decodes a single value from the only column.
macro_rules! scalars {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            self.only()?.$method(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Row<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_map(Columns { row: self, at: 0 })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_seq(Columns { row: self, at: 0 })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if length != self.values.len() {
            let given = self.values.len();
            return Err(DecodeError(format!("{length} columns are expected, the row has {given}")));
        }
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.only()?.deserialize_option(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.only()?.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.only()?.deserialize_bool(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    scalars! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8
    deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
    deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
    deserialize_identifier }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }
}

struct Columns<'a> {
    row: Row<'a>,
    at: usize,
}

impl<'de> MapAccess<'de> for Columns<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let name = self.row.columns.get(self.at);
        name.map(|name| seed.deserialize(BorrowedStrDeserializer::new(name))).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<S::Value, DecodeError> {
        let (name, value) = (&self.row.columns[self.at], self.row.values.get(self.at));
        self.at += 1;
        let value = value.ok_or_else(|| DecodeError(format!("column {name} has no value")))?;
        seed.deserialize(Cell(value))
            .map_err(|error| DecodeError(format!("column {name}: {}", error.0)))
    }
}

impl<'de> SeqAccess<'de> for Columns<'de> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        let value = self.row.values.get(self.at);
        self.at += 1;
        value.map(|value| seed.deserialize(Cell(value))).transpose()
    }
}

struct Cell<'a>(&'a SqlValue);

/// Parses a text if a number is requested, because sums and decimals are returned as text.
macro_rules! numbers {
    ($($method:ident: $number:ty => $visit:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match self.0 {
                SqlValue::Text(text) => match text.parse::<$number>() {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => self.deserialize_any(visitor),
                },
                _ => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Cell<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Null => visitor.visit_unit(),
            SqlValue::Bool(value) => visitor.visit_bool(*value),
            SqlValue::Int(value) => visitor.visit_i64(*value),
            SqlValue::Real(value) => visitor.visit_f64(*value),
            SqlValue::Text(text) => visitor.visit_borrowed_str(text),
            SqlValue::Blob(bytes) => visitor.visit_borrowed_bytes(bytes),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Int(value) => visitor.visit_bool(*value != 0),
            _ => self.deserialize_any(visitor),
        }
    }

    numbers! {
        deserialize_i8: i64 => visit_i64, deserialize_i16: i64 => visit_i64, deserialize_i32: i64 => visit_i64,
        deserialize_i64: i64 => visit_i64, deserialize_i128: i128 => visit_i128, deserialize_u8: u64 => visit_u64,
        deserialize_u16: u64 => visit_u64, deserialize_u32: u64 => visit_u64, deserialize_u64: u64 => visit_u64,
        deserialize_u128: u128 => visit_u128, deserialize_f32: f64 => visit_f64, deserialize_f64: f64 => visit_f64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            other => Err(DecodeError(format!("{other:?} cannot name a variant of an enum"))),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Blob(bytes) => {
                de::value::SeqDeserializer::new(bytes.iter().copied()).deserialize_seq(visitor)
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Blob(bytes) => {
                BorrowedBytesDeserializer::new(bytes).deserialize_bytes(visitor)
            }
            _ => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        char str string byte_buf unit unit_struct
        tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(columns: &[&str], values: Vec<SqlValue>) -> Rows {
        let columns = columns.iter().map(|name| (*name).to_owned()).collect();
        Rows { columns, rows: vec![values] }
    }

    #[test]
    fn a_row_decodes_into_a_struct_a_tuple_or_a_single_value() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum State {
            Sold,
        }
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Product {
            id: u32,
            name: Option<String>,
            state: State,
            open: bool,
            price: f64,
            picture: Vec<u8>,
        }
        let row = rows(
            &["id", "name", "state", "open", "price", "picture", "more"],
            vec![
                7.into(),
                SqlValue::Null,
                "sold".into(),
                1.into(),
                3.into(),
                vec![1_u8, 2].into(),
                "ignored".into(),
            ],
        );
        let product = Product {
            id: 7,
            name: None,
            state: State::Sold,
            open: true,
            price: 3.0,
            picture: vec![1, 2],
        };
        assert_eq!(row.decode::<Product>().unwrap(), [product]);
        let pair = rows(&["a", "b"], vec![1.into(), "x".into()]);
        assert_eq!(pair.decode::<(i64, String)>().unwrap(), [(1, "x".to_owned())]);
        assert_eq!(rows(&["n"], vec![3.into()]).decode::<i64>().unwrap(), [3]);
        assert_eq!(rows(&["n"], vec![3.into()]).decode::<(i64,)>().unwrap(), [(3,)]);
        assert_eq!(rows(&["n"], vec![SqlValue::Null]).decode::<Option<i64>>().unwrap(), [None]);
        assert_eq!(rows(&["sum"], vec!["12".into()]).decode::<u8>().unwrap(), [12]);
        assert_eq!(rows(&["sum"], vec!["1.5".into()]).decode::<f64>().unwrap(), [1.5]);
        assert!(rows(&["sum"], vec!["1.5".into()]).decode::<i64>().is_err());
    }

    #[test]
    fn decode_errors_name_the_column() {
        #[derive(Debug, serde::Deserialize)]
        struct Product {
            _id: u8,
        }
        let error = rows(&["_id"], vec![300.into()]).decode::<Product>().unwrap_err().to_string();
        assert!(error.contains("column _id") && error.contains("300"), "{error}");
        let error = rows(&["id"], vec![1.into()]).decode::<Product>().unwrap_err().to_string();
        assert!(error.contains("missing field `_id`"), "{error}");
        let error = rows(&["a", "b"], vec![1.into(), 2.into()]).decode::<i64>().unwrap_err();
        assert!(error.to_string().contains("one column is expected, the row has 2"), "{error}");
    }
}
