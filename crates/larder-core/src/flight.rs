//! Single flight: of many who miss the same key, one asks the origin.
//!
//! Who may take the answer is decided by two numbers: a request that arrived at `a` may take what a fill
//! that began at `f` brings without a further look if `a <= f`, since nothing it could know of came in
//! between. Any other waits for the end and takes it only if it passes as a hit would.
//!
//! A fill that takes too long is not the end of single flight. Once it is older than the waiters are patient, one
//! request starts another fill beside it, and all wait for both; at most [`MOST_AT_ONCE`] run for one key at a
//! time. So a thousand waiters of a slow origin become one more request each time their patience ends, never a
//! thousand.
//!
//! A fill whose loader waits for a second value holds up whoever waits for the first. Each wait from within a fill
//! is an edge of a graph, from the keys being filled to the key waited for. A wait that would close a circle is
//! refused, and its caller loads for itself.

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::select_all;
use hashbrown::{HashTable, hash_table};
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::{
    clock::Moment, entry::AnyEntry, fill_lock::HeldFillLock, key::Key, registry::Stamp,
    scope::Scope, sync::Mutex,
};

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum FlightResult {
    /// It brought an entry, which may have been kept or overtaken by an invalidation.
    Filled(AnyEntry),
    /// What it brought is for its own client alone, for this reason: each asks for itself.
    NotShared(&'static str),
    /// What it brought can neither be shared nor refused: another may try.
    Withdrawn,
    /// It brought nothing, by a panic or for want of a word: another may try.
    Abandoned,
    /// It brought an error, which those who waited may take when trying again has brought the same.
    Failed(Arc<dyn Any + Send + Sync>),
}

/// What those who wait are told.
#[derive(Clone)]
pub enum Progress {
    /// The answer has begun; those who came early enough may read along.
    Streaming(Arc<dyn Any + Send + Sync>),
    /// It is over.
    Done(FlightResult),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Streaming(_) => f.write_str("Streaming"),
            Self::Done(landing) => f.debug_tuple("Done").field(landing).finish(),
        }
    }
}

/// All flights of a larder.
#[derive(Debug)]
pub(crate) struct Flights {
    /// Each counted by itself: one counter for all would be a line of memory that every flight writes.
    shards: Box<[Arc<Shard>]>,
    /// Which fills wait for which keys.
    waits: Arc<Mutex<Edges>>,
}

type Shard = Mutex<HashTable<Arc<Flight>>>;

#[derive(Debug)]
struct Flight {
    key: Key,
    hash: u64,
    stamp: Stamp,
    began: Moment,
    /// Those for the same key that had taken too long when this one began, and may still land.
    older: Vec<Weak<Flight>>,
    /// Whether the leader still looks into the shared store, in the task of its caller: it goes on only while that is polled.
    is_looking: AtomicBool,
    /// Made when there is somebody to tell or something to be told: most flights have neither.
    progress: OnceLock<watch::Sender<Option<Progress>>>,
}

impl Flight {
    fn new(key: &Key, hash: u64, scope: &Scope, began: Moment, older: &[Arc<Self>]) -> Arc<Self> {
        let (key, stamp) = (key.clone(), scope.stamp());
        let older = older.iter().map(Arc::downgrade).collect();
        let is_looking = AtomicBool::new(false);
        Arc::new(Self { key, hash, stamp, began, older, is_looking, progress: OnceLock::new() })
    }

    fn progress(&self) -> &watch::Sender<Option<Progress>> {
        self.progress.get_or_init(|| watch::Sender::new(None))
    }

    /// This flight and the older ones that have not ended, the newest first. One that has ended is held by nothing.
    fn with_older(self: &Arc<Self>) -> SmallVec<[Arc<Self>; 1]> {
        let mut all = SmallVec::from_buf([Arc::clone(self)]);
        all.extend(self.older.iter().filter_map(Weak::upgrade).filter(|older| !older.is_over()));
        all
    }

    fn is_looking(&self) -> bool {
        self.is_looking.load(Ordering::Relaxed)
    }

