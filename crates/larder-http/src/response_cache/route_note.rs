//! The route of a request, which the cache learns before or while the handler runs.
//!
//! A response cache inside a router reads the route from the request. One around a router learns it from the inside,
//! where a layer or an extractor notes it while the handler runs.

use std::sync::Arc;

use larder_core::kernel::{Kernel, Route, RouteId};
use parking_lot::Mutex;

/// The route of a request, as far as it is known. A clone is the same note.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteNote(Arc<Mutex<Option<Route>>>);

impl RouteNote {
    /// Notes the template of a router. The last note stays, because the innermost router knows the whole template.
    pub(super) fn note(&self, kernel: &Kernel, template: &str) {
        *self.0.lock() = Some(kernel.route(template));
    }

    pub(super) fn route(&self) -> Option<Route> {
        self.0.lock().clone()
    }

    pub(super) fn id(&self) -> RouteId {
        self.0.lock().as_ref().map_or(RouteId::UNMATCHED, Route::id)
    }

    /// Takes the route of a stored response, if none is known.
    pub(super) fn or_of(&self, stored: Option<&Route>) {
        let mut route = self.0.lock();
        if route.is_none() {
            *route = stored.cloned();
        }
    }
}
