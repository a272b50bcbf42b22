//! The handle that everything else holds.

use std::{
    borrow::Cow,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use crate::{
    budget::ReservedBytes,
    builder::LarderBuilder,
    bus::Record,
    clock::{Clock, Moment},
    engine::{Engine, EntryState},
    entry::{AnyEntry, Entry, EntryMetadata, Value},
    flight::{FlightRole, Leader, Patience},
    key::{IntoName, Key, KeyBuf, Kind, escaped},
    lifetime::Lifetime,
    object::{self, LoadError, Loading},
    observe::{LogStats, MemoryStats, Meter, Stats},
    policy::Policy,
    scope::{Scope, ScopeOwner, Scoped, StoreWaits},
    second_level::StoreLookup,
    tag::Tag,
    target::{Invalidated, Invalidation, expand},
    tiers::Tiers,
};

/// A cache: the tiers, the log of invalidations and the background work. Cheap to clone; a clone is the
/// same cache.
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use larder_core::{Larder, Policy};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let larder = Larder::builder().build().expect("the defaults are valid");
/// let policy = || Policy::ttl(Duration::from_secs(60)).tag(("user", 7));
/// let load = |_| async { Ok::<_, Infallible>("Ada".to_owned()) };
/// let name = larder.get_or_load(("user", 7), policy(), load).await.unwrap();
/// assert_eq!(*name, "Ada");
///
/// // From here on nothing that was read before is served.
/// let _ = larder.invalidate(("user", 7)).await;
/// let load = |_| async { Ok::<_, Infallible>("Countess of Lovelace".to_owned()) };
/// assert_eq!(*larder.get_or_load(("user", 7), policy(), load).await.unwrap(), "Countess of Lovelace");
/// # }
/// ```
#[doc(alias("cache", "L1", "L2", "cache manager"))]
#[derive(Clone, Debug)]
pub struct Larder {
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

impl Larder {
    /// Starts building a larder.
    pub fn builder() -> LarderBuilder {
        LarderBuilder::default()
    }

    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine: Arc::new(engine), namespace: "".into() }
    }

    /// The value of this name: from memory, from the shared store, from a fill that runs, or from `load`.
    ///
    /// Of all who ask at once, in this process, one loads. The loader runs in a task of its own: dropping
    /// this future does not stop it. A panic of the loader goes on here; an error is handed out as it is
    /// and never kept.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, and with the panic of the loader.
    #[doc(alias(
        "cache-aside",
        "lazy loading",
        "read-through",
        "object cache",
        "single flight",
        "stampede",
        "thundering herd",
        "dogpile",
        "get_or_insert_with",
        "memoize"
    ))]
    pub async fn get_or_load<T, E, F, Fut>(
        &self,
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
        self.get_or_fill(Kind::Object, name, policy, load).await
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

    /// Invalidates: when this returns, nothing that was read before is served in this process any more,
    /// not even by a fill that was under way. Call it after the write is committed.
    ///
    /// Costs the same for one entry and a million: one append to the log, one more for each 5,000 targets beyond
    /// the first 5,000. Once polled, dropping the future stops nothing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, where the log is shared with other processes.
    #[doc(alias("purge", "evict", "expire", "event invalidation", "tag invalidation"))]
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

    /// Invalidates everything, of this namespace if this is a view of one.
    ///
    /// Costs as little as invalidating a tag.
    #[doc(alias("flush", "remove_all"))]
    pub async fn clear(&self) -> Invalidated {
        self.invalidate(crate::Target::everything()).await
    }

    /// A view with keys and tags of its own, such as one for each tenant. A view of a view is below it.
    ///
    /// Any text names one, also an empty one: no name reaches another view, nor this larder itself.
    #[must_use]
    #[doc(alias("partition", "named cache", "region", "tenant"))]
    pub fn namespace(&self, name: &str) -> Self {
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

    /// Everything that is counted, as of now.
    #[doc(alias("metrics", "hit ratio"))]
    pub fn stats(&self) -> Stats {
        let engine = &self.engine;
        let (invalidations, invalidations_queued) = engine.observer.invalidations();
        let (invalidations_pending, invalidations_scheduled) = engine.registry.waiting();
        Stats {
            memory: MemoryStats {
                entries: engine.memory.entries(),
                bytes: engine.memory.bytes(),
                capacity_bytes: engine.memory.capacity(),
                evictions: engine.memory.evictions(),
            },
            shared: engine.shared.as_ref().map(|shared| shared.stats()).unwrap_or_default(),
            log: self.log(),
            invalidations,
            invalidations_queued,
            invalidations_pending,
            invalidations_scheduled,
            fills_running: engine.flights.running(),
            values_outside_scopes: engine.unscoped.count(),
            caches: engine.observer.stats(engine.clock.now()),
        }
    }

    /// How the log is doing: as in [`Stats::log`], without counting anything else.
    pub fn log(&self) -> LogStats {
        self.engine.log_stats()
    }

    /// How many invalidations wait for the log to take them.
    pub fn invalidations_pending(&self) -> usize {
        self.engine.registry.waiting().0
    }

    /// Takes the scope of the current request along into a task of its own.
    ///
    /// Inside a request larder knows for whom a value is loaded, and what a page is made of. A task that is
    /// spawned leaves that behind: its values would be everybody's, and the page would not have their tags. Such
    /// calls are counted ([`Stats::values_outside_scopes`]) and warned of once. A task that has nothing to
    /// do with a request says so in the same way, where it is begun outside of any: then it has a scope of its
    /// own, and what it reads is as old as that.
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Larder;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let larder = Larder::builder().build().expect("the defaults are valid");
    /// let own = larder.clone();
    /// let task = larder.scoped(async move {
    ///     let load = |_| async { Ok::<_, Infallible>(7) };
    ///     own.get_or_load("answer", Duration::from_secs(60), load).await
    /// });
    /// assert_eq!(*tokio::spawn(task).await.unwrap().unwrap(), 7);
    /// # }
    /// ```
    pub fn scoped<F: Future>(&self, future: F) -> Scoped<F> {
        self.current_or_new_scope().scoped(future)
    }

    /// Waits until this process has a view of the log; at once for a log of this process alone.
    ///
    /// For start-up and tests: until then larder serves from memory only.
    pub async fn synced(&self) {
        self.tick();
        let mut synced = self.engine.synced.subscribe();
        // The engine holds the sender for as long as this handle lives.
        drop(synced.wait_for(|synced| *synced).await);
    }

    /// How long ago it was proved that this process has seen every invalidation; zero when the log is its
    /// own.
    pub fn lag(&self) -> Duration {
        self.engine.lag()
    }

    /// Waits for what runs in the background, invalidations that wait for the log first, for at most
    /// `deadline`. `false` when something was still under way then.
    ///
    /// What is scheduled for later is not waited for. A shared log keeps what it has taken
    /// ([`Invalidated::Scheduled`]); without one it is lost when the process ends.
    ///
    /// Afterwards the larder goes on to answer; whoever closes it stops using it.
    pub async fn close(&self, deadline: Duration) -> bool {
        self.engine.send_unsent();
        self.engine.tasks.close();
        let drained = tokio::time::timeout(deadline, self.engine.tasks.wait()).await.is_ok();
        self.engine.tasks.reopen();
        drained && self.engine.registry.waiting().0 == 0
    }
}

impl Larder {
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn downgraded(&self) -> Weak<Engine> {
        Arc::downgrade(&self.engine)
    }
}

/// What layers are built from. An application has no need of it.
impl Larder {
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
    fn current_or_new_scope(&self) -> Scope {
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
        let stamp = crate::Stamp { local, log: None };
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
