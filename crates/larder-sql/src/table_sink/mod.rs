//! A table as the sink of a write-behind queue.
//!
//! A batch is one transaction: it moves the position of the queue, reads the rows of the keys (unless all operations are
//! absolute), applies the operations to them, and writes the rows that have a value and deletes those that have none, in
//! statements for many rows each. Then it reads the keys that it has written, because the database may take two keys for one.
//! In PostgreSQL the transaction is `REPEATABLE READ`, so a row that another program changes in the meantime makes the batch
//! fail, and it is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    sync::Arc,
};

use larder_core::store::BoxFuture;
use larder_write_behind::{
    Batch, Operation, ReadableSink, Sink, SinkError, SinkErrorKind, SinkKey, SinkPosition,
    SinkSnapshot, journal::JournalId,
};

pub use self::columns::{SqlColumn, SqlColumns};
use crate::{
    analysis::SqlDialect,
    db::Db,
    driver::DriverErrorKind,
    error::{QueryError, QueryErrorKind},
    rows::Rows,
    statement::Statement,
    transaction::{Transaction, TransactionQuery},
    value::SqlValue,
};

mod columns;

/// A table of a database as the sink of a [write-behind queue](larder_write_behind): one row for each key.
///
/// The position of the queue is in a table `larder_applied`, in PostgreSQL in the schema `larder_write_behind`. What a batch
/// changes is invalidated as after any other write through the [`Db`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use larder_core::Larder;
/// use larder_sql::TableSink;
/// use larder_write_behind::{Add, Memory, WriteBehind};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
/// # sqlx::raw_sql("CREATE TABLE scores (player TEXT PRIMARY KEY, points INTEGER NOT NULL)").execute(&pool).await?;
/// let larder = Larder::builder().build()?;
/// let db = larder_sqlx::v0_9::sqlite(pool).cached(&larder).await?;
/// let sink = TableSink::<String, Add>::open(&db, "scores", ["player"], ["points"]).await?;
/// // In production: `Disk::open("/var/lib/scores")?`.
/// let journal = Memory::lost_on_crash();
/// let scores = WriteBehind::builder("scores", &larder, sink, journal).open().await?;
///
/// let _logged = scores.write("ada".to_owned(), Add(3)).await?;
/// assert_eq!(scores.get(&"ada".to_owned()).await?.as_deref(), Some(&3));
/// assert_eq!(scores.close(Duration::from_secs(5)).await, 0, "operations are left");
/// let stored: i64 = db.query("SELECT points FROM scores WHERE player = 'ada'").fetch_scalar().await?;
/// assert_eq!(stored, 3);
/// # Ok(())
/// # }
/// ```
#[doc(alias("upsert", "batch insert", "write-behind"))]
pub struct TableSink<K, O> {
    table: Arc<SinkTable>,
    of: PhantomData<fn(K, O)>,
}

/// The statements for a table.
struct SinkTable {
    db: Db,
    /// The name of the table as it was given.
    name: String,
    /// The quoted names of the table and its columns.
    table: String,
    key: Vec<String>,
    columns: Vec<String>,
}

impl<K, O> TableSink<K, O>
where
    K: SinkKey + SqlColumns,
    O: Operation,
    O::Value: SqlColumns,
{
    /// Opens a table with these key columns, which must be unique, and these value columns. Other columns need a default.
    /// Creates the table of positions if it is missing.
    ///
    /// # Errors
    ///
    /// When the table or a column does not exist, the key is not unique, the database refuses the table of positions, or it
    /// does not answer.
    pub async fn open<'a>(
        db: &Db,
        table: &str,
        key: impl IntoIterator<Item = &'a str>,
        columns: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, QueryError> {
        let all = |names: &mut dyn Iterator<Item = &'a str>| names.map(quoted).collect();
        let sink = SinkTable {
            db: db.clone(),
            name: table.to_owned(),
            table: quoted(table),
            key: all(&mut key.into_iter()),
            columns: all(&mut columns.into_iter()),
        };
        let look = Statement::new(format!("SELECT 1 FROM {} LIMIT 0", sink.positions()));
        if sink.run(look).await.is_err() {
            let database = db.cache().inner();
            let create = Self::sql(database.dialect());
            database.run_all(create).await.map_err(QueryError::database)?;
        }
        sink.check().await?;
        Ok(Self { table: Arc::new(sink), of: PhantomData })
    }

    /// Returns the SQL that creates the table of positions, for an administrator if the program has no right to create it.
    pub fn sql(dialect: SqlDialect) -> &'static str {
        match dialect {
            SqlDialect::Postgres => POSTGRES_POSITIONS,
            _ => SQLITE_POSITIONS,
        }
    }
}

