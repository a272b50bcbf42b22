//! Single flight: if many requests miss the same key, one of them fills it.
//!
//! Two numbers decide which waiters may take the result. A request that arrived at invalidation number `a` takes the
//! result of a fill with stamp `f` without a further check if `a <= f`, because the stamp covers every invalidation
//! that was made before the request arrived. Any other waiter waits for the end of the fill, and takes the entry only
//! if it would be a hit.
//!
//! A slow fill does not end single flight. Once it is older than its waiters are willing to wait, one request leads
//! another fill in parallel, and all requests wait for both fills; at most [`MOST_AT_ONCE`] fills of one key run at a
//! time. So a thousand waiters for a slow origin cause only one more request each time their patience ends.
//!
//! If the loader of a fill waits for a second value, the waiters for the first value wait for it too. Each wait from
//! within a fill is an edge of a graph, from the keys being filled to the awaited key. A wait that would close a cycle
//! is refused, and its caller loads for itself.

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
    clock::Moment, entry::AnyEntry, key::Key, reason::Reason, registry::Stamp, scope::Scope,
    sync::Mutex,
};

/// The result of a fill.
#[derive(Clone, Debug)]
pub enum FlightResult {
    /// An entry. It may have been stored, or it may have been invalidated during the fill.
    Filled(AnyEntry),
    /// The value is not storable, for this reason. Only the leader's client gets the result, and each waiter fills for
    /// itself.
    NotShared(Reason),
    /// It is unknown whether the result may be shared, or the leader was dropped before it filled. Another request may
    /// lead.
    Withdrawn,
    /// The leader panicked or was dropped. Another request may lead.
    Abandoned,
    /// An error. A waiter returns it if its further attempts fail too.
    Failed(Arc<dyn Any + Send + Sync>),
}

/// A message of a leader to its waiters.
#[derive(Clone)]
pub enum Progress {
    /// The response has begun, and waiters that arrived early enough may read it while it streams.
    Streaming(Arc<dyn Any + Send + Sync>),
    /// The fill has ended.
    Done(FlightResult),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Streaming(_) => f.write_str("Streaming"),
            Self::Done(result) => f.debug_tuple("Done").field(result).finish(),
        }
    }
}

/// All fills of a larder that are in flight.
#[derive(Debug)]
pub(crate) struct Flights {
    /// Each shard counts its own fills, because every fill would write to the cache line of a shared counter.
    shards: Box<[Arc<Shard>]>,
    /// The keys that each fill waits for.
    waits: Arc<Mutex<Edges>>,
}

type Shard = Mutex<HashTable<Arc<Flight>>>;

#[derive(Debug)]
struct Flight {
    key: Key,
    hash: u64,
    stamp: Stamp,
    began: Moment,
    /// Older fills of the same key that had taken too long when this fill began, and that may still end.
    older: Vec<Weak<Flight>>,
    /// Whether the leader is reading the second level in the task of its caller. That read makes progress only while
    /// the task is polled.
    is_looking: AtomicBool,
    /// Created by the first waiter or the first message, because most fills have neither waiters nor messages.
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

    /// Returns this fill and the older fills that have not ended, the newest first. Only its leader holds an older
    /// fill, until it ends.
    fn with_older(self: &Arc<Self>) -> SmallVec<[Arc<Self>; 1]> {
        let mut all = SmallVec::from_buf([Arc::clone(self)]);
        all.extend(self.older.iter().filter_map(Weak::upgrade).filter(|older| !older.is_over()));
        all
    }

    fn is_looking(&self) -> bool {
        self.is_looking.load(Ordering::Relaxed)
    }

    /// Returns the age up to which requests join this fill instead of leading another fill.
    fn joins(&self, patience: Patience) -> Duration {
        let joins = patience.joins();
        if self.is_looking() { joins.min(LONGEST_LOOK) } else { joins }
    }

    fn is_over(&self) -> bool {
        let progress = self.progress.get();
        progress.is_some_and(|progress| matches!(*progress.borrow(), Some(Progress::Done(_))))
    }
}

