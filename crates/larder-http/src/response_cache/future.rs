//! The future of a forwarded request, which polls the inner service in a scope of its own and adds `Cache-Status`.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Response;
use larder_core::kernel::{Moment, Scope};
use larder_semantics::cache_status::CacheStatus;
use pin_project_lite::pin_project;

use super::{
    answer::cache_status::add_status, context::CacheContext, request_outcome::RequestOutcome,
};
use crate::{body::CacheBody, layer_future::LayerFuture};

/// The response future of a [`ResponseCache`](super::ResponseCache).
// `BypassFuture` is boxed so that this future is small, because every hit carries it through the boxes of a router.
pub type ResponseCacheFuture<F, R, E> = LayerFuture<Pin<Box<BypassFuture<F>>>, R, E>;

pin_project! {
    /// The inner future of a request that bypasses the cache.
    pub struct BypassFuture<F> {
        #[pin]
        future: F,
        scope: Scope,
        context: Arc<CacheContext>,
        status: CacheStatus<'static>,
        outcome: RequestOutcome,
        began: Moment,
    }
}

impl<F> BypassFuture<F> {
    pub(super) fn new(
        future: F,
        scope: Scope,
        context: Arc<CacheContext>,
        status: CacheStatus<'static>,
        outcome: RequestOutcome,
    ) -> Pin<Box<Self>> {
        let began = context.kernel.now();
        Box::pin(Self { future, scope, context, status, outcome, began })
    }
}

impl<F, R, E> Future for BypassFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<CacheBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.scope.enter();
        let response = ready!(this.future.poll(cx));
        drop(entered);
        this.outcome.count();
        this.context.learn_route(&this.outcome.route);
        let mut response = response?;
        if this.context.options.server_timing {
            let took = this.context.kernel.now().since(*this.began);
            this.outcome.add_server_timing(response.headers_mut(), took);
        }
        let mut response = response.map(|body| CacheBody::scoped(body, this.scope.clone()));
        add_status(this.context.extras, response.headers_mut(), *this.status, "bypass");
        this.context.header_interner.add_vary(response.headers_mut());
        Poll::Ready(Ok(response))
    }
}
