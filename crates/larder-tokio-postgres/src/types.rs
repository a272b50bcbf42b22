//! Converts types and values.

use bytes::BytesMut;
use larder_sql::{
    SqlValue,
    postgres::{PostgresKind, PostgresType, write_value},
};
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Converts a type of tokio-postgres.
pub(super) fn type_of(kind: &Type) -> PostgresType {
    let boxed = |kind| Box::new(type_of(kind));
    let structure = match kind.kind() {
        Kind::Enum(_) => PostgresKind::Enum,
        Kind::Domain(base) => PostgresKind::Domain(boxed(base)),
        Kind::Array(element) => PostgresKind::Array(boxed(element)),
        Kind::Range(bound) => PostgresKind::Range(boxed(bound)),
        Kind::Composite(fields) => {
            let field = |field: &tokio_postgres::types::Field| {
                (field.name().to_owned(), type_of(field.type_()))
            };
            PostgresKind::Composite(fields.iter().map(field).collect())
        }
        _ => PostgresKind::Plain,
    };
    PostgresType::new(kind.name(), kind.oid(), structure)
}

/// A bound value in the binary format of its type, which is written before anything is sent.
#[derive(Debug)]
pub(super) struct Parameter(Option<Vec<u8>>);

impl Parameter {
    pub(super) fn new(value: &SqlValue, kind: &Type) -> Result<Self, BoxError> {
        let mut bytes = Vec::new();
        let is_written = write_value(value, &type_of(kind), &mut bytes)?;
        Ok(Self(is_written.then_some(bytes)))
    }
}

impl ToSql for Parameter {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        let Some(bytes) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A returned value in the binary format of its type.
pub(super) struct RawValue<'a>(Option<&'a [u8]>);

impl<'a> RawValue<'a> {
    pub(super) fn bytes(&self) -> Option<&'a [u8]> {
        self.0
    }
}

impl<'a> FromSql<'a> for RawValue<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, BoxError> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
