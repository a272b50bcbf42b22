//! Values in builds without the feature `second-level`, which have no encoded form.

use bytes::Bytes;

use super::value::{CacheValue, Object};

#[expect(clippy::unused_self, reason = "the signatures are those of the second level")]
impl<T: CacheValue> Object<T> {
    pub(super) fn decode(_: &Bytes) -> Option<Self> {
        None
    }

    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        None
    }

    pub(super) fn comes_back(&self) -> bool {
        false
    }
}
