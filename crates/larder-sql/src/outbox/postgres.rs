//! The outbox in PostgreSQL: triggers fill it, snapshots are its read positions, and `NOTIFY` wakes the reader.

use std::{sync::Arc, time::Duration};

use sqlx::{
    PgPool, Postgres, Row as _, Transaction,
    postgres::{PgListener, PgPoolOptions, PgRow},
};
use tokio::{sync::Notify, task::JoinSet};

use super::follower::{self, Claim, LONGEST_WAIT, MOST_LINES, OutboxBatch, OutboxEvent, OutboxRow};

/// The SQL that creates the outbox and its triggers.
pub(crate) const DEFINITION: &str = include_str!("postgres.sql");

/// Reads on its own connections, because a reader that uses the pool of the application would be late whenever the pool
/// is busy.
pub(crate) struct Reader {
    pool: PgPool,
    woken: Arc<Notify>,
    /// A snapshot with its time and server. Outbox rows that are visible in it may be removed two hours later.
    old: Option<(f64, String, String)>,
}

impl Reader {
    pub(crate) async fn open(pool: &PgPool, tasks: &mut JoinSet<()>) -> sqlx::Result<Self> {
        let options = (*pool.connect_options()).clone();
        let own = PgPoolOptions::new().max_connections(2).max_lifetime(None).idle_timeout(None);
        let pool = own.connect_lazy_with(options);
        // Listens before the first read, so that each commit that this read misses wakes the reader.
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        let woken = Arc::new(Notify::new());
        tasks.spawn(listen(listener, Arc::clone(&woken)));
        Ok(Self { pool, woken, old: None })
    }
}

/// Wakes the reader for each notification, and whenever a notification may have been lost.
async fn listen(mut listener: PgListener, woken: Arc<Notify>) {
    loop {
        // `Ok(None)` means that the connection was lost and opened again.
        let heard = listener.try_recv().await.is_ok();
        woken.notify_one();
        if !heard {
            tokio::time::sleep(AFTER_A_LOSS).await;
            // Connects again, if it can; otherwise the next iteration tries again.
            drop(sqlx::query("SELECT 1").execute(&mut listener).await);
            woken.notify_one();
        }
    }
}

impl follower::Reader for Reader {
    type Claim<'a> = ClaimedPosition;

    async fn behind(&mut self, place: &str) -> sqlx::Result<OutboxBatch> {
        found(&sqlx::query(BEHIND).bind(place).fetch_all(&self.pool).await?)
    }

    async fn claim(&mut self, name: &str) -> sqlx::Result<Option<(OutboxBatch, ClaimedPosition)>> {
        let mut transaction = self.pool.begin().await?;
        // A process that stalls or is cut off must not hold the position forever.
        sqlx::query(NOT_FOR_EVER).execute(&mut *transaction).await?;
        let claim = || sqlx::query_as::<_, (String, bool)>(CLAIM).bind(name);
        let mut place = claim().fetch_optional(&mut *transaction).await?;
        if place.is_none() {
            // Another process holds the position, or the position does not exist yet.
            sqlx::query(REGISTER).bind(name).execute(&mut *transaction).await?;
            place = claim().fetch_optional(&mut *transaction).await?;
        }
        let Some((place, ages)) = place else { return Ok(None) };
        let rows = sqlx::query(BEHIND).bind(&place).fetch_all(&mut *transaction).await?;
        let found = OutboxBatch { ages, ..found(&rows)? };
        Ok(Some((found, ClaimedPosition { transaction, name: name.to_owned() })))
    }

    async fn clean(&mut self) -> sqlx::Result<()> {
        let now: (f64, String, String) = sqlx::query_as(NOW).fetch_one(&self.pool).await?;
        if self.old.as_ref().is_some_and(|(_, _, server)| *server != now.2) {
            // The transaction numbers of another server do not refer to these outbox rows.
            self.old = None;
        }
        let remove = match &self.old {
            Some((at, ..)) if now.0 - at < REMOVED_AFTER_SECONDS => return Ok(()),
            Some((_, over, _)) => sqlx::query(REMOVE).bind(over),
            // Even a process that never runs for two hours removes the rows that are a day old.
            None => sqlx::query(REMOVE_AGED),
        };
        remove.execute(&self.pool).await?;
        sqlx::query(REMOVE_READERS).execute(&self.pool).await?;
        self.old = Some(now);
        Ok(())
    }

    async fn wait(&mut self) {
        drop(tokio::time::timeout(LONGEST_WAIT, self.woken.notified()).await);
    }
}

pub(crate) struct ClaimedPosition {
    transaction: Transaction<'static, Postgres>,
    name: String,
}

impl Claim for ClaimedPosition {
    async fn move_to(mut self, place: &str) -> sqlx::Result<()> {
        let moved = sqlx::query(MOVE).bind(place).bind(&self.name);
        moved.execute(&mut *self.transaction).await?;
        self.transaction.commit().await
    }
}

fn found(rows: &[PgRow]) -> sqlx::Result<OutboxBatch> {
    let mut found = OutboxBatch { gap: rows.len() > MOST_LINES, ..OutboxBatch::default() };
    for row in rows {
        found.place = row.try_get(0)?;
        found.gap |= row.try_get::<bool, _>(1)?;
        // The query always returns a row, whose columns of the outbox row are null if there is no outbox row.
        let Some(table) = row.try_get::<Option<String>, _>(2)? else { continue };
        let keys = row.try_get::<Option<String>, _>(3)?;
        let commit = row.try_get::<Option<String>, _>(4)?;
        match OutboxEvent::of(&table, keys.as_deref()) {
            Some(event) => found.events.push(event),
            None => found.lines.push(OutboxRow::new(table, keys.as_deref(), commit.as_deref())),
        }
    }
    Ok(found)
}

const CHANNEL: &str = "larder";
const AFTER_A_LOSS: Duration = Duration::from_millis(200);
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
        l.relation, l.keys::text, l.commit_id
    FROM place p LEFT JOIN larder_outbox.line l
        ON l.xid >= pg_snapshot_xmin(p.seen) AND NOT pg_visible_in_snapshot(l.xid, p.seen)
    ORDER BY l.id LIMIT 10001"
);
const REGISTER: &str =
    "INSERT INTO larder_outbox.reader (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";
const NOT_FOR_EVER: &str = "SET LOCAL idle_in_transaction_session_timeout = '10s'";
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
