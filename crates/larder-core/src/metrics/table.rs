//! The metrics that larder publishes: names, units and attributes, by the conventions of OpenTelemetry.
//!
//! The guide has this table, and a test compares the two.

/// A metric that larder publishes through the `metrics` facade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// The name, such as `larder.requests`. An exporter for Prometheus writes `larder_requests_total`.
    pub name: &'static str,
    /// The instrument.
    pub instrument: Instrument,
    /// The unit, in the notation of [UCUM](https://ucum.org/ucum).
    pub unit: &'static str,
    /// The attributes. Each has few values: names of caches, templates of routes, words of larder, addresses of servers.
    pub attributes: &'static [&'static str],
    /// The sentence that describes it.
    pub description: &'static str,
}

/// The instrument of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Instrument {
    /// A sum that only grows.
    Counter,
    /// A value at one moment.
    Gauge,
    /// A distribution.
    Histogram,
}

impl Instrument {
    /// Returns the name of the instrument.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! metrics {
    ($($constant:ident = $instrument:ident $name:literal [$unit:literal] {$($attribute:ident),*}, $description:literal;)*) => {
        $(pub(super) const $constant: Metric = Metric {
            name: $name,
            instrument: Instrument::$instrument,
            unit: $unit,
            attributes: &[$($attribute),*],
            description: $description,
        };)*

        /// All metrics that larder publishes.
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

pub(super) const CACHE: &str = "larder.cache";
pub(super) const ROUTE: &str = "http.route";
pub(super) const OUTCOME: &str = "larder.outcome";
pub(super) const REASON: &str = "larder.reason";
pub(super) const LEVEL: &str = "larder.level";
pub(super) const CAUSE: &str = "larder.cause";
pub(super) const OPERATION: &str = "larder.operation";
pub(super) const ROLE: &str = "larder.role";
pub(super) const SERVER: &str = "server.address";
pub(super) const QUEUE: &str = "larder.queue";

metrics! {
    REQUESTS = Counter "larder.requests" ["{request}"] {CACHE, ROUTE, OUTCOME}, "Requests and calls, by outcome. Only response caches have routes.";
    HITS = Counter "larder.hits" ["{request}"] {CACHE, LEVEL}, "Fresh hits, by the level that had the entry.";
    STALE_ON_ERROR = Counter "larder.stale_on_error" ["{request}"] {CACHE}, "Stale entries that were served because a fill failed. Their requests count as misses.";
    BYPASSES = Counter "larder.bypasses" ["{request}"] {CACHE, REASON}, "Requests that bypassed the cache.";
    STORED = Counter "larder.stored" ["{entry}"] {CACHE}, "Responses and values that were stored.";
    REFUSALS = Counter "larder.refusals" ["{entry}"] {CACHE, REASON}, "Responses and values that were not stored.";
    FAILURES = Counter "larder.failures" ["{failure}"] {CACHE, REASON}, "Fills, refreshes and other steps that failed.";
    UNUSABLE = Counter "larder.unusable" ["{entry}"] {CACHE, CAUSE}, "Lookups that found an entry that was `invalidated` or had `expired`.";
    HIT_DURATION = Histogram "larder.hit.duration" ["s"] {CACHE}, "Durations of hits in the first level. One in 16 is measured.";
    FILL_DURATION = Histogram "larder.fill.duration" ["s"] {CACHE}, "Durations of fills.";
    ROUTE_FILL_TIME = Counter "larder.route.fill_time" ["us"] {CACHE, ROUTE}, "The sum of the durations of the fills of a route.";
    SAVED_TIME = Counter "larder.saved.time" ["us"] {CACHE}, "The time that the fills of the served entries took. From one hit in 16.";
    SAVED_QUERIES = Counter "larder.saved.queries" ["{query}"] {CACHE}, "The queries that ran in these fills. From one hit in 16.";
    SAVED_BYTES = Counter "larder.saved.size" ["By"] {CACHE}, "The bytes of the served bodies and values. From one hit in 16.";
    EVICTIONS = Counter "larder.evictions" ["{entry}"] {CAUSE}, "Entries that the first level evicted, by `size` (it is full) or `expired`.";
    ENTRIES = Gauge "larder.entries" ["{entry}"] {LEVEL}, "Entries in a level. In the second level, all keys of its database.";
    SIZE = Gauge "larder.size" ["By"] {LEVEL}, "Bytes in a level. In the second level, the memory of its servers.";
    CAPACITY = Gauge "larder.capacity" ["By"] {LEVEL}, "The limit of these bytes.";
    FILLS_RUNNING = Gauge "larder.fills.running" ["{fill}"] {}, "Fills in flight.";
    SECOND_LEVEL = Counter "larder.second_level.operations" ["{operation}"] {OUTCOME}, "Reads of the second level by `hit` and `miss`, its writes, and what failed.";
    SECOND_LEVEL_DURATION = Histogram "larder.second_level.duration" ["s"] {OPERATION}, "Durations of `read` and `write` in the second level.";
    BREAKER_OPEN = Gauge "larder.breaker.open" ["{circuit}"] {ROLE, SERVER}, "Circuits that are open, because the server does not answer.";
    LOG_LAG = Gauge "larder.log.lag" ["s"] {}, "The time since larder last verified that this process had applied every invalidation.";
    LOG_SYNCHRONISED = Gauge "larder.log.synchronised" ["1"] {}, "1 if this process has a view of the log and its lag is within `max_lag`, otherwise 0.";
    LOG_APPLIED = Gauge "larder.log.applied" ["{record}"] {}, "The number of the last record that this process has applied.";
    LOG_EPOCH = Gauge "larder.log.epoch" ["1"] {}, "A number that changes when the log is replaced. Its value has no other meaning.";
    INVALIDATIONS = Counter "larder.invalidations" ["{invalidation}"] {}, "Invalidations of this process.";
    INVALIDATIONS_QUEUED = Counter "larder.invalidations.queued" ["{invalidation}"] {}, "Invalidations that the log did not confirm at once.";
    INVALIDATIONS_PENDING = Gauge "larder.invalidations.pending" ["{invalidation}"] {}, "Invalidations that are queued for the log now.";
    INVALIDATIONS_SCHEDULED = Gauge "larder.invalidations.scheduled" ["{invalidation}"] {}, "Scheduled invalidations, and ends of grace periods, that are not due yet.";
    WRITE_BEHIND_QUEUED = Gauge "larder.write_behind.queued" ["{operation}"] {QUEUE}, "Operations that the sink does not have.";
    WRITE_BEHIND_AGE = Gauge "larder.write_behind.age" ["s"] {QUEUE}, "The age of the oldest of them.";
    WRITE_BEHIND_DEAD = Gauge "larder.write_behind.dead_letters" ["{operation}"] {QUEUE}, "Operations that the sink has rejected, and those behind them.";
    WRITE_BEHIND_WRITTEN = Counter "larder.write_behind.written" ["{operation}"] {QUEUE}, "Operations that were written.";
    WRITE_BEHIND_FAILURES = Counter "larder.write_behind.failures" ["{attempt}"] {QUEUE}, "Attempts to write that failed.";
    WRITE_BEHIND_STOPPED = Gauge "larder.write_behind.stopped" ["1"] {QUEUE}, "1 if the queue has stopped, otherwise 0.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_metric_has_a_name_of_its_own_and_a_sentence() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            assert!(
                metric.name.starts_with("larder.") && metric.description.ends_with('.'),
                "{metric:?}"
            );
        }
    }
}
