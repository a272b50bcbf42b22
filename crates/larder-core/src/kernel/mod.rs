//! The engine as layers and other kinds of caches use it.
//!
//! Everything in this module is for authors of layers. Applications do not need it, and the facade does not show it.

use std::{
    any::Any,
    borrow::Cow,
    collections::HashMap,
    fmt::Debug,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::{
    background,
    bus::{CommitId, Record},
    engine::{Engine, LoggedRecord},
    entry::{EntryMetadata, IdleTime},
    flight::Patience,
    key::{Key, Kind, escaped},
    lifetime::Lifetime,
    metrics::LogStats,
    provenance::Provenance,
    reason::Reason,
    record_note::RecordNote,
    scope::{ScopeOwner, StoreWaits},
    spans,
    tag::Tag,
    target::{Invalidated, Invalidation, Selector},
    tiers::Tiers,
};

pub use self::fill_loop::{FillRequest, fill_or_wait};
#[cfg(feature = "metrics")]
pub use crate::metrics::{Instrument, METRICS, Metric};
pub use crate::{
    advice::{KeyReport, KeyTraffic},
    audience::Audience,
    budget::ReservedBytes,
    clock::{Clock, Moment, jittered, random_share},
    engine::EntryState,
    entry::{AnyEntry, EncodedValue, Entry, Value},
    explain::{
        EntryExplanation, Explained, ForecastStep, KeyExplanation, KeyPart, LevelExplanation,
        Partitions, TagExplanation,
    },
    flight::{FlightResult, FlightRole, Leader, Progress, Waiter},
    inspect::{Preview, Scan},
    invalidation_history::{PastInvalidation, PastTarget},
    key::{FOR_MANY, KeyBuf, KeyTooLongError, MAX_KEY_BYTES},
    lifetime::{Ends, Phase},
    metrics::{Comparison, Event, Meter, RefusedResponse, Route, RouteId, ServedEntry},
    provenance::{LifetimeCut, LifetimeSource, SourcedTags, TagSource},
    refresh::RefreshPermit,
    refresh_ahead::RefreshAhead,
    registry::{Stamp, Verdict},
    reports::QueueReport,
    schema::Schema,
    scope::{PartTraits, Scope, ScopeContents, ScopeGuard},
    second_level::StoreLookup,
    spans::note_route_in_span,
};

mod catch_up;
mod events;
pub(crate) mod fill_loop;

/// The engine of a [`Larder`](crate::Larder), within its namespace. It is cheap to clone, and a clone is the same
/// engine.
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
    pub tags: SourcedTags,
    /// Its lifetime.
    pub lifetime: Lifetime,
    /// Where its lifetime came from.
    pub lifetime_source: LifetimeSource,
    /// Its age when it was filled.
    pub age: Duration,
    /// When it was filled.
    pub filled: Moment,
    /// How long the fill took.
    pub cost: Duration,
    /// Its level placement.
    pub tiers: Tiers,
    /// The time without a read after which it ends, if its lifetime slides.
    pub idle: Option<Duration>,
}

