//! Values of PostgreSQL in its binary formats, for drivers.
//!
//! Each value is written in the type that the server expects, and read in the type that the server reports. Only the
//! server knows which type a text stands for (a time, a UUID, JSON). So a driver prepares a statement without a type for
//! a text ([`declared_type`]), and writes the text as the type that the server infers ([`write_value`]).

use std::str::FromStr;

use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::date};
use uuid::Uuid;

use crate::{statement::Statement, value::SqlValue};

/// A type, as a driver reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresType {
    name: Box<str>,
    kind: PostgresKind,
}

/// A kind of types.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PostgresKind {
    /// A type of its own.
    Plain,
    /// An enum.
    Enum,
    /// A domain over this type.
    Domain(Box<PostgresType>),
}

impl PostgresType {
    /// Creates a type from its name in the catalog `pg_type` (`int4`, `timestamptz`) and its kind.
    pub fn new(name: impl Into<Box<str>>, kind: PostgresKind) -> Self {
        Self { name: name.into(), kind }
    }

    /// The type itself, or the type under a domain.
    fn base(&self) -> &Self {
        match &self.kind {
            PostgresKind::Domain(base) => base.base(),
            _ => self,
        }
    }

    /// Whether values are sent as their text.
    fn is_text(&self) -> bool {
        matches!(
            &*self.name,
            "text" | "varchar" | "bpchar" | "name" | "unknown" | "json" | "citext" | "xml"
        ) || self.kind == PostgresKind::Enum
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the identifier of the type as which a value is declared when a statement is prepared; `None` if the server
/// infers the type.
pub fn declared_type(value: &SqlValue) -> Option<u32> {
    match value {
        SqlValue::Bool(_) => Some(BOOL),
        SqlValue::Int(_) => Some(INT8),
        SqlValue::Real(_) => Some(FLOAT8),
        SqlValue::Blob(_) => Some(BYTEA),
        SqlValue::Text(_) | SqlValue::Null => None,
    }
}

/// Returns the text of a statement with the declared types of its values appended in a comment, for a driver that
/// identifies a prepared statement by its text alone. Otherwise it would send bytes of one type to a statement that was
/// prepared for another type.
pub fn text_with_types(statement: &Statement) -> String {
    let mut text = statement.text().to_owned();
    if statement.values().is_empty() {
        return text;
    }
    // Uses a separate line, because the text may end in a comment.
    text.push_str("\n/*");
    text.extend(statement.values().iter().map(|value| match value {
        SqlValue::Bool(_) => 'o',
        SqlValue::Int(_) => 'i',
        SqlValue::Real(_) => 'r',
        SqlValue::Blob(_) => 'b',
        SqlValue::Text(_) | SqlValue::Null => 't',
    }));
    text.push_str("*/");
    text
}

/// Writes a value as a type that [`declared_type`] declares or the server infers, and returns whether it has written one:
/// `false` for a null.
///
/// # Errors
///
/// When a text is not a value of the type, or the type cannot be written.
pub fn write_value(
    value: &SqlValue,
    kind: &PostgresType,
    out: &mut Vec<u8>,
) -> Result<bool, BoxError> {
    match value {
        SqlValue::Null => return Ok(false),
        SqlValue::Bool(value) => out.push(u8::from(*value)),
        SqlValue::Int(value) => out.extend_from_slice(&value.to_be_bytes()),
        SqlValue::Real(value) => out.extend_from_slice(&value.to_be_bytes()),
        SqlValue::Blob(value) => out.extend_from_slice(value),
        SqlValue::Text(text) => write_text(text, kind, out)?,
    }
    Ok(true)
}

/// Writes a text as the type that the server infers.
fn write_text(text: &str, kind: &PostgresType, out: &mut Vec<u8>) -> Result<(), BoxError> {
    let kind = kind.base();
    match &*kind.name {
        "jsonb" => {
            out.push(JSONB_VERSION);
            out.extend_from_slice(text.as_bytes());
        }
        "uuid" => out.extend_from_slice(Uuid::parse_str(text)?.as_bytes()),
        "bool" => out.push(u8::from(bool::from_str(text)?)),
        "int2" => out.extend_from_slice(&i16::from_str(text.trim())?.to_be_bytes()),
        "int4" => out.extend_from_slice(&i32::from_str(text.trim())?.to_be_bytes()),
        "int8" => out.extend_from_slice(&i64::from_str(text.trim())?.to_be_bytes()),
        "float4" => out.extend_from_slice(&f32::from_str(text.trim())?.to_be_bytes()),
        "float8" => out.extend_from_slice(&f64::from_str(text.trim())?.to_be_bytes()),
        "timestamptz" => {
            let micros = match text {
                "infinity" => i64::MAX,
                "-infinity" => i64::MIN,
                text => {
                    let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| {
                        format!(
                            "{text:?} is not a time as in RFC 3339 ({error}): write $n::text::timestamptz"
                        )
                    })?;
                    i64::try_from((at - EPOCH.midnight().assume_utc()).whole_microseconds())?
                }
            };
            out.extend_from_slice(&micros.to_be_bytes());
        }
        name if kind.is_text() || name == "bytea" => out.extend_from_slice(text.as_bytes()),
        other => {
            return Err(
                format!("a text cannot be bound as {other}: write $n::text::{other}").into()
            );
        }
    }
    Ok(())
}

/// Reads a value of this type; `None` is a null.
///
/// # Errors
///
/// When the bytes are not a value of the type, or the type is unknown.
pub fn read_value(bytes: Option<&[u8]>, kind: &PostgresType) -> Result<SqlValue, BoxError> {
    let Some(bytes) = bytes else { return Ok(SqlValue::Null) };
    let kind = kind.base();
    Ok(match &*kind.name {
        "bool" => SqlValue::Bool(bytes == [1]),
        "int2" => SqlValue::Int(i16::from_be_bytes(bytes.try_into()?).into()),
        "int4" => SqlValue::Int(i32::from_be_bytes(bytes.try_into()?).into()),
        "int8" => SqlValue::Int(i64::from_be_bytes(bytes.try_into()?)),
        "oid" => SqlValue::Int(u32::from_be_bytes(bytes.try_into()?).into()),
        // Converts the decimal text, so that 0.1 remains 0.1 and does not become the 64-bit value of the 32-bit number.
        "float4" => SqlValue::Real(f32::from_be_bytes(bytes.try_into()?).to_string().parse()?),
        "float8" => SqlValue::Real(f64::from_be_bytes(bytes.try_into()?)),
        "bytea" => SqlValue::Blob(bytes.to_vec()),
        "jsonb" => SqlValue::Text(std::str::from_utf8(bytes.get(1..).unwrap_or_default())?.into()),
        "uuid" => SqlValue::Text(Uuid::from_slice(bytes)?.to_string()),
        "numeric" => SqlValue::Text(numeric(bytes).ok_or("a value of type numeric is truncated")?),
        "timestamp" => SqlValue::Text(timestamp(i64::from_be_bytes(bytes.try_into()?), false)),
        "timestamptz" => SqlValue::Text(timestamp(i64::from_be_bytes(bytes.try_into()?), true)),
        "date" => SqlValue::Text(date_text(i32::from_be_bytes(bytes.try_into()?))),
        "time" => SqlValue::Text(time_text(i64::from_be_bytes(bytes.try_into()?))),
        "void" => SqlValue::Null,
        _ if kind.is_text() => SqlValue::Text(std::str::from_utf8(bytes)?.to_owned()),
        // larder does not guess the meaning of unknown bytes.
        other => {
            return Err(
                format!("a column of type {other} cannot be read: write column::text").into()
            );
        }
    })
}

/// Writes a number of any size as the server does.
///
/// Source: `numeric_send` in PostgreSQL's `numeric.c`: digits of base 10,000, the weight of the first digit, the sign,
/// and the number of decimal places.
fn numeric(bytes: &[u8]) -> Option<String> {
    let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let (count, weight) = (i32::from(half(0)?), i32::from(half(2)? as i16));
    let (sign, places) = (half(4)?, usize::from(half(6)?));
    let special = match sign {
        0xC000 => Some("NaN"),
        0xD000 => Some("Infinity"),
        0xF000 => Some("-Infinity"),
        _ => None,
    };
    if let Some(special) = special {
        return Some(special.to_owned());
    }
    let digit = |at: i32| match usize::try_from(at) {
        Ok(place) if at < count => half(8 + 2 * place),
        _ => Some(0),
    };
    let mut text = if sign == 0x4000 { "-".to_owned() } else { String::new() };
    if weight < 0 {
        text.push('0');
    }
    for at in 0..=weight {
        let digit = digit(at)?;
        text += &if at == 0 { digit.to_string() } else { format!("{digit:04}") };
    }
    if places > 0 {
        let mut rest = String::new();
        let mut at = weight + 1;
        while rest.len() < places {
            rest += &format!("{:04}", digit(at)?);
            at += 1;
        }
        text.push('.');
        text += &rest[..places];
    }
    Some(text)
}

/// Writes a time as in RFC 3339, with a `Z` if its zone is known. RFC 3339 has no years before Christ or after 9999, so
/// such a time is written as the server writes it: `0044-03-15 12:00:00 BC`, `12000-01-01 00:00:00+00`.
fn timestamp(micros: i64, in_utc: bool) -> String {
    match micros {
        i64::MAX => return "infinity".to_owned(),
        i64::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let (days, time) = (micros.div_euclid(DAY), time_text(micros.rem_euclid(DAY)));
    let (date, era) = calendar(days);
    if era.is_empty() && date.len() == "2000-01-01".len() {
        return format!("{date}T{time}{}", if in_utc { "Z" } else { "" });
    }
    format!("{date} {time}{}{era}", if in_utc { "+00" } else { "" })
}

/// A time of day, from `00:00:00` to `24:00:00`.
fn time_text(micros: i64) -> String {
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match rest {
        0 => time,
        rest => format!("{time}.{}", format!("{rest:06}").trim_end_matches('0')),
    }
}

fn date_text(days: i32) -> String {
    match days {
        i32::MAX => return "infinity".to_owned(),
        i32::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let (date, era) = calendar(days.into());
    date + era
}

/// Converts a number of days since [`EPOCH`] to a date in the proleptic Gregorian calendar. Also returns the suffix
/// ` BC` for a year before the year 1, and an empty suffix otherwise. It works for any year, because the server has dates up to the year 5,874,897, which calendar
/// libraries do not support.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn calendar(days: i64) -> (String, &'static str) {
    // Counts from 1 March of the year 0, in eras of 400 years.
    let days = days + DAYS_BEFORE_EPOCH;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    // The server has no year 0.
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

/// The day from which the server counts.
const EPOCH: Date = date!(2000 - 01 - 01);
/// The days from 1 March of the year 0 to [`EPOCH`].
const DAYS_BEFORE_EPOCH: i64 = 730_425;
/// The length of a day in microseconds.
const DAY: i64 = 86_400_000_000;
const JSONB_VERSION: u8 = 1;
const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const INT8: u32 = 20;
const FLOAT8: u32 = 701;

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    fn written(halves: &[i32]) -> Vec<u8> {
        halves.iter().flat_map(|half| (*half as u16).to_be_bytes()).collect()
    }

    #[test]
    fn numbers_of_any_size_are_written_as_the_server_writes_them() {
        let rows: [(&[i32], &str); 9] = [
            (&[0, 0, 0, 0], "0"),
            (&[0, 0, 0, 2], "0.00"),
            (&[1, 0, 0, 0, 42], "42"),
            (&[2, 0, 0x4000, 2, 19, 9900], "-19.99"),
            (&[1, 1, 0, 0, 3], "30000"),
            (&[1, -1, 0, 4, 25], "0.0025"),
            (&[1, -2, 0, 8, 25], "0.00000025"),
            (&[3, 1, 0, 3, 1, 2, 5000], "10002.500"),
            (&[0, 0, 0xC000, 0], "NaN"),
        ];
        for (halves, expected) in rows {
            assert_eq!(numeric(&written(halves)).as_deref(), Some(expected));
        }
        assert_eq!(numeric(&written(&[2, 0, 0, 4, 1])), None, "cut short");
    }

    #[test]
    fn times_are_written_as_in_rfc_3339_or_as_the_server_does() {
        let ides = (date!(-0043 - 03 - 15) - EPOCH).whole_days() * DAY;
        let rows = [
            (0, "2000-01-01T00:00:00", "2000-01-01T00:00:00Z"),
            (-1, "1999-12-31T23:59:59.999999", "1999-12-31T23:59:59.999999Z"),
            (817_780_215_500_000, "2025-11-30T01:10:15.5", "2025-11-30T01:10:15.5Z"),
            (i64::MAX, "infinity", "infinity"),
            (i64::MIN, "-infinity", "-infinity"),
            (ides, "0044-03-15 00:00:00 BC", "0044-03-15 00:00:00+00 BC"),
            (315_569_520_000_000_000, "12000-01-01 00:00:00", "12000-01-01 00:00:00+00"),
        ];
        for (micros, expected, in_utc) in rows {
            assert_eq!(timestamp(micros, false), expected);
            assert_eq!(timestamp(micros, true), in_utc);
        }
        assert_eq!(date_text(-1), "1999-12-31");
        assert_eq!(time_text(DAY), "24:00:00");
        // Compares every day of some centuries with the calendar of a library.
        for days in -400_000..400_000 {
            let date = EPOCH + Duration::days(days);
            assert_eq!(calendar(days), (date.to_string(), ""));
        }
    }
}
