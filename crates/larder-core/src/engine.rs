//! The engine that all handles of one larder share: its levels, log, fills and background work.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::FutureExt as _;
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, watch},
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

use crate::{
    budget::ByteBudget,
    bus::{Bus, Epoch, Position, Record, WriterId},
    clock::{Clock, Moment, jittered},
    entry::AnyEntry,
    events::EventHandlers,
    flight::Flights,
    invalidation_feed::{FEED_LENGTH, FeedMessage},
    invalidation_history::InvalidationHistory,
    lifetime::Phase,
    log_follower,
    memory::Memory,
    metrics::{LogStats, Observer, publish::Publisher},
    refresh::Refreshes,
    registry::{Registry, StartedInvalidation, Verdict, recent_records::OwnRecord, writer::Ticket},
    reports::Reports,
    rules::Rules,
    running_tasks::RunningTasks,
    second_level::SecondLevel,
    settings::Settings,
    spans,
    states::States,
    store::FillLocks,
    target::Invalidated,
    unscoped::UnscopedLoads,
};

/// The shared state of a [`Larder`](crate::Larder).
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) origin: WriterId,
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) memory: Memory,
    pub(crate) shared: Option<Arc<SecondLevel>>,
    pub(crate) fill_locks: Option<Arc<dyn FillLocks>>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) flights: Flights,
    pub(crate) unscoped: UnscopedLoads,
    pub(crate) settings: Settings,
    pub(crate) observer: Observer,
    pub(crate) reports: Reports,
    pub(crate) states: States,
    pub(crate) history: InvalidationHistory,
    pub(crate) fill_bytes: Arc<ByteBudget>,
    pub(crate) refreshes: Refreshes,
    pub(crate) events: EventHandlers,
    pub(crate) tasks: TaskTracker,
    pub(crate) rules: Rules,
    pub(crate) version: String,
    pub(crate) max_lifetime: Duration,
    pub(crate) max_tags: usize,
    pub(crate) max_lag: Duration,
    /// Whether other processes append to the log too.
    pub(crate) follows_others: bool,
    /// Sends the invalidations that acted in this process to the application.
    pub(crate) feed: broadcast::Sender<FeedMessage>,
    /// Notified whenever this process has applied more of the log, or has appended a record of a committed transaction.
    pub(crate) advanced: Notify,
    pub(crate) running: RunningTasks,
    pub(crate) publisher: Publisher,
    /// The interval at which metrics are published, if they are.
    pub(crate) publish_every: Option<Duration>,
    pub(crate) synced: watch::Sender<bool>,
    pub(crate) proof: log_follower::Proof,
    /// The furthest log position that this process has ever applied.
    pub(crate) seen: parking_lot::Mutex<Option<Position>>,
    /// The furthest position at which the log accepted a record of this process.
    pub(crate) written: parking_lot::Mutex<Option<Position>>,
    /// An epoch in which the log is known to have lost records.
    pub(crate) lost: parking_lot::Mutex<Option<Epoch>>,
    sending: AtomicBool,
    /// The pending invalidations that the tasks that started them are appending.
    carried: parking_lot::Mutex<HashSet<Ticket>>,
    /// The smallest bound of [`Consistency::Bounded`](crate::Consistency::Bounded) used so far, in nanoseconds.
    smallest_bound: AtomicU64,
}

/// Returns the state of an entry, according to the log and its lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// It may be served.
    Fresh,
    /// It may be served while one refresh runs.
    WhileRevalidating,
    /// It may be served if a fill fails.
    OnError,
    /// It may be served after its origin has confirmed it.
    ToRevalidate,
    /// It was invalidated and may not be served.
    Invalid,
    /// Its lifetime, stale windows included, is over.
    Expired,
}

impl EntryState {
    /// All states.
    pub const ALL: &[Self] = &[
        Self::Fresh,
        Self::WhileRevalidating,
        Self::OnError,
        Self::ToRevalidate,
        Self::Invalid,
        Self::Expired,
    ];

    /// Whether there is a request that the entry may answer.
    pub const fn may_be_served(self) -> bool {
        !matches!(self, Self::Invalid | Self::Expired)
    }

    /// Returns the word of the state.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::WhileRevalidating => "stale-while-revalidate",
            Self::OnError => "stale-if-error",
            Self::ToRevalidate => "to-revalidate",
            Self::Invalid => "invalidated",
            Self::Expired => "expired",
        }
    }

    /// Returns the sentence that explains the state.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Fresh => "It is fresh, and is served.",
            Self::WhileRevalidating => "It is stale, and is served while one refresh runs.",
            Self::OnError => "It is stale, and is served only if a fill fails.",
            Self::ToRevalidate => "It is stale, and is served once its origin has confirmed it.",
            Self::Invalid => "An invalidation has reached it, so it is not served.",
            Self::Expired => "Its lifetime, stale windows included, is over.",
        }
    }
}

