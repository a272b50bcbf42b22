//! The rejection of an extractor whose layer is missing.

use std::fmt;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

/// The rejection of an extractor on a route without its layer. This is a programming error, and the client gets a 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingLayer {
    pub(crate) extractor: &'static str,
    pub(crate) layer: &'static str,
}

impl fmt::Display for MissingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { extractor, layer } = self;
        write!(
            f,
            "the extractor {extractor} needs {layer} around its route: add HttpCache, which includes it, or {layer} itself"
        )
    }
}

impl std::error::Error for MissingLayer {}

impl IntoResponse for MissingLayer {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
