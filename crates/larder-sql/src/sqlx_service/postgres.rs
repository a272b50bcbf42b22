//! Runs statements on PostgreSQL.
//!
//! sqlx uses the binary formats, so each value is written in the type that the server expects, and read in the type
//! that the server reports. Only the server knows which type a text stands for (a time, a UUID, JSON). So the statement
//! is prepared without a type for it, and the text is written as the type that the server infers.

use std::{any::Any, str::FromStr, sync::Arc};

use futures_util::future::BoxFuture;
use larder_core::store::CommitId;
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Connection as _, Either, Executor as _,
    PgConnection, PgPool, Postgres, Row as _, SqlSafeStr as _, Statement as _, Type, TypeInfo as _,
    ValueRef as _,
    encode::{Encode, IsNull},
    error::BoxDynError,
    postgres::{
        PgArgumentBuffer, PgArguments, PgQueryResult, PgRow, PgTypeInfo, PgTypeKind, PgValueRef,
        types::Oid,
    },
};
use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::date};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::gathered;
use crate::{
    analysis::SqlDialect,
    backend::{Backend, BackendTransaction, run_all, run_as},
    catalog::{self, Catalog},
    context::QueryContext,
    error::QueryError,
    outbox::{self, follower::OutboxReader},
    rows::{Rows, StatementOutcome},
    statement::Statement,
    value::SqlValue,
};

/// A pool of PostgreSQL connections.
pub(crate) struct PostgresBackend {
    pub(crate) pool: PgPool,
}

impl Backend for PostgresBackend {
    fn dialect(&self) -> SqlDialect {
        SqlDialect::Postgres
    }

    fn catalog(&self) -> BoxFuture<'_, sqlx::Result<Catalog>> {
        Box::pin(catalog::postgres::read(&self.pool))
    }

    fn run(
        self: Arc<Self>,
        statement: Statement,
    ) -> BoxFuture<'static, sqlx::Result<StatementOutcome>> {
        Box::pin(async move {
            let Some(commit) = statement.commit() else {
                return run_anew(&mut *self.pool.acquire().await?, &statement).await;
            };
            match run_as(&*self, commit, &statement).await {
                // Nothing is committed, and the connection that ran it prepares the statement again.
                Err(error) if may_be_outdated(&error) => run_as(&*self, commit, &statement).await,
                outcome => outcome,
            }
        })
    }

    fn begin(
        &self,
        commit: Option<CommitId>,
        _: bool,
    ) -> BoxFuture<'_, sqlx::Result<Box<dyn BackendTransaction>>> {
        Box::pin(async move {
            let inner = match commit {
                // Both statements take one round trip. The setting ends with the transaction.
                Some(commit) => {
                    let begin =
                        format!("BEGIN; SELECT set_config('larder.commit', '{commit}', true)");
                    self.pool.begin_with(AssertSqlSafe(begin)).await?
                }
                None => self.pool.begin().await?,
            };
            let transaction: Box<dyn BackendTransaction> = Box::new(PostgresTransaction(inner));
            Ok(transaction)
        })
    }

    fn outbox_sql(&self) -> BoxFuture<'_, sqlx::Result<String>> {
        Box::pin(std::future::ready(Ok(outbox::postgres::DEFINITION.to_owned())))
    }

    fn run_all(&self, text: String) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move { run_all(&self.pool, &text).await })
    }

    fn follow(&self, context: Arc<QueryContext>) -> BoxFuture<'_, Result<JoinSet<()>, QueryError>> {
        Box::pin(async {
            let mut tasks = JoinSet::new();
            let reader = outbox::postgres::Reader::open(&self.pool, &mut tasks).await;
            let reader = reader.map_err(QueryError::database)?;
            tasks.spawn(OutboxReader::begin(context, reader).await?.run());
            Ok(tasks)
        })
    }
}

