//! The outcome of a request, which is counted for its route once both are known. The route of a request that is served a
//! stored response is that of the response, unless a router encloses the cache.

use std::sync::Arc;

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
}

impl RequestOutcome {
    pub(super) fn new(meter: &Arc<Meter>, route: RouteNote) -> Self {
        Self { meter: Arc::clone(meter), route, event: Mutex::default() }
    }

    /// Notes an event, if it is the outcome of the request.
    pub(super) fn note(&self, event: Event) {
        if event.is_outcome() {
            *self.event.lock() = Some(event);
        }
    }

    /// Notes the entry that the request was served.
    pub(super) fn note_entry(&self, entry: &AnyEntry) {
        self.route.or_of(stored::of(entry).and_then(|stored| stored.route.as_ref()));
    }

    /// Counts the outcome, once.
    pub(super) fn count(&self) {
        if let Some(event) = self.event.lock().take() {
            self.meter.record_route(self.route.id(), event);
        }
    }
}

impl Drop for RequestOutcome {
    fn drop(&mut self) {
        self.count();
    }
}
