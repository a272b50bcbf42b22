//! Publishes the counters through the `metrics` facade.
//!
//! Hits do not call the facade. Larder reads its counters once per interval, and publishes what has changed, so that
//! publishing costs a hit nothing. A recorder that is installed later than the larder was built is used too.

use std::collections::HashMap;

use metrics::{Label, SharedString, Unit};
use parking_lot::Mutex;

use super::{
    event::{Event, NAMES, OUTCOMES},
    histogram::Counts,
    table::{self, Instrument, METRICS, Metric},
};
use crate::{engine::Engine, reason::Reason};

/// What was published last, so that counters are published as differences. Several larders in one process add up.
#[derive(Debug, Default)]
pub(crate) struct Publisher(Mutex<Published>);

#[derive(Debug, Default)]
struct Published {
    counters: HashMap<Series, u64>,
    gauges: Vec<Series>,
    histograms: HashMap<Series, Counts>,
}

/// A metric with the values of its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Series {
    name: &'static str,
    values: Vec<(&'static str, SharedString)>,
}

/// The values of all series at one moment.
#[derive(Debug, Default)]
struct Samples {
    counters: HashMap<Series, u64>,
    gauges: HashMap<Series, f64>,
    histograms: Vec<(Series, Counts)>,
}

impl Publisher {
    /// Publishes all counters of a larder.
    pub(crate) fn publish(&self, engine: &Engine) {
        // Of two publications at once, the later one reads the counters later.
        let mut published = self.0.lock();
        let samples = samples(engine);
        // A recorder may have been installed since the last time.
        METRICS.iter().for_each(describe);
        for (series, value) in samples.counters {
            let last = published.counters.entry(series.clone()).or_default();
            let since = value.saturating_sub(*last);
            *last = value;
            metrics::counter!(series.name, series.labels()).increment(since);
        }
        for series in std::mem::take(&mut published.gauges) {
            if !samples.gauges.contains_key(&series) {
                // Its source is gone, such as a queue that was closed.
                metrics::gauge!(series.name, series.labels()).set(0.0);
            }
        }
        for (series, value) in samples.gauges {
            metrics::gauge!(series.name, series.labels()).set(value);
            published.gauges.push(series);
        }
        for (series, counts) in samples.histograms {
            let last = published.histograms.entry(series.clone()).or_default();
            let since = counts.since(last);
            *last = counts;
            let histogram = metrics::histogram!(series.name, series.labels());
            for (duration, count) in since.durations() {
                histogram.record_many(
                    duration.as_secs_f64(),
                    usize::try_from(count).unwrap_or(usize::MAX),
                );
            }
        }
    }
}

impl Series {
    fn labels(&self) -> Vec<Label> {
        self.values.iter().map(|(name, value)| Label::new(*name, value.clone())).collect()
    }
}

impl Samples {
    fn add(&mut self, metric: Metric, values: &[&str], value: f64) {
        // Two queues of one name in two namespaces are one series.
        *self.gauges.entry(series(metric, values)).or_default() += value;
    }

    fn count(&mut self, metric: Metric, values: &[&str], value: u64) {
        *self.counters.entry(series(metric, values)).or_default() += value;
    }

    fn distribute(&mut self, metric: Metric, values: &[&str], counts: Counts) {
        self.histograms.push((series(metric, values), counts));
    }
}

/// Returns the series of a metric with these values of its attributes, of which the empty ones are left out.
fn series(metric: Metric, values: &[&str]) -> Series {
    debug_assert_eq!(metric.attributes.len(), values.len(), "{}", metric.name);
    let values = metric.attributes.iter().zip(values).filter(|(_, value)| !value.is_empty());
    let values = values.map(|(name, value)| (*name, SharedString::from((*value).to_owned())));
    Series { name: metric.name, values: values.collect() }
}

fn describe(metric: &Metric) {
    let unit = match metric.unit {
        "s" => Unit::Seconds,
        "us" => Unit::Microseconds,
        "By" => Unit::Bytes,
        _ => Unit::Count,
    };
    let Metric { name, description, .. } = *metric;
    match metric.instrument {
        Instrument::Counter => metrics::describe_counter!(name, unit, description),
        Instrument::Gauge => metrics::describe_gauge!(name, unit, description),
        Instrument::Histogram => metrics::describe_histogram!(name, unit, description),
    }
}

fn samples(engine: &Engine) -> Samples {
    let mut samples = Samples::default();
    caches(engine, &mut samples);
    levels(engine, &mut samples);
    log(engine, &mut samples);
    queues(engine, &mut samples);
    samples
}

