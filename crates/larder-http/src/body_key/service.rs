//! The service, which reads the content of a QUERY, and of a POST that may be a read, before it passes the request on.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tower_service::Service;

use super::{
    future::{BodyKeyFuture, ForwardFuture},
    key::BodyKey,
    layer::{Options, PostRead},
};
use crate::{
    address::Head,
    body::{BoxError, CacheBody},
    own_response::own_response,
};

/// The service that reads the content of requests for the response cache inside. Made by
/// [`BodyKeyLayer`](super::BodyKeyLayer).
pub struct BodyKeyService<S> {
    inner: S,
    options: Arc<Options>,
}

impl<S> BodyKeyService<S> {
    pub(super) fn new(inner: S, options: Arc<Options>) -> Self {
        Self { inner, options }
    }
}

/// What to do with a request, by its head.
enum Plan {
    Forward,
    Query,
    /// The position of the rule that decides whether the POST is a read.
    Post(usize),
    /// A read by its head, whose content has to reach the handler unread.
    UnreadPost,
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let plan = self.options.plan(&request);
        if matches!(plan, Plan::UnreadPost) {
            let unread = BodyKey::unread(request.method());
            request.extensions_mut().insert(unread);
        }
        if matches!(plan, Plan::Forward | Plan::UnreadPost) {
            return BodyKeyFuture::inner(ForwardFuture::new(self.inner.call(request)));
        }
        let mut inner = crate::ready::take_ready(&mut self.inner);
        let options = Arc::clone(&self.options);
        BodyKeyFuture::composed(async move {
            let (mut head, body) = request.into_parts();
            let content = match read(body, options.limit).await {
                Ok(content) => content,
                Err(refused) => return Ok(refused),
            };
            let is_read = match plan {
                Plan::Post(rule) => options.post_reads[rule].is_read(&Head::from(&head), &content),
                _ => true,
            };
            if is_read {
                head.extensions.insert(BodyKey::of(&head.method, &head.headers, &content));
            }
            let request = Request::from_parts(head, B::from(content));
            Ok(inner.call(request).await?.map(CacheBody::inner))
        })
    }
}

impl Options {
    fn plan<B: Body>(&self, request: &Request<B>) -> Plan {
        match *request.method() {
            Method::QUERY => Plan::Query,
            Method::POST if !self.post_reads.is_empty() => {
                let head = Head::from(request);
                let rules = &self.post_reads;
                let Some(rule) = rules.iter().position(|rule| rule.concerns(&head)) else {
                    return Plan::Forward;
                };
                // The inner service has to get all of the content, which may have any length, and the trailers.
                let length = request.body().size_hint().exact();
                let is_short = length.is_some_and(|length| length <= self.limit as u64);
                let has_trailers = head.headers.contains_key(header::TRAILER);
                match (is_short && !has_trailers, &rules[rule].content) {
                    (true, _) => Plan::Post(rule),
                    (false, None) => Plan::UnreadPost,
                    (false, Some(_)) => Plan::Forward,
                }
            }
            _ => Plan::Forward,
        }
    }
}

impl PostRead {
    fn concerns(&self, head: &Head<'_>) -> bool {
        (self.head)(head)
    }

    fn is_read(&self, head: &Head<'_>, content: &[u8]) -> bool {
        self.content.as_ref().is_none_or(|content_reads| content_reads(head, content))
    }
}

/// Reads the content of a request, or returns the answer to send if it cannot be read.
async fn read<B, R>(body: B, limit: usize) -> Result<Bytes, Response<CacheBody<R>>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, limit).collect().await {
        Ok(content) => Ok(content.to_bytes()),
        Err(error) if is_of_length(&*error) => Err(own_response(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the content of this request exceeds the limit of this server: shorten it\n",
        )),
        Err(_) => Err(own_response(
            StatusCode::BAD_REQUEST,
            "the content of this request ended early: send it again\n",
        )),
    }
}

/// Whether the content exceeds the limit of this layer, or of a layer outside whose error wraps the same cause.
fn is_of_length(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<LengthLimitError>() || error.source().is_some_and(is_of_length)
}

impl<S: Clone> Clone for BodyKeyService<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), options: Arc::clone(&self.options) }
    }
}

impl<S: fmt::Debug> fmt::Debug for BodyKeyService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyKeyService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
