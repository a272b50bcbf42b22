//! Builds answers: 200, 206 or 304 from a stored response, `Cache-Status`, and the fields for downstream caches.

pub(super) mod cache_status;
pub(super) mod conditions_and_range;
pub(super) mod downstream;
