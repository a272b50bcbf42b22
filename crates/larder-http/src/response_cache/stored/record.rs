//! The values that a response cache stores under its keys.

use std::any::Any;

use bytes::Bytes;
use larder_core::{
    Reason,
    kernel::{AnyEntry, EncodedValue, Kernel, Route, Schema, Value},
};

use crate::response_cache::{
    answer::cache_status::Extras,
    stored::{
        StoredResponse, header_template::HeaderInterner, no_vary_search::SearchRules,
        variants::Variants,
    },
};

/// A stored response, the variants or the `No-Vary-Search` rules of an address, or a hit-for-miss record.
#[derive(Debug)]
pub(in crate::response_cache) enum CacheRecord {
    Response(StoredResponse),
    Variants(Variants),
    /// The `No-Vary-Search` rules of an address.
    SearchRules(SearchRules),
    /// Hit-for-miss: the last response was not storable, for this reason.
    Refusal(Reason),
}

impl CacheRecord {
    pub(in crate::response_cache) fn of(entry: &AnyEntry) -> Option<&Self> {
        entry.value()
    }

    /// Returns the schema of the encoded bytes. Any change of the encoding needs another name.
    pub(in crate::response_cache) fn schema() -> Schema {
        Schema::named("response cache, 2")
    }

    pub(in crate::response_cache) fn decode(
        bytes: &Bytes,
        extras: Extras,
        interner: &HeaderInterner,
        kernel: &Kernel,
    ) -> Option<Self> {
        let rest = bytes.slice(1.min(bytes.len())..);
        match bytes.first()? {
            b'r' => StoredResponse::decode(&rest, extras, interner, kernel).map(Self::Response),
            b'v' => Variants::decode(&rest).map(Self::Variants),
            _ => None,
        }
    }
}

impl Value for CacheRecord {
    fn weight(&self) -> usize {
        match self {
            Self::Response(response) => response.weight(),
            Self::Variants(variants) => variants.weight(),
            // The weight is that of a full list, because the list grows after it is weighed.
            Self::SearchRules(_) => 1024,
            Self::Refusal(_) => 0,
        }
    }

    fn encode(&self) -> Option<EncodedValue> {
        let (letter, bytes) = match self {
            Self::Response(response) => (b'r', response.encode()),
            Self::Variants(variants) => (b'v', variants.encode()),
            // Each process learns these records by itself.
            Self::SearchRules(_) | Self::Refusal(_) => return None,
        };
        let mut all = vec![letter];
        all.extend(bytes?);
        Some(EncodedValue { schema: Self::schema(), bytes: all })
    }

    fn route(&self) -> Option<&Route> {
        match self {
            Self::Response(response) => response.route.as_ref(),
            _ => None,
        }
    }

    fn digest(&self) -> Option<u64> {
        match self {
            Self::Response(response) => Some(response.digest()),
            _ => None,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
