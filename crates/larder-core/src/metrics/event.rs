//! Observer events: the outcomes of requests, and the changes of entries.

use crate::reason::Reason;

/// An observer event: an outcome of a request, or a change of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A fresh entry was served from the first level.
    Hit,
    /// A fresh entry was served from the second level.
    SharedHit,
    /// A stale entry was served while a refresh ran.
    StaleHit,
    /// The request was coalesced, that is, served by the fill of another request.
    Collapsed,
    /// No entry could be served; the request went to the origin or the loader.
    Miss,
    /// The request bypassed the cache, for this reason.
    Bypass(Reason),
    /// A stale entry was served because the fill failed.
    StaleOnError,
    /// A response or value was stored.
    Stored,
    /// A response or value was not stored, for this reason.
    Refused(Reason),
    /// A lookup found an entry that an invalidation had reached.
    Invalid,
    /// A lookup found an entry whose lifetime had ended.
    Expired,
    /// A fill, a refresh or another step failed, for this reason.
    Failed(Reason),
}

/// The number of kinds of events.
pub(super) const EVENTS: usize = 12;
/// The number of outcomes, which are the first kinds of events. Each request that is answered has exactly one of them.
pub(super) const OUTCOMES: usize = 6;

/// The names of the kinds of events, each at its [`place`](Event::place).
pub(super) const NAMES: [&str; EVENTS] = [
    "hit",
    "shared-hit",
    "stale-hit",
    "collapsed",
    "miss",
    "bypass",
    "stale-on-error",
    "stored",
    "refused",
    "invalid",
    "expired",
    "failed",
];

impl Event {
    /// Returns the name of the event in counters and logs.
    pub const fn name(self) -> &'static str {
        NAMES[self.place()]
    }

    /// Whether the event is the outcome of a request. Each request that is answered has exactly one outcome; a request that is served a
    /// stale entry because its fill failed is a miss.
    pub const fn is_outcome(self) -> bool {
        self.place() < OUTCOMES
    }

    pub(super) const fn place(self) -> usize {
        match self {
            Self::Hit => 0,
            Self::SharedHit => 1,
            Self::StaleHit => 2,
            Self::Collapsed => 3,
            Self::Miss => 4,
            Self::Bypass(_) => 5,
            Self::StaleOnError => 6,
            Self::Stored => 7,
            Self::Refused(_) => 8,
            Self::Invalid => 9,
            Self::Expired => 10,
            Self::Failed(_) => 11,
        }
    }

    pub(crate) const fn reason(self) -> Option<Reason> {
        match self {
            Self::Bypass(why) | Self::Refused(why) | Self::Failed(why) => Some(why),
            _ => None,
        }
    }
}
