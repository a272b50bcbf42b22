//! The response future of a layer: a response that is ready, the future of the inner service, or a future that the
//! layer has composed.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use pin_project_lite::pin_project;

use crate::body::{BoxedResponse, CacheBody};

pin_project! {
    /// The response future of a larder layer. `I` is the future of the inner service, with the steps that finish its
    /// response.
    pub struct LayerFuture<I, R, E> {
        #[pin]
        state: State<I, R, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<I, R, E> {
        Ready { response: Option<Response<CacheBody<R>>> },
        Inner { #[pin] inner: I },
        Composed { future: BoxedResponse<R, E> },
    }
}

impl<I, R, E> LayerFuture<I, R, E> {
    /// Creates a future that returns this response.
    pub(crate) fn ready(response: Response<CacheBody<R>>) -> Self {
        Self { state: State::Ready { response: Some(response) } }
    }

    /// Creates a future that polls the future of the inner service in place.
    pub(crate) fn inner(inner: I) -> Self {
        Self { state: State::Inner { inner } }
    }

    /// Creates a future that polls a boxed future.
    pub(crate) fn composed(
        future: impl Future<Output = Result<Response<CacheBody<R>>, E>> + Send + 'static,
    ) -> Self {
        Self { state: State::Composed { future: Box::pin(future) } }
    }
}

impl<I, R, E> Future for LayerFuture<I, R, E>
where
    I: Future<Output = Result<Response<CacheBody<R>>, E>>,
{
    type Output = Result<Response<CacheBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Ready { response } => {
                let response = response.take();
                Poll::Ready(Ok(response.expect("a future is not polled after it was ready")))
            }
            StateProjection::Inner { inner } => inner.poll(cx),
            StateProjection::Composed { future } => future.as_mut().poll(cx),
        }
    }
}

impl<I, R, E> fmt::Debug for LayerFuture<I, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerFuture").finish_non_exhaustive()
    }
}
