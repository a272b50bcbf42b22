//! Level placement: which levels store an entry, and for how long.

use std::time::Duration;

/// The levels that store an entry, and for how long each does.
///
/// # Examples
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
    /// No level, for an entry that is thrown away.
    pub(crate) const NONE: Self = Self { memory: None, shared: None, sealed: false };
    /// First level and, if there is one, second level. The default.
    pub const BOTH: Self =
        Self { memory: Some(Duration::MAX), shared: Some(Duration::MAX), sealed: false };
    /// First level only.
    pub const MEMORY: Self = Self { shared: None, ..Self::BOTH };
    /// Second level only. Each hit takes a round trip, and stale entries are not served. Without a second level the
    /// entry is not stored.
    pub const SHARED: Self = Self { memory: None, ..Self::BOTH };

    /// Limits the time in the first level, counted from when the entry was stored there. Later requests read it from
    /// the second level, if it is still fresh there. A stale window that ends after this limit is lost.
    #[must_use]
    pub const fn memory_for(mut self, longest: Duration) -> Self {
        if self.memory.is_some() {
            self.memory = Some(longest);
        }
        self
    }

    /// Limits the time in the second level.
    #[must_use]
    pub const fn shared_for(mut self, longest: Duration) -> Self {
        if self.shared.is_some() {
            self.shared = Some(longest);
        }
        self
    }

    /// Allows the second level to store the entries only sealed. A larder whose second level has no keys
    /// ([`LarderBuilder::seal_with`](crate::LarderBuilder::seal_with)) stores them in the first level only, and logs
    /// that once.
    #[must_use]
    pub const fn require_sealing(mut self) -> Self {
        self.sealed = true;
        self
    }

    /// Returns this placement for a value that cannot leave the process.
    pub(crate) fn in_process(self) -> Self {
        Self { shared: None, ..self }
    }

    /// Returns the limit of the time in the first level. `None` if the first level does not store the entry.
    pub fn in_memory(&self) -> Option<Duration> {
        self.memory
    }

    /// Returns the limit of the time in a second level. `seals` says whether that level seals entries. `None` if it may
    /// not store the entry.
    pub(crate) fn in_shared(&self, seals: bool) -> Option<Duration> {
        self.shared.filter(|_| seals || !self.sealed)
    }

    /// Returns whether the second level may store the entry only sealed.
    pub fn requires_sealing(&self) -> bool {
        self.sealed
    }

    /// Returns this placement with the sealing requirement of `earlier` added, so that a setter that replaces a
    /// placement does not drop the requirement.
    #[must_use]
    pub fn in_place_of(mut self, earlier: Self) -> Self {
        self.sealed |= earlier.sealed;
        self
    }
}

impl Default for Tiers {
    fn default() -> Self {
        Self::BOTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    #[test]
    fn a_placement_that_is_set_later_does_not_drop_the_sealing_requirement() {
        let hour = Duration::from_secs(3600);
        let policies = [
            Policy::ttl(hour).require_sealing().tiers(Tiers::BOTH),
            Policy::ttl(hour).tiers(Tiers::BOTH).require_sealing(),
        ];
        for policy in policies {
            assert_eq!(policy.tiers.in_shared(false), None, "without keys");
            assert!(policy.tiers.in_shared(true).is_some(), "with keys");
        }
    }
}
