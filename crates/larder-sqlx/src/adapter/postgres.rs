//! Runs statements on PostgreSQL.

use std::{any::Any, time::Duration};

use super::{
    application_query::{QueryParts, RowQuery, UNSEEN_BYTES, WriteQuery},
    compat::{begin_sql, prepared_sql, sql, text_of},
    gathered::{driver_error, gathered},
    pool::CachedDatabase,
    sqlx::{
        self, Arguments as _, Column as _, ConnectOptions as _, Connection as _, Either,
        Executor as _, PgConnection, PgPool, Postgres, Row as _, Statement as _, Transaction, Type,
        TypeInfo as _, ValueRef as _,
        encode::{Encode, IsNull},
        error::BoxDynError,
        pool::PoolConnection,
        postgres::{
            PgArgumentBuffer, PgArguments, PgListener, PgPoolOptions, PgQueryResult, PgRow,
            PgTypeInfo, PgTypeKind, types::Oid,
        },
    },
};
use larder_core::store::BoxFuture;
use larder_sql::{
    DatabaseService, Rows, SqlDialect, SqlValue, Statement, StatementOutcome, WeighedValue,
    driver::{Connection, Driver, DriverError, Notifications, TransactionConnection},
    postgres::{
        PostgresKind, PostgresType, declared_type, read_value, text_with_types, write_value,
    },
};

/// Creates a service over a pool of PostgreSQL connections.
///
/// Placeholders are `$1`, `$2`, … (SQLite accepts them, too). Integers are bound as `bigint`, other numbers as
/// `double precision`; the server infers the type of a text or a null from its context. If it cannot infer the
/// type, it returns an error; then write `CAST($1 AS text)`, for example.
///
/// The types of the server decode into the usual types of Rust: `json` and `jsonb` into any type that serde knows, arrays
/// into a `Vec`, composite types into structs, `uuid`, `numeric`, `inet`, enums and the types of times into those of the
/// crates uuid, rust_decimal, std, chrono and time, a range into `std::ops::Range` or a pair of `std::ops::Bound`, an
/// interval into its text as in ISO 8601. A sequence or a struct stands for a whole row, so a single column of such a type
/// is read as a tuple, `(Vec<i64>,)`. For other types (`tsvector`, `point`, …) select `column::text`; the error says so.
pub fn postgres(pool: PgPool) -> DatabaseService {
    Postgres::service(pool)
}

application_queries!(Postgres, PgArguments, PgRow, PostgresDriver);

/// A pool of PostgreSQL connections.
struct PostgresDriver {
    pool: PgPool,
}

impl Driver for PostgresDriver {
    fn dialect(&self) -> SqlDialect {
        SqlDialect::Postgres
    }

    fn acquire(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async {
            let connection = self.pool.acquire().await.map_err(driver_error)?;
            Ok(Box::new(PooledConnection(connection)) as Box<dyn Connection>)
        })
    }

    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async {
            let connection = self.pool.connect_options().connect().await.map_err(driver_error)?;
            Ok(Box::new(OwnConnection(connection)) as Box<dyn Connection>)
        })
    }

    fn begin<'a>(
        &'a self,
        begin: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn TransactionConnection>, DriverError>> {
        Box::pin(async move {
            let begun = self.pool.begin_with(begin_sql(begin)).await.map_err(driver_error)?;
            Ok(Box::new(OpenTransaction(begun)) as Box<dyn TransactionConnection>)
        })
    }

    fn listen(
        &self,
        channel: &'static str,
    ) -> BoxFuture<'_, Result<Option<Box<dyn Notifications>>, DriverError>> {
        Box::pin(async move {
            let options = (*self.pool.connect_options()).clone();
            let own = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
            let pool = own.connect_lazy_with(options);
            let mut listener = PgListener::connect_with(&pool).await.map_err(driver_error)?;
            listener.listen(channel).await.map_err(driver_error)?;
            Ok(Some(Box::new(NotificationChannel { listener, is_lost: false })
                as Box<dyn Notifications>))
        })
    }
}

struct NotificationChannel {
    listener: PgListener,
    is_lost: bool,
}

impl Notifications for NotificationChannel {
    fn next(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if std::mem::take(&mut self.is_lost) {
                tokio::time::sleep(AFTER_A_LOSS).await;
                // Connects again, if it can; otherwise the next call tries again.
                drop(sqlx::query("SELECT 1").execute(&mut self.listener).await);
                return;
            }
            // `Ok(None)` means that the connection was lost and opened again.
            self.is_lost = self.listener.try_recv().await.is_err();
        })
    }
}

