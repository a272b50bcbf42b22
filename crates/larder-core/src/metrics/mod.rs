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
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use self::route::RouteNames;
#[cfg(feature = "metrics")]
pub use self::table::{Instrument, METRICS, Metric};
pub use self::{
    event::Event,
    meter::{Comparison, Meter, ObservedHits, ServedEntry},
    route::{RefusedResponse, Route, RouteId},
    stats::{
        CacheCounters, CacheStats, Latency, LogStats, MemoryStats, RouteStats, Saved,
        SecondLevelStats, Stats,
    },
};
use crate::clock::Moment;

mod event;
pub(crate) mod histogram;
mod meter;
#[cfg_attr(not(feature = "metrics"), path = "publish_absent.rs")]
pub(crate) mod publish;
mod route;
mod stats;
pub(crate) mod striped;
#[cfg(feature = "metrics")]
mod table;
pub(crate) mod window;

/// The meters of all named caches, and the counters of the larder as a whole.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Replaced as a whole for each new name, so that looking a meter up takes no lock.
    meters: ArcSwap<Meters>,
    naming: Mutex<()>,
    pub(crate) routes: RouteNames,
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

    pub(crate) fn invalidations(&self) -> (u64, u64) {
        (self.invalidations.load(Ordering::Relaxed), self.queued.load(Ordering::Relaxed))
    }

    /// Returns all meters.
    #[cfg(feature = "metrics")]
    pub(crate) fn meters(&self) -> Vec<Arc<Meter>> {
        self.meters.load().all().cloned().collect()
    }

    pub(crate) fn stats(&self, now: Moment) -> Vec<CacheStats> {
        self.meters.load().all().map(|meter| CacheStats::of(meter, &self.routes, now)).collect()
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
