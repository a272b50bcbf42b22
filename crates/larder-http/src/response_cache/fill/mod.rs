//! A fill calls the inner service in a task of its own, records the response, and stores it.
//!
//! The first byte goes to the client when the handler produces it, while larder records the body. As soon as
//! the response turns out not to be storable, the fill releases its waiters and hands the rest of the body to
//! its client, which reads it as if there were no cache.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, response};
use http_body::{Body, Frame};
use larder_core::{
    Key, Reason, Tag,
    kernel::{AnyEntry, Event, FlightResult, Leader, Moment, Route, Scope, note_route_in_span},
};
use larder_semantics::{
    cache_status::{CacheStatus, Forward, Handling},
    date, fields,
    storing::{self, RequestIdentity},
    vary,
};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tower_service::Service;

use self::refusal_cause::cause_of_refusal;
use crate::{
    body::{BoxError, CacheBody, announced_length},
    etag,
    final_head::{FinalHead, HeadVerdict},
    own_response::own_response,
    recording::{BodyTooLarge, Recording},
    response_cache::{
        answer::{
            cache_status::{add_status, own_status},
            conditions_and_range::{self, ConditionsAndRange},
            downstream,
        },
        context::CacheContext,
        fill::{
            shared_error::{LARGEST_SHARED, SharedError, SharedFailure},
            storage_decision::{ResponseTimes, StorageDecision, is_error, is_gone},
            store::StoreOutcome,
        },
        options::WriteCheck,
        overrides::{OverrideValues, ResponseOverrides},
        request::request_fields::{ALL_SELECTING, SELECTING},
        stored::{
            Part,
            no_vary_search::SearchKey,
            variants::{default_key, variant_key},
        },
    },
};

pub(super) mod freshen;
pub(super) mod lifetime;
pub(super) mod partial;
mod refusal_cause;
pub(super) mod shared_error;
pub(super) mod storage_decision;
pub(super) mod store;

/// A fill: the facts of its request, and the state that it needs to store the response.
pub(in crate::response_cache) struct Fill {
    pub(in crate::response_cache) context: Arc<CacheContext>,
    pub(in crate::response_cache) key: Key,
    /// The single-flight key; hit-for-miss records are stored under it.
    pub(in crate::response_cache) flight_key: Key,
    /// Scheme and authority.
    pub(in crate::response_cache) origin: String,
    pub(in crate::response_cache) tags: Vec<Tag>,
    pub(in crate::response_cache) selecting: HeaderMap,
    pub(in crate::response_cache) identity: RequestIdentity,
    /// Whether the request has credentials that the cache does not distinguish.
    pub(in crate::response_cache) is_for_user: bool,
    pub(in crate::response_cache) scope: Scope,
    pub(in crate::response_cache) overrides: ResponseOverrides,
    pub(in crate::response_cache) why: Forward,
    pub(in crate::response_cache) began: Moment,
    /// The stored response that this request selects and this fill replaces.
    pub(in crate::response_cache) replaces: Option<AnyEntry>,
    /// The stored response that the origin may confirm, because this fill sends its validators.
    pub(in crate::response_cache) known: Option<AnyEntry>,
    /// The key of the address without its query, if the layer honours `No-Vary-Search`.
    pub(in crate::response_cache) search: Option<Box<SearchKey>>,
    pub(in crate::response_cache) wants_etag: bool,
    /// Whether the request of the client has a condition or a range.
    pub(in crate::response_cache) narrowed: bool,
    /// Whether the fill requests only a range from the origin.
    pub(in crate::response_cache) in_part: bool,
    /// A request field that may have selected the response and is not part of the key.
    pub(in crate::response_cache) unknown_field: Option<HeaderName>,
    /// Reports the final head of the response, if there is a [`FinalHeadLayer`](crate::FinalHeadLayer).
    pub(in crate::response_cache) final_head: Option<FinalHead>,
    /// The checks that run after the handler and decide whether the response is stored.
    pub(in crate::response_cache) written: Arc<[WriteCheck]>,
    /// The field of the response that makes it not storable, as far as it has a name.
    pub(in crate::response_cache) cause: Mutex<Option<String>>,
}

