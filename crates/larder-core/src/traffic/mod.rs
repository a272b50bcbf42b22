//! The requests of the first level, in bounded sketches: its hot keys, and the history of a sample of all keys.
//!
//! Nothing is collected before [`Traffic::watch`]. From then on a request whose key is not in the sample costs one comparison;
//! the others cost some hundred nanoseconds, and the sample shrinks until they are few: at most [`MOST_EVENTS`] in a second.
//! All sketches together take less than 8 MiB.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use self::{hot_keys::HotKeyWindows, key_sample::KeySample, trace_writer::TraceWriter};
pub(crate) use self::{
    hot_keys::HotKeys,
    key_sample::{KeyGroup, KeyRecord},
    reuse_distances::ReuseDistances,
    trace_writer::TRACE_HEADER,
};
use crate::{
    bus::Record,
    clock::{Clock, Moment},
    entry::AnyEntry,
};

mod hot_keys;
mod key_sample;
mod reuse_distances;
mod trace_writer;

/// The sketches of the first level.
#[derive(Debug)]
pub(crate) struct Traffic {
    clock: Clock,
    /// Keys whose hash is below this are in the sample; zero before anything is collected.
    below: AtomicU64,
    /// Whether a trace is recorded, which needs each event.
    records: AtomicBool,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    since: Moment,
    hot: HotKeyWindows,
    sample: KeySample,
    /// The second that is counted, and the events of sampled keys in it.
    second: (Moment, u32),
    trace: Option<TraceWriter>,
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
        let (below, records) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { clock, below, records, state: Mutex::default() }
    }

    /// Begins to collect. Does nothing if it has begun before.
    pub(crate) fn watch(&self) {
        let mut state = self.state.lock();
        if state.is_none() {
            let now = self.clock.now();
            let (hot, sample) = (HotKeyWindows::new(now), KeySample::default());
            *state = Some(State { since: now, hot, sample, second: (now, 0), trace: None });
            self.below.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Begins to record a trace of all requests, fills and invalidations.
    pub(crate) fn record(&self, file: &Path, capacity: usize) -> io::Result<()> {
        self.watch();
        let trace = TraceWriter::create(file, capacity, self.clock.now())?;
        if let Some(state) = self.state.lock().as_mut() {
            state.trace = Some(trace);
            self.below.store(u64::MAX, Ordering::Relaxed);
            self.records.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends the trace.
    pub(crate) fn finish_trace(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        self.records.store(false, Ordering::Relaxed);
        let Some(state) = state.as_mut() else { return Ok(()) };
        self.below.store(state.sample.below(), Ordering::Relaxed);
        state.trace.take().map_or(Ok(()), TraceWriter::finish)
    }

    /// Notes an invalidation.
    pub(crate) fn invalidated(&self, record: &Record) {
        if self.records.load(Ordering::Relaxed) {
            self.update(|state, now| state.write(|trace| trace.invalidation(record, now)));
        }
    }

    /// Returns what was collected since [`watch`](Self::watch). `None` before it.
    pub(crate) fn collected(&self) -> Option<Collected> {
        let now = self.clock.now();
        self.state.lock().as_mut().map(|state| Collected {
            since: state.since,
            hot: state.hot.hottest(now),
            records: state.sample.records(),
            reuse: state.sample.reuse().clone(),
            share: state.sample.below() as f64 / u64::MAX as f64,
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
        self.update(|state, now| {
            state.hot.name(entry.hash, entry.key());
            state.write(|trace| trace.fill(entry, now));
        });
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
            state.write(|trace| trace.request(hash, now));
            let below = state.sample.below();
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
                if state.trace.is_none() {
                    self.below.store(half, Ordering::Relaxed);
                }
            }
        });
    }

    /// Calls `update` unless another thread collects at this moment: a request never waits, and one that is not counted does
    /// not change what the sketches tell. While a trace is recorded, each request waits for its turn.
    fn update(&self, update: impl FnOnce(&mut State, Moment)) {
        let state = match self.records.load(Ordering::Relaxed) {
            true => Some(self.state.lock()),
            false => self.state.try_lock(),
        };
        if let Some(mut state) = state
            && let Some(state) = state.as_mut()
        {
            update(state, self.clock.now());
        }
    }
}

impl State {
    /// Writes to the trace, if there is one. A trace that cannot be written ends.
    fn write(&mut self, write: impl FnOnce(&mut TraceWriter) -> io::Result<()>) {
        if let Some(trace) = &mut self.trace
            && let Err(error) = write(trace)
        {
            tracing::warn!(target: "larder", %error, "the trace cannot be written, and ends");
            self.trace = None;
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// The number of keys in the sample, each of which takes some hundred bytes.
const MOST_KEYS: usize = 8 * 1024;
/// The number of requests of sampled keys in a second, from which on the sample is halved.
const MOST_EVENTS: u32 = 20_000;