fn caches(engine: &Engine, samples: &mut Samples) {
    for meter in engine.observer.meters() {
        let (cache, values) = (meter.name(), meter.values());
        if values.events.iter().all(|count| *count == 0) {
            // A layer that was built and not used has no series.
            continue;
        }
        let of = |event: Event| values.events[event.place()];
        let by_outcome: [u64; OUTCOMES] = std::array::from_fn(|place| values.events[place]);
        for (route, counters) in meter.routes.all() {
            let name = engine.observer.routes.name(route);
            for (place, requests) in counters.outcomes().into_iter().enumerate() {
                if requests > 0 {
                    samples.count(table::REQUESTS, &[cache, &name, NAMES[place]], requests);
                }
            }
            let micros = u64::try_from(counters.fill_time().as_micros()).unwrap_or(u64::MAX);
            samples.count(table::ROUTE_FILL_TIME, &[cache, &name], micros);
        }
        if !meter.has_routes() {
            for (place, requests) in by_outcome.into_iter().enumerate() {
                samples.count(table::REQUESTS, &[cache, "", NAMES[place]], requests);
            }
        }
        samples.count(table::HITS, &[cache, "first"], of(Event::Hit));
        samples.count(table::HITS, &[cache, "second"], of(Event::SharedHit));
        samples.count(table::STALE_ON_ERROR, &[cache], of(Event::StaleOnError));
        samples.count(table::STORED, &[cache], of(Event::Stored));
        samples.count(table::UNUSABLE, &[cache, "invalidated"], of(Event::Invalid));
        samples.count(table::UNUSABLE, &[cache, "expired"], of(Event::Expired));
        for ((event, reason), count) in meter.reasons() {
            let metric = match event {
                event if event == Event::Bypass(ANY).name() => table::BYPASSES,
                event if event == Event::Refused(ANY).name() => table::REFUSALS,
                _ => table::FAILURES,
            };
            samples.count(metric, &[cache, reason.as_str()], count);
        }
        let [micros, queries, bytes] = values.saved;
        samples.count(table::SAVED_TIME, &[cache], micros);
        samples.count(table::SAVED_QUERIES, &[cache], queries);
        samples.count(table::SAVED_BYTES, &[cache], bytes);
        samples.distribute(table::HIT_DURATION, &[cache], values.hits);
        samples.distribute(table::FILL_DURATION, &[cache], values.fills);
    }
}

fn levels(engine: &Engine, samples: &mut Samples) {
    let memory = &engine.memory;
    let evictions = memory.evictions();
    samples.count(table::EVICTIONS, &["size"], evictions.size);
    samples.count(table::EVICTIONS, &["expired"], evictions.expired);
    samples.add(table::ENTRIES, &["first"], memory.entries() as f64);
    samples.add(table::SIZE, &["first"], memory.bytes() as f64);
    samples.add(table::CAPACITY, &["first"], memory.capacity() as f64);
    samples.add(table::FILLS_RUNNING, &[], engine.flights.running() as f64);
    if let Some(usage) = engine.reports.usage() {
        samples.add(table::ENTRIES, &["second"], usage.entries as f64);
        samples.add(table::SIZE, &["second"], usage.bytes as f64);
        if let Some(capacity) = usage.capacity_bytes {
            samples.add(table::CAPACITY, &["second"], capacity as f64);
        }
    }
    for server in engine.reports.servers() {
        samples.add(
            table::BREAKER_OPEN,
            &[server.role, &server.address],
            server.open_circuits as f64,
        );
    }
    let Some(shared) = &engine.shared else { return };
    let stats = shared.stats();
    for (outcome, count) in [
        ("hit", stats.hits),
        ("miss", stats.misses),
        ("write", stats.writes),
        ("error", stats.errors),
        ("corrupt", stats.corrupt),
        ("dropped", stats.dropped),
        ("lossy", stats.lossy),
        ("too-large", stats.too_large),
    ] {
        samples.count(table::SECOND_LEVEL, &[outcome], count);
    }
    let (reads, writes) = shared.times();
    samples.distribute(table::SECOND_LEVEL_DURATION, &["read"], reads);
    samples.distribute(table::SECOND_LEVEL_DURATION, &["write"], writes);
}

fn log(engine: &Engine, samples: &mut Samples) {
    let log = engine.log_stats();
    samples.add(table::LOG_LAG, &[], log.lag.as_secs_f64());
    samples.add(table::LOG_SYNCHRONISED, &[], f64::from(u8::from(log.synchronised)));
    samples.add(table::LOG_APPLIED, &[], log.applied as f64);
    let epoch = log.epoch.map_or(0, |epoch| epoch.to_bits() as u32);
    samples.add(table::LOG_EPOCH, &[], f64::from(epoch));
    let (invalidations, queued) = engine.observer.invalidations();
    samples.count(table::INVALIDATIONS, &[], invalidations);
    samples.count(table::INVALIDATIONS_QUEUED, &[], queued);
    let (pending, scheduled) = engine.registry.waiting();
    samples.add(table::INVALIDATIONS_PENDING, &[], pending as f64);
    samples.add(table::INVALIDATIONS_SCHEDULED, &[], scheduled as f64);
}

fn queues(engine: &Engine, samples: &mut Samples) {
    for queue in engine.reports.queues() {
        let name = &[queue.name.as_str()];
        samples.add(table::WRITE_BEHIND_QUEUED, name, queue.queued as f64);
        samples.add(table::WRITE_BEHIND_AGE, name, queue.oldest.as_secs_f64());
        samples.add(table::WRITE_BEHIND_DEAD, name, queue.dead_letters as f64);
        samples.count(table::WRITE_BEHIND_WRITTEN, name, queue.written);
        samples.count(table::WRITE_BEHIND_FAILURES, name, queue.failures);
        samples.add(
            table::WRITE_BEHIND_STOPPED,
            name,
            f64::from(u8::from(queue.stopped.is_some())),
        );
    }
}

/// Events of one kind have one name, so any reason can stand for all of them.
const ANY: Reason = Reason::Method;
