//! The steps of a call for a value: look up, lead or fetch, load, store, and add the value to the enclosing scope.

use std::marker::PhantomData;
use std::{borrow::Cow, future::Future, panic, sync::Arc, time::Duration};

use tracing::Instrument as _;

use super::{
    error::{Failure, LoadError},
    fill::{FinishOnDrop, LoadHandle, LoadOptions},
    request::ValueRequest,
    value::{CacheValue, Object, RefusalNote},
};
use crate::{
    audience::Audience,
    clock::Moment,
    consistency::Consistency,
    engine::EntryState,
    entry::AnyEntry,
    flight::{FlightResult, FlightRole, Leader},
    kernel::{EntryDraft, FillRequest as _, Kernel, fill_or_wait},
    key::{Key, KeyBuf, Kind},
    lifetime::Lifetime,
    metrics::{Event, Meter},
    policy::Policy,
    reason::Reason,
    schema::Schema,
    scope::{PartTraits, Scope, ScopeContents, ScopeOwner},
    second_level::StoreLookup,
    store::BoxFuture,
    tag::Tag,
    tiers::Tiers,
};

/// One call of [`Larder::get_or_load`](crate::Larder::get_or_load).
///
/// It borrows its kernel and clones it only for a task that may outlive the caller, because a clone changes reference
/// counts for which all threads contend.
#[derive(Clone)]
pub(super) struct Call<'a> {
    pub(super) kernel: Cow<'a, Kernel>,
    pub(super) key: Key,
    pub(super) hash: u64,
    pub(super) policy: Policy,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) scope: Scope,
    pub(super) opened: ScopeOwner,
    pub(super) began: Moment,
}

/// Builds the key of a value from its name and its audience.
fn key(kernel: &Kernel, kind: Kind, name: &str, audience: &Audience) -> KeyBuf {
    let mut key = kernel.key(kind, "");
    key.push(name.as_bytes());
    key.push_audience(audience);
    key
}

impl<'a> Call<'a> {
    /// Begins a call: catches up with the log as the policy demands, opens the scope, and builds the key. Returns a
    /// reason if the call has to bypass the cache.
    pub(super) async fn begin(
        kernel: &'a Kernel,
        kind: Kind,
        name: String,
        policy: Policy,
    ) -> (Self, Option<Reason>) {
        let context = Self::context(kernel, &policy).await;
        Self::of(kernel, kind, name, policy, context)
    }

    /// Begins the calls for several names: catches up with the log once, and opens one scope for all.
    pub(super) async fn begin_many(
        kernel: &'a Kernel,
        kind: Kind,
        names: Vec<String>,
        policy: &Policy,
    ) -> Vec<(Self, Option<Reason>)> {
        let context = Self::context(kernel, policy).await;
        let call = |name| Self::of(kernel, kind, name, policy.clone(), context.clone());
        names.into_iter().map(call).collect()
    }

    async fn context(kernel: &Kernel, policy: &Policy) -> (Scope, ScopeOwner, Moment) {
        let began = kernel.tick();
        let caught_up = kernel.catch_up(policy.consistency).await;
        // The scope opens after the wait, so that its stamp covers the invalidations that the call has waited for.
        let (mut scope, opened) = kernel.scope_of_value();
        if let Consistency::Bounded(bound) = policy.consistency {
            scope = scope.bounded(bound);
        }
        if !caught_up {
            scope = scope.distrusting();
        }
        (scope, opened, began)
    }

    /// Returns the call for a value of this name in a scope, and the reason if it has to bypass the cache.
    pub(super) fn of(
        kernel: &'a Kernel,
        kind: Kind,
        name: String,
        policy: Policy,
        (scope, opened, began): (Scope, ScopeOwner, Moment),
    ) -> (Self, Option<Reason>) {
        let audience = if policy.shared { Audience::Everyone } else { scope.audience() };
        let finished = key(kernel, kind, &name, &audience).finish();
        let is_too_long = finished.is_err();
        // This short key only identifies the running fill; nothing is stored under it.
        let key = finished.unwrap_or_else(|_| {
            let mut short = KeyBuf::new(kind, "", "", "");
            short.push(&kernel.hash(name.as_bytes()).to_le_bytes());
            short.finish().expect("eight bytes are not too long")
        });
        let hash = kernel.hash(key.as_bytes());
        let kernel = Cow::Borrowed(kernel);
        let mut call = Self { kernel, key, hash, policy, kind, name, scope, opened, began };
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

impl Call<'_> {
    pub(super) async fn answer<T, E, F, Fut>(&mut self, load: F) -> Result<Arc<T>, LoadError<E>>
    where
        T: CacheValue,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let arrived = self.kernel.sequence();
        let mut request =
            ValueRequest { call: self, load: Some(load), arrived, stale: None, typed: PhantomData };
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

    /// Clones this call for a task that may outlive its caller.
    fn detached(&self) -> Call<'static> {
        let Self { kernel, key, hash, policy, kind, name, scope, opened, began } = self.clone();
        let kernel = Cow::Owned(kernel.into_owned());
        Call { kernel, key, hash, policy, kind, name, scope, opened, began }
    }

