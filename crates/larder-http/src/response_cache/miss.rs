//! Handles a request that the first read of the first level could not serve. It runs the full lookup, and then waits
//! for the fill in flight or leads a fill.

use std::{any::Any, future::Future, ops::ControlFlow, panic, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body::Body;
use larder_core::{
    Consistency, Key, Reason,
    kernel::{
        AnyEntry, Event, FillRequest, FlightResult, FlightRole, Kernel, Leader, Moment, Scope,
        fill_or_wait,
    },
};
use larder_semantics::{cache_status::Forward, reuse::RequestDirectives};
use tokio::sync::oneshot;
use tower_service::Service;
use tracing::Instrument as _;

use super::{
    context::{CacheContext, RequestKey},
    fill::{Answer, Fill, after, shared_error::SharedFailure, storage_decision::is_error},
    lookup::{Lookup, LookupResult},
    request_outcome::RequestOutcome,
    route_note::RouteNote,
    stored,
};
use crate::{
    address::{Head, matched_route},
    body::{BoxError, CacheBody},
    conditional,
    invalidation::PendingInvalidations,
    own_pages::UnchangedHead,
};

/// A request that needs the full lookup, and the state of that lookup.
pub(super) struct CacheMiss<S, B> {
    pub(super) lookup: Lookup,
    pub(super) inner: Option<S>,
    pub(super) request: Option<Request<B>>,
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
    /// Returns `None` if the key is too long, although requests with such a key do not get past admission.
    pub(super) fn new(
        context: &Arc<CacheContext>,
        inner: S,
        request: Request<B>,
        mut request_key: RequestKey,
        began: Moment,
    ) -> Option<Self> {
        let kernel = &context.kernel;
        let arrived = kernel.sequence();
        let key = request_key.key.finish().ok()?;
        let unknown_field = context.unknown_field(request.headers());
        request_key.has_unknown_field = unknown_field.is_some();
        let flight_key = single_flight_key(context, &request_key, &key, unknown_field.as_ref())?;
        let route = RouteNote::default();
        if let Some(template) = matched_route(request.extensions()) {
            route.note(kernel, template);
        }
        let outcome = Arc::new(RequestOutcome::new(&context.meter, route));
        let head = Head::from(&request);
        let directives = if request_key.facts.directives {
            RequestDirectives::of(head.headers)
        } else {
            RequestDirectives::default()
        };
        let hidden = context.options.shared;
        let scope = kernel.scope().gathering(context.audience(&head, request_key.facts, hidden));
        let (origin, tags) = context.address_tags(&head);
        let search = context.search(&head);
        let mut selecting = head.headers.clone();
        if context.options.shared {
            context.hide_identity(&mut selecting);
        }
        let lookup = Lookup {
            context: Arc::clone(context),
            flight_hash: kernel.hash(flight_key.as_bytes()),
            request_key,
            key,
            flight_key,
            scope,
            arrived,
            began,
            directives,
            selecting,
            origin,
            tags,
            wants_etag: conditional::is_around(),
            search,
            in_part: false,
            is_outermost: kernel.current_scope().is_none(),
            unknown_field,
            final_head: request.extensions().get().cloned(),
            written: context.written(request.extensions()),
            outcome,
            requested: PendingInvalidations::current(),
        };
        Some(Self { lookup, inner: Some(inner), request: Some(request) })
    }

    /// Answers the request, and counts its outcome.
    pub(super) async fn serve(self) -> Answer<R, S::Error> {
        let outcome = Arc::clone(&self.lookup.outcome);
        let (context, began) = (Arc::clone(&self.lookup.context), self.lookup.began);
        let mut answer = self.answer().await;
        if let (true, Ok(response)) = (context.options.server_timing, &mut answer) {
            outcome.add_server_timing(response.headers_mut(), context.kernel.now().since(began));
        }
        outcome.count();
        context.learn_route(&outcome.route);
        answer
    }

    async fn answer(mut self) -> Answer<R, S::Error> {
        let consistency = self.lookup.context.options.consistency;
        if consistency != Consistency::Eventual || self.lookup.scope.distrusts() {
            let caught_up = self.lookup.context.kernel.catch_up(consistency).await;
            if !caught_up || self.lookup.scope.distrusts() {
                if self.lookup.directives.only_if_cached {
                    self.lookup.record(Event::Bypass(Reason::OnlyIfCached));
                    return Ok(self.lookup.context.nothing_stored());
                }
                self.lookup.scope = self.lookup.scope.clone().distrusting();
                let plan = ForwardPlan::of(&self.lookup, Forward::Bypass, None);
                return self.alone(plan, Reason::Unsynchronised).await;
            }
            if let Consistency::Bounded(bound) = consistency {
                self.lookup.scope = self.lookup.scope.clone().bounded(bound);
            }
            // All invalidations until now have been applied. So this request must not get the response of a fill that
            // began before them, and they do not overtake a fill that begins now.
            self.lookup.arrived = self.lookup.context.kernel.sequence();
            self.lookup.stamp_anew();
        }
        let plan = match self.answer_at_once() {
            ControlFlow::Break(answer) => {
                self.compare_if_sampled();
                return Ok(answer);
            }
            ControlFlow::Continue(plan) => plan,
        };
        if plan.why == Forward::VaryMiss {
            self.lookup.narrow_flight_to_variant();
        }
        match self.reason_to_go_alone() {
            Some(reason) => self.alone(plan, reason).await,
            None => self.join_flight(plan).await,
        }
    }

    /// Answers with a fresh or stale response from the first level, or with a 504 for `only-if-cached`.
    fn answer_at_once(&mut self) -> ControlFlow<Response<CacheBody<R>>, ForwardPlan> {
        let directives = self.lookup.directives;
        let plan = match self.lookup.look() {
            LookupResult::Fresh(entry) if self.meets(&entry) => {
                let answer = self.lookup.answer_from(&entry);
                let context = &self.lookup.context;
                context.kernel.note_hit(&entry);
                self.lookup.record_hit(&entry);
                if context.options.is_due(&entry, context.kernel.now())
                    && directives.allow_refreshing()
                {
                    self.refresh(entry);
                }
                return ControlFlow::Break(answer);
            }
            LookupResult::Fresh(entry) => {
                ForwardPlan::of(&self.lookup, Forward::Request, Some(entry))
            }
            LookupResult::Stale(entry) if directives.allow_refreshing() => {
                let answer = self.lookup.stale(&entry, Event::StaleHit, None);
                self.refresh(entry);
                return ControlFlow::Break(answer);
            }
            LookupResult::Stale(entry)
            | LookupResult::OnError(entry)
            | LookupResult::ToRevalidate(entry) => {
                if self.lookup.accepts_stale(&entry) {
                    return ControlFlow::Break(self.lookup.stale(&entry, Event::StaleHit, None));
                }
                ForwardPlan::of(&self.lookup, Forward::Stale, Some(entry))
            }
            LookupResult::Nothing(why) => {
                if self.lookup.asks_for_a_part()
                    && let Some((entry, answer)) = self.lookup.answer_from_part()
                {
                    self.lookup.context.kernel.note_hit(&entry);
                    self.lookup.record_hit(&entry);
                    return ControlFlow::Break(answer);
                }
                ForwardPlan::of(&self.lookup, why, None)
            }
        };
        if directives.only_if_cached {
            self.lookup.record(Event::Bypass(Reason::OnlyIfCached));
            return ControlFlow::Break(self.lookup.context.nothing_stored());
        }
        ControlFlow::Continue(plan)
    }

    /// Returns the reason, if there is one, why larder forwards the request alone and does not let it wait for a fill.
    fn reason_to_go_alone(&self) -> Option<Reason> {
        if self.lookup.request_key.head_only {
            Some(Reason::Head)
        } else {
            self.lookup.refused_lately()
        }
    }

    /// Leads a fill, or waits for the fill in flight; see [`fill_or_wait`].
    async fn join_flight(mut self, plan: ForwardPlan) -> Answer<R, S::Error> {
        // Without a stored response to confirm, the origin need not send more than the requested range.
        self.lookup.in_part = plan.known.is_none() && self.lookup.asks_for_a_part();
        if self.lookup.in_part || plan.is_for_one() {
            let leader = self.lookup.lead_alone();
            return self.lead(leader, plan).await;
        }
        fill_or_wait(QueuedMiss { miss: self, plan }).await
    }

    /// Leads a fill: reads the second level, and then calls the inner service in a task of its own. A leader that waits
    /// for the fill lock of another process waits in a task, too, so that its waiters do not depend on whether the
    /// future of this request is polled.
    async fn lead(mut self, mut leader: Leader, mut plan: ForwardPlan) -> Answer<R, S::Error> {
        if plan.why != Forward::Request {
            // Another fill may have ended between the lookup and the join.
            if let LookupResult::Fresh(entry) = self.lookup.look()
                && self.meets(&entry)
            {
                self.lookup.record_served(Event::Collapsed, &entry);
                leader.finish(FlightResult::Filled(entry.clone()));
                return Ok(self.lookup.collapsed(&entry, plan.why));
            }
            let context = &self.lookup.context;
            if context.options.lease.is_none() && context.kernel.shares(context.options.tiers) {
                // This read does not need a task. It is short, and if the future of this request is not polled, a
                // waiter leads another fill.
                leader.look();
                let fetched = self.lookup.fetch(&mut leader).await;
                if let Some(entry) = fetched.filter(|_| self.lookup.is_trusted()) {
                    return Ok(self.fetched(leader, &entry));
                }
                if let Some(entry) = self.fetched_stale(&mut plan) {
                    return Ok(self.serve_stale(leader, entry));
                }
                leader.looked();
            } else if context.kernel.shares(context.options.tiers) {
                let context = Arc::clone(context);
                let leading =
                    context.kernel.spawn(self.fetch_or_fill(leader, plan).in_current_span());
                return ended(leading.await, &context);
            }
        }
        self.lead_fill(leader, plan).await
    }

    async fn fetch_or_fill(
        mut self,
        mut leader: Leader,
        mut plan: ForwardPlan,
    ) -> Answer<R, S::Error> {
        let fetched = self.lookup.fetch(&mut leader).await;
        if let Some(entry) = fetched.filter(|_| self.lookup.is_trusted()) {
            return Ok(self.fetched(leader, &entry));
        }
        if let Some(entry) = self.fetched_stale(&mut plan) {
            return Ok(self.serve_stale(leader, entry));
        }
        self.lead_fill(leader, plan).await
    }

    /// Returns the stale response that a read of the second level has promoted, if this request may get it while it is
    /// refreshed. One that may be served on errors becomes the fallback of the plan.
    fn fetched_stale(&self, plan: &mut ForwardPlan) -> Option<AnyEntry> {
        if plan.selected.is_some() || !self.lookup.is_trusted() {
            return None;
        }
        match self.lookup.look() {
            LookupResult::Stale(entry) if self.lookup.directives.allow_refreshing() => Some(entry),
            LookupResult::Stale(entry) | LookupResult::OnError(entry) => {
                *plan = ForwardPlan::of(&self.lookup, plan.why, Some(entry));
                None
            }
            _ => None,
        }
    }

    /// Serves a stale response of the second level, and refreshes it. The waiters of this fill find it in the first
    /// level.
    fn serve_stale(&mut self, leader: Leader, entry: AnyEntry) -> Response<CacheBody<R>> {
        leader.finish(FlightResult::Withdrawn);
        let answer = self.lookup.stale(&entry, Event::StaleHit, None);
        self.refresh(entry);
        answer
    }

    /// Ends the fill with the entry from the second level.
    fn fetched(&self, leader: Leader, entry: &AnyEntry) -> Response<CacheBody<R>> {
        leader.finish(FlightResult::Filled(entry.clone()));
        self.lookup.record_served(Event::SharedHit, entry);
        self.lookup.answer_from(entry)
    }

    async fn lead_fill(mut self, leader: Leader, plan: ForwardPlan) -> Answer<R, S::Error> {
        let ForwardPlan { why, fallback, selected, known } = plan;
        self.lookup.record(Event::Miss);
        self.lookup.context.kernel.note_miss(self.lookup.request_key.hash);
        let (client, answer) = oneshot::channel();
        let filling = self.spawn_fill(leader, why, (selected, known), client);
        match answer.await {
            Ok(answer) => self.lookup.or_stale(answer, fallback.as_ref()),
            Err(_) => {
                let ended = filling.await.map(|()| Ok(shutting_down(&self.lookup.context)));
                self::ended(ended, &self.lookup.context)
            }
        }
    }

    fn spawn_fill(
        &mut self,
        leader: Leader,
        why: Forward,
        entries: (Option<AnyEntry>, Option<AnyEntry>),
        client: oneshot::Sender<Answer<R, S::Error>>,
    ) -> tokio::task::JoinHandle<()> {
        let (fill, inner, request) = self.fill(why, entries);
        let context = Arc::clone(&self.lookup.context);
        let filling = fill.run(leader, inner, request, client);
        context.kernel.spawn_fill(&context.options.name, false, filling)
    }

    /// Returns a fill, the inner service, and the request that the fill sends.
    pub(super) fn fill(
        &mut self,
        why: Forward,
        (replaces, known): (Option<AnyEntry>, Option<AnyEntry>),
    ) -> (Fill, S, Request<B>) {
        let (inner, request) = self.take();
        let fill = Fill { replaces, ..self.lookup.fill(why, known) };
        let mut request = self.lookup.for_fill(request, &fill.overrides);
        Lookup::add_conditions(&mut request, fill.known.as_ref(), fill.replaces.as_ref());
        (fill, inner, request)
    }

    /// Forwards the request alone. No waiter shares its response, and larder stores it only if
    /// [`may_store_alone`](Lookup::may_store_alone) allows that for the reason.
    async fn alone(mut self, plan: ForwardPlan, reason: Reason) -> Answer<R, S::Error> {
        let ForwardPlan { why, fallback, selected, .. } = plan;
        self.lookup.record(Event::Miss);
        let (mut inner, mut request) = self.take();
        let fill = self.lookup.fill(why, None);
        let may_store = self.lookup.may_store_alone(reason);
        if self.lookup.context.own_pages.may_have() {
            UnchangedHead::note(&mut request);
        }
        if may_store {
            request = self.lookup.for_fill(request, &fill.overrides);
        } else if self.lookup.context.options.shared {
            self.lookup.context.hide_identity(request.headers_mut());
        }
        if self.lookup.request_key.head_only {
            // Its response may confirm the stored response to GET.
            self.lookup.context.options.remove_unkeyed(&mut request);
        }
        request.extensions_mut().insert(fill.overrides.clone());
        let calling = async move { inner.call(request).await };
        let answer = match fill.scope.clone().scoped(calling).await {
            // The response was not storable a while ago, and is storable now.
            Ok(response) if may_store && fill.would_store(&response) => {
                let leader = self.lookup.lead_alone();
                let answer = store_alone(fill, leader, response).await;
                return self.lookup.or_stale(answer, fallback.as_ref());
            }
            answer => answer,
        };
        if let (true, Ok(response), Some(entry)) =
            (self.lookup.request_key.head_only, &answer, &selected)
        {
            self.lookup.note_head(&fill, response, entry);
        }
        let answer = answer.map(|response| fill.forwarded(response, reason));
        self.lookup.or_stale(answer, fallback.as_ref())
    }

    fn meets(&self, entry: &AnyEntry) -> bool {
        self.lookup.context.meets(&self.lookup.directives, entry, self.lookup.context.kernel.now())
    }

    fn take(&mut self) -> (S, Request<B>) {
        let inner = self.inner.take().expect("a request is passed on once");
        let request = self.request.take().expect("a request is passed on once");
        (inner, request)
    }
}

/// The plan for forwarding a request: the reason, the stored response that the origin may confirm, and the stale
/// response that may replace an error.
struct ForwardPlan {
    why: Forward,
    fallback: Option<AnyEntry>,
    /// The stored response that the request selects, but that larder must not serve to it as it is.
    selected: Option<AnyEntry>,
    known: Option<AnyEntry>,
}

impl ForwardPlan {
    fn of(lookup: &Lookup, why: Forward, selected: Option<AnyEntry>) -> Self {
        let is_good =
            |entry: &AnyEntry| stored::of(entry).is_some_and(|stored| !is_error(stored.status()));
        let in_place = why != Forward::Request
            && !lookup.directives.no_cache
            && selected.as_ref().is_some_and(is_good);
        Self {
            why,
            fallback: selected.clone().filter(|_| in_place),
            known: lookup.to_confirm(selected.as_ref()),
            selected,
        }
    }

    /// Whether no other request can use the response, because it must be revalidated for each request.
    fn is_for_one(&self) -> bool {
        let ends = self.selected.as_ref().map(|entry| *entry.ends());
        ends.is_some_and(|ends| ends.refreshed_until() <= ends.filled())
    }
}

/// Stores a response that no other request waits for.
async fn store_alone<R, E>(fill: Fill, leader: Leader, response: Response<R>) -> Answer<R, E>
where
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    E: Send + 'static,
{
    let context = Arc::clone(&fill.context);
    let (client, answer) = oneshot::channel();
    let hearing = fill.receive(leader, response, after(context.options.deadline), client);
    drop(context.kernel.spawn_fill(&context.options.name, false, hearing));
    answer.await.unwrap_or_else(|_| Ok(shutting_down(&context)))
}

/// Returns the single-flight key of a request: that of its address, but a separate key for authenticated requests and
/// for requests with an unknown field. `None` if it is too long.
pub(super) fn single_flight_key(
    context: &CacheContext,
    request_key: &RequestKey,
    key: &Key,
    unknown_field: Option<&HeaderName>,
) -> Option<Key> {
    let set_apart =
        request_key.facts.identified && !request_key.partitioned && !context.options.shared;
    match (set_apart, unknown_field) {
        (true, _) => key.with_part(b" identified").ok(),
        // Only this request gets the response, unless the handler opts it in.
        (false, Some(_)) => key.with_part(b" unknown field").ok(),
        (false, None) => Some(key.clone()),
    }
}

/// Returns the result of a task, or resumes its panic here.
fn ended<R, E>(
    outcome: Result<Answer<R, E>, tokio::task::JoinError>,
    context: &CacheContext,
) -> Answer<R, E> {
    match outcome.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(answer) => answer,
        Err(Ok(panic)) => panic::resume_unwind(panic),
        Err(Err(_)) => Ok(shutting_down(context)),
    }
}

