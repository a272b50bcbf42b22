//! The outbox in PostgreSQL: triggers fill it, snapshots are its read positions, and `NOTIFY` wakes the reader.

use std::sync::Arc;

use tokio::{sync::Notify, task::JoinSet};

use super::follower::{self, Claim, LONGEST_WAIT, MOST_LINES, OutboxBatch, OutboxEvent, OutboxRow};
use crate::{
    database::{fetch, fetch_one},
    driver::{Connection, Driver, DriverError, Notifications},
    statement::Statement,
};

/// The SQL that creates the outbox and its triggers.
pub(crate) const DEFINITION: &str = include_str!("postgres.sql");

/// Reads on a connection of its own, because a reader that uses the pool of the application would be late whenever the
/// pool is busy.
pub(crate) struct Reader {
    driver: Arc<dyn Driver>,
    /// `None` before the first read, and after a read that has failed or was dropped.
    connection: Option<Box<dyn Connection>>,
    woken: Arc<Notify>,
    /// A snapshot with its time and server. Outbox rows that are visible in it may be removed two hours later.
    old: Option<(f64, String, String)>,
}

impl Reader {
    pub(crate) async fn open(
        driver: Arc<dyn Driver>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, DriverError> {
        let woken = Arc::new(Notify::new());
        // Listens before the first read, so that each commit that this read misses wakes the reader.
        if let Some(notifications) = driver.listen(CHANNEL).await? {
            tasks.spawn(wake(notifications, Arc::clone(&woken)));
        }
        Ok(Self { driver, connection: None, woken, old: None })
    }

    /// Takes the connection, or opens another one. A read that fails or is dropped does not put its connection back,
    /// because a transaction may be open there.
    async fn take_connection(&mut self) -> Result<Box<dyn Connection>, DriverError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.driver.open().await,
        }
    }
}

async fn wake(mut notifications: Box<dyn Notifications>, woken: Arc<Notify>) {
    loop {
        notifications.next().await;
        woken.notify_one();
    }
}

impl follower::Reader for Reader {
    type Claim<'a> = ClaimedPosition<'a>;

    async fn behind(&mut self, place: &str) -> Result<OutboxBatch, DriverError> {
        let mut connection = self.take_connection().await?;
        let found = read(&mut *connection, place).await?;
        self.connection = Some(connection);
        Ok(found)
    }

    async fn claim(
        &mut self,
        name: &str,
    ) -> Result<Option<(OutboxBatch, ClaimedPosition<'_>)>, DriverError> {
        let mut connection = self.take_connection().await?;
        // A process that stalls or is cut off must not hold the position forever.
        connection.run_script(BEGIN_NOT_FOR_EVER).await?;
        let mut place: Option<(String, bool)> =
            fetch(&mut *connection, CLAIM, [name.into()]).await?.pop();
        if place.is_none() {
            // Another process holds the position, or the position does not exist yet.
            connection.run(&Statement::new(REGISTER).bind(name)).await?;
            place = fetch(&mut *connection, CLAIM, [name.into()]).await?.pop();
        }
        let Some((place, ages)) = place else {
            connection.run_script("ROLLBACK").await?;
            self.connection = Some(connection);
            return Ok(None);
        };
        let found = OutboxBatch { ages, ..read(&mut *connection, &place).await? };
        let claim =
            ClaimedPosition { home: &mut self.connection, connection, name: name.to_owned() };
        Ok(Some((found, claim)))
    }

    async fn clean(&mut self) -> Result<(), DriverError> {
        let mut connection = self.take_connection().await?;
        let now: (f64, String, String) = fetch_one(&mut *connection, NOW, []).await?;
        if self.old.as_ref().is_some_and(|(_, _, server)| *server != now.2) {
            // The transaction numbers of another server do not refer to these outbox rows.
            self.old = None;
        }
        let remove = match &self.old {
            Some((at, ..)) if now.0 - at < REMOVED_AFTER_SECONDS => None,
            Some((_, over, _)) => Some(Statement::new(REMOVE).bind(over)),
            // Even a process that never runs for two hours removes the rows that are a day old.
            None => Some(Statement::new(REMOVE_AGED)),
        };
        if let Some(remove) = remove {
            connection.run(&remove).await?;
            connection.run(&Statement::new(REMOVE_READERS)).await?;
            self.old = Some(now);
        }
        self.connection = Some(connection);
        Ok(())
    }

    async fn wait(&mut self) {
        drop(tokio::time::timeout(LONGEST_WAIT, self.woken.notified()).await);
    }
}

/// The lock on a position, in an open transaction. If it is dropped, the connection is closed, and the server rolls the
/// transaction back.
pub(crate) struct ClaimedPosition<'a> {
    home: &'a mut Option<Box<dyn Connection>>,
    connection: Box<dyn Connection>,
    name: String,
}

impl ClaimedPosition<'_> {
    async fn end(mut self, end: &'static str) -> Result<(), DriverError> {
        self.connection.run_script(end).await?;
        *self.home = Some(self.connection);
        Ok(())
    }
}

