//! Replays a recorded trace against the first level with other settings.
//!
//! A replay uses the first level itself, with its eviction policy, and takes the times from the trace. It has no second level,
//! no stale windows and no coalescing, so it tells how often a request finds a fresh and valid entry in memory.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use serde::Serialize;

use self::trace::TraceEvent;
pub use self::trace::{Trace, TraceError};
use crate::{
    ByteSize,
    clock::{Clock, Moment},
    entry::{AnyEntry, Entry, EntryMetadata, Value},
    key::{Key, KeyBuf, Kind},
    lifetime::Lifetime,
    memory::{Eviction, Memory},
    provenance::Provenance,
    registry::{Options, Registry},
    tiers::Tiers,
};

mod trace;

/// The settings of a replay.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReplaySettings {
    /// The capacity of the first level.
    pub memory: ByteSize,
    /// The eviction policy.
    pub eviction: Eviction,
    /// The lifetime of each entry, in place of the recorded ones.
    pub ttl: Option<Duration>,
}

impl ReplaySettings {
    /// The settings with this capacity, the default policy and the recorded lifetimes.
    pub fn new(memory: ByteSize) -> Self {
        Self { memory, eviction: Eviction::default(), ttl: None }
    }

    /// Sets the eviction policy.
    #[must_use]
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.eviction = eviction;
        self
    }

    /// Gives each entry this lifetime.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

/// What a replay counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReplayCounts {
    /// Requests.
    pub requests: u64,
    /// Requests that found a fresh and valid entry.
    pub hits: u64,
    /// Requests that found an entry whose lifetime had ended.
    pub expired: u64,
    /// Requests that found an entry that an invalidation had reached.
    pub invalid: u64,
}

impl ReplayCounts {
    /// Returns the hits as a share of the requests, 0 to 1.
    pub fn hit_ratio(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.hits as f64 / self.requests as f64 }
    }
}

/// What a fill of a key gave.
#[derive(Clone, Debug)]
struct FillFacts {
    weight: usize,
    lifetime: Duration,
    tags: Vec<u64>,
}

impl Trace {
    /// Replays the trace with these settings. It takes about a microsecond for each request.
    pub fn replay(&self, settings: &ReplaySettings) -> ReplayCounts {
        // The first fill of a key tells what a request before it would have stored.
        let mut facts: HashMap<u64, FillFacts> = HashMap::new();
        for event in &self.events {
            if let TraceEvent::Fill { key, .. } = event {
                facts.entry(*key).or_insert_with(|| FillFacts::of(event));
            }
        }
        let mut replay = Replay::new(settings);
        for event in &self.events {
            match event {
                TraceEvent::Request { millis, key } => replay.request(at(*millis), *key, &facts),
                TraceEvent::Fill { key, .. } => drop(facts.insert(*key, FillFacts::of(event))),
                TraceEvent::Invalidation { millis, tags } => replay.invalidate(at(*millis), tags),
            }
        }
        replay.counts
    }
}

fn at(millis: u64) -> Moment {
    Moment::START.after(Duration::from_millis(millis))
}

impl FillFacts {
    fn of(event: &TraceEvent) -> Self {
        match event {
            TraceEvent::Fill { weight, lifetime_millis, tags, .. } => Self {
                weight: *weight,
                lifetime: Duration::from_millis(*lifetime_millis),
                tags: tags.clone(),
            },
            TraceEvent::Request { .. } | TraceEvent::Invalidation { .. } => {
                Self { weight: 0, lifetime: Duration::ZERO, tags: Vec::new() }
            }
        }
    }
}

/// The state of a replay.
struct Replay {
    memory: Memory,
    registry: Registry,
    ttl: Option<Duration>,
    /// The bytes of an entry besides its value.
    overhead: usize,
    /// The last invalidation of each tag.
    invalidated: HashMap<u64, u64>,
    all_invalidated: u64,
    /// The number of the current event, which orders fills and invalidations.
    number: u64,
    ends: BinaryHeap<Reverse<(Moment, u64)>>,
    counts: ReplayCounts,
}

/// A value of the replay, which has the weight of the recorded one.
struct Weight {
    bytes: usize,
    filled: u64,
    tags: Vec<u64>,
}

