//! The one seam where larder tells what happened: counters, `tracing` and `metrics` all hang on it.
//!
//! The logic names an [`Event`]; what becomes of it is decided here, so no other file knows of a feature
//! or of a counter.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use self::{
    histogram::Histogram,
    striped::Striped,
    window::{Reading, Window},
};
use crate::clock::Moment;
pub use stats::{
    CacheCounters, CacheStats, Latency, LogStats, MemoryStats, SecondLevelStats, Stats,
};

mod histogram;
mod stats;
pub(crate) mod striped;
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
    events: Striped<EVENTS>,
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
            events: Striped::default(),
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
        self.events.count(event.place());
        #[cfg(feature = "metrics")]
        self.exported[event.place()].increment(1);
        if !matches!(event, Event::Hit) {
            self.explain(event);
        }
    }

    /// Counts a hit, and of one in 64 how long it took: a look at the clock costs as much as the look-up.
    #[inline]
    pub fn record_hit(&self, began: Moment, now: impl FnOnce() -> Moment) {
        self.record(Event::Hit, began);
        if self.events.of_this_thread(Event::Hit.place()).is_multiple_of(64) {
            self.hits.record(now().since(began));
        }
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
        let events = self.events.sums();
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
    /// Replaced as a whole when a name is new: to look one up is no lock that threads would fight over.
    meters: ArcSwap<Meters>,
    naming: Mutex<()>,
    invalidations: AtomicU64,
    queued: AtomicU64,
    /// Whether the last one had to wait for the log.
    queueing: AtomicBool,
}

impl Observer {
    /// The meter of a cache; the same for the same name. A thousand names are told apart, the rest share
    /// one: names are meant for layers and call sites, not for users.
    pub(crate) fn meter(&self, name: &str) -> Arc<Meter> {
        let known = self.meters.load().of(name).map(Arc::clone);
        known.unwrap_or_else(|| self.named(name))
    }

    /// Counts with the meter of a cache, whose own counter stays untouched: on a hit it is one that all
    /// threads share.
    #[inline]
    pub(crate) fn with_meter<R>(&self, name: &str, act: impl FnOnce(&Meter) -> R) -> R {
        match self.meters.load().of(name) {
            Some(meter) => act(meter),
            None => act(&self.named(name)),
        }
    }

    #[cold]
    fn named(&self, name: &str) -> Arc<Meter> {
        let _naming = self.naming.lock();
        let known = self.meters.load_full();
        // Another may have named it meanwhile, or the last name there was room for.
        if let Some(meter) = known.of(name) {
            return Arc::clone(meter);
        }
        let meter = Arc::new(Meter::new(name));
        self.meters.store(Arc::new(known.with(name, &meter)));
        meter
    }

    /// Counts an invalidation.
    pub(crate) fn invalidated(&self, outcome: crate::Invalidated, targets: usize) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        let queued = outcome == crate::Invalidated::Queued;
        if queued {
            self.queued.fetch_add(1, Ordering::Relaxed);
        }
        // A line for each change: a log that is away would fill those of the application.
        match (self.queueing.swap(queued, Ordering::Relaxed), queued) {
            (false, true) => tracing::warn!(
                target: "larder",
                "the log does not take invalidations: they act here, and wait to be sent"
            ),
            (true, false) => tracing::info!(target: "larder", "the log takes invalidations again"),
            _ => {}
        }
        tracing::debug!(target: "larder", targets, %outcome, "invalidated");
    }

    /// Counts one that was scheduled, now that it acts.
    pub(crate) fn acted_when_due(&self, targets: usize) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "larder", targets, "a scheduled invalidation acts");
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
        self.meters.load().all().map(|meter| meter.stats(now)).collect()
    }
}

/// The meters by their names.
#[derive(Debug, Default)]
struct Meters {
    named: BTreeMap<Arc<str>, Arc<Meter>>,
    /// That of all names for which there was no room.
    others: Option<Arc<Meter>>,
}

impl Meters {
    fn of(&self, name: &str) -> Option<&Arc<Meter>> {
        self.named.get(name).or(self.others.as_ref())
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Meter>> {
        self.named.values().chain(&self.others)
    }

    /// These and one more. With the last that there is room for comes the one of all others.
    fn with(&self, name: &str, meter: &Arc<Meter>) -> Self {
        let mut named = self.named.clone();
        named.insert(name.into(), Arc::clone(meter));
        let others = (named.len() >= MAX_METERS).then(|| Arc::new(Meter::new("(other)")));
        Self { named, others }
    }
}

const MAX_METERS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_those_there_is_room_for_share_a_meter_and_cost_no_new_map() {
        let observer = Observer::default();
        let meter = |number: usize| observer.meter(&format!("cache {number}"));
        let first = meter(0);
        (1..MAX_METERS).for_each(|number| drop(meter(number)));
        assert!(Arc::ptr_eq(&meter(0), &first), "the same for the same name");
        assert!(!Arc::ptr_eq(&meter(MAX_METERS - 1), &first), "the last has one of its own");
        let known = observer.meters.load_full();
        let others = meter(MAX_METERS);
        assert!(Arc::ptr_eq(&others, &meter(MAX_METERS + 1)));
        observer.with_meter("yet another", |meter| meter.record(Event::Miss, Moment::START));
        assert!(Arc::ptr_eq(&known, &observer.meters.load_full()));
        let stats = observer.stats(Moment::START);
        assert_eq!(stats.len(), MAX_METERS + 1);
        assert_eq!(stats.iter().map(|cache| cache.total.misses).sum::<u64>(), 1);
    }

    #[test]
    fn threads_that_name_caches_at_once_lose_none() {
        let observer = Observer::default();
        let name_all = || {
            let names = (0..100).map(|number| format!("cache {number}"));
            names.map(|name| observer.meter(&name)).collect::<Vec<_>>()
        };
        let [one, other] = std::thread::scope(|scope| {
            [scope.spawn(name_all), scope.spawn(name_all)].map(|naming| naming.join().unwrap())
        });
        assert!(one.iter().zip(&other).all(|(one, other)| Arc::ptr_eq(one, other)));
        assert_eq!(observer.stats(Moment::START).len(), 100);
    }
}