struct PooledConnection(PoolConnection<Postgres>);
struct OwnConnection(PgConnection);
struct OpenTransaction(Transaction<'static, Postgres>);

connection!(PooledConnection, OwnConnection, OpenTransaction: PgConnection);
transaction!(OpenTransaction);

/// Runs a statement to its end.
async fn run(
    connection: &mut PgConnection,
    statement: &Statement,
) -> Result<StatementOutcome, sqlx::Error> {
    let text = text_with_types(statement);
    let kinds = kinds(connection, &text, statement.values()).await?;
    let mut arguments = PgArguments::default();
    for (value, kind) in statement.values().iter().zip(kinds) {
        arguments.add(Parameter { value, kind }).map_err(sqlx::Error::Encode)?;
    }
    let query = sqlx::query_with::<Postgres, _>(sql(&text), arguments);
    let mut types = Vec::new();
    let add = |row: &PgRow, rows: &mut Rows| add(row, &mut types, rows);
    gathered(connection.fetch_many(query), statement.text(), PgQueryResult::rows_affected, add)
        .await
}

/// Returns the type of each value. For a text or a null, it is the type that the server infers.
async fn kinds(
    connection: &mut PgConnection,
    text: &str,
    values: &[SqlValue],
) -> Result<Vec<PgTypeInfo>, sqlx::Error> {
    let declared: Vec<_> = values.iter().map(declared_type).collect();
    let is_declared = declared.iter().all(Option::is_some);
    let kinds = declared.into_iter().map(|oid| PgTypeInfo::with_oid(Oid(oid.unwrap_or(INFERRED))));
    let mut kinds: Vec<_> = kinds.collect();
    if is_declared {
        return Ok(kinds);
    }
    // Queries the server once for each text; after that, the connection has the prepared statement.
    let prepared = connection.prepare_with(prepared_sql(text), &kinds).await?;
    if let Some(Either::Left(inferred)) = prepared.parameters() {
        kinds.iter_mut().zip(inferred).for_each(|(kind, inferred)| *kind = inferred.clone());
    }
    Ok(kinds)
}

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
        // The type matters only for a value whose type the server has inferred.
        let kind = match declared_type(self.value) {
            Some(_) => PostgresType::new("", INFERRED, PostgresKind::Plain),
            None => type_of(&self.kind),
        };
        Ok(match write_value(self.value, &kind, out)? {
            true => IsNull::No,
            false => IsNull::Yes,
        })
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.kind.clone())
    }
}

/// Converts a type of sqlx, which writes the names of the types of the server in capitals.
fn type_of(info: &PgTypeInfo) -> PostgresType {
    let name = match info.name() {
        "CHAR" => "bpchar".to_owned(),
        "\"CHAR\"" => "char".to_owned(),
        name => name.to_ascii_lowercase(),
    };
    let boxed = |info| Box::new(type_of(info));
    let kind = match info.kind() {
        PgTypeKind::Enum(_) => PostgresKind::Enum,
        PgTypeKind::Domain(base) => PostgresKind::Domain(boxed(base)),
        PgTypeKind::Array(element) => PostgresKind::Array(boxed(element)),
        PgTypeKind::Range(bound) => PostgresKind::Range(boxed(bound)),
        PgTypeKind::Composite(fields) => {
            let field = |(name, info): &(String, PgTypeInfo)| (name.clone(), type_of(info));
            PostgresKind::Composite(fields.iter().map(field).collect())
        }
        _ => PostgresKind::Plain,
    };
    PostgresType::new(name, info.oid().map_or(INFERRED, |oid| oid.0), kind)
}

/// The bytes of a row as the server sends its values.
fn weight(row: &PgRow) -> usize {
    let of = |at: usize| Some(row.try_get_raw(at).ok()?.as_bytes().ok()?.len());
    (0..row.len()).filter_map(of).sum()
}

fn add(row: &PgRow, types: &mut Vec<PostgresType>, rows: &mut Rows) -> Result<(), sqlx::Error> {
    if types.is_empty() {
        rows.columns = row.columns().iter().map(|column| column.name().to_owned()).collect();
        types.extend(row.columns().iter().map(|column| type_of(column.type_info())));
    }
    let value = |at: usize| {
        let raw = row.try_get_raw(at)?;
        let read = match raw.is_null() {
            true => Ok(SqlValue::Null),
            false => raw.as_bytes().and_then(|bytes| read_value(Some(bytes), &types[at])),
        };
        read.map_err(|source| sqlx::Error::ColumnDecode { index: at.to_string(), source })
    };
    rows.rows.push((0..row.len()).map(value).collect::<Result<_, sqlx::Error>>()?);
    Ok(())
}

const AFTER_A_LOSS: Duration = Duration::from_millis(200);
/// The server infers the type.
const INFERRED: u32 = 0;