impl SinkTable {
    fn is_postgres(&self) -> bool {
        self.db.cache().inner().dialect() == SqlDialect::Postgres
    }

    /// The table of positions.
    fn positions(&self) -> &'static str {
        if self.is_postgres() { "larder_write_behind.larder_applied" } else { "larder_applied" }
    }

    /// Runs a statement that neither depends on data of the application nor changes it.
    async fn run(&self, statement: Statement) -> Result<Rows, SinkError> {
        let outcome = self.db.cache().inner().run(&statement).await;
        outcome.map(|outcome| outcome.rows).map_err(SinkError::unavailable)
    }

    fn look_at_position(&self, queue: &str, partition: u32) -> Statement {
        let positions = self.positions();
        Statement::new(format!(
            "SELECT journal, number FROM {positions} WHERE queue = $1 AND part = $2"
        ))
        .bind(queue)
        .bind(i64::from(partition))
    }

    /// Begins a transaction whose reads are those of one snapshot.
    async fn begin(&self, writes: bool) -> Result<Transaction, SinkError> {
        let mut transaction = self.db.begin_unmarked(writes).await.map_err(failure)?;
        if self.is_postgres() {
            let isolated = Statement::new("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
            transaction.run_unanalysed(&isolated).await.map_err(failure)?;
        }
        Ok(transaction)
    }

    /// Returns the key columns of a key.
    fn key_columns<K: SqlColumns>(&self, key: &K) -> Result<Vec<SqlValue>, SinkError> {
        let columns = key.to_columns();
        if columns.len() == self.key.len() {
            return Ok(columns);
        }
        Err(SinkError::rejected(format!(
            "a key has {} columns, and the sink of the table {:?} was opened with {}",
            columns.len(),
            self.name,
            self.key.len()
        )))
    }

    /// Reads the values of keys.
    async fn read<K, V>(
        &self,
        transaction: &mut Transaction,
        keys: &[&K],
    ) -> Result<BTreeMap<K, V>, SinkError>
    where
        K: SinkKey + SqlColumns,
        V: SqlColumns,
    {
        let mut values = BTreeMap::new();
        let all = [&self.key[..], &self.columns].concat().join(", ");
        let select = format!("SELECT {all} FROM {}", self.table);
        for keys in keys.chunks(MOST_KEYS) {
            for mut row in self.run_for(transaction, &select, keys).await?.rows {
                let columns = row.split_off(self.key.len().min(row.len()));
                // The database may find a row by a key that it spells in another way: upper case, or padded.
                let key = K::of_columns(row).filter(|key| keys.contains(&key));
                let key = key.ok_or_else(|| self.unreadable("a key that was not asked for"))?;
                let is_absent = columns.iter().all(|column| *column == SqlValue::Null);
                match V::of_columns(columns) {
                    Some(value) => drop(values.insert(key, value)),
                    None if is_absent => {}
                    None => return Err(self.unreadable("a value of another type")),
                }
            }
        }
        Ok(values)
    }

    fn unreadable(&self, what: &str) -> SinkError {
        SinkError::rejected(format!("a row of the table {:?} has {what}", self.name))
    }

    /// Runs a statement for the rows of these keys.
    async fn run_for<K: SqlColumns>(
        &self,
        transaction: &mut Transaction,
        statement: &str,
        keys: &[&K],
    ) -> Result<Rows, SinkError> {
        let mut statement = Bound::new(format!("{statement} WHERE "));
        self.push_keys(&mut statement, keys)?;
        let outcome = transaction.run(statement.into_statement()).await.map_err(failure)?;
        Ok(outcome.rows)
    }

    /// Appends a condition for these keys.
    fn push_keys<K: SqlColumns>(
        &self,
        statement: &mut Bound,
        keys: &[&K],
    ) -> Result<(), SinkError> {
        if let [column] = &self.key[..] {
            statement.text.push_str(&format!("{column} IN ("));
            for (at, key) in keys.iter().enumerate() {
                statement.text.push_str(if at == 0 { "" } else { ", " });
                statement.push_list(self.key_columns(*key)?);
            }
            statement.text.push(')');
            return Ok(());
        }
        for (at, key) in keys.iter().enumerate() {
            statement.text.push_str(if at == 0 { "(" } else { " OR (" });
            let columns = self.key.iter().zip(self.key_columns(*key)?);
            for (at, (column, value)) in columns.enumerate() {
                statement.text.push_str(if at == 0 { "" } else { " AND " });
                statement.text.push_str(&format!("{column} = "));
                statement.push(value);
            }
            statement.text.push(')');
        }
        Ok(())
    }

    fn on_conflict(&self) -> String {
        let set = self.columns.iter().map(|column| format!("{column} = excluded.{column}"));
        let (key, set) = (self.key.join(", "), set.collect::<Vec<_>>().join(", "));
        format!(" ON CONFLICT ({key}) DO UPDATE SET {set}")
    }

    /// Has the database check the names of the table and its columns, and that the key is unique.
    async fn check(&self) -> Result<(), QueryError> {
        if self.key.is_empty() || self.columns.is_empty() {
            let what = "a sink needs at least one key column and one value column";
            return Err(QueryError::because(QueryErrorKind::Database, what));
        }
        let names = [&self.key[..], &self.columns].concat();
        let (all, nulls) = (names.join(", "), vec!["NULL"; names.len()].join(", "));
        let (table, conflict) = (&self.table, self.on_conflict());
        let explain = format!("EXPLAIN INSERT INTO {table} ({all}) VALUES ({nulls}){conflict}");
        let explained = self.db.cache().inner().run(&Statement::new(explain)).await;
        explained.map(|_| ()).map_err(QueryError::database)
    }

    /// Inserts or updates rows.
    async fn upsert<K: SqlColumns, V: SqlColumns>(
        &self,
        transaction: &mut Transaction,
        rows: &[(&K, &V)],
    ) -> Result<(), SinkError> {
        let names = [&self.key[..], &self.columns].concat();
        let rows_at_once = (MOST_PARAMETERS / names.len().max(1)).clamp(1, MOST_KEYS);
        for rows in rows.chunks(rows_at_once) {
            let (table, all) = (&self.table, names.join(", "));
            let mut statement = Bound::new(format!("INSERT INTO {table} ({all}) VALUES "));
            for (at, (key, value)) in rows.iter().enumerate() {
                statement.text.push_str(if at == 0 { "(" } else { ", (" });
                let columns = [self.key_columns(*key)?, value.to_columns()].concat();
                if columns.len() != names.len() {
                    return Err(SinkError::rejected(format!(
                        "a row of the table {:?} has {} columns, and the sink was opened with {}",
                        self.name,
                        columns.len(),
                        names.len()
                    )));
                }
                statement.push_list(columns);
                statement.text.push(')');
            }
            statement.text.push_str(&self.on_conflict());
            transaction.run(statement.into_statement()).await.map_err(failure)?;
        }
        Ok(())
    }

    /// Fails if the database takes keys of the batch for each other, or for another row: it may compare without case or
    /// padding.
    async fn check_rows<K: SinkKey + SqlColumns>(
        &self,
        transaction: &mut Transaction,
        keys: &[&K],
    ) -> Result<(), SinkError> {
        let select = format!("SELECT {} FROM {}", self.key.join(", "), self.table);
        for keys in keys.chunks(MOST_KEYS) {
            let rows = self.run_for(transaction, &select, keys).await?;
            let found: Option<BTreeSet<K>> = rows.rows.into_iter().map(K::of_columns).collect();
            if !found.is_some_and(|found| keys.iter().all(|key| found.contains(key))) {
                return Err(self.unreadable("a key that the database takes for another"));
            }
        }
        Ok(())
    }

    async fn delete<K: SqlColumns>(
        &self,
        transaction: &mut Transaction,
        keys: &[&K],
    ) -> Result<(), SinkError> {
        let delete = format!("DELETE FROM {}", self.table);
        for keys in keys.chunks(MOST_KEYS) {
            self.run_for(transaction, &delete, keys).await?;
        }
        Ok(())
    }

    /// Moves the position of a batch, or fails if it is another.
    async fn move_position<K, O>(
        &self,
        transaction: &mut Transaction,
        batch: &Batch<K, O>,
    ) -> Result<(), SinkError> {
        let positions = self.positions();
        let update = format!(
            "UPDATE {positions} SET number = $1 WHERE queue = $2 AND part = $3 AND journal = $4 AND number = $5"
        );
        let update = Statement::new(update)
            .bind(number(batch.last))
            .bind(&batch.queue)
            .bind(i64::from(batch.partition))
            .bind(batch.journal.to_string())
            .bind(number(batch.after));
        match transaction.run_unanalysed(&update).await.map_err(failure)?.affected {
            1 => Ok(()),
            _ => Err(SinkError::new(
                SinkErrorKind::Displaced,
                format!(
                    "the table {positions} does not have the number {} of the journal {}",
                    batch.after, batch.journal
                ),
            )),
        }
    }
}

