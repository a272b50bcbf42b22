//! Stores whole responses, and answers requests from them.

mod answer;
mod context;
mod differing_responses;
mod explain;
mod fill;
mod future;
mod hit_for_miss;
mod layer;
mod learnt_routes;
mod lookup;
mod miss;
mod observe;
mod options;
mod overrides;
mod refresh;
mod request;
mod request_outcome;
mod route_note;
mod selection;
mod service;
mod stale_if_error;
mod stored;
mod warm_request;

pub use self::{
    explain::{
        Decision, ExplainRequest, ExplainRequestError, Explanation, LastRefusal, StoredHead,
    },
    future::ResponseCacheFuture,
    layer::ResponseCacheLayer,
    options::{IntoPartition, PartitionName, UnknownPartition},
    overrides::ResponseOverrides,
    service::ResponseCache,
    warm_request::WarmRequest,
};

#[cfg(test)]
mod rfc_tests;
#[cfg(test)]
mod tests;
