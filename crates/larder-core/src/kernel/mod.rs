//! The engine as layers and other kinds of caches use it.
//!
//! Everything in this module is for authors of layers: an application needs none of it, and the facade does not
//! show it.

use std::{
    borrow::Cow,
    fmt::Debug,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use crate::{
    bus::Record,
    engine::Engine,
    entry::EntryMetadata,
    flight::Patience,
    key::{Key, Kind, escaped},
    lifetime::Lifetime,
    metrics::LogStats,
    reason::Reason,
    scope::{ScopeOwner, StoreWaits},
    tag::Tag,
    target::{Invalidated, Invalidation, expand},
    tiers::Tiers,
};

pub use self::fill_loop::{FillRequest, fill_or_wait};
pub use crate::{
    audience::Audience,
    budget::ReservedBytes,
    clock::{Clock, Moment, jittered},
    engine::EntryState,
    entry::{AnyEntry, Encoded, Entry, Value},
    flight::{FlightResult, FlightRole, Leader, Progress, Waiter},
    key::{FOR_MANY, KeyBuf, KeyTooLongError, MAX_KEY_BYTES},
    lifetime::{Ends, Phase},
    metrics::{Event, Meter},
    registry::{Stamp, Verdict},
    schema::Schema,
    scope::{PartTraits, Scope, ScopeContents, ScopeGuard},
    second_level::StoreLookup,
};

mod catch_up;
pub(crate) mod fill_loop;

/// The engine of a [`Larder`](crate::Larder), within its namespace. Cheap to clone; a clone is the same engine.
#[derive(Clone, Debug)]
pub struct Kernel {
    engine: Arc<Engine>,
    namespace: Arc<str>,
}

/// The parts of an entry that its fill decides, before the contents of its scope are added.
#[derive(Debug)]
pub struct EntryDraft {
    /// Its key.
    pub key: Key,
    /// Its own tags, the most important first.
    pub tags: Vec<Tag>,
    /// Its lifetime.
    pub lifetime: Lifetime,
    /// Its age when it was filled.
    pub age: Duration,
    /// When it was filled.
    pub filled: Moment,
    /// How long the fill took.
    pub cost: Duration,
    /// Its level placement.
    pub tiers: Tiers,
}

impl Kernel {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine: Arc::new(engine), namespace: "".into() }
    }

    /// Invalidates targets: see [`Larder::invalidate`](crate::Larder::invalidate).
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
                // All start at the first poll, and then continue by themselves.
                let outcomes = join_all(several.into_iter().map(act)).await;
                outcomes.into_iter().reduce(Invalidated::worse).unwrap_or(Invalidated::Logged)
            }
        }
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn namespaced(&self, name: &str) -> Self {
        let own = match name {
            // No other name is written as `%` alone.
            "" => "%".to_owned(),
            name => escaped(name, |letter| letter == '/' || letter.is_control()),
        };
        let namespace = match &*self.namespace {
            "" => own.into(),
            above => format!("{above}/{own}").into(),
        };
        Self { engine: Arc::clone(&self.engine), namespace }
    }

    /// The state of the log, as in [`Stats::log`](crate::Stats::log), without reading other counters.
    pub fn log(&self) -> LogStats {
        self.engine.log_stats()
    }

    /// The number of invalidations that are not in the log yet.
    pub fn invalidations_pending(&self) -> usize {
        self.engine.registry.waiting().0
    }

    pub(crate) fn downgraded(&self) -> Weak<Engine> {
        Arc::downgrade(&self.engine)
    }

    /// Applies all invalidations that are due, and returns the current moment. Each request calls this before it
    /// looks an entry up.
    #[inline]
    pub fn tick(&self) -> Moment {
        self.engine.tick()
    }

    /// The current moment.
    pub fn now(&self) -> Moment {
        self.engine.clock.now()
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.engine.clock
    }

    /// The number of the newest invalidation in this process; a request notes it on arrival.
    pub fn sequence(&self) -> u64 {
        self.engine.registry.sequence()
    }

    /// Starts a key in this namespace and version.
    pub fn key(&self, kind: Kind, policy: &str) -> KeyBuf {
        KeyBuf::new(kind, &self.namespace, &self.engine.version, policy)
    }

    /// The version of the application, as given to the builder.
    pub fn version(&self) -> &str {
        &self.engine.version
    }

    /// The hash of a key in the first level.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.engine.memory.hash(key)
    }

    /// Reads an entry of the first level under a lock. A `Some` from `read` counts as a hit for the eviction
    /// policy; `read` must not access the first level of this larder again.
    #[inline]
    pub fn read<R>(
        &self,
        hash: u64,
        key: &[u8],
        read: impl FnOnce(&AnyEntry) -> Option<R>,
    ) -> Option<R> {
        self.engine.memory.read(hash, key, read)
    }

    /// The entry of a key in the first level, valid or not.
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<AnyEntry> {
        self.engine.memory.get(hash, key)
    }

    /// As [`Kernel::get`], for a key whose hash is not at hand.
    pub fn find(&self, key: &[u8]) -> Option<AnyEntry> {
        self.get(self.hash(key), key)
    }

    /// Counts a hit that was served from an entry of [`Kernel::get`].
    pub fn note_hit(&self, entry: &AnyEntry) {
        self.engine.memory.note_hit(entry);
    }

    /// Counts a miss of a key in the first level; once for each request.
    pub fn note_miss(&self, hash: u64) {
        self.engine.memory.note_miss(hash);
    }

    /// Reads the entry of a key from the second level, if it is fresh and valid there, and promotes it to the first
    /// level if its placement includes that. The request of `scope` waits for a store that does not answer no
    /// longer than [`LarderBuilder::store_wait_limit`](crate::LarderBuilder::store_wait_limit), all of its reads
    /// together.
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

    /// Whether there is a second level.
    pub fn has_store(&self) -> bool {
        self.engine.shared.is_some()
    }

    /// Whether entries of this placement reach a second level.
    pub fn shares(&self, tiers: Tiers) -> bool {
        let shared = self.engine.shared.as_ref();
        shared.is_some_and(|shared| tiers.in_shared(shared.seals()).is_some())
    }

    /// Whether entries in the second level are sealed.
    pub fn seals(&self) -> bool {
        self.engine.shared.as_ref().is_some_and(|shared| shared.seals())
    }

    /// The state of an entry, by the log and by time.
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

    /// The scope for the load of a value. If layers open scopes and this call has none, it is counted: most likely
    /// a handler spawned a task that left its scope behind.
    pub(crate) fn scope_of_value(&self) -> (Scope, ScopeOwner) {
        match Scope::current(self.engine.origin) {
            Some(scope) => (scope, ScopeOwner::Enclosing),
            None => {
                self.engine.unscoped.note_value();
                // A hit does not wait for a store; after a miss the wait limit is added.
                (self.bare_scope(), ScopeOwner::ThisCall)
            }
        }
    }

    /// The current scope, if there is one.
    pub fn current_scope(&self) -> Option<Scope> {
        Scope::current(self.engine.origin)
    }

    /// Whether no entry may be served in the current scope, since this process may have missed invalidations.
    #[inline]
    pub fn is_distrusted(&self) -> bool {
        Scope::is_distrusted(self.engine.origin)
    }

    /// Opens a scope with a new stamp, for values that are read from now on.
    pub fn open_scope(&self) -> Scope {
        self.counting_waits(self.bare_scope())
    }

    fn bare_scope(&self) -> Scope {
        Scope::open(self.engine.origin, self.engine.registry.stamp())
    }

    /// Adds to a scope the limit of its waits for the second level, if there is one.
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

    /// A scope for the response to a write of this process. `None` if anything else was invalidated since number
    /// `since`: the write itself accounts for `own` numbers.
    ///
    /// Entries stored under it stay in this process: other processes know of the write by its invalidation only.
    pub fn scope_after_own(&self, since: u64, own: u64) -> Option<Scope> {
        let local = since + own;
        let stamp = Stamp { local, log: None };
        (self.sequence() == local).then(|| Scope::open(self.engine.origin, stamp))
    }

    /// Joins the fill of a key, or leads one. After `wait`, one of the waiters leads another fill beside it.
    pub fn join(
        &self,
        key: (u64, &Key),
        scope: &Scope,
        arrived: u64,
        wait: Duration,
    ) -> FlightRole {
        let engine = &self.engine;
        let trusted = engine.bus.is_shared().then_some(engine.max_lag);
        let patience = Patience { wait, trusted };
        engine.flights.join(key, scope, arrived, engine.clock.now(), patience)
    }

    /// Leads a fill that no request joins, for a result that cannot be shared.
    pub fn lead_alone(&self, key: &Key, scope: &Scope) -> Leader {
        self.engine.flights.alone(key, scope, self.engine.clock.now())
    }

    /// Builds an entry from a value and the contents of its scope.
    ///
    /// # Errors
    ///
    /// The reason that the value is not storable, such as `too-many-tags`.
    pub fn entry<V: Value>(
        &self,
        draft: EntryDraft,
        scope: &Scope,
        value: V,
    ) -> Result<AnyEntry, Reason> {
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
            return Err(Reason::TooManyTags);
        }
        let hash = self.hash(draft.key.as_bytes());
        let id = self.engine.memory.next_id();
        let chance = id.wrapping_mul(hash | 1);
        let filled = draft.filled.before(draft.age);
        // A value that was old when it arrived may still be stored for the whole `max_lifetime`.
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

    /// Stores an entry in its levels. Returns `false` if it was invalidated meanwhile.
    pub fn store(&self, entry: &AnyEntry) -> bool {
        self.engine.store(entry)
    }

    /// Drops this very entry from the first level.
    pub fn remove(&self, entry: &AnyEntry) {
        self.engine.memory.remove(entry);
    }

    /// The counters of a named cache.
    pub fn meter(&self, name: &str) -> Arc<Meter> {
        self.engine.observer.meter(&self.own_name(name))
    }

    /// Passes the counters of a named cache to `act`.
    #[inline]
    pub(crate) fn with_meter<R>(&self, name: &str, act: impl FnOnce(&Meter) -> R) -> R {
        self.engine.observer.with_meter(&self.own_name(name), act)
    }

    /// The name of a cache, within this namespace.
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

    /// An empty reservation of the bytes that all running fills share.
    pub fn fill_bytes(&self) -> ReservedBytes {
        ReservedBytes::none(&self.engine.fill_bytes)
    }

    /// A permit to run one more refresh; `None` if as many as allowed are running.
    pub fn refresh_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.engine.refreshes).try_acquire_owned().ok()
    }

    /// Runs a task that [`Larder::close`](crate::Larder::close) waits for.
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
        // Rules apply before the namespace: the tags that they add get the namespace of the invalidation.
        let named = targets.into_iter().flat_map(crate::Target::selectors).collect();
        let all = expand(&self.engine.rules, named);
        let own: Vec<_> =
            all.into_iter().map(|selector| selector.within(&self.namespace)).collect();
        // The log appends one record at a time, and a process that starts reads each one whole.
        let parts = own.chunks(MOST_SELECTORS);
        parts.map(|what| Record { origin: self.engine.origin, mode, what: what.to_vec() }).collect()
    }

    /// The tags of an entry: those of its draft, its kind and its namespaces.
    fn with_own_tags(&self, draft: &EntryDraft) -> Vec<Tag> {
        let kind = Tag::of_kind(draft.key.kind());
        let mut tags: Vec<Tag> = Vec::with_capacity(draft.tags.len() + 2);
        for tag in draft.tags.iter().map(|tag| tag.within(&self.namespace)) {
            // The tags of a draft may repeat the name of the value.
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        if !self.namespace.is_empty() {
            tags.push(kind.within(&self.namespace));
        }
        // The namespace and those that enclose it.
        let ends = self.namespace.match_indices('/').map(|(at, _)| at);
        for end in ends.chain(std::iter::once(self.namespace.len()).filter(|end| *end > 0)) {
            tags.push(Tag::of_namespace(&self.namespace[..end]));
        }
        tags.push(kind);
        tags
    }

    /// A tag, within this namespace.
    pub(crate) fn own_tag(&self, tag: &Tag) -> Tag {
        tag.within(&self.namespace)
    }
}

/// The most targets in one record of the log.
const MOST_SELECTORS: usize = 5_000;