impl Claim for ClaimedPosition<'_> {
    async fn release(self) -> Result<(), DriverError> {
        self.end("ROLLBACK").await
    }

    async fn move_to(mut self, place: &str) -> Result<(), DriverError> {
        let moved = Statement::new(MOVE).bind(place).bind(&self.name);
        self.connection.run(&moved).await?;
        self.end("COMMIT").await
    }
}

/// Reads the outbox rows after a position.
async fn read(connection: &mut dyn Connection, place: &str) -> Result<OutboxBatch, DriverError> {
    let rows: Vec<Line> = fetch(connection, BEHIND, [place.into()]).await?;
    let mut found = OutboxBatch { gap: rows.len() > MOST_LINES, ..OutboxBatch::default() };
    for (place, is_gap, table, keys, columns, lookups, commit) in rows {
        found.place = place;
        found.gap |= is_gap;
        // The query always returns a row, whose columns of the outbox row are null if there is no outbox row.
        let Some(table) = table else { continue };
        match OutboxEvent::of(&table, keys.as_deref()) {
            Some(event) => found.events.push(event),
            None => {
                let row = OutboxRow::new(table, keys.as_deref(), commit.as_deref());
                let row = row.with_columns(columns.as_deref());
                found.lines.push(row.with_lookups(lookups.as_deref()));
            }
        }
    }
    Ok(found)
}

/// Reads the rows that the current transaction has added to the outbox: their tables and lookups.
pub(crate) async fn own_rows(
    connection: &mut dyn Connection,
) -> Result<Vec<OutboxRow>, DriverError> {
    let rows: Vec<(String, Option<String>)> = fetch(connection, OWN, []).await?;
    let row = |(table, lookups): (String, Option<String>)| {
        OutboxRow::new(table, None, None).with_lookups(lookups.as_deref())
    };
    Ok(rows.into_iter().map(row).collect())
}

/// The new position, whether there is a gap, and a row of the outbox if there is one: its table, keys, columns, lookups
/// and identity.
type Line =
    (String, bool, Option<String>, Option<String>, Option<String>, Option<String>, Option<String>);

const CHANNEL: &str = "larder";
/// Twice the 3,600 s after which a position is treated as a gap.
const REMOVED_AFTER_SECONDS: f64 = 7200.0;

/// Identifies the server, its start (the reset time of its statistics also changes after a crash), and the outbox
/// table.
macro_rules! server {
    () => {
        "extract(epoch FROM pg_postmaster_start_time())::text || '.'
            || coalesce(extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())::text, '') || '.'
            || 'larder_outbox.line'::regclass::oid"
    };
}

/// A position is a snapshot with its time, its server and its table. There is a gap if the position is empty, is older
/// than 3,600 s, is ahead of the server, is from another server, or is from before a restart of the server, because a
/// server that was restarted may have lost its last commits, or may assign transaction numbers again.
const BEHIND: &str = concat!(
    "
    WITH place AS MATERIALIZED (
        SELECT pg_current_snapshot() AS now, extract(epoch FROM clock_timestamp())::bigint AS at, ",
    server!(),
    " AS server,
            coalesce(nullif(split_part($1, ' ', 1), ''), pg_current_snapshot()::text)::pg_snapshot AS seen,
            coalesce(nullif(split_part($1, ' ', 2), ''), '0')::bigint AS seen_at, split_part($1, ' ', 3) AS seen_server)
    SELECT p.now::text || ' ' || p.at || ' ' || p.server,
        p.server <> p.seen_server OR p.at - p.seen_at > 3600 OR pg_snapshot_xmax(p.seen) > pg_snapshot_xmax(p.now),
        l.relation, l.keys::text, l.columns::text, l.lookups::text, l.commit_id
    FROM place p LEFT JOIN larder_outbox.line l
        ON l.xid >= pg_snapshot_xmin(p.seen) AND NOT pg_visible_in_snapshot(l.xid, p.seen)
    ORDER BY l.id LIMIT 10001"
);
const OWN: &str = "SELECT relation, lookups::text FROM larder_outbox.own()";
const REGISTER: &str =
    "INSERT INTO larder_outbox.reader (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";
const BEGIN_NOT_FOR_EVER: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'";
const CLAIM: &str =
    "SELECT seen, at < now() - interval '1 minute' FROM larder_outbox.reader WHERE name = $1
    FOR UPDATE SKIP LOCKED";
const MOVE: &str = "UPDATE larder_outbox.reader SET seen = $1, at = now() WHERE name = $2";
const NOW: &str =
    concat!("SELECT extract(epoch FROM now())::float8, pg_current_snapshot()::text, ", server!());
const REMOVE: &str = "DELETE FROM larder_outbox.line
    WHERE xid < pg_snapshot_xmax($1::text::pg_snapshot) AND pg_visible_in_snapshot(xid, $1::text::pg_snapshot)";
/// Rows are not removed sooner, because an outbox row has the time of its statement, and its transaction may have been
/// committed long after that time.
const REMOVE_AGED: &str = "DELETE FROM larder_outbox.line WHERE at < now() - interval '1 day'";
/// A position that no process has moved for this long belongs to an epoch that has ended.
const REMOVE_READERS: &str =
    "DELETE FROM larder_outbox.reader WHERE at < now() - interval '30 days'";
