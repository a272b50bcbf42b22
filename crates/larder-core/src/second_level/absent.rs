//! The replacement for the second level in builds without the feature `second-level`, a type without values.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;

use super::StoreLookup;
use crate::{
    engine::Engine,
    entry::{AnyEntry, Value},
    metrics::SecondLevelStats,
    scope::Scope,
    store::Store,
};

#[derive(Debug)]
pub(crate) enum SecondLevel {}

/// There are no options, because there is no second level to build.
#[derive(Clone, Debug, Default)]
pub(crate) struct SecondLevelOptions {}

#[expect(clippy::unused_self, reason = "the signatures are those of the second level")]
impl SecondLevelOptions {
    pub(crate) fn has_store(&self) -> bool {
        false
    }

    pub(crate) fn use_store(&mut self, _: Arc<dyn Store>) {}

    pub(crate) fn wait_limit(&self) -> Option<Duration> {
        None
    }

    pub(crate) fn build(self) -> Option<Arc<SecondLevel>> {
        None
    }
}

impl SecondLevel {
    #[cfg(feature = "metrics")]
    pub(crate) fn times(
        &self,
    ) -> (crate::metrics::histogram::Counts, crate::metrics::histogram::Counts) {
        match *self {}
    }

    pub(crate) fn stats(&self) -> SecondLevelStats {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "the signature is that of the second level")]
    pub(crate) async fn fetch<V: Value>(
        self: &Arc<Self>,
        _: &Arc<Engine>,
        _: &Scope,
        _: StoreLookup<'_>,
        _: impl FnOnce(Bytes) -> Option<V>,
    ) -> Option<AnyEntry> {
        match **self {}
    }

    #[expect(clippy::unused_async, reason = "the signature is that of the second level")]
    pub(crate) async fn fetch_many<V: Value>(
        self: &Arc<Self>,
        _: &Arc<Engine>,
        _: &Scope,
        _: &[StoreLookup<'_>],
        _: impl Fn(Bytes) -> Option<V>,
    ) -> Vec<Option<AnyEntry>> {
        match **self {}
    }

    #[expect(clippy::unused_async, reason = "the signature is that of the second level")]
    pub(crate) async fn peek(
        self: &Arc<Self>,
        _: &Arc<Engine>,
        _: StoreLookup<'_>,
    ) -> Option<Duration> {
        match **self {}
    }

    pub(crate) fn extend(self: &Arc<Self>, _: &Arc<Engine>, _: &AnyEntry) {
        match **self {}
    }

    pub(crate) fn write_behind(self: &Arc<Self>, _: &Arc<Engine>, _: &AnyEntry) {
        match **self {}
    }

    pub(crate) fn under_way(&self, _: &AnyEntry) -> Option<watch::Receiver<()>> {
        match *self {}
    }

    pub(crate) fn wait_limit(&self) -> Duration {
        match *self {}
    }

    pub(crate) fn seals(&self) -> bool {
        match *self {}
    }

    pub(crate) fn deadline(&self) -> Duration {
        match *self {}
    }
}
