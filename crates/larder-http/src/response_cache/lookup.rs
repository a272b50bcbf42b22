//! The lookup of a request, and the responses that larder can give without calling the inner service.

use std::sync::Arc;

use http::{HeaderName, Method, Request, Response, header};
use larder_core::{
    Key, Reason, Tag,
    kernel::{AnyEntry, EntryState, Event, FlightRole, Kernel, Leader, Moment, Scope},
};
use larder_semantics::{
    cache_status::{CacheStatus, Forward, Handling},
    ranges,
    reuse::RequestDirectives,
    storing::RequestIdentity,
    validation::{CACHE_VALIDATION, WRITE_PRECONDITIONS},
};

use parking_lot::Mutex;

use super::{
    answer::{
        cache_status::{add_status, own_status},
        conditions_and_range::{self, ConditionsAndRange},
    },
    context::{CacheContext, RequestKey, aged_for},
    fill::{Fill, InFlightResponse, partial, shared_error::SharedFailure},
    options::WriteCheck,
    overrides::ResponseOverrides,
    request_outcome::RequestOutcome,
    selection::Selection,
    stored::{
        self, aged,
        no_vary_search::SearchKey,
        record::CacheRecord,
        variants::{default_key, variant_key},
    },
};
use crate::{
    body::CacheBody, conditional::Conditions, final_head::FinalHead,
    invalidation::PendingInvalidations, own_pages::UnchangedHead,
};

/// The state of a request during its lookup.
pub(super) struct Lookup {
    pub(super) context: Arc<CacheContext>,
    pub(super) request_key: RequestKey,
    pub(super) key: Key,
    /// The single-flight key. Authenticated requests have a separate key, and so do requests with an unknown field.
    pub(super) flight_key: Key,
    pub(super) flight_hash: u64,
    pub(super) scope: Scope,
    pub(super) arrived: u64,
    pub(super) began: Moment,
    pub(super) directives: RequestDirectives,
    pub(super) selecting: http::HeaderMap,
    pub(super) origin: String,
    pub(super) tags: Vec<Tag>,
    pub(super) wants_etag: bool,
    /// The key of the address without its query, if the layer honours `No-Vary-Search`.
    pub(super) search: Option<Box<SearchKey>>,
    /// Whether the request had no scope before, so that nothing has been read for it yet.
    pub(super) is_outermost: bool,
    /// Whether the request has a range, and the fill requests only that range from the origin.
    pub(super) in_part: bool,
    /// A request field that may have selected a response that was not opted in.
    pub(super) unknown_field: Option<HeaderName>,
    /// Reports the final head of the response, if there is a [`FinalHeadLayer`](crate::FinalHeadLayer).
    pub(super) final_head: Option<FinalHead>,
    /// The checks that run after the handler and decide whether the response is stored.
    pub(super) written: Arc<[WriteCheck]>,
    pub(super) outcome: Arc<RequestOutcome>,
    /// The enclosing invalidation layer, which does not enclose the task of a fill.
    pub(super) requested: Option<PendingInvalidations>,
}

/// Returns the single-flight key of the variant that a request selects, if its address has variants.
pub(super) fn narrowed(
    kernel: &Kernel,
    request_key: &RequestKey,
    flight_key: &Key,
    selecting: &http::HeaderMap,
) -> Option<Key> {
    let list = kernel.get(request_key.hash, request_key.key.as_bytes())?;
    let Some(CacheRecord::Variants(variants)) = CacheRecord::of(&list) else { return None };
    let candidates = variants.candidates(flight_key.as_bytes(), selecting);
    candidates.first()?.finish().ok()
}

/// The result of a lookup in the first level.
pub(super) enum LookupResult {
    Fresh(AnyEntry),
    Stale(AnyEntry),
    OnError(AnyEntry),
    /// larder may serve the entry once its origin has confirmed it.
    ToRevalidate(AnyEntry),
    Nothing(Forward),
}

impl Lookup {
    /// Looks this request up in the first level.
    pub(super) fn look(&self) -> LookupResult {
        let selection = Selection {
            context: &self.context,
            request_key: &self.request_key,
            selecting: &self.selecting,
            search: self.search.as_deref(),
            notes_use: true,
        };
        let decide = |entry| match self.decide(entry) {
            LookupResult::Nothing(why) => Err(why),
            found => Ok(found),
        };
        selection.select(decide).unwrap_or_else(LookupResult::Nothing)
    }