impl<K, O> Sink for TableSink<K, O>
where
    K: SinkKey + SqlColumns,
    O: Operation,
    O::Value: SqlColumns,
{
    type Key = K;
    type Operation = O;

    fn position(
        &self,
        queue: &str,
        partition: u32,
    ) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>> {
        let look = self.table.look_at_position(queue, partition);
        Box::pin(async move { position_of(&self.table.run(look).await?) })
    }

    fn set_position(
        &self,
        queue: &str,
        partition: u32,
        position: SinkPosition,
    ) -> BoxFuture<'_, Result<(), SinkError>> {
        let positions = self.table.positions();
        let set = format!(
            "INSERT INTO {positions} (queue, part, journal, number) VALUES ($1, $2, $3, $4)
            ON CONFLICT (queue, part) DO UPDATE SET journal = excluded.journal, number = excluded.number"
        );
        let set = Statement::new(set)
            .bind(queue)
            .bind(i64::from(partition))
            .bind(position.journal.to_string())
            .bind(number(position.number));
        Box::pin(async move { self.table.run(set).await.map(|_| ()) })
    }

    fn write<'a>(&'a self, batch: &'a Batch<K, O>) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let table = &self.table;
            let mut transaction = table.begin(true).await?;
            table.move_position(&mut transaction, batch).await?;
            let mut by_key: BTreeMap<&K, Vec<&O>> = BTreeMap::new();
            for operation in &batch.operations {
                by_key.entry(&operation.key).or_default().push(&operation.operation);
            }
            let is_relative = |operations: &&Vec<&O>| !operations[0].is_absolute();
            let relative = by_key.iter().filter(|(_, operations)| is_relative(operations));
            let relative: Vec<&K> = relative.map(|(key, _)| *key).collect();
            let mut before = table.read::<K, O::Value>(&mut transaction, &relative).await?;
            let mut after: Vec<(&K, Option<O::Value>)> = Vec::new();
            for (key, operations) in by_key {
                let mut value = before.remove(key);
                operations.iter().for_each(|operation| operation.apply(&mut value));
                after.push((key, value));
            }
            let rows = after.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?)));
            let rows = rows.collect::<Vec<_>>();
            table.upsert(&mut transaction, &rows).await?;
            let keys: Vec<&K> = rows.iter().map(|(key, _)| *key).collect();
            table.check_rows(&mut transaction, &keys).await?;
            let gone = after.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| *key);
            table.delete(&mut transaction, &gone.collect::<Vec<_>>()).await?;
            transaction.commit().await.map_err(failure)
        })
    }
}

