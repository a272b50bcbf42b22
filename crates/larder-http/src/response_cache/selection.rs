//! Selects the stored response of a request: that of its address, of its variant, or of an equivalent query.

use http::HeaderMap;
use larder_core::kernel::AnyEntry;
use larder_semantics::cache_status::Forward;

use super::{
    context::{CacheContext, RequestKey},
    stored::{no_vary_search::SearchKey, record::CacheRecord},
};

/// A request whose stored response is selected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection<'a> {
    pub(super) context: &'a CacheContext,
    pub(super) request_key: &'a RequestKey,
    /// The fields that select a variant.
    pub(super) selecting: &'a HeaderMap,
    /// The key of the address without its query, if the layer honours `No-Vary-Search`.
    pub(super) search: Option<&'a SearchKey>,
    /// Whether the variant that is selected counts as used.
    pub(super) notes_use: bool,
}

impl Selection<'_> {
    /// Returns what `decide` returns for the entry that the request selects. If it returns an error, an entry of an
    /// equivalent query may be selected instead.
    pub(super) fn select<T>(
        &self,
        decide: impl Fn(AnyEntry) -> Result<T, Forward>,
    ) -> Result<T, Forward> {
        let RequestKey { hash, key, .. } = self.request_key;
        match self.select_under(*hash, key.as_bytes(), &decide) {
            Err(Forward::UriMiss) => self.select_by_search(&decide),
            selected => selected,
        }
    }

    /// Selects among the equivalent queries under `No-Vary-Search`.
    fn select_by_search<T>(
        &self,
        decide: &impl Fn(AnyEntry) -> Result<T, Forward>,
    ) -> Result<T, Forward> {
        let kernel = &self.context.kernel;
        let search = self.search.ok_or(Forward::UriMiss)?;
        let rules = search.rules_key().ok().and_then(|key| kernel.find(key.as_bytes()));
        let Some(CacheRecord::SearchRules(rules)) =
            rules.as_ref().and_then(|rules| CacheRecord::of(rules))
        else {
            return Err(Forward::UriMiss);
        };
        let found = rules.all().iter().find_map(|variance| {
            let key = search.key(variance).ok()?;
            self.select_under(kernel.hash(key.as_bytes()), key.as_bytes(), decide).ok()
        });
        found.ok_or(Forward::UriMiss)
    }

    fn select_under<T>(
        &self,
        hash: u64,
        key: &[u8],
        decide: &impl Fn(AnyEntry) -> Result<T, Forward>,
    ) -> Result<T, Forward> {
        let kernel = &self.context.kernel;
        let entry = kernel.get(hash, key).ok_or(Forward::UriMiss)?;
        match CacheRecord::of(&entry) {
            Some(CacheRecord::Response(_)) => decide(entry),
            Some(CacheRecord::Variants(variants)) => {
                for candidate in variants.candidates(key, self.selecting) {
                    if let Some(found) = kernel.find(candidate.as_bytes()) {
                        if self.notes_use {
                            variants.touch(candidate.as_bytes());
                        }
                        return decide(found);
                    }
                }
                Err(Forward::VaryMiss)
            }
            _ => Err(Forward::UriMiss),
        }
    }
}
