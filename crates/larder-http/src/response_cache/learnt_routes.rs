//! The routes whose requests a response cache has seen, for explanations.
//!
//! axum builds the layers of a router without a state anew for each connection, so the routes belong to the layer and not to one
//! of its services.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use larder_core::kernel::{Route, RouteId};
use parking_lot::Mutex;

/// The routes of a layer.
#[derive(Debug, Default)]
pub(super) struct LearntRoutes {
    /// A bit for each route that is known, so that most requests take no lock.
    known: [AtomicU64; 8],
    routes: Mutex<BTreeMap<RouteId, Route>>,
}

impl LearntRoutes {
    /// Whether the route is known.
    pub(super) fn has(&self, id: RouteId) -> bool {
        let (word, bit) = place(id);
        self.known[word].load(Ordering::Relaxed) & bit != 0
    }

    /// Adds a route.
    pub(super) fn add(&self, route: Route) {
        let (word, bit) = place(route.id());
        self.routes.lock().entry(route.id()).or_insert(route);
        self.known[word].fetch_or(bit, Ordering::Relaxed);
    }

    /// Returns the routes for which `is` returns `true`.
    pub(super) fn matching(&self, is: impl Fn(&Route) -> bool) -> Vec<Route> {
        self.routes.lock().values().filter(|route| is(route)).cloned().collect()
    }
}

fn place(id: RouteId) -> (usize, u64) {
    let number = id.number() % 512;
    (number / 64, 1 << (number % 64))
}
