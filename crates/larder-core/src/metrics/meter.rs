//! The counters of one named cache.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    event::{EVENTS, Event},
    histogram::Histogram,
    route::{RefusedResponse, RouteId, RouteTable},
    striped::StripedCounters,
    window::{CounterValues, Window},
};
use crate::{clock::Moment, entry::Entry, reason::Reason};

/// The counters of one named cache. Counting a hit is two additions to cache lines that few threads share.
#[derive(Debug)]
pub struct Meter {
    name: Arc<str>,
    events: StripedCounters<EVENTS>,
    reasons: Mutex<BTreeMap<(&'static str, Reason), u64>>,
    hits: Histogram,
    fills: Histogram,
    saved: StripedCounters<SAVED>,
    pub(super) routes: RouteTable,
    /// Whether it is the meter of a response cache, whose requests all belong to routes.
    has_routes: AtomicBool,
    window: Window<CounterValues>,
    /// What comparing would-be hits with the responses of the handler has shown, by route.
    observed: Mutex<BTreeMap<RouteId, ObservedHits>>,
}

/// The result of comparing a would-be hit with the response of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They are the same.
    Same,
    /// They differ, and the request has credentials that the cache does not distinguish.
    DiffersByUser,
    /// They differ, and the entry was still valid after `max_lag`.
    Stale,
    /// They differ, and the entry was invalidated within `max_lag`.
    Late,
    /// They differ, and so do two responses of the handler for the same entry.
    NotDeterministic,
}

/// Hits, or would-be hits of a cache that observes, that were compared with the responses of the handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ObservedHits {
    /// Responses that are the same as the stored ones.
    pub same: u64,
    /// Responses that differ from the stored ones, to requests with credentials that the cache does not distinguish: it would
    /// have served what was made for another user.
    pub differs_by_user: u64,
    /// Responses that differ from the stored ones, which were still valid after `max_lag`: they would have been stale. The first
    /// difference of a handler that answers each request differently counts here too.
    pub stale: u64,
    /// Responses that differ from the stored ones, which were invalidated within `max_lag`.
    pub late: u64,
    /// Responses that differ from the stored ones and from an earlier response of the handler for the same entry.
    pub not_deterministic: u64,
}

/// A value or response that was served from the cache, for [`Meter::sample`].
#[derive(Clone, Copy, Debug)]
pub struct ServedEntry<'a, V: ?Sized> {
    /// Its entry.
    pub entry: &'a Entry<V>,
    /// The bytes that the origin did not have to produce.
    pub bytes: usize,
}

impl<'a, V: ?Sized> ServedEntry<'a, V> {
    /// A value that saved all bytes of its entry.
    pub fn of(entry: &'a Entry<V>) -> Self {
        Self { entry, bytes: entry.weight() }
    }
}