impl Value for Weight {
    fn weight(&self) -> usize {
        self.bytes
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Replay {
    fn new(settings: &ReplaySettings) -> Self {
        let options = Options {
            cells: 2,
            shared: false,
            longest: Duration::MAX,
            failover_bound: Duration::ZERO,
        };
        let capacity = settings.memory.as_bytes();
        let mut replay = Self {
            memory: Memory::new(capacity, settings.eviction, Clock::start()),
            registry: Registry::new(options),
            ttl: settings.ttl,
            overhead: 0,
            invalidated: HashMap::new(),
            all_invalidated: 0,
            number: 0,
            ends: BinaryHeap::new(),
            counts: ReplayCounts::default(),
        };
        let value = Weight { bytes: 0, filled: 0, tags: Vec::new() };
        replay.overhead = replay.entry(&key(0), Moment::START, Duration::MAX, value).weight();
        replay
    }

    fn request(&mut self, now: Moment, hash: u64, facts: &HashMap<u64, FillFacts>) {
        self.number += 1;
        self.counts.requests += 1;
        // moka frees entries whose lifetime has ended, by its own clock.
        while let Some(Reverse((end, ended))) = self.ends.peek().copied().filter(|it| it.0.0 <= now)
        {
            self.ends.pop();
            let (key, _) = self.place(ended);
            if let Some(entry) = self.memory.get(self.memory.hash(key.as_bytes()), key.as_bytes())
                && entry.fresh_until() <= end
                && ended != hash
            {
                self.memory.remove(&entry);
            }
        }
        let (key, place) = self.place(hash);
        let found = self.memory.get(place, key.as_bytes());
        if let Some(entry) = found {
            if self.is_invalid(&entry) {
                self.counts.invalid += 1;
                self.memory.remove(&entry);
            } else if entry.fresh_until() > now {
                self.counts.hits += 1;
                self.memory.note_hit(&entry);
                return;
            } else {
                self.counts.expired += 1;
                self.memory.remove(&entry);
            }
        }
        self.memory.note_miss(place);
        // Responses to this key were never stored.
        let Some(facts) = facts.get(&hash) else { return };
        let lifetime = self.ttl.unwrap_or(facts.lifetime);
        let value = Weight {
            bytes: facts.weight.saturating_sub(self.overhead),
            filled: self.number,
            tags: facts.tags.clone(),
        };
        let entry = self.entry(&key, now, lifetime, value);
        self.ends.push(Reverse((entry.fresh_until(), hash)));
        drop(self.memory.put(&entry, |_| false));
    }

    fn invalidate(&mut self, _: Moment, tags: &[u64]) {
        self.number += 1;
        match tags {
            [] => self.all_invalidated = self.number,
            tags => self.invalidated.extend(tags.iter().map(|tag| (*tag, self.number))),
        }
    }

    fn is_invalid(&self, entry: &AnyEntry) -> bool {
        let Some(value) = entry.value::<Weight>() else { return true };
        let last = |tag: &u64| self.invalidated.get(tag).copied().unwrap_or_default();
        self.all_invalidated > value.filled || value.tags.iter().any(|tag| last(tag) > value.filled)
    }

    fn place(&self, hash: u64) -> (Key, u64) {
        let key = key(hash);
        let place = self.memory.hash(key.as_bytes());
        (key, place)
    }

    fn entry(&self, key: &Key, now: Moment, lifetime: Duration, value: Weight) -> AnyEntry {
        let stamp = self.registry.stamp();
        let metadata = EntryMetadata {
            hash: self.memory.hash(key.as_bytes()),
            id: self.memory.next_id(),
            ends: Lifetime::fresh_for(lifetime).ends(now, Duration::MAX, 0),
            stamp,
            marks: self.registry.marks(stamp, &[]),
            tags: Vec::new(),
            provenance: Provenance::default(),
            cost: Duration::ZERO,
            tiers: Tiers::MEMORY,
            idle: None,
            extended: None,
        };
        std::sync::Arc::new(Entry::new(key.clone(), metadata, value))
    }
}

fn key(hash: u64) -> Key {
    let mut key = KeyBuf::new(Kind::Object, "", "", "");
    key.push(&hash.to_le_bytes());
    key.finish().expect("it is short")
}