/// The parts that the builder hands to the engine.
#[derive(Debug)]
pub(crate) struct EngineParts {
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) memory: Memory,
    pub(crate) shared: Option<Arc<SecondLevel>>,
    pub(crate) fill_locks: Option<Arc<dyn FillLocks>>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) rules: Rules,
    pub(crate) version: String,
    pub(crate) max_lifetime: Duration,
    pub(crate) max_tags: usize,
    pub(crate) max_lag: Duration,
    pub(crate) fill_bytes: usize,
    pub(crate) refreshes: usize,
    pub(crate) reports: Reports,
    pub(crate) publish_every: Option<Duration>,
}

impl Engine {
    pub(crate) fn new(assembly: EngineParts) -> Self {
        let engine = Self {
            origin: WriterId::random(),
            bus: Arc::clone(&assembly.bus),
            clock: assembly.clock,
            registry: assembly.registry,
            memory: assembly.memory,
            shared: assembly.shared,
            fill_locks: assembly.fill_locks,
            flights: Flights::new(),
            unscoped: UnscopedLoads::default(),
            settings: Settings::default(),
            observer: Observer::default(),
            reports: assembly.reports,
            states: States::default(),
            history: InvalidationHistory::default(),
            fill_bytes: ByteBudget::new(assembly.fill_bytes),
            refreshes: Refreshes::new(assembly.refreshes),
            events: EventHandlers::default(),
            tasks: TaskTracker::new(),
            rules: assembly.rules,
            version: assembly.version,
            max_lifetime: assembly.max_lifetime,
            max_tags: assembly.max_tags,
            max_lag: assembly.max_lag,
            // A local log does not need a follower.
            follows_others: assembly.bus.is_shared(),
            running: RunningTasks::new(assembly.bus.is_shared(), assembly.publish_every.is_some()),
            publisher: Publisher::default(),
            publish_every: assembly.publish_every,
            advanced: Notify::new(),
            feed: broadcast::Sender::new(FEED_LENGTH),
            synced: watch::Sender::new(false),
            proof: log_follower::Proof::default(),
            seen: parking_lot::Mutex::default(),
            written: parking_lot::Mutex::default(),
            lost: parking_lot::Mutex::default(),
            sending: AtomicBool::new(false),
            carried: parking_lot::Mutex::default(),
            smallest_bound: AtomicU64::new(u64::MAX),
        };
        engine.open_local_log();
        engine
    }

    /// Opens the view of a local log, which is complete at once because no other process appends to it.
    fn open_local_log(&self) {
        if self.bus.is_shared() {
            return;
        }
        if let Some(Ok(page)) = self.bus.compacted(0).now_or_never() {
            self.registry.open_view(page.end, page.horizon, &page.records, self.clock.now());
            self.synced.send_replace(true);
        }
    }

    /// Applies all invalidations that are due, and returns the current moment.
    #[inline]
    pub(crate) fn tick(self: &Arc<Self>) -> Moment {
        let now = self.clock.now();
        if self.registry.is_due(now) {
            for record in self.registry.run_due(now) {
                self.tell_of_own(&record);
                self.observer.acted_when_due(record.what.len());
            }
            self.send_unsent();
        }
        now
    }

    /// Sends an invalidation of this process to the feeds, if the log is local. From a shared log the follower reads
    /// the record back in order, and sends it then.
    fn tell_of_own(&self, record: &Record) {
        self.note_past(record);
        if !self.follows_others && self.feed.receiver_count() > 0 {
            drop(self.feed.send(FeedMessage { record: record.clone(), missed: false }));
        }
    }

    /// Adds an invalidation that acts now to the memory for operators.
    pub(crate) fn note_past(&self, record: &Record) {
        self.memory.traffic.invalidated(record);
        self.history.add(record, self.origin, self.clock.wall(self.clock.now()));
    }

    /// Returns the time since larder last verified that this process had applied every invalidation.
    pub(crate) fn lag(&self) -> Duration {
        match self.follows_others {
            true => self.clock.now().since(self.proof.at()),
            false => Duration::ZERO,
        }
    }

