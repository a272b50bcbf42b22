//! Responses that larder generates itself, such as 504 for `only-if-cached`.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::body::CacheBody;

/// Returns a plain-text response that larder generates.
pub(crate) fn own_response<R>(status: StatusCode, text: &'static str) -> Response<CacheBody<R>> {
    let mut response = Response::new(CacheBody::held(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
