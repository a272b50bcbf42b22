//! The verdict on an entry, by the log.

/// Whether an entry is still valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// No invalidation reaches it.
    Valid,
    /// A soft invalidation reaches it, so it is stale.
    Stale,
    /// A hard invalidation reaches it, so it must not be served.
    Invalid,
}