    /// Notes the bound of a request, so that from now on larder verifies the lag often enough for this bound.
    pub(crate) fn note_bound(&self, bound: Duration) {
        // A smaller bound cannot be verified, so requesting the end of the log more often would not help.
        let bound = bound.max(3 * SHORTEST_STEP);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        if nanos < self.smallest_bound.load(Ordering::Relaxed) {
            self.smallest_bound.fetch_min(nanos, Ordering::Relaxed);
        }
    }

    /// Returns the interval between two checks of the lag: a third of `max_lag` or of the smallest bound, at least 10
    /// ms.
    pub(crate) fn step(&self) -> Duration {
        let bound = Duration::from_nanos(self.smallest_bound.load(Ordering::Relaxed));
        (self.max_lag.min(bound) / 3).max(SHORTEST_STEP)
    }

    pub(crate) fn log_stats(&self) -> LogStats {
        let applied = self.registry.applied();
        let lag = self.lag();
        LogStats {
            shared: self.follows_others,
            epoch: applied.map(|at| at.epoch),
            applied: applied.map_or(0, |at| at.number),
            lag,
            synchronised: applied.is_some() && lag <= self.max_lag,
        }
    }

    /// Returns the time at `moment` on which all processes that share a store agree: the time of the log's server, or
    /// this process's wall time if the log has no server.
    pub(crate) fn shared_time(&self, moment: Moment) -> SystemTime {
        match self.bus.server_time() {
            Some(known) => self.clock.elsewhere(moment, known),
            None => self.clock.wall(moment),
        }
    }

    /// Returns the state of an entry, according to the log and its lifetime.
    #[inline]
    pub(crate) fn entry_state(&self, entry: &AnyEntry, now: Moment) -> EntryState {
        match self.registry.reach(&entry.marks, || (entry.key(), entry.tags())) {
            Verdict::Valid => by_time(entry.phase(now)),
            Verdict::Stale => as_stale(entry, now),
            Verdict::Invalid => EntryState::Invalid,
        }
    }

    /// Stores an entry in the first level, if its placement includes that and no newer usable entry is there. Returns
    /// `false` only if the entry was invalidated in the meantime.
    pub(crate) fn store_in_memory(&self, entry: &AnyEntry, now: Moment) -> bool {
        if self.entry_state(entry, now) == EntryState::Invalid {
            return false;
        }
        if entry.tiers().in_memory().is_none() {
            return true;
        }
        let is_fresh = self.entry_state(entry, now) == EntryState::Fresh;
        let is_newer = |there: &AnyEntry| {
            let filled = |entry: &AnyEntry| (entry.stamp().local, entry.ends().filled());
            filled(there) > filled(entry) && self.is_as_usable(there, is_fresh, now)
        };
        // If the present entry stayed, it is newer, and requests can use it as well.
        drop(self.memory.put(entry, is_newer));
        true
    }

    /// Promotes an entry of the second level into the first, unless the first has a usable entry that was filled no
    /// earlier. The stamp of a promotion is that of the read, so it does not tell which fill is newer.
    pub(crate) fn promote(&self, entry: &AnyEntry, now: Moment) -> bool {
        if self.entry_state(entry, now) == EntryState::Invalid {
            return false;
        }
        if entry.tiers().in_memory().is_some() {
            let is_fresh = self.entry_state(entry, now) == EntryState::Fresh;
            let is_newer = |there: &AnyEntry| {
                there.ends().filled().after(SAME_FILL) >= entry.ends().filled()
                    && self.is_as_usable(there, is_fresh, now)
            };
            drop(self.memory.put(entry, is_newer));
        }
        true
    }

    /// Whether a present entry may be served in place of an entry that is fresh or not.
    fn is_as_usable(&self, there: &AnyEntry, is_fresh: bool, now: Moment) -> bool {
        match self.entry_state(there, now) {
            EntryState::Fresh => true,
            EntryState::Invalid | EntryState::Expired => false,
            // A stale entry never displaces a fresh one.
            _ => !is_fresh,
        }
    }

    /// Stores a filled entry in its levels. Returns `false` if it was invalidated in the meantime.
    pub(crate) fn store(self: &Arc<Self>, entry: &AnyEntry) -> bool {
        let kept = self.store_in_memory(entry, self.clock.now());
        if let (true, Some(shared)) = (kept, &self.shared) {
            shared.write_behind(self, entry);
        }
        kept
    }

    /// Runs steps 1 to 3 of an invalidation: apply it here, append it to the log, settle it. Once the future was
    /// polled, dropping it does not stop the invalidation.
    pub(crate) async fn invalidate(self: &Arc<Self>, record: Record) -> Invalidated {
        self.invalidate_at(record).await.map_or(Invalidated::Queued, |_| Invalidated::Logged)
    }