impl<K, O> ReadableSink for TableSink<K, O>
where
    K: SinkKey + SqlColumns,
    O: Operation,
    O::Value: SqlColumns,
{
    type Snapshot = TableSnapshot;

    fn snapshot(&self) -> BoxFuture<'_, Result<TableSnapshot, SinkError>> {
        Box::pin(async move {
            let transaction = self.table.begin(true).await?;
            Ok(TableSnapshot { table: Arc::clone(&self.table), transaction })
        })
    }
}

/// A snapshot of the database of a [`TableSink`].
pub struct TableSnapshot {
    table: Arc<SinkTable>,
    transaction: Transaction,
}

impl TableSnapshot {
    /// Creates a query in the snapshot.
    pub fn query(
        &mut self,
        text: impl Into<std::borrow::Cow<'static, str>>,
    ) -> TransactionQuery<'_> {
        self.transaction.query(text)
    }
}

impl<K: SinkKey + SqlColumns, V: SqlColumns + Send + 'static> SinkSnapshot<K, V> for TableSnapshot {
    fn position(
        &mut self,
        queue: &str,
        partition: u32,
    ) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>> {
        let look = self.table.look_at_position(queue, partition);
        Box::pin(async move {
            let found = self.transaction.run_unanalysed(&look).await.map_err(failure)?;
            position_of(&found.rows)
        })
    }

    fn values<'a>(&'a mut self, keys: &'a [K]) -> BoxFuture<'a, Result<Vec<Option<V>>, SinkError>> {
        Box::pin(async move {
            let all: Vec<&K> = keys.iter().collect();
            let mut values = self.table.read::<K, V>(&mut self.transaction, &all).await?;
            Ok(keys.iter().map(|key| values.remove(key)).collect())
        })
    }
}

