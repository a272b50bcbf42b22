//! Handles a request that the first look into the first level could not answer: looks it up in full, waits for
//! a fill in flight, or leads one.

use std::{any::Any, future::Future, ops::ControlFlow, panic, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use larder_core::{
    Consistency, Reason,
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
    fill::{Answer, Fill, after, judge::is_error, shared_error::SharedFailure},
    lookup::{Lookup, LookupResult},
    stored,
};
use crate::{
    address::Head,
    body::{BoxError, CacheBody},
    conditional,
    invalidation::PendingInvalidations,
};

/// A request that needs the full lookup, and the state of that lookup.
pub(super) struct CacheMiss<S, B> {
    pub(super) asked: Lookup,
    inner: Option<S>,
    request: Option<Request<B>>,
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
    /// Returns `None` for a key that is too long; admission rejects those before.
    pub(super) fn new(
        plan: &Arc<CacheContext>,
        inner: S,
        request: Request<B>,
        mut lookup: RequestKey,
        began: Moment,
    ) -> Option<Self> {
        let kernel = &plan.kernel;
        let arrived = kernel.sequence();
        let key = lookup.key.finish().ok()?;
        let unknown_field = if plan.guards_fields() {
            plan.options.unknown_field(request.headers()).cloned()
        } else {
            None
        };
        lookup.has_unknown_field = unknown_field.is_some();
        let set_apart = lookup.facts.identified && !lookup.partitioned && !plan.options.shared;
        let queue = match (set_apart, &unknown_field) {
            (true, _) => key.with_part(b" identified").ok()?,
            // Its response answers this request alone, unless the handler opts it in.
            (false, Some(_)) => key.with_part(b" unknown field").ok()?,
            (false, None) => key.clone(),
        };
        let head = Head::from(&request);
        let demands = if lookup.facts.demands {
            RequestDirectives::of(head.headers)
        } else {
            RequestDirectives::default()
        };
        let hidden = plan.options.shared;
        let scope = kernel.scope().gathering(plan.audience(&head, lookup.facts, hidden));
        let (origin, tags) = plan.address_tags(&head);
        let search = plan.search(&head);
        let mut selecting = head.headers.clone();
        if plan.options.shared {
            plan.hide_identity(&mut selecting);
        }
        let asked = Lookup {
            plan: Arc::clone(plan),
            queue_hash: kernel.hash(queue.as_bytes()),
            lookup,
            key,
            queue,
            scope,
            arrived,
            began,
            demands,
            selecting,
            origin,
            tags,
            wants_etag: conditional::is_around(),
            search,
            in_part: false,
            is_outermost: kernel.current_scope().is_none(),
            unknown_field,
            final_head: request.extensions().get().cloned(),
            written: plan.written(request.extensions()),
            requested: PendingInvalidations::current(),
        };
        Some(Self { asked, inner: Some(inner), request: Some(request) })
    }

    /// Answers the request.
    pub(super) async fn serve(mut self) -> Answer<R, S::Error> {
        let consistency = self.asked.plan.options.consistency;
        if consistency != Consistency::Eventual || self.asked.scope.distrusts() {
            let caught_up = self.asked.plan.kernel.catch_up(consistency).await;
            if !caught_up || self.asked.scope.distrusts() {
                if self.asked.demands.only_if_cached {
                    let now = self.asked.plan.kernel.now();
                    return Ok(self.asked.plan.nothing_stored(now));
                }
                self.asked.scope = self.asked.scope.clone().distrusting();
                let case = ForwardPlan::of(&self.asked, Forward::Bypass, None);
                return self.alone(case, Reason::Unsynchronised).await;
            }
            if let Consistency::Bounded(bound) = consistency {
                self.asked.scope = self.asked.scope.clone().bounded(bound);
            }
            // All invalidations until now have been applied: no fill that began before them may answer, and
            // they do not overtake one that begins now.
            self.asked.arrived = self.asked.plan.kernel.sequence();
            self.asked.stamp_anew();
        }
        let case = match self.answer_at_once() {
            ControlFlow::Break(answer) => return Ok(answer),
            ControlFlow::Continue(case) => case,
        };
        if case.why == Forward::VaryMiss {
            self.asked.queue_by_variant();
        }
        match self.reason_to_go_alone() {
            Some(reason) => self.alone(case, reason).await,
            None => self.queue(case).await,
        }
    }

    /// Answers from the first level, fresh or stale, or with 504 for `only-if-cached`.
    fn answer_at_once(&mut self) -> ControlFlow<Response<CacheBody<R>>, ForwardPlan> {
        let demands = self.asked.demands;
        let case = match self.asked.look() {
            LookupResult::Fresh(entry) if self.meets(&entry) => {
                let answer = self.asked.answer_from(&entry);
                self.asked.plan.kernel.note_hit(&entry);
                self.asked.plan.count_hit(self.asked.began);
                return ControlFlow::Break(answer);
            }
            LookupResult::Fresh(entry) => {
                ForwardPlan::of(&self.asked, Forward::Request, Some(entry))
            }
            LookupResult::Stale(entry) if demands.allow_refreshing() => {
                let answer = self.asked.stale(&entry, Event::StaleHit, None);
                self.refresh(entry);
                return ControlFlow::Break(answer);
            }
            LookupResult::Stale(entry)
            | LookupResult::OnError(entry)
            | LookupResult::ToRevalidate(entry) => {
                if self.asked.welcomes(&entry) {
                    return ControlFlow::Break(self.asked.stale(&entry, Event::StaleHit, None));
                }
                ForwardPlan::of(&self.asked, Forward::Stale, Some(entry))
            }
            LookupResult::Nothing(why) => {
                if self.asked.asks_for_a_part()
                    && let Some((entry, answer)) = self.asked.answer_from_part()
                {
                    self.asked.plan.kernel.note_hit(&entry);
                    self.asked.plan.count_hit(self.asked.began);
                    return ControlFlow::Break(answer);
                }
                ForwardPlan::of(&self.asked, why, None)
            }
        };
        if demands.only_if_cached {
            let now = self.asked.plan.kernel.now();
            return ControlFlow::Break(self.asked.plan.nothing_stored(now));
        }
        ControlFlow::Continue(case)
    }

    /// Returns the reason, if any, why the request does not wait for a fill and its response is not stored.
    fn reason_to_go_alone(&self) -> Option<Reason> {
        if self.asked.lookup.head_only { Some(Reason::Head) } else { self.asked.refused_lately() }
    }

    /// Leads a fill, or waits for the one in flight: see [`fill_or_wait`].
    async fn queue(mut self, case: ForwardPlan) -> Answer<R, S::Error> {
        // Without a stored response to confirm, the origin need not send more than the requested range.
        self.asked.in_part = case.known.is_none() && self.asked.asks_for_a_part();
        if self.asked.in_part || case.is_for_one() {
            let lead = self.asked.lead_alone();
            return self.lead(lead, case).await;
        }
        fill_or_wait(QueuedMiss { miss: self, case }).await
    }

    /// Leads a fill: reads the second level, then calls the inner service in a task of its own. A leader that
    /// waits for the fill lock of another process does that in a task too, so that its waiters do not depend on
    /// this client being polled.
    async fn lead(self, mut lead: Leader, case: ForwardPlan) -> Answer<R, S::Error> {
        if case.why != Forward::Request {
            // Another fill may have ended between the lookup and the join.
            if let LookupResult::Fresh(entry) = self.asked.look()
                && self.meets(&entry)
            {
                self.asked.record(Event::Collapsed);
                lead.land(FlightResult::Filled(entry.clone()));
                return Ok(self.asked.collapsed(&entry, case.why));
            }
            let plan = &self.asked.plan;
            if plan.options.lease.is_none() && plan.kernel.shares(plan.options.tiers) {
                // Without a task: it is short, and if this client is not polled, a waiter leads another flight.
                lead.look();
                let fetched = self.asked.fetch(&mut lead).await;
                if let Some(entry) = fetched.filter(|_| self.asked.is_trusted()) {
                    return Ok(self.fetched(lead, &entry));
                }
                lead.looked();
            } else if plan.kernel.shares(plan.options.tiers) {
                let plan = Arc::clone(plan);
                let leading = plan.kernel.spawn(self.fetch_or_fill(lead, case).in_current_span());
                return ended(leading.await, &plan);
            }
        }
        self.lead_fill(lead, case).await
    }

    async fn fetch_or_fill(self, mut lead: Leader, case: ForwardPlan) -> Answer<R, S::Error> {
        let fetched = self.asked.fetch(&mut lead).await;
        if let Some(entry) = fetched.filter(|_| self.asked.is_trusted()) {
            return Ok(self.fetched(lead, &entry));
        }
        self.lead_fill(lead, case).await
    }

    /// Ends the flight with the entry from the second level.
    fn fetched(&self, lead: Leader, entry: &AnyEntry) -> Response<CacheBody<R>> {
        lead.land(FlightResult::Filled(entry.clone()));
        self.asked.record(Event::SharedHit);
        self.asked.answer_from(entry)
    }

    async fn lead_fill(mut self, lead: Leader, case: ForwardPlan) -> Answer<R, S::Error> {
        let ForwardPlan { why, fallback, selected, known } = case;
        self.asked.record(Event::Miss);
        self.asked.plan.kernel.note_miss(self.asked.lookup.hash);
        let (client, answer) = oneshot::channel();
        let filling = self.spawn_fill(lead, why, (selected, known), client);
        match answer.await {
            Ok(answer) => self.asked.or_stale(answer, fallback.as_ref()),
            Err(_) => {
                let ended = filling.await.map(|()| Ok(shutting_down(&self.asked.plan)));
                self::ended(ended, &self.asked.plan)
            }
        }
    }

    fn spawn_fill(
        &mut self,
        lead: Leader,
        why: Forward,
        kept: (Option<AnyEntry>, Option<AnyEntry>),
        client: oneshot::Sender<Answer<R, S::Error>>,
    ) -> tokio::task::JoinHandle<()> {
        let (fill, inner, request) = self.fill(why, kept);
        let kernel = self.asked.plan.kernel.clone();
        kernel.spawn(fill.run(lead, inner, request, client).in_current_span())
    }

    /// Returns a fill, the inner service, and the request that the fill sends.
    pub(super) fn fill(
        &mut self,
        why: Forward,
        (replaces, known): (Option<AnyEntry>, Option<AnyEntry>),
    ) -> (Fill, S, Request<B>) {
        let (inner, request) = self.take();
        let fill = Fill { replaces, ..self.asked.fill(why, known) };
        let mut request = self.asked.for_fill(request, &fill.choices);
        Lookup::add_conditions(&mut request, fill.known.as_ref(), fill.replaces.as_ref());
        (fill, inner, request)
    }

    /// Forwards the request by itself. No waiter shares its response, and larder stores it only if
    /// [`keeps_alone`](Lookup::keeps_alone) allows that for the reason.
    async fn alone(mut self, case: ForwardPlan, reason: Reason) -> Answer<R, S::Error> {
        let ForwardPlan { why, fallback, selected, .. } = case;
        self.asked.record(Event::Miss);
        let (mut inner, mut request) = self.take();
        let fill = self.asked.fill(why, None);
        let keeps = self.asked.keeps_alone(reason);
        if keeps {
            request = self.asked.for_fill(request, &fill.choices);
        } else if self.asked.plan.options.shared {
            self.asked.plan.hide_identity(request.headers_mut());
        }
        if self.asked.lookup.head_only {
            // Its response may confirm the stored response to GET.
            self.asked.plan.options.remove_unkeyed(&mut request);
        }
        request.extensions_mut().insert(fill.choices.clone());
        let calling = async move { inner.call(request).await };
        let answer = match fill.scope.clone().scoped(calling).await {
            // The response was not storable a while ago, and is storable now.
            Ok(response) if keeps && fill.would_keep(&response) => {
                let lead = self.asked.lead_alone();
                let answer = keep_alone(fill, lead, response).await;
                return self.asked.or_stale(answer, fallback.as_ref());
            }
            answer => answer,
        };
        if let (true, Ok(response), Some(kept)) = (self.asked.lookup.head_only, &answer, &selected)
        {
            self.asked.note_head(&fill, response, kept);
        }
        let answer = answer.map(|response| fill.passed(response, reason));
        self.asked.or_stale(answer, fallback.as_ref())
    }

    fn meets(&self, entry: &AnyEntry) -> bool {
        self.asked.plan.meets(&self.asked.demands, entry, self.asked.plan.kernel.now())
    }

    fn take(&mut self) -> (S, Request<B>) {
        let inner = self.inner.take().expect("a request is passed on once");
        let request = self.request.take().expect("a request is passed on once");
        (inner, request)
    }
}

/// The plan for forwarding a request: the reason, the stored response that the origin may confirm, and the
/// stale one that may replace an error.
struct ForwardPlan {
    why: Forward,
    fallback: Option<AnyEntry>,
    /// The stored response that the request selects, but that may not answer it as it is.
    selected: Option<AnyEntry>,
    known: Option<AnyEntry>,
}

impl ForwardPlan {
    fn of(asked: &Lookup, why: Forward, selected: Option<AnyEntry>) -> Self {
        let is_good =
            |entry: &AnyEntry| stored::of(entry).is_some_and(|stored| !is_error(stored.status()));
        let in_place = why != Forward::Request
            && !asked.demands.no_cache
            && selected.as_ref().is_some_and(is_good);
        Self {
            why,
            fallback: selected.clone().filter(|_| in_place),
            known: asked.to_confirm(selected.as_ref()),
            selected,
        }
    }

    /// Whether no other request can use the response, since it must be revalidated for each.
    fn is_for_one(&self) -> bool {
        let ends = self.selected.as_ref().map(|entry| *entry.ends());
        ends.is_some_and(|ends| ends.refreshed_until() <= ends.filled())
    }
}

/// Stores a response that no other request waits for.
async fn keep_alone<R, E>(fill: Fill, lead: Leader, response: Response<R>) -> Answer<R, E>
where
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    E: Send + 'static,
{
    let plan = Arc::clone(&fill.plan);
    let (client, answer) = oneshot::channel();
    let hearing = fill.hear(lead, response, after(plan.options.deadline), client);
    drop(plan.kernel.spawn(hearing.in_current_span()));
    answer.await.unwrap_or_else(|_| Ok(shutting_down(&plan)))
}

/// Returns the result of a task, and resumes its panic here.
fn ended<R, E>(
    outcome: Result<Answer<R, E>, tokio::task::JoinError>,
    plan: &CacheContext,
) -> Answer<R, E> {
    match outcome.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(answer) => answer,
        Err(Ok(panic)) => panic::resume_unwind(panic),
        Err(Err(_)) => Ok(shutting_down(plan)),
    }
}

