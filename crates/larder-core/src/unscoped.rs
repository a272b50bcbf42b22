//! Counts values that are requested outside any scope.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The counter of values that were requested outside any scope although a layer opens scopes for requests.
#[derive(Debug, Default)]
pub(crate) struct UnscopedLoads {
    /// Whether a layer has opened a scope.
    layered: AtomicBool,
    values: AtomicU64,
}

impl UnscopedLoads {
    #[inline]
    pub(crate) fn note_layer(&self) {
        // The flag is read before it is written, because all threads run this once for each request.
        if !self.layered.load(Ordering::Relaxed) {
            self.layered.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn note_value(&self) {
        if self.layered.load(Ordering::Relaxed) && self.values.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(
                target: "larder",
                "a value was requested outside any scope, so all clients share it and no page gets its tags. \
                 Wrap the tasks that a handler spawns in `Larder::scoped`. \
                 (logged once; counted in `values_outside_scopes`)"
            );
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.values.load(Ordering::Relaxed)
    }
}
