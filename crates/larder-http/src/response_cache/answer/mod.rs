//! The answer side: 200, 206 or 304 of a stored response, `Cache-Status`, the fields for downstream caches.

pub(super) mod conditional_range;
pub(super) mod downstream;
pub(super) mod status_header;
