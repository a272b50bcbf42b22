//! The rows that a statement returns, in one form for all databases, and their decoding into types of the application.
//!
//! `serde` decodes rows, not sqlx's `FromRow`, because stored values must be serialised for the second level, and
//! because a query must return the same values from each database.

use std::{fmt, ops::Bound};

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
        self.rows.iter().flatten().map(weight).sum()
    }
}

fn weight(value: &SqlValue) -> usize {
    size_of::<SqlValue>()
        + match value {
            SqlValue::Text(text) | SqlValue::Json(text) => text.len(),
            SqlValue::Blob(bytes) => bytes.len(),
            SqlValue::Array(values) => values.iter().map(weight).sum(),
            SqlValue::Record(fields) => {
                fields.iter().map(|(name, value)| name.len() + weight(value)).sum()
            }
            SqlValue::Range(_) => 2 * size_of::<SqlValue>(),
            _ => 0,
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
            SqlValue::Json(text) => json(text).deserialize_any(visitor).map_err(of_json),
            SqlValue::Array(values) => visitor.visit_seq(Cells(values.iter())),
            SqlValue::Record(fields) => visitor.visit_map(Fields(fields.iter(), None)),
            SqlValue::Range(Some(bounds)) => {
                let bounds = [&bounds.0, &bounds.1].map(BoundCell);
                visitor.visit_seq(Bounds(bounds.into_iter()))
            }
            SqlValue::Range(None) => Err(DecodeError("the range is empty".to_owned())),
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
            SqlValue::Json(text) if text.trim() == "null" => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.0 {
            // serde_json's own types, such as a raw value, have such names.
            SqlValue::Json(text) => {
                json(text).deserialize_newtype_struct(name, visitor).map_err(of_json)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match (self.0, fields) {
            (SqlValue::Json(text), _) => {
                json(text).deserialize_struct(name, fields, visitor).map_err(of_json)
            }
            // `std::ops::Range`.
            (SqlValue::Range(Some(bounds)), ["start", "end"]) => match &**bounds {
                (Bound::Included(start), Bound::Excluded(end)) => {
                    visitor.visit_seq(Cells([start, end].into_iter()))
                }
                _ => Err(DecodeError(format!(
                    "{} is not a range from an included to an excluded bound",
                    self.0
                ))),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    /// A text that is a time decodes into the types of the crate time, which expect their parts.
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Text(text) => match time_parts(text, length) {
                Some(parts) => {
                    visitor.visit_seq(de::value::SeqDeserializer::new(parts.into_iter()))
                }
                None => self.deserialize_any(visitor),
            },
            SqlValue::Record(fields) => {
                visitor.visit_seq(Cells(fields.iter().map(|(_, value)| value)))
            }
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(length, visitor)
    }

    /// A JSON document and a range decode into a string as their texts.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Json(text) => visitor.visit_borrowed_str(text),
            SqlValue::Range(_) => visitor.visit_string(self.0.to_string()),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.0 {
            SqlValue::Json(text) => {
                json(text).deserialize_enum(name, variants, visitor).map_err(of_json)
            }
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
        char byte_buf unit unit_struct map identifier ignored_any
    }
}

fn json(text: &str) -> serde_json::Deserializer<serde_json::de::StrRead<'_>> {
    serde_json::Deserializer::from_str(text)
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn of_json(error: serde_json::Error) -> DecodeError {
    DecodeError(error.to_string())
}

/// The values of an array or a record.
struct Cells<I>(I);

impl<'de, I: Iterator<Item = &'de SqlValue>> SeqAccess<'de> for Cells<I> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        self.0.next().map(|value| seed.deserialize(Cell(value))).transpose()
    }
}

/// The fields of a record, and the value of the field whose name was read last.
struct Fields<'a>(std::slice::Iter<'a, (String, SqlValue)>, Option<&'a SqlValue>);

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let Some((name, value)) = self.0.next() else { return Ok(None) };
        self.1 = Some(value);
        seed.deserialize(BorrowedStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<S::Value, DecodeError> {
        seed.deserialize(Cell(self.1.take().unwrap_or(&SqlValue::Null)))
    }
}

/// The two bounds of a range.
struct Bounds<'a>(std::array::IntoIter<BoundCell<'a>, 2>);

impl<'de> SeqAccess<'de> for Bounds<'de> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        self.0.next().map(|bound| seed.deserialize(bound)).transpose()
    }
}

/// A bound of a range, which decodes into [`Bound`].
struct BoundCell<'a>(&'a Bound<SqlValue>);

impl<'de> Deserializer<'de> for BoundCell<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_enum(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> de::EnumAccess<'de> for BoundCell<'de> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self), DecodeError> {
        let name = match self.0 {
            Bound::Included(_) => "Included",
            Bound::Excluded(_) => "Excluded",
            Bound::Unbounded => "Unbounded",
        };
        Ok((seed.deserialize(BorrowedStrDeserializer::new(name))?, self))
    }
}

impl<'de> de::VariantAccess<'de> for BoundCell<'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<S::Value, DecodeError> {
        match self.0 {
            Bound::Included(value) | Bound::Excluded(value) => seed.deserialize(Cell(value)),
            Bound::Unbounded => seed.deserialize(Cell(&SqlValue::Null)),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, DecodeError> {
        Err(DecodeError("a bound of a range has one value".to_owned()))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, DecodeError> {
        Err(DecodeError("a bound of a range has one value".to_owned()))
    }
}

/// The parts of a time as the types of the crate time expect them: year and day of the year, then hour, minute, second and
/// nanosecond, then hours, minutes and seconds of the zone.
fn time_parts(text: &str, length: usize) -> Option<Vec<i64>> {
    let (has_date, has_time, has_zone) = match length {
        2 => (true, false, false),
        4 => (false, true, false),
        6 => (true, true, false),
        9 => (true, true, true),
        _ => return None,
    };
    let mut parts = Vec::with_capacity(length);
    let mut rest = text;
    if has_date {
        let (date, time) = rest.split_at_checked(10)?;
        let (year, date) = date.split_once('-')?;
        let (month, day) = date.split_once('-')?;
        let (year, month, day): (i64, usize, i64) =
            (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = DAYS_BEFORE.get(month.checked_sub(1)?)?;
        parts.extend([year, before + day + i64::from(is_leap && month > 2)]);
        rest = if has_time { time.strip_prefix(['T', ' '])? } else { time };
    }
    if has_time {
        let end = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
        let (time, zone) = rest.split_at(end);
        let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
        for part in time.splitn(3, ':') {
            parts.push(part.parse().ok()?);
        }
        parts.push(format!("{fraction:0<9}").get(..9)?.parse().ok()?);
        rest = zone;
    }
    if has_zone {
        let (sign, zone) = match rest.strip_prefix('-') {
            Some(zone) => (-1, zone),
            None => (1, rest.strip_prefix(['Z', '+'])?),
        };
        let mut zone = zone.splitn(3, ':').filter(|part| !part.is_empty());
        for _ in 0..3 {
            parts.push(sign * zone.next().map_or(Some(0), |part| part.parse().ok())?);
        }
        rest = "";
    }
    (rest.is_empty() && parts.len() == length).then_some(parts)
}

/// The days of a year before each month, without a leap day.
const DAYS_BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

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
