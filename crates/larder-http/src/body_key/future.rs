//! The future of a request that is passed on unchanged.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use crate::{body::CacheBody, layer_future::LayerFuture};

/// The response future of [`BodyKeyService`](super::BodyKeyService).
pub type BodyKeyFuture<F, R, E> = LayerFuture<ForwardFuture<F>, R, E>;

pin_project! {
    /// The inner future of a request.
    pub struct ForwardFuture<F> {
        #[pin]
        future: F,
    }
}

impl<F> ForwardFuture<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future }
    }
}

impl<F, R, E> Future for ForwardFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<CacheBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(ready!(self.project().future.poll(cx))?.map(CacheBody::inner)))
    }
}
