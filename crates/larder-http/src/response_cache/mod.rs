//! Keeps whole responses, and answers from them.
//!
//! A request goes one of three ways. *Hit*: a fresh entry answers, without a wait or a task. *Miss*: one
//! of all who ask for the same thing asks the inner service, in a task of its own, and the others wait or
//! read along. *Bypass*: the request goes on as if the layer were not there.
//!
//! It is kept:
//!
//! 1. a response to GET that says how long it lives (`Cache-Control`, `Expires`, or the handler by
//!    `CachePolicy`), or to which [`ttl`](ResponseCacheLayer::ttl) adds a lifetime;
//! 2. up to [`body_limit`](ResponseCacheLayer::body_limit), under its effective URI and the fields it
//!    varies by.
//!
//! It is not kept, each with a name that `Cache-Status` and the counters give:
//!
//! 1. what says `no-store` or `private`, or `no-cache` without a validator, sets a cookie, or varies by `*`;
//! 2. what answers a request that says who asks (`Cookie`, `Authorization`, …), unless the response says
//!    `public` or `s-maxage`, the layer is [`shared`](ResponseCacheLayer::shared), or there is a
//!    [partition](ResponseCacheLayer::partition_by);
//! 3. event streams, gRPC, upgrades, parts without a validator, and what has trailers;
//! 4. an error, whatever lifetime it claims, but 404, 410 and what [`negative`](ResponseCacheLayer::negative_ttl) names;
//! 5. what lives by [`ttl`](ResponseCacheLayer::ttl) alone and answers a request with a field that is not known to be
//!    harmless;
//! 6. what a layer outside has made a response for one client, where a [`FinalHeadLayer`](crate::FinalHeadLayer) tells.
//!
//! What is stale and has a validator is revalidated with the inner service, and kept anew where that says 304.
//! Conditions and ranges of clients are answered from what is kept. HEAD is answered from the entry of a GET. Other methods pass; see
//! [`InvalidationLayer`](crate::InvalidationLayer) for what they do to entries.
//!
//! # Before deploying
//!
//! Behind a proxy that ends TLS, say so with [`scheme`](ResponseCacheLayer::scheme). Where pages depend on
//! who asks, decide between `shared` and a partition; until then such requests are simply not cached.
//!
//! A handler whose answer may be kept does not see what no key knows of: `X-Forwarded-Host` and the like, unless
//! [`vary_by_header`](ResponseCacheLayer::vary_by_header) declares them, and parameters that
//! [`query`](ResponseCacheLayer::query) leaves out. `X-Forwarded-Proto` it sees as the scheme of the key.
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

mod conditional_range;
mod fill;
mod freshen;
mod future;
mod header_template;
mod layer;
mod lookup;
mod miss;
mod no_vary_search;
mod outgoing;
mod overrides;
mod partial;
mod plan;
mod post_as_get;
mod record;
mod request_fields;
mod service;
mod shared_error;
mod status_header;
mod store;
mod stored;
mod unkeyed;
mod variants;

pub(crate) use self::{miss::refusal, stored::remove_last_line};

pub use self::{
    future::ResponseFuture,
    layer::{IntoPartition, ResponseCacheLayer, UnknownPartition},
    overrides::ResponseOverrides,
    service::ResponseCache,
};

#[cfg(test)]
mod rfc_tests;
#[cfg(test)]
mod tests;
