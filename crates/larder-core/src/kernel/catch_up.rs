//! Establishes a [`Consistency`]: compares the lag with a bound, and waits until the log is applied up to a position.

use std::time::Duration;

use super::Kernel;
use crate::{bus::Position, consistency::Consistency, engine::Engine, scope::Scope};

impl Kernel {
    /// Returns whether the lag is at most `bound`, which means that larder has verified within that time that every
    /// invalidation was applied.
    pub fn is_within(&self, bound: Duration) -> bool {
        self.engine().lag() <= bound
    }

    /// Returns whether the lag is within the bound of a scope, so that entries may be served in it. Callers must check
    /// again after each wait.
    pub fn is_within_bound_of(&self, scope: &Scope) -> bool {
        scope.bound().is_none_or(|bound| self.is_within(bound))
    }

    /// Returns whether the lag is within `max_lag` or the log is local, so that entries may be served without
    /// `unsynchronised` in the response.
    #[inline]
    pub fn is_synchronised(&self) -> bool {
        let engine = self.engine();
        !engine.follows_others || self.is_within(engine.max_lag)
    }

    /// Returns the position of the newest invalidation of this process in the log, which a client can carry from one
    /// process to another. `None` before the first invalidation, and with a local log.
    pub fn written(&self) -> Option<Position> {
        *self.engine().written.lock()
    }

    /// Waits until this process has applied the log up to `position`, for at most `wait`. Returns `false` on a timeout,
    /// and immediately for a position in an epoch that this process does not follow.
    ///
    /// With a local log it returns `true` immediately.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    #[doc(alias("read-your-writes", "session consistency", "causal consistency"))]
    pub async fn reach(&self, position: Position, wait: Duration) -> bool {
        let engine = self.engine();
        if !engine.follows_others {
            return true;
        }
        let reaching = async {
            while engine.registry.applied().is_some_and(|at| at.epoch == position.epoch) {
                if has_applied(engine, position).await {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(wait, reaching).await.unwrap_or(false)
    }

    /// Establishes `consistency`. Returns `false` if that fails. The caller must not serve entries then.
    ///
    /// A request takes its arrival number ([`Kernel::sequence`]) after this.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes and `consistency` is [`Consistency::Strong`].
    pub async fn catch_up(&self, consistency: Consistency) -> bool {
        let engine = self.engine();
        match consistency {
            _ if !engine.follows_others => true,
            Consistency::Eventual => true,
            Consistency::Bounded(bound) => {
                engine.note_bound(bound);
                self.is_within(bound)
            }
            Consistency::Strong => {
                let reached = tokio::time::timeout(engine.max_lag, reach_the_end(engine)).await;
                reached.unwrap_or(false)
            }
        }
    }
}

/// Requests the end of the log, and waits until it has been applied. Returns `false` if the log does not answer.
async fn reach_the_end(engine: &Engine) -> bool {
    let Ok(end) = engine.bus.end(None).await else { return false };
    while !has_applied(engine, end).await {}
    true
}

/// Returns `true` if the log has been applied up to `end`. Otherwise waits until more of it is applied and returns
/// `false`.
async fn has_applied(engine: &Engine, end: Position) -> bool {
    // It subscribes before the check, so that it does not miss a notification in between.
    let advanced = engine.advanced.notified();
    let applied = engine.registry.applied();
    if applied.is_some_and(|at| at.epoch == end.epoch && at.number >= end.number) {
        return true;
    }
    // Records are missing, the epoch is different, or there is no view yet, so this waits for the next notification by
    // the follower.
    advanced.await;
    false
}
