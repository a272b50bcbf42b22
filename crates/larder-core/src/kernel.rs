//! The engine as layers and other kinds of caches see it.
//!
//! Everything in this module is for authors of layers: an application needs none of it, and the facade does not show it.

use std::{
    borrow::Cow,
    fmt::Debug,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use crate::{
    bus::Record,
    engine::Engine,
    entry::EntryMetadata,
    flight::Patience,
    key::{IntoName, Key, Kind, escaped},
    larder::Larder,
    lifetime::Lifetime,
    object::{self, LoadError, Loading},
    observe::LogStats,
    policy::Policy,
    scope::{ScopeOwner, StoreWaits},
    tag::Tag,
    target::{Invalidated, Invalidation, expand},
    tiers::Tiers,
};

pub use crate::{
    budget::ReservedBytes,
    clock::{Clock, Moment, jittered},
    engine::EntryState,
    entry::{AnyEntry, Encoded, Entry, Value},
    flight::{FlightResult, FlightRole, Leader, Progress, Waiter},
    key::{FOR_MANY, KeyBuf, KeyTooLongError, MAX_KEY_BYTES},
    lifetime::{Ends, Phase},
    observe::{Event, Meter},
    registry::{Stamp, Verdict},
    schema::Schema,
    scope::{Audience, PartTraits, Scope, ScopeContents, ScopeGuard},
    second_level::StoreLookup,
};

/// The engine of a [`Larder`], within its namespace. Cheap to clone; a clone is the same engine.
#[derive(Clone, Debug)]
pub struct Kernel {
    engine: Arc<Engine>,
    namespace: Arc<str>,
}

/// An entry that is about to be made, before its scope has its say.
#[derive(Debug)]
pub struct EntryDraft {
    /// Its name.
    pub key: Key,
    /// Its own tags, the most important first.
    pub tags: Vec<Tag>,
    /// How long it may live.
    pub lifetime: Lifetime,
    /// How old it already was when it was filled.
    pub age: Duration,
    /// When it was filled.
    pub filled: Moment,
    /// What the fill took.
    pub cost: Duration,
    /// Where it is kept.
    pub tiers: Tiers,
}

impl Kernel {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine: Arc::new(engine), namespace: "".into() }
    }

    /// The handle of applications on this engine.
    pub fn larder(&self) -> Larder {
        Larder::of(self.clone())
    }

    /// Invalidates: see [`Larder::invalidate`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, where the log is shared with other processes.
    pub async fn invalidate(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        let invalidation = invalidation.into();
        let now = self.tick();
        let records = self.records(invalidation.targets, invalidation.mode);
        let due = (!invalidation.after.is_zero()).then(|| now.after(invalidation.after));
        let act = |record: Record| async move {
            match due {
                None => self.engine.invalidate(record).await,
                Some(due) => self.engine.schedule(due, record).await,
            }
        };
        match <[Record; 1]>::try_from(records) {
            Ok([record]) => act(record).await,
            Err(several) => {
                // All begin at the first poll, and go on by themselves then.
                let outcomes = join_all(several.into_iter().map(act)).await;
                outcomes.into_iter().reduce(Invalidated::worse).unwrap_or(Invalidated::Logged)
            }
        }
    }

    /// As [`Larder::get_or_load`], for a thing of another kind. Two kinds never share a name.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`].
    pub async fn get_or_fill<T, E, F, Fut>(
        &self,
        kind: Kind,
        name: impl IntoName,
        policy: impl Into<Policy>,
        load: F,
    ) -> Result<Arc<T>, LoadError<E>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: FnOnce(Loading) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        object::get_or_fill(self, kind, name.into_name(), policy.into(), load).await
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn namespaced(&self, name: &str) -> Self {
        let own = match name {
            // `%` alone is written for no other name.
            "" => "%".to_owned(),
            name => escaped(name, |letter| letter == '/' || letter.is_control()),
        };
        let namespace = match &*self.namespace {
            "" => own.into(),
            above => format!("{above}/{own}").into(),
        };
        Self { engine: Arc::clone(&self.engine), namespace }
    }

    /// How the log is doing: as in [`Stats::log`], without counting anything else.
    pub fn log(&self) -> LogStats {
        self.engine.log_stats()
    }

    /// How many invalidations wait for the log to take them.
    pub fn invalidations_pending(&self) -> usize {
        self.engine.registry.waiting().0
    }

    pub(crate) fn downgraded(&self) -> Weak<Engine> {
        Arc::downgrade(&self.engine)
    }

    /// Now, after all invalidations that are due have acted. Every request comes here before it looks
    /// anything up.
    #[inline]
    pub fn tick(&self) -> Moment {
        self.engine.tick()
    }

    /// Now.
    pub fn now(&self) -> Moment {
        self.engine.clock.now()
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.engine.clock
    }

    /// The number of the newest invalidation, to note when a request arrived.
    pub fn sequence(&self) -> u64 {
        self.engine.registry.sequence()
    }

    /// The namespace, empty for the larder itself.
    pub fn namespace_name(&self) -> &str {
        &self.namespace
    }

    /// The beginning of a key of this namespace and version.
    pub fn key(&self, kind: Kind, policy: &str) -> KeyBuf {
        KeyBuf::new(kind, &self.namespace, &self.engine.version, policy)
    }

    /// The version of the application, as given to the builder.
    pub fn version(&self) -> &str {
        &self.engine.version
    }

    /// The hash of a key in the memory tier.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.engine.memory.hash(key)
    }

    /// Reads an entry under a guard. What `read` answers with `Some` counts as a hit for the policy;
    /// `read` must not use this larder's memory again.
    #[inline]
    pub fn read<R>(
        &self,
        hash: u64,
        key: &[u8],
        read: impl FnOnce(&AnyEntry) -> Option<R>,
    ) -> Option<R> {
        self.engine.memory.read(hash, key, read)
    }

    /// The entry of a key, whether or not it is valid.
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<AnyEntry> {
        self.engine.memory.get(hash, key)
    }

    /// The entry of a key whose hash is not at hand, whether or not it is valid.
    pub fn find(&self, key: &[u8]) -> Option<AnyEntry> {
        self.get(self.hash(key), key)
    }

    /// Counts a hit that was answered from an entry of [`Larder::get`].
    pub fn note_hit(&self, entry: &AnyEntry) {
        self.engine.memory.note_hit(entry);
    }

    /// Counts that a key was asked for and not there; once for each request.
    pub fn note_miss(&self, hash: u64) {
        self.engine.memory.note_miss(hash);
    }

    /// The entry of a key from the shared store, if it is fresh and valid there; promoted into memory, if it
    /// is to be kept there. The request of `scope` waits for a store that does not answer no longer than
    /// [`LarderBuilder::store_wait_limit`](crate::LarderBuilder::store_wait_limit), in all of its reads together.
    pub async fn fetch<V: Value>(
        &self,
        scope: &Scope,
        wanted: StoreLookup<'_>,
        decode: impl FnOnce(Bytes) -> Option<V>,
    ) -> Option<AnyEntry> {
        match &self.engine.shared {
            Some(shared) => shared.fetch(&self.engine, scope, wanted, decode).await,
            None => None,
        }
    }

    /// Whether there is a shared store.
    pub fn has_store(&self) -> bool {
        self.engine.shared.is_some()
    }

    /// Whether what is kept in these tiers reaches a shared store.
    pub fn shares(&self, tiers: Tiers) -> bool {
        let shared = self.engine.shared.as_ref();
        shared.is_some_and(|shared| tiers.in_shared(shared.seals()).is_some())
    }

    /// Whether what lies in the shared store is sealed.
    pub fn seals(&self) -> bool {
        self.engine.shared.as_ref().is_some_and(|shared| shared.seals())
    }

    /// How an entry stands.
    #[inline]
    pub fn entry_state(&self, entry: &AnyEntry, now: Moment) -> EntryState {
        self.engine.entry_state(entry, now)
    }

    /// The current scope, or a new one for the request of a layer.
    #[inline]
    pub fn scope(&self) -> Scope {
        self.engine.unscoped.note_layer();
        self.current_or_new_scope()
    }

    #[inline]
    pub(crate) fn current_or_new_scope(&self) -> Scope {
        Scope::current(self.engine.origin).unwrap_or_else(|| self.open_scope())
    }

    /// The scope in which a value is asked for. Where requests have scopes, one that is asked for in none is
    /// most likely asked for in a task of a handler that left its scope behind.
    pub(crate) fn scope_of_value(&self) -> (Scope, ScopeOwner) {
        match Scope::current(self.engine.origin) {
            Some(scope) => (scope, ScopeOwner::Enclosing),
            None => {
                self.engine.unscoped.note_value();
                // A hit waits for no store: a miss counts its waits.
                (self.bare_scope(), ScopeOwner::ThisCall)
            }
        }
    }

    /// The current scope, if there is one.
    pub fn current_scope(&self) -> Option<Scope> {
        Scope::current(self.engine.origin)
    }

    /// Whether nothing that is kept may be served in the current scope.
    #[inline]
    pub fn is_distrusted(&self) -> bool {
        Scope::is_distrusted(self.engine.origin)
    }

    /// A new scope, for what is read from now on.
    pub fn open_scope(&self) -> Scope {
        self.counting_waits(self.bare_scope())
    }

    fn bare_scope(&self) -> Scope {
        Scope::open(self.engine.origin, self.engine.registry.stamp())
    }

    /// This scope, with a sum of what is spent in it on waits for a shared store, where there is one.
    pub(crate) fn counting_waits(&self, scope: Scope) -> Scope {
        match &self.engine.shared {
            Some(shared) => scope.waiting(StoreWaits::new(shared.wait_limit())),
            None => scope,
        }
    }

    /// Whether both are handles of the same larder.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.engine, &other.engine)
    }

    /// A scope for what a write of our own has brought, if since `since` nothing was invalidated but by that
    /// write, which has acted in `own` steps.
    ///
    /// What is kept under it stays in this process: other processes know the write by its invalidation alone.
    pub fn scope_after_own(&self, since: u64, own: u64) -> Option<Scope> {
        let local = since + own;
        let stamp = crate::kernel::Stamp { local, log: None };
        (self.sequence() == local).then(|| Scope::open(self.engine.origin, stamp))
    }

    /// A place in the flight of a key, for a waiter that is patient for `wait`.
    pub fn join(
        &self,
        key: (u64, &Key),
        scope: &Scope,
        arrived: u64,
        wait: Duration,
    ) -> FlightRole {
        let engine = &self.engine;
        let trusted = engine.bus.is_shared().then_some(engine.lease);
        let patience = Patience { wait, trusted };
        engine.flights.join(key, scope, arrived, engine.clock.now(), patience)
    }

    /// A flight that nobody joins, for what is of no use to anybody else.
    pub fn lead_alone(&self, key: &Key, scope: &Scope) -> Leader {
        self.engine.flights.alone(key, scope, self.engine.clock.now())
    }

    /// Makes an entry of a value and of all that its scope gathered.
    ///
    /// # Errors
    ///
    /// Why it cannot be one, by name.
    pub fn entry<V: Value>(
        &self,
        draft: EntryDraft,
        scope: &Scope,
        value: V,
    ) -> Result<AnyEntry, &'static str> {
        let gathered = scope.gathered();
        if let Some(why) = gathered.no_store {
            return Err(why);
        }
        let mut tags = self.with_own_tags(&draft);
        for tag in gathered.tags {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        if tags.len() > self.engine.max_tags {
            return Err("too-many-tags");
        }
        let hash = self.hash(draft.key.as_bytes());
        let id = self.engine.memory.next_id();
        let chance = id.wrapping_mul(hash | 1);
        let filled = draft.filled.before(draft.age);
        // What is old when it comes may still be held for as long as anything else.
        let longest = self.engine.max_lifetime.saturating_add(draft.age);
        let mut ends = draft.lifetime.ends(filled, longest, chance);
        if let Some(longest) = draft.tiers.in_memory() {
            ends = ends.leaving(draft.filled, longest);
        }
        ends = ends.cut(if gathered.stale { draft.filled } else { gathered.until });
        let stamp = gathered.oldest.map_or(scope.stamp(), |oldest| oldest.older(scope.stamp()));
        let origins = EntryMetadata {
            hash,
            id,
            ends,
            stamp,
            marks: self.engine.registry.marks(stamp, &tags),
            tags,
            cost: draft.cost,
            tiers: draft.tiers,
        };
        Ok(Arc::new(Entry::new(draft.key, origins, value)))
    }

    /// Keeps an entry in the tiers. `false` when an invalidation overtook it.
    pub fn keep(&self, entry: &AnyEntry) -> bool {
        self.engine.keep(entry)
    }

    /// Drops this very entry from memory.
    pub fn remove(&self, entry: &AnyEntry) {
        self.engine.memory.remove(entry);
    }

    /// The counters of a named cache.
    pub fn meter(&self, name: &str) -> Arc<Meter> {
        self.engine.observer.meter(&self.own_name(name))
    }

    /// Counts with the meter of a named cache.
    #[inline]
    pub(crate) fn with_meter<R>(&self, name: &str, act: impl FnOnce(&Meter) -> R) -> R {
        self.engine.observer.with_meter(&self.own_name(name), act)
    }

    /// The name of a cache as this namespace sees it.
    #[inline]
    fn own_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match self.namespace.is_empty() {
            true => Cow::Borrowed(name),
            false => Cow::Owned(format!("{}/{name}", self.namespace)),
        }
    }

    /// Notes a setting that all layers of this larder have to agree on, as a layer is put around a service. Where an
    /// earlier layer noted another value, both are logged as a warning.
    pub fn note_setting(&self, name: impl Into<String>, value: &dyn Debug, layer: &'static str) {
        if let Some(warning) = self.engine.settings.note(name.into(), format!("{value:?}"), layer) {
            tracing::warn!(target: "larder", "{warning}");
        }
    }

    /// Nothing yet of the bytes that all running fills share.
    pub fn fill_bytes(&self) -> ReservedBytes {
        ReservedBytes::none(&self.engine.fill_bytes)
    }

    /// Leave to run one more refresh, unless as many as allowed run.
    pub fn refresh_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.engine.refreshes).try_acquire_owned().ok()
    }

    /// Runs a task that [`Larder::close`] waits for.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.engine.tasks.spawn(task)
    }

    fn records(&self, targets: Vec<crate::Target>, mode: crate::Mode) -> Vec<Record> {
        // Rules know nothing of namespaces: what they add belongs to that of the invalidation.
        let named = targets.into_iter().flat_map(crate::Target::selectors).collect();
        let all = expand(&self.engine.rules, named);
        let own: Vec<_> =
            all.into_iter().map(|selector| selector.within(&self.namespace)).collect();
        // A log carries out one record at a time, and whoever starts reads it whole.
        let parts = own.chunks(MOST_SELECTORS);
        parts.map(|what| Record { origin: self.engine.origin, mode, what: what.to_vec() }).collect()
    }

    /// What every entry carries beside the tags it was given: its kind, and its namespace.
    fn with_own_tags(&self, draft: &EntryDraft) -> Vec<Tag> {
        let kind = Tag::of_kind(draft.key.kind());
        let mut tags: Vec<Tag> = Vec::with_capacity(draft.tags.len() + 2);
        for tag in draft.tags.iter().map(|tag| tag.within(&self.namespace)) {
            // The name of a value may be among the tags that it was given.
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        if !self.namespace.is_empty() {
            tags.push(kind.within(&self.namespace));
        }
        // A namespace and all that it lies in.
        let ends = self.namespace.match_indices('/').map(|(at, _)| at);
        for end in ends.chain(std::iter::once(self.namespace.len()).filter(|end| *end > 0)) {
            tags.push(Tag::of_namespace(&self.namespace[..end]));
        }
        tags.push(kind);
        tags
    }

    /// A tag as this namespace sees it.
    pub(crate) fn own_tag(&self, tag: &Tag) -> Tag {
        tag.within(&self.namespace)
    }
}

/// How much one record of the log names at most.
const MOST_SELECTORS: usize = 5_000;
