//! The one seam where larder tells what happened: counters, `tracing` and `metrics` all hang on it.
//!
//! The logic names an [`Event`]; what becomes of it is decided here, so no other file knows of a feature
//! or of a counter.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use self::{
    histogram::Histogram,
    window::{Reading, Window},
};
use crate::clock::Moment;
pub use stats::{CacheStats, Counted, Latency, LogStats, MemoryStats, SharedStats, Stats};

mod histogram;
mod stats;
mod window;

/// What can happen to a request for an entry, and to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A fresh entry answered, from memory.
    Hit,
    /// A fresh entry answered, from the shared store.
    SharedHit,
    /// A stale entry answered while a refresh runs.
    StaleHit,
    /// A stale entry answered because the fill failed.
    StaleOnError,
    /// Nothing could answer; the origin was asked.
    Miss,
    /// The answer of a fill that somebody else had begun was taken.
    Collapsed,
    /// Larder was not to be asked, for the reason that follows.
    Bypass(&'static str),
    /// An answer was kept.
    Stored,
    /// An answer was not kept, for the reason that follows.
    Refused(&'static str),
    /// An entry was looked at that an invalidation had reached.
    Invalid,
    /// An entry was looked at whose time had run out.
    Expired,
    /// Something of larder's own failed and cost a hit: the reason follows.
    Failed(&'static str),
}

impl Event {
    /// The name in counters and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::SharedHit => "shared-hit",
            Self::StaleHit => "stale-hit",
            Self::StaleOnError => "stale-on-error",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Bypass(_) => "bypass",
            Self::Stored => "stored",
            Self::Refused(_) => "refused",
            Self::Invalid => "invalid",
            Self::Expired => "expired",
            Self::Failed(_) => "failed",
        }
    }

    const fn place(self) -> usize {
        match self {
            Self::Hit => 0,
            Self::SharedHit => 1,
            Self::StaleHit => 2,
            Self::StaleOnError => 3,
            Self::Miss => 4,
            Self::Collapsed => 5,
            Self::Bypass(_) => 6,
            Self::Stored => 7,
            Self::Refused(_) => 8,
            Self::Invalid => 9,
            Self::Expired => 10,
            Self::Failed(_) => 11,
        }
    }

    const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Bypass(why) | Self::Refused(why) | Self::Failed(why) => Some(why),
            _ => None,
        }
    }
}

const EVENTS: usize = 12;

/// The counters of one named cache. Counting a hit is one addition to a line of the thread's own.
#[derive(Debug)]
pub struct Meter {
    name: Arc<str>,
    stripes: [CachePadded<[AtomicU64; EVENTS]>; STRIPES],
    reasons: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    hits: Histogram,
    fills: Histogram,
    window: Window,
    #[cfg(feature = "metrics")]
    exported: [metrics::Counter; EVENTS],
}

impl Meter {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            stripes: std::array::from_fn(|_| CachePadded::default()),
            reasons: Mutex::default(),
            hits: Histogram::new(),
            fills: Histogram::new(),
            window: Window::new(),
            #[cfg(feature = "metrics")]
            exported: exported(name),
        }
    }

    /// Counts an event.
    #[inline]
    pub fn record(&self, event: Event, now: Moment) {
        if self.window.is_over(now) {
            self.window.turn(now, || self.reading());
        }
        stripe(&self.stripes)[event.place()].fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.exported[event.place()].increment(1);
        if !matches!(event, Event::Hit) {
            self.explain(event);
        }
    }

    /// Whether the duration of this hit should be measured: of one in 64, since a look at the clock costs
    /// as much as the look-up.
    #[inline]
    pub fn samples_hit(&self) -> bool {
        stripe(&self.stripes)[Event::Hit.place()].load(Ordering::Relaxed).is_multiple_of(64)
    }

    /// Counts how long a hit took.
    pub fn record_hit_time(&self, took: Duration) {
        self.hits.record(took);
    }

    /// Counts how long a fill took.
    pub fn record_fill_time(&self, took: Duration) {
        self.fills.record(took);
    }

    fn explain(&self, event: Event) {
        let name = event.name();
        let Some(reason) = event.reason() else {
            tracing::trace!(target: "larder", cache = &*self.name, event = name);
            return;
        };
        tracing::debug!(target: "larder", cache = &*self.name, event = name, reason);
        *self.reasons.lock().entry((name, reason)).or_default() += 1;
    }

    fn reading(&self) -> Reading {
        let mut events = [0; EVENTS];
        for stripe in &self.stripes {
            for (sum, count) in events.iter_mut().zip(stripe.iter()) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        Reading { events, hits: self.hits.counts(), fills: self.fills.counts() }
    }

    fn stats(&self, now: Moment) -> CacheStats {
        if self.window.is_over(now) {
            self.window.turn(now, || self.reading());
        }
        let reading = self.reading();
        let last_minute = reading.since(&self.window.a_minute_ago());
        CacheStats::new(&self.name, &reading, &last_minute, &self.reasons.lock())
    }
}