fn shutting_down<R>(context: &CacheContext) -> Response<CacheBody<R>> {
    context.refused(
        StatusCode::SERVICE_UNAVAILABLE,
        "the server is shutting down; try again later\n",
        Reason::ShuttingDown,
    )
}

/// A miss in the fill loop, with its plan.
struct QueuedMiss<S, B> {
    miss: CacheMiss<S, B>,
    plan: ForwardPlan,
}

impl<S, B, R> FillRequest for QueuedMiss<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Output = Answer<R, S::Error>;
    type Failure = SharedFailure;

    fn kernel(&self) -> &Kernel {
        &self.miss.lookup.context.kernel
    }

    fn scope(&self) -> &Scope {
        &self.miss.lookup.scope
    }

    fn restamp(&mut self) {
        self.miss.lookup.stamp_anew();
    }

    fn join(&self) -> FlightRole {
        match self.miss.lookup.join() {
            // A request that demands a new response must not get the response of a fill that began before it.
            FlightRole::Waiter(_)
                if self.plan.why == Forward::Request || !self.miss.lookup.may_wait() =>
            {
                FlightRole::Alone
            }
            role => role,
        }
    }

    fn take(&mut self, entry: &AnyEntry) -> Option<Self::Output> {
        let lookup = &self.miss.lookup;
        lookup.is_mine(entry).then(|| {
            lookup.record_served(Event::Collapsed, entry);
            Ok(lookup.collapsed(entry, self.plan.why))
        })
    }

    fn read_along(&mut self, stream: Arc<dyn Any + Send + Sync>) -> Option<Self::Output> {
        self.miss.lookup.read_along(stream, self.plan.why).map(Ok)
    }

    fn look_again(&mut self) -> Option<Self::Output> {
        let lookup = &self.miss.lookup;
        let (why, selected) = match lookup.look() {
            LookupResult::Fresh(entry) if self.miss.meets(&entry) => {
                lookup.record_served(Event::Collapsed, &entry);
                return Some(Ok(lookup.collapsed(&entry, self.plan.why)));
            }
            LookupResult::Fresh(entry)
            | LookupResult::Stale(entry)
            | LookupResult::OnError(entry)
            | LookupResult::ToRevalidate(entry) => (self.plan.why, Some(entry)),
            LookupResult::Nothing(found) => (found, None),
        };
        self.plan = ForwardPlan::of(lookup, why, selected);
        None
    }

    fn fall_back(
        &mut self,
        failure: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self::Output, SharedFailure> {
        let failure = failure.as_deref().and_then(|failure| failure.downcast_ref());
        self.miss.lookup.fall_back(failure, self.plan.fallback.as_ref()).map(Ok)
    }

    fn lead(self, leader: Leader) -> impl Future<Output = Self::Output> + Send {
        self.miss.lead(leader, self.plan)
    }

    fn alone(self, reason: Reason) -> impl Future<Output = Self::Output> + Send {
        let reason = match reason {
            Reason::SelfWaiting | Reason::Overtaken => Reason::Alone,
            reason => reason,
        };
        self.miss.alone(self.plan, reason)
    }

    fn fail(self, failure: SharedFailure) -> Self::Output {
        Ok(self.miss.lookup.shared_failure(&failure, self.plan.why))
    }
}
