//! The outbox in SQLite: triggers fill it, row numbers are its read positions, and the reader polls `data_version` to
//! detect commits.
//!
//! The update hook of SQLite does not suffice, because it reports only the writes of one connection. It also does not
//! report writes to tables without a rowid, rows that `REPLACE` removes, or a `DELETE` without a condition.

use std::{fmt::Write as _, time::Duration};

use larder_core::store::CommitId;
use tokio::time::Instant;

use super::follower::{self, Claim, LONGEST_WAIT, MOST_LINES, OutboxBatch, OutboxEvent, OutboxRow};
use crate::{
    catalog::sqlite::FILE,
    database::{fetch, fetch_one},
    driver::{Connection, Driver, DriverError},
    error::{QueryError, QueryErrorKind},
    statement::Statement,
};

/// Returns the SQL that creates the outbox, and the triggers of all tables.
pub(crate) async fn definition(connection: &mut dyn Connection) -> Result<String, DriverError> {
    let mut definition = TABLES.to_owned();
    if fetch_one(connection, IS_OLD, []).await? {
        definition.push_str("ALTER TABLE larder_outbox ADD COLUMN commit_id TEXT;\n");
    }
    // A renamed table keeps its triggers, which would continue to write its old name.
    for trigger in fetch::<String>(connection, OURS, []).await? {
        writeln!(definition, "DROP TRIGGER IF EXISTS {};", quoted(&trigger))
            .expect("writing to a string cannot fail");
    }
    let tables: Vec<(String, bool)> = fetch(connection, WATCHED, []).await?;
    for (table, is_unique) in tables {
        let key: Vec<String> = fetch(connection, KEY, [(&table).into()]).await?;
        watch(&table, &key, is_unique, &mut definition);
    }
    Ok(definition)
}

/// Adds the triggers of one table. They are dropped and created again, because the key of the table may have changed.
fn watch(table: &str, key: &[String], is_unique: bool, definition: &mut String) {
    let key_of = |row: &str| {
        let columns = key.iter().map(|column| {
            let column = format!("{row}.{}", quoted(column));
            format!(
                "CASE typeof({column}) WHEN 'blob' THEN '\\x' || lower(hex({column})) ELSE CAST({column} AS TEXT) END"
            )
        });
        format!("json_array({})", columns.collect::<Vec<_>>().join(", "))
    };
    // No trigger fires for a row that `REPLACE` removes because of another unique value.
    let names_rows = !key.is_empty();
    let names_written = names_rows && is_unique;
    let any = || vec!["NULL".to_owned()];
    for event in EVENTS {
        let rows = match event {
            "insert" if names_written => vec![key_of("NEW")],
            "update" if names_written => vec![key_of("OLD"), key_of("NEW")],
            "delete" if names_rows => vec![key_of("OLD")],
            _ => any(),
        };
        let (name, literal) = (quoted(&trigger(event, table)), literal(table));
        write!(
            definition,
            "DROP TRIGGER IF EXISTS {name};\nCREATE TRIGGER {name} AFTER {event} ON {} BEGIN\n",
            quoted(table)
        )
        .expect("writing to a string cannot fail");
        for row in rows {
            // Does not use `REPLACE`, because the statement that fires the trigger would determine how a conflict is
            // resolved.
            let same = if row == "NULL" { "IS NULL".to_owned() } else { format!("= {row}") };
            write!(
                definition,
                "  DELETE FROM larder_outbox WHERE relation = {literal} AND row_key {same};\n  \
                 INSERT INTO larder_outbox (relation, row_key) VALUES ({literal}, {row});\n"
            )
            .expect("writing to a string cannot fail");
        }
        definition.push_str("END;\n");
    }
}

/// The name of the trigger for this event.
fn trigger(event: &str, table: &str) -> String {
    format!("larder_{event}_{table}")
}

/// Whether the definition of a trigger that fills the outbox writes the bytes of keys, which those of earlier versions do
/// not.
pub(crate) fn writes_bytes(definition: &str) -> bool {
    definition.contains("typeof(")
}

