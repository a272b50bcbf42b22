//! The failure of a fill, as its waiters get it. A few waiters try again, and the others share the error.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use larder_core::Key;

use crate::{body::CacheBody, own_response::own_response};

/// The failure of a fill.
#[derive(Clone, Debug)]
pub(in crate::response_cache) struct SharedFailure {
    status: StatusCode,
    /// The response itself, if waiters may get it too.
    response: Option<Arc<SharedError>>,
}

/// An error response that larder may send to all waiters of the fill.
#[derive(Debug)]
pub(in crate::response_cache) struct SharedError {
    pub(in crate::response_cache) headers: HeaderMap,
    pub(in crate::response_cache) body: Bytes,
    /// The key of its variant, and the fields that select it.
    pub(in crate::response_cache) key: Key,
    pub(in crate::response_cache) names: Vec<HeaderName>,
}

impl SharedFailure {
    /// Returns a failure of which waiters get only the status.
    pub(in crate::response_cache) fn with_status(status: StatusCode) -> Self {
        Self { status, response: None }
    }

    /// Returns a failure whose response waiters may get.
    pub(in crate::response_cache) fn shared(status: StatusCode, response: SharedError) -> Self {
        Self { status, response: Some(Arc::new(response)) }
    }

    /// Returns the response to a waiter. `is_variant` decides whether its request selects a key by these
    /// fields.
    pub(in crate::response_cache) fn answer<R>(
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
            _ => own_response(
                self.status,
                "this request waited for the response to an identical request, which failed; try again later\n",
            ),
        }
    }
}

/// The largest error body that waiters share, in bytes; of a larger error they get only the status.
pub(in crate::response_cache) const LARGEST_SHARED: u64 = 64 << 10;