/// How long requests wait for a fill, and how long they trust it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The age of a fill after which one of its waiters leads another fill in parallel.
    pub(crate) wait: Duration,
    /// The age of a fill after which new waiters take its entry only if it would be a hit. A process follows a shared
    /// log with a lag, so an old fill may have missed invalidations that this process does not know of yet. `None` with
    /// a local log.
    pub(crate) trusted: Option<Duration>,
}

/// The role of a request that asks to join a fill.
#[derive(Debug)]
pub enum FlightRole {
    /// No fill is in flight, or the newest fill takes too long, so this request leads a fill.
    Leader(Leader),
    /// A fill is in flight, and this request waits for it.
    Waiter(Waiter),
    /// Waiting would be a deadlock, because this request comes from within that fill, or from a fill that it waits for.
    Alone,
    /// This request comes from within that fill for the second time, so loading would never end. These are the names of
    /// the fills, the outermost first.
    Circle(Vec<String>),
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Arc::default()).collect(), waits: Arc::default() }
    }

    /// Makes the request the leader of a fill of the key, or a waiter for the fill in flight.
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
                // The waiter subscribes under the lock, so that the leader finds it when the fill ends.
                return FlightRole::Waiter(Waiter::new(&all, arrived, now, patience, waits));
            }
            older = all;
        }
        // Later requests join the new fill, and listen to the older fills too.
        let flight = Flight::new(key, hash, scope, now, &older);
        place.insert(Arc::clone(&flight));
        drop(flights);
        FlightRole::Leader(Leader { shard: Some(Arc::clone(shard)), flight, lock: None })
    }

    /// Leads a fill that no request joins.
    pub(crate) fn alone(&self, key: &Key, scope: &Scope, now: Moment) -> Leader {
        let flight = Flight::new(key, 0, scope, now, &[]);
        Leader { shard: None, flight, lock: None }
    }

    fn shard(&self, hash: u64) -> &Arc<Shard> {
        // The table itself uses the low bits and the seven highest bits.
        &self.shards[(hash >> 48) as usize % SHARDS]
    }

    pub(crate) fn running(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// A lock that a leader holds until its fill ends.
pub(crate) trait ReleaseAtEnd: fmt::Debug + Send + Sync {
    /// Releases the lock. The leader calls this once, with the result of the fill.
    fn release(self: Box<Self>, result: &FlightResult);
}

/// The handle of the request that runs a fill. If it is dropped, the waiters try again.
#[derive(Debug)]
pub struct Leader {
    /// The shard in which requests find the fill. `None` for a fill that no request can join, and after the fill has
    /// ended.
    shard: Option<Arc<Shard>>,
    flight: Arc<Flight>,
    /// The fill lock that stops other processes from filling the key.
    lock: Option<Box<dyn ReleaseAtEnd>>,
}

impl Leader {
    pub(crate) fn key(&self) -> &Key {
        &self.flight.key
    }

    /// Whether no request can join this fill.
    pub(crate) fn is_alone(&self) -> bool {
        self.shard.is_none()
    }

    pub(crate) fn hold(&mut self, lock: impl ReleaseAtEnd + 'static) {
        self.lock = Some(Box::new(lock));
    }

    /// Notes that the leader reads the second level, in the task of its caller. Waiters do not depend on that task
    /// being polled, because one of them leads another fill in parallel once this fill is 200 ms old.
    pub fn look(&self) {
        self.flight.is_looking.store(true, Ordering::Relaxed);
    }

    /// Notes that the leader has read the second level, and continues in a task of its own.
    pub fn looked(&self) {
        self.flight.is_looking.store(false, Ordering::Relaxed);
    }

    /// Lets the waiters that arrived early enough read the response from `along` while it streams.
    pub fn begin(&self, along: Arc<dyn Any + Send + Sync>) {
        self.flight.progress().send_if_modified(|progress| {
            let first = progress.is_none();
            if first {
                *progress = Some(Progress::Streaming(along));
            }
            first
        });
    }

    /// Ends the fill with this result.
    pub fn finish(mut self, result: FlightResult) {
        self.end(result);
    }

    /// Removes the fill from its shard, unless a newer fill has replaced it there.
    fn leave(&mut self) {
        let Some(shard) = self.shard.take() else { return };
        let mut flights = shard.lock();
        let is_this = |other: &Arc<Flight>| Arc::ptr_eq(other, &self.flight);
        if let Ok(this) = flights.find_entry(self.flight.hash, is_this) {
            this.remove();
        }
    }

    fn end(&mut self, result: FlightResult) {
        if let Some(lock) = self.lock.take() {
            lock.release(&result);
        }
        self.leave();
        // No request waits for this fill.
        let Some(progress) = self.flight.progress.get() else { return };
        progress.send_if_modified(|progress| {
            let flying = !matches!(progress, Some(Progress::Done(_)));
            if flying {
                *progress = Some(Progress::Done(result));
            }
            flying
        });
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // A leader that is dropped while it reads the second level has not sent a request to the origin.
        let is_looking = self.flight.is_looking();
        self.end(if is_looking { FlightResult::Withdrawn } else { FlightResult::Abandoned });
    }
}

impl Patience {
    /// Returns the age up to which requests join a fill instead of leading another fill.
    fn joins(self) -> Duration {
        self.trusted.map_or(self.wait, |trusted| trusted.min(self.wait))
    }
}

/// The handle of a request that waits for a fill.
#[derive(Debug)]
pub struct Waiter {
    flights: SmallVec<[AwaitedFlight; 1]>,
    /// Whether there was no invalidation between the start of the fill that sent the last message and the arrival of
    /// this request.
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
            // At the limit of fills for one key this request cannot lead, so it checks again from time to time.
            patience: if left.is_zero() { patience.wait.max(LEAST_PATIENCE) } else { left },
            _waits: waits,
        }
    }

    /// Returns how long to wait before joining again. By then the newest fill has taken too long.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Returns whether nothing was invalidated between the start of the fill that sent the last message and the arrival
    /// of this request, and whether the fill was young enough to be trusted. The request may then take the entry, even
    /// if it has been invalidated since then.
    pub fn arrived_before_fill(&self) -> bool {
        self.arrived_before_fill
    }

    /// Waits for a response that this request may read while it streams, or for the end of a fill.
    pub async fn progress(&mut self) -> Progress {
        self.hear(|progress, early| match progress {
            Progress::Streaming(_) => early,
            Progress::Done(_) => true,
        })
        .await
    }

    /// Waits for the end of a fill.
    pub async fn result(&mut self) -> FlightResult {
        match self.hear(|progress, _| matches!(progress, Progress::Done(_))).await {
            Progress::Done(result) => result,
            Progress::Streaming(_) => FlightResult::Abandoned,
        }
    }

    /// Waits for a message from any of the fills that `is_meant` accepts.
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
        let progress = self.progress.wait_for(|progress| {
            progress.as_ref().is_some_and(|progress| is_meant(progress, early))
        });
        let progress = progress.await.ok().and_then(|progress| progress.clone());
        // If the sender is gone without a result, the fill ended just before this waiter subscribed to it.
        progress.unwrap_or(Progress::Done(FlightResult::Withdrawn))
    }
}

/// For each key being filled, the keys that its fill waits for, with one element for each wait.
type Edges = HashMap<Key, Vec<Key>>;

/// The edges of one wait, which are removed when this is dropped.
#[derive(Debug)]
struct WaitEdges {
    edges: Arc<Mutex<Edges>>,
    from: Vec<Key>,
    to: Key,
}

/// The wait would close a cycle.
struct CircularWait;

impl WaitEdges {
    /// Adds the wait of these fills for a key. `None` outside of fills, because there are no edges to add.
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

/// Whether a fill of `key` waits for one of `fills`, directly or through other fills.
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

/// How many fills of one key run concurrently, if each takes longer than its waiters wait.
pub(crate) const MOST_AT_ONCE: usize = 4;
/// The age up to which larder assumes that a leader that reads the second level is polled. It is longer than a store
/// may take by default (50 ms per read, 60 ms per request).
const LONGEST_LOOK: Duration = Duration::from_millis(200);
/// The minimum time after which a request that cannot lead checks again, even if its patience is shorter.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
const SHARDS: usize = 64;
