//! The answer side: 200, 206 or 304 of a stored response, `Cache-Status`, the fields for downstream caches.

pub(super) mod cache_status;
pub(super) mod conditions_and_range;
pub(super) mod downstream;