/// Whether a trigger fills the outbox, on which no query depends.
pub(crate) fn is_ours(name: &str, table: &str) -> bool {
    EVENTS.iter().any(|event| name == trigger(event, table))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Reads on its own connection, which sees the commits of all other connections.
pub(crate) struct Reader {
    connection: Box<dyn Connection>,
    version: i64,
}

impl Reader {
    pub(crate) async fn open(driver: &dyn Driver) -> Result<Self, QueryError> {
        let mut pooled = driver.acquire().await.map_err(QueryError::database)?;
        let file = fetch_one::<Option<String>>(&mut *pooled, FILE, []).await;
        let file = file.map_err(QueryError::database)?;
        if file.is_none_or(|file| file.is_empty()) {
            return Err(QueryError::new(QueryErrorKind::NothingToFollow));
        }
        drop(pooled);
        let mut connection = driver.open().await.map_err(QueryError::database)?;
        let version = version(&mut *connection).await.map_err(QueryError::database)?;
        Ok(Self { connection, version })
    }
}

/// A number that changes with each commit of another connection.
async fn version(connection: &mut dyn Connection) -> Result<i64, DriverError> {
    fetch_one(connection, "PRAGMA data_version", []).await
}

impl follower::Reader for Reader {
    type Claim<'a> = ClaimedPosition<'a>;

    async fn behind(&mut self, place: &str) -> Result<OutboxBatch, DriverError> {
        let (seen, seen_at) = place.split_once(' ').unwrap_or_default();
        let (seen, seen_at): (i64, i64) =
            (seen.parse().unwrap_or(i64::MAX), seen_at.parse().unwrap_or_default());
        let rows: Vec<Line> = fetch(&mut *self.connection, BEHIND, [seen.into()]).await?;
        let mut found = OutboxBatch { gap: rows.len() > MOST_LINES, ..OutboxBatch::default() };
        for (end, now, table, key, commit) in rows {
            found.place = format!("{end} {now}");
            // SQLite does not assign a number twice, unless the database was replaced by an older copy.
            found.gap |= end < seen || now - seen_at > KEPT_FOR_SECONDS;
            let Some(table) = table else { continue };
            // If a key has bytes that are not UTF-8, any row may have changed.
            let key = key.and_then(|key| String::from_utf8(key).ok());
            if let Some(event) = OutboxEvent::of(&table, key.as_deref()) {
                found.events.push(event);
                continue;
            }
            let key = key.map(|key| format!("[{key}]"));
            let line = OutboxRow::new(table, key.as_deref(), commit.as_deref());
            found.lines.push(OutboxRow { may_replace: true, ..line });
        }
        Ok(found)
    }

    async fn claim(
        &mut self,
        name: &str,
    ) -> Result<Option<(OutboxBatch, ClaimedPosition<'_>)>, DriverError> {
        let place = fetch(&mut *self.connection, CLAIM, [name.into()]).await?.pop();
        let (place, ages): (String, bool) = match place {
            Some(place) => place,
            None => {
                self.connection.run(&Statement::new(REGISTER).bind(name)).await?;
                fetch_one(&mut *self.connection, CLAIM, [name.into()]).await?
            }
        };
        let found = OutboxBatch { ages, ..self.behind(&place).await? };
        let connection = &mut *self.connection;
        Ok(Some((found, ClaimedPosition { connection, name: name.to_owned(), from: place })))
    }

    async fn clean(&mut self) -> Result<(), DriverError> {
        self.connection.run_script(REMOVE).await
    }

    async fn wait(&mut self) {
        let until = Instant::now() + LONGEST_WAIT;
        while Instant::now() < until {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            // The next read reports the failure.
            let Ok(version) = version(&mut *self.connection).await else { return };
            if std::mem::replace(&mut self.version, version) != version {
                return;
            }
        }
    }
}

/// Marks the rows of a transaction in the outbox with the identity of the transaction.
///
/// SQLite has no settings of a transaction that a trigger could copy, so the transaction marks its own rows before it
/// commits.
pub(crate) struct CommitMark {
    id: CommitId,
    /// The number of the last row before the transaction. No other transaction adds rows while this one writes.
    after: i64,
}

impl CommitMark {
    /// Begins to mark the rows of a transaction in which no statement has run. `None` without an outbox.
    pub(crate) async fn begin(id: CommitId, connection: &mut dyn Connection) -> Option<Self> {
        let after = fetch_one(connection, LAST_ROW, []).await.ok()?;
        Some(Self { id, after })
    }

    /// Marks the rows, as the last statement of the transaction.
    pub(crate) async fn write(self, connection: &mut dyn Connection) -> Result<(), DriverError> {
        if !fetch_one(connection, HAS_ROWS, [self.after.into()]).await? {
            // A transaction that only reads must not wait for the writer.
            return Ok(());
        }
        let mark = Statement::new(MARK).bind(self.id.to_string()).bind(self.after);
        connection.run(&mark).await.map(|_| ())
    }
}

/// This is not a lock, because SQLite has one writer at a time, and the database must not wait for a log. If two
/// processes read the same outbox rows, both invalidate.
pub(crate) struct ClaimedPosition<'a> {
    connection: &'a mut dyn Connection,
    name: String,
    from: String,
}

