//! The request side: the cache key, fields by their effect on the response, unkeyed inputs, POST responses that answer a later GET.

pub(super) mod credentials;
pub(super) mod key;
pub(super) mod post_as_get;
pub(super) mod request_fields;
pub(super) mod unkeyed;
