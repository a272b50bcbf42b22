//! The steps of a call for a value: look up, lead or fetch, load, store, and add the value to the enclosing scope.

use std::{borrow::Cow, future::Future, panic, sync::Arc, time::Duration};

use tokio::task::JoinError;

use super::{
    adaptive::ChangeNote,
    error::{Failure, LoadError},
    fill::{FinishOnDrop, LoadHandle, LoadOptions},
    request::ValueRequest,
    value::{Answer, CacheValue, FailureNote, Object, RefusalNote, ValueSpec},
};
use crate::{
    audience::Audience,
    clock::Moment,
    consistency::Consistency,
    engine::{EntryState, SAME_FILL},
    entry::{AnyEntry, Value},
    flight::{FlightResult, FlightRole, Leader},
    kernel::{EntryDraft, FillRequest as _, Kernel, fill_or_wait},
    key::{IntoName, Key, KeyBuf, Kind, MAX_KEY_BYTES},
    lifetime::Lifetime,
    metrics::{Event, Meter, ServedEntry},
    policy::Policy,
    provenance::{LifetimeSource, SourcedTags, TagSource},
    reason::Reason,
    registry::Stamp,
    scope::{PartTraits, Scope, ScopeContents, ScopeOwner},
    second_level::StoreLookup,
    store::BoxFuture,
    tag::Tag,
    tiers::Tiers,
};

/// One call for the value of a name.
///
/// It borrows its kernel and its policy, and clones them only for a task that may outlive the caller, because a clone of
/// the kernel changes reference counts for which all threads contend.
pub(super) struct Call<'a, T: 'static> {
    pub(super) kernel: Cow<'a, Kernel>,
    pub(super) key: Key,
    pub(super) hash: u64,
    pub(super) policy: Cow<'a, Policy>,
    pub(super) kind: Kind,
    /// The name, if the key does not contain it because it would be too long.
    long_name: Option<String>,
    pub(super) scope: Scope,
    pub(super) opened: ScopeOwner,
    pub(super) began: Moment,
    pub(super) spec: ValueSpec<T>,
}

/// The context in which a call begins: its scope, the opener of the scope, and the time.
#[derive(Clone)]
pub(super) struct CallContext {
    pub(super) scope: Scope,
    pub(super) opened: ScopeOwner,
    pub(super) began: Moment,
}

/// The name of a value, at the beginning of its key.
pub(super) struct NamedKey {
    kind: Kind,
    key: KeyBuf,
    /// The name, if it is so long that the key may not contain it.
    long_name: Option<String>,
}

impl NamedKey {
    pub(super) fn new(kernel: &Kernel, kind: Kind, name: impl IntoName) -> Self {
        let mut key = kernel.key(kind, "");
        let long_name = name.with_name(|name| {
            key.push(name.as_bytes());
            (name.len() > MAX_KEY_BYTES).then(|| name.to_owned())
        });
        Self { kind, key, long_name }
    }
}

impl CallContext {
    /// Catches up with the log as the policy demands, and then opens the scope, so that its stamp covers the
    /// invalidations that the call has waited for.
    pub(super) async fn new(kernel: &Kernel, consistency: Consistency) -> Self {
        let began = kernel.tick();
        let caught_up = kernel.catch_up(consistency).await;
        let (mut scope, opened) = kernel.scope_of_value();
        if let Consistency::Bounded(bound) = consistency {
            scope = scope.bounded(bound);
        }
        if !caught_up {
            scope = scope.distrusting();
        }
        Self { scope, opened, began }
    }
}

impl<'a, T: CacheValue> Call<'a, T> {
    /// Returns the call for the value of this name, and the reason if it has to bypass the cache.
    pub(super) fn new(
        kernel: &'a Kernel,
        named: NamedKey,
        policy: Cow<'a, Policy>,
        spec: ValueSpec<T>,
        CallContext { scope, opened, began }: CallContext,
    ) -> (Self, Option<Reason>) {
        let NamedKey { kind, key: mut buffer, mut long_name } = named;
        let audience = if policy.shared { Audience::Everyone } else { scope.audience() };
        let name_alone = buffer.as_bytes().len();
        buffer.push_audience(&audience);
        let finished = buffer.finish();
        let is_too_long = finished.is_err();
        // This short key only identifies the running fill; nothing is stored under it.
        let key = finished.unwrap_or_else(|_| {
            let name = long_name
                .get_or_insert_with(|| KeyBuf::continued(&buffer.as_bytes()[..name_alone]).name());
            let mut short = KeyBuf::new(kind, "", "", "");
            short.push(&kernel.hash(name.as_bytes()).to_le_bytes());
            short.finish().expect("eight bytes are not too long")
        });
        let hash = kernel.hash(key.as_bytes());
        let kernel = Cow::Borrowed(kernel);
        let mut call =
            Self { kernel, key, hash, policy, kind, long_name, scope, opened, began, spec };
        let bypass = if is_too_long {
            Some(Reason::KeyTooLong)
        } else if audience == Audience::Unknown {
            Some(Reason::Identified)
        } else if call.scope.distrusts() || !call.is_trusted() {
            call.scope = call.scope.clone().distrusting();
            Some(Reason::Unsynchronised)
        } else {
            None
        };
        (call, bypass)
    }
}

