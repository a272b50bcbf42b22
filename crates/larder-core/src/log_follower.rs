//! Follows a log that other processes append to.
//!
//! One task installs a view from the compacted log, and then reads record after record. After every third of `max_lag`,
//! or of a smaller bound that a request has set, it requests the end of the log, to verify how far this process has
//! applied the log. After a mismatch (a gap, another epoch, an end that went back) it installs a new view.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    bus::{Bus, BusError, BusErrorKind, Position, Record, WriterId},
    clock::{Moment, jittered},
    engine::Engine,
    invalidation_feed::FeedMessage,
    record_note::RecordNote,
    target::{Mode, Selector},
};

/// When larder last verified that this process had applied every invalidation, in nanoseconds of its clock.
#[derive(Debug, Default)]
pub(crate) struct Proof(AtomicU64);

impl Proof {
    pub(crate) fn at(&self) -> Moment {
        Moment::from_nanos(self.0.load(Ordering::Acquire))
    }

    fn renew(&self, sent_at: Moment) {
        self.0.fetch_max(sent_at.as_nanos(), Ordering::AcqRel);
    }
}

/// Follows the log until the larder is dropped.
pub(crate) async fn run(engine: Weak<Engine>, bus: Arc<dyn Bus>) {
    Follower { engine, bus }.run().await;
}

struct Follower {
    engine: Weak<Engine>,
    bus: Arc<dyn Bus>,
}

impl Follower {
    async fn run(self) {
        // The number of consecutive views that lasted less than `max_lag`.
        let mut in_vain = 0_u32;
        loop {
            let Some(engine) = self.engine.upgrade() else { return };
            let max_lag = engine.max_lag;
            if let Err(error) = install(&engine).await {
                tracing::debug!(target: "larder", %error, "the invalidation log cannot be read; trying again");
                drop(engine);
                tokio::time::sleep(jittered(max_lag / 3)).await;
                continue;
            }
            let installed = engine.clock.now();
            drop(engine);
            self.publish_rules();
            self.tail().await;
            let Some(engine) = self.engine.upgrade() else { return };
            let lasted = engine.clock.now().since(installed);
            // There is no view until the next view is installed, because the log of the closed view may have been
            // replaced.
            engine.registry.close_view();
            drop(engine);
            in_vain = if lasted < max_lag { in_vain.saturating_add(1) } else { 0 };
            if in_vain > 1 {
                // Two servers may disagree on the epoch, and each view of another epoch invalidates the first level, so
                // views must not alternate quickly.
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(in_vain.min(10));
                tokio::time::sleep(jittered(pause.min(max_lag))).await;
            }
        }
    }

    /// Reads records until there is a mismatch or the larder has been dropped.
    async fn tail(&self) -> Option<()> {
        let mut sent_at = Moment::START;
        let mut published = self.engine.upgrade()?.clock.now();
        // An end of the log that the server has reported and that this process has not reached yet.
        let mut owed: Option<(Moment, Position)> = None;
        loop {
            let engine = self.engine.upgrade()?;
            let (at, step) = (engine.registry.applied()?, engine.step());
            drop(engine);
            let read = self.bus.read(at, step).await;
            let engine = self.engine.upgrade()?;
            let empty = match read {
                Ok(records) => match apply(&engine, at, &records) {
                    ApplyOutcome::All => records.is_empty(),
                    ApplyOutcome::Gap => return None,
                    ApplyOutcome::Other => {
                        *engine.lost.lock() = Some(at.epoch);
                        return None;
                    }
                },
                Err(error) if error.kind() == BusErrorKind::Gone => return None,
                Err(error) => {
                    // A read may fail although a request for the end succeeds and reports more records.
                    tracing::debug!(target: "larder", %error, "reading the invalidation log failed; trying again");
                    let pause = engine.max_lag / 12;
                    drop(engine);
                    tokio::time::sleep(pause).await;
                    true
                }
            };
            let engine = self.engine.upgrade()?;
            let applied = engine.registry.applied()?;
            if let Some((sent_at, end)) = owed
                && end.epoch == applied.epoch
                && end.number <= applied.number
            {
                engine.proof.renew(sent_at);
                owed = None;
            }
            // `tick` also applies invalidations that become due while no request arrives.
            let now = engine.tick();
            if now.since(sent_at) < step && !empty {
                continue;
            }
            sent_at = now;
            if engine.has_left_behind() {
                engine.send_unsent();
            }
            if now.since(published) >= BETWEEN_RULES {
                published = now;
                self.publish_rules();
            }
            engine.register_scheduled().await;
            match self.compare(&engine, now, empty).await {
                LogEnd::Fits => {}
                LogEnd::Ahead(end) => owed = owed.or(Some((now, end))),
                LogEnd::Behind => return None,
            }
        }
    }

    /// Publishes the rules of this process for clients that have none. If that fails, clients refuse to invalidate, and the
    /// next attempt follows in ten minutes.
    fn publish_rules(&self) {
        let Some(engine) = self.engine.upgrade() else { return };
        let (bus, rules) = (Arc::clone(&self.bus), engine.rules.clone());
        tokio::spawn(async move {
            if let Err(error) = bus.publish_rules(&rules).await {
                tracing::debug!(target: "larder", %error, "the dependency rules were not published");
            }
        });
    }

