//! The consistency of a request: how far this process may lag behind the invalidations by other processes.
//!
//! It limits how long this process may have missed invalidations by other processes. Lifetimes limit the age of the
//! data itself, and invalidations by this process act at once.

use std::time::Duration;

/// The condition for serving entries while this process may lag behind the log.
///
/// Without a shared log all conditions are the same, because no other process invalidates anything.
#[doc(alias("read-your-writes", "linearizable", "staleness bound"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// Serves entries at any lag. While the lag exceeds [`max_lag`](crate::LarderBuilder::max_lag), responses have
    /// `detail=unsynchronised` in `Cache-Status`. The default.
    #[default]
    Eventual,
    /// Serves entries if larder has verified within this time that this process has applied every invalidation.
    /// Otherwise the request goes to the origin and its response is not stored. From the first use on, larder requests
    /// the end of the log three times within the smallest such bound, but at most every 10 ms, so a bound below 30 ms
    /// makes most requests bypass the cache.
    Bounded(Duration),
    /// Serves entries once this process has applied the log up to its current end, which takes one round trip to the
    /// log each time. If that fails or takes longer than [`max_lag`](crate::LarderBuilder::max_lag), the request goes
    /// to the origin and its response is not stored.
    Strong,
}
