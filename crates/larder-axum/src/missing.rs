//! The rejection of an extractor whose layer is not there.

use std::fmt;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

/// An extractor was used on a route without its layer: a mistake of the program, answered by 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingLayer {
    pub(crate) extractor: &'static str,
    pub(crate) layer: &'static str,
}

impl fmt::Display for MissingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { extractor, layer } = self;
        write!(f, "the extractor {extractor} needs a {layer} around its route")
    }
}

impl std::error::Error for MissingLayer {}

impl IntoResponse for MissingLayer {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