    /// Requests the end of the log. Only this shows whether the process is up to date, because a log that was emptied
    /// also answers every read with no records.
    async fn compare(&self, engine: &Engine, sent_at: Moment, read_nothing: bool) -> LogEnd {
        let Ok(end) = self.bus.end(None).await else { return LogEnd::Fits };
        let Some(applied) = engine.registry.applied() else { return LogEnd::Behind };
        if end.epoch != applied.epoch {
            return LogEnd::Behind;
        }
        if end.number < applied.number || *engine.lost.lock() == Some(end.epoch) {
            return LogEnd::Behind;
        }
        if end.number == applied.number {
            engine.proof.renew(sent_at);
            return LogEnd::Fits;
        }
        // The log has more records, but a read returned none, so they were trimmed or reading is broken. One more read
        // decides, since the end may have moved in the meantime.
        if read_nothing && self.bus.read(applied, Duration::ZERO).await.is_ok_and(|r| r.is_empty())
        {
            return LogEnd::Behind;
        }
        LogEnd::Ahead(end)
    }
}

const BETWEEN_RULES: Duration = Duration::from_secs(600);

enum LogEnd {
    Fits,
    /// The log has more records, which are still to be read.
    Ahead(Position),
    Behind,
}

enum ApplyOutcome {
    All,
    Gap,
    /// The log has another record at a position where it had accepted a record of this process.
    Other,
}

fn apply(engine: &Engine, at: Position, records: &[(u64, Record)]) -> ApplyOutcome {
    let mut expected = at.number;
    for (number, record) in records {
        expected += 1;
        if *number != expected {
            return ApplyOutcome::Gap;
        }
        if engine.registry.contradicts(Position { number: *number, ..at }, record) {
            return ApplyOutcome::Other;
        }
        engine.registry.apply(*number, record, engine.clock.now());
        // This process noted its own when it made them.
        if record.origin != engine.origin {
            engine.note_past(record);
        }
        if engine.feed.receiver_count() > 0 {
            drop(engine.feed.send(FeedMessage { record: record.clone(), missed: false }));
        }
    }
    note_seen(engine, Position { number: expected, ..at });
    engine.advanced.notify_waiters();
    ApplyOutcome::All
}

fn note_seen(engine: &Engine, at: Position) {
    let mut seen = engine.seen.lock();
    if seen.is_none_or(|seen| seen.epoch != at.epoch || seen.number < at.number) {
        *seen = Some(at);
    }
}

/// Sends a record of the compacted log to the feeds. It is unknown which processes appended it, and how often.
fn tell_of_missed(engine: &Engine, record: Record) {
    drop(engine.feed.send(FeedMessage { record, missed: true }));
}

/// Installs a view: closes the old view, reads the compacted log, opens the new view, and appends the invalidations
/// again that the log may have lost. If the log is the same and still has all records since the old view, only the
/// newer records are applied; otherwise the first level is invalidated.
async fn install(engine: &Arc<Engine>) -> Result<(), BusError> {
    let before = *engine.seen.lock();
    engine.registry.close_view();
    let sent_at = engine.clock.now();
    let mut end = engine.bus.end(None).await?;
    let went_back =
        before.is_some_and(|before| before.epoch == end.epoch && before.number > end.number);
    let lost = *engine.lost.lock() == Some(end.epoch);
    if went_back || lost {
        // The log has lost records that this process saw, and would assign their numbers again, so it needs a new epoch
        // first.
        end = engine.bus.end(Some(end.epoch)).await?;
    }
    let mut records = Vec::new();
    let (mut after, mut horizon) = (0, 0);
    loop {
        let page = engine.bus.compacted(after).await?;
        if page.end.epoch != end.epoch {
            return Err(BusError::new(BusErrorKind::Gone));
        }
        horizon = page.horizon.max(horizon);
        after = page.records.last().map_or(after, |(number, _)| *number);
        records.extend(page.records);
        if !page.more {
            break;
        }
    }
    let goes_on = before.filter(|before| {
        before.epoch == end.epoch && before.number <= end.number && before.number >= horizon
    });
    match goes_on {
        Some(seen) => {
            // Only records after the old position are new, and the compacted log has all of them.
            engine.registry.go_on(end, horizon, &records, seen.number, engine.clock.now());
            records.retain(|(number, _)| *number > seen.number);
            records.into_iter().for_each(|(_, record)| tell_of_missed(engine, record));
        }
        None => {
            // The retained records become pending before the view opens, so that no entry that they reach is promoted
            // from the second level.
            engine.registry.resend_retained(engine.clock.now());
            engine.registry.open_view(end, horizon, &records, engine.clock.now());
            if before.is_some() {
                let what = vec![Selector::Everything];
                let record = Record {
                    origin: WriterId::random(),
                    mode: Mode::Hard,
                    what,
                    commit: None,
                    note: RecordNote::default(),
                };
                tell_of_missed(engine, record);
            }
        }
    }
    engine.proof.renew(sent_at);
    *engine.seen.lock() = Some(end);
    *engine.lost.lock() = None;
    engine.send_unsent();
    engine.synced.send_replace(true);
    engine.advanced.notify_waiters();
    Ok(())
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
