//! The service: reads the content of a QUERY before it is passed on.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use sha2::{Digest as _, Sha256};
use tower_service::Service;

use super::future::ResponseFuture;
use crate::{
    body::{BoxError, CacheBody},
    response_cache::refusal,
};

/// Reads what a QUERY asks for, around an inner service. Made by
/// [`QueryMethodLayer`](super::QueryMethodLayer).
#[derive(Clone, Debug)]
pub struct QueryMethod<S> {
    inner: S,
    limit: usize,
}

impl<S> QueryMethod<S> {
    pub(super) fn new(inner: S, limit: usize) -> Self {
        Self { inner, limit }
    }
}

impl<S, B, R> Service<Request<B>> for QueryMethod<S>
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
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if *request.method() != Method::QUERY {
            return ResponseFuture::passed(self.inner.call(request));
        }
        let mut inner = crate::ready::take_ready(&mut self.inner);
        let limit = self.limit;
        ResponseFuture::reading(async move {
            match read(request, limit).await {
                Ok(request) => Ok(inner.call(request).await?.map(CacheBody::inner)),
                Err(refused) => Ok(refused),
            }
        })
    }
}

/// What tells one QUERY of an address from another.
#[derive(Clone, Debug)]
pub(crate) struct PostContent(Vec<u8>);

impl PostContent {
    /// A digest that nobody can find two contents for, and what says how the content is to be read.
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

/// The request with its content at hand, or the answer to one that cannot be read.
async fn read<B, R>(request: Request<B>, limit: usize) -> Result<Request<B>, Response<CacheBody<R>>>
where
    B: Body<Data = Bytes> + From<Bytes>,
    B::Error: Into<BoxError>,
{
    let (mut head, body) = request.into_parts();
    let content = match Limited::new(body, limit).collect().await {
        Ok(content) => content.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let text = "the content of this QUERY is longer than is read here\n";
            return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Err(_) => {
            return Err(refusal(StatusCode::BAD_REQUEST, "the content of this QUERY broke off\n"));
        }
    };
    head.extensions.insert(PostContent::of(&head.headers, &content));
    Ok(Request::from_parts(head, B::from(content)))
}