impl<T: CacheValue> Call<'_, T> {
    pub(super) async fn answer<A, E, F, Fut>(&mut self, load: F) -> Result<A, LoadError<E>>
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        let mut request = ValueRequest::new(self, load);
        if let Some(found) = request.look(true) {
            return found;
        }
        let call = &mut *request.call;
        call.scope = call.waiting_scope();
        // The loop is boxed, because at the call site the compiler cannot prove that it is `Send` if an error type
        // contains a lifetime, such as `&'static str`.
        let answer: BoxFuture<'_, _> = if call.was_refused_lately() {
            // Hit-for-miss: no call waits for this fill. If its value is storable this time, it is stored.
            let leader = call.kernel.lead_alone(&call.key, &call.scope);
            Box::pin(request.lead(leader))
        } else {
            Box::pin(fill_or_wait(request))
        };
        answer.await
    }

    /// Returns the scope with a limit on waits for the second level. A hit does without one, so a scope that this call
    /// has opened gets it only now.
    pub(super) fn waiting_scope(&self) -> Scope {
        match self.opened {
            ScopeOwner::ThisCall => self.kernel.counting_waits(self.scope.clone()),
            ScopeOwner::Enclosing => self.scope.clone(),
        }
    }

    /// Joins the fill of the key as a caller that arrives now.
    pub(super) fn join(&self) -> FlightRole {
        let arrived = self.scope.stamp().local;
        let place = (self.hash, &self.key);
        self.kernel.join(place, &self.scope, arrived, self.policy.coalesce_timeout)
    }

    /// Clones this call for a task that may outlive its caller.
    pub(super) fn detached(&self) -> Call<'static, T> {
        Call {
            kernel: Cow::Owned(Kernel::clone(&self.kernel)),
            key: self.key.clone(),
            hash: self.hash,
            policy: Cow::Owned(Policy::clone(&self.policy)),
            kind: self.kind,
            long_name: self.long_name.clone(),
            scope: self.scope.clone(),
            opened: self.opened,
            began: self.began,
            spec: self.spec,
        }
    }

    fn metered<R>(&self, act: impl FnOnce(&Meter) -> R) -> R {
        self.kernel.with_meter(self.policy.cache_name(self.kind), act)
    }

    pub(super) fn record(&self, event: Event, now: Moment) {
        self.metered(|meter| meter.record(event, now));
    }

    /// Counts an event of a fill, and notes it in the span of the fill.
    fn record_of_fill(&self, event: Event, now: Moment) {
        self.record(event, now);
        event.note_in_span();
    }

    /// Counts a call that was served an entry by another outcome than a plain hit.
    pub(super) fn record_served(&self, event: Event, entry: &AnyEntry, now: Moment) {
        self.metered(|meter| meter.record_served(event, ServedEntry::of(entry), now));
    }

    /// Looks the key up in the first level. If the caller uses the entry, it has to record the event and add the entry
    /// to the scope.
    pub(super) fn look<A: Answer<Value = T>, E>(&self) -> Result<LookupResult<A>, LoadError<E>> {
        let Some(entry) = self.kernel.get(self.hash, self.key.as_bytes()) else {
            return Ok(LookupResult::Nothing);
        };
        if !self.is_young(&entry) || !self.is_trusted() {
            return Ok(LookupResult::Nothing);
        }
        Ok(match self.kernel.entry_state(&entry, self.kernel.now()) {
            EntryState::Fresh => match self.value(&entry)? {
                Some(value) => LookupResult::Fresh(entry, value),
                None => LookupResult::Nothing,
            },
            EntryState::WhileRevalidating => match self.value(&entry)? {
                Some(value) => LookupResult::Stale(entry, value),
                None => LookupResult::Nothing,
            },
            EntryState::OnError => LookupResult::OnError(entry),
            EntryState::Invalid => {
                self.kernel.remove(&entry);
                LookupResult::Gone(Event::Invalid)
            }
            // Loaders cannot revalidate a value.
            EntryState::ToRevalidate | EntryState::Expired => LookupResult::Gone(Event::Expired),
        })
    }

    pub(super) fn hit<A>(&self, entry: &AnyEntry, value: A) -> A {
        self.add_to_whole(entry, false);
        self.kernel.slide(entry);
        self.kernel.note_hit(entry);
        self.metered(|meter| {
            if meter.record_hit(None, self.began) {
                meter.sample(ServedEntry::of(entry), self.kernel.now().since(self.began));
            }
        });
        value
    }

    /// Lets the freshness of a fresh entry end `time` from now, but no later than the longest lifetime after its fill.
    /// `None` if there is no fresh entry of a value.
    pub(super) fn extend(&self, time: Duration) -> Option<Moment> {
        let looked = self.look::<Option<Arc<T>>, ()>();
        let Ok(LookupResult::Fresh(entry, Some(_))) = looked else { return None };
        let now = self.kernel.now();
        let object = entry.value::<Object<T>>()?.clone();
        let ends = entry.ends().extended(now.after(time), self.kernel.max_lifetime());
        let is_shorter = ends.fresh_until() < entry.ends().fresh_until();
        let extended = self.kernel.with_ends(&entry, ends, object);
        extended.slide(now);
        self.add_to_whole(&extended, false);
        // The entry has the stamp of the other one, so an invalidation of that one reaches it too.
        if !self.kernel.engine().store_in_memory(&extended, now) {
            return None;
        }
        self.kernel.extend(&extended, now, is_shorter);
        Some(extended.fresh_until())
    }

    /// Whether an entry is no older than the policy's `max_age`.
    pub(super) fn is_young(&self, entry: &AnyEntry) -> bool {
        let age = || self.kernel.now().since(entry.ends().filled());
        self.policy.max_age.is_none_or(|longest| age() <= longest)
    }

    /// Whether an entry may still be returned after a wait.
    pub(super) fn is_usable(&self, entry: &AnyEntry) -> bool {
        let state = self.kernel.entry_state(entry, self.kernel.now());
        state == EntryState::Fresh && self.is_young(entry) && self.is_trusted()
    }

    /// Whether a stale entry may still be returned after a wait, while it is refreshed.
    pub(super) fn is_usable_stale(&self, entry: &AnyEntry) -> bool {
        let state = self.kernel.entry_state(entry, self.kernel.now());
        let is_servable = matches!(state, EntryState::Fresh | EntryState::WhileRevalidating);
        is_servable && self.is_young(entry) && self.is_trusted()
    }

    /// Returns the failure of a loader, and records it.
    pub(super) fn failed<E>(&self, error: E) -> Failure<E> {
        let failure = Failure::Loader(Arc::new(error));
        self.record(Event::Failed(failure.reason()), self.kernel.now());
        failure
    }

    /// Whether the lag of this process is within the bound of the scope. The call checks this again after each wait.
    pub(super) fn is_trusted(&self) -> bool {
        self.kernel.is_within_bound_of(&self.scope)
    }

    /// Reads the second level, then runs the loader in a task of its own, so that waiters do not depend on the caller
    /// being polled and dropping the caller does not stop the fill.
    pub(super) async fn lead<A, E, F, Fut>(
        &self,
        mut leader: Leader,
        mut stale: Option<AnyEntry>,
        load: F,
    ) -> Result<A, LoadError<E>>
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        // Another fill may have ended between the lookup of this call and its lead.
        match self.look::<A, E>()? {
            LookupResult::Fresh(entry, value) => {
                let value = self.hit(&entry, value);
                leader.finish(FlightResult::Filled(entry));
                return Ok(value);
            }
            LookupResult::Stale(entry, _) | LookupResult::OnError(entry) => stale = Some(entry),
            LookupResult::Gone(_) | LookupResult::Nothing => {}
        }
        if self.policy.fill_lock.is_none() && self.is_shared() {
            // The read runs in the caller's task, because it is short. If the caller is not polled for 200 ms, a waiter
            // leads another fill.
            leader.look();
            match self.fetch::<A>(&mut leader).await {
                FetchResult::Fresh(entry, value) => {
                    return Ok(self.taken(self.fetched(leader, entry, value)));
                }
                FetchResult::Stale(entry, value) => {
                    return Ok(self.serve_stale::<A, E, F, Fut>(leader, &entry, value, load));
                }
                FetchResult::OnError(entry) => stale = Some(entry),
                FetchResult::Nothing => {}
            }
            leader.looked();
        }
        self.run(self.detached(), leader, stale, load).await
    }

    /// Runs the loader although a value may be stored. No other call waits for this fill, since that call may be content
    /// with a value that was read earlier.
    pub(super) async fn reload<A, E, F, Fut>(&self, load: F) -> Result<A, LoadError<E>>
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        let mut call = self.detached();
        // The loader knows only the name, so it cannot have read anything under the stamp of an enclosing request.
        let scope = self.kernel.open_scope().gathering(self.scope.audience());
        call.scope = scope.bounded_as(&self.scope);
        let leader = call.kernel.lead_alone(&call.key, &call.scope);
        self.run(call, leader, None, load).await
    }

    /// Runs the loader in a task of its own, as `call`, and returns its value to the scope of this call.
    async fn run<A, E, F, Fut>(
        &self,
        call: Call<'static, T>,
        leader: Leader,
        stale: Option<AnyEntry>,
        load: F,
    ) -> Result<A, LoadError<E>>
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        let filling = async move { call.fetch_or_fill::<A, E, F, Fut>(leader, load).await };
        let cache = self.policy.cache_name(self.kind);
        match self.kernel.spawn_fill(cache, false, filling).await {
            Ok(outcome) => self.outcome(stale.as_ref(), outcome),
            Err(failed) => Err(self.resume(failed)),
        }
    }

    /// Resumes the panic of a task. Returns the error of a task that ended with its runtime.
    pub(super) fn resume<E>(&self, failed: JoinError) -> LoadError<E> {
        let Ok(panic) = failed.try_into_panic() else { return LoadError::Cancelled };
        self.record(Event::Failed(Reason::Panic), self.kernel.now());
        panic::resume_unwind(panic)
    }

    async fn fetch_or_fill<A, E, F, Fut>(&self, mut leader: Leader, load: F) -> FillResult<A, E>
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        if self.policy.fill_lock.is_some() {
            match self.fetch::<A>(&mut leader).await {
                FetchResult::Fresh(entry, value) => return Ok(self.fetched(leader, entry, value)),
                FetchResult::Stale(entry, value) => {
                    let value = self.serve_stale::<A, E, F, Fut>(leader, &entry, value, load);
                    return Ok(FillOutcome::Served(value));
                }
                FetchResult::OnError(_) | FetchResult::Nothing => {}
            }
        }
        self.note_miss();
        self.fill::<A, E, F, Fut>(leader, load).await
    }

    pub(super) fn note_miss(&self) {
        self.record(Event::Miss, self.began);
        if self.policy.tiers.in_memory().is_some() {
            self.kernel.note_miss(self.hash);
        }
    }

    /// Returns the value of a fill, and adds it to the enclosing scope as a part.
    pub(super) fn taken<A>(&self, outcome: FillOutcome<A>) -> A {
        match outcome {
            FillOutcome::Stored(value, entry) => {
                self.add_to_whole(&entry, false);
                value
            }
            FillOutcome::Unstored(value, unstored) => {
                self.add_unstored(unstored);
                value
            }
            FillOutcome::Served(value) => value,
        }
    }

    /// Serves a stale entry that the second level had, and refreshes it. The waiters of this fill find it in the first
    /// level.
    fn serve_stale<A, E, F, Fut>(&self, leader: Leader, entry: &AnyEntry, value: A, load: F) -> A
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        leader.finish(FlightResult::Withdrawn);
        self.add_to_whole(entry, true);
        self.record_served(Event::StaleHit, entry, self.began);
        // The refresh has the stamp of this call, which is older than the lookup.
        self.refresh::<A, E, F, Fut>(entry, load);
        value
    }

    /// Ends the fill with the entry from the second level.
    pub(super) fn fetched<A>(&self, leader: Leader, entry: AnyEntry, value: A) -> FillOutcome<A> {
        self.record_served(Event::SharedHit, &entry, self.began);
        self.kernel.slide(&entry);
        leader.finish(FlightResult::Filled(entry.clone()));
        FillOutcome::Stored(value, entry)
    }

    /// Whether the second level may have the value.
    pub(super) fn is_shared(&self) -> bool {
        self.spec.format.schema.is_some() && self.kernel.shares(self.policy.tiers)
    }

    /// Reads the entry from the second level. If the policy has a fill lock and another process holds it, this waits
    /// for the entry that the other process stores.
    async fn fetch<A: Answer<Value = T>>(&self, leader: &mut Leader) -> FetchResult<A> {
        if !self.is_shared() || leader.is_alone() {
            return FetchResult::Nothing;
        }
        let fetch =
            || async { self.fetch_once().await.filter(|entry| A::of_entry(entry).is_some()) };
        let serves_stale = || matches!(self.look_for_stale::<A>(), FetchResult::Stale(..));
        let (scope, lock) = (&self.scope, self.policy.fill_lock);
        let found = self.kernel.fetch_in_turn(scope, leader, lock, fetch, serves_stale).await;
        match found.and_then(|entry| A::of_entry(&entry).map(|value| (entry, value))) {
            Some((entry, value)) => FetchResult::Fresh(entry, value),
            None => self.look_for_stale(),
        }
    }

    /// Looks a stale entry up that a read of the second level has promoted.
    pub(super) fn look_for_stale<A: Answer<Value = T>>(&self) -> FetchResult<A> {
        match self.look::<A, ()>() {
            Ok(LookupResult::Stale(entry, value)) => FetchResult::Stale(entry, value),
            Ok(LookupResult::OnError(entry)) => FetchResult::OnError(entry),
            _ => FetchResult::Nothing,
        }
    }

    /// Reads the entry from the second level, if another process has refreshed it there since `old` was filled.
    async fn fetch_newer<A: Answer<Value = T>>(
        &self,
        leader: &mut Leader,
        old: &AnyEntry,
    ) -> Option<AnyEntry> {
        if !self.is_shared() {
            return None;
        }
        let fetch = || async {
            let found = self.fetch_once().await;
            found.filter(|entry| self.is_newer(entry, old) && A::of_entry(entry).is_some())
        };
        let (scope, lock) = (&self.scope, self.policy.fill_lock);
        self.kernel.fetch_in_turn(scope, leader, lock, fetch, || false).await
    }

    /// Whether an entry of the second level is the result of a later fill than an entry of the first level, and not due
    /// for a refresh itself.
    pub(super) fn is_newer(&self, entry: &AnyEntry, old: &AnyEntry) -> bool {
        entry.ends().filled() > old.ends().filled().after(SAME_FILL) && !self.is_due(entry)
    }

    /// Reads the entries of several calls from the second level in one round trip. They have one policy and one scope.
    pub(super) async fn fetch_many(calls: &[&Self]) -> Vec<Option<AnyEntry>> {
        let Some(first) = calls.first() else { return Vec::new() };
        let wanted: Option<Vec<_>> = calls.iter().map(|call| call.wanted()).collect();
        let Some(wanted) = wanted else { return vec![None; calls.len()] };
        let decode = |bytes| first.spec.decode(&bytes);
        let entries = first.kernel.fetch_many(&first.waiting_scope(), &wanted, decode).await;
        let usable = |(call, entry): (&&Self, Option<AnyEntry>)| {
            entry.filter(|entry| call.is_young(entry) && call.is_trusted())
        };
        calls.iter().zip(entries).map(usable).collect()
    }

    /// Reads the entry from the second level, without a fill lock.
    pub(super) async fn fetch_once(&self) -> Option<AnyEntry> {
        let decode = |bytes| self.spec.decode(&bytes);
        let entry = self.kernel.fetch(&self.scope, self.wanted()?, decode).await?;
        (self.is_young(&entry) && self.is_trusted()).then_some(entry)
    }

    fn wanted(&self) -> Option<StoreLookup<'_>> {
        let schema = self.spec.format.schema?();
        Some(StoreLookup { key: &self.key, schema, tiers: self.policy.tiers })
    }

    /// Runs the loader, stores its value, and ends the fill for its waiters.
    async fn fill<A, E, F, Fut>(&self, leader: Leader, load: F) -> FillResult<A, E>
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        let fill = LoadHandle::new(&self.policy, Some(leader));
        let _lands = FinishOnDrop(&fill);
        let scope = self.scope.filling(self.key.clone());
        let loaded = self.load(&fill, &scope, load).await;
        self.conclude(&fill, &scope, loaded.map(A::loaded))
    }

    /// Stores the result of a loader, and ends the fill for its waiters.
    pub(super) fn conclude<A: Answer<Value = T>, E: Send + Sync + 'static>(
        &self,
        fill: &LoadHandle,
        scope: &Scope,
        loaded: Result<Option<T>, Failure<E>>,
    ) -> FillResult<A, E> {
        let content = match loaded {
            Ok(content) => content,
            Err(failure) => {
                self.remember_failure(&failure, &fill.options(), scope);
                fill.finish(FlightResult::Failed(Arc::new(failure.clone())));
                return Err((failure, self.unstored(fill, scope, Reason::FailedPart)));
            }
        };
        let now = self.kernel.now();
        self.metered(|meter| meter.record_fill_time(now.since(self.began), None));
        let object = self.spec.object(content);
        let value = A::of(&object).expect(LOADED);
        let options = fill.options();
        match self.store(object, &options, scope, now) {
            Ok((entry, _)) => {
                fill.finish(FlightResult::Filled(entry.clone()));
                Ok(FillOutcome::Stored(value, entry))
            }
            Err(why) => {
                self.record_of_fill(Event::Refused(why), now);
                if options.refused.is_some() || why.recurs() {
                    self.remember_refusal(now);
                }
                fill.finish(FlightResult::NotShared(why));
                Ok(FillOutcome::Unstored(value, self.unstored(fill, scope, Reason::UnstoredPart)))
            }
        }
    }

    /// Returns the key of a note about this value.
    fn note_key(&self, note: &[u8]) -> KeyBuf {
        let mut key = KeyBuf::continued(self.key.as_bytes());
        key.push(note);
        key
    }

    /// Returns a note about this value, if it is there and still applies.
    fn note(&self, note: &[u8]) -> Option<AnyEntry> {
        let note = self.kernel.find(self.note_key(note).as_bytes())?;
        self.is_usable(&note).then_some(note)
    }

    pub(super) fn was_refused_lately(&self) -> bool {
        self.note(REFUSED).is_some()
    }

    /// Returns the failure of a load within the error backoff of the policy, and its note. The caller adds it to the
    /// scope if it uses it.
    pub(super) fn failed_lately<E: Send + Sync + 'static>(&self) -> Option<(AnyEntry, Failure<E>)> {
        self.policy.error_backoff?;
        let note = self.note(FAILED)?;
        let FailureNote(failure) = note.value::<FailureNote<Failure<E>>>()?;
        let failure = failure.clone();
        Some((note, failure))
    }

    /// Makes a failure that was remembered a failed part of the enclosing scope.
    pub(super) fn add_failure(&self, note: &AnyEntry) {
        self.record(Event::Failed(Reason::ErrorBackoff), self.began);
        self.add_to_whole(note, false);
        self.scope.add_unstored(ScopeContents::default(), Reason::FailedPart);
    }

    async fn load<L, E, F, Fut>(
        &self,
        fill: &LoadHandle,
        scope: &Scope,
        load: F,
    ) -> Result<L, Failure<E>>
    where
        F: FnOnce(LoadHandle) -> Fut,
        Fut: Future<Output = Result<L, E>>,
    {
        let loading = scope.clone().scoped(load(fill.clone()));
        self.limited(loading).await
    }

    /// Runs a loader for as long as the policy allows.
    pub(super) async fn limited<L, E>(
        &self,
        loading: impl Future<Output = Result<L, E>>,
    ) -> Result<L, Failure<E>> {
        let deadline = self.policy.deadline;
        let failure = match tokio::time::timeout(deadline, loading).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Failure::Loader(Arc::new(error)),
            Err(_) => Failure::Deadline(deadline),
        };
        self.record_of_fill(Event::Failed(failure.reason()), self.kernel.now());
        Err(failure)
    }

    /// Stores a hit-for-miss note, by which each call for this key leads its own fill for 10 s, since a waiter would
    /// finally have to load for itself. A value that was stored before stays. Callers do not use it for reasons that
    /// may not apply to the next value, so that single flight continues.
    fn remember_refusal(&self, now: Moment) {
        let tags = SourcedTags::of(TagSource::Larder, [self.own_tag()]);
        self.remember(REFUSED, tags, REFUSAL_TIME, now, &self.kernel.open_scope(), RefusalNote);
    }

    /// Remembers a failure for the error backoff of the policy, with the tags, stamp and audience that the value would
    /// have had.
    fn remember_failure<E: Send + Sync + 'static>(
        &self,
        failure: &Failure<E>,
        options: &LoadOptions,
        scope: &Scope,
    ) {
        let Some(backoff) = self.policy.error_backoff else { return };
        let mut gathered = scope.gathered();
        if options.refused.is_some() || self.refusal_of_audience(&gathered).is_some() {
            return;
        }
        // The failure of a part is often the cause.
        gathered.no_store = gathered.no_store.filter(|why| *why != Reason::FailedPart);
        let outcome = scope.gathering_apart();
        outcome.add_contents(gathered);
        let note = FailureNote(failure.clone());
        self.remember(FAILED, self.tags(options), backoff, self.kernel.now(), &outcome, note);
    }

    /// Stores a note about this value in the first level.
    fn remember(
        &self,
        note: &[u8],
        tags: SourcedTags,
        time: Duration,
        now: Moment,
        scope: &Scope,
        value: impl Value,
    ) {
        let Ok(key) = self.note_key(note).finish() else { return };
        let draft = EntryDraft {
            key,
            tags,
            lifetime: Lifetime::fresh_for(time),
            lifetime_source: LifetimeSource::Larder,
            age: Duration::ZERO,
            filled: now,
            cost: Duration::ZERO,
            tiers: Tiers::MEMORY,
            idle: None,
        };
        if let Ok(entry) = self.kernel.entry(draft, scope, value) {
            self.kernel.store(&entry);
        }
    }

    /// Returns the reason, if any, why the audience of this call may not share a value with these contents.
    fn refusal_of_audience(&self, gathered: &ScopeContents) -> Option<Reason> {
        let partitioned = matches!(self.scope.audience(), Audience::Partition(_));
        if gathered.private && (self.policy.shared || !partitioned) {
            Some(Reason::PrivatePart)
        } else if gathered.varied && self.policy.shared {
            Some(Reason::VariedPart)
        } else {
            None
        }
    }

    /// Returns the changes of the value that this process has seen, if its lifetime is adaptive.
    fn changes(
        &self,
        object: &Object<T>,
        options: &LoadOptions,
        now: Moment,
    ) -> Option<ChangeNote<T>> {
        let adaptive = self.spec.adaptive.filter(|_| options.lifetime.is_none())?;
        let note = self.note(CHANGES);
        let before = note.as_ref().and_then(|note| note.value::<ChangeNote<T>>());
        Some(adaptive.next(before, object.content(), now))
    }

    /// Returns the own tags of the value.
    pub(super) fn tags(&self, options: &LoadOptions) -> SourcedTags {
        // larder-sql reads the tags of a query from its statement.
        let source = |tag| match self.kind {
            Kind::Query if !self.policy.tags.contains(tag) => TagSource::Statement,
            _ => TagSource::Handler,
        };
        let mut tags = SourcedTags::of(TagSource::Larder, [self.own_tag()]);
        tags.extend(options.tags.iter().map(|tag| (tag.clone(), source(tag))));
        tags
    }

    pub(super) fn store(
        &self,
        object: Object<T>,
        options: &LoadOptions,
        scope: &Scope,
        filled: Moment,
    ) -> Result<(AnyEntry, bool), Reason> {
        self.store_under(object, options, scope, filled, |_, _, stamp| Ok(stamp))
    }

    /// Stores a value under the stamp that `restamp` returns for its key, its tags and the stamp of its scope.
    pub(super) fn store_under(
        &self,
        object: Object<T>,
        options: &LoadOptions,
        scope: &Scope,
        filled: Moment,
        restamp: impl FnOnce(&Key, &[Tag], Stamp) -> Result<Stamp, Reason>,
    ) -> Result<(AnyEntry, bool), Reason> {
        let refused = options.refused.or_else(|| self.refusal_of_audience(&scope.gathered()));
        if let Some(why) = refused {
            return Err(why);
        }
        let changes = self.changes(&object, options, filled);
        let (lifetime, lifetime_source) = match (options.lifetime, &changes, object.content()) {
            (Some(lifetime), ..) => (lifetime, LifetimeSource::Loader),
            (None, _, None) => (self.policy.negative_lifetime(), LifetimeSource::Absent),
            (None, Some(changes), Some(_)) => {
                (self.policy.lifetime.with_fresh(changes.fresh()), LifetimeSource::Adaptive)
            }
            (None, None, Some(_)) => (self.policy.lifetime, LifetimeSource::Policy),
        };
        let tiers = self.policy.tiers;
        let can_leave = self.spec.format.schema.is_some();
        let draft = EntryDraft {
            key: self.key.clone(),
            tags: self.tags(options),
            lifetime,
            lifetime_source,
            age: Duration::ZERO,
            filled,
            cost: filled.since(self.began),
            tiers: if can_leave { tiers } else { tiers.in_process() },
            idle: self.policy.idle,
        };
        let entry = self.kernel.entry_under(draft, scope, restamp, object)?;
        let is_stored = self.kernel.store(&entry);
        if let Some((changes, adaptive)) = changes.zip(self.spec.adaptive) {
            let time = adaptive.ceiling.saturating_mul(2);
            self.remember(CHANGES, self.tags(options), time, filled, scope, changes);
        }
        let event = match is_stored {
            true => Event::Stored,
            false => Event::Refused(Reason::Overtaken),
        };
        self.record_of_fill(event, self.kernel.now());
        Ok((entry, is_stored))
    }

    /// Whether a fresh entry is to be refreshed before it expires.
    pub(super) fn is_due(&self, entry: &AnyEntry) -> bool {
        self.policy.refresh_ahead.is_some_and(|rule| rule.is_due(entry, self.kernel.now()))
    }

    /// Starts a background refresh of an entry, unless one is in flight or the refresh budget is used up.
    pub(super) fn refresh<A, E, F, Fut>(&self, old: &AnyEntry, load: F)
    where
        A: Answer<Value = T>,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        if self.failed_lately::<E>().is_some() {
            return;
        }
        let permit = match self.kernel.refresh_permit(old) {
            Ok(permit) => permit,
            Err(why) => return self.record(Event::Failed(why), self.began),
        };
        if let FlightRole::Leader(mut leader) = self.join() {
            let mut call = self.detached();
            // No enclosing fill waits for the refresh.
            call.scope = call.scope.in_background();
            let old = Arc::clone(old);
            let permit = permit.leading();
            let refreshing = async move {
                match call.fetch_newer::<A>(&mut leader, &old).await {
                    Some(entry) => leader.finish(FlightResult::Filled(entry)),
                    None => drop(call.fill::<A, E, F, Fut>(leader, load).await),
                }
                drop(permit);
            };
            let cache = self.policy.cache_name(self.kind);
            drop(self.kernel.spawn_fill(cache, true, refreshing));
        }
    }

    /// Runs the loader for this caller alone. The value is neither shared with other calls nor stored.
    pub(super) async fn alone<A, E, F, Fut>(
        &self,
        stale: Option<AnyEntry>,
        load: F,
    ) -> Result<A, LoadError<E>>
    where
        A: Answer<Value = T>,
        F: FnOnce(LoadHandle) -> Fut,
        Fut: Future<Output = Result<A::Loaded, E>>,
    {
        let fill = LoadHandle::new(&self.policy, None);
        let scope = self.scope.filling(self.key.clone());
        let loaded = self.load(&fill, &scope, load).await;
        self.outcome(stale.as_ref(), self.conclude_alone(&fill, &scope, loaded.map(A::loaded)))
    }

    /// Returns the result of a loader that ran for this caller alone.
    pub(super) fn conclude_alone<A: Answer<Value = T>, E>(
        &self,
        fill: &LoadHandle,
        scope: &Scope,
        loaded: Result<Option<T>, Failure<E>>,
    ) -> FillResult<A, E> {
        let unstored = |why| self.unstored(fill, scope, why);
        match loaded {
            Ok(content) => {
                let value = A::of(&self.spec.object(content)).expect(LOADED);
                Ok(FillOutcome::Unstored(value, unstored(Reason::UnstoredPart)))
            }
            Err(failure) => Err((failure, unstored(Reason::FailedPart))),
        }
    }

    /// Returns the value of a fill or a stale value in place of its failure, and adds it to the enclosing scope.
    pub(super) fn outcome<A: Answer<Value = T>, E>(
        &self,
        stale: Option<&AnyEntry>,
        outcome: FillResult<A, E>,
    ) -> Result<A, LoadError<E>> {
        match outcome {
            Ok(outcome) => Ok(self.taken(outcome)),
            Err((failure, unstored)) => self.fall_back_or_fail(stale, failure, unstored),
        }
    }

    fn fall_back_or_fail<A: Answer<Value = T>, E>(
        &self,
        stale: Option<&AnyEntry>,
        failure: Failure<E>,
        unstored: UnstoredValue,
    ) -> Result<A, LoadError<E>> {
        // With a fill lock, the task of the fill has read the second level, and may have promoted a stale entry.
        let promoted = match stale {
            Some(_) => None,
            None => match self.look_for_stale::<A>() {
                FetchResult::Stale(entry, _) | FetchResult::OnError(entry) => Some(entry),
                FetchResult::Fresh(..) | FetchResult::Nothing => None,
            },
        };
        if let Some(value) = self.fall_back(stale.or(promoted.as_ref())) {
            return Ok(value);
        }
        self.add_unstored(unstored);
        Err(failure.into())
    }

    pub(super) fn fall_back<A: Answer<Value = T>>(&self, stale: Option<&AnyEntry>) -> Option<A> {
        let entry = stale.filter(|entry| self.is_young(entry) && self.is_trusted())?;
        let now = self.kernel.tick();
        // The entry may have been invalidated while the loader ran, so its state is checked again.
        if !matches!(
            self.kernel.entry_state(entry, now),
            EntryState::WhileRevalidating | EntryState::OnError
        ) {
            return None;
        }
        let value = A::of_entry(entry)?;
        self.add_to_whole(entry, true);
        self.record(Event::StaleOnError, now);
        Some(value)
    }

    /// Returns the answer that an entry gives. `None` if it records an absence, and this call needs a value.
    pub(super) fn value<A: Answer<Value = T>, E>(
        &self,
        entry: &AnyEntry,
    ) -> Result<Option<A>, LoadError<E>> {
        entry.value::<Object<T>>().map(A::of).ok_or_else(|| {
            // The caller may go on without the cache, so nothing is known about the value.
            self.depend_on_the_unknown();
            LoadError::OtherType {
                key: Box::new(self.key.clone()),
                stored: entry.type_name(),
                requested: std::any::type_name::<T>(),
            }
        })
    }

    /// Returns the contents of a value that is not stored, for the enclosing scope.
    pub(super) fn unstored(&self, fill: &LoadHandle, scope: &Scope, why: Reason) -> UnstoredValue {
        let own = self.tags(&fill.options());
        let mut gathered = scope.gathered();
        gathered.tags.extend(own.iter().map(|(tag, source)| (self.kernel.own_tag(tag), source)));
        gathered.private |= self.scope.audience() == Audience::Unknown && !self.policy.shared;
        UnstoredValue { gathered: Box::new(gathered), why }
    }

    /// Adds the contents of a value that is not stored to the enclosing scope, whose value is then not storable either.
    fn add_unstored(&self, UnstoredValue { gathered, why }: UnstoredValue) {
        self.scope.add_unstored(*gathered, why);
    }

    /// Returns the tag that all entries of this name carry.
    fn own_tag(&self) -> Tag {
        match &self.long_name {
            Some(name) => Tag::of_name(self.kind, name),
            None => Tag::of_name(self.kind, &self.key.name()),
        }
    }

    /// Adds the tag of the name to the enclosing scope: a page that shows that a value is not there changes once the
    /// value is stored after a write.
    pub(super) fn depend_on_absence(&self) {
        let source = TagSource::of_part(self.kind);
        self.scope.add_tags(source, [self.kernel.own_tag(&self.own_tag())]);
        let is_unknown = !self.policy.shared && self.scope.audience() == Audience::Unknown;
        let traits = self.part_traits(false);
        self.scope.add_audience(PartTraits { private: traits.private || is_unknown, ..traits });
    }

    /// Adds the name to the enclosing scope for a read that had to bypass the cache. The value built there is not
    /// storable, because larder does not know whether the value is there.
    pub(super) fn depend_on_the_unknown(&self) {
        self.depend_on_absence();
        self.scope.add_unstored(ScopeContents::default(), Reason::UnstoredPart);
    }

    pub(super) fn add_to_whole(&self, entry: &AnyEntry, stale: bool) {
        self.scope.add_part(entry, self.part_traits(stale));
    }

    /// Returns the effects of this value on a value that includes it.
    fn part_traits(&self, stale: bool) -> PartTraits {
        let audience = self.scope.audience();
        PartTraits {
            cuts: !self.policy.until_invalidated,
            private: !self.policy.shared && matches!(audience, Audience::Partition(_)),
            varied: !self.policy.shared && matches!(audience, Audience::Variant(_)),
            stale,
        }
    }
}

