//! The requests of the first level, in bounded sketches: its hot keys, and the history of a sample of all keys.
//!
//! Nothing is collected before [`Traffic::watch`]. From then on a request whose key is not in the sample costs one comparison;
//! the others cost some hundred nanoseconds, and the sample shrinks until they are few: at most [`MOST_EVENTS`] in a second.
//! All sketches together take less than 8 MiB.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use self::{hot_keys::HotKeyWindows, key_sample::KeySample};
pub(crate) use self::{
    hot_keys::HotKeys,
    key_sample::{KeyGroup, KeyRecord},
    reuse_distances::ReuseDistances,
};
use crate::{
    clock::{Clock, Moment},
    entry::AnyEntry,
};

mod hot_keys;
mod key_sample;
mod reuse_distances;

/// The sketches of the first level.
#[derive(Debug)]
pub(crate) struct Traffic {
    clock: Clock,
    /// Keys whose hash is below this are in the sample; zero before anything is collected.
    below: AtomicU64,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    since: Moment,
    hot: HotKeyWindows,
    sample: KeySample,
    /// The second that is counted, and the events of sampled keys in it.
    second: (Moment, u32),
}

/// What was collected.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) since: Moment,
    pub(crate) hot: HotKeys,
    pub(crate) records: Vec<KeyRecord>,
    pub(crate) reuse: ReuseDistances,
    /// The share of all keys that is in the sample.
    pub(crate) share: f64,
}

impl Traffic {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, below: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Begins to collect. Does nothing if it has begun before.
    pub(crate) fn watch(&self) {
        let mut state = self.state.lock();
        if state.is_none() {
            let now = self.clock.now();
            let (hot, sample) = (HotKeyWindows::new(now), KeySample::default());
            *state = Some(State { since: now, hot, sample, second: (now, 0) });
            self.below.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Returns what was collected since [`watch`](Self::watch). `None` before it.
    pub(crate) fn collected(&self) -> Option<Collected> {
        let now = self.clock.now();
        let share = self.below.load(Ordering::Relaxed) as f64 / u64::MAX as f64;
        self.state.lock().as_mut().map(|state| Collected {
            since: state.since,
            hot: state.hot.hottest(now),
            records: state.sample.records(),
            reuse: state.sample.reuse().clone(),
            share,
        })
    }

    #[inline]
    fn samples(&self, hash: u64) -> bool {
        hash < self.below.load(Ordering::Relaxed)
    }

    /// Notes a hit.
    #[inline]
    pub(crate) fn hit(&self, hash: u64) {
        if self.samples(hash) {
            self.request(hash);
        }
    }

    /// Notes that an entry had this many more hits.
    pub(crate) fn hits(&self, entry: &AnyEntry, more: u64) {
        if self.is_watching() {
            self.update(|state, now| state.hot.add(entry.hash, more, Some(entry.key()), now));
        }
    }

    /// Notes a miss.
    pub(crate) fn miss(&self, hash: u64) {
        if self.is_watching() {
            self.update(|state, now| state.hot.add(hash, 1, None, now));
            self.hit(hash);
        }
    }

    /// Notes that an entry was stored.
    pub(crate) fn stored(&self, entry: &AnyEntry) {
        if !self.is_watching() {
            return;
        }
        self.update(|state, _| state.hot.name(entry.hash, entry.key()));
        if self.samples(entry.hash) {
            // Computing the digest can take long.
            let digest = entry.digest();
            self.update(|state, now| state.sample.fill(entry, digest, now));
        }
    }

    #[inline]
    fn is_watching(&self) -> bool {
        self.below.load(Ordering::Relaxed) > 0
    }

    #[cold]
    fn request(&self, hash: u64) {
        self.update(|state, now| {
            let below = self.below.load(Ordering::Relaxed);
            if hash >= below {
                return;
            }
            state.sample.request(hash, now);
            if now.since(state.second.0) >= SECOND {
                state.second = (now, 0);
            }
            state.second.1 += 1;
            let is_busy = state.second.1 > MOST_EVENTS;
            if is_busy || state.sample.len() > MOST_KEYS {
                let half = below / 2;
                state.second = (now, 0);
                state.sample.shrink(half);
                self.below.store(half, Ordering::Relaxed);
            }
        });
    }

    /// Calls `update` unless another thread collects at this moment: a request never waits, and one that is not counted does
    /// not change what the sketches tell.
    fn update(&self, update: impl FnOnce(&mut State, Moment)) {
        if let Some(mut state) = self.state.try_lock()
            && let Some(state) = state.as_mut()
        {
            update(state, self.clock.now());
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// The number of keys in the sample, each of which takes some hundred bytes.
const MOST_KEYS: usize = 8 * 1024;
/// The number of requests of sampled keys in a second, from which on the sample is halved.
const MOST_EVENTS: u32 = 20_000;
