//! The outbox in PostgreSQL: filled by triggers, read by snapshots, woken by `NOTIFY`.

use std::{sync::Arc, time::Duration};

use sqlx::{
    PgPool, Postgres, Row as _, Transaction,
    postgres::{PgListener, PgPoolOptions, PgRow},
};
use tokio::{sync::Notify, task::JoinSet};

use super::{Claim, Found, LONGEST_WAIT, Line, MOST_LINES};

/// What makes the outbox.
pub(super) const DEFINITION: &str = include_str!("postgres.sql");

/// Reads by connections of its own: whoever waits for those of the application waits for them alone.
pub(super) struct Reader {
    pool: PgPool,
    woken: Arc<Notify>,
    /// What was over at a moment, and whatever was over then may be removed an hour later.
    old: Option<(f64, String)>,
}

impl Reader {
    pub(super) async fn open(pool: &PgPool, tasks: &mut JoinSet<()>) -> sqlx::Result<Self> {
        let options = (*pool.connect_options()).clone();
        let own = PgPoolOptions::new().max_connections(2).max_lifetime(None).idle_timeout(None);
        let pool = own.connect_lazy_with(options);
        // One that listens before the first look: what is committed behind that look wakes.
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        let woken = Arc::new(Notify::new());
        tasks.spawn(listen(listener, Arc::clone(&woken)));
        Ok(Self { pool, woken, old: None })
    }
}

/// Wakes for each notification, and whenever one may have been lost.
async fn listen(mut listener: PgListener, woken: Arc<Notify>) {
    loop {
        // `None` is a connection that was lost and made anew.
        let heard = listener.try_recv().await.is_ok();
        woken.notify_one();
        if !heard {
            tokio::time::sleep(AFTER_A_LOSS).await;
            // Connects anew, if it can; else the next turn tries.
            drop(sqlx::query("SELECT 1").execute(&mut listener).await);
            woken.notify_one();
        }
    }
}

impl super::Reader for Reader {
    type Claim<'a> = Claimed;

    async fn end(&mut self) -> sqlx::Result<String> {
        sqlx::query_scalar(END).fetch_one(&self.pool).await
    }

    async fn behind(&mut self, place: &str) -> sqlx::Result<Found> {
        found(&sqlx::query(BEHIND).bind(place).fetch_all(&self.pool).await?)
    }

    async fn register(&mut self, name: &str) -> sqlx::Result<bool> {
        let made = sqlx::query(REGISTER).bind(name).execute(&self.pool).await?;
        Ok(made.rows_affected() == 1)
    }

    async fn claim(&mut self, name: &str) -> sqlx::Result<Option<(Found, Claimed)>> {
        let mut transaction = self.pool.begin().await?;
        let place = sqlx::query_as::<_, (String, bool, bool)>(CLAIM).bind(name);
        let Some((place, is_outdated, ages)) = place.fetch_optional(&mut *transaction).await?
        else {
            return Ok(None);
        };
        let rows = sqlx::query(BEHIND).bind(&place).fetch_all(&mut *transaction).await?;
        let mut found = found(&rows)?;
        found.gap |= is_outdated;
        found.ages = ages;
        Ok(Some((found, Claimed { transaction, name: name.to_owned() })))
    }

    async fn clean(&mut self) -> sqlx::Result<()> {
        let now: (f64, String) = sqlx::query_as(NOW).fetch_one(&self.pool).await?;
        match &self.old {
            Some((at, _)) if now.0 - at < KEPT_FOR_SECONDS => return Ok(()),
            Some((_, over)) => drop(sqlx::query(REMOVE).bind(over).execute(&self.pool).await?),
            // Who never lives for an hour removes all the same.
            None => drop(sqlx::query(REMOVE_AGED).execute(&self.pool).await?),
        }
        self.old = Some(now);
        Ok(())
    }

    async fn wait(&mut self) {
        drop(tokio::time::timeout(LONGEST_WAIT, self.woken.notified()).await);
    }
}

pub(super) struct Claimed {
    transaction: Transaction<'static, Postgres>,
    name: String,
}

impl Claim for Claimed {
    async fn move_to(mut self, place: &str) -> sqlx::Result<()> {
        let moved = sqlx::query(MOVE).bind(place).bind(&self.name);
        moved.execute(&mut *self.transaction).await?;
        self.transaction.commit().await
    }
}

fn found(rows: &[PgRow]) -> sqlx::Result<Found> {
    let mut found = Found { gap: rows.len() > MOST_LINES, ..Found::default() };
    for row in rows {
        found.place = row.try_get(0)?;
        found.gap |= row.try_get::<bool, _>(1)?;
        // One row comes in any case, without a line where there is none.
        if let Some(table) = row.try_get(2)? {
            found.lines.push(Line::new(table, row.try_get(3)?));
        }
    }
    Ok(found)
}

const CHANNEL: &str = "larder";
const AFTER_A_LOSS: Duration = Duration::from_millis(200);
const KEPT_FOR_SECONDS: f64 = 3600.0;

/// The lines of all transactions that were not over at a snapshot and are now. The server is behind the snapshot when it is
/// another one than it was.
const BEHIND: &str = "
    WITH s AS MATERIALIZED (SELECT pg_current_snapshot() AS now, $1::text::pg_snapshot AS seen)
    SELECT s.now::text, pg_snapshot_xmax(s.seen) > pg_snapshot_xmax(s.now), o.relation, o.keys::text
    FROM s LEFT JOIN larder_outbox.line o ON o.xid >= pg_snapshot_xmin(s.seen) AND NOT pg_visible_in_snapshot(o.xid, s.seen)
    ORDER BY o.id LIMIT 10001";
/// Also says whether there is an outbox.
const END: &str = "SELECT pg_current_snapshot()::text FROM (SELECT count(*) FROM larder_outbox.line WHERE false) there";
const REGISTER: &str =
    "INSERT INTO larder_outbox.reader (name, seen) VALUES ($1, pg_current_snapshot()::text)
    ON CONFLICT (name) DO NOTHING";
const CLAIM: &str = "SELECT seen, at < now() - interval '1 hour', at < now() - interval '1 minute'
    FROM larder_outbox.reader WHERE name = $1 FOR UPDATE SKIP LOCKED";
const MOVE: &str = "UPDATE larder_outbox.reader SET seen = $1, at = now() WHERE name = $2";
const NOW: &str = "SELECT extract(epoch FROM now())::float8, pg_current_snapshot()::text";
const REMOVE: &str = "DELETE FROM larder_outbox.line
    WHERE xid < pg_snapshot_xmax($1::text::pg_snapshot) AND pg_visible_in_snapshot(xid, $1::text::pg_snapshot)";
/// A transaction that was open for a day does not concern who keeps nothing for so long.
const REMOVE_AGED: &str = "DELETE FROM larder_outbox.line WHERE at < now() - interval '1 day'";