/// The result of a lookup in the first level.
pub(super) enum LookupResult<A> {
    Fresh(AnyEntry, A),
    Stale(AnyEntry, A),
    OnError(AnyEntry),
    /// An entry that may no longer be served, with the event to record.
    Gone(Event),
    /// No entry, or the record of an absence if the call needs a value.
    Nothing,
}

/// The result of a read of the second level.
pub(super) enum FetchResult<A> {
    Fresh(AnyEntry, A),
    /// A stale entry that may be served while it is refreshed.
    Stale(AnyEntry, A),
    /// A stale entry that may be served on errors.
    OnError(AnyEntry),
    Nothing,
}

/// The result of a fill.
pub(super) enum FillOutcome<A> {
    Stored(A, AnyEntry),
    Unstored(A, UnstoredValue),
    /// A stale value, which was added to the enclosing scope.
    Served(A),
}

/// The result of a fill, or its failure.
pub(super) type FillResult<A, E> = Result<FillOutcome<A>, (Failure<E>, UnstoredValue)>;

/// The contents of a value that is not stored, and why the enclosing scope is not storable either.
pub(super) struct UnstoredValue {
    gathered: Box<ScopeContents>,
    why: Reason,
}

const LOADED: &str = "a loader returns what its caller can use";
/// The last part of the keys of notes: a refused value, a failed load, the changes of a value.
const REFUSED: &[u8] = b" refused";
const FAILED: &[u8] = b" failed";
const CHANGES: &[u8] = b" changes";
/// How long a hit-for-miss note lasts, during which calls for the key do not coalesce.
const REFUSAL_TIME: Duration = Duration::from_secs(10);
