//! Values in builds without the feature `second-level`, which have no encoded form.

use bytes::Bytes;

use crate::schema::Schema;

#[expect(
    clippy::extra_unused_type_parameters,
    reason = "the signatures are those of the second level"
)]
pub(super) const fn schema<T>() -> Option<fn() -> Schema> {
    None
}

pub(super) fn from_bytes<T>(_: &Bytes) -> Option<T> {
    None
}

pub(super) fn to_bytes<T>(_: &T) -> Option<Vec<u8>> {
    None
}

pub(super) fn survives<T>(_: &T) -> bool {
    true
}
