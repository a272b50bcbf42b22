//! The observer: counts and logs all events, in [`Stats`], `tracing` and `metrics`.
//!
//! All other modules only name an [`Event`], and this module counts, logs and exports it, so that no other file depends
//! on a cargo feature or on a counter.

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
    striped::StripedCounters,
    window::{CounterValues, Window},
};
use crate::{clock::Moment, reason::Reason};
pub use stats::{
    CacheCounters, CacheStats, Latency, LogStats, MemoryStats, SecondLevelStats, Stats,
};

mod histogram;
mod stats;
pub(crate) mod striped;
mod window;

/// An observer event: an outcome of a request, or a change of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A fresh entry was served from the first level.
    Hit,
    /// A fresh entry was served from the second level.
    SharedHit,
    /// A stale entry was served while a refresh ran.
    StaleHit,
    /// A stale entry was served because the fill failed.
    StaleOnError,
    /// No entry could be served; the request went to the origin or the loader.
    Miss,
    /// The request was coalesced, that is, served by the fill of another request.
    Collapsed,
    /// The request bypassed the cache, for this reason.
    Bypass(Reason),
    /// A response or value was stored.
    Stored,
    /// A response or value was not stored, for this reason.
    Refused(Reason),
    /// A lookup found an entry that an invalidation had reached.
    Invalid,
    /// A lookup found an entry whose lifetime had ended.
    Expired,
    /// A fill, a refresh or another step failed, for this reason.
    Failed(Reason),
}

impl Event {
    /// Returns the name of the event in counters and logs.
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

    const fn reason(self) -> Option<Reason> {
        match self {
            Self::Bypass(why) | Self::Refused(why) | Self::Failed(why) => Some(why),
            _ => None,
        }
    }
}

const EVENTS: usize = 12;

/// The counters of one named cache. Counting a hit is one addition to a cache line that few threads share.
#[derive(Debug)]
pub struct Meter {
    name: Arc<str>,
    events: StripedCounters<EVENTS>,
    reasons: Mutex<BTreeMap<(&'static str, Reason), u64>>,
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
            events: StripedCounters::default(),
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

    /// Counts a hit, and measures the duration of one hit in 64, because reading the clock costs as much as the lookup.
    #[inline]
    pub fn record_hit(&self, began: Moment, now: impl FnOnce() -> Moment) {
        self.record(Event::Hit, began);
        if self.events.of_this_thread(Event::Hit.place()).is_multiple_of(64) {
            self.hits.record(now().since(began));
        }
    }

    /// Records the duration of a fill.
    pub fn record_fill_time(&self, took: Duration) {
        self.fills.record(took);
    }

    fn explain(&self, event: Event) {
        let name = event.name();
        let Some(reason) = event.reason() else {
            tracing::trace!(target: "larder", cache = &*self.name, event = name);
            return;
        };
        tracing::debug!(target: "larder", cache = &*self.name, event = name, reason = reason.as_str());
        *self.reasons.lock().entry((name, reason)).or_default() += 1;
    }

    fn reading(&self) -> CounterValues {
        let events = self.events.sums();
        CounterValues { events, hits: self.hits.counts(), fills: self.fills.counts() }
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

/// The meters of all named caches, and the counters of the larder as a whole.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Replaced as a whole for each new name, so that looking a meter up takes no lock.
    meters: ArcSwap<Meters>,
    naming: Mutex<()>,
    invalidations: AtomicU64,
    queued: AtomicU64,
    /// Whether the last invalidation was queued for the log.
    queueing: AtomicBool,
}

impl Observer {
    /// Returns the meter of a cache, always the same meter for the same name. The first 1,000 names have a meter each,
    /// and all other names share the meter `(other)`, because names are meant for layers and call sites, not for users.
    pub(crate) fn meter(&self, name: &str) -> Arc<Meter> {
        let known = self.meters.load().of(name).map(Arc::clone);
        known.unwrap_or_else(|| self.named(name))
    }

    /// Calls `act` with the meter of a cache. It does not clone the `Arc` of the meter, because on hits all threads
    /// would contend for the reference count.
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
        // Another thread may have added this name in the meantime, or the last name with a meter of its own.
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
        // The observer logs only changes, because one line per invalidation would flood the application's log while the
        // invalidation log is unreachable.
        match (self.queueing.swap(queued, Ordering::Relaxed), queued) {
            (false, true) => tracing::warn!(
                target: "larder",
                "the invalidation log does not accept records, so invalidations act in this process and are queued for \
                 others. Check that the log is reachable."
            ),
            (true, false) => {
                tracing::info!(target: "larder", "the invalidation log accepts invalidations again");
            }
            _ => {}
        }
        tracing::debug!(target: "larder", targets, %outcome, "invalidated");
    }

    /// Counts a scheduled invalidation when it takes effect.
    pub(crate) fn acted_when_due(&self, targets: usize) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "larder", targets, "a scheduled invalidation takes effect");
    }

    /// Exports how far this process has followed the log. The follower calls this each time it requests the end of the
    /// log: three times per maximum lag, or per smaller bound of a request.
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
    pub(crate) fn followed(&self, log: &LogStats, pending: usize) {
        #[cfg(feature = "metrics")]
        {
            metrics::gauge!("larder_log_lag_seconds").set(log.lag.as_secs_f64());
            metrics::gauge!("larder_log_applied").set(log.applied as f64);
            // A change of this gauge shows that the log was replaced. Its value has no other meaning.
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
    /// The meter of all names beyond the first 1,000.
    others: Option<Arc<Meter>>,
}

impl Meters {
    fn of(&self, name: &str) -> Option<&Arc<Meter>> {
        self.named.get(name).or(self.others.as_ref())
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Meter>> {
        self.named.values().chain(&self.others)
    }

    /// Returns these meters with one more meter. When this fills the last place, it also adds the shared meter of all
    /// other names.
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
    fn names_beyond_the_limit_share_a_meter_and_cost_no_new_map() {
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
    fn threads_that_add_names_at_once_lose_no_meter() {
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
