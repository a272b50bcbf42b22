//! The service, which decides how to handle each request and returns the response future.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use larder_core::{
    Reason,
    kernel::{Event, Moment, Scope},
};
use larder_semantics::cache_status::{CacheStatus, Forward, Handling};
use tower_service::Service;

use super::{
    answer::cache_status::own_status,
    context::{Admission, CacheContext, RequestKey},
    future::{BypassFuture, ResponseCacheFuture},
    miss::CacheMiss,
    observe,
    overrides::ResponseOverrides,
    request::post_as_get::FromPost,
    request_outcome::RequestOutcome,
    route_note::RouteNote,
    warm_request::WarmRequest,
};
use crate::{
    address::{Head, matched_route},
    body::{BoxError, CacheBody},
    ready::take_ready,
};

/// The service of a response cache, which answers from the cache, and calls the inner service on a miss or bypass.
///
/// Made by [`ResponseCacheLayer`](super::ResponseCacheLayer).
pub struct ResponseCache<S> {
    inner: S,
    context: Arc<CacheContext>,
    /// The context of requests that warm the cache.
    warming: Arc<CacheContext>,
}

impl<S> ResponseCache<S> {
    pub(super) fn new(inner: S, context: Arc<CacheContext>, warming: Arc<CacheContext>) -> Self {
        Self { inner, context, warming }
    }

    /// Forwards a request, in a scope of its own.
    #[inline(never)]
    fn forward<B, R>(
        inner: &mut S,
        context: &Arc<CacheContext>,
        mut request: Request<B>,
        why: Reason,
    ) -> ResponseCacheFuture<S::Future, R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        context.meter.record(Event::Bypass(why), context.kernel.now());
        let outcome = RequestOutcome::new(&context.meter, route_of(context, &request));
        outcome.note(Event::Bypass(why));
        let facts = context.facts(request.headers());
        let scope = match why {
            // Values that are read inside are part of the response that the enclosing cache stores.
            Reason::Nested => context.kernel.scope(),
            _ => {
                // A bypassed request keeps its credentials, even if the layer strips the credentials of other requests.
                context.kernel.scope().gathering(context.audience(
                    &Head::from(&request),
                    facts,
                    false,
                ))
            }
        };
        insert_overrides(context, &mut request, why, &scope, &outcome.route);
        let forward = if why == Reason::Method { Forward::Method } else { Forward::Bypass };
        let handling = Handling::Forward { why: forward, stored: false, collapsed: false };
        // `fwd=method` already names the reason.
        let detail = (why != Reason::Method).then_some(why.as_str());
        let status = CacheStatus { detail, ..own_status(handling) };
        if why == Reason::Method {
            context.note_partition(&request);
        }
        let from_post = FromPost::of(context, &request, &scope);
        let entered = scope.enter();
        let future = inner.call(request);
        drop(entered);
        let forwarded = ResponseCacheFuture::inner(BypassFuture::new(
            future,
            scope,
            Arc::clone(context),
            status,
            outcome,
        ));
        match from_post {
            None => forwarded,
            Some(from_post) => ResponseCacheFuture::composed(async move {
                let response = forwarded.await?;
                Ok(from_post.receive(response).await)
            }),
        }
    }

    /// Runs the full lookup in a future of its own. This method is separate from `call`, so that hits do not carry the
    /// stack frame of that future.
    #[inline(never)]
    fn miss<B, R>(
        inner: &mut S,
        context: &Arc<CacheContext>,
        request: Request<B>,
        request_key: RequestKey,
        began: Moment,
    ) -> ResponseCacheFuture<S::Future, R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Body + Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let inner = take_ready(inner);
        match CacheMiss::new(context, inner, request, request_key, began) {
            Some(miss) => ResponseCacheFuture::composed(miss.serve()),
            None => {
                let text = "the URL is too long for the cache: shorten it\n";
                ResponseCacheFuture::ready(context.refused(
                    StatusCode::URI_TOO_LONG,
                    text,
                    Reason::KeyTooLong,
                ))
            }
        }
    }
}