fn shutting_down<R>(plan: &CacheContext) -> Response<CacheBody<R>> {
    plan.refused(
        StatusCode::SERVICE_UNAVAILABLE,
        "the server is shutting down; try again later\n",
        Reason::ShuttingDown,
    )
}

/// A miss in the fill loop, with its plan.
struct QueuedMiss<S, B> {
    miss: CacheMiss<S, B>,
    case: ForwardPlan,
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
        &self.miss.asked.plan.kernel
    }

    fn scope(&self) -> &Scope {
        &self.miss.asked.scope
    }

    fn restamp(&mut self) {
        self.miss.asked.stamp_anew();
    }

    fn join(&self) -> FlightRole {
        match self.miss.asked.join() {
            // A request that demands a new response is not served by a fill that began before it.
            FlightRole::Waiter(_)
                if self.case.why == Forward::Request || !self.miss.asked.may_wait() =>
            {
                FlightRole::Alone
            }
            role => role,
        }
    }

    fn take(&mut self, entry: &AnyEntry) -> Option<Self::Output> {
        let asked = &self.miss.asked;
        asked.is_mine(entry).then(|| {
            asked.record(Event::Collapsed);
            Ok(asked.collapsed(entry, self.case.why))
        })
    }

    fn read_along(&mut self, stream: Arc<dyn Any + Send + Sync>) -> Option<Self::Output> {
        self.miss.asked.read_along(stream, self.case.why).map(Ok)
    }

    fn look_again(&mut self) -> Option<Self::Output> {
        let asked = &self.miss.asked;
        let (why, selected) = match asked.look() {
            LookupResult::Fresh(entry) if self.miss.meets(&entry) => {
                asked.record(Event::Collapsed);
                return Some(Ok(asked.collapsed(&entry, self.case.why)));
            }
            LookupResult::Fresh(entry)
            | LookupResult::Stale(entry)
            | LookupResult::OnError(entry)
            | LookupResult::ToRevalidate(entry) => (self.case.why, Some(entry)),
            LookupResult::Nothing(found) => (found, None),
        };
        self.case = ForwardPlan::of(asked, why, selected);
        None
    }

    fn fall_back(
        &mut self,
        failure: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self::Output, SharedFailure> {
        let failure = failure.as_deref().and_then(|failure| failure.downcast_ref());
        self.miss.asked.fall_back(failure, self.case.fallback.as_ref()).map(Ok)
    }

    fn lead(self, leader: Leader) -> impl Future<Output = Self::Output> + Send {
        self.miss.lead(leader, self.case)
    }

    fn alone(self, reason: Reason) -> impl Future<Output = Self::Output> + Send {
        let reason = match reason {
            Reason::SelfWaiting | Reason::Overtaken => Reason::Alone,
            reason => reason,
        };
        self.miss.alone(self.case, reason)
    }

    fn fail(self, failure: SharedFailure) -> Self::Output {
        Ok(self.miss.asked.shared_failure(&failure, self.case.why))
    }
}
