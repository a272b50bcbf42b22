//! An invalidation log that several larders share, over connections that can be slow, lossy or cut.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use larder_core::store::{
    BoxFuture, Bus, BusError, BusErrorKind, Epoch, LogPage, Position, Record, Rules,
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::seeded_rng::SeededRng;

/// The log itself. Clones share it.
#[derive(Clone, Debug)]
pub struct SharedLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    appended: Notify,
    /// The start of the log's server, by the clock of this process and by the clock of the server.
    started: (Instant, SystemTime),
    tells_time: AtomicBool,
    /// The rules that processes have published.
    rules: Mutex<Option<Rules>>,
}

#[derive(Debug)]
struct State {
    epoch: Epoch,
    /// The number up to which records were trimmed.
    horizon: u64,
    records: Vec<(u64, Record)>,
    last: u64,
    failed_over: bool,
    /// The scheduled records, by writer and id.
    due: BTreeMap<(u128, u64), (Instant, Record)>,
}

impl State {
    fn new() -> Self {
        let epoch = Epoch::random();
        let (records, due) = (Vec::new(), BTreeMap::new());
        Self { epoch, horizon: 0, records, last: 0, failed_over: false, due }
    }

    /// Draws a new epoch after a failover, and appends due records. Each command that may write calls this first.
    fn check(&mut self) {
        if self.failed_over {
            *self = Self { due: std::mem::take(&mut self.due), ..Self::new() };
        }
        let now = Instant::now();
        while let Some(id) = self.due.iter().find(|(_, (at, _))| *at <= now).map(|(id, _)| *id) {
            let (_, record) = self.due.remove(&id).expect("it was there");
            self.append(record);
        }
    }

    fn append(&mut self, record: Record) -> Position {
        self.last += 1;
        self.records.push((self.last, record));
        Position { epoch: self.epoch, number: self.last }
    }
}

impl SharedLog {
    /// Creates an empty log.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State::new()),
            appended: Notify::new(),
            started: (Instant::now(), SystemTime::now()),
            tells_time: AtomicBool::new(true),
            rules: Mutex::default(),
        }))
    }

    /// Stops this log from reporting the time of its server.
    pub fn keep_no_time(&self) {
        self.0.tells_time.store(false, Ordering::Relaxed);
    }

    /// Creates the connection of one process to this log. Each command is delayed by up to `longest` on its way and
    /// again on its way back. `percent` of the appends fail before they are executed, and the same share of the
    /// remaining appends fails afterwards; a `schedule` fails only before.
    pub fn line(&self, dice: SeededRng, percent: u64, longest: Duration) -> LogLine {
        let cut = Arc::new(AtomicBool::new(false));
        LogLine { log: self.clone(), dice, percent, longest, cut }
    }

    /// Replaces the log with an empty log of a new epoch, like a server that lost its data.
    pub fn replace(&self) {
        *self.0.state.lock() = State::new();
        self.0.appended.notify_waiters();
    }

    /// Loses the last records, like a failover to a replica that lagged. The next append or request for the end finds
    /// another server and therefore another epoch; a process that only reads finds no records.
    pub fn lose_tail(&self, records: usize) {
        let mut state = self.0.state.lock();
        let kept = state.records.len().saturating_sub(records);
        state.records.truncate(kept);
        state.last = state.records.last().map_or(state.horizon, |(number, _)| *number);
        state.failed_over = true;
    }

    /// Trims the log, so that a process that lags behind has to resynchronise.
    pub fn trim(&self) {
        let mut state = self.0.state.lock();
        state.horizon = state.last;
        state.records.clear();
    }
}

impl Default for SharedLog {
    fn default() -> Self {
        Self::new()
    }
}

/// The connection of one process to a [`SharedLog`]. It does not lose records that were appended.
#[derive(Clone, Debug)]
pub struct LogLine {
    log: SharedLog,
    dice: SeededRng,
    percent: u64,
    longest: Duration,
    cut: Arc<AtomicBool>,
}

