//! A request that memory could not answer at first sight: looks closer, waits for another's fill, or leads
//! one.

use std::{marker::PhantomData, panic, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use larder_core::{AnyEntry, Event, Joined, Landing, Lead, Moment};
use larder_semantics::{cache_status::Forward, reuse::Demands};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tower_service::Service;
use tracing::Instrument as _;

use super::{
    asked::{Asked, GiveUp, Look},
    fill::Answer,
    plan::{Lookup, Plan},
};
use crate::{
    address::{FindUri, Head},
    body::{BoxError, CacheBody},
    conditional,
};

/// The request, and all that was found out about it.
pub(super) struct Miss<S, B, U> {
    asked: Asked,
    inner: Option<S>,
    request: Option<Request<B>>,
    uri: PhantomData<fn() -> U>,
}

impl<S, B, R, U> Miss<S, B, U>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    U: FindUri,
{
    /// `None` for a key that is too long, which was refused before.
    pub(super) fn new(
        plan: &Arc<Plan>,
        inner: S,
        request: Request<B>,
        lookup: Lookup,
        began: Moment,
    ) -> Option<Self> {
        let larder = &plan.larder;
        let arrived = larder.sequence();
        let key = lookup.key.finish().ok()?;
        let set_apart = lookup.facts.identified && !lookup.partitioned && !plan.options.shared;
        let queue = if set_apart { key.with_part(b" identified").ok()? } else { key.clone() };
        let head = Head::from(&request);
        let demands =
            if lookup.facts.demands { Demands::of(head.headers) } else { Demands::default() };
        let hidden = plan.options.shared;
        let scope = larder.scope().gathering(plan.audience(&head, lookup.facts, hidden));
        let (origin, tags) = plan.address_tags::<U>(&head);
        let mut selecting = head.headers.clone();
        if plan.options.shared {
            plan.hide_identity(&mut selecting);
        }
        let asked = Asked {
            plan: Arc::clone(plan),
            queue_hash: larder.hash(queue.as_bytes()),
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
        };
        Some(Self { asked, inner: Some(inner), request: Some(request), uri: PhantomData })
    }

    /// Answers the request.
    pub(super) async fn serve(mut self) -> Answer<R, S::Error> {
        let (mut why, mut fallback) = (Forward::Request, None);
        match self.asked.look() {
            Look::Fresh(entry)
                if self.asked.plan.meets(&self.asked.demands, &entry, self.asked.began) =>
            {
                self.asked.plan.larder.note_hit(&entry);
                self.asked.plan.count_hit(self.asked.began);
                return Ok(self.asked.answer_from(&entry));
            }
            Look::Fresh(_) => {}
            Look::Stale(entry)
                if !self.asked.demands.no_cache && self.asked.demands.max_age.is_none() =>
            {
                let answer = self.asked.stale(&entry, Event::StaleHit, None);
                self.refresh(entry);
                return Ok(answer);
            }
            Look::Stale(entry) | Look::OnError(entry) => {
                (why, fallback) = (Forward::Stale, Some(entry));
            }
            Look::Nothing(found) => why = found,
        }
        if self.asked.demands.only_if_cached {
            self.asked.record(Event::Bypass("only-if-cached"));
            return Ok(refusal(StatusCode::GATEWAY_TIMEOUT, "nothing fresh is kept\n"));
        }
        if self.asked.lookup.head_only {
            return self.alone(why, fallback, "head").await;
        }
        if let Some(reason) = self.asked.refused_lately() {
            return self.alone(why, fallback, reason).await;
        }
        if why == Forward::VaryMiss {
            self.asked.queue_by_variant();
        }
        let until = Instant::now() + self.asked.plan.options.wait_limit;
        for _ in 0..MAX_LOOKS {
            let larder = &self.asked.plan.larder;
            match larder.join(
                (self.asked.queue_hash, &self.asked.queue),
                &self.asked.scope,
                self.asked.arrived,
            ) {
                Joined::Lead(lead) => return self.lead(lead, why, fallback).await,
                Joined::Alone => break,
                // Whoever demands a new answer is not served by a fill that began before.
                Joined::Wait(_) if why == Forward::Request => break,
                Joined::Wait(wait) => {
                    match timeout_at(until, self.asked.wait(wait, why, &fallback)).await {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(GiveUp::Again)) => {}
                        Ok(Err(GiveUp::Alone(reason))) => {
                            return self.alone(why, fallback, reason).await;
                        }
                        Err(_) => return self.alone(why, fallback, "wait-limit").await,
                    }
                }
            }
            match self.asked.look() {
                Look::Fresh(entry) if self.meets(&entry) => {
                    self.asked.record(Event::Collapsed);
                    return Ok(self.asked.collapsed(&entry, why));
                }
                Look::Fresh(entry) | Look::Stale(entry) | Look::OnError(entry) => {
                    fallback = Some(entry);
                }
                Look::Nothing(found) => why = found,
            }
        }
        self.alone(why, fallback, "alone").await
    }

    /// Leads: asks the shared store, then the inner service.
    async fn lead(
        mut self,
        lead: Lead,
        why: Forward,
        fallback: Option<AnyEntry>,
    ) -> Answer<R, S::Error> {
        if why != Forward::Request {
            // Somebody may have landed between the look and the lead.
            if let Look::Fresh(entry) = self.asked.look()
                && self.meets(&entry)
            {
                self.asked.record(Event::Collapsed);
                return Ok(self.asked.collapsed(&entry, why));
            }
            if let Some(entry) = self.asked.fetch().await {
                lead.land(Landing::Landed(entry.clone()));
                self.asked.record(Event::SharedHit);
                return Ok(self.asked.answer_from(&entry));
            }
        }
        self.asked.record(Event::Miss);
        self.asked.plan.larder.note_miss(self.asked.lookup.hash);
        let (client, answer) = oneshot::channel();
        let filling = self.spawn_fill(lead, why, None, client);
        match answer.await {
            Ok(answer) => self.asked.or_stale(answer, fallback.as_ref()),
            Err(_) => match filling.await.map_err(tokio::task::JoinError::try_into_panic) {
                Err(Ok(panic)) => panic::resume_unwind(panic),
                _ => Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down\n")),
            },
        }
    }

    fn spawn_fill(
        &mut self,
        lead: Lead,
        why: Forward,
        replaces: Option<AnyEntry>,
        client: oneshot::Sender<Answer<R, S::Error>>,
    ) -> tokio::task::JoinHandle<()> {
        let (inner, request) = self.take();
        let fill = self.asked.fill(why, replaces);
        let request = self.asked.for_fill(request, &fill.choices);
        let larder = self.asked.plan.larder.clone();
        larder.spawn(fill.run(lead, inner, request, client).in_current_span())
    }

    /// Behind the request: one refresh, unless one runs or as many as allowed.
    fn refresh(&mut self, stale: AnyEntry) {
        let Some(permit) = self.asked.plan.larder.refresh_permit() else {
            self.asked.record(Event::Failed("refresh-budget"));
            return;
        };
        let larder = self.asked.plan.larder.clone();
        let joined = larder.join(
            (self.asked.queue_hash, &self.asked.queue),
            &self.asked.scope,
            self.asked.arrived,
        );
        if let Joined::Lead(lead) = joined {
            let (client, _) = oneshot::channel();
            let filling = self.spawn_fill(lead, Forward::Stale, Some(stale), client);
            drop(larder.spawn(async move {
                drop(filling.await);
                drop(permit);
            }));
        }
    }

    /// Passes the request on for itself: nothing is shared, nothing is kept.
    async fn alone(
        mut self,
        why: Forward,
        fallback: Option<AnyEntry>,
        reason: &'static str,
    ) -> Answer<R, S::Error> {
        self.asked.record(Event::Miss);
        let (mut inner, mut request) = self.take();
        let fill = self.asked.fill(why, None);
        if self.asked.plan.options.shared {
            self.asked.plan.hide_identity(request.headers_mut());
        }
        request.extensions_mut().insert(fill.choices.clone());
        let calling = async move { inner.call(request).await };
        let answer = fill.scope.clone().scoped(calling).await;
        let answer = answer.map(|response| fill.passed(response, reason));
        self.asked.or_stale(answer, fallback.as_ref())
    }

    fn meets(&self, entry: &AnyEntry) -> bool {
        self.asked.plan.meets(&self.asked.demands, entry, self.asked.plan.larder.now())
    }

    fn take(&mut self) -> (S, Request<B>) {
        let inner = self.inner.take().expect("a request is passed on once");
        let request = self.request.take().expect("a request is passed on once");
        (inner, request)
    }
}

/// An answer of larder's own.
pub(crate) fn refusal<R>(status: StatusCode, text: &'static str) -> Response<CacheBody<R>> {
    let mut response = Response::new(CacheBody::held(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// How often somebody who waits looks again before going on alone.
const MAX_LOOKS: usize = 4;
