//! What [`Larder::stats`](crate::Larder::stats) gives: numbers in types, ready to be shown or serialised.

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer};

use super::{Event, window::Reading};
use crate::{bus::Epoch, memory::Evictions, observe::histogram::Counts};

/// A snapshot of everything a larder counts.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The memory tier.
    pub memory: MemoryStats,
    /// The shared store, all zeros without one.
    pub shared: SecondLevelStats,
    /// The log of invalidations.
    pub log: LogStats,
    /// Invalidations since the start.
    pub invalidations: u64,
    /// How many of them the log could not take at once.
    pub invalidations_queued: u64,
    /// How many wait for the log now.
    pub invalidations_pending: usize,
    /// How many wait for their time now.
    pub invalidations_scheduled: usize,
    /// Fills that run now.
    pub fills_running: usize,
    /// Values that were asked for outside of every request although layers serve requests: see
    /// [`Larder::scoped`](crate::Larder::scoped).
    pub values_outside_scopes: u64,
    /// Each named cache.
    pub caches: Vec<CacheStats>,
}

impl Stats {
    /// The numbers of one cache, if it was used.
    pub fn cache(&self, name: &str) -> Option<&CacheStats> {
        self.caches.iter().find(|cache| cache.name == name)
    }
}

/// The memory tier.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// How many entries it holds.
    pub entries: usize,
    /// All bytes they hold.
    pub bytes: usize,
    /// How many bytes it may hold.
    pub capacity_bytes: usize,
    /// What it dropped by itself.
    pub evictions: Evictions,
}

/// The shared store, the second level.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct SecondLevelStats {
    /// Reads that found an entry which was still valid.
    pub hits: u64,
    /// Reads that found none, or one that was not valid.
    pub misses: u64,
    /// Entries written.
    pub writes: u64,
    /// Commands that failed.
    pub errors: u64,
    /// What was there but could not be understood.
    pub corrupt: u64,
    /// Writes that were dropped because too many were under way.
    pub dropped: u64,
    /// Values that were not written because their bytes would give back other ones.
    pub lossy: u64,
    /// Values that were not written because they hold more bytes than the store takes.
    pub too_large: u64,
}

/// The log of invalidations, as far as this process has followed it.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct LogStats {
    /// Whether other processes append to it too.
    pub shared: bool,
    /// Its life, written as hexadecimal digits; none while this process has no view of it.
    #[serde(serialize_with = "in_digits")]
    pub epoch: Option<Epoch>,
    /// The number of the last record that acts here.
    pub applied: u64,
    /// How long ago it was proved that nothing is missing.
    pub lag: Duration,
    /// Whether that is within the lease.
    pub synchronised: bool,
}

/// Of 128 bits most readers of JSON would keep 53.
fn in_digits<S: Serializer>(epoch: &Option<Epoch>, serializer: S) -> Result<S::Ok, S::Error> {
    epoch.map(|epoch| format!("{:032x}", epoch.to_bits())).serialize(serializer)
}

/// One named cache.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// The name given to the layer or the policy.
    pub name: String,
    /// Since the start.
    pub total: CacheCounters,
    /// Within the last minute, give or take five seconds.
    pub last_minute: CacheCounters,
    /// Why larder was not asked, and how often.
    pub bypasses: BTreeMap<&'static str, u64>,
    /// Why answers were not kept, and how often.
    pub refusals: BTreeMap<&'static str, u64>,
    /// What failed of larder's own, and how often.
    pub errors: BTreeMap<&'static str, u64>,
}

/// Counts of one cache over some time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CacheCounters {
    /// Fresh answers from memory or the shared store.
    pub hits: u64,
    /// Fresh answers from the shared store, also counted as hits.
    pub shared_hits: u64,
    /// Stale answers while a refresh ran.
    pub stale_hits: u64,
    /// Stale answers because a fill failed.
    pub stale_on_error: u64,
    /// Requests for which the origin was asked.
    pub misses: u64,
    /// Requests that took the answer of another's fill.
    pub collapsed: u64,
    /// Requests that passed by.
    pub bypassed: u64,
    /// Answers that were kept.
    pub stored: u64,
    /// Answers that were not.
    pub refused: u64,
    /// Entries found invalidated.
    pub invalid: u64,
    /// Entries found expired.
    pub expired: u64,
    /// Failures of larder's own.
    pub failed: u64,
    /// Answers that did not cost the origin anything, of all that could have been: 0 to 1.
    pub hit_ratio: f64,
    /// How long hits took; one in 64 is measured.
    pub hit_time: Latency,
    /// How long fills took.
    pub fill_time: Latency,
}

/// Quantiles of a duration, in nanoseconds, at most a quarter too long.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// Half took no longer.
    pub p50_nanos: u64,
    /// 95 of 100 took no longer.
    pub p95_nanos: u64,
    /// 99 of 100 took no longer.
    pub p99_nanos: u64,
}

impl CacheStats {
    pub(super) fn new(
        name: &str,
        total: &Reading,
        last_minute: &Reading,
        reasons: &BTreeMap<(&'static str, &'static str), u64>,
    ) -> Self {
        let of = |event: Event| {
            let named = reasons.iter().filter(|((name, _), _)| *name == event.name());
            named.map(|((_, reason), count)| (*reason, *count)).collect()
        };
        Self {
            name: name.to_owned(),
            total: CacheCounters::new(total),
            last_minute: CacheCounters::new(last_minute),
            bypasses: of(Event::Bypass("")),
            refusals: of(Event::Refused("")),
            errors: of(Event::Failed("")),
        }
    }
}

impl CacheCounters {
    fn new(reading: &Reading) -> Self {
        let of = |event: Event| reading.events[event.place()];
        let shared_hits = of(Event::SharedHit);
        let hits = of(Event::Hit) + shared_hits;
        let (stale_hits, stale_on_error) = (of(Event::StaleHit), of(Event::StaleOnError));
        let (misses, collapsed) = (of(Event::Miss), of(Event::Collapsed));
        let saved = hits + stale_hits + collapsed;
        // What stands in for an error was a miss first.
        let all = saved + misses;
        Self {
            hits,
            shared_hits,
            stale_hits,
            stale_on_error,
            misses,
            collapsed,
            bypassed: of(Event::Bypass("")),
            stored: of(Event::Stored),
            refused: of(Event::Refused("")),
            invalid: of(Event::Invalid),
            expired: of(Event::Expired),
            failed: of(Event::Failed("")),
            hit_ratio: if all == 0 { 0.0 } else { saved as f64 / all as f64 },
            hit_time: Latency::new(&reading.hits),
            fill_time: Latency::new(&reading.fills),
        }
    }
}

impl Latency {
    fn new(counts: &Counts) -> Self {
        let [p50_nanos, p95_nanos, p99_nanos] =
            [0.5, 0.95, 0.99].map(|share| nanos(counts.quantile(share)));
        Self { p50_nanos, p95_nanos, p99_nanos }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
