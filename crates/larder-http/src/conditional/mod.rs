//! Validators for responses that have none, and answers to conditional requests.
//!
//! 1. A 200 to GET without `ETag` whose body is there at once gets a strong one: a hash of its bytes and of
//!    the version of the build. What a response cache inside keeps has its tag kept with it; a hit computes
//!    nothing. A body that streams is never held back for it.
//! 2. A GET or HEAD with `If-None-Match` or `If-Modified-Since` that names the current representation is
//!    answered by 304, with the fields that belong there.
//! 3. `If-Match` and `If-Unmodified-Since` guard changes. They are checked against what the handler says is
//!    current ([`Conditions::check`], the `ConditionalService` extractor), or by a function given with the route
//!    ([`ConditionalLayer::validate_with`]), never against a kept response. One that nobody checked is
//!    counted as `unchecked-condition`; [`ConditionalLayer::refuse_unchecked`] refuses it.
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

mod conditions;
mod future;
mod layer;
mod service;

pub(crate) use self::{conditions::is_around, future::not_modified};
pub use self::{
    conditions::{Conditions, FailedPrecondition},
    future::ResponseFuture,
    layer::ConditionalLayer,
    service::ConditionalService,
};

#[cfg(test)]
mod tests;
