//! Handles the inputs of requests: the cache key, classes of fields by their effect on the response, unkeyed inputs,
//! and POST responses that are stored for later GETs.

pub(super) mod credentials;
pub(super) mod key;
pub(super) mod post_as_get;
pub(super) mod request_fields;
pub(super) mod unkeyed;
