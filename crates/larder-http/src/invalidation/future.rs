//! The response future. A write whose future is dropped continues in a task.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Response;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use super::{layer::Options, requested::PendingGuard};

pin_project! {
    /// The response future of [`InvalidationService`](super::InvalidationService).
    pub struct InvalidationFuture<F, R, E> {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, R, E> {
        // While this is polled, `around` holds the options of the enclosing layer; see `PendingGuard`.
        Safe { #[pin] future: F, around: Option<Arc<Options>> },
        // A safe request that waits until this process has applied the log up to its client's position.
        Waiting { waiting: Pin<Box<dyn Future<Output = Result<Response<R>, E>> + Send>>, around: Option<Arc<Options>> },
        Write { following: PendingWrite<R, E> },
    }
}

impl<F, R, E> InvalidationFuture<F, R, E>
where
    R: Send + 'static,
    E: Send + 'static,
{
    pub(super) fn safe(future: F, around: Option<Arc<Options>>) -> Self {
        Self { state: State::Safe { future, around } }
    }

    pub(super) fn waiting(
        waiting: impl Future<Output = Result<Response<R>, E>> + Send + 'static,
        options: Arc<Options>,
    ) -> Self {
        Self { state: State::Waiting { waiting: Box::pin(waiting), around: Some(options) } }
    }

    pub(super) fn write(
        write: impl Future<Output = Result<Response<R>, E>> + Send + 'static,
        options: Arc<Options>,
    ) -> Self {
        let write: Option<Pin<Box<dyn Task<R, E>>>> = Some(Box::pin(write));
        Self { state: State::Write { following: PendingWrite { write, options } } }
    }
}

impl<F, R, E> Future for InvalidationFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Safe { future, around } => {
                let _entered = PendingGuard::new(around);
                future.poll(cx)
            }
            StateProjection::Waiting { waiting, around } => {
                let _entered = PendingGuard::new(around);
                waiting.as_mut().poll(cx)
            }
            StateProjection::Write { following } => following.poll(cx),
        }
    }
}

/// A write, which is polled in place until its client disconnects.
struct PendingWrite<R, E> {
    write: Option<Pin<Box<dyn Task<R, E>>>>,
    options: Arc<Options>,
}

impl<R, E> PendingWrite<R, E> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<R>, E>> {
        // The write is taken out during the poll, so that `drop` does not hand over a write that panicked.
        let mut write = self.write.take().expect("a future is not polled after it was ready");
        let polled = write.as_mut().poll(cx);
        if polled.is_pending() {
            self.write = Some(write);
        }
        polled
    }
}

impl<R, E> Drop for PendingWrite<R, E> {
    fn drop(&mut self) {
        let Some(write) = self.write.take() else { return };
        if self.options.cancel_on_drop || Handle::try_current().is_err() {
            return;
        }
        write.hand_over(&self.options);
    }
}

/// A write that can be handed to a background task of larder.
trait Task<R, E>: Future<Output = Result<Response<R>, E>> + Send {
    fn hand_over(self: Pin<Box<Self>>, options: &Options);
}

impl<T, R, E> Task<R, E> for T
where
    T: Future<Output = Result<Response<R>, E>> + Send + 'static,
    R: Send + 'static,
    E: Send + 'static,
{
    fn hand_over(self: Pin<Box<Self>>, options: &Options) {
        drop(options.kernel.spawn(async move { drop(self.await) }));
    }
}

impl<F, R, E> fmt::Debug for InvalidationFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidationFuture").finish_non_exhaustive()
    }
}
