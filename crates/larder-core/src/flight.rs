//! Single flight: of many who miss the same key, one asks the origin.
//!
//! Who may take the answer is decided by two numbers: a request that arrived at `a` may take what a fill
//! that began at `f` brings without a further look if `a <= f`, since nothing it could know of came in
//! between. Any other waits for the end and takes it only if it passes as a hit would.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hashbrown::{HashTable, hash_table};
use tokio::sync::watch;

use crate::{
    clock::Moment, entry::AnyEntry, key::Key, lease::Held, registry::Stamp, scope::Scope,
    sync::Mutex,
};

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum Landing {
    /// It brought an entry, which may have been kept or overtaken by an invalidation.
    Landed(AnyEntry),
    /// What it brought is for its own client alone, for this reason: each asks for itself.
    Unshared(&'static str),
    /// It brought nothing, by a panic or for want of a word: another may try.
    Failed,
    /// It brought an error, which those who waited may take when trying again has brought the same.
    FailedWith(Arc<dyn Any + Send + Sync>),
}

/// What those who wait are told.
#[derive(Clone)]
pub enum Progress {
    /// The answer has begun; those who came early enough may read along.
    Begun(Arc<dyn Any + Send + Sync>),
    /// It is over.
    Over(Landing),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun(_) => f.write_str("Begun"),
            Self::Over(landing) => f.debug_tuple("Over").field(landing).finish(),
        }
    }
}

/// All flights of a larder.
#[derive(Debug)]
pub(crate) struct Flights {
    /// Each counted by itself: one counter for all would be a line of memory that every flight writes.
    shards: Box<[Arc<Shard>]>,
}

type Shard = Mutex<HashTable<Arc<Flight>>>;

#[derive(Debug)]
struct Flight {
    key: Key,
    hash: u64,
    stamp: Stamp,
    began: Moment,
    /// Made when there is somebody to tell or something to be told: most flights have neither.
    progress: OnceLock<watch::Sender<Option<Progress>>>,
}

impl Flight {
    fn new(key: &Key, hash: u64, scope: &Scope, began: Moment) -> Arc<Self> {
        let (key, stamp) = (key.clone(), scope.stamp());
        Arc::new(Self { key, hash, stamp, began, progress: OnceLock::new() })
    }

    fn progress(&self) -> &watch::Sender<Option<Progress>> {
        self.progress.get_or_init(|| watch::Sender::new(None))
    }
}

/// What became of asking for a place in a flight.
#[derive(Debug)]
pub enum Joined {
    /// Nobody flies: this one does.
    Lead(Lead),
    /// Somebody does.
    Wait(Wait),
    /// Waiting would be waiting for oneself: the fill that asks is part of that flight.
    Alone,
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Arc::default()).collect() }
    }

    /// Leads a flight for the key, or waits for the one under way.
    ///
    /// `oldest` is the earliest moment at which a flight may have begun to be joined.
    pub(crate) fn join(
        &self,
        (hash, key): (u64, &Key),
        scope: &Scope,
        arrived: u64,
        now: Moment,
        oldest: Option<Duration>,
    ) -> Joined {
        if scope.is_part_of(key) {
            return Joined::Alone;
        }
        let shard = self.shard(hash);
        let mut flights = shard.lock();
        let place = flights.entry(hash, |flight| flight.key == *key, |flight| flight.hash);
        let flight = match place {
            hash_table::Entry::Occupied(flight)
                if oldest.is_none_or(|oldest| now.since(flight.get().began) < oldest) =>
            {
                // Under the lock: whoever ends the flight finds that somebody waits.
                return Joined::Wait(Wait::new(flight.get(), arrived));
            }
            // One that is there is too old to be joined: those who come from now on follow the new one.
            place => {
                let flight = Flight::new(key, hash, scope, now);
                place.insert(Arc::clone(&flight));
                flight
            }
        };
        drop(flights);
        Joined::Lead(Lead { shard: Some(Arc::clone(shard)), flight, held: None })
    }

    /// Leads a flight that nobody joins.
    pub(crate) fn alone(&self, key: &Key, scope: &Scope, now: Moment) -> Lead {
        let flight = Flight::new(key, 0, scope, now);
        Lead { shard: None, flight, held: None }
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
pub struct Lead {
    /// Where others find the flight; none for one that nobody joins, and once it has ended.
    shard: Option<Arc<Shard>>,
    flight: Arc<Flight>,
    /// The lease by which no other process fills the same.
    held: Option<Held>,
}

impl Lead {
    pub(crate) fn key(&self) -> &Key {
        &self.flight.key
    }

    /// Whether nobody may join.
    pub(crate) fn is_alone(&self) -> bool {
        self.shard.is_none()
    }

    pub(crate) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// Lets those who came early enough read along, from what is given here.
    pub fn begin(&self, along: Arc<dyn Any + Send + Sync>) {
        self.flight.progress().send_if_modified(|progress| {
            let first = progress.is_none();
            if first {
                *progress = Some(Progress::Begun(along));
            }
            first
        });
    }

    /// Ends the flight.
    pub fn land(mut self, landing: Landing) {
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

    fn end(&mut self, landing: Landing) {
        if let Some(held) = self.held.take() {
            held.give_back(&landing);
        }
        self.leave();
        // Nobody is there to be told, and nobody can come any more.
        let Some(progress) = self.flight.progress.get() else { return };
        progress.send_if_modified(|progress| {
            let flying = !matches!(progress, Some(Progress::Over(_)));
            if flying {
                *progress = Some(Progress::Over(landing));
            }
            flying
        });
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.end(Landing::Failed);
    }
}

/// The place of somebody who waits.
#[derive(Debug)]
pub struct Wait {
    progress: watch::Receiver<Option<Progress>>,
    came_early: bool,
}

impl Wait {
    fn new(flight: &Arc<Flight>, arrived: u64) -> Self {
        Self { progress: flight.progress().subscribe(), came_early: arrived <= flight.stamp.local }
    }

    /// Whether nothing was invalidated between the start of the fill and the arrival of this request: it
    /// may then take what the fill brings, even if an invalidation overtook it since.
    pub fn came_early(&self) -> bool {
        self.came_early
    }

    /// Waits for an answer to read along, where that is allowed, or for the end.
    pub async fn progress(&mut self) -> Progress {
        let early = self.came_early;
        let told = self.progress.wait_for(|progress| match progress {
            Some(Progress::Begun(_)) => early,
            Some(Progress::Over(_)) => true,
            None => false,
        });
        // A sender that is gone without a word cannot be: `Lead` says so when it is dropped.
        let progress = told.await.ok().and_then(|progress| progress.clone());
        progress.unwrap_or(Progress::Over(Landing::Failed))
    }

    /// Waits for the end.
    pub async fn landing(&mut self) -> Landing {
        let told = self.progress.wait_for(|progress| matches!(progress, Some(Progress::Over(_))));
        match told.await.ok().and_then(|progress| progress.clone()) {
            Some(Progress::Over(landing)) => landing,
            _ => Landing::Failed,
        }
    }
}

const SHARDS: usize = 64;
