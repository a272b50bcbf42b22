//! The parameters of requests, and errors that say what was given and what is allowed.

use std::fmt::Display;

use axum::extract::Query;
use http::{StatusCode, Uri};
use larder_core::Larder;
use serde::de::DeserializeOwned;

/// An error that the client can correct.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientError {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl ClientError {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(super) fn bad_request(text: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text.to_string())
    }
}

/// Returns the parameters of the query.
pub(super) fn parameters<T: DeserializeOwned>(uri: &Uri) -> Result<T, ClientError> {
    let query = Query::<T>::try_from_uri(uri).map_err(|error| {
        // The cause names the parameter.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        ClientError::bad_request(cause.unwrap_or_else(|| error.to_string()))
    })?;
    Ok(query.0)
}

/// Returns the pairs of the query, those that occur several times included.
pub(super) fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, ClientError> {
    parameters(uri)
}

/// Returns the view of a namespace; the empty one is the larder itself.
pub(super) fn view(larder: &Larder, namespace: &str) -> Larder {
    match namespace {
        "" => larder.clone(),
        namespace => larder.namespace(namespace),
    }
}
