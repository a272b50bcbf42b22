//! Adds validators to responses that have none, and answers conditional requests.
//!
//! 1. A 200 to GET without `ETag` and `no-store`, whose body is ready at once and at most 1 MiB long, gets a strong
//!    entity tag: a hash of its bytes and of the build version. A response cache inside stores the tag with the
//!    response, so that a hit computes nothing. A streamed body is never delayed for a tag.
//! 2. A GET or HEAD whose `If-None-Match` or `If-Modified-Since` matches the current representation is answered by 304,
//!    with the fields that belong there.
//! 3. `If-Match`, `If-Unmodified-Since` and, with an unsafe method, `If-None-Match` guard changes. The handler checks
//!    them against the current validators ([`Conditions::check`], the `Conditional` extractor), or a function given
//!    with the route does ([`ConditionalLayer::validate_with`]); they are never checked against a stored response. A
//!    precondition that was not checked is counted as `unchecked-condition`; [`ConditionalLayer::refuse_unchecked`]
//!    refuses it.
//!
//! # Source
//!
//! [RFC 9110, section 13](https://www.rfc-editor.org/rfc/rfc9110#section-13)
//!
//! ```
//! # use std::convert::Infallible;
//! # use http::{Request, Response};
//! # use http_body_util::Full;
//! # use bytes::Bytes;
//! # use larder_core::Larder;
//! # use larder_http::ConditionalLayer;
//! # use tower::{ServiceBuilder, ServiceExt, service_fn};
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let larder = Larder::builder().build().expect("the defaults are valid");
//! let page = service_fn(|_: Request<Full<Bytes>>| async {
//!     Ok::<_, Infallible>(Response::new(Full::from("hello")))
//! });
//! let service = ServiceBuilder::new().layer(ConditionalLayer::new(&larder)).service(page);
//!
//! let ask = Request::get("/").body(Full::default()).expect("a valid request");
//! let first = service.clone().oneshot(ask).await.expect("it cannot fail");
//! let tag = &first.headers()["etag"];
//! let again = Request::get("/").header("if-none-match", tag).body(Full::default());
//! let second = service.oneshot(again.expect("a valid request")).await.expect("it cannot fail");
//! assert_eq!(second.status(), 304);
//! # }
//! ```

mod answer;
mod conditions;
mod future;
mod layer;
mod service;

pub(crate) use self::{answer::not_modified, conditions::is_around};
pub use self::{
    conditions::{Conditions, FailedPrecondition},
    future::ResponseFuture,
    layer::ConditionalLayer,
    service::ConditionalService,
};

#[cfg(test)]
mod tests;
