//! The replacement for the publisher in builds without the feature `metrics`.

use crate::engine::Engine;

#[derive(Debug, Default)]
pub(crate) struct Publisher {}

#[expect(clippy::unused_self, reason = "the signature is that of the publisher")]
impl Publisher {
    pub(crate) fn publish(&self, _: &Engine) {}
}
