//! Adaptive lifetimes: longer while loads return the same value, shorter when they return another.

use std::{sync::Arc, time::Duration};

use crate::{clock::Moment, entry::Value};

/// The bounds of an adaptive lifetime, and the comparison of two values.
pub(super) struct AdaptiveLifetime<T: 'static> {
    pub(super) floor: Duration,
    pub(super) ceiling: Duration,
    pub(super) is_same: fn(&T, &T) -> bool,
}

impl<T> Clone for AdaptiveLifetime<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for AdaptiveLifetime<T> {}

/// The changes of a value that this process has seen.
pub(super) struct ChangeNote<T: 'static> {
    content: Option<Arc<T>>,
    /// The present lifetime.
    fresh: Duration,
    changed: Moment,
    /// The mean time between the last changes; zero before the second change.
    between: Duration,
}

impl<T> AdaptiveLifetime<T> {
    /// Returns the note after a load at `now`, from the note of the load before it. Its lifetime is that of the value.
    ///
    /// The lifetime grows by a half after each load that returns the same value, and is halved by each change, but it is
    /// at most a third of the mean time between changes or, if that is longer, of the time since the last one. So it
    /// follows bursts within a few loads, and does not outgrow a value that changes at a constant rate.
    pub(super) fn next(
        self,
        before: Option<&ChangeNote<T>>,
        content: Option<&Arc<T>>,
        now: Moment,
    ) -> ChangeNote<T> {
        let content = content.cloned();
        let Some(before) = before else {
            return ChangeNote {
                content,
                fresh: self.floor,
                changed: now,
                between: Duration::ZERO,
            };
        };
        let is_same = match (&before.content, &content) {
            (Some(before), Some(now)) => (self.is_same)(before, now),
            (None, None) => true,
            _ => false,
        };
        let since = now.since(before.changed);
        let between = match (is_same, before.between) {
            (true, between) => between,
            (false, Duration::ZERO) => since,
            (false, between) => (between + since) / 2,
        };
        let fresh = if is_same { before.fresh * 3 / 2 } else { before.fresh / 2 };
        let most = between.max(if is_same { since } else { Duration::ZERO }) / 3;
        ChangeNote {
            content,
            fresh: fresh.min(most).clamp(self.floor, self.ceiling),
            changed: if is_same { before.changed } else { now },
            between,
        }
    }
}

impl<T> ChangeNote<T> {
    pub(super) fn fresh(&self) -> Duration {
        self.fresh
    }
}

impl<T: Send + Sync + 'static> Value for ChangeNote<T> {
    fn weight(&self) -> usize {
        // The value itself counts for its entry.
        size_of::<Self>()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
