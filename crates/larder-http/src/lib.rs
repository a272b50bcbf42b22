//! The tower layers of larder.
//!
//! Applications depend on `larder`, which has all of this as `larder::http`.
//!
//! - [`ResponseCacheLayer`] keeps whole responses and answers from them;
//! - [`ConditionalLayer`] adds validators and answers conditional requests;
//! - [`FinalHeadLayer`] lets the response cache know what layers outside of it have added;
//! - [`QueryMethodLayer`] lets responses to QUERY be kept;
//! - [`InvalidationLayer`] invalidates after a write, before the client has its answer.
//!
//! They go into one `ServiceBuilder`, in this order from the outside: final head, then sessions and
//! authentication, then conditional, invalidation, response cache. Each leaves the error of the inner service as it is; what fails of larder's own costs a hit, never
//! a response.
//!
//! With the feature `axum`, which `larder-axum` switches on, the layers read the URI that routers of axum note before
//! nesting strips its prefix.

pub use self::{
    address::{Head, QueryRule, Scheme},
    body::{BoxError, CacheBody},
    conditional::{ConditionalLayer, ConditionalService, Conditions},
    final_head::FinalHeadLayer,
    http_cache::HttpCache,
    invalidation::{InvalidationLayer, InvalidationService, PendingInvalidations, ReadYourWrites},
    query_method::{QueryMethod, QueryMethodLayer},
    response_cache::{ResponseCache, ResponseCacheLayer, ResponseOverrides},
};

pub mod conditional;
pub mod final_head;
pub mod http_cache;
pub mod invalidation;
pub mod query_method;
pub mod response_cache;

mod address;
mod body;
mod etag;
mod ready;
mod recording;
