//! Invalidates after a write, before the client gets the response.
//!
//! After an unsafe request (POST, PUT, PATCH, DELETE, and any method that is not known to be safe), one append to the
//! log invalidates
//!
//! 1. the targets that the handler added through [`PendingInvalidations`] (the `Invalidate` extractor) before the head
//!    left, for any status, and also when the handler panics: the write may be committed;
//! 2. after 2xx and 3xx, the targets given with the layer and, unless the response is gRPC, the target URI, a
//!    `Location` and `Content-Location` of the same origin ([RFC 9111, section 4.4]), and the groups of
//!    `Cache-Group-Invalidation` ([RFC 9875]).
//!
//! A target that is added later, by a task that outlives the response, is invalidated at once and by itself.
//!
//! The request is polled in place. If its client disconnects before it is finished, the request continues in a task, so
//! that the commit is always followed by the invalidation; [`InvalidationLayer::cancel_on_drop`] switches that off.
//!
//! With [`ReadYourWrites`] the client of a write carries the log position of its invalidation. The process that serves
//! its next request first applies the log up to there, or serves no stored entry.
//!
//! [RFC 9111, section 4.4]: https://www.rfc-editor.org/rfc/rfc9111#section-4.4
//! [RFC 9875]: https://www.rfc-editor.org/rfc/rfc9875
//!
//! ```
//! # use std::{convert::Infallible, time::Duration};
//! # use http::{Request, Response};
//! # use http_body_util::Full;
//! # use bytes::Bytes;
//! # use larder_core::Larder;
//! # use larder_http::{InvalidationLayer, ResponseCacheLayer};
//! # use tower::{ServiceBuilder, ServiceExt, service_fn};
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let larder = Larder::builder().build().expect("the defaults are valid");
//! # let page = service_fn(|_: Request<Full<Bytes>>| async {
//! #     Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")))
//! # });
//! let service = ServiceBuilder::new()
//!     .layer(InvalidationLayer::new(&larder))
//!     .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)))
//!     .service(page);
//! # let ask = |method| {
//! #     let request = Request::builder().method(method).uri("/").body(Full::default());
//! #     service.clone().oneshot(request.expect("a valid request"))
//! # };
//! ask("GET").await.expect("it cannot fail");
//! ask("POST").await.expect("it cannot fail");
//! let next = ask("GET").await.expect("it cannot fail");
//! assert_eq!(next.headers()["cache-status"], "larder; fwd=stale; stored");
//! # }
//! ```

mod future;
mod layer;
#[cfg_attr(not(feature = "read-your-writes"), path = "read_your_writes_absent.rs")]
mod read_your_writes;
mod requested;
mod service;

#[cfg(feature = "read-your-writes")]
pub use self::read_your_writes::ReadYourWrites;
pub use self::{
    future::ResponseFuture, layer::InvalidationLayer, requested::PendingInvalidations,
    service::InvalidationService,
};

#[cfg(test)]
mod tests;
