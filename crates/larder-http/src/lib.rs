//! The tower layers of larder.
//!
//! Applications depend on `larder`, which re-exports this crate as `larder::http`.
//!
//! - [`ResponseCacheLayer`] stores whole responses and serves them;
//! - [`ConditionalLayer`] adds validators and answers conditional requests;
//! - [`FinalHeadLayer`] reports to the response cache how outer layers have changed the head of a response;
//! - [`BodyKeyLayer`] makes responses to QUERY storable, and to POST requests that only read (search, GraphQL);
//! - [`InvalidationLayer`] invalidates after a write, before the client gets the response.
//!
//! Add them to one `ServiceBuilder` in this order, from outermost to innermost: final head, sessions and
//! authentication, conditional, invalidation, body key, response cache. Each layer returns an error of the inner service
//! unchanged. If larder itself fails, the request is a miss and still gets its response.
//!
//! With the feature `axum`, which `larder-axum` enables, the layers read the original URI, which axum's routers record
//! before a nested router strips its prefix.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "read-your-writes")]
pub use self::invalidation::ReadYourWrites;
#[cfg(feature = "axum")]
pub use self::matched_path::{MatchedPathLayer, MatchedPathService};
pub use self::{
    address::{Head, QueryRule, Scheme},
    body::{BoxError, CacheBody},
    body_key::{BodyKeyFuture, BodyKeyLayer, BodyKeyService},
    conditional::{
        ConditionalFuture, ConditionalLayer, ConditionalService, Conditions, FailedPrecondition,
    },
    final_head::{FinalHeadFuture, FinalHeadLayer, FinalHeadService},
    http_cache::HttpCache,
    identity::{Identity, IdentityFuture, IdentityLayer, IdentityService},
    invalidation::{
        InvalidationFuture, InvalidationLayer, InvalidationService, PendingInvalidations,
    },
    layer_future::LayerFuture,
    response_cache::{
        Decision, ExplainRequest, ExplainRequestError, Explanation, IntoPartition, LastRefusal,
        PartitionName, ResponseCache, ResponseCacheFuture, ResponseCacheLayer, ResponseOverrides,
        StoredHead, UnknownPartition, WarmRequest,
    },
};
pub use larder_semantics::{
    freshness::Heuristics,
    validation::{EntityTag, Validators},
};

mod address;
mod body;
mod body_key;
mod conditional;
mod etag;
mod final_head;
mod http_cache;
mod identity;
mod invalidation;
mod layer_future;
#[cfg(feature = "axum")]
mod matched_path;
#[doc(hidden)]
pub mod own_pages;
mod own_response;
mod ready;
mod recording;
mod response_cache;
