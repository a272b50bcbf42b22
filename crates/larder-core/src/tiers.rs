//! Where something is kept.

use std::time::Duration;

/// The tiers in which something is kept, and for how long in each.
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Policy, Tiers};
///
/// let hour = Duration::from_secs(3600);
/// // Large and seldom read: all processes share one copy, and each holds it for no more than a minute.
/// let policy = Policy::ttl(hour).tiers(Tiers::BOTH.memory_for(hour / 60));
/// # let _ = policy;
/// ```
#[doc(alias("L1 only", "L2 only", "placement", "tier ttl"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiers {
    memory: Option<Duration>,
    shared: Option<Duration>,
    sealed: bool,
}

impl Tiers {
    /// In memory and, where there is one, in the shared store. The default.
    pub const BOTH: Self =
        Self { memory: Some(Duration::MAX), shared: Some(Duration::MAX), sealed: false };
    /// In the memory of this process alone.
    pub const MEMORY: Self = Self { shared: None, ..Self::BOTH };
    /// In the shared store alone: each hit is a round trip, and nothing is served stale. Without a store it is
    /// not kept.
    pub const SHARED: Self = Self { memory: None, ..Self::BOTH };

    /// Serves it from memory for no longer than this, counted from when it came there; whoever asks later takes
    /// it from the shared store, if it is still fresh there: a stale window that outlasts this is lost.
    #[must_use]
    pub const fn memory_for(mut self, longest: Duration) -> Self {
        if self.memory.is_some() {
            self.memory = Some(longest);
        }
        self
    }

    /// Leaves it in the shared store for no longer than this.
    #[must_use]
    pub const fn shared_for(mut self, longest: Duration) -> Self {
        if self.shared.is_some() {
            self.shared = Some(longest);
        }
        self
    }

    /// Lets entries reach the second level only sealed. A larder whose second level has no keys
    /// ([`LarderBuilder::seal_with`](crate::LarderBuilder::seal_with)) keeps them in memory alone, and logs that once.
    #[must_use]
    pub const fn require_sealing(mut self) -> Self {
        self.sealed = true;
        self
    }

    /// For how long it is held in memory, if it is.
    pub fn in_memory(&self) -> Option<Duration> {
        self.memory
    }

    /// For how long an entry may lie in a second level that `seals` entries or not. `None` where it may not.
    pub(crate) fn in_shared(&self, seals: bool) -> Option<Duration> {
        self.shared.filter(|_| seals || !self.sealed)
    }

    /// Whether entries may reach the second level only sealed.
    pub(crate) fn requires_sealing(&self) -> bool {
        self.sealed && self.shared.is_some()
    }
}

impl Default for Tiers {
    fn default() -> Self {
        Self::BOTH
    }
}