impl LogLine {
    /// Cuts the connection if `cut` is `true`, and restores it otherwise.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    async fn travel(&self) -> Result<(), BusError> {
        self.dice.pause(self.longest).await;
        match self.cut.load(Ordering::SeqCst) {
            true => Err(BusError::new(BusErrorKind::Unreachable)),
            false => Ok(()),
        }
    }

    fn fails(&self) -> bool {
        self.dice.chance(self.percent)
    }
}

impl Bus for LogLine {
    fn is_shared(&self) -> bool {
        true
    }

    /// Returns the start of the server, unless [`SharedLog::keep_no_time`] was called.
    fn server_time(&self) -> Option<(Instant, SystemTime)> {
        let inner = &self.log.0;
        inner.tells_time.load(Ordering::Relaxed).then_some(inner.started)
    }

    fn keep_for(&self, _: Duration) {}

    fn append<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<Position, BusError>> {
        Box::pin(async move {
            self.travel().await?;
            if self.fails() {
                return Err(BusError::new(BusErrorKind::Unreachable));
            }
            let at = {
                let mut state = self.log.0.state.lock();
                state.check();
                state.append(record.clone())
            };
            self.log.0.appended.notify_waiters();
            self.travel().await?;
            if self.fails() {
                return Err(BusError::new(BusErrorKind::Timeout));
            }
            Ok(at)
        })
    }

    fn schedule<'a>(
        &'a self,
        id: u64,
        record: &'a Record,
        after: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>> {
        Box::pin(async move {
            self.travel().await?;
            if self.fails() {
                return Err(BusError::new(BusErrorKind::Unreachable));
            }
            let mut state = self.log.0.state.lock();
            state.check();
            let at = Instant::now() + after;
            state.due.insert((record.origin.to_bits(), id), (at, record.clone()));
            Ok(Position { epoch: state.epoch, number: state.last })
        })
    }

    fn end(&self, lost: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>> {
        Box::pin(async move {
            self.travel().await?;
            let mut state = self.log.0.state.lock();
            let before = state.last;
            state.check();
            if lost == Some(state.epoch) {
                // The new state has a new epoch, in which earlier positions have no meaning.
                *state = State { due: std::mem::take(&mut state.due), ..State::new() };
            }
            let end = Position { epoch: state.epoch, number: state.last };
            if end.number != before {
                self.log.0.appended.notify_waiters();
            }
            Ok(end)
        })
    }

    fn read(
        &self,
        after: Position,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>> {
        Box::pin(async move {
            self.travel().await?;
            let appended = self.log.0.appended.notified();
            let read = || {
                let state = self.log.0.state.lock();
                if state.epoch != after.epoch || after.number < state.horizon {
                    return Err(BusError::new(BusErrorKind::Gone));
                }
                let later = state.records.iter().filter(|(number, _)| *number > after.number);
                Ok(later.cloned().collect::<Vec<_>>())
            };
            let found = read()?;
            if !found.is_empty() {
                return Ok(found);
            }
            drop(tokio::time::timeout(wait, appended).await);
            self.travel().await?;
            read()
        })
    }

    fn publish_rules<'a>(&'a self, rules: &'a Rules) -> BoxFuture<'a, Result<(), BusError>> {
        self.log.0.rules.lock().get_or_insert_default().extend(rules.clone());
        Box::pin(std::future::ready(Ok(())))
    }

    fn published_rules(&self) -> BoxFuture<'_, Result<Option<Rules>, BusError>> {
        Box::pin(std::future::ready(Ok(self.log.0.rules.lock().clone())))
    }

    fn compacted(&self, after: u64) -> BoxFuture<'_, Result<LogPage, BusError>> {
        const PAGE: usize = 3;
        Box::pin(async move {
            self.travel().await?;
            let state = self.log.0.state.lock();
            let later: Vec<_> = state.records.iter().filter(|(n, _)| *n > after).cloned().collect();
            Ok(LogPage {
                end: Position { epoch: state.epoch, number: state.last },
                horizon: state.horizon,
                more: later.len() > PAGE,
                records: later.into_iter().take(PAGE).collect(),
            })
        })
    }
}
