//! Hit-for-miss: a record that the last response of a key was not storable. For a while, no request waits for a fill of
//! that key, because the request would probably wait in vain.

use std::time::Duration;

use larder_core::{
    Key, Reason,
    kernel::{EntryState, Kernel, KeyTooLongError},
};

use super::{fill::Fill, lookup::Lookup, stored::record::CacheRecord};

impl Fill {
    /// Stores a hit-for-miss record under the single-flight key.
    pub(super) fn remember_refusal(&self, why: Reason) {
        let Ok(key) = refusal_key(&self.flight_key) else { return };
        let time = self.context.options.refusal;
        let now = self.context.kernel.now();
        if let Some(entry) = self.context.bookkeeping(key, time, now, CacheRecord::Refusal(why)) {
            self.context.kernel.store(&entry);
        }
    }
}

impl Lookup {
    /// Returns the reason of the hit-for-miss record of this single-flight key, if there is a record.
    pub(super) fn refused_lately(&self) -> Option<Reason> {
        refused_until(&self.context.kernel, &self.flight_key).map(|(why, _)| why)
    }
}

/// Returns the reason of the hit-for-miss record of a single-flight key, and how much longer larder remembers it. `None` if
/// there is no record.
pub(super) fn refused_until(kernel: &Kernel, flight_key: &Key) -> Option<(Reason, Duration)> {
    let key = refusal_key(flight_key).ok()?;
    let entry = kernel.find(key.as_bytes())?;
    let now = kernel.now();
    match CacheRecord::of(&entry) {
        Some(CacheRecord::Refusal(why)) if kernel.entry_state(&entry, now) == EntryState::Fresh => {
            Some((*why, entry.fresh_until().since(now)))
        }
        _ => None,
    }
}

/// Returns the key of the hit-for-miss record of a single-flight key.
fn refusal_key(flight_key: &Key) -> Result<Key, KeyTooLongError> {
    flight_key.with_part(b" refused")
}