impl Kernel {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine: Arc::new(engine), namespace: "".into() }
    }

    /// Invalidates targets, as [`Larder::invalidate`](crate::Larder::invalidate) does.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    pub async fn invalidate(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        self.invalidate_of(None, invalidation.into()).await
    }

    /// Invalidates the targets that a transaction has changed, after its commit, so that a follower of the outbox does not
    /// invalidate them again ([`Kernel::is_covered`]).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    pub async fn invalidate_commit(
        &self,
        commit: CommitId,
        targets: Vec<crate::Target>,
    ) -> Invalidated {
        self.invalidate_of(Some(commit), Invalidation::of(targets)).await
    }

    /// Waits until the log has a record of this transaction, for at most `wait`. Returns `false` on a timeout.
    pub async fn has_commit(&self, commit: CommitId, wait: Duration) -> bool {
        let engine = self.engine();
        let known = async {
            loop {
                // It subscribes before the check, so that it does not miss a notification in between.
                let advanced = engine.advanced.notified();
                if engine.registry.knows_commit(commit) {
                    return;
                }
                advanced.await;
            }
        };
        tokio::time::timeout(wait, known).await.is_ok()
    }

    /// Returns whether the records of this transaction in the log reach everything that the target reaches.
    pub fn is_covered(&self, commit: CommitId, target: &crate::Target) -> bool {
        let what = target.clone().selectors().into_iter();
        let what: Vec<_> = what.map(|selector| selector.within(&self.namespace)).collect();
        self.engine().registry.covers(commit, &what)
    }

    async fn invalidate_of(
        &self,
        commit: Option<CommitId>,
        invalidation: Invalidation,
    ) -> Invalidated {
        if self.is_in_shadow() {
            return Invalidated::Logged;
        }
        let now = self.tick();
        let note = RecordNote::new(invalidation.because.as_deref(), invalidation.by.as_deref());
        let mut records = self.records(invalidation.targets, invalidation.mode);
        for record in &mut records {
            (record.commit, record.note) = (commit, note.clone());
        }
        let due = (!invalidation.after.is_zero()).then(|| now.after(invalidation.after));
        // An invalidation inside of a write belongs to the write.
        let write = self.current_scope().and_then(|scope| scope.write());
        let act = |record: Record| {
            let write = write.clone();
            async move {
                match due {
                    None => match (self.engine.invalidate_at(record).await, write) {
                        (Some(logged), Some(write)) => {
                            write.add(logged.own());
                            Invalidated::Logged
                        }
                        (Some(_), None) => Invalidated::Logged,
                        (None, _) => Invalidated::Queued,
                    },
                    Some(due) => self.engine.schedule(due, record).await,
                }
            }
        };
        match <[Record; 1]>::try_from(records) {
            Ok([record]) => act(record).await,
            Err(several) => {
                // All invalidations start at the first poll, and then continue even if this future is dropped.
                let outcomes = join_all(several.into_iter().map(act)).await;
                outcomes.into_iter().reduce(Invalidated::worse).unwrap_or(Invalidated::Logged)
            }
        }
    }

    /// Invalidates targets now and hard, without a wait.
    pub(crate) fn invalidate_in_background(&self, targets: Vec<crate::Target>) {
        if self.is_in_shadow() {
            return;
        }
        self.tick();
        for record in self.records(targets, crate::Mode::Hard) {
            self.engine.invalidate_in_background(record);
        }
    }

    /// Invalidates targets now and hard, and returns where the log has the only record of them. `None` if the
    /// invalidation is queued or took several records.
    pub(crate) async fn invalidate_write(
        &self,
        targets: Vec<crate::Target>,
    ) -> (Invalidated, Option<LoggedRecord>) {
        if self.is_in_shadow() {
            return (Invalidated::Logged, None);
        }
        self.tick();
        match <[Record; 1]>::try_from(self.records(targets, crate::Mode::Hard)) {
            Ok([record]) => match self.engine.invalidate_at(record).await {
                Some(logged) => (Invalidated::Logged, Some(logged).filter(|it| !it.collapsed)),
                None => (Invalidated::Queued, None),
            },
            Err(several) => {
                let all = several.into_iter().map(|record| self.engine.invalidate(record));
                let outcomes = join_all(all).await;
                let worst = outcomes.into_iter().reduce(Invalidated::worse);
                (worst.unwrap_or(Invalidated::Logged), None)
            }
        }
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Whether the current scope only renders what is compared and thrown away, so that nothing in it may have an effect.
    pub fn is_in_shadow(&self) -> bool {
        Scope::is_in_shadow(self.engine.origin)
    }

    /// Returns the time within which this process applies the invalidations of others.
    pub fn max_lag(&self) -> Duration {
        self.engine.max_lag
    }

    /// Returns the namespace of this view, if it is a view of one.
    pub fn namespace(&self) -> Option<&str> {
        Some(&*self.namespace).filter(|namespace| !namespace.is_empty())
    }

    pub(crate) fn namespaced(&self, name: &str) -> Self {
        let own = match name {
            // Only the empty name is escaped to a lone `%`.
            "" => "%".to_owned(),
            name => escaped(name, |letter| letter == '/' || letter.is_control()),
        };
        let namespace = match &*self.namespace {
            "" => own.into(),
            above => format!("{above}/{own}").into(),
        };
        Self { engine: Arc::clone(&self.engine), namespace }
    }

    /// Returns the state of the log, as in [`Stats::log`](crate::Stats::log), without reading other counters.
    pub fn log(&self) -> LogStats {
        self.engine.log_stats()
    }

    /// Returns the number of invalidations that are not in the log yet.
    pub fn invalidations_pending(&self) -> usize {
        self.engine.registry.waiting().0
    }

    pub(crate) fn downgraded(&self) -> Weak<Engine> {
        Arc::downgrade(&self.engine)
    }

    /// Applies all invalidations that are due, starts the background tasks that do not run, and returns the current
    /// moment. Each request calls this before it looks an entry up.
    #[inline]
    pub fn tick(&self) -> Moment {
        if !self.engine.running.all_run() {
            background::start(&self.engine);
        }
        self.engine.tick()
    }

    /// Returns the current moment.
    pub fn now(&self) -> Moment {
        self.engine.clock.now()
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Clock {
        &self.engine.clock
    }

    /// Returns the number of the newest invalidation in this process. A request notes it on arrival.
    pub fn sequence(&self) -> u64 {
        self.engine.registry.sequence()
    }

    /// Starts a key in this namespace and version.
    pub fn key(&self, kind: Kind, policy: &str) -> KeyBuf {
        KeyBuf::new(kind, &self.namespace, &self.engine.version, policy)
    }

    /// Returns the version of the application, as given to the builder.
    pub fn version(&self) -> &str {
        &self.engine.version
    }

    /// The longest lifetime of an entry, as given to the builder.
    pub(crate) fn max_lifetime(&self) -> Duration {
        self.engine.max_lifetime
    }

    /// Returns the hash of a key in the first level.
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

    /// Returns the entry of a key in the first level, without checking whether it is valid or fresh.
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<AnyEntry> {
        self.engine.memory.get(hash, key)
    }

    /// Returns the entry of a key as [`Kernel::get`] does, but computes the hash of the key itself.
    pub fn find(&self, key: &[u8]) -> Option<AnyEntry> {
        self.get(self.hash(key), key)
    }

    /// Counts a hit that was served from an entry that [`Kernel::get`] returned.
    pub fn note_hit(&self, entry: &AnyEntry) {
        self.engine.memory.note_hit(entry);
    }

    /// Counts a miss of a key in the first level. Callers must call this once for each request.
    pub fn note_miss(&self, hash: u64) {
        self.engine.memory.note_miss(hash);
    }

    /// Reads the entry of a key from the second level, if it is fresh and valid there, and promotes it to the first
    /// level if its placement includes that. An entry that may only be served stale is promoted as such and not returned;
    /// [`Kernel::get`] finds it. If the store does not answer, all reads of the request of `scope` together
    /// wait no longer than [`LarderBuilder::store_wait_limit`](crate::LarderBuilder::store_wait_limit).
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

    /// Reads the entries of several keys from the second level in one round trip, as [`Kernel::fetch`] does for one key.
    /// The results are in the order of `wanted`.
    pub async fn fetch_many<V: Value>(
        &self,
        scope: &Scope,
        wanted: &[StoreLookup<'_>],
        decode: impl Fn(Bytes) -> Option<V>,
    ) -> Vec<Option<AnyEntry>> {
        match &self.engine.shared {
            Some(shared) => shared.fetch_many(&self.engine, scope, wanted, decode).await,
            None => vec![None; wanted.len()],
        }
    }

    /// Returns the value of this type that belongs to this larder, and is the same for all of its layers and namespaces.
    pub fn state<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        self.engine.states.of()
    }

    /// Returns whether there is a second level.
    pub fn has_store(&self) -> bool {
        self.engine.shared.is_some()
    }

    /// Returns whether entries of this placement are stored in a second level.
    pub fn shares(&self, tiers: Tiers) -> bool {
        let shared = self.engine.shared.as_ref();
        shared.is_some_and(|shared| tiers.in_shared(shared.seals()).is_some())
    }

    /// Returns whether entries in the second level are sealed.
    pub fn seals(&self) -> bool {
        self.engine.shared.as_ref().is_some_and(|shared| shared.seals())
    }

    /// Returns the state of an entry, according to the log and its lifetime.
    #[inline]
    pub fn entry_state(&self, entry: &AnyEntry, now: Moment) -> EntryState {
        self.engine.entry_state(entry, now)
    }

    /// Returns the current scope, or a new scope for the request of a layer.
    #[inline]
    pub fn scope(&self) -> Scope {
        self.engine.unscoped.note_layer();
        self.current_or_new_scope()
    }

    #[inline]
    pub(crate) fn current_or_new_scope(&self) -> Scope {
        Scope::current(self.engine.origin).unwrap_or_else(|| self.open_scope())
    }

    /// Returns the scope for the load of a value. If layers open scopes and this call has none, larder counts it,
    /// because most likely a handler spawned a task without its scope.
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

    /// Returns the current scope, if there is one.
    pub fn current_scope(&self) -> Option<Scope> {
        Scope::current(self.engine.origin)
    }

    /// Returns whether entries must not be served in the current scope, because this process may have missed
    /// invalidations.
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

    /// Adds the limit on waits for the second level to a scope, if there is a second level.
    pub(crate) fn counting_waits(&self, scope: Scope) -> Scope {
        match &self.engine.shared {
            Some(shared) => scope.waiting(StoreWaits::new(shared.wait_limit())),
            None => scope,
        }
    }

    /// Returns whether both are handles of the same larder.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.engine, &other.engine)
    }

    /// Creates a scope for the response to a write of this process. The write itself takes `own` invalidation numbers.
    /// `None` if anything else was invalidated since number `since`.
    ///
    /// Entries that are stored under it stay in this process, because other processes know of the write only by its
    /// invalidation.
    pub fn scope_after_own(&self, since: u64, own: u64) -> Option<Scope> {
        let local = since + own;
        let stamp = Stamp { local, log: None };
        (self.sequence() == local).then(|| Scope::open(self.engine.origin, stamp))
    }

    /// Joins the fill of a key, or leads a fill. Once that fill is older than `wait`, one of its waiters leads another
    /// fill in parallel.
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
        self.entry_under(draft, scope, |_, _, stamp| Ok(stamp), value)
    }

    /// Builds an entry as [`entry`](Self::entry) does, under the stamp that `restamp` returns for its key, its tags and
    /// the stamp of its scope and parts.
    pub(crate) fn entry_under<V: Value>(
        &self,
        draft: EntryDraft,
        scope: &Scope,
        restamp: impl FnOnce(&Key, &[Tag], Stamp) -> Result<Stamp, Reason>,
        value: V,
    ) -> Result<AnyEntry, Reason> {
        let gathered = scope.gathered();
        if let Some(why) = gathered.no_store {
            return Err(why);
        }
        let mut tags = self.with_own_tags(&draft);
        tags.extend(gathered.tags);
        if tags.len() > self.engine.max_tags {
            return Err(Reason::TooManyTags);
        }
        let hash = self.hash(draft.key.as_bytes());
        let id = self.engine.memory.next_id();
        let chance = id.wrapping_mul(hash | 1);
        let filled = draft.filled.before(draft.age);
        // The age that a value had on arrival does not count against `max_lifetime`.
        let longest = self.engine.max_lifetime.saturating_add(draft.age);
        let mut ends = draft.lifetime.ends(filled, longest, chance);
        let mut cut = match draft.lifetime.fresh() > longest {
            true => LifetimeCut::MaxLifetime,
            false => LifetimeCut::None,
        };
        if let Some(expiry) = draft.lifetime.expiry() {
            let expiry = self.engine.clock.moment(expiry);
            if expiry < ends.fresh_until() {
                cut = LifetimeCut::Expiry;
            }
            ends = ends.cut(expiry);
        }
        if let Some(longest) = draft.tiers.in_memory() {
            ends = ends.leaving(draft.filled, longest);
        }
        if gathered.stale {
            cut = LifetimeCut::StalePart;
        } else if gathered.until < ends.fresh_until() {
            cut = LifetimeCut::Part;
        }
        ends = ends.cut(if gathered.stale { draft.filled } else { gathered.until });
        let (tags, sources) = tags.into_parts();
        let stamp = gathered.oldest.map_or(scope.stamp(), |oldest| oldest.older(scope.stamp()));
        let stamp = restamp(&draft.key, &tags, stamp)?;
        let origins = EntryMetadata {
            hash,
            id,
            ends,
            stamp,
            marks: self.engine.registry.marks(stamp, &tags),
            tags,
            provenance: Provenance {
                tags: sources.into_boxed_slice(),
                lifetime: draft.lifetime_source,
                cut,
                queries: gathered.queries,
            },
            cost: draft.cost,
            tiers: if scope.is_shadow() { Tiers::NONE } else { draft.tiers },
            idle: draft.idle.map(|after| IdleTime { after, read: self.now() }),
            extended: None,
        };
        Ok(Arc::new(Entry::new(draft.key, origins, value)))
    }

    /// Stores an entry in its levels. Returns `false` if it was invalidated in the meantime.
    pub fn store(&self, entry: &AnyEntry) -> bool {
        self.engine.store(entry)
    }

    /// Notes a read of an entry whose lifetime slides, also in the second level, there at most once a minute.
    pub(crate) fn slide(&self, entry: &AnyEntry) {
        if entry.idle().is_none() {
            return;
        }
        let now = self.now();
        entry.slide(now);
        self.extend(entry, now, false);
    }

    /// Writes the ends of an entry to the second level, at most once a minute unless they are `urgent`: an earlier end
    /// must reach the entry there.
    pub(crate) fn extend(&self, entry: &AnyEntry, now: Moment, urgent: bool) {
        if let Some(shared) = &self.engine.shared
            && entry.schema().is_some()
            && entry.tiers().in_shared(shared.seals()).is_some()
            && (entry.is_to_extend(now) || urgent)
        {
            shared.extend(&self.engine, entry);
        }
    }

    /// Returns an entry with the same key, tags, stamp and value as `entry`, and with other ends.
    pub(crate) fn with_ends<V: Value>(&self, entry: &AnyEntry, ends: Ends, value: V) -> AnyEntry {
        let (stamp, tags) = (entry.stamp(), entry.tags().to_vec());
        let metadata = EntryMetadata {
            hash: entry.hash,
            id: self.engine.memory.next_id(),
            ends,
            stamp,
            marks: self.engine.registry.marks(stamp, &tags),
            tags,
            provenance: entry.provenance().clone(),
            cost: entry.cost(),
            tiers: entry.tiers(),
            idle: entry.idle(),
            extended: Some(entry.extended()),
        };
        Arc::new(Entry::new(entry.key().clone(), metadata, value))
    }

    /// Removes exactly this entry from the first level.
    pub fn remove(&self, entry: &AnyEntry) {
        self.engine.memory.remove(entry);
    }

    /// Returns the route of a router's template.
    pub fn route(&self, template: &str) -> Route {
        self.engine.observer.routes.route(template)
    }

    /// Asks the servers of the second level how much they store, for [`Stats`](crate::Stats).
    pub async fn ask_for_usage(&self) {
        self.engine.reports.ask_for_usage().await;
    }

    /// Lets a write-behind queue report its state in [`Stats`](crate::Stats), as long as it exists.
    pub fn add_queue_report(&self, queue: Weak<dyn QueueReport>) {
        self.engine.reports.add_queue(queue);
    }

    /// Returns the counters of a named cache.
    pub fn meter(&self, name: &str) -> Arc<Meter> {
        self.engine.observer.meter(&self.own_name(name))
    }

    /// Returns the URLs of the responses in the first level that have the most hits, the hottest first, with these hits.
    /// Responses of a partition are not among them. This reads all entries of the first level.
    pub fn hottest_urls(&self, most: usize) -> Vec<(String, u64)> {
        let mut hits: HashMap<String, u64> = HashMap::new();
        for (url, touches) in self.engine.memory.public_urls(&self.namespace) {
            *hits.entry(url).or_default() += touches;
        }
        let mut urls: Vec<_> = hits.into_iter().collect();
        urls.sort_by(|(a, more), (b, less)| less.cmp(more).then_with(|| a.cmp(b)));
        urls.truncate(most);
        urls
    }

    /// Passes the counters of a named cache to `act`.
    #[inline]
    pub(crate) fn with_meter<R>(&self, name: &str, act: impl FnOnce(&Meter) -> R) -> R {
        self.engine.observer.with_meter(&self.own_name(name), act)
    }

    /// Returns the name of a cache, within this namespace.
    #[inline]
    fn own_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match self.namespace.is_empty() {
            true => Cow::Borrowed(name),
            false => Cow::Owned(format!("{}/{name}", self.namespace)),
        }
    }

    /// Notes a setting that all layers of this larder have to agree on, when a layer is put around a service. If an
    /// earlier layer noted a different value, larder logs a warning with both values.
    pub fn note_setting(&self, name: impl Into<String>, value: &dyn Debug, layer: &'static str) {
        if let Some(warning) = self.engine.settings.note(name.into(), format!("{value:?}"), layer) {
            tracing::warn!(target: "larder", "{warning}");
        }
    }

    /// Creates an empty reservation of the bytes that all running fills share.
    pub fn fill_bytes(&self) -> ReservedBytes {
        ReservedBytes::none(&self.engine.fill_bytes)
    }

    /// Returns a permit to refresh an entry in the background.
    ///
    /// # Errors
    ///
    /// The reason if it must not be refreshed now: the refresh budget is used up, or its last refresh failed a moment
    /// ago.
    pub fn refresh_permit(&self, entry: &AnyEntry) -> Result<RefreshPermit, Reason> {
        self.engine.refreshes.permit(&self.engine, entry, self.now())
    }

    /// Runs a fill or a refresh in a task that [`Larder::close`](crate::Larder::close) waits for, in a span of its own.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn_fill<F>(&self, cache: &str, is_refresh: bool, fill: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn(fill.instrument(spans::fill(&self.own_name(cache), is_refresh)))
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

    /// Returns the selectors of targets in this namespace, with those that rules add.
    pub(crate) fn selectors(&self, targets: Vec<crate::Target>) -> Vec<Selector> {
        self.engine.rules.selectors(targets, &self.namespace)
    }

    fn records(&self, targets: Vec<crate::Target>, mode: crate::Mode) -> Vec<Record> {
        Record::of(&self.selectors(targets), mode, self.engine.origin)
    }

    /// Returns the tags of an entry: the tags of its draft, its kind and its namespaces.
    fn with_own_tags(&self, draft: &EntryDraft) -> SourcedTags {
        let kind = Tag::of_kind(draft.key.kind());
        // The tags of a draft may repeat the name of the value.
        let mut tags = SourcedTags::default();
        tags.extend(draft.tags.iter().map(|(tag, source)| (tag.within(&self.namespace), source)));
        if !self.namespace.is_empty() {
            tags.add(kind.within(&self.namespace), TagSource::Larder);
        }
        // These are the namespace and the namespaces that enclose it.
        let ends = self.namespace.match_indices('/').map(|(at, _)| at);
        for end in ends.chain(std::iter::once(self.namespace.len()).filter(|end| *end > 0)) {
            tags.add(Tag::of_namespace(&self.namespace[..end]), TagSource::Larder);
        }
        tags.add(kind, TagSource::Larder);
        tags
    }

    /// Returns a tag, within this namespace.
    pub fn own_tag(&self, tag: &Tag) -> Tag {
        tag.within(&self.namespace)
    }
}
