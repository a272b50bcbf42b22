//! Values that were asked for where no request is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts values that were asked for outside of every scope although requests have scopes.
#[derive(Debug, Default)]
pub(crate) struct UnscopedLoads {
    /// Whether a layer has opened a scope.
    layered: AtomicBool,
    values: AtomicU64,
}

impl UnscopedLoads {
    #[inline]
    pub(crate) fn note_layer(&self) {
        // Read before it is written: all threads come here, once for each request.
        if !self.layered.load(Ordering::Relaxed) {
            self.layered.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn note_value(&self) {
        if self.layered.load(Ordering::Relaxed) && self.values.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(
                target: "larder",
                "a value was asked for outside of every request: it is everybody's, and no page has its tags. \
                 A task that a handler spawns takes its scope along by `Larder::scoped`. Said once; counted."
            );
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.values.load(Ordering::Relaxed)
    }
}