/// The result that a fill sends to its client.
pub(in crate::response_cache) type Answer<R, E> = Result<Response<CacheBody<R>>, E>;

/// A response in flight, which waiters read as it arrives.
#[derive(Debug)]
pub(in crate::response_cache) struct InFlightResponse<R> {
    pub(in crate::response_cache) head: response::Parts,
    pub(in crate::response_cache) recording: Arc<Recording<R>>,
    pub(in crate::response_cache) open: bool,
    pub(in crate::response_cache) opted_in: bool,
    pub(in crate::response_cache) key: Key,
    pub(in crate::response_cache) names: Vec<HeaderName>,
    pub(in crate::response_cache) route: Option<Route>,
}

/// The head of a response that is about to be stored.
pub(in crate::response_cache) struct ReceivedHead {
    pub(in crate::response_cache) head: response::Parts,
    pub(in crate::response_cache) decision: StorageDecision,
    pub(in crate::response_cache) override_values: OverrideValues,
    /// The key of the address, or of all equivalent queries under `No-Vary-Search`.
    pub(in crate::response_cache) base: Key,
    /// The base, and the values of the fields that the response varies by.
    pub(in crate::response_cache) key: Key,
    pub(in crate::response_cache) names: Vec<HeaderName>,
    pub(in crate::response_cache) received_at: Moment,
    /// The range, if the response is partial.
    pub(in crate::response_cache) part: Option<Part>,
    /// The status that the inner service sent.
    pub(in crate::response_cache) from: StatusCode,
}

/// The outcome of recording a body.
enum RecordingOutcome {
    Whole(Bytes),
    /// The body is complete, but ends with trailers, which larder does not store.
    Trailers,
    BodyTooLarge(BodyTooLarge),
    Late,
    Broken,
}