    fn metered<R>(&self, act: impl FnOnce(&Meter) -> R) -> R {
        self.kernel.with_meter(self.policy.cache_name(self.kind), act)
    }

    pub(super) fn record(&self, event: Event, now: Moment) {
        self.metered(|meter| meter.record(event, now));
    }

    /// Looks the key up in the first level. If the caller uses the entry, it has to record the event and add the entry
    /// to the scope.
    pub(super) fn look<T: CacheValue, E>(&self) -> Result<LookupResult<T>, LoadError<E>> {
        let Some(entry) = self.kernel.get(self.hash, self.key.as_bytes()) else {
            return Ok(LookupResult::Nothing);
        };
        if !self.is_young(&entry) || !self.is_trusted() {
            return Ok(LookupResult::Nothing);
        }
        Ok(match self.kernel.entry_state(&entry, self.kernel.now()) {
            EntryState::Fresh => {
                let value = self.value(&entry)?;
                LookupResult::Fresh(entry, value)
            }
            EntryState::WhileRevalidating => {
                let value = self.value(&entry)?;
                LookupResult::Stale(entry, value)
            }
            EntryState::OnError => LookupResult::OnError(entry),
            EntryState::Invalid => {
                self.kernel.remove(&entry);
                LookupResult::Gone(Event::Invalid)
            }
            // Loaders cannot revalidate a value.
            EntryState::ToRevalidate | EntryState::Expired => LookupResult::Gone(Event::Expired),
        })
    }

