//! The response future: of a request that is passed on, or of a QUERY whose content is read first.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use crate::body::{CacheBody, Waiting};

pin_project! {
    /// The response future of [`QueryMethod`](super::QueryMethod).
    pub struct ResponseFuture<F, R, E> {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, R, E> {
        Passed { #[pin] future: F },
        Reading { future: Waiting<R, E> },
    }
}

impl<F, R, E> ResponseFuture<F, R, E> {
    pub(super) fn passed(future: F) -> Self {
        Self { state: State::Passed { future } }
    }

    pub(super) fn reading(
        future: impl Future<Output = Result<Response<CacheBody<R>>, E>> + Send + 'static,
    ) -> Self {
        Self { state: State::Reading { future: Box::pin(future) } }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<CacheBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Passed { future } => {
                Poll::Ready(Ok(ready!(future.poll(cx))?.map(CacheBody::inner)))
            }
            StateProjection::Reading { future } => future.as_mut().poll(cx),
        }
    }
}

impl<F, R, E> fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