    fn decide(&self, entry: AnyEntry) -> LookupResult {
        let kernel = &self.context.kernel;
        let Some(stored) = stored::of(&entry) else {
            return LookupResult::Nothing(Forward::UriMiss);
        };
        if !self.context.may_have(&self.request_key, stored) {
            return LookupResult::Nothing(Forward::UriMiss);
        }
        match kernel.entry_state(&entry, kernel.now()) {
            EntryState::Fresh => LookupResult::Fresh(entry),
            EntryState::WhileRevalidating => LookupResult::Stale(entry),
            EntryState::OnError => LookupResult::OnError(entry),
            EntryState::ToRevalidate => LookupResult::ToRevalidate(entry),
            EntryState::Invalid => {
                self.record(Event::Invalid);
                kernel.remove(&entry);
                LookupResult::Nothing(Forward::Stale)
            }
            EntryState::Expired => {
                self.record(Event::Expired);
                LookupResult::Nothing(Forward::Stale)
            }
        }
    }

    /// Narrows the single-flight key to the variant, once the fields by which an address varies are known, so that only
    /// requests for the same variant wait for each other.
    pub(super) fn narrow_flight_to_variant(&mut self) {
        let kernel = &self.context.kernel;
        let narrowed = narrowed(kernel, &self.request_key, &self.flight_key, &self.selecting);
        if let Some(flight_key) = narrowed {
            self.flight_hash = kernel.hash(flight_key.as_bytes());
            self.flight_key = flight_key;
        }
    }

    /// Returns the variants of this address that this client may get, the most recently used first.
    pub(super) fn other_variants(&self) -> Vec<AnyEntry> {
        let kernel = &self.context.kernel;
        let list = kernel.get(self.request_key.hash, self.request_key.key.as_bytes());
        let Some(CacheRecord::Variants(variants)) =
            list.as_ref().and_then(|list| CacheRecord::of(list))
        else {
            return Vec::new();
        };
        let found = variants.stored().into_iter().filter_map(|key| kernel.find(key.as_bytes()));
        let may_be_served = |entry: &AnyEntry| {
            let fits = stored::of(entry)
                .is_some_and(|stored| self.context.may_have(&self.request_key, stored));
            let entry_state = kernel.entry_state(entry, kernel.now());
            fits && !matches!(entry_state, EntryState::Invalid | EntryState::Expired)
        };
        found.filter(may_be_served).collect()
    }

    /// Whether the request has a valid `Range` in bytes.
    pub(super) fn asks_for_a_part(&self) -> bool {
        self.request_key.facts.narrowed && ranges::is_asked(&self.selecting)
    }

    /// Whether this request may get the response of a fill that began for an earlier request.
    pub(super) fn may_wait(&self) -> bool {
        !self.directives.no_cache && self.directives.max_age.is_none_or(|most| !most.is_zero())
    }

    /// Whether the request accepts this stale response as it is (`max-stale`), and the response allows that.
    pub(super) fn accepts_stale(&self, entry: &AnyEntry) -> bool {
        stored::of(entry).is_some_and(|stored| stored.traits.may_go_stale)
            && self.directives.accept_stale(aged_for(entry, self.context.kernel.now()))
    }

    /// Joins the fill of the single-flight key, as its leader or as a waiter.
    pub(super) fn join(&self) -> FlightRole {
        let place = (self.flight_hash, &self.flight_key);
        self.context.kernel.join(
            place,
            &self.scope,
            self.arrived,
            self.context.options.coalesce_timeout,
        )
    }

    /// Leads a fill that no other request can join.
    pub(super) fn lead_alone(&self) -> Leader {
        self.context.kernel.lead_alone(&self.flight_key, &self.scope)
    }