struct PostgresTransaction(sqlx::Transaction<'static, Postgres>);

impl BackendTransaction for PostgresTransaction {
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, sqlx::Result<StatementOutcome>> {
        Box::pin(run_within(&mut self.0, statement))
    }

    fn is_spoiled(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(async { sqlx::query("SELECT 1").execute(&mut *self.0).await.is_err() })
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>> {
        Box::pin(self.0.commit())
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>> {
        Box::pin(self.0.rollback())
    }

    fn connection(&mut self) -> &mut dyn Any {
        &mut *self.0
    }
}

/// Runs a statement to its end outside of a transaction. Runs it once more if a schema change has outdated its prepared
/// form, unless the statement may have committed a part of its changes.
async fn run_anew(
    connection: &mut PgConnection,
    statement: &Statement,
) -> sqlx::Result<StatementOutcome> {
    match run(connection, statement).await {
        Err(error) if may_be_outdated(&error) => {
            connection.clear_cached_statements().await?;
            if commits_by_itself(statement.text()) {
                return Err(error);
            }
            run(connection, statement).await
        }
        outcome => outcome,
    }
}

/// Whether a statement may have committed a part of its changes before it failed, as procedures and anonymous blocks
/// can.
fn commits_by_itself(text: &str) -> bool {
    // A comment or bracket before the first word hides it. The statement is then treated as a procedure call.
    let word: String = text.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
    ["", "CALL", "DO"].iter().any(|other| word.eq_ignore_ascii_case(other))
}

/// Runs a statement to its end within a transaction. If a schema change has outdated its prepared form, returns the
/// error of the server, which does not accept another statement in this transaction. The next transaction prepares the
/// statement again.
async fn run_within(
    connection: &mut PgConnection,
    statement: &Statement,
) -> sqlx::Result<StatementOutcome> {
    match run(connection, statement).await {
        Err(error @ sqlx::Error::Encode(_)) => {
            // Nothing was sent, so the transaction can continue.
            connection.clear_cached_statements().await?;
            match run(connection, statement).await {
                Err(sqlx::Error::Encode(_)) => Err(error),
                outcome => outcome,
            }
        }
        Err(error) if may_be_outdated(&error) => {
            connection.clear_cached_statements().await?;
            Err(error)
        }
        outcome => outcome,
    }
}

/// Runs a statement to its end.
async fn run(
    connection: &mut PgConnection,
    statement: &Statement,
) -> sqlx::Result<StatementOutcome> {
    let text: Arc<str> = marked(statement).into();
    let kinds = kinds(connection, &text, statement.values()).await?;
    let mut arguments = PgArguments::default();
    for (value, kind) in statement.values().iter().zip(kinds) {
        arguments.add(Parameter { value, kind }).map_err(sqlx::Error::Encode)?;
    }
    let query = sqlx::query_with::<Postgres, _>(AssertSqlSafe(text), arguments);
    gathered(connection.fetch_many(query), statement.text(), PgQueryResult::rows_affected, add)
        .await
}

/// Returns the text with the types of the bound values appended, because sqlx identifies a prepared statement by its
/// text alone. Otherwise it would send bytes of one type to a statement that was prepared for another type.
fn marked(statement: &Statement) -> String {
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

/// Returns the type of each value. For a text or a null, it is the type that the server infers.
async fn kinds(
    connection: &mut PgConnection,
    text: &Arc<str>,
    values: &[SqlValue],
) -> sqlx::Result<Vec<PgTypeInfo>> {
    let declared = values.iter().map(|value| match value {
        SqlValue::Bool(_) => BOOL,
        SqlValue::Int(_) => INT8,
        SqlValue::Real(_) => FLOAT8,
        SqlValue::Blob(_) => BYTEA,
        SqlValue::Text(_) | SqlValue::Null => INFERRED,
    });
    let mut kinds: Vec<_> = declared.map(|oid| PgTypeInfo::with_oid(Oid(oid))).collect();
    if !values.iter().any(|value| matches!(value, SqlValue::Text(_) | SqlValue::Null)) {
        return Ok(kinds);
    }
    // Queries the server once for each text; after that, the connection has the prepared statement.
    let text = AssertSqlSafe(Arc::clone(text)).into_sql_str();
    let prepared = connection.prepare_with(text, &kinds).await?;
    if let Some(Either::Left(inferred)) = prepared.parameters() {
        kinds.iter_mut().zip(inferred).for_each(|(kind, inferred)| *kind = inferred.clone());
    }
    Ok(kinds)
}

/// Whether a schema change may have outdated a prepared statement: the server reports that, names or types do not
/// match, or a value does not match the inferred type. A statement that failed with such an error has changed nothing,
/// unless it commits by itself.
///
/// Source: PostgreSQL, appendix A; 0A000 is "cached plan must not change result type".
fn may_be_outdated(error: &sqlx::Error) -> bool {
    if let sqlx::Error::Encode(_) = error {
        return true;
    }
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| OUTDATED.contains(&&*code))
}

/// Feature not supported, invalid binary data, protocol violation, unknown statement; undefined column, table, and
/// function or operator; type mismatch, indeterminate type.
const OUTDATED: [&str; 9] =
    ["0A000", "22P03", "08P01", "26000", "42703", "42P01", "42883", "42804", "42P18"];

struct Parameter<'a> {
    value: &'a SqlValue,
    kind: PgTypeInfo,
}

impl Type<Postgres> for Parameter<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(INFERRED))
    }
}

impl Encode<'_, Postgres> for Parameter<'_> {
    fn encode_by_ref(&self, out: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match self.value {
            SqlValue::Null => return Ok(IsNull::Yes),
            SqlValue::Bool(value) => out.push(u8::from(*value)),
            SqlValue::Int(value) => out.extend_from_slice(&value.to_be_bytes()),
            SqlValue::Real(value) => out.extend_from_slice(&value.to_be_bytes()),
            SqlValue::Blob(value) => out.extend_from_slice(value),
            SqlValue::Text(text) => write_text(text, &self.kind, out)?,
        }
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.kind.clone())
    }
}