    /// For how long this flight is joined rather than replaced.
    fn joins(&self, patience: Patience) -> Duration {
        let joins = patience.joins();
        if self.is_looking() { joins.min(LONGEST_LOOK) } else { joins }
    }

    fn is_over(&self) -> bool {
        let progress = self.progress.get();
        progress.is_some_and(|progress| matches!(*progress.borrow(), Some(Progress::Done(_))))
    }
}

/// How long a flight is joined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Its waiters start another one beside it after this time.
    pub(crate) wait: Duration,
    /// What it brings after this time is taken only as a hit would be: a log that others append to is seen with a
    /// delay, and an old fill may have missed more than is known here.
    pub(crate) trusted: Option<Duration>,
}

/// What became of asking for a place in a flight.
#[derive(Debug)]
pub enum FlightRole {
    /// None is under way, or the one that is takes too long: this request leads one.
    Leader(Leader),
    /// One is under way.
    Waiter(Waiter),
    /// Waiting would be waiting for oneself: the fill that asks is part of that flight, or holds it up.
    Alone,
    /// The fill that asks is part of that flight for the second time: loading again would never end. These are
    /// the names of the fills, the outermost first.
    Circle(Vec<String>),
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Arc::default()).collect(), waits: Arc::default() }
    }

    /// Leads a flight for the key, or waits for the one under way.
    pub(crate) fn join(
        &self,
        (hash, key): (u64, &Key),
        scope: &Scope,
        arrived: u64,
        now: Moment,
        patience: Patience,
    ) -> FlightRole {
        let fills = scope.fills();
        match fills.iter().filter(|fill| *fill == key).count() {
            0 => {}
            1 => return FlightRole::Alone,
            _ => {
                let names = fills.iter().rev().chain([key]);
                return FlightRole::Circle(names.map(Key::to_string).collect());
            }
        }
        let shard = self.shard(hash);
        let mut flights = shard.lock();
        let place = flights.entry(hash, |flight| flight.key == *key, |flight| flight.hash);
        let mut older: SmallVec<[Arc<Flight>; 1]> = SmallVec::new();
        if let hash_table::Entry::Occupied(current) = &place {
            let current = current.get();
            let all = current.with_older();
            let age = now.since(current.began);
            if age < current.joins(patience) || all.len() >= MOST_AT_ONCE {
                let waits = match WaitEdges::add(&self.waits, fills, key) {
                    Ok(waits) => waits,
                    Err(CircularWait) => return FlightRole::Alone,
                };
                // Under the lock: whoever ends the flight finds that somebody waits.
                return FlightRole::Waiter(Waiter::new(&all, arrived, now, patience, waits));
            }
            older = all;
        }
        // Those who come from now on follow the new one, and listen to the older ones too.
        let flight = Flight::new(key, hash, scope, now, &older);
        place.insert(Arc::clone(&flight));
        drop(flights);
        FlightRole::Leader(Leader { shard: Some(Arc::clone(shard)), flight, held: None })
    }

    /// Leads a flight that nobody joins.
    pub(crate) fn alone(&self, key: &Key, scope: &Scope, now: Moment) -> Leader {
        let flight = Flight::new(key, 0, scope, now, &[]);
        Leader { shard: None, flight, held: None }
    }

    fn shard(&self, hash: u64) -> &Arc<Shard> {
        // The table itself goes by the low bits and the topmost seven.
        &self.shards[(hash >> 48) as usize % SHARDS]
    }

    pub(crate) fn running(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// The place of whoever asks the origin. Dropping it lets all who wait try again.
#[derive(Debug)]
pub struct Leader {
    /// Where others find the flight; none for one that nobody joins, and once it has ended.
    shard: Option<Arc<Shard>>,
    flight: Arc<Flight>,
    /// The lease by which no other process fills the same.
    held: Option<HeldFillLock>,
}

impl Leader {
    pub(crate) fn key(&self) -> &Key {
        &self.flight.key
    }

    /// Whether nobody may join.
    pub(crate) fn is_alone(&self) -> bool {
        self.shard.is_none()
    }

    pub(crate) fn hold(&mut self, held: HeldFillLock) {
        self.held = Some(held);
    }

    /// The leader looks into the shared store in the task of its caller. Waiters do not depend on that being polled: one that
    /// has waited for 200 ms leads another flight beside this one.
    pub fn look(&self) {
        self.flight.is_looking.store(true, Ordering::Relaxed);
    }

    /// The leader has looked, and goes on in a task of its own.
    pub fn looked(&self) {
        self.flight.is_looking.store(false, Ordering::Relaxed);
    }

    /// Lets those who came early enough read along, from what is given here.
    pub fn begin(&self, along: Arc<dyn Any + Send + Sync>) {
        self.flight.progress().send_if_modified(|progress| {
            let first = progress.is_none();
            if first {
                *progress = Some(Progress::Streaming(along));
            }
            first
        });
    }

    /// Ends the flight.
    pub fn land(mut self, landing: FlightResult) {
        self.end(landing);
    }

    /// Takes the flight out of its place, unless another has taken it.
    fn leave(&mut self) {
        let Some(shard) = self.shard.take() else { return };
        let mut flights = shard.lock();
        let is_this = |other: &Arc<Flight>| Arc::ptr_eq(other, &self.flight);
        if let Ok(this) = flights.find_entry(self.flight.hash, is_this) {
            this.remove();
        }
    }

    fn end(&mut self, landing: FlightResult) {
        if let Some(held) = self.held.take() {
            held.give_back(&landing);
        }
        self.leave();
        // Nobody is there to be told, and nobody can come any more.
        let Some(progress) = self.flight.progress.get() else { return };
        progress.send_if_modified(|progress| {
            let flying = !matches!(progress, Some(Progress::Done(_)));
            if flying {
                *progress = Some(Progress::Done(landing));
            }
            flying
        });
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // A caller that goes while it looks has asked the origin for nothing.
        let is_looking = self.flight.is_looking();
        self.end(if is_looking { FlightResult::Withdrawn } else { FlightResult::Abandoned });
    }
}

impl Patience {
    /// For how long a flight is joined rather than replaced.
    fn joins(self) -> Duration {
        self.trusted.map_or(self.wait, |trusted| trusted.min(self.wait))
    }
}

/// The place of a waiter.
#[derive(Debug)]
pub struct Waiter {
    flights: SmallVec<[AwaitedFlight; 1]>,
    /// Whether the flight that was heard of last began after this request arrived.
    arrived_before_fill: bool,
    patience: Duration,
    _waits: Option<WaitEdges>,
}

#[derive(Debug)]
struct AwaitedFlight {
    progress: watch::Receiver<Option<Progress>>,
    arrived_before_fill: bool,
}

impl Waiter {
    fn new(
        flights: &[Arc<Flight>],
        arrived: u64,
        now: Moment,
        patience: Patience,
        waits: Option<WaitEdges>,
    ) -> Self {
        let awaited = |flight: &Arc<Flight>| {
            let age = now.since(flight.began);
            let is_trusted = patience.trusted.is_none_or(|trusted| age < trusted);
            let arrived_before_fill = is_trusted && arrived <= flight.stamp.local;
            AwaitedFlight { progress: flight.progress().subscribe(), arrived_before_fill }
        };
        let awaited: SmallVec<[AwaitedFlight; 1]> = flights.iter().map(awaited).collect();
        let left = flights[0].joins(patience).saturating_sub(now.since(flights[0].began));
        Self {
            arrived_before_fill: awaited[0].arrived_before_fill,
            flights: awaited,
            // With as many under way as may be, there is nothing to do but to look again now and then.
            patience: if left.is_zero() { patience.wait.max(LEAST_PATIENCE) } else { left },
            _waits: waits,
        }
    }

    /// How long to wait before asking for a place anew: by then the newest flight takes too long.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether nothing was invalidated between the start of the fill that was heard of and the arrival of this
    /// request: it may then take what the fill brings, even if an invalidation overtook it since.
    pub fn arrived_before_fill(&self) -> bool {
        self.arrived_before_fill
    }

    /// Waits for an answer to read along, where that is allowed, or for the end of a flight.
    pub async fn progress(&mut self) -> Progress {
        self.hear(|progress, early| match progress {
            Progress::Streaming(_) => early,
            Progress::Done(_) => true,
        })
        .await
    }

    /// Waits for the end of a flight.
    pub async fn landing(&mut self) -> FlightResult {
        match self.hear(|progress, _| matches!(progress, Progress::Done(_))).await {
            Progress::Done(landing) => landing,
            Progress::Streaming(_) => FlightResult::Abandoned,
        }
    }

    /// Waits for what one of the flights says.
    async fn hear(&mut self, is_meant: impl Fn(&Progress, bool) -> bool) -> Progress {
        let (at, progress) = match &mut self.flights[..] {
            [only] => (0, only.hear(&is_meant).await),
            several => {
                let all = several.iter_mut().map(|flight| Box::pin(flight.hear(&is_meant)));
                let (progress, at, _) = select_all(all).await;
                (at, progress)
            }
        };
        self.arrived_before_fill = self.flights[at].arrived_before_fill;
        progress
    }
}

impl AwaitedFlight {
    async fn hear(&mut self, is_meant: &impl Fn(&Progress, bool) -> bool) -> Progress {
        let early = self.arrived_before_fill;
        let told = self.progress.wait_for(|progress| {
            progress.as_ref().is_some_and(|progress| is_meant(progress, early))
        });
        let told = told.await.ok().and_then(|progress| progress.clone());
        // A sender that is gone without a result: the fill ended just before this waiter subscribed to it.
        told.unwrap_or(Progress::Done(FlightResult::Withdrawn))
    }
}

/// From a key that is being filled to the keys that its fill waits for, as often as it does.
type Edges = HashMap<Key, Vec<Key>>;

/// The edges of one wait. Gone with it.
#[derive(Debug)]
struct WaitEdges {
    edges: Arc<Mutex<Edges>>,
    from: Vec<Key>,
    to: Key,
}

/// The wait would close a circle.
struct CircularWait;

impl WaitEdges {
    /// Adds the wait of these fills for a key. Outside of fills there is nothing to add.
    fn add(
        edges: &Arc<Mutex<Edges>>,
        fills: Vec<Key>,
        key: &Key,
    ) -> Result<Option<Self>, CircularWait> {
        if fills.is_empty() {
            return Ok(None);
        }
        let mut all = edges.lock();
        if leads_to(&all, key, &fills) {
            return Err(CircularWait);
        }
        for fill in &fills {
            all.entry(fill.clone()).or_default().push(key.clone());
        }
        drop(all);
        Ok(Some(Self { edges: Arc::clone(edges), from: fills, to: key.clone() }))
    }
}

/// Whether a fill of `key` waits, itself or through others, for one of `fills`.
fn leads_to(edges: &Edges, key: &Key, fills: &[Key]) -> bool {
    let mut seen: HashSet<&Key> = HashSet::new();
    let mut next = vec![key];
    while let Some(key) = next.pop() {
        if fills.contains(key) {
            return true;
        }
        if seen.insert(key) {
            next.extend(edges.get(key).into_iter().flatten());
        }
    }
    false
}

impl Drop for WaitEdges {
    fn drop(&mut self) {
        let mut all = self.edges.lock();
        for fill in &self.from {
            let Some(waited_for) = all.get_mut(fill) else { continue };
            if let Some(at) = waited_for.iter().position(|key| *key == self.to) {
                waited_for.swap_remove(at);
            }
            if waited_for.is_empty() {
                all.remove(fill);
            }
        }
    }
}

/// How many fills of one key run at once, where each takes longer than its waiters are patient.
pub(crate) const MOST_AT_ONCE: usize = 4;
/// For how long a leader that looks into the shared store is taken for one that is polled: longer than the store may take.
const LONGEST_LOOK: Duration = Duration::from_millis(200);
/// A request that may not start a fill looks again no more often than this, however impatient it is.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
const SHARDS: usize = 64;
