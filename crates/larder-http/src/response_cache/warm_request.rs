//! Requests that warm the cache.

use http::HeaderName;

use super::request::credentials::is_credentials;

/// The extension of a request that warms the cache.
///
/// A [`ResponseCacheLayer`](super::ResponseCacheLayer) counts such a request in the cache named `warming`, and not as
/// traffic. Processes that share a second level fill a response once, unless that takes longer than ten seconds. A request
/// that bypasses the cache does not reach the handler. Clients cannot send an extension, so no client can choose this.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct WarmRequest {
    /// Whether the response has to belong to a partition. Otherwise a response that was made for a principal could be
    /// stored for all, since a warm request has no credentials.
    pub needs_partition: bool,
}

impl WarmRequest {
    /// Creates the extension of a request whose response has to belong to a partition.
    pub fn of_partition() -> Self {
        Self { needs_partition: true }
    }

    /// Returns whether a request field carries credentials, so that a warm request must not have it.
    pub fn refuses(field: &HeaderName) -> bool {
        is_credentials(field.as_str())
    }
}

/// The name under which requests that warm the cache are counted.
pub(super) const WARMING: &str = "warming";
