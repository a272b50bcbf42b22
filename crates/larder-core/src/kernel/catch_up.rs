//! Establishes a [`Consistency`]: compares the lag with a bound, and waits until the log is applied up to a position.

use std::time::Duration;

use super::Kernel;
use crate::{bus::Position, consistency::Consistency, engine::Engine, scope::Scope};

impl Kernel {
    /// Whether the lag is at most `bound`: within that time, every invalidation was proved to be applied.
    pub fn is_within(&self, bound: Duration) -> bool {
        self.engine().lag() <= bound
    }

    /// Whether entries may be served in a scope: the lag is within its bound. To be checked again after each wait.
    pub fn is_within_bound_of(&self, scope: &Scope) -> bool {
        scope.bound().is_none_or(|bound| self.is_within(bound))
    }

    /// Whether entries may be served without `unsynchronised` in the response: the lag is within `max_lag`, or the
    /// log is local.
    #[inline]
    pub fn is_synchronised(&self) -> bool {
        let engine = self.engine();
        !engine.follows_others || self.is_within(engine.max_lag)
    }

    /// The position of the newest invalidation that the log has taken from this process, for a client to carry from
    /// one process to the next. `None` before the first, and with a local log.
    pub fn written(&self) -> Option<Position> {
        *self.engine().written.lock()
    }

    /// Waits until this process has applied the log up to `position`, for at most `wait`. Returns `false` on a
    /// timeout, and at once for a position in an epoch that this process does not follow.
    ///
    /// With a local log it returns `true` at once.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, where the log is shared with other processes.
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

    /// Establishes `consistency`. Returns `false` if that fails: then no entry may be served.
    ///
    /// A request takes its arrival number ([`Kernel::sequence`]) after this.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, where the log is shared with other processes and `consistency` is
    /// [`Consistency::Strong`].
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
    // Subscribed before the check, so that no notification in between is missed.
    let advanced = engine.advanced.notified();
    let applied = engine.registry.applied();
    if applied.is_some_and(|at| at.epoch == end.epoch && at.number >= end.number) {
        return true;
    }
    // Records are missing, the epoch is another one, or there is no view yet: the follower will notify.
    advanced.await;
    false
}