#[cfg(feature = "metrics")]
fn exported(name: &str) -> [metrics::Counter; EVENTS] {
    const NAMES: [&str; EVENTS] = [
        "hit",
        "shared-hit",
        "stale-hit",
        "stale-on-error",
        "miss",
        "collapsed",
        "bypass",
        "stored",
        "refused",
        "invalid",
        "expired",
        "failed",
    ];
    NAMES.map(|event| metrics::counter!("larder_events_total", "cache" => name.to_owned(), "event" => event))
}

/// All meters of a larder, and what is counted for it as a whole.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    meters: Mutex<BTreeMap<Arc<str>, Arc<Meter>>>,
    invalidations: AtomicU64,
    queued: AtomicU64,
}

impl Observer {
    /// The meter of a cache; the same for the same name. A thousand names are told apart, the rest share
    /// one: names are meant for layers and call sites, not for users.
    pub(crate) fn meter(&self, name: &str) -> Arc<Meter> {
        let mut meters = self.meters.lock();
        if let Some(meter) = meters.get(name) {
            return Arc::clone(meter);
        }
        let name = if meters.len() < MAX_METERS { name } else { "(other)" };
        let meter = meters.entry(name.into()).or_insert_with(|| Arc::new(Meter::new(name)));
        Arc::clone(meter)
    }

    /// Counts an invalidation.
    pub(crate) fn invalidated(&self, outcome: crate::Invalidated, targets: usize) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        if outcome == crate::Invalidated::Queued {
            self.queued.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(target: "larder", targets, "the log is out of reach: invalidation queued");
        } else {
            tracing::debug!(target: "larder", targets, %outcome, "invalidated");
        }
    }

    /// Tells how far the log was followed, three times in a lease.
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
    pub(crate) fn followed(&self, log: &LogStats, pending: usize) {
        #[cfg(feature = "metrics")]
        {
            metrics::gauge!("larder_log_lag_seconds").set(log.lag.as_secs_f64());
            metrics::gauge!("larder_log_applied").set(log.applied as f64);
            // Its bits mean nothing: that they change says that the log has become another one.
            let epoch = log.epoch.map_or(0, |epoch| epoch.to_bits() as u32);
            metrics::gauge!("larder_log_epoch").set(f64::from(epoch));
            metrics::gauge!("larder_invalidations_pending").set(pending as f64);
        }
    }

    pub(crate) fn invalidations(&self) -> (u64, u64) {
        (self.invalidations.load(Ordering::Relaxed), self.queued.load(Ordering::Relaxed))
    }

    pub(crate) fn stats(&self, now: Moment) -> Vec<CacheStats> {
        self.meters.lock().values().map(|meter| meter.stats(now)).collect()
    }
}

fn stripe<T>(stripes: &[T; STRIPES]) -> &T {
    thread_local! {
        static STRIPE: Cell<usize> = Cell::new(NEXT_STRIPE.fetch_add(1, Ordering::Relaxed) % STRIPES);
    }
    &stripes[STRIPE.get()]
}

const STRIPES: usize = 8;
const MAX_METERS: usize = 1000;
static NEXT_STRIPE: AtomicUsize = AtomicUsize::new(0);
