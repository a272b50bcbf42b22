//! Invalidates after a write, before the client has its answer.
//!
//! An unsafe request (POST, PUT, PATCH, DELETE, and any method that is not known to be safe) is followed by
//! one append to the log, with
//!
//! 1. what the handler asked for through [`PendingInvalidations`] (the `Invalidate` extractor) before the head left,
//!    whatever the status, and also when the handler panics: the write may be committed;
//! 2. after 2xx and 3xx, the target URI and a `Location` and `Content-Location` of the same origin
//!    ([RFC 9111, section 4.4]), the targets given with the layer, and the groups of
//!    `Cache-Group-InvalidationService` ([RFC 9875]).
//!
//! What is asked for later, from a task that outlives the response, is invalidated at once by itself.
//!
//! The request is polled in place. When its client hangs up before it is finished it goes on in a task, so
//! that nobody can come between the commit and the invalidation; [`InvalidationLayer::cancel_on_drop`]
//! switches that off.
//!
//! With [`ReadYourWrites`] the client of a write carries its place in the log, and whichever process serves him
//! next has seen it first, or serves nothing that is kept.
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
mod pending;
mod read_your_writes;
mod service;

pub use self::{
    future::ResponseFuture, layer::InvalidationLayer, pending::PendingInvalidations,
    read_your_writes::ReadYourWrites, service::InvalidationService,
};

#[cfg(test)]
mod tests;
