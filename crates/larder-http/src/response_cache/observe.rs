//! Compares hits with the responses of the handler: all of a cache that only observes, and some of a cache with a shadow.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use larder_core::{
    Reason,
    kernel::{AnyEntry, Comparison, EntryState, Event, Moment, random_share},
};
use larder_semantics::cache_status::Forward;
use tower_service::Service;

use super::{
    context::{Admission, CacheContext, RequestKey},
    fill::{Fill, ReceivedHead},
    future::ResponseCacheFuture,
    lookup::LookupResult,
    miss::CacheMiss,
    request_outcome::RequestOutcome,
    service::{insert_overrides, route_of},
    stored,
};
use crate::{
    address::Head,
    body::{BoxError, CacheBody, announced_length},
    invalidation::PendingInvalidations,
    ready::take_ready,
};

/// Passes a request on, and counts what the cache would have done with it.
pub(super) fn observed<S, B, R>(
    inner: &mut S,
    context: &Arc<CacheContext>,
    request: Request<B>,
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
    let why = match context.admit(&request) {
        Admission::Lookup(request_key) => {
            match CacheMiss::new(context, inner.clone(), request, request_key, began) {
                Some(miss) => return ResponseCacheFuture::composed(miss.observe()),
                // Admission has compared the length of the key already.
                None => return ResponseCacheFuture::ready(context.nothing_stored()),
            }
        }
        Admission::Bypass(why) => why,
        Admission::OnlyIfCached => Reason::OnlyIfCached,
        Admission::Ambiguous => Reason::AmbiguousHost,
    };
    ResponseCacheFuture::composed(pass_on(inner, Arc::clone(context), request, why))
}

/// Passes a request on that would bypass the cache.
async fn pass_on<S, B, R>(
    mut inner: S,
    context: Arc<CacheContext>,
    mut request: Request<B>,
    why: Reason,
) -> Result<Response<CacheBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    context.meter.record(Event::Bypass(why), context.kernel.now());
    let outcome = RequestOutcome::new(&context.meter, route_of(&context, &request));
    outcome.note(Event::Bypass(why));
    let facts = context.facts(request.headers());
    let audience = context.audience(&Head::from(&request), facts, false);
    let scope = context.kernel.scope().gathering(audience);
    insert_overrides(&context, &mut request, why, &scope, &outcome.route);
    let entered = scope.enter();
    let called = inner.call(request);
    drop(entered);
    let response = scope.clone().scoped(called).await?;
    outcome.count();
    context.learn_route(&outcome.route);
    Ok(response.map(|body| CacheBody::scoped(body, scope)))
}

impl<S, B, R> CacheMiss<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    async fn observe(self) -> Result<Response<CacheBody<R>>, S::Error> {
        let Self { lookup, inner, request } = self;
        let (mut inner, mut request) =
            (inner.expect("it is taken once"), request.expect("it is taken once"));
        let context = Arc::clone(&lookup.context);
        let hit = match lookup.look() {
            LookupResult::Fresh(entry) => {
                context.kernel.note_hit(&entry);
                lookup.record_hit(&entry);
                Some(entry)
            }
            LookupResult::Stale(entry) if lookup.directives.allow_refreshing() => {
                lookup.record_served(Event::StaleHit, &entry);
                None
            }
            _ => {
                lookup.record(Event::Miss);
                context.kernel.note_miss(lookup.request_key.hash);
                None
            }
        };
        let fill = lookup.fill(Forward::UriMiss, None);
        request.extensions_mut().insert(fill.overrides.clone());
        let entered = fill.scope.enter();
        let called = inner.call(request);
        drop(entered);
        let response = fill.scope.clone().scoped(called).await;
        if response.is_err() {
            fill.record(Event::Failed(Reason::Origin));
        }
        let response = response?;
        lookup.outcome.count();
        context.learn_route(&lookup.outcome.route);
        // A part, a 304 and a response to HEAD are not what the cache would store.
        if lookup.request_key.head_only || lookup.request_key.facts.narrowed {
            let scope = fill.scope.clone();
            return Ok(response.map(|body| CacheBody::scoped(body, scope)));
        }
        Ok(fill.observe(response, hit))
    }
}

/// Returns `true` for the share of hits that a cache compares.
#[inline]
pub(super) fn is_sampled(context: &CacheContext) -> bool {
    let share = context.options.shadow;
    share > 0.0 && random_share() < share
}

/// Renders the response to a request that was a hit once more, in a task of its own, and compares them.
#[cold]
pub(super) fn compare<S, B, R>(
    inner: &mut S,
    context: &Arc<CacheContext>,
    request: Request<B>,
    request_key: RequestKey,
    began: Moment,
) where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    if request_key.head_only || *request.method() != Method::GET {
        return;
    }
    let inner = take_ready(inner);
    let Some(miss) = CacheMiss::new(context, inner, request, request_key, began) else { return };
    drop(context.kernel.spawn(miss.compare()));
}