/// Returns the route of a request that is not looked up: the route that a router has matched, or the note that an
/// enclosing cache reads.
pub(super) fn route_of<B>(context: &CacheContext, request: &Request<B>) -> RouteNote {
    let extensions = request.extensions();
    let around = extensions.get::<ResponseOverrides>().map(|around| around.route().clone());
    let route = around.unwrap_or_default();
    if let Some(template) = matched_route(extensions) {
        route.note(&context.kernel, template);
    }
    route
}

/// Adds the [`ResponseOverrides`] for the handler to the request. If another cache encloses this cache, the request
/// has them already: then this passes the options of this layer to that cache for [`Reason::Nested`], and prevents
/// that cache from storing the response for any other reason.
pub(super) fn insert_overrides<B>(
    context: &CacheContext,
    request: &mut Request<B>,
    why: Reason,
    scope: &Scope,
    route: &RouteNote,
) {
    let extensions = request.extensions_mut();
    let Some(around) = extensions.get::<ResponseOverrides>() else {
        extensions.insert(ResponseOverrides::new(&context.kernel, scope, route.clone()));
        return;
    };
    match why {
        Reason::Nested => context.options.pass_on_to(around),
        // The enclosing cache does not store a response that bypasses this cache.
        why => drop(around.refuse(why)),
    }
}

impl<S, B, R> Service<Request<B>> for ResponseCache<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<CacheBody<R>>;
    type Error = S::Error;
    type Future = ResponseCacheFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let warm = request.extensions().get::<WarmRequest>().copied();
        let is_warming = warm.is_some();
        let context = if is_warming { &self.warming } else { &self.context };
        let began = context.kernel.tick();
        if context.options.observes {
            return observe::observed(&mut self.inner, context, request, began);
        }
        let request_key = match context.admit(&request) {
            Admission::Lookup(request_key)
                if warm.is_some_and(|warm| warm.needs_partition) && !request_key.partitioned =>
            {
                context.record_own(&request, Reason::Identity, began);
                let text =
                    "a response that is warmed for a principal has to belong to a partition\n";
                let refused = context.refused(StatusCode::FORBIDDEN, text, Reason::Identity);
                return ResponseCacheFuture::ready(refused);
            }
            Admission::Lookup(request_key) => request_key,
            Admission::Bypass(why) if is_warming && why != Reason::Nested => {
                // The handler may act on each request, such as a page that signs out.
                context.record_own(&request, why, began);
                let text = "a request that bypasses the cache does not warm it\n";
                return ResponseCacheFuture::ready(context.refused(
                    StatusCode::FORBIDDEN,
                    text,
                    why,
                ));
            }
            Admission::Bypass(why) => return Self::forward(&mut self.inner, context, request, why),
            Admission::OnlyIfCached => {
                context.record_own(&request, Reason::OnlyIfCached, began);
                return ResponseCacheFuture::ready(context.nothing_stored());
            }
            Admission::Ambiguous => {
                context.record_own(&request, Reason::AmbiguousHost, began);
                let text = "the request must name exactly one valid host\n";
                let answer = context.refused(StatusCode::BAD_REQUEST, text, Reason::AmbiguousHost);
                return ResponseCacheFuture::ready(answer);
            }
        };
        if context.has_more_key_inputs
            && let Some(around) = request.extensions().get::<ResponseOverrides>()
        {
            // This cache separates requests by inputs that the enclosing cache does not know.
            around.refuse(Reason::InnerCache);
        }
        if let Some(answer) = context.plain_hit(&request_key, request.headers(), began) {
            if observe::is_sampled(context) {
                observe::compare(&mut self.inner, context, request, request_key, began);
            }
            return ResponseCacheFuture::ready(answer);
        }
        Self::miss(&mut self.inner, context, request, request_key, began)
    }
}

impl<S: Clone> Clone for ResponseCache<S> {
    fn clone(&self) -> Self {
        let (context, warming) = (Arc::clone(&self.context), Arc::clone(&self.warming));
        Self { inner: self.inner.clone(), context, warming }
    }
}

impl<S: fmt::Debug> fmt::Debug for ResponseCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCache").field("inner", &self.inner).finish_non_exhaustive()
    }
}
