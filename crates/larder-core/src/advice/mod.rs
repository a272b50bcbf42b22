//! Advice: what a larder would do better with another setting, from the traffic that it has seen.
//!
//! The histories of sampled keys, the reuse distances and the counters of routes tell most of it; a scan of stored responses
//! tells which request fields and query parameters do not matter. Nothing is computed before somebody calls
//! [`Larder::advice`](crate::Larder::advice), and requests pay for the [sketches](crate::traffic) only.

use std::time::Duration;

use serde::Serialize;

use crate::{
    explain::{KeyExplanation, Partitions},
    kernel::Kernel,
    metrics::Stats,
    traffic::Collected,
};

mod by_capacity;
mod by_entries;
mod by_history;
mod by_route;

/// What a piece of advice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AdviceKind {
    /// Most refills after the end of a lifetime gave the same value again, so the lifetime could be longer.
    LongerTtl,
    /// Almost every refill after the end of a lifetime gave another value, so stale values were served before it.
    ShorterTtl,
    /// Most keys are requested once.
    KeysRequestedOnce,
    /// A field of `Vary` does not change the response.
    UselessVary,
    /// A query parameter does not change the response.
    UselessParameter,
    /// More memory would give a better hit ratio.
    MoreMemory,
    /// Less memory would do.
    LessMemory,
    /// Requests wait for refills that could run before the lifetime ends.
    RefreshAhead,
    /// Requests after a start wait for slow fills that warming could do before.
    Warm,
    /// A key is requested at regular intervals that are longer than its lifetime.
    Preload,
    /// The hits of a route save less than caching costs.
    NotWorthCaching,
    /// Compared hits were made for another user.
    DiffersByUser,
    /// Compared hits were stale.
    StaleHits,
    /// The handler answers the same request differently.
    NotDeterministic,
}

/// A piece of advice.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// What it is about.
    pub kind: AdviceKind,
    /// The response cache, if it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cache: String,
    /// The route, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The field, the parameter, the key or the kind and the names of the values, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// The observation with its numbers, and the change.
    pub text: String,
}

/// The hot keys, and keys that were not requested for long.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyReport {
    /// The time to which the requests of hot keys belong: one to two minutes.
    pub hot_seconds: f64,
    /// The hottest keys, at most 100.
    pub hot: Vec<KeyTraffic>,
    /// The share of all keys that larder samples, 0 to 1.
    pub sampled: f64,
    /// Sampled keys of stored entries, those that were not requested for longest first, at most 100.
    pub cold: Vec<KeyTraffic>,
}

/// The requests of a key.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeyTraffic {
    /// The key.
    pub key: KeyExplanation,
    /// Its requests: of a hot key in the last one to two minutes, of a cold key since larder samples it.
    pub requests: u64,
    /// Seconds since its last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// The bytes of its entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Kernel {
    /// Begins to collect what [`advice`](crate::Larder::advice) and [`key_report`](Self::key_report) need.
    pub fn watch_traffic(&self) {
        self.engine().memory.traffic.watch();
    }

    /// Returns the hot and the cold keys. `None` before [`watch_traffic`](Self::watch_traffic).
    pub fn key_report(&self, partitions: Partitions) -> Option<KeyReport> {
        let collected = self.engine().memory.traffic.collected()?;
        let hot = collected.hot.keys.iter().map(|(key, requests)| KeyTraffic {
            key: self.explain_key(key, partitions),
            requests: *requests,
            idle_seconds: None,
            bytes: None,
        });
        let now = self.now();
        let mut stored: Vec<_> = collected
            .records
            .iter()
            .filter_map(|record| Some((record, &record.key.as_ref()?.0)))
            .filter(|(_, key)| self.find(key.as_bytes()).is_some())
            .collect();
        stored.sort_by_key(|(record, _)| record.last_request);
        let cold = stored.into_iter().take(MOST_COLD).map(|(record, key)| KeyTraffic {
            key: self.explain_key(key, partitions),
            requests: record.requests,
            idle_seconds: Some(now.since(record.last_request.max(collected.since)).as_secs()),
            bytes: Some(record.weight),
        });
        Some(KeyReport {
            hot_seconds: collected.hot.seconds,
            hot: hot.collect(),
            sampled: collected.share,
            cold: cold.collect(),
        })
    }

    /// Returns advice. It takes at most about 100 ms, most of it for a scan of stored responses.
    pub fn advice(&self, stats: &Stats) -> Vec<Advice> {
        let mut advice = by_route::advice(stats);
        if let Some(Collected { records, reuse, .. }) = self.engine().memory.traffic.collected() {
            advice.extend(by_history::advice(&records));
            advice.extend(by_capacity::advice(&reuse, &stats.memory));
        }
        advice.extend(by_entries::advice(self));
        advice.sort_by(|a, b| {
            (a.kind, &a.cache, &a.route, &a.about).cmp(&(b.kind, &b.cache, &b.route, &b.about))
        });
        advice
    }
}

/// Writes a duration as people do, with two digits.
fn readable(time: Duration) -> String {
    let (value, unit) = match time.as_secs_f64() {
        seconds if seconds < 1e-3 => (seconds * 1e6, "µs"),
        seconds if seconds < 1.0 => (seconds * 1e3, "ms"),
        seconds if seconds < 120.0 => (seconds, "s"),
        seconds if seconds < 7200.0 => (seconds / 60.0, "min"),
        seconds => (seconds / 3600.0, "h"),
    };
    format!("{value:.*} {unit}", usize::from(value < 9.95))
}

const MOST_COLD: usize = 100;