impl<S, B, R> CacheMiss<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    /// Compares this request in a task of its own, if it was a plain hit of the full lookup and belongs to the sample.
    pub(super) fn compare_if_sampled(self) {
        let key = &self.lookup.request_key;
        let is_get = self.request.as_ref().is_some_and(|request| *request.method() == Method::GET);
        let is_plain = is_get && !key.head_only && !key.facts.narrowed && !key.facts.directives;
        if is_plain && is_sampled(&self.lookup.context) {
            let kernel = self.lookup.context.kernel.clone();
            drop(kernel.spawn(self.compare()));
        }
    }

    async fn compare(self) {
        let Self { lookup, inner, request } = self;
        let LookupResult::Fresh(entry) = lookup.look() else { return };
        let (Some(mut inner), Some(mut request)) = (inner, request) else { return };
        let fill = lookup.fill(Forward::UriMiss, None);
        let scope = fill.scope.clone().shadowing();
        let extensions = request.extensions_mut();
        // The handler sees the credentials, which a fill of a shared cache hides, so that the difference by user shows.
        extensions.insert(fill.overrides.clone());
        extensions.insert(PendingInvalidations::discarded(&fill.context.kernel));
        let entered = scope.enter();
        let called = inner.call(request);
        drop(entered);
        let limit = fill.context.options.body_limit;
        let compared = async {
            let response = called.await.ok()?;
            let status = response.status();
            let body = Limited::new(response.into_body(), limit);
            Some((status, body.collect().await.ok()?.to_bytes()))
        };
        let compared = tokio::time::timeout(fill.context.options.deadline, scope.scoped(compared));
        if let Ok(Some((status, whole))) = compared.await {
            fill.compared(entry, (status, &whole));
        }
    }
}

impl Fill {
    /// Compares a response with the entry of a would-be hit, or stores it for further requests to be compared with.
    fn observe<R>(self, response: Response<R>, hit: Option<AnyEntry>) -> Response<CacheBody<R>>
    where
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let (scope, most) = (self.scope.clone(), self.context.options.body_limit);
        let received_at = self.context.kernel.now();
        let override_values = self.overrides.override_values();
        let decision = self.decide(&response, None, &override_values, received_at);
        let announced = announced_length(&response);
        if let Some(entry) = hit {
            let status = response.status();
            return response.map(|body| {
                CacheBody::observed(body, scope, (most, announced), move |whole| {
                    self.compared(entry, (status, &whole));
                })
            });
        }
        let base = self.base(response.headers());
        let decided = decision.and_then(|decision| {
            let names = self.context.selecting_names(response.headers(), decision.opted_in);
            let key = self.variant(&base, &names).map_err(|_| Reason::KeyTooLong)?;
            Ok((decision, names, key))
        });
        let (decision, names, key) = match decided {
            Ok(decided) => decided,
            Err(why) => {
                self.record(Event::Refused(why));
                return response.map(|body| CacheBody::scoped(body, scope));
            }
        };
        let (head, body) = response.into_parts();
        let (from, part) = (head.status, None);
        let (mut kept, ()) = Response::new(()).into_parts();
        kept.status = head.status;
        kept.headers = head.headers.clone();
        let received = ReceivedHead {
            head: kept,
            decision,
            override_values,
            base,
            key,
            names,
            received_at,
            part,
            from,
        };
        let body = CacheBody::observed(body, scope, (most, announced), move |whole| {
            drop(self.store(&received, &whole));
        });
        Response::from_parts(head, body)
    }

    /// Counts the result of a comparison. The handler may have read a change of which this process learns within `max_lag`,
    /// so a difference is stale only if the entry is still valid then.
    fn compared(self, entry: AnyEntry, (status, whole): (StatusCode, &Bytes)) {
        let Some(stored) = stored::of(&entry) else { return };
        let is_same = stored.status() == status && *stored.body() == *whole;
        let by_user = self.is_for_user || stored.traits.is_for_user;
        let (context, route) = (Arc::clone(&self.context), self.overrides.route().id());
        let differs_again = !is_same && context.differing.differs_again(&entry, status, whole);
        let record = move |comparison| context.meter.record_comparison(route, comparison);
        match (is_same, by_user, differs_again) {
            (true, ..) => return record(Comparison::Same),
            (false, true, _) => return record(Comparison::DiffersByUser),
            (false, false, true) => return record(Comparison::NotDeterministic),
            (false, false, false) => {}
        }
        tokio::spawn(async move {
            let kernel = &self.context.kernel;
            tokio::time::sleep(kernel.max_lag()).await;
            let is_invalid = kernel.entry_state(&entry, kernel.now()) == EntryState::Invalid;
            record(if is_invalid { Comparison::Late } else { Comparison::Stale });
        });
    }
}
