//! The types that [`Larder::stats`](crate::Larder::stats) returns: counters, ready to be serialised.

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer};

use super::{
    Event,
    histogram::Counts,
    meter::{Meter, ObservedHits},
    route::{RouteCounters, RouteId, RouteNames},
    window::CounterValues,
};
use crate::{
    bus::Epoch,
    clock::Moment,
    memory::Evictions,
    reason::Reason,
    reports::{ServerState, ServerUsage, WriteBehindStats},
};

/// All counters of a larder at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The first level.
    pub memory: MemoryStats,
    /// The second level; all zeros if there is none.
    pub shared: SecondLevelStats,
    /// The invalidation log.
    pub log: LogStats,
    /// Invalidations since the start.
    pub invalidations: u64,
    /// Invalidations that the log did not confirm at once.
    pub invalidations_queued: u64,
    /// Invalidations that are queued for the log now.
    pub invalidations_pending: usize,
    /// Scheduled invalidations, and ends of grace periods, that are not due yet.
    pub invalidations_scheduled: usize,
    /// Fills that are in flight now.
    pub fills_running: usize,
    /// Values that were requested outside any scope although a layer opens scopes; see
    /// [`Larder::scoped`](crate::Larder::scoped).
    pub values_outside_scopes: u64,
    /// The counters of each named cache.
    pub caches: Vec<CacheStats>,
    /// The servers of the second level and of the log.
    pub servers: Vec<ServerState>,
    /// The write-behind queues.
    pub queues: Vec<WriteBehindStats>,
}

impl Stats {
    /// Returns the counters of one cache, if it was used.
    pub fn cache(&self, name: &str) -> Option<&CacheStats> {
        self.caches.iter().find(|cache| cache.name == name)
    }
}

/// Counters of the first level.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Entries that it holds.
    pub entries: usize,
    /// Bytes that these entries take.
    pub bytes: usize,
    /// The limit of these bytes.
    pub capacity_bytes: usize,
    /// Entries that it evicted, by cause.
    pub evictions: Evictions,
    /// Entries that it evicted in the last minute, accurate to five seconds.
    pub evictions_last_minute: Evictions,
}

/// Counters of the second level.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct SecondLevelStats {
    /// Reads that found a fresh and valid entry.
    pub hits: u64,
    /// Reads that found no fresh and valid entry, or that failed.
    pub misses: u64,
    /// Writes of entries, failed ones included.
    pub writes: u64,
    /// Commands that failed or timed out.
    pub errors: u64,
    /// Reads of bytes that could not be opened or decoded; such an entry is removed from the store.
    pub corrupt: u64,
    /// Writes that were dropped because 1,024 writes were under way, and reads that were dropped because the fill
    /// budget was used up.
    pub dropped: u64,
    /// Values that were not written because their bytes would deserialise to another value.
    pub lossy: u64,
    /// Values that were not written because they exceed
    /// [`Store::max_value_bytes`](crate::store::Store::max_value_bytes).
    pub too_large: u64,
    /// Durations of reads since the start, failed ones included.
    pub read_time: Latency,
    /// Durations of writes since the start, failed ones included.
    pub write_time: Latency,
    /// What its servers stored when larder last asked them. larder asks every 10 s while it
    /// [publishes metrics](crate::LarderBuilder::publish_metrics) or while a dashboard is open.
    pub usage: Option<ServerUsage>,
}

/// State of the invalidation log, as far as this process has followed it.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct LogStats {
    /// Whether other processes append to the log too.
    pub shared: bool,
    /// Its epoch, serialised as hexadecimal digits; `None` while this process has no view of the log.
    #[serde(serialize_with = "in_digits")]
    pub epoch: Option<Epoch>,
    /// The number of the last record that this process has applied.
    pub applied: u64,
    /// The time since larder last verified that this process had applied every record.
    pub lag: Duration,
    /// Whether this process has a view of the log, and `lag` is within
    /// [`LarderBuilder::max_lag`](crate::LarderBuilder::max_lag).
    pub synchronised: bool,
}

/// Serialises an epoch as a string, because most JSON readers would keep only 53 of its 128 bits.
fn in_digits<S: Serializer>(epoch: &Option<Epoch>, serializer: S) -> Result<S::Ok, S::Error> {
    epoch.map(|epoch| format!("{:032x}", epoch.to_bits())).serialize(serializer)
}

/// Counters of one named cache.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// The name given to the layer or the policy.
    pub name: String,
    /// Counts since the start.
    pub total: CacheCounters,
    /// Counts of the last minute, accurate to five seconds.
    pub last_minute: CacheCounters,
    /// Bypasses, by reason.
    pub bypasses: BTreeMap<Reason, u64>,
    /// Responses and values that were not stored, by reason.
    pub refusals: BTreeMap<Reason, u64>,
    /// Failures, by reason.
    pub errors: BTreeMap<Reason, u64>,
    /// The routes of this cache, if it is a response cache.
    pub routes: Vec<RouteStats>,
    /// For a cache that observes or has a shadow: the results of comparing hits with the responses of the handler, by route.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub observed: BTreeMap<String, ObservedHits>,
}

/// Counters of one route in one response cache, since the start.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RouteStats {
    /// The template of the router, such as `/products/{id}`; `unmatched` for requests of which no router has told a
    /// template, and `(other)` for all templates beyond the first 510.
    pub route: String,
    /// Requests.
    pub requests: u64,
    /// Fresh hits in either level.
    pub hits: u64,
    /// Fresh hits in the second level, also counted in `hits`.
    pub shared_hits: u64,
    /// Stale hits, served while a refresh ran.
    pub stale_hits: u64,
    /// Coalesced requests.
    pub collapsed: u64,
    /// Requests that went to the origin.
    pub misses: u64,
    /// Requests that bypassed the cache.
    pub bypassed: u64,
    /// `hits`, `stale_hits` and `collapsed` as a share of these and `misses`: 0 to 1. Bypasses do not count.
    pub hit_ratio: f64,
    /// Durations of fills.
    pub fill_time: Latency,
    /// The sum of the durations of all fills, in nanoseconds.
    pub fill_time_total_nanos: u64,
    /// Responses that were not stored and requests that bypassed the cache, by reason.
    pub refusals: BTreeMap<Reason, u64>,
}

