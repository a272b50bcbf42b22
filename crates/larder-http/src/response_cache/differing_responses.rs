//! Tells a handler that answers each request differently from one whose response has changed.

use std::collections::HashMap;

use bytes::Bytes;
use http::StatusCode;
use larder_core::{
    Key,
    kernel::{AnyEntry, Moment},
};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The last response of the handler for each entry from which it differed.
#[derive(Debug, Default)]
pub(super) struct DifferingResponses(Mutex<HashMap<Key, (Moment, u64)>>);

impl DifferingResponses {
    /// Notes a response that differs from an entry. Returns whether it also differs from the last one that did.
    pub(super) fn differs_again(
        &self,
        entry: &AnyEntry,
        status: StatusCode,
        whole: &Bytes,
    ) -> bool {
        let digest = xxh3_64_with_seed(whole, u64::from(status.as_u16()));
        let mut last = self.0.lock();
        if last.len() >= MOST_DIFFERING {
            last.clear();
        }
        let filled = entry.ends().filled();
        let before = last.insert(entry.key().clone(), (filled, digest));
        before.is_some_and(|before| before.0 == filled && before.1 != digest)
    }
}

const MOST_DIFFERING: usize = 1024;
