//! The lag behind the invalidations of other processes that a request accepts.
//!
//! It bounds the invalidations of other processes that this one has not seen yet. Lifetimes bound the age of the
//! data itself; invalidations of this process act at once.

use std::time::Duration;

/// The condition for serving entries while this process may lag behind the log.
///
/// Without a shared log all conditions are the same: no other process invalidates anything.
#[doc(alias("read-your-writes", "linearizable", "staleness bound"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// Serves entries at any lag. While the lag exceeds [`max_lag`](crate::LarderBuilder::max_lag), responses say
    /// so. The default.
    #[default]
    Eventual,
    /// Serves entries if this process was proved, within this time, to have applied every invalidation; otherwise
    /// the request goes to the origin and nothing of it is stored. From the first use on, larder requests the end
    /// of the log three times within the smallest such bound, but at most every 10 ms: a bound below 30 ms makes
    /// most requests bypass the cache.
    Bounded(Duration),
    /// Serves entries once this process has applied the log up to its current end: one round trip to the log each
    /// time. If that fails or takes longer than [`max_lag`](crate::LarderBuilder::max_lag), the request goes to the
    /// origin and nothing of it is stored.
    Strong,
}