/// What the cache saved the origin. Hits in the first level count by a random sample of one in 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Saved {
    /// The time that the fills of the served entries took, in microseconds.
    pub fill_time_micros: u64,
    /// The queries that ran in these fills.
    pub queries: u64,
    /// The bytes of the served bodies and values.
    pub bytes: u64,
}

/// Counts of one cache over some time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CacheCounters {
    /// Fresh hits in either level.
    pub hits: u64,
    /// Fresh hits in the second level, also counted in `hits`.
    pub shared_hits: u64,
    /// Stale hits, served while a refresh ran.
    pub stale_hits: u64,
    /// Stale entries that were served because a fill failed.
    pub stale_on_error: u64,
    /// Requests that went to the origin or the loader.
    pub misses: u64,
    /// Coalesced requests, which were served by the fill of another request.
    pub collapsed: u64,
    /// Requests that bypassed the cache.
    pub bypassed: u64,
    /// Responses and values that were stored.
    pub stored: u64,
    /// Responses and values that were not stored.
    pub refused: u64,
    /// Lookups that found an invalidated entry.
    pub invalid: u64,
    /// Lookups that found an expired entry.
    pub expired: u64,
    /// Failures of fills, refreshes and other steps.
    pub failed: u64,
    /// `hits`, `stale_hits` and `collapsed` as a share of these and `misses`: 0 to 1. Bypasses do not count.
    pub hit_ratio: f64,
    /// Durations of hits in the first level; one in 16 is measured.
    pub hit_time: Latency,
    /// Durations of fills.
    pub fill_time: Latency,
    /// What the cache saved the origin.
    pub saved: Saved,
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
    pub(super) fn of(meter: &Meter, names: &RouteNames, now: Moment) -> Self {
        let (total, last_minute) = meter.values_and_last_minute(now);
        let reasons = meter.reasons();
        let of = |event: Event| {
            let named = reasons.iter().filter(|((name, _), _)| *name == event.name());
            named.map(|((_, reason), count)| (*reason, *count)).collect()
        };
        let routes =
            meter.routes.all().map(|(route, counters)| RouteStats::of(names, route, counters));
        Self {
            name: meter.name().to_owned(),
            total: CacheCounters::new(&total),
            last_minute: CacheCounters::new(&last_minute),
            bypasses: of(Event::Bypass(ANY)),
            refusals: of(Event::Refused(ANY)),
            errors: of(Event::Failed(ANY)),
            routes: routes.collect(),
            observed: meter
                .observed()
                .into_iter()
                .map(|(route, hits)| (names.name(route).as_ref().to_owned(), hits))
                .collect(),
        }
    }
}

impl RouteStats {
    fn of(names: &RouteNames, route: RouteId, counters: &RouteCounters) -> Self {
        let [first_level, shared_hits, stale_hits, collapsed, misses, bypassed] =
            counters.outcomes();
        let hits = first_level + shared_hits;
        let saved = hits + stale_hits + collapsed;
        Self {
            route: names.name(route).to_string(),
            requests: saved + misses + bypassed,
            hits,
            shared_hits,
            stale_hits,
            collapsed,
            misses,
            bypassed,
            hit_ratio: share(saved, misses),
            fill_time: Latency::new(&counters.fills.counts()),
            fill_time_total_nanos: nanos(counters.fill_time()),
            refusals: counters.refusals(),
        }
    }
}

impl CacheCounters {
    fn new(reading: &CounterValues) -> Self {
        let of = |event: Event| reading.events[event.place()];
        let shared_hits = of(Event::SharedHit);
        let hits = of(Event::Hit) + shared_hits;
        let (stale_hits, stale_on_error) = (of(Event::StaleHit), of(Event::StaleOnError));
        let (misses, collapsed) = (of(Event::Miss), of(Event::Collapsed));
        // `stale_on_error` is left out, because each of these requests was counted as a miss or a bypass as well.
        let served = hits + stale_hits + collapsed;
        let [fill_time_micros, queries, bytes] = reading.saved;
        Self {
            hits,
            shared_hits,
            stale_hits,
            stale_on_error,
            misses,
            collapsed,
            bypassed: of(Event::Bypass(ANY)),
            stored: of(Event::Stored),
            refused: of(Event::Refused(ANY)),
            invalid: of(Event::Invalid),
            expired: of(Event::Expired),
            failed: of(Event::Failed(ANY)),
            hit_ratio: share(served, misses),
            hit_time: Latency::new(&reading.hits),
            fill_time: Latency::new(&reading.fills),
            saved: Saved { fill_time_micros, queries, bytes },
        }
    }
}

/// Returns `served` as a share of these and `misses`; 0 if there are none.
fn share(served: u64, misses: u64) -> f64 {
    match served + misses {
        0 => 0.0,
        all => served as f64 / all as f64,
    }
}

impl Latency {
    pub(crate) fn new(counts: &Counts) -> Self {
        let [p50_nanos, p95_nanos, p99_nanos] =
            [0.5, 0.95, 0.99].map(|share| nanos(counts.quantile(share)));
        Self { p50_nanos, p95_nanos, p99_nanos }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Events of one kind are counted together, so any reason can stand for all of them.
const ANY: Reason = Reason::Method;
