//! The stand-in for `ReadYourWrites` in builds without the feature `read-your-writes`: a type without values.

use std::time::Duration;

use http::HeaderMap;
use larder_core::{kernel::Kernel, store::Position};

#[derive(Clone, Debug)]
pub(crate) enum ReadYourWrites {}

impl ReadYourWrites {
    pub(super) fn taken_from(&self, _: &mut HeaderMap, _: &Kernel) -> Option<Position> {
        match *self {}
    }

    pub(super) fn give(&self, _: &mut HeaderMap, _: &Kernel, _: Option<Position>, _: bool) {
        match *self {}
    }

    pub(super) fn patience(&self) -> Duration {
        match *self {}
    }
}
