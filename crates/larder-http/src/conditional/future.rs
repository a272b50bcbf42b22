//! The future of a request that a conditional layer passes on. It finishes the response of the inner service.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{answer::ResponseFinish, conditions::InsideConditional};
use crate::{
    body::{BoxError, CacheBody},
    layer_future::LayerFuture,
};

/// The response future of [`ConditionalService`](super::ConditionalService).
pub type ConditionalFuture<F, R, E> = LayerFuture<FinishFuture<F>, R, E>;

pin_project! {
    /// The inner future of a request, and the steps that finish its response.
    pub struct FinishFuture<F> {
        #[pin]
        future: F,
        finish: Option<ResponseFinish>,
    }
}

impl<F> FinishFuture<F> {
    pub(super) fn new(future: F, finish: Option<ResponseFinish>) -> Self {
        Self { future, finish }
    }
}

impl<F, R, E> Future for FinishFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<CacheBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let around = InsideConditional::enter();
        let response = ready!(this.future.poll(cx))?;
        drop(around);
        Poll::Ready(Ok(match this.finish {
            Some(finish) => finish.finish(response),
            None => response.map(CacheBody::inner),
        }))
    }
}
