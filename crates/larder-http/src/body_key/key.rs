//! The part of a cache key that stands for the content of a request.

use http::{HeaderMap, Method, Request, header};
use sha2::{Digest as _, Sha256};

use crate::address::Head;

/// The addition to the key of a read whose content was read: a digest of the content, with media type, coding and
/// language.
#[derive(Clone, Debug)]
pub(crate) struct BodyKey {
    /// The method for which the content was read. If a layer inside changes the method, the request is a different one.
    method: Method,
    /// `None` if the content was not read.
    digest: Option<Vec<u8>>,
}

impl BodyKey {
    /// Computes the SHA-256 digest of the content, followed by the fields that determine how the content is read.
    pub(super) fn of(method: &Method, headers: &HeaderMap, content: &[u8]) -> Self {
        let mut digest = Sha256::digest(content).to_vec();
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
            for value in headers.get_all(&name) {
                digest.extend_from_slice(name.as_str().as_bytes());
                digest.extend_from_slice(&(value.len() as u64).to_le_bytes());
                digest.extend_from_slice(value.as_bytes());
            }
        }
        Self { method: method.clone(), digest: Some(digest) }
    }

    /// The key of a read whose content was not read, so that its response is not stored.
    pub(super) fn unread(method: &Method) -> Self {
        Self { method: method.clone(), digest: None }
    }

    /// Returns the body key of a request, if [`BodyKeyLayer`](super::BodyKeyLayer) is outside and has recognized it as a
    /// read.
    pub(crate) fn of_request<'a>(head: &Head<'a>) -> Option<&'a Self> {
        if *head.method != Method::QUERY && *head.method != Method::POST {
            return None;
        }
        head.extensions.get::<Self>().filter(|key| key.method == *head.method)
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    pub(crate) fn digest(&self) -> Option<&[u8]> {
        self.digest.as_deref()
    }
}

/// Whether a request changes nothing: its method is safe, or it is a POST that
/// [`BodyKeyLayer`](super::BodyKeyLayer) has recognized as a read.
pub(crate) fn is_read<B>(request: &Request<B>) -> bool {
    request.method().is_safe() || BodyKey::of_request(&Head::from(request)).is_some()
}
