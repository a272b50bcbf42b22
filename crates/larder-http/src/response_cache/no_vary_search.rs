//! Queries that mean the same: under the address without its query lies a list of what its responses have said
//! by `No-Vary-SearchKey`; a response that says so lies under what is left of its query.
//!
//! # Source
//!
//! [draft-ietf-httpbis-no-vary-search](https://datatracker.ietf.org/doc/draft-ietf-httpbis-no-vary-search/)

use http::HeaderMap;
use larder_core::{
    Key,
    kernel::{FOR_MANY, KeyBuf, KeyTooLongError},
};
use larder_semantics::no_vary_search::SearchVariance;
use parking_lot::Mutex;

/// An address without its query, and the query.
#[derive(Clone, Debug)]
pub(super) struct SearchKey {
    base: Key,
    query: Option<String>,
}

/// What the responses of an address have said of its queries, the latest first.
#[derive(Debug, Default)]
pub(super) struct SearchRules(Mutex<Vec<SearchVariance>>);

impl SearchKey {
    pub(super) fn new(base: &KeyBuf, query: Option<&str>) -> Option<Self> {
        Some(Self { base: base.finish().ok()?, query: query.map(str::to_owned) })
    }

    /// Where the rules of this address lie.
    pub(super) fn rules_key(&self) -> Result<Key, KeyTooLongError> {
        self.base.with_part(b" rules")
    }

    /// Where a response lies that says this of its query.
    pub(super) fn key(&self, variance: &SearchVariance) -> Result<Key, KeyTooLongError> {
        let mut key = KeyBuf::continued(self.base.as_bytes());
        key.push_pieces([FOR_MANY, format!("{variance:?}").as_bytes()]);
        key.push(&variance.normalised(self.query.as_deref()));
        key.finish()
    }

    /// Where a response with these fields lies, if it says that queries mean the same.
    pub(super) fn told(&self, headers: &HeaderMap) -> Option<(SearchVariance, Key)> {
        let variance = SearchVariance::of(headers)?;
        let key = self.key(&variance).ok()?;
        Some((variance, key))
    }
}

impl SearchRules {
    pub(super) fn all(&self) -> Vec<SearchVariance> {
        self.0.lock().clone()
    }

    pub(super) fn note(&self, variance: SearchVariance) {
        let mut rules = self.0.lock();
        rules.retain(|known| *known != variance);
        rules.insert(0, variance);
        rules.truncate(MOST_RULES);
    }
}

/// An address whose responses say ever other things is not worth a longer look.
const MOST_RULES: usize = 4;