    /// Invalidates as [`invalidate`](Self::invalidate) does, and returns where the log has the record. `None` if the
    /// invalidation is queued.
    pub(crate) async fn invalidate_at(self: &Arc<Self>, record: Record) -> Option<LoggedRecord> {
        let span = spans::invalidation(record.what.len(), record.mode);
        let mut carried = Box::pin(Arc::clone(self).carry(self.begin(record)).instrument(span));
        match futures_util::poll!(&mut carried) {
            std::task::Poll::Ready(outcome) => outcome,
            std::task::Poll::Pending => self.tasks.spawn(carried).await.unwrap_or(None),
        }
    }

    /// Invalidates without a wait: the record acts in this process at once, and a task appends it.
    pub(crate) fn invalidate_in_background(self: &Arc<Self>, record: Record) {
        let begun = self.begin(record);
        if Handle::try_current().is_ok() {
            let span = spans::invalidation(begun.record.what.len(), begun.record.mode);
            drop(self.tasks.spawn(Arc::clone(self).carry(begun).instrument(span)));
        } else {
            // The record is pending, and the next task of this larder appends it.
            self.send_unsent();
        }
    }

    /// Runs step 1 of an invalidation: applies it in this process.
    fn begin(&self, record: Record) -> StartedInvalidation {
        let begun = self.registry.begin(record, self.clock.now());
        self.tell_of_own(&begun.record);
        begun
    }

    /// Schedules an invalidation, in this process and in the log.
    pub(crate) async fn schedule(&self, due: Moment, record: Record) -> Invalidated {
        let id = self.registry.schedule(due, record.clone());
        match self.register(id, due, &record).await {
            true => Invalidated::Scheduled,
            false => Invalidated::Queued,
        }
    }

    /// Hands scheduled invalidations to the log, which appends them when they are due even if this process has ended.
    pub(crate) async fn register_scheduled(&self) {
        for (id, due, record) in self.registry.unregistered() {
            if !self.register(id, due, &record).await {
                return;
            }
        }
    }

    async fn register(&self, id: u64, due: Moment, record: &Record) -> bool {
        let after = due.since(self.clock.now());
        match self.bus.schedule(id, record, after).await {
            Ok(at) => {
                self.registry.note_registered(id, at.epoch);
                true
            }
            Err(error) => {
                tracing::debug!(target: "larder", %error, "the log has not accepted a scheduled invalidation yet");
                false
            }
        }
    }

    async fn carry(self: Arc<Self>, begun: StartedInvalidation) -> Option<LoggedRecord> {
        if begun.collapsed {
            tracing::error!(
                target: "larder",
                "too many invalidations wait for the log, so an invalidation of all entries has replaced them. \
                 Check that the log is reachable."
            );
        }
        let appended = {
            let _carried = CarryGuard::new(&self, begun.ticket);
            self.append(begun.ticket, &begun.record).await
        };
        let logged = match appended {
            AppendOutcome::Confirmed(at) => {
                Some(LoggedRecord { ticket: begun.ticket, at, collapsed: begun.collapsed })
            }
            AppendOutcome::Unconfirmed => None,
            AppendOutcome::Not => {
                self.send_unsent();
                None
            }
        };
        let outcome = if logged.is_some() { Invalidated::Logged } else { Invalidated::Queued };
        Span::current().record("larder.outcome", tracing::field::display(outcome));
        // The task counts the invalidation, since the caller may have dropped its future.
        self.observer.invalidated(outcome, begun.record.what.len());
        logged
    }

    async fn append(&self, ticket: Ticket, record: &Record) -> AppendOutcome {
        let before = self.registry.applied();
        let (at, appended) = match self.bus.append(record).await {
            Ok(at) => (at, AppendOutcome::Confirmed(at)),
            Err(error) => {
                tracing::debug!(target: "larder", %error, "the log did not confirm an invalidation; it acts locally");
                match error.appended_at() {
                    // The record is in the log; if its server is lost, larder appends the retained record again.
                    Some(at) => (at, AppendOutcome::Unconfirmed),
                    None => return AppendOutcome::Not,
                }
            }
        };
        if before.is_some_and(|before| is_given_again(at, before)) {
            // The log has lost its last records. This record stays pending until the log has another epoch.
            *self.lost.lock() = Some(at.epoch);
            return AppendOutcome::Not;
        }
        if !self.registry.settle(ticket, record, at, self.clock.now()) {
            return AppendOutcome::Not;
        }
        match self.follows_others {
            true => self.note_written(at),
            false => self.registry.advance_local(at),
        }
        if record.commit.is_some() {
            self.advanced.notify_waiters();
        }
        appended
    }

