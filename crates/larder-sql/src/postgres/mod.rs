//! Values of PostgreSQL in its binary formats, for drivers.
//!
//! Each value is written in the type that the server expects, and read in the type that the server reports. Only the
//! server knows which type a text stands for (a time, a UUID, JSON). So a driver prepares a statement without a type for
//! a text ([`declared_type`]), and writes the text as the type that the server infers ([`write_value`]).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Bound,
    str::FromStr,
};

use uuid::Uuid;

use crate::{statement::Statement, value::SqlValue};

mod numeric;
mod times;

/// A type, as a driver reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresType {
    name: Box<str>,
    oid: u32,
    kind: PostgresKind,
}

/// The structure of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PostgresKind {
    /// A type without parts, such as `int4` or `text`.
    Plain,
    /// An enum.
    Enum,
    /// A domain over this type.
    Domain(Box<PostgresType>),
    /// An array of this type.
    Array(Box<PostgresType>),
    /// A range over this type.
    Range(Box<PostgresType>),
    /// A composite type, with the names and types of its fields.
    Composite(Vec<(String, PostgresType)>),
}

impl PostgresType {
    /// Creates a type from its name in the catalog `pg_type` (`int4`, `timestamptz`), its identifier there, and its kind.
    pub fn new(name: impl Into<Box<str>>, oid: u32, kind: PostgresKind) -> Self {
        Self { name: name.into(), oid, kind }
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
            "text" | "varchar" | "bpchar" | "name" | "char" | "unknown" | "json" | "citext" | "xml"
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
        _ => None,
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
        SqlValue::Array(_) => 'a',
        _ => 't',
    }));
    text.push_str("*/");
    text
}

/// Writes a value as a type that [`declared_type`] declares or the server infers, and returns whether it has written one:
/// `false` for a null. `kind` is ignored for a value that has a declared type.
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
        SqlValue::Text(text) | SqlValue::Json(text) => write_text(text, kind, out)?,
        SqlValue::Array(values) => write_array(values, kind, out)?,
        SqlValue::Record(_) | SqlValue::Range(_) => {
            return Err(format!("{value:?} cannot be bound: bind its text").into());
        }
    }
    Ok(true)
}