/// A statement while it is written.
struct Bound {
    text: String,
    values: Vec<SqlValue>,
}

impl Bound {
    fn new(text: String) -> Self {
        Self { text, values: Vec::new() }
    }

    fn push(&mut self, value: SqlValue) {
        self.values.push(value);
        self.text.push_str(&format!("${}", self.values.len()));
    }

    /// Appends values, separated by commas.
    fn push_list(&mut self, values: Vec<SqlValue>) {
        for (at, value) in values.into_iter().enumerate() {
            self.text.push_str(if at == 0 { "" } else { ", " });
            self.push(value);
        }
    }

    fn into_statement(self) -> Statement {
        self.values.into_iter().fold(Statement::new(self.text), Statement::bind)
    }
}

fn position_of(rows: &Rows) -> Result<Option<SinkPosition>, SinkError> {
    let Some(row) = rows.rows.first() else { return Ok(None) };
    let position = match &row[..] {
        [SqlValue::Text(journal), SqlValue::Int(number)] => JournalId::parse(journal)
            .zip(u64::try_from(*number).ok())
            .map(|(journal, number)| SinkPosition { journal, number }),
        _ => None,
    };
    let unreadable = || SinkError::new(SinkErrorKind::Displaced, "the position cannot be read");
    position.map(Some).ok_or_else(unreadable)
}

/// Returns a number of a journal as the database stores it. A journal never reaches the limit.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Whether the database rejects the data, or the batch can succeed later as it is.
#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn failure(error: QueryError) -> SinkError {
    let is_rejected = match error.driver_error() {
        Some(error) => match error.kind() {
            DriverErrorKind::NotSent | DriverErrorKind::Unreadable => true,
            _ => error.code().is_some_and(is_data_error),
        },
        None => error.kind() == QueryErrorKind::Decode,
    };
    let what = match error.driver_error() {
        Some(error) => error.to_string(),
        None => error.to_string(),
    };
    if is_rejected { SinkError::rejected(what) } else { SinkError::unavailable(what) }
}

/// Whether an error code stands for data that the database does not accept. In PostgreSQL these are all classes but those of
/// connections, resources, concurrency, privileges, names and the server itself; in SQLite a constraint, a type or a size.
fn is_data_error(code: &str) -> bool {
    match (code.len(), code.parse::<u32>()) {
        (5, _) => !NOT_OF_DATA.contains(&&code[..2]),
        (_, Ok(code)) => matches!(code & 0xff, 18..=20),
        _ => false,
    }
}

/// The classes of PostgreSQL's error codes that do not stand for data.
const NOT_OF_DATA: [&str; 20] = [
    "00", "01", "02", "08", "0A", "25", "26", "28", "2D", "3D", "3F", "40", "42", "53", "55", "57",
    "58", "F0", "HV", "XX",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl<K, O> Clone for TableSink<K, O> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table), of: PhantomData }
    }
}

impl<K, O> fmt::Debug for TableSink<K, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableSink").field("table", &self.table.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for TableSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableSnapshot").field("table", &self.table.name).finish_non_exhaustive()
    }
}

/// Maximum number of keys in one statement. SQLite limits the depth of an expression to 1,000.
const MOST_KEYS: usize = 400;
/// SQLite allows 32,766 parameters and PostgreSQL 65,535.
const MOST_PARAMETERS: usize = 30_000;
const SQLITE_POSITIONS: &str = "-- The positions of the write-behind queues of larder.
CREATE TABLE IF NOT EXISTS larder_applied (
  queue TEXT NOT NULL,
  part INTEGER NOT NULL,
  journal TEXT NOT NULL,
  number INTEGER NOT NULL,
  PRIMARY KEY (queue, part)
) WITHOUT ROWID;
";
const POSTGRES_POSITIONS: &str = "-- The positions of the write-behind queues of larder.
CREATE SCHEMA IF NOT EXISTS larder_write_behind;
CREATE TABLE IF NOT EXISTS larder_write_behind.larder_applied (
  queue text NOT NULL,
  part bigint NOT NULL,
  journal text NOT NULL,
  number bigint NOT NULL,
  PRIMARY KEY (queue, part)
);
";