impl Fill {
    /// Runs the fill to its end, even if its client disconnects.
    pub(in crate::response_cache) async fn run<S, B, R>(
        self,
        leader: Leader,
        inner: S,
        request: Request<B>,
        client: oneshot::Sender<Answer<R, S::Error>>,
    ) where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send + 'static,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let deadline = after(self.context.options.deadline);
        let mut client = client;
        let mut inner = inner;
        let calling = async move { inner.call(request).await };
        let mut calling = Box::pin(self.scope.clone().scoped(calling));
        match timeout_at(deadline, &mut calling).await {
            Ok(Ok(response)) => self.receive(leader, response, deadline, client).await,
            Ok(Err(error)) => {
                self.record(Event::Failed(Reason::Origin));
                // The error belongs to the client of the fill, and cannot be cloned.
                fail(leader, SharedFailure::with_status(StatusCode::SERVICE_UNAVAILABLE));
                drop(client.send(Err(error)));
            }
            Err(_) => {
                self.record(Event::Failed(Reason::Deadline));
                fail(leader, SharedFailure::with_status(StatusCode::GATEWAY_TIMEOUT));
                // From here on, the fill serves only its own client.
                tokio::select! {
                    answer = calling => {
                        let answer = answer.map(|response| self.forwarded(response, Reason::Deadline));
                        drop(client.send(answer));
                    }
                    () = client.closed() => {}
                }
            }
        }
    }

    pub(in crate::response_cache) async fn receive<R, E>(
        self,
        leader: Leader,
        response: Response<R>,
        deadline: Instant,
        client: oneshot::Sender<Answer<R, E>>,
    ) where
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        if response.status() == StatusCode::NOT_MODIFIED
            && let Some(known) = self.known.clone()
        {
            let update = response.headers().clone();
            return self.receive_not_modified(leader, &known, &update, client);
        }
        let received_at = self.context.kernel.now();
        let override_values = self.overrides.override_values();
        let part = if self.in_part {
            partial::storable_part(response.headers(), self.context.options.profile)
        } else {
            None
        };
        let decision = self.decide(&response, part, &override_values, received_at);
        let announced = announced_length(&response);
        let limit = self.context.options.body_limit;
        let decision = match decision {
            Ok(_) if announced.is_some_and(|bytes| bytes > limit as u64) => {
                Err(BodyTooLarge::Limit.reason())
            }
            decision => decision,
        };
        let decision = match decision {
            Ok(decision) => decision,
            Err(why) if is_error(response.status()) => {
                return self.share_error(leader, response, &override_values, why, client);
            }
            Err(why) => {
                self.refuse(leader, &response, why);
                drop(client.send(Ok(self.forwarded(response, why))));
                return;
            }
        };
        let (head, body) = response.into_parts();
        let names = self.context.selecting_names(&head.headers, decision.opted_in);
        let base = self.base(&head.headers);
        let Ok(key) = self.variant(&base, &names) else {
            self.finish_unshared(leader, Reason::KeyTooLong);
            let response = Response::from_parts(head, body);
            drop(client.send(Ok(self.forwarded(response, Reason::KeyTooLong))));
            return;
        };
        let from = head.status;
        let received = ReceivedHead {
            head,
            decision,
            override_values,
            base,
            key,
            names,
            received_at,
            part,
            from,
        };
        self.record_body(leader, received, announced, body, deadline, client).await;
    }

    /// Stores a complete body, and answers the client of the fill. Inside of a
    /// [`FinalHeadLayer`](crate::FinalHeadLayer) the response is stored once its final head is known, if that head
    /// allows storing.
    pub(in crate::response_cache) fn store_complete<R, E>(
        self,
        leader: Leader,
        received: ReceivedHead,
        whole: Bytes,
        client: oneshot::Sender<Answer<R, E>>,
    ) {
        let Some(final_head) = self.final_head.clone() else {
            let outcome = self.store(&received, &whole);
            let answer = self.answer(&received, &outcome, CacheBody::held(whole));
            // The waiters are served first, because they arrived before any request that this client sends next.
            leader.finish(outcome.flight_result);
            drop(client.send(Ok(answer)));
            return;
        };
        let answer = self.answer(&received, &StoreOutcome::TO_BE, CacheBody::held(whole.clone()));
        final_head.once_left(answer.status(), answer.headers(), move |verdict| match verdict {
            HeadVerdict::Storable => leader.finish(self.store(&received, &whole).flight_result),
            verdict => self.withhold(leader, verdict),
        });
        drop(client.send(Ok(answer)));
    }

    /// Returns the verdict on a response that the cache sends with this head, if there is a
    /// [`FinalHeadLayer`](crate::FinalHeadLayer).
    fn verdict(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Option<BoxFuture<'static, HeadVerdict>> {
        let final_head = self.final_head.as_ref()?;
        Some(Box::pin(final_head.verdict(status, headers)))
    }

    /// Does not store the response, because an outer layer has made it specific to one client, or because its final
    /// head is not known.
    fn withhold(&self, leader: Leader, verdict: HeadVerdict) {
        match verdict {
            HeadVerdict::NotStorable(why) => {
                self.context.warn_of_refusal(&self.key, why, None);
                self.remember_refusal(why);
                self.finish_unshared(leader, why);
            }
            HeadVerdict::Storable | HeadVerdict::Unknown => {
                self.record(Event::Refused(Reason::FinalHeadUnknown));
                leader.finish(FlightResult::Withdrawn);
            }
        }
    }

    /// Whether the handler has written to per-client state that an outer layer sends with the response, such as a
    /// session.
    pub(in crate::response_cache) fn is_written(&self) -> bool {
        self.written.iter().any(|is_written| is_written())
    }

    /// Records the frames that are ready at once, and then the other frames while the client reads them.
    async fn record_body<R, E>(
        self,
        leader: Leader,
        mut received: ReceivedHead,
        announced: Option<u64>,
        body: R,
        deadline: Instant,
        client: oneshot::Sender<Answer<R, E>>,
    ) where
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let taken = self.context.kernel.fill_bytes();
        let recording = Recording::new(announced, self.scope.clone(), taken);
        let mut body = Box::pin(body);
        let unfinished = FailRecordingOnDrop(&recording);
        let mut ready = self.pull(&recording, &mut body, None).await;
        if ready.is_none() && recording.is_empty() {
            // A body that fails before its first byte is an error of its origin. No head has left yet, so the answer is
            // a 502.
            ready = self.pull_first(&recording, &mut body, deadline).await;
        }
        if matches!(ready, Some(RecordingOutcome::Broken)) && recording.is_empty() {
            self.record(Event::Failed(Reason::Body));
            fail(leader, SharedFailure::with_status(StatusCode::BAD_GATEWAY));
            let text = "the response of the origin failed before its first byte; try again later\n";
            let answer = own_response(StatusCode::BAD_GATEWAY, text);
            drop(client.send(Ok(self.forwarded_body(answer, Reason::Origin))));
            return;
        }
        self.prepare(&mut received);
        if let Some(RecordingOutcome::Whole(whole)) = ready {
            if !is_as_announced(&whole, announced) {
                // The body is shorter or longer than announced. Its client gets it unchanged, and no other request gets
                // it.
                self.record(Event::Failed(Reason::Length));
                let body = CacheBody::recorded(recording.reader());
                let answer = self.answer(&received, &StoreOutcome::NOT, body);
                drop((leader, client.send(Ok(answer))));
                return;
            }
            self.add_etag(&mut received, &whole);
            return self.store_complete(leader, received, whole, client);
        }
        let unkept = match &ready {
            Some(RecordingOutcome::Trailers) => Some(Reason::Trailers),
            Some(RecordingOutcome::BodyTooLarge(full)) => Some(full.reason()),
            _ => None,
        };
        let head = self.head(&received, unkept.is_none(), unkept);
        let mut verdict = self.verdict(head.status, &head.headers);
        let reader = CacheBody::recorded(recording.reader());
        let mut response = Response::new(reader);
        (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers.clone());
        *response.extensions_mut() = std::mem::take(&mut received.head.extensions);
        self.context.header_interner.add_vary(response.headers_mut());
        // Waiters that read the body as it arrives must not be cut off for lack of memory, so the announced length is
        // reserved.
        let room = announced.is_some_and(|bytes| recording.reserve(bytes));
        let usable = received.part.is_none() && received.decision.is_of_use_to_others();
        // The handler may write to a session until the body ends, and no waiter may have read any of the body before
        // that.
        let usable = usable && self.written.is_empty() && !self.scope.gathered().private;
        let along = room && usable && ready.is_none();
        let mut along = along.then(|| {
            let mut head = head;
            self.context.remove_own_fields(&mut head.headers);
            downstream::remove_named(&self.context.options, &mut head.headers);
            InFlightResponse {
                head,
                recording: Arc::clone(&recording),
                open: received.decision.open,
                opted_in: received.decision.opted_in,
                key: received.key.clone(),
                names: received.names.clone(),
                route: self.overrides.route().route(),
            }
        });
        if verdict.is_none()
            && let Some(along) = along.take()
        {
            leader.begin(Arc::new(along));
        }
        drop(client.send(Ok(self.apply_conditions(response))));
        let mut recorded = ready;
        while recorded.is_none() {
            let pulling = self.pull(&recording, &mut body, Some(deadline));
            let Some(waiting) = &mut verdict else {
                recorded = Some(pulling.await.unwrap_or(RecordingOutcome::Late));
                break;
            };
            tokio::select! {
                biased;
                known = waiting => {
                    verdict = None;
                    if known != HeadVerdict::Storable {
                        self.withhold(leader, known);
                        recording.hand_over(body);
                        return;
                    }
                    if let Some(along) = along.take() {
                        leader.begin(Arc::new(along));
                    }
                }
                pulled = pulling => recorded = Some(pulled.unwrap_or(RecordingOutcome::Late)),
            }
        }
        let recorded = recorded.unwrap_or(RecordingOutcome::Late);
        if let Some(waiting) = verdict
            && matches!(recorded, RecordingOutcome::Whole(_))
        {
            let verdict = waiting.await;
            if verdict != HeadVerdict::Storable {
                return self.withhold(leader, verdict);
            }
        }
        let recorded = match recorded {
            RecordingOutcome::Whole(whole) if !is_as_announced(&whole, announced) => {
                RecordingOutcome::Broken
            }
            recorded => recorded,
        };
        if matches!(recorded, RecordingOutcome::Late) && recording.has_company() {
            // The response will not be stored, but waiters that already read it get the rest.
            self.finish_unshared(leader, Reason::Deadline);
            while recording.is_read() {
                let soon = Instant::now() + LOOK_FOR_READERS;
                match self.pull(&recording, &mut body, Some(soon)).await {
                    Some(RecordingOutcome::Late) | None => {}
                    Some(_) => break,
                }
            }
            return;
        }
        self.finish(leader, received, &recording, body, recorded);
        drop(unfinished);
    }

    /// Records the frames that are ready at once or, with a deadline, all frames until then. Returns `None` if there is
    /// no deadline and the next frame is not ready.
    async fn pull<R>(
        &self,
        recording: &Recording<R>,
        body: &mut Pin<Box<R>>,
        deadline: Option<Instant>,
    ) -> Option<RecordingOutcome>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        loop {
            let frame = match deadline {
                None => self.ready_frame(body).await?,
                Some(deadline) => {
                    let next = poll_fn(|cx| {
                        let _entered = self.scope.enter();
                        body.as_mut().poll_frame(cx)
                    });
                    match timeout_at(deadline, next).await {
                        Ok(frame) => frame,
                        Err(_) => return Some(RecordingOutcome::Late),
                    }
                }
            };
            if let Some(recorded) = self.record_frame(recording, frame) {
                return Some(recorded);
            }
        }
    }

    /// Waits for the first frame, and records it and the frames that are ready after it. Returns `None` if more frames
    /// may follow.
    async fn pull_first<R>(
        &self,
        recording: &Recording<R>,
        body: &mut Pin<Box<R>>,
        deadline: Instant,
    ) -> Option<RecordingOutcome>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        let next = poll_fn(|cx| {
            let _entered = self.scope.enter();
            body.as_mut().poll_frame(cx)
        });
        let Ok(frame) = timeout_at(deadline, next).await else {
            return Some(RecordingOutcome::Late);
        };
        match self.record_frame(recording, frame) {
            Some(recorded) => Some(recorded),
            None => self.pull(recording, body, None).await,
        }
    }

    /// Records a frame. Returns `Some` if it is the last frame to record.
    fn record_frame<R>(
        &self,
        recording: &Recording<R>,
        frame: Option<Result<Frame<Bytes>, R::Error>>,
    ) -> Option<RecordingOutcome>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        match frame.map(|frame| frame.map(Frame::into_data)) {
            None => Some(RecordingOutcome::Whole(recording.complete(None))),
            Some(Err(error)) => {
                recording.fail(error.into());
                Some(RecordingOutcome::Broken)
            }
            Some(Ok(Ok(chunk))) => {
                let full = recording.push(chunk, self.context.options.body_limit).err();
                full.map(RecordingOutcome::BodyTooLarge)
            }
            Some(Ok(Err(other))) => {
                recording.complete(other.into_trailers().ok());
                Some(RecordingOutcome::Trailers)
            }
        }
    }

    async fn ready_frame<R: Body>(
        &self,
        body: &mut Pin<Box<R>>,
    ) -> Option<Option<Result<Frame<R::Data>, R::Error>>> {
        poll_fn(|cx| {
            let _entered = self.scope.enter();
            Poll::Ready(match body.as_mut().poll_frame(cx) {
                Poll::Ready(frame) => Some(frame),
                Poll::Pending => None,
            })
        })
        .await
    }

    fn finish<R>(
        self,
        leader: Leader,
        received: ReceivedHead,
        recording: &Recording<R>,
        body: Pin<Box<R>>,
        recorded: RecordingOutcome,
    ) {
        match recorded {
            RecordingOutcome::Whole(whole) => {
                let mut received = received;
                self.add_etag(&mut received, &whole);
                leader.finish(self.store(&received, &whole).flight_result);
            }
            RecordingOutcome::Trailers => {
                self.remember_refusal(Reason::Trailers);
                self.finish_unshared(leader, Reason::Trailers);
            }
            RecordingOutcome::BodyTooLarge(full) => {
                self.remember_refusal(full.reason());
                self.finish_unshared(leader, full.reason());
                recording.hand_over(body);
            }
            RecordingOutcome::Late => {
                self.remember_refusal(Reason::Deadline);
                self.finish_unshared(leader, Reason::Deadline);
                recording.hand_over(body);
            }
            RecordingOutcome::Broken => {
                self.record(Event::Failed(Reason::Body));
                drop(leader);
            }
        }
    }

    /// Whether the head of a response allows storing it.
    pub(in crate::response_cache) fn would_store<R>(&self, response: &Response<R>) -> bool {
        let now = self.context.kernel.now();
        self.decide(response, None, &self.overrides.override_values(), now).is_ok()
    }

    pub(in crate::response_cache) fn decide<R>(
        &self,
        response: &Response<R>,
        part: Option<Part>,
        override_values: &OverrideValues,
        received_at: Moment,
    ) -> Result<StorageDecision, Reason> {
        let headers = response.headers();
        match (response.status(), part) {
            (StatusCode::PARTIAL_CONTENT, Some(_)) if vary::names(headers).is_empty() => {
                let decision =
                    self.decide_by_fields(StatusCode::OK, headers, override_values, received_at)?;
                // Partial responses are stored without variants, but a response that was not opted in needs variants.
                (decision.opted_in || !self.context.guards_fields())
                    .then_some(decision)
                    .ok_or(Reason::Part)
            }
            (StatusCode::PARTIAL_CONTENT, _) => Err(Reason::Part),
            // An error about the requested range says nothing about the full response.
            (status, _) if self.in_part && status != StatusCode::OK => Err(Reason::Part),
            (status, _) => self.decide_by_fields(status, headers, override_values, received_at),
        }
    }

    pub(in crate::response_cache) fn decide_by_fields(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        override_values: &OverrideValues,
        received_at: Moment,
    ) -> Result<StorageDecision, Reason> {
        let clock = self.context.kernel.clock();
        let times =
            ResponseTimes { lookup: clock.wall(self.began), received_at: clock.wall(received_at) };
        if self.is_written() {
            self.context.warn_of_refusal(&self.key, Reason::SessionWritten, None);
            return Err(Reason::SessionWritten);
        }
        let options = &self.context.options;
        let decision = storage_decision::decide(
            options,
            override_values,
            self.identity,
            status,
            headers,
            times,
        )?;
        match &self.unknown_field {
            Some(field) if !decision.opted_in && self.context.guards_fields() => {
                tracing::debug!(target: "larder", key = %self.key, %field, "{}", Reason::UnknownField);
                self.context.warn_of_refusal(&self.key, Reason::UnknownField, Some(field));
                Err(Reason::UnknownField)
            }
            _ => Ok(decision),
        }
    }

    /// Returns the key under which the responses of this address are stored: the key of the address, or of all
    /// equivalent queries under `No-Vary-Search`.
    pub(in crate::response_cache) fn base(&self, headers: &HeaderMap) -> Key {
        let rule = self.search.as_ref().and_then(|search| search.variance(headers));
        rule.map_or_else(|| self.key.clone(), |(_, key)| key)
    }

    pub(in crate::response_cache) fn variant(
        &self,
        base: &Key,
        names: &[HeaderName],
    ) -> Result<Key, larder_core::kernel::KeyTooLongError> {
        if names.is_empty() && self.context.has_variants(base) {
            return default_key(base.as_bytes()).finish();
        }
        variant_key(base.as_bytes(), names, &self.selecting).finish()
    }

    /// Whether, downstream, only the cache of the client itself may store the response.
    pub(in crate::response_cache) fn is_private(&self) -> bool {
        self.identity.partitioned
            || self.scope.gathered().private
            || self.context.options.has_hidden_input()
    }

    /// Prepares the head to be sent and stored.
    pub(in crate::response_cache) fn prepare(&self, received: &mut ReceivedHead) {
        let headers = &mut received.head.headers;
        fields::remove_hop_by_hop(headers);
        if !headers.contains_key(header::DATE) {
            let date = date::format(self.context.kernel.clock().wall(received.received_at));
            headers.insert(header::DATE, value(&date));
        }
        let private = self.is_private();
        let has_set = downstream::set_downstream_fields(
            &self.context.options,
            &received.override_values,
            private,
            received.decision.by_larder,
            headers,
        );
        if has_set && received.names == [ALL_SELECTING] {
            // Downstream caches may store the response, and must separate the same requests as this cache.
            let names: Vec<&str> = SELECTING.iter().map(HeaderName::as_str).collect();
            headers.insert(header::VARY, value(&names.join(", ")));
        }
    }

    /// Adds an `ETag` to a 200 that has none, so that browsers can revalidate it. Does so if there is a conditional
    /// layer around the cache, or if the lifetime comes from larder alone.
    fn add_etag(&self, received: &mut ReceivedHead, whole: &Bytes) {
        let wanted = self.wants_etag || received.decision.by_larder;
        if wanted && received.head.status == StatusCode::OK {
            etag::add(&mut received.head.headers, whole, self.context.kernel.version());
        }
    }

    /// Handles an error of the origin. The waiters try again or get a stale response. After several failed fills, they
    /// get the error, too, if they may share it.
    fn share_error<R, E>(
        &self,
        leader: Leader,
        response: Response<R>,
        override_values: &OverrideValues,
        why: Reason,
        client: oneshot::Sender<Answer<R, E>>,
    ) where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        self.record(Event::Failed(Reason::OriginStatus));
        let status = response.status();
        let is_short = announced_length(&response).is_some_and(|bytes| bytes <= LARGEST_SHARED);
        let (head, body) = response.into_parts();
        let body = match is_short {
            true => CacheBody::read_ahead(body, Some(self.scope.clone())),
            false => CacheBody::scoped(body, self.scope.clone()),
        };
        let names = self.context.selecting_names(&head.headers, false);
        let failure = match (body.as_held(), self.variant(&self.key, &names)) {
            (Some(body), Ok(key))
                if self.may_share_error(status, &head.headers, override_values) =>
            {
                let mut headers = head.headers.clone();
                downstream::remove_unkept(&self.context.options, &mut headers);
                self.context.remove_own_fields(&mut headers);
                let body = body.clone();
                SharedFailure::shared(status, SharedError { headers, body, key, names })
            }
            _ => SharedFailure::with_status(status),
        };
        fail(leader, failure);
        drop(client.send(Ok(self.forwarded_body(Response::from_parts(head, body), why))));
    }

    /// Whether larder may send an error to all waiters of the fill. The rules for storing a response apply, except that
    /// the error needs no lifetime.
    fn may_share_error(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        override_values: &OverrideValues,
    ) -> bool {
        let options = &self.context.options;
        let control = storage_decision::control(options, override_values, headers);
        override_values.no_store.is_none()
            && self.unknown_field.is_none()
            && !self.scope.gathered().private
            && !headers.contains_key(header::SET_COOKIE)
            && storing::check(self.identity, status, headers, &control, options.rules()).is_ok()
    }

    /// Handles a response that is not storable. The waiters forward their own requests. The entry that this fill was to
    /// replace is removed, unless the credentials of this request are the reason.
    fn refuse<R>(&self, leader: Leader, response: &Response<R>, why: Reason) {
        *self.cause.lock() = match (why, &self.unknown_field) {
            (Reason::UnknownField, Some(field)) => Some(field.to_string()),
            _ => cause_of_refusal(why, response.status(), response.headers()),
        };
        if response.status().is_client_error() && !is_gone(response.status()) {
            // A client error concerns this request, and not the page that other requests are for.
            return self.finish_unshared(leader, why);
        }
        if self.in_part {
            // The response to a range request says nothing about the full response.
            return self.finish_unshared(leader, why);
        }
        if let Some(replaced) = self.replaces.as_ref().filter(|_| !why.is_of_the_user()) {
            self.context.kernel.remove(replaced);
        }
        self.remember_refusal(why);
        self.finish_unshared(leader, why);
    }

    pub(in crate::response_cache) fn finish_unshared(&self, leader: Leader, why: Reason) {
        self.record(Event::Refused(why));
        leader.finish(FlightResult::NotShared(why));
    }

    /// Returns a response that is forwarded to its client without being stored.
    pub(in crate::response_cache) fn forwarded<R>(
        &self,
        response: Response<R>,
        why: Reason,
    ) -> Response<CacheBody<R>> {
        let scope = self.scope.clone();
        self.forwarded_body(response.map(|body| CacheBody::scoped(body, scope)), why)
    }

    pub(in crate::response_cache) fn forwarded_body<R>(
        &self,
        mut response: Response<CacheBody<R>>,
        why: Reason,
    ) -> Response<CacheBody<R>> {
        if self.is_private() {
            let override_values = self.overrides.override_values();
            let headers = response.headers_mut();
            downstream::set_downstream_fields(
                &self.context.options,
                &override_values,
                true,
                false,
                headers,
            );
        }
        let forward = if why == Reason::UnknownField { Forward::Bypass } else { self.why };
        let handling = Handling::Forward { why: forward, stored: false, collapsed: false };
        let status = CacheStatus { detail: Some(why.as_str()), ..own_status(handling) };
        add_status(self.context.extras, response.headers_mut(), status, "miss");
        self.context.header_interner.add_vary(response.headers_mut());
        self.apply_conditions(response)
    }

    /// Applies the conditions and the range of the client of this fill to a full response.
    fn apply_conditions<R>(&self, response: Response<CacheBody<R>>) -> Response<CacheBody<R>> {
        if !self.narrowed {
            return response;
        }
        let avoids_coded = self.context.avoids_coded();
        let fit = ConditionsAndRange { head_only: false, is_stored: false, avoids_coded };
        conditions_and_range::apply_conditions(&self.selecting, fit, response)
    }

    pub(in crate::response_cache) fn answer<R>(
        &self,
        received: &ReceivedHead,
        outcome: &StoreOutcome,
        body: CacheBody<R>,
    ) -> Response<CacheBody<R>> {
        // A response that an invalidation has overtaken is not served to later requests, but the fill did build an
        // entry from it, so it is reported as stored.
        let stored = outcome.stored
            || (outcome.why.is_none() && matches!(outcome.flight_result, FlightResult::Filled(_)));
        let head = self.head(received, stored, outcome.why);
        let mut response = Response::new(body);
        (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers);
        *response.extensions_mut() = received.head.extensions.clone();
        self.context.header_interner.add_vary(response.headers_mut());
        self.apply_conditions(response)
    }

    fn head(&self, received: &ReceivedHead, stored: bool, why: Option<Reason>) -> response::Parts {
        let (mut head, ()) = Response::new(()).into_parts();
        (head.status, head.headers) = (received.head.status, received.head.headers.clone());
        let handling = Handling::Forward { why: self.why, stored, collapsed: false };
        let fwd_status = (received.from != head.status).then(|| received.from.as_u16());
        let status =
            CacheStatus { fwd_status, detail: why.map(Reason::as_str), ..own_status(handling) };
        add_status(self.context.extras, &mut head.headers, status, "miss");
        head
    }

    pub(in crate::response_cache) fn record(&self, event: Event) {
        self.context.meter.record(event, self.context.kernel.now());
        event.note_in_span();
        if let Some(route) = self.overrides.route().route() {
            note_route_in_span(route.template());
        }
        if let Event::Refused(why) = event {
            let (meter, route) = (&self.context.meter, self.overrides.route().id());
            meter.record_route(route, event);
            meter.note_refusal(route, why, self.cause.lock().clone(), self.context.kernel.now());
        }
    }
}

/// Returns the instant after this time. If the clock cannot represent it, returns the instant in 366 days.
pub(in crate::response_cache) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + Duration::from_secs(366 * 86_400))
}

/// Ends a fill that failed.
fn fail(leader: Leader, failure: SharedFailure) {
    leader.finish(FlightResult::Failed(Arc::new(failure)));
}

/// Whether a body has the announced length. Returns `true` if no length was announced.
fn is_as_announced(whole: &Bytes, announced: Option<u64>) -> bool {
    announced.is_none_or(|bytes| bytes == whole.len() as u64)
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("dates and names are visible ASCII")
}

/// Fails a recording for its readers if the fill panics or is dropped.
struct FailRecordingOnDrop<'a, R>(&'a Recording<R>);

impl<R> Drop for FailRecordingOnDrop<'_, R> {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

/// The interval at which a fill that continues only for its readers checks whether it still has readers.
const LOOK_FOR_READERS: Duration = Duration::from_secs(1);
