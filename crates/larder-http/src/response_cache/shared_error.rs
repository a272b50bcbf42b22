//! A fill that failed, for the requests that waited for it: a few try again, and the others share what came.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use larder_core::Key;

use super::miss::refusal;
use crate::body::CacheBody;

/// Why a fill brought nothing that can be stored.
#[derive(Clone, Debug)]
pub(super) struct SharedFailure {
    status: StatusCode,
    /// The response itself, where others may have it too.
    response: Option<Arc<SharedError>>,
}

/// An error response that is for all who asked as the leader did.
#[derive(Debug)]
pub(super) struct SharedError {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The variant it is, and the fields that select it.
    pub(super) key: Key,
    pub(super) names: Vec<HeaderName>,
}

impl SharedFailure {
    /// Of which only the status may be told.
    pub(super) fn with_status(status: StatusCode) -> Self {
        Self { status, response: None }
    }

    /// Whose response others may have.
    pub(super) fn shared(status: StatusCode, response: SharedError) -> Self {
        Self { status, response: Some(Arc::new(response)) }
    }

    /// The answer to a request that waited; `is_variant` says whether a key is the one that it selects by these
    /// fields.
    pub(super) fn answer<R>(
        &self,
        is_variant: impl Fn(&Key, &[HeaderName]) -> bool,
    ) -> Response<CacheBody<R>> {
        match &self.response {
            Some(shared) if is_variant(&shared.key, &shared.names) => {
                let mut response = Response::new(CacheBody::held(shared.body.clone()));
                *response.status_mut() = self.status;
                *response.headers_mut() = shared.headers.clone();
                response
            }
            _ => refusal(self.status, "the fill that this request waited for failed\n"),
        }
    }
}

/// A larger error is not shared with those who wait; they get its status.
pub(super) const LARGEST_SHARED: u64 = 64 << 10;