/// Writes a text as the type that the server infers.
fn write_text(
    text: &str,
    kind: &PgTypeInfo,
    out: &mut PgArgumentBuffer,
) -> Result<(), BoxDynError> {
    let kind = match kind.kind() {
        PgTypeKind::Domain(base) => base,
        _ => kind,
    };
    match kind.name() {
        "JSONB" => {
            out.push(JSONB_VERSION);
            out.extend_from_slice(text.as_bytes());
        }
        "UUID" => out.extend_from_slice(Uuid::parse_str(text)?.as_bytes()),
        "BOOL" => out.push(u8::from(bool::from_str(text)?)),
        "INT2" => out.extend_from_slice(&i16::from_str(text.trim())?.to_be_bytes()),
        "INT4" => out.extend_from_slice(&i32::from_str(text.trim())?.to_be_bytes()),
        "INT8" => out.extend_from_slice(&i64::from_str(text.trim())?.to_be_bytes()),
        "FLOAT4" => out.extend_from_slice(&f32::from_str(text.trim())?.to_be_bytes()),
        "FLOAT8" => out.extend_from_slice(&f64::from_str(text.trim())?.to_be_bytes()),
        "TIMESTAMPTZ" => {
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
        name if is_text(name, kind) || name == "BYTEA" => out.extend_from_slice(text.as_bytes()),
        other => {
            return Err(
                format!("a text cannot be bound as {other}: write $n::text::{other}").into()
            );
        }
    }
    Ok(())
}

/// Whether values of a type are sent as their text.
fn is_text(name: &str, kind: &PgTypeInfo) -> bool {
    matches!(name, "TEXT" | "VARCHAR" | "CHAR" | "NAME" | "UNKNOWN" | "JSON" | "citext" | "xml")
        || matches!(kind.kind(), PgTypeKind::Enum(_))
}

fn add(row: &PgRow, rows: &mut Rows) -> sqlx::Result<()> {
    if rows.rows.is_empty() {
        rows.columns = row.columns().iter().map(|column| column.name().to_owned()).collect();
    }
    let value = |at: usize| {
        let read = value(&row.try_get_raw(at)?);
        read.map_err(|source| sqlx::Error::ColumnDecode { index: at.to_string(), source })
    };
    rows.rows.push((0..row.len()).map(value).collect::<sqlx::Result<_>>()?);
    Ok(())
}

fn value(raw: &PgValueRef<'_>) -> Result<SqlValue, BoxDynError> {
    if raw.is_null() {
        return Ok(SqlValue::Null);
    }
    let (bytes, kind) = (raw.as_bytes()?, raw.type_info());
    Ok(match kind.name() {
        "BOOL" => SqlValue::Bool(bytes == [1]),
        "INT2" => SqlValue::Int(i16::from_be_bytes(bytes.try_into()?).into()),
        "INT4" => SqlValue::Int(i32::from_be_bytes(bytes.try_into()?).into()),
        "INT8" => SqlValue::Int(i64::from_be_bytes(bytes.try_into()?)),
        "OID" => SqlValue::Int(u32::from_be_bytes(bytes.try_into()?).into()),
        // Converts the decimal text, so that 0.1 remains 0.1 and does not become the 64-bit value of the 32-bit number.
        "FLOAT4" => SqlValue::Real(f32::from_be_bytes(bytes.try_into()?).to_string().parse()?),
        "FLOAT8" => SqlValue::Real(f64::from_be_bytes(bytes.try_into()?)),
        "BYTEA" => SqlValue::Blob(bytes.to_vec()),
        "JSONB" => SqlValue::Text(std::str::from_utf8(bytes.get(1..).unwrap_or_default())?.into()),
        "UUID" => SqlValue::Text(Uuid::from_slice(bytes)?.to_string()),
        "NUMERIC" => SqlValue::Text(numeric(bytes).ok_or("a value of type numeric is truncated")?),
        "TIMESTAMP" => SqlValue::Text(timestamp(i64::from_be_bytes(bytes.try_into()?), false)),
        "TIMESTAMPTZ" => SqlValue::Text(timestamp(i64::from_be_bytes(bytes.try_into()?), true)),
        "DATE" => SqlValue::Text(date_text(i32::from_be_bytes(bytes.try_into()?))),
        "TIME" => SqlValue::Text(time_text(i64::from_be_bytes(bytes.try_into()?))),
        "VOID" => SqlValue::Null,
        name if is_text(name, &kind) => SqlValue::Text(raw.as_str()?.to_owned()),
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
/// The server infers the type.
const INFERRED: u32 = 0;

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
