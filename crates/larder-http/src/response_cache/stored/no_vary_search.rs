//! Equivalent queries under `No-Vary-Search`. An entry for the address without its query lists the rules of the
//! responses. A response with a rule is stored under its query as the rule normalises it.
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

/// The key of an address without its query, and the query.
#[derive(Clone, Debug)]
pub(in crate::response_cache) struct SearchKey {
    base: Key,
    query: Option<String>,
}

/// The `No-Vary-Search` rules of the responses of an address, the latest first.
#[derive(Debug, Default)]
pub(in crate::response_cache) struct SearchRules(Mutex<Vec<SearchVariance>>);

impl SearchKey {
    pub(in crate::response_cache) fn new(base: &KeyBuf, query: Option<&str>) -> Option<Self> {
        Some(Self { base: base.finish().ok()?, query: query.map(str::to_owned) })
    }

    /// Returns the key of the rules of this address.
    pub(in crate::response_cache) fn rules_key(&self) -> Result<Key, KeyTooLongError> {
        self.base.with_part(b" rules")
    }

    /// Returns the key of a response with this rule.
    pub(in crate::response_cache) fn key(
        &self,
        variance: &SearchVariance,
    ) -> Result<Key, KeyTooLongError> {
        let mut key = KeyBuf::continued(self.base.as_bytes());
        key.push_pieces([FOR_MANY, format!("{variance:?}").as_bytes()]);
        key.push(&variance.normalised(self.query.as_deref()));
        key.finish()
    }

    /// Returns the rule and the key of a response with these fields, if it has `No-Vary-Search`.
    pub(in crate::response_cache) fn variance(
        &self,
        headers: &HeaderMap,
    ) -> Option<(SearchVariance, Key)> {
        let variance = SearchVariance::of(headers)?;
        let key = self.key(&variance).ok()?;
        Some((variance, key))
    }
}

impl SearchRules {
    pub(in crate::response_cache) fn all(&self) -> Vec<SearchVariance> {
        self.0.lock().clone()
    }

    pub(in crate::response_cache) fn add_status(&self, variance: SearchVariance) {
        let mut rules = self.0.lock();
        rules.retain(|known| *known != variance);
        rules.insert(0, variance);
        rules.truncate(MOST_RULES);
    }
}

/// The maximum number of rules per address. An address with more rules is not worth a longer lookup.
const MOST_RULES: usize = 4;
