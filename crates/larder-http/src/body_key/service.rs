//! The service, which reads the content of a QUERY before it passes the request on.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use sha2::{Digest as _, Sha256};
use tower_service::Service;

use super::future::{BodyKeyFuture, ForwardFuture};
use crate::{
    body::{BoxError, CacheBody},
    own_response::own_response,
};

/// The service that reads the content of a QUERY for the response cache inside. Made by
/// [`BodyKeyLayer`](super::BodyKeyLayer).
#[derive(Clone, Debug)]
pub struct BodyKeyService<S> {
    inner: S,
    limit: usize,
}

impl<S> BodyKeyService<S> {
    pub(super) fn new(inner: S, limit: usize) -> Self {
        Self { inner, limit }
    }
}

impl<S, B, R> Service<Request<B>> for BodyKeyService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + From<Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: Send + 'static,
{
    type Response = Response<CacheBody<R>>;
    type Error = S::Error;
    type Future = BodyKeyFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if *request.method() != Method::QUERY {
            return BodyKeyFuture::inner(ForwardFuture::new(self.inner.call(request)));
        }
        let mut inner = crate::ready::take_ready(&mut self.inner);
        let limit = self.limit;
        BodyKeyFuture::composed(async move {
            match read(request, limit).await {
                Ok(request) => Ok(inner.call(request).await?.map(CacheBody::inner)),
                Err(refused) => Ok(refused),
            }
        })
    }
}

/// The addition to the key of a QUERY: a digest of its content, with media type, coding and language.
#[derive(Clone, Debug)]
pub(crate) struct BodyKey(Vec<u8>);

impl BodyKey {
    /// Returns the SHA-256 digest of the content, followed by the fields that determine how the content is read.
    fn of(headers: &HeaderMap, content: &[u8]) -> Self {
        let mut told = Sha256::digest(content).to_vec();
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
            for value in headers.get_all(&name) {
                told.extend_from_slice(name.as_str().as_bytes());
                told.extend_from_slice(&(value.len() as u64).to_le_bytes());
                told.extend_from_slice(value.as_bytes());
            }
        }
        Self(told)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Reads the content of a request and returns the request, or the answer to send if its content cannot be read.
async fn read<B, R>(request: Request<B>, limit: usize) -> Result<Request<B>, Response<CacheBody<R>>>
where
    B: Body<Data = Bytes> + From<Bytes>,
    B::Error: Into<BoxError>,
{
    let (mut head, body) = request.into_parts();
    let content = match Limited::new(body, limit).collect().await {
        Ok(content) => content.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let text = "the content of this QUERY exceeds the limit of this server: shorten it\n";
            return Err(own_response(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Err(_) => {
            return Err(own_response(
                StatusCode::BAD_REQUEST,
                "the content of this QUERY ended early: send it again\n",
            ));
        }
    };
    head.extensions.insert(BodyKey::of(&head.headers, &content));
    Ok(Request::from_parts(head, B::from(content)))
}
