//! Single flight: of many who miss the same key, one asks the origin.
//!
//! Who may take the answer is decided by two numbers: a request that arrived at `a` may take what a fill
//! that began at `f` brings without a further look if `a <= f`, since nothing it could know of came in
//! between. Any other waits for the end and takes it only if it passes as a hit would.

use std::{
    any::Any,
    collections::{HashMap, hash_map},
    fmt,
    sync::Arc,
    time::Duration,
};

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
    /// It brought nothing, by an error or a panic: another may try.
    Failed,
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
    shards: Box<[Shard]>,
}

type Shard = Mutex<HashMap<Key, Arc<Flight>>>;

#[derive(Debug)]
struct Flight {
    key: Key,
    shard: usize,
    stamp: Stamp,
    began: Moment,
    progress: watch::Sender<Option<Progress>>,
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
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Leads a flight for the key, or waits for the one under way.
    ///
    /// `oldest` is the earliest moment at which a flight may have begun to be joined.
    pub(crate) fn join(
        self: &Arc<Self>,
        (hash, key): (u64, &Key),
        scope: &Scope,
        arrived: u64,
        now: Moment,
        oldest: Option<Duration>,
    ) -> Joined {
        if scope.is_part_of(key) {
            return Joined::Alone;
        }
        let shard = hash as usize % SHARDS;
        let mut flights = self.shards[shard].lock();
        match flights.entry(key.clone()) {
            hash_map::Entry::Occupied(flight)
                if oldest.is_none_or(|oldest| now.since(flight.get().began) < oldest) =>
            {
                Joined::Wait(Wait::new(flight.get(), arrived))
            }
            // Too old to be joined: those who come from now on follow the new one.
            place => {
                let flight = Arc::new(Flight {
                    key: key.clone(),
                    shard,
                    stamp: scope.stamp(),
                    began: now,
                    progress: watch::Sender::new(None),
                });
                place.insert_entry(Arc::clone(&flight));
                Joined::Lead(Lead { flights: Arc::clone(self), flight, held: None, alone: false })
            }
        }
    }

    /// Leads a flight that nobody joins.
    pub(crate) fn alone(self: &Arc<Self>, key: &Key, scope: &Scope, now: Moment) -> Lead {
        let flight = Arc::new(Flight {
            key: key.clone(),
            shard: 0,
            stamp: scope.stamp(),
            began: now,
            progress: watch::Sender::new(None),
        });
        Lead { flights: Arc::clone(self), flight, held: None, alone: true }
    }

    pub(crate) fn running(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// The place of whoever asks the origin. Dropping it lets all who wait try again.
#[derive(Debug)]
pub struct Lead {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    /// The lease by which no other process fills the same.
    held: Option<Held>,
    alone: bool,
}

impl Lead {
    pub(crate) fn key(&self) -> &Key {
        &self.flight.key
    }

    /// Whether nobody may join.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    pub(crate) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// Lets those who came early enough read along, from what is given here.
    pub fn begin(&self, along: Arc<dyn Any + Send + Sync>) {
        self.flight.progress.send_if_modified(|progress| {
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

    fn end(&mut self, landing: Landing) {
        if let Some(held) = self.held.take() {
            held.give_back(&landing);
        }
        let mut flights = self.flights.shards[self.flight.shard].lock();
        if flights.get(&self.flight.key).is_some_and(|other| Arc::ptr_eq(other, &self.flight)) {
            flights.remove(&self.flight.key);
        }
        drop(flights);
        if self.flight.progress.receiver_count() == 0 {
            // Nobody joined, and nobody can any more.
            return;
        }
        self.flight.progress.send_if_modified(|progress| {
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
        Self { progress: flight.progress.subscribe(), came_early: arrived <= flight.stamp.local }
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

const SHARDS: usize = 32;
