//! Requests that warm the cache.

/// The extension of a request that warms the cache.
///
/// A [`ResponseCacheLayer`](super::ResponseCacheLayer) counts such a request in the cache named `warming`, and not as
/// traffic. It fills at most once in all processes that share the second level, and does not call the handler for a
/// request that bypasses the cache. Clients cannot send an extension, so no client can choose this.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct WarmRequest;

/// The name under which requests that warm the cache are counted.
pub(super) const WARMING: &str = "warming";
