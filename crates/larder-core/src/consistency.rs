//! How sure a request has to be that it has seen every invalidation.
//!
//! This bounds what of other processes has not been seen yet. The age of the data itself is bounded by
//! lifetimes; what this process invalidates is always seen at once.

use std::time::Duration;

use crate::{bus::Position, engine::Engine, kernel::Kernel, scope::Scope};

/// What may be served while this process may be behind the log.
///
/// Without a shared log all are the same: nobody else invalidates anything.
#[doc(alias("read-your-writes", "linearizable", "staleness bound"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// What is kept. While the log is out of reach for longer than the lease, responses say so. The default.
    #[default]
    Eventual,
    /// What is kept, if it was proved within this time that every invalidation was seen; else the origin is
    /// asked and nothing is kept of it. From its first use on the log is asked three times within the smallest
    /// such bound, though not more often than every 10 ms: a bound below 30 ms passes most of what is kept by.
    Bounded(Duration),
    /// What is kept, once the end of the log was asked for and reached: one round trip to it each time. Where
    /// that takes longer than the lease, the origin is asked and nothing is kept of it.
    Strong,
}

impl Kernel {
    /// Whether it was proved within `bound` that every invalidation was seen.
    pub fn is_within(&self, bound: Duration) -> bool {
        self.engine().lag() <= bound
    }

    /// Whether what is kept may be served in a scope: it was proved lately enough for its bound. Asked again after each
    /// wait.
    pub fn is_within_bound_of(&self, scope: &Scope) -> bool {
        scope.bound().is_none_or(|bound| self.is_within(bound))
    }

    /// Whether what is kept may be served without a word: within the lease, or with a log of our own.
    #[inline]
    pub fn is_synchronised(&self) -> bool {
        let engine = self.engine();
        !engine.follows_others || self.is_within(engine.lease)
    }

    /// The place of the newest invalidation that the log has taken from this process, for a client to carry
    /// from one process to the next. None for a log of its own.
    pub fn written(&self) -> Option<Position> {
        *self.engine().written.lock()
    }

    /// Whether invalidations of this process wait for the log to take them.
    pub fn has_unsent(&self) -> bool {
        self.engine().registry.waiting().0 > 0
    }

    /// Makes sure that this process has seen all up to a place of the log, within `wait`. `false` when that
    /// cannot be, and at once for a place in a log that this process does not know.
    ///
    /// With a log of its own a process has always seen it all.
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

    /// Makes sure of what `consistency` asks for. `false` when that cannot be: then nothing that is kept may
    /// be served.
    ///
    /// A request notes when it arrived after this.
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
                let reached = tokio::time::timeout(engine.lease, reach_the_end(engine)).await;
                reached.unwrap_or(false)
            }
        }
    }
}

/// Asks for the end of the log, and waits until it has been applied.
async fn reach_the_end(engine: &Engine) -> bool {
    let Ok(end) = engine.bus.end(None).await else { return false };
    while !has_applied(engine, end).await {}
    true
}

/// Whether all up to `end` has been applied; if not, after the log has moved on.
async fn has_applied(engine: &Engine, end: Position) -> bool {
    // Before the look: what comes between the two is not missed.
    let advanced = engine.advanced.notified();
    let applied = engine.registry.applied();
    if applied.is_some_and(|at| at.epoch == end.epoch && at.number >= end.number) {
        return true;
    }
    // Another log, or none yet: whoever follows it will find out.
    advanced.await;
    false
}