    fn note_written(&self, at: Position) {
        let mut written = self.written.lock();
        if written.is_none_or(|written| written.epoch != at.epoch || written.number < at.number) {
            *written = Some(at);
        }
    }

    /// Returns the pending invalidations that no task is appending, because their task failed or ended with its
    /// runtime.
    fn left_behind(&self) -> Vec<(Ticket, Record)> {
        let mut unsent = self.registry.unsent();
        let carried = self.carried.lock();
        unsent.retain(|(ticket, _)| !carried.contains(ticket));
        unsent
    }

    /// Whether there is a pending invalidation that no task is appending.
    pub(crate) fn has_left_behind(&self) -> bool {
        let carried = self.carried.lock();
        self.registry.has_unsent_but(|ticket| carried.contains(&ticket))
    }

    /// Appends the pending invalidations in the background, and retries until the log has all of them.
    pub(crate) fn send_unsent(self: &Arc<Self>) {
        if !self.bus.is_shared() {
            // A local log accepts records at once.
            self.send_all().now_or_never();
            return;
        }
        if Handle::try_current().is_err() || self.sending.swap(true, Ordering::AcqRel) {
            return;
        }
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            let sending = SendGuard(&engine);
            let mut pause = FIRST_PAUSE;
            while !engine.send_all().await {
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            drop(sending);
            if engine.has_left_behind() {
                engine.send_unsent();
            }
        });
    }

    async fn send_all(&self) -> bool {
        for (ticket, record) in self.left_behind() {
            if self.append(ticket, &record).await == AppendOutcome::Not {
                return false;
            }
        }
        true
    }
}

/// The outcome of an append.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AppendOutcome {
    Confirmed(Position),
    /// The record is in the log, but may be lost with its server.
    Unconfirmed,
    Not,
}

/// An invalidation of this process that the log has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoggedRecord {
    pub(crate) ticket: Ticket,
    pub(crate) at: Position,
    /// Whether the record is one of everything, because too many invalidations were pending.
    pub(crate) collapsed: bool,
}

impl LoggedRecord {
    pub(crate) fn own(self) -> OwnRecord {
        OwnRecord { ticket: self.ticket, number: self.at.number }
    }
}

/// Whether the log gave a record a number that this process had applied before, which means that the log has lost
/// records.
fn is_given_again(at: Position, before: Position) -> bool {
    at.epoch == before.epoch && at.number <= before.number
}

/// Marks an invalidation as being appended, until the append ends or its future is dropped.
struct CarryGuard<'a>(&'a Engine, Ticket);

impl<'a> CarryGuard<'a> {
    fn new(engine: &'a Engine, ticket: Ticket) -> Self {
        engine.carried.lock().insert(ticket);
        Self(engine, ticket)
    }
}

impl Drop for CarryGuard<'_> {
    fn drop(&mut self) {
        self.0.carried.lock().remove(&self.1);
    }
}

/// Clears `sending` when dropped, even if the sending task ends early.
struct SendGuard<'a>(&'a Engine);

impl Drop for SendGuard<'_> {
    fn drop(&mut self) {
        self.0.sending.store(false, Ordering::Release);
    }
}

fn by_time(phase: Phase) -> EntryState {
    match phase {
        Phase::Fresh => EntryState::Fresh,
        Phase::WhileRevalidating => EntryState::WhileRevalidating,
        Phase::OnError => EntryState::OnError,
        Phase::ToRevalidate => EntryState::ToRevalidate,
        Phase::Gone => EntryState::Expired,
    }
}

/// Returns the state of an entry after a soft invalidation. It is stale from then on, so it may be used as its windows
/// allow; without an open window it is invalid.
fn as_stale(entry: &AnyEntry, now: Moment) -> EntryState {
    let ends = entry.ends();
    if now >= ends.leaves || entry.is_idle(now) {
        return EntryState::Expired;
    }
    if ends.revalidate > ends.fresh && now < ends.revalidate {
        EntryState::WhileRevalidating
    } else if ends.on_error > ends.fresh && now < ends.on_error {
        EntryState::OnError
    } else if ends.held > ends.fresh && now < ends.held {
        EntryState::ToRevalidate
    } else {
        EntryState::Invalid
    }
}

/// Two readings of the time of one fill, in two processes, differ by less than this.
pub(crate) const SAME_FILL: Duration = Duration::from_millis(10);
/// The minimum interval between two requests for the end of the log, even if a bound is smaller.
const SHORTEST_STEP: Duration = Duration::from_millis(10);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