    /// Whether larder may store the response of a request that it forwards alone for this reason. A single response
    /// that is not storable must not keep an address out of the cache. But larder does not try again so soon if only
    /// the body shows the reason, and it leaves conditional and range requests to the origin.
    pub(super) fn may_store_alone(&self, reason: Reason) -> bool {
        !self.request_key.head_only
            && !self.request_key.facts.narrowed
            && reason != Reason::Unsynchronised
            && !reason.is_of_the_final_head()
            && !reason.shows_in_the_body()
    }

    pub(super) fn fill(&self, why: Forward, known: Option<AnyEntry>) -> Fill {
        let scope = self.scope.filling(self.flight_key.clone());
        let hidden = self.context.options.shared;
        Fill {
            context: Arc::clone(&self.context),
            key: self.key.clone(),
            flight_key: self.flight_key.clone(),
            origin: self.origin.clone(),
            tags: self.tags.clone(),
            selecting: self.selecting.clone(),
            identity: RequestIdentity {
                authorized: self.request_key.facts.authorized
                    && !self.context.hides_authorization(),
                identified: self.request_key.facts.identified && !hidden,
                partitioned: self.request_key.partitioned,
            },
            is_for_user: self.request_key.facts.identified && !self.request_key.partitioned,
            overrides: ResponseOverrides::new(
                &self.context.kernel,
                &scope,
                self.outcome.route.clone(),
            ),
            scope,
            why,
            began: self.began,
            replaces: None,
            known,
            search: self.search.clone(),
            wants_etag: self.wants_etag,
            narrowed: self.request_key.facts.narrowed,
            in_part: self.in_part,
            unknown_field: self.unknown_field.clone(),
            final_head: self.final_head.clone(),
            written: Arc::clone(&self.written),
            cause: Mutex::default(),
        }
    }

    /// Returns the request as a fill sends it, without the parts that are specific to this client and must not change a
    /// shared response.
    pub(super) fn for_fill<B>(
        &self,
        mut request: Request<B>,
        overrides: &ResponseOverrides,
    ) -> Request<B> {
        if self.context.own_pages.may_have() {
            UnchangedHead::note(&mut request);
        }
        // A stale response to HEAD is refreshed by a GET.
        if *request.method() == Method::HEAD {
            *request.method_mut() = Method::GET;
        }
        self.context.options.remove_unkeyed(&mut request);
        let headers = request.headers_mut();
        for name in WRITE_PRECONDITIONS.iter().chain(&CACHE_VALIDATION) {
            headers.remove(name);
        }
        if !self.in_part {
            headers.remove(header::IF_RANGE);
            headers.remove(header::RANGE);
        }
        if self.context.options.shared {
            self.context.hide_identity(headers);
        }
        let extensions = request.extensions_mut();
        extensions.insert(overrides.clone());
        if self.wants_etag {
            extensions.insert(Conditions::none());
        }
        // The invalidation layer that encloses this request does not enclose the task of a fill.
        if let Some(requested) = &self.requested {
            extensions.insert(requested.clone());
        }
        request
    }

    /// Returns the response to a waiter after the maximum number of fills has failed.
    pub(super) fn shared_failure<R>(
        &self,
        failure: &SharedFailure,
        why: Forward,
    ) -> Response<CacheBody<R>> {
        self.record(Event::Miss);
        self.record(Event::Failed(Reason::Anothers));
        let mut response = failure.answer(|key, names| self.has_key(key, names));
        let handling = Handling::Forward { why, stored: false, collapsed: true };
        let status = CacheStatus { detail: Some(Reason::Origin.as_str()), ..own_status(handling) };
        add_status(self.context.extras, response.headers_mut(), status, "miss");
        self.context.header_interner.add_vary(response.headers_mut());
        response
    }

    /// Whether this process has caught up with the log within the bound of the scope. Callers check this again after
    /// each wait.
    pub(super) fn is_trusted(&self) -> bool {
        self.context.kernel.is_within_bound_of(&self.scope)
    }

    /// Takes a new stamp, if nothing has been read for this request yet, so that earlier invalidations do not
    /// overtake its fill.
    pub(super) fn stamp_anew(&mut self) {
        if self.is_outermost {
            let opened = self.context.kernel.open_scope().gathering(self.scope.audience());
            self.scope = opened.bounded_as(&self.scope);
        }
    }