    pub(super) fn hit<T>(&self, entry: &AnyEntry, value: Arc<T>) -> Arc<T> {
        self.add_to_whole(entry, false);
        self.kernel.note_hit(entry);
        self.metered(|meter| meter.record_hit(self.began, || self.kernel.now()));
        value
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

    /// Whether the lag of this process is within the bound of the scope. The call checks this again after each wait.
    pub(super) fn is_trusted(&self) -> bool {
        self.kernel.is_within_bound_of(&self.scope)
    }

    /// Reads the second level, then runs the loader in a task of its own, so that waiters do not depend on the caller
    /// being polled and dropping the caller does not stop the fill.
    pub(super) async fn lead<T, E, F, Fut>(
        &self,
        mut leader: Leader,
        mut stale: Option<AnyEntry>,
        load: F,
    ) -> Result<Arc<T>, LoadError<E>>
    where
        T: CacheValue,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        // Another fill may have ended between the lookup of this call and its lead.
        match self.look()? {
            LookupResult::Fresh(entry, value) => {
                let value = self.hit(&entry, value);
                leader.finish(FlightResult::Filled(entry));
                return Ok(value);
            }
            LookupResult::Stale(entry, _) | LookupResult::OnError(entry) => stale = Some(entry),
            LookupResult::Gone(_) | LookupResult::Nothing => {}
        }
        if self.policy.fill_lock.is_none() && self.kernel.shares(self.policy.tiers) {
            // The read runs in the caller's task, because it is short. If the caller is not polled for 200 ms, a waiter
            // leads another fill.
            leader.look();
            if let Some(entry) = self.fetch::<T>(&mut leader).await {
                return self.taken(self.fetched(leader, &entry));
            }
            leader.looked();
        }
        let call = self.detached();
        let filling = async move { call.fetch_or_fill(leader, load).await };
        match self.kernel.spawn(filling.in_current_span()).await {
            Ok(Ok(outcome)) => self.taken(outcome),
            Ok(Err((failure, unstored))) => {
                self.fall_back_or_fail(stale.as_ref(), failure, unstored)
            }
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => {
                    self.record(Event::Failed(Reason::Panic), self.kernel.now());
                    panic::resume_unwind(panic)
                }
                Err(_) => Err(LoadError::Cancelled),
            },
        }
    }

    async fn fetch_or_fill<T, E, F, Fut>(
        &self,
        mut leader: Leader,
        load: F,
    ) -> Result<FillOutcome<T>, (Failure<E>, UnstoredValue)>
    where
        T: CacheValue,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        if self.policy.fill_lock.is_some()
            && let Some(entry) = self.fetch::<T>(&mut leader).await
        {
            return Ok(self.fetched(leader, &entry));
        }
        self.record(Event::Miss, self.began);
        if self.policy.tiers.in_memory().is_some() {
            self.kernel.note_miss(self.hash);
        }
        self.fill(leader, load).await
    }

    /// Returns the value of a fill, and adds it to the enclosing scope as a part.
    fn taken<T: CacheValue, E>(&self, outcome: FillOutcome<T>) -> Result<Arc<T>, LoadError<E>> {
        match outcome {
            FillOutcome::Stored(value, entry) => {
                self.add_to_whole(&entry, false);
                Ok(value)
            }
            FillOutcome::Unstored(value, unstored) => {
                self.add_unstored(unstored);
                Ok(value)
            }
            FillOutcome::OtherType(stored) => Err(self.other_type::<T, E>(stored)),
        }
    }

    /// Ends the fill with the entry from the second level.
    fn fetched<T: CacheValue>(&self, leader: Leader, entry: &AnyEntry) -> FillOutcome<T> {
        self.record(Event::SharedHit, self.began);
        let Some(object) = entry.value::<Object<T>>() else {
            return FillOutcome::OtherType(entry.type_name());
        };
        let value = Arc::clone(&object.value);
        leader.finish(FlightResult::Filled(entry.clone()));
        FillOutcome::Stored(value, entry.clone())
    }

    /// Reads the entry from the second level. If the policy has a fill lock and another process holds it, this waits
    /// for the entry that the other process stores.
    async fn fetch<T: CacheValue>(&self, leader: &mut Leader) -> Option<AnyEntry> {
        let tiers = self.policy.tiers;
        if !self.kernel.shares(tiers) || leader.is_alone() {
            return None;
        }
        let fetch = || self.fetch_once::<T>();
        self.kernel.fetch_in_turn(&self.scope, leader, self.policy.fill_lock, fetch).await
    }

    /// Reads the entries of several calls from the second level in one round trip. They have one policy and one scope.
    pub(super) async fn fetch_many<T: CacheValue>(calls: &[&Self]) -> Vec<Option<AnyEntry>> {
        let Some(first) = calls.first() else { return Vec::new() };
        let (schema, tiers) = (Schema::of::<T>(), first.policy.tiers);
        let wanted = calls.iter().map(|call| StoreLookup { key: &call.key, schema, tiers });
        let wanted: Vec<_> = wanted.collect();
        let decode = |bytes| Object::<T>::decode(&bytes);
        let entries = first.kernel.fetch_many(&first.waiting_scope(), &wanted, decode).await;
        let usable = |(call, entry): (&&Self, Option<AnyEntry>)| {
            entry.filter(|entry| call.is_young(entry) && call.is_trusted())
        };
        calls.iter().zip(entries).map(usable).collect()
    }

    /// Reads the entry from the second level, without a fill lock.
    pub(super) async fn fetch_once<T: CacheValue>(&self) -> Option<AnyEntry> {
        let tiers = self.policy.tiers;
        let wanted = StoreLookup { key: &self.key, schema: Schema::of::<T>(), tiers };
        let decode = |bytes| Object::<T>::decode(&bytes);
        let entry = self.kernel.fetch(&self.scope, wanted, decode).await?;
        (self.is_young(&entry) && self.is_trusted()).then_some(entry)
    }

    /// Runs the loader, stores its value, and ends the fill for its waiters.
    async fn fill<T, E, F, Fut>(
        &self,
        leader: Leader,
        load: F,
    ) -> Result<FillOutcome<T>, (Failure<E>, UnstoredValue)>
    where
        T: CacheValue,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let fill = LoadHandle::new(&self.policy, Some(leader));
        let _lands = FinishOnDrop(&fill);
        let scope = self.scope.filling(self.key.clone());
        let value = match self.load(&fill, &scope, load).await {
            Ok(value) => value,
            Err(failure) => {
                fill.finish(FlightResult::Failed(Arc::new(failure.clone())));
                return Err((failure, self.unstored(&fill, &scope, Reason::FailedPart)));
            }
        };
        let now = self.kernel.now();
        self.metered(|meter| meter.record_fill_time(now.since(self.began)));
        let object = Object::new(value);
        let value = Arc::clone(&object.value);
        let options = fill.options();
        match self.store(object, &options, &scope, now) {
            Ok((entry, _)) => {
                fill.finish(FlightResult::Filled(entry.clone()));
                Ok(FillOutcome::Stored(value, entry))
            }
            Err(why) => {
                self.record(Event::Refused(why), now);
                if options.refused.is_some() || why.recurs() {
                    self.remember_refusal(now);
                }
                fill.finish(FlightResult::NotShared(why));
                Ok(FillOutcome::Unstored(value, self.unstored(&fill, &scope, Reason::UnstoredPart)))
            }
        }
    }

    fn refusal_key(&self) -> KeyBuf {
        let mut key = KeyBuf::continued(self.key.as_bytes());
        key.push(b" refused");
        key
    }

    fn was_refused_lately(&self) -> bool {
        let noted = self.kernel.find(self.refusal_key().as_bytes());
        noted.is_some_and(|note| {
            self.kernel.entry_state(&note, self.kernel.now()) == EntryState::Fresh
        })
    }

    async fn load<T, E, F, Fut>(
        &self,
        fill: &LoadHandle,
        scope: &Scope,
        load: F,
    ) -> Result<T, Failure<E>>
    where
        F: FnOnce(LoadHandle) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let deadline = self.policy.deadline;
        let loading = scope.clone().scoped(load(fill.clone()));
        let failure = match tokio::time::timeout(deadline, loading).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Failure::Loader(Arc::new(error)),
            Err(_) => Failure::Deadline(deadline),
        };
        self.record(Event::Failed(failure.reason()), self.kernel.now());
        Err(failure)
    }

    /// Stores a hit-for-miss note, by which each call for this key leads its own fill for 10 s, since a waiter would
    /// finally have to load for itself. A value that was stored before stays. Callers do not use it for reasons that
    /// may not apply to the next value, so that single flight continues.
    fn remember_refusal(&self, now: Moment) {
        let Ok(key) = self.refusal_key().finish() else { return };
        let draft = EntryDraft {
            key,
            tags: vec![self.own_tag()],
            lifetime: Lifetime::fresh_for(REFUSAL_TIME),
            age: Duration::ZERO,
            filled: now,
            cost: Duration::ZERO,
            tiers: Tiers::MEMORY,
        };
        if let Ok(entry) = self.kernel.entry(draft, &self.kernel.open_scope(), RefusalNote) {
            self.kernel.store(&entry);
        }
    }

    pub(super) fn store<T: CacheValue>(
        &self,
        object: Object<T>,
        options: &LoadOptions,
        scope: &Scope,
        filled: Moment,
    ) -> Result<(AnyEntry, bool), Reason> {
        if let Some(why) = options.refused {
            return Err(why);
        }
        let partitioned = matches!(self.scope.audience(), Audience::Partition(_));
        let gathered = scope.gathered();
        if gathered.private && (self.policy.shared || !partitioned) {
            return Err(Reason::PrivatePart);
        }
        if gathered.varied && self.policy.shared {
            return Err(Reason::VariedPart);
        }
        let mut tags = vec![self.own_tag()];
        tags.extend(options.tags.iter().cloned());
        let draft = EntryDraft {
            key: self.key.clone(),
            tags,
            lifetime: options.lifetime,
            age: Duration::ZERO,
            filled,
            cost: filled.since(self.began),
            tiers: self.policy.tiers,
        };
        let entry = self.kernel.entry(draft, scope, object)?;
        let is_stored = self.kernel.store(&entry);
        let event = match is_stored {
            true => Event::Stored,
            false => Event::Refused(Reason::Overtaken),
        };
        self.record(event, self.kernel.now());
        Ok((entry, is_stored))
    }

    /// Starts a background refresh, unless one is in flight or the refresh budget is used up.
    pub(super) fn refresh<T, E, F, Fut>(&self, stale: &AnyEntry, load: F)
    where
        T: CacheValue,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let Some(permit) = self.kernel.refresh_permit() else {
            self.record(Event::Failed(Reason::RefreshBudget), self.began);
            return;
        };
        let arrived = self.scope.stamp().local;
        let place = (self.hash, stale.key());
        let joined = self.kernel.join(place, &self.scope, arrived, self.policy.coalesce_timeout);
        if let FlightRole::Leader(mut leader) = joined {
            let mut call = self.detached();
            // No enclosing fill waits for the refresh.
            call.scope = call.scope.in_background();
            let refreshing = async move {
                // Another process may have refreshed the value.
                let fetched = match call.policy.fill_lock {
                    Some(_) => call.fetch::<T>(&mut leader).await,
                    None => None,
                };
                match fetched {
                    Some(entry) => leader.finish(FlightResult::Filled(entry)),
                    None => drop(call.fill(leader, load).await),
                }
                drop(permit);
            };
            drop(self.kernel.spawn(refreshing.in_current_span()));
        }
    }

    /// Runs the loader for this caller alone. The value is neither shared with other calls nor stored.
    pub(super) async fn alone<T, E, F, Fut>(
        &self,
        stale: Option<AnyEntry>,
        load: F,
    ) -> Result<Arc<T>, LoadError<E>>
    where
        T: CacheValue,
        F: FnOnce(LoadHandle) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let fill = LoadHandle::new(&self.policy, None);
        let scope = self.scope.filling(self.key.clone());
        let loaded = self.load(&fill, &scope, load).await;
        let unstored = |why| self.unstored(&fill, &scope, why);
        match loaded {
            Ok(value) => {
                self.add_unstored(unstored(Reason::UnstoredPart));
                Ok(Arc::new(value))
            }
            Err(failure) => {
                self.fall_back_or_fail(stale.as_ref(), failure, unstored(Reason::FailedPart))
            }
        }
    }

    fn fall_back_or_fail<T: CacheValue, E>(
        &self,
        stale: Option<&AnyEntry>,
        failure: Failure<E>,
        unstored: UnstoredValue,
    ) -> Result<Arc<T>, LoadError<E>> {
        if let Some(value) = self.fall_back(stale) {
            return Ok(value);
        }
        self.add_unstored(unstored);
        Err(failure.into())
    }

    pub(super) fn fall_back<T: CacheValue>(&self, stale: Option<&AnyEntry>) -> Option<Arc<T>> {
        let entry = stale.filter(|entry| self.is_young(entry) && self.is_trusted())?;
        let now = self.kernel.tick();
        // The entry may have been invalidated while the loader ran, so its state is checked again.
        if !matches!(
            self.kernel.entry_state(entry, now),
            EntryState::WhileRevalidating | EntryState::OnError
        ) {
            return None;
        }
        self.add_to_whole(entry, true);
        self.record(Event::StaleOnError, now);
        entry.value::<Object<T>>().map(|object| Arc::clone(&object.value))
    }

    pub(super) fn value<T: CacheValue, E>(&self, entry: &AnyEntry) -> Result<Arc<T>, LoadError<E>> {
        match entry.value::<Object<T>>() {
            Some(object) => Ok(Arc::clone(&object.value)),
            None => Err(self.other_type::<T, E>(entry.type_name())),
        }
    }

    fn other_type<T, E>(&self, stored: &'static str) -> LoadError<E> {
        let (key, requested) = (Box::new(self.key.clone()), std::any::type_name::<T>());
        LoadError::OtherType { key, stored, requested }
    }

    /// Returns the contents of a value that is not stored, for the enclosing scope.
    fn unstored(&self, fill: &LoadHandle, scope: &Scope, why: Reason) -> UnstoredValue {
        let own = std::iter::once(self.own_tag()).chain(fill.options().tags);
        let mut gathered = scope.gathered();
        gathered.tags.extend(own.map(|tag| self.kernel.own_tag(&tag)));
        gathered.private |= self.scope.audience() == Audience::Unknown && !self.policy.shared;
        UnstoredValue { gathered, why }
    }

    /// Adds the contents of a value that is not stored to the enclosing scope, whose value is then not storable either.
    fn add_unstored(&self, UnstoredValue { gathered, why }: UnstoredValue) {
        self.scope.add_unstored(gathered, why);
    }

    /// Returns the tag that all entries of this name carry.
    fn own_tag(&self) -> Tag {
        Tag::of_name(self.kind, &self.name)
    }

    /// Adds the tag of the name to the enclosing scope: a page that shows that a value is not there changes once the
    /// value is stored after a write.
    pub(super) fn depend_on_absence(&self) {
        self.scope.add_tags([self.kernel.own_tag(&self.own_tag())]);
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
pub(super) enum LookupResult<T> {
    Fresh(AnyEntry, Arc<T>),
    Stale(AnyEntry, Arc<T>),
    OnError(AnyEntry),
    /// An entry that may no longer be served, with the event to record.
    Gone(Event),
    Nothing,
}

/// The result of a fill.
enum FillOutcome<T> {
    Stored(Arc<T>, AnyEntry),
    Unstored(Arc<T>, UnstoredValue),
    /// The value that is stored under this name has another type, with this name.
    OtherType(&'static str),
}

/// The contents of a value that is not stored, and why the enclosing scope is not storable either.
struct UnstoredValue {
    gathered: ScopeContents,
    why: Reason,
}

/// How long a hit-for-miss note lasts, during which calls for the key do not coalesce.
const REFUSAL_TIME: Duration = Duration::from_secs(10);
