//! The future of a response: ready, forwarded, or waiting.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Response;
use larder_core::kernel::Scope;
use larder_semantics::cache_status::CacheStatus;
use pin_project_lite::pin_project;

use super::{answer::cache_status::note, context::CacheContext};
use crate::body::{CacheBody, Waiting};

pin_project! {
    /// The response of a [`ResponseCache`](super::ResponseCache).
    pub struct ResponseFuture<F, R, E> {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    // Small: every hit carries this through the boxes of a router, so a forwarded request is boxed.
    #[project = StateProjection]
    enum State<F, R, E> {
        Ready { response: Option<Response<CacheBody<R>>> },
        Forward { forward: Pin<Box<Forward<F>>> },
        Waiting { future: Waiting<R, E> },
    }
}

pin_project! {
    struct Forward<F> {
        #[pin]
        future: F,
        scope: Scope,
        plan: Arc<CacheContext>,
        status: CacheStatus<'static>,
    }
}

impl<F, R, E> ResponseFuture<F, R, E> {
    pub(super) fn ready(response: Response<CacheBody<R>>) -> Self {
        Self { state: State::Ready { response: Some(response) } }
    }

    pub(super) fn forward(
        future: F,
        scope: Scope,
        plan: Arc<CacheContext>,
        status: CacheStatus<'static>,
    ) -> Self {
        let forward = Box::pin(Forward { future, scope, plan, status });
        Self { state: State::Forward { forward } }
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
{
    type Output = Result<Response<CacheBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Ready { response } => {
                let response = response.take();
                Poll::Ready(Ok(
                    response.expect("ResponseFuture was polled after it had returned Ready")
                ))
            }
            StateProjection::Forward { forward } => {
                let Forward { scope, plan, status, .. } = &**forward;
                let (scope, plan, status) = (scope.clone(), Arc::clone(plan), *status);
                let entered = scope.enter();
                let response = ready!(forward.as_mut().project().future.poll(cx))?;
                drop(entered);
                let mut response = response.map(|body| CacheBody::scoped(body, scope));
                note(plan.extras, response.headers_mut(), status, "bypass");
                plan.alike.add_vary(response.headers_mut());
                Poll::Ready(Ok(response))
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