    /// Returns the response in flight, if this request may get it. Its body has the same bytes, as they arrive.
    pub(super) fn read_along<R: Send + 'static>(
        &self,
        along: Arc<dyn std::any::Any + Send + Sync>,
        why: Forward,
    ) -> Option<Response<CacheBody<R>>> {
        let along = along.downcast::<InFlightResponse<R>>().ok()?;
        let mine = self.has_key(&along.key, &along.names)
            && (along.opted_in || !self.request_key.has_unknown_field);
        if !mine || (self.request_key.facts.identified && !self.is_shared_with(along.open)) {
            return None;
        }
        let mut response = Response::new(CacheBody::recorded(along.recording.reader()));
        *response.status_mut() = along.head.status;
        *response.headers_mut() = along.head.headers.clone();
        response.headers_mut().remove(header::CACHE_STATUS);
        let handling = Handling::Forward { why, stored: true, collapsed: true };
        add_status(self.context.extras, response.headers_mut(), own_status(handling), "miss");
        self.context.header_interner.add_vary(response.headers_mut());
        self.outcome.route.or_of(along.route.as_ref());
        self.record(Event::Collapsed);
        Some(conditions_and_range::apply_conditions(&self.selecting, self.fit(false), response))
    }

    /// Whether the entry of a fill would be a hit for this request.
    pub(super) fn is_mine(&self, entry: &AnyEntry) -> bool {
        let Some(stored) = stored::of(entry) else { return false };
        let names = self.context.selecting_names(&stored.fields(), stored.traits.opted_in);
        self.has_key(entry.key(), &names)
            && self.context.may_have(&self.request_key, stored)
            && self.context.meets(&self.directives, entry, self.context.kernel.now())
    }

    fn has_key(&self, key: &Key, names: &[http::HeaderName]) -> bool {
        let address = self.key.as_bytes();
        variant_key(address, names, &self.selecting).as_bytes() == key.as_bytes()
            || (names.is_empty() && default_key(address).as_bytes() == key.as_bytes())
    }

    fn is_shared_with(&self, open: bool) -> bool {
        open || self.request_key.partitioned || self.context.options.shared
    }

    /// Reads the response of this address, or of the variant that the request selects, from the second level.
    pub(super) async fn fetch(&self, leader: &mut Leader) -> Option<AnyEntry> {
        let context = &self.context;
        if !context.kernel.shares(context.options.tiers) {
            return None;
        }
        context
            .kernel
            .fetch_in_turn(
                &self.scope,
                leader,
                context.options.lease,
                || self.fetch_once(),
                || self.stale_in_memory().is_some(),
            )
            .await
    }

    /// Returns a stale response that a read of the second level has promoted, if this request may get it while it is
    /// refreshed.
    pub(super) fn stale_in_memory(&self) -> Option<AnyEntry> {
        match self.look() {
            LookupResult::Stale(entry) if self.directives.allow_refreshing() => Some(entry),
            _ => None,
        }
    }

    async fn fetch_once(&self) -> Option<AnyEntry> {
        let context = &self.context;
        let mut found = context.fetch(&self.scope, &self.key).await?;
        if let Some(CacheRecord::Variants(variants)) = CacheRecord::of(&found) {
            let mut variant = None;
            for candidate in variants.candidates(self.key.as_bytes(), &self.selecting) {
                let key = candidate.finish().ok()?;
                variant = context.fetch(&self.scope, &key).await;
                if variant.is_some() {
                    break;
                }
            }
            found = variant?;
        }
        let stored = stored::of(&found)?;
        (context.may_have(&self.request_key, stored)
            && context.meets(&self.directives, &found, self.began))
        .then_some(found)
    }

    /// Answers this request from a fresh entry.
    pub(super) fn answer_from<R>(&self, entry: &AnyEntry) -> Response<CacheBody<R>> {
        let detail =
            (!self.context.kernel.is_synchronised()).then_some(Reason::Unsynchronised.as_str());
        if self.context.options.cache_status_with_key || detail.is_some() {
            return self.noted(entry, CacheStatus { detail, ..own_status(Handling::Hit) }, "hit");
        }
        self.apply_conditions(self.hit(entry))
    }

    /// Returns the full response of a fresh entry.
    pub(super) fn hit<R>(&self, entry: &AnyEntry) -> Response<CacheBody<R>> {
        let now = self.context.kernel.now();
        stored::hit(Arc::clone(entry), now, self.context.extras, self.request_key.head_only)
    }

    /// Answers a range request from a stored partial response.
    pub(super) fn answer_from_part<R>(&self) -> Option<(AnyEntry, Response<CacheBody<R>>)> {
        let kernel = &self.context.kernel;
        let key = partial::part_key(&self.key).ok()?;
        let entry = kernel.find(key.as_bytes())?;
        let stored = stored::of(&entry)?;
        let now = kernel.now();
        let usable = self.context.may_have(&self.request_key, stored)
            && kernel.entry_state(&entry, now) == EntryState::Fresh
            && self.context.meets(&self.directives, &entry, now);
        if !usable {
            return None;
        }
        let part = stored.part.as_deref()?;
        let answer = conditions_and_range::apply_conditions_to_part(
            &self.selecting,
            self.hit(&entry),
            part,
        )?;
        Some((entry, answer))
    }

    /// Applies the conditions and the range of this request to a full response.
    fn apply_conditions<R>(&self, response: Response<CacheBody<R>>) -> Response<CacheBody<R>> {
        if !self.request_key.facts.narrowed {
            return response;
        }
        conditions_and_range::apply_conditions(&self.selecting, self.fit(true), response)
    }

    fn fit(&self, is_stored: bool) -> ConditionsAndRange {
        let avoids_coded = self.context.avoids_coded();
        ConditionsAndRange { head_only: self.request_key.head_only, is_stored, avoids_coded }
    }

    pub(super) fn collapsed<R>(&self, entry: &AnyEntry, why: Forward) -> Response<CacheBody<R>> {
        let handling = Handling::Forward { why, stored: false, collapsed: true };
        self.noted(entry, own_status(handling), "miss")
    }

    pub(super) fn stale<R>(
        &self,
        entry: &AnyEntry,
        event: Event,
        detail: Option<&str>,
    ) -> Response<CacheBody<R>> {
        self.record_served(event, entry);
        self.noted(entry, CacheStatus { detail, ..own_status(Handling::Hit) }, "stale")
    }

    pub(super) fn noted<R>(
        &self,
        entry: &AnyEntry,
        status: CacheStatus<'_>,
        plain: &'static str,
    ) -> Response<CacheBody<R>> {
        let stored = stored::of(entry).expect("only entries that hold responses are served");
        let now = self.context.kernel.now();
        let (age, fresh_for) = aged(entry, now);
        let late = now.since(entry.ends().fresh_until());
        let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let ttl = if fresh_for.is_zero() {
            -seconds(late)
        } else if self.context.kernel.entry_state(entry, now) == EntryState::Fresh {
            seconds(fresh_for)
        } else {
            // A soft invalidation has ended its freshness.
            0
        };
        let mut response = stored::answer(Arc::clone(entry), age, None, self.request_key.head_only);
        if !stored.has_upstream_status() {
            response.headers_mut().remove(header::CACHE_STATUS);
        }
        let name = entry.key().name();
        let key = self.context.options.cache_status_with_key.then_some(&*name);
        let status = CacheStatus { ttl: Some(ttl), key, ..status };
        add_status(self.context.extras, response.headers_mut(), status, plain);
        self.apply_conditions(response)
    }

    pub(super) fn record(&self, event: Event) {
        self.context.meter.record(event, self.context.kernel.now());
        self.outcome.note(event);
    }

    /// Counts a request that was served this fresh entry of the first level.
    pub(super) fn record_hit(&self, entry: &AnyEntry) {
        self.context.count_hit(entry, self.began);
        self.outcome.note(Event::Hit);
        self.outcome.note_entry(entry);
    }

    /// Counts a request that was served this entry by another outcome than a plain hit.
    pub(super) fn record_served(&self, event: Event, entry: &AnyEntry) {
        let (meter, now) = (&self.context.meter, self.context.kernel.now());
        meter.record_served(event, stored::served(entry), now);
        self.outcome.note(event);
        self.outcome.note_entry(entry);
    }
}