/// Writes a text as the type that the server infers.
fn write_text(text: &str, kind: &PostgresType, out: &mut Vec<u8>) -> Result<(), BoxError> {
    let kind = kind.base();
    let not_a = |what: &str| {
        let name = &kind.name;
        format!("{text:?} is not {what}: bind such a text, or write $n::text::{name}")
    };
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
        "numeric" => {
            let number = numeric::bytes_of(text.trim());
            out.extend(number.ok_or_else(|| not_a("a decimal number like 1.50"))?);
        }
        "timestamptz" => {
            let at = times::micros_of_zoned(text);
            let at = at.ok_or_else(|| not_a("a time as in RFC 3339, like 2024-02-29T10:00:00Z"))?;
            out.extend_from_slice(&at.to_be_bytes());
        }
        "timestamp" => {
            let at = times::micros_of(text);
            let at = at.ok_or_else(|| not_a("a time without a zone, like 2024-02-29T10:00:00"))?;
            out.extend_from_slice(&at.to_be_bytes());
        }
        "date" => {
            let day = times::days_of(text).ok_or_else(|| not_a("a date like 2024-02-29"))?;
            out.extend_from_slice(&day.to_be_bytes());
        }
        "time" => {
            let at = times::micros_of_day(text).ok_or_else(|| not_a("a time like 10:00:00"))?;
            out.extend_from_slice(&at.to_be_bytes());
        }
        "inet" | "cidr" => {
            let written = network_bytes(text, &*kind.name == "cidr");
            out.extend(written.ok_or_else(|| not_a("an address like 10.0.0.1 or 10.0.0.0/8"))?);
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

/// Writes an array as the array type that the server infers.
///
/// Source: `array_recv` in PostgreSQL's `arrayfuncs.c`: the number of dimensions, whether there are nulls, the type of the
/// elements, the length and the first index of each dimension, and each element after its length.
fn write_array(
    values: &[SqlValue],
    kind: &PostgresType,
    out: &mut Vec<u8>,
) -> Result<(), BoxError> {
    let PostgresKind::Array(element) = &kind.base().kind else {
        let name = &kind.name;
        return Err(format!("an array cannot be bound as {name}: write $n::type[]").into());
    };
    let has_nulls = values.contains(&SqlValue::Null);
    let dimensions = i32::from(!values.is_empty());
    out.extend_from_slice(&dimensions.to_be_bytes());
    out.extend_from_slice(&i32::from(has_nulls).to_be_bytes());
    out.extend_from_slice(&element.oid.to_be_bytes());
    if !values.is_empty() {
        out.extend_from_slice(&i32::try_from(values.len())?.to_be_bytes());
        out.extend_from_slice(&1_i32.to_be_bytes());
    }
    for value in values {
        let mut bytes = Vec::new();
        match write_element(value, element, &mut bytes)? {
            true => out.extend_from_slice(&i32::try_from(bytes.len())?.to_be_bytes()),
            false => out.extend_from_slice(&NULL_LENGTH.to_be_bytes()),
        }
        out.extend(bytes);
    }
    Ok(())
}

/// Writes an element of an array, whose type is not declared by its value.
fn write_element(
    value: &SqlValue,
    kind: &PostgresType,
    out: &mut Vec<u8>,
) -> Result<bool, BoxError> {
    match value {
        SqlValue::Int(number) => write_text(&number.to_string(), kind, out)?,
        SqlValue::Real(number) => write_text(&number.to_string(), kind, out)?,
        SqlValue::Bool(value) => write_text(&value.to_string(), kind, out)?,
        SqlValue::Array(_) => return Err("an array of arrays cannot be bound".into()),
        value => return write_value(value, kind, out),
    }
    Ok(true)
}

/// Reads a value of this type; `None` is a null.
///
/// A number, a boolean, a text and bytes are values of their own. A time is a text as in RFC 3339 (`2024-02-29T10:00:00Z`),
/// an interval one as in ISO 8601 (`P1DT2H`); a decimal number, a UUID, an address, an enum and bits are texts as the
/// server writes them.
///
/// # Errors
///
/// When the bytes are not a value of the type, or the type is unknown.
pub fn read_value(bytes: Option<&[u8]>, kind: &PostgresType) -> Result<SqlValue, BoxError> {
    let Some(bytes) = bytes else { return Ok(SqlValue::Null) };
    let kind = kind.base();
    match &kind.kind {
        PostgresKind::Array(element) => return read_array(bytes, element),
        PostgresKind::Range(bound) => return read_range(bytes, bound),
        PostgresKind::Composite(fields) => return read_record(bytes, fields),
        _ => {}
    }
    let text = |bytes| Ok::<_, BoxError>(SqlValue::Text(str::from_utf8(bytes)?.to_owned()));
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
        "json" => SqlValue::Json(str::from_utf8(bytes)?.to_owned()),
        "jsonb" => SqlValue::Json(str::from_utf8(bytes.get(1..).unwrap_or_default())?.to_owned()),
        "uuid" => SqlValue::Text(Uuid::from_slice(bytes)?.to_string()),
        "numeric" => {
            SqlValue::Text(numeric::text_of(bytes).ok_or("a value of type numeric is truncated")?)
        }
        "timestamp" => {
            SqlValue::Text(times::timestamp(i64::from_be_bytes(bytes.try_into()?), false))
        }
        "timestamptz" => {
            SqlValue::Text(times::timestamp(i64::from_be_bytes(bytes.try_into()?), true))
        }
        "date" => SqlValue::Text(times::date_text(i32::from_be_bytes(bytes.try_into()?))),
        "time" => SqlValue::Text(times::time_text(i64::from_be_bytes(bytes.try_into()?))),
        "timetz" => {
            let mut parts = Parts(bytes);
            let micros = parts.long()?;
            SqlValue::Text(times::zoned_time(micros, parts.int()?))
        }
        "interval" => {
            let mut parts = Parts(bytes);
            let (micros, days) = (parts.long()?, parts.int()?);
            SqlValue::Text(times::interval(parts.int()?, days, micros))
        }
        "inet" | "cidr" => SqlValue::Text(network_text(bytes, &*kind.name == "cidr")?),
        "macaddr" | "macaddr8" => {
            let bytes = bytes.iter().map(|byte| format!("{byte:02x}"));
            SqlValue::Text(bytes.collect::<Vec<_>>().join(":"))
        }
        "bit" | "varbit" => {
            let mut parts = Parts(bytes);
            let length = usize::try_from(parts.int()?)?;
            let bits = parts.0.iter().flat_map(|byte| (0..8).map(move |at| byte << at & 0x80 != 0));
            SqlValue::Text(bits.take(length).map(|bit| if bit { '1' } else { '0' }).collect())
        }
        "void" => SqlValue::Null,
        _ if kind.is_text() => text(bytes)?,
        // larder does not guess the meaning of unknown bytes.
        other => {
            return Err(
                format!("a column of type {other} cannot be read: write column::text").into()
            );
        }
    })
}

