//! The service, which reads the preconditions of a request and passes the request on.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use larder_semantics::validation::{CACHE_VALIDATION, WRITE_PRECONDITIONS};
use tower_service::Service;

use super::{
    answer::{ResponseFinish, refusal, unmet_answer},
    conditions::{Conditions, InsideConditional},
    future::{ConditionalFuture, FinishFuture},
    layer::Options,
};
use crate::{
    address::Head,
    body::{BoxError, CacheBody},
    body_key::is_read,
};

/// The service that answers conditional requests to an inner service.
///
/// Made by [`ConditionalLayer`](super::ConditionalLayer).
#[derive(Clone)]
pub struct ConditionalService<S> {
    inner: S,
    options: Arc<Options>,
}

impl<S> ConditionalService<S> {
    pub(super) fn new(inner: S, options: Arc<Options>) -> Self {
        Self { inner, options }
    }
}

impl<S, B, R> Service<Request<B>> for ConditionalService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<CacheBody<R>>;
    type Error = S::Error;
    type Future = ConditionalFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let conditions = has_conditions(request.headers())
            .then(|| Conditions::of(request.method(), request.headers()));
        if let Some(conditions) = &conditions {
            request.extensions_mut().insert(conditions.clone());
        }
        if self.options.is_passive {
            return ConditionalFuture::inner(FinishFuture::new(self.inner.call(request), None));
        }
        if let Some(status) = self.refused(&request, conditions.as_ref()) {
            return ConditionalFuture::ready(refusal(status, &request));
        }
        let finish = ResponseFinish::new(&self.options, &request, conditions);
        if finish.has_conditions() && self.options.validate.is_some() {
            let inner = crate::ready::take_ready(&mut self.inner);
            return self.validate(inner, request, finish);
        }
        let _around = InsideConditional::enter();
        ConditionalFuture::inner(FinishFuture::new(self.inner.call(request), Some(finish)))
    }
}

impl<S> ConditionalService<S> {
    fn refused<B>(
        &self,
        request: &Request<B>,
        conditions: Option<&Conditions>,
    ) -> Option<StatusCode> {
        if is_read(request) {
            return None;
        }
        match conditions.is_some_and(Conditions::has_guards) {
            false if self.options.require => Some(StatusCode::PRECONDITION_REQUIRED),
            true if self.options.refuse_unchecked && self.options.validate.is_none() => {
                Some(StatusCode::PRECONDITION_FAILED)
            }
            _ => None,
        }
    }

    /// Calls the `validate_with` function for the current validators, and then the inner service if the validators do
    /// not suffice.
    fn validate<B, R>(
        &self,
        mut inner: S,
        request: Request<B>,
        finish: ResponseFinish,
    ) -> ConditionalFuture<S::Future, R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let validate = self.options.validate.clone();
        let asked = validate.map(|validate| validate(Head::from(&request)));
        ConditionalFuture::composed(async move {
            let current = match asked {
                Some(asked) => asked.await,
                None => None,
            };
            if current.is_none() && finish.refuses_unchecked() {
                return Ok(refusal(StatusCode::PRECONDITION_FAILED, &request));
            }
            if let Some(unmet) = current.and_then(|current| finish.check(current).err()) {
                return Ok(unmet_answer(&unmet));
            }
            let around = InsideConditional::enter();
            let called = inner.call(request);
            drop(around);
            FinishFuture::new(called, Some(finish)).await
        })
    }
}

fn has_conditions(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| WRITE_PRECONDITIONS.contains(name) || CACHE_VALIDATION.contains(name))
}

impl<S: fmt::Debug> fmt::Debug for ConditionalService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConditionalService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