impl Meter {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            events: StripedCounters::default(),
            reasons: Mutex::default(),
            hits: Histogram::new(),
            fills: Histogram::new(),
            saved: StripedCounters::default(),
            routes: RouteTable::default(),
            has_routes: AtomicBool::new(false),
            window: Window::new(),
            observed: Mutex::default(),
        }
    }

    /// Counts a would-be hit that was compared with the response of the handler.
    pub fn record_comparison(&self, route: RouteId, comparison: Comparison) {
        let mut observed = self.observed.lock();
        let hits = observed.entry(route).or_default();
        let count = match comparison {
            Comparison::Same => &mut hits.same,
            Comparison::DiffersByUser => &mut hits.differs_by_user,
            Comparison::Stale => &mut hits.stale,
            Comparison::Late => &mut hits.late,
            Comparison::NotDeterministic => &mut hits.not_deterministic,
        };
        *count += 1;
    }

    pub(super) fn observed(&self) -> BTreeMap<RouteId, ObservedHits> {
        self.observed.lock().clone()
    }

    /// Declares that this is the meter of a response cache.
    pub fn count_routes(&self) {
        self.has_routes.store(true, Ordering::Relaxed);
    }

    #[cfg(feature = "metrics")]
    pub(super) fn has_routes(&self) -> bool {
        self.has_routes.load(Ordering::Relaxed)
    }

    /// Counts an event.
    #[inline]
    pub fn record(&self, event: Event, now: Moment) {
        if self.window.is_over(now) {
            self.window.turn(now, || self.values());
        }
        self.events.count(event.place());
        if !matches!(event, Event::Hit) {
            self.explain(event);
        }
    }

    /// Counts the outcome of a request for its route. It does not count for the cache as a whole, which
    /// [`record`](Self::record) does.
    #[inline]
    pub fn record_route(&self, route: RouteId, event: Event) {
        let route = self.routes.of(route);
        route.count(event);
        if let Event::Bypass(why) | Event::Refused(why) = event {
            route.refuse(why);
        }
    }

    /// Notes why a response of a route is not stored, for [`last_refusal`](Self::last_refusal).
    pub fn note_refusal(&self, route: RouteId, reason: Reason, cause: Option<String>, at: Moment) {
        self.routes.of(route).note_refusal(RefusedResponse { reason, cause, at });
    }

    /// Returns the last response of a route that was not stored. Larder forgets hit-for-miss records after seconds, and
    /// this only when another one follows.
    pub fn last_refusal(&self, route: RouteId) -> Option<RefusedResponse> {
        self.routes.of(route).last_refusal()
    }

    /// Counts a hit. Returns whether to [`sample`](Self::sample) it. One hit in 16, chosen at random, stands for the
    /// others, because reading the clock costs as much as the lookup.
    #[inline]
    #[must_use]
    pub fn record_hit(&self, route: Option<RouteId>, began: Moment) -> bool {
        self.record(Event::Hit, began);
        if let Some(route) = route {
            self.routes.of(route).count(Event::Hit);
        }
        is_sampled()
    }

    /// Records the duration of a sampled hit, and counts what it saved 16 times.
    #[cold]
    pub fn sample<V: ?Sized>(&self, served: ServedEntry<'_, V>, took: Duration) {
        self.hits.record(took);
        self.save(served, SAMPLED);
    }

    /// Counts a request that was served an entry by another outcome than a plain hit: from the second level, a stale
    /// entry, or the entry of another request's fill.
    pub fn record_served<V: ?Sized>(&self, event: Event, served: ServedEntry<'_, V>, now: Moment) {
        self.record(event, now);
        self.save(served, 1);
    }

    fn save<V: ?Sized>(&self, ServedEntry { entry, bytes }: ServedEntry<'_, V>, times: u64) {
        let micros = u64::try_from(entry.cost().as_micros()).unwrap_or(u64::MAX);
        let saved = [micros, u64::from(entry.queries()), bytes as u64];
        for (place, saved) in saved.into_iter().enumerate() {
            self.saved.add(place, saved.saturating_mul(times));
        }
    }

    /// Records the duration of a fill.
    pub fn record_fill_time(&self, took: Duration, route: Option<RouteId>) {
        self.fills.record(took);
        if let Some(route) = route {
            self.routes.of(route).record_fill_time(took);
        }
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

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn reasons(&self) -> BTreeMap<(&'static str, Reason), u64> {
        self.reasons.lock().clone()
    }

    pub(super) fn values(&self) -> CounterValues {
        CounterValues {
            events: self.events.sums(),
            saved: self.saved.sums(),
            hits: self.hits.counts(),
            fills: self.fills.counts(),
        }
    }

    /// Returns the counts since the start, and those of the last minute.
    pub(super) fn values_and_last_minute(&self, now: Moment) -> (CounterValues, CounterValues) {
        if self.window.is_over(now) {
            self.window.turn(now, || self.values());
        }
        let values = self.values();
        let last_minute = values.since(&self.window.a_minute_ago());
        (values, last_minute)
    }
}

/// Returns `true` for one call in [`SAMPLED`], at random: a fixed step would always choose the same entry of a page that
/// requests as many.
#[inline]
fn is_sampled() -> bool {
    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
    }
    // A linear congruential generator, whose high bits are good.
    // Source: Knuth, *The Art of Computer Programming*, volume 2, section 3.3.4.
    let state = STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    STATE.set(state);
    (state >> 32).is_multiple_of(SAMPLED)
}

/// One hit in this many is sampled.
const SAMPLED: u64 = 16;
/// What the cache saved: microseconds of fills, queries, bytes.
pub(super) const SAVED: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_in_sixteen_is_sampled_and_no_step_repeats() {
        let sampled: Vec<bool> = (0..160_000).map(|_| is_sampled()).collect();
        let all = sampled.iter().filter(|is| **is).count();
        assert!((9_500..10_500).contains(&all), "{all}");
        for step in [2, 4, 8, 16, 17, 32] {
            for first in 0..step {
                let of_step = sampled.iter().skip(first).step_by(step).filter(|is| **is).count();
                let expected = 10_000 / step;
                assert!(of_step > expected / 2 && of_step < expected * 2, "{step} {of_step}");
            }
        }
    }
}
