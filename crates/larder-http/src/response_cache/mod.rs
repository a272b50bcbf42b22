//! Stores whole responses, and answers requests from them.
//!
//! Each request takes one of three paths. *Hit*: a fresh stored response answers, without a wait or a task.
//! *Miss*: one request, the leader, runs a fill: it calls the inner service in a task of its own. The other
//! requests for the same key are its waiters; they get the same response, complete or while it is in flight.
//! *Bypass*: larder forwards the request as if the layer were not there.
//!
//! larder stores a response to GET, under its effective URI and the request fields that it varies by, if both
//! are true:
//!
//! 1. it has a lifetime (by `Cache-Control`, `Expires`, or `CachePolicy` in the handler), or
//!    [`ttl`](ResponseCacheLayer::ttl) adds one;
//! 2. its body is no larger than [`body_limit`](ResponseCacheLayer::body_limit).
//!
//! larder does not store the following. `Cache-Status` and the counters name the reason:
//!
//! 1. a response with `no-store`, with `private` and no partition, with `no-cache` and no validator, with
//!    `Set-Cookie`, or with `Vary: *`;
//! 2. a response to an authenticated request (`Cookie`, `Authorization`, …), unless the response has `public`
//!    or `s-maxage`, the layer is [`shared`](ResponseCacheLayer::shared), or the request has a
//!    [partition](ResponseCacheLayer::partition_by);
//! 3. event streams, gRPC, upgrades, partial responses without a validator, and responses with trailers;
//! 4. an error, even with a lifetime, except 404, 410 and the statuses of
//!    [`negative_ttl`](ResponseCacheLayer::negative_ttl);
//! 5. a response that lives by [`ttl`](ResponseCacheLayer::ttl) alone, if its request has a field that is not
//!    known to be harmless;
//! 6. a response that an outer layer has made specific to one client, where a
//!    [`FinalHeadLayer`](crate::FinalHeadLayer) reports it.
//!
//! A stale response with a validator is revalidated with the inner service, and a 304 freshens it. Conditional
//! requests and ranges are answered from the stored response, and HEAD from that of a GET. Other methods bypass
//! the cache ([`QueryMethodLayer`](crate::QueryMethodLayer) adds QUERY); see
//! [`InvalidationLayer`](crate::InvalidationLayer) for their effect on entries.
//!
//! # Before deploying
//!
//! Behind a proxy that terminates TLS, set [`scheme`](ResponseCacheLayer::scheme). If pages depend on the user,
//! decide between `shared` and a partition; until then responses to authenticated requests are not cached.
//!
//! While a response may be stored, its handler does not see unkeyed inputs: larder strips `X-Forwarded-Host`
//! and the like, unless [`vary_by_header`](ResponseCacheLayer::vary_by_header) declares them, and the
//! parameters that [`query_params`](ResponseCacheLayer::query_params) leaves out. `X-Forwarded-Proto` holds the
//! scheme of the key.
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use bytes::Bytes;
//! use larder_core::Larder;
//! use larder_http::ResponseCacheLayer;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let larder = Larder::builder().build().expect("the defaults are valid");
//! let page = service_fn(|_: Request<Full<Bytes>>| async {
//!     Ok::<_, Infallible>(Response::new(Full::from("hello")))
//! });
//! let service = ServiceBuilder::new()
//!     .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)))
//!     .service(page);
//!
//! let ask = || Request::get("/").body(Full::default()).expect("a valid request");
//! let first = service.clone().oneshot(ask()).await.expect("it cannot fail");
//! assert_eq!(first.headers()["cache-status"], "larder; fwd=uri-miss; stored");
//! let second = service.oneshot(ask()).await.expect("it cannot fail");
//! assert_eq!(second.headers()["cache-status"], "larder; hit; ttl=59");
//! # }
//! ```

mod answer;
mod context;
mod fill;
mod future;
mod hit_for_miss;
mod layer;
mod lookup;
mod miss;
mod options;
mod overrides;
mod refresh;
mod request;
mod service;
mod stale_if_error;
mod stored;

pub use self::{
    future::ResponseFuture,
    layer::ResponseCacheLayer,
    options::{IntoPartition, UnknownPartition},
    overrides::ResponseOverrides,
    service::ResponseCache,
};

#[cfg(test)]
mod rfc_tests;
#[cfg(test)]
mod tests;
