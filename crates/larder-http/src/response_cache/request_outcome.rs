//! The outcome of a request, which is counted for its route once both are known. The route of a request that is served a
//! stored response is that of the response, unless a router encloses the cache.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use larder_core::kernel::{AnyEntry, Event, Meter};
use parking_lot::Mutex;

use super::{route_note::RouteNote, stored};

/// The outcome of a request, which is counted for its route when the request is answered, or when its future is
/// dropped.
#[derive(Debug)]
pub(super) struct RequestOutcome {
    meter: Arc<Meter>,
    pub(super) route: RouteNote,
    event: Mutex<Option<Event>>,
    is_counted: AtomicBool,
    /// The duration of the fill of the entry that the request was served.
    fill_time: Mutex<Option<Duration>>,
}

impl RequestOutcome {
    pub(super) fn new(meter: &Arc<Meter>, route: RouteNote) -> Self {
        Self {
            meter: Arc::clone(meter),
            route,
            event: Mutex::default(),
            is_counted: AtomicBool::new(false),
            fill_time: Mutex::default(),
        }
    }

    /// Notes an event, if it is the outcome of the request.
    pub(super) fn note(&self, event: Event) {
        if event.is_outcome() {
            *self.event.lock() = Some(event);
        }
    }

    /// Notes the entry that the request was served.
    pub(super) fn note_entry(&self, entry: &AnyEntry) {
        *self.fill_time.lock() = Some(entry.cost());
        self.route.or_of(stored::of(entry).and_then(|stored| stored.route.as_ref()));
    }

    /// Counts the outcome, once.
    pub(super) fn count(&self) {
        if let Some(event) = *self.event.lock()
            && !self.is_counted.swap(true, Ordering::Relaxed)
        {
            self.meter.record_route(self.route.id(), event);
        }
    }

    /// Adds the outcome and the duration of the request to the fields of its response.
    pub(super) fn add_server_timing(&self, headers: &mut HeaderMap, took: Duration) {
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        let outcome = self.event.lock().map_or("bypass", Event::name);
        let mut line = format!("cache;desc={outcome};dur={:.3}", millis(took));
        if let Some(fill_time) = *self.fill_time.lock() {
            line.push_str(&format!(", fill;dur={:.3}", millis(fill_time)));
        }
        let line = HeaderValue::from_str(&line).expect("words and numbers are visible ASCII");
        headers.append(HeaderName::from_static("server-timing"), line);
    }
}

impl Drop for RequestOutcome {
    fn drop(&mut self) {
        self.count();
    }
}