/// The rest of the bytes of a value.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BoxError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("a value is truncated")?;
        self.0 = rest;
        Ok(taken)
    }

    fn int(&mut self) -> Result<i32, BoxError> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into()?))
    }

    fn long(&mut self) -> Result<i64, BoxError> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into()?))
    }

    /// A value after its length; `None` for a null.
    fn value(&mut self) -> Result<Option<&'a [u8]>, BoxError> {
        match self.int()? {
            NULL_LENGTH => Ok(None),
            length => self.take(usize::try_from(length)?).map(Some),
        }
    }
}

/// Reads an array. An array of several dimensions is an array of arrays.
fn read_array(bytes: &[u8], element: &PostgresType) -> Result<SqlValue, BoxError> {
    let mut parts = Parts(bytes);
    let dimensions = usize::try_from(parts.int()?)?;
    let (_has_nulls, _type) = (parts.int()?, parts.int()?);
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(usize::try_from(parts.int()?)?);
        let _first_index = parts.int()?;
    }
    let mut values = Vec::new();
    while !parts.0.is_empty() {
        values.push(read_value(parts.value()?, element)?);
    }
    // Joins the values of the last dimension first.
    for length in lengths.into_iter().skip(1).rev() {
        let mut rows = Vec::new();
        while !values.is_empty() {
            let rest = values.split_off(length.clamp(1, values.len()));
            rows.push(SqlValue::Array(std::mem::replace(&mut values, rest)));
        }
        values = rows;
    }
    Ok(SqlValue::Array(values))
}

/// Reads a range.
///
/// Source: `range_recv` in PostgreSQL's `rangetypes.c`: flags, and the bounds that are not infinite.
fn read_range(bytes: &[u8], bound: &PostgresType) -> Result<SqlValue, BoxError> {
    let mut parts = Parts(bytes);
    let flags = parts.take(1)?[0];
    let has = |flag: u8| flags & flag != 0;
    if has(1) {
        return Ok(SqlValue::Range(None));
    }
    let mut read = |is_infinite: bool, is_inclusive: bool| {
        if is_infinite {
            return Ok::<_, BoxError>(Bound::Unbounded);
        }
        let value = read_value(parts.value()?, bound)?;
        Ok(if is_inclusive { Bound::Included(value) } else { Bound::Excluded(value) })
    };
    let lower = read(has(8), has(2))?;
    let upper = read(has(16), has(4))?;
    Ok(SqlValue::Range(Some(Box::new((lower, upper)))))
}

/// Reads a value of a composite type.
fn read_record(bytes: &[u8], fields: &[(String, PostgresType)]) -> Result<SqlValue, BoxError> {
    let mut parts = Parts(bytes);
    if usize::try_from(parts.int()?)? != fields.len() {
        return Err("a composite type has changed since it was read".into());
    }
    let field = |(name, kind): &(String, PostgresType)| {
        let _type = parts.int()?;
        Ok((name.clone(), read_value(parts.value()?, kind)?))
    };
    fields.iter().map(field).collect::<Result<_, BoxError>>().map(SqlValue::Record)
}

/// Writes an address as the server does: an `inet` without the length of its network if it has all bits.
///
/// Source: `network_send` in PostgreSQL's `network.c`: the family, the bits, whether it is a `cidr`, the length, the bytes.
fn network_text(bytes: &[u8], is_cidr: bool) -> Result<String, BoxError> {
    let mut parts = Parts(bytes);
    let head = parts.take(4)?;
    let (address, all) = match parts.0 {
        [a, b, c, d] => (IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)), 32),
        bytes => (IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes)?)), 128),
    };
    let bits = head[1];
    let is_host = bits == all && !is_cidr;
    Ok(if is_host { address.to_string() } else { format!("{address}/{bits}") })
}

fn network_bytes(text: &str, is_cidr: bool) -> Option<Vec<u8>> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let (family, all, bytes) = match address.parse().ok()? {
        IpAddr::V4(address) => (2, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (3, 128, address.octets().to_vec()),
    };
    let bits = bits.unwrap_or(all);
    let head = [family, bits, u8::from(is_cidr), u8::try_from(bytes.len()).ok()?];
    (bits <= all).then(|| [&head[..], &bytes].concat())
}

const NULL_LENGTH: i32 = -1;
const JSONB_VERSION: u8 = 1;
const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const INT8: u32 = 20;
const FLOAT8: u32 = 701;