impl Claim for ClaimedPosition<'_> {
    async fn release(self) -> Result<(), DriverError> {
        Ok(())
    }

    async fn move_to(self, place: &str) -> Result<(), DriverError> {
        let moved = Statement::new(MOVE).bind(place).bind(self.name).bind(self.from);
        self.connection.run(&moved).await.map(|_| ())
    }
}

/// The last number and the time, and a row of the outbox if there is one: its table, key and identity.
type Line = (i64, i64, Option<String>, Option<Vec<u8>>, Option<String>);

const EVENTS: [&str; 3] = ["insert", "update", "delete"];
/// The interval at which the reader looks for commits of other connections.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

const TABLES: &str =
    "-- The outbox of larder: each changed row adds a row here, in the transaction that changes it.
-- Run this text again after tables were created or their keys changed.
CREATE TABLE IF NOT EXISTS larder_outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL DEFAULT (CAST(strftime('%s') AS INTEGER)),
  relation TEXT NOT NULL,
  row_key TEXT, -- the key of the row, an array of texts; null for any row
  commit_id TEXT -- the identity of the transaction, if larder itself invalidates after the commit
);
CREATE INDEX IF NOT EXISTS larder_outbox_by_row ON larder_outbox (relation, row_key);
-- Read positions that processes share. The empty text means that there is no position yet.
CREATE TABLE IF NOT EXISTS larder_reader (
  name TEXT PRIMARY KEY,
  seen TEXT NOT NULL DEFAULT '',
  at INTEGER NOT NULL DEFAULT (CAST(strftime('%s') AS INTEGER))
);
";
/// Whether there is an outbox of an older version.
const IS_OLD: &str =
    "SELECT count(*) > 0 AND sum(name = 'commit_id') = 0 FROM pragma_table_info('larder_outbox')";
/// All plain tables except the tables of the outbox, and for each whether only its key is unique: it has no other
/// unique index, and no rowid that is separate from the key.
const WATCHED: &str = "
    SELECT t.name, NOT EXISTS (SELECT 1 FROM pragma_index_list(t.name) i WHERE i.\"unique\" AND i.origin <> 'pk')
        AND (t.wr OR NOT EXISTS (SELECT 1 FROM pragma_index_list(t.name) i WHERE i.origin = 'pk'))
    FROM pragma_table_list t
    WHERE t.type = 'table' AND t.schema = 'main' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
        AND t.name NOT IN ('larder_outbox', 'larder_reader', 'larder_applied') ORDER BY t.name";
const OURS: &str = "SELECT name FROM sqlite_schema WHERE type = 'trigger'
    AND (name LIKE 'larder\\_insert\\_%' ESCAPE '\\' OR name LIKE 'larder\\_update\\_%' ESCAPE '\\'
        OR name LIKE 'larder\\_delete\\_%' ESCAPE '\\')";
const KEY: &str = "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk";
const BEHIND: &str = "
    SELECT coalesce(s.seq, 0), CAST(strftime('%s') AS INTEGER), l.relation, CAST(l.row_key AS BLOB), l.commit_id
    FROM (SELECT 1) one LEFT JOIN sqlite_sequence s ON s.name = 'larder_outbox' LEFT JOIN larder_outbox l ON l.id > ?
    ORDER BY l.id LIMIT 10001";
const LAST_ROW: &str = "SELECT coalesce(max(id), 0) FROM larder_outbox";
const HAS_ROWS: &str = "SELECT EXISTS (SELECT 1 FROM larder_outbox WHERE id > ?)";
const MARK: &str =
    "UPDATE larder_outbox SET commit_id = ?1 WHERE id > ?2 AND relation NOT LIKE 'larder event %'";
const REGISTER: &str = "INSERT INTO larder_reader (name) VALUES (?) ON CONFLICT (name) DO NOTHING";
const CLAIM: &str =
    "SELECT seen, at < CAST(strftime('%s') AS INTEGER) - 60 FROM larder_reader WHERE name = ?";
const MOVE: &str = "UPDATE larder_reader SET seen = ?1, at = CAST(strftime('%s') AS INTEGER) WHERE name = ?2 AND seen = ?3";
const REMOVE: &str = "
    DELETE FROM larder_outbox WHERE at < CAST(strftime('%s') AS INTEGER) - 7200;
    DELETE FROM larder_reader WHERE at < CAST(strftime('%s') AS INTEGER) - 30 * 86400";
const KEPT_FOR_SECONDS: i64 = 3600;
