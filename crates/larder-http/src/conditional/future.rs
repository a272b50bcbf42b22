//! The response future of a conditional layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{answer::ResponseFinish, conditions::InsideConditional};
use crate::body::{BoxError, CacheBody, Waiting};

pin_project! {
    /// The response future of [`ConditionalService`](super::ConditionalService).
    pub struct ResponseFuture<F, R, E> {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, R, E> {
        Ready { response: Option<Response<CacheBody<R>>> },
        Plain { #[pin] future: F, finish: ResponseFinish },
        Waiting { future: Waiting<R, E> },
    }
}

impl<F, R, E> ResponseFuture<F, R, E> {
    pub(super) fn ready(response: Response<CacheBody<R>>) -> Self {
        Self { state: State::Ready { response: Some(response) } }
    }

    pub(super) fn plain(future: F, finish: ResponseFinish) -> Self {
        Self { state: State::Plain { future, finish } }
    }

    pub(super) fn waiting(
        future: impl Future<Output = Result<Response<CacheBody<R>>, E>> + Send + 'static,
    ) -> Self {
        Self { state: State::Waiting { future: Box::pin(future) } }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<CacheBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Ready { response } => {
                let response = response.take();
                Poll::Ready(Ok(response.expect("a future is not polled after it was ready")))
            }
            StateProjection::Plain { future, finish } => {
                let around = InsideConditional::enter();
                let response = ready!(future.poll(cx))?;
                drop(around);
                Poll::Ready(Ok(finish.finish(response)))
            }
            StateProjection::Waiting { future } => future.as_mut().poll(cx),
        }
    }
}

impl<F, R, E> fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
