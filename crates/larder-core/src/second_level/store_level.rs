//! The second level: reads entries from the shared store and writes them to it.
//!
//! A miss in the first level reads the store. If the entry is fresh, and valid by the numbers of the log, it is
//! *promoted* into the first level, under a stamp that was taken before the read. Writes run in the background. Larder
//! never trusts the store: a reader refuses a late or outdated write by its stamp.

use std::{
    collections::HashMap,
    sync::{Arc, Once},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tracing::Instrument as _;

use super::{READ_DEADLINE, StoreLookup};
use crate::{
    clock::Moment,
    engine::{Engine, EntryState, SAME_FILL},
    entry::{AnyEntry, BETWEEN_EXTENSIONS, EncodedValue, Entry, EntryMetadata, IdleTime, Value},
    envelope::{Codec, EnvelopeContents, EnvelopeError, Header},
    key::Key,
    lifetime::Ends,
    metrics::{Latency, SecondLevelStats, histogram::Histogram, striped::StripedCounters},
    registry::{Stamp, TagMarks, Verdict},
    schema::Schema,
    scope::{Scope, StoreWaits},
    sealing::SealingKeys,
    spans,
    store::{Store, StoreError},
};

/// The options of a second level, from which the builder makes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SecondLevelOptions {
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) sealing: Option<SealingKeys>,
    pub(crate) wait_limit: Option<Duration>,
}

impl SecondLevelOptions {
    /// Uses this store, unless a setter has given one.
    pub(crate) fn use_store(&mut self, store: Arc<dyn Store>) {
        self.store.get_or_insert(store);
    }

    pub(crate) fn has_store(&self) -> bool {
        self.store.is_some()
    }

    pub(crate) fn wait_limit(&self) -> Option<Duration> {
        self.wait_limit
    }

    pub(crate) fn build(self) -> Option<Arc<SecondLevel>> {
        let codec = Codec::new(self.sealing);
        self.store.map(|store| Arc::new(SecondLevel::new(store, codec, self.wait_limit)))
    }
}

/// The store, its codec and its counters.
#[derive(Debug)]
pub(crate) struct SecondLevel {
    store: Arc<dyn Store>,
    codec: Codec,
    writes: Arc<Semaphore>,
    /// The entries that are being written, by their ids; the write has ended when the sender is dropped.
    under_way: Mutex<HashMap<u64, watch::Receiver<()>>>,
    counts: StripedCounters<COUNTED>,
    read_times: Histogram,
    write_times: Histogram,
    wait_limit: Duration,
    /// Limits the warning that entries that require sealing are stored in the first level only to one line.
    warned_of_keys: Once,
}

/// The counters of the second level.
#[derive(Clone, Copy, Debug)]
enum Count {
    Hit,
    Miss,
    Write,
    Error,
    Corrupt,
    Dropped,
    Lossy,
    TooLarge,
}

const NO_KEYS: &str = "entries that require sealing are stored in the first level only, because the \
                       second level has no keys. Pass keys to `LarderBuilder::seal_with`. (logged once)";
const COUNTED: usize = Count::TooLarge as usize + 1;

impl SecondLevel {
    fn new(store: Arc<dyn Store>, codec: Codec, wait_limit: Option<Duration>) -> Self {
        let deadline = store.deadline().unwrap_or(READ_DEADLINE);
        let wait_limit = wait_limit.unwrap_or_else(|| WAIT_LIMIT.max(deadline));
        Self {
            store,
            codec,
            writes: Arc::new(Semaphore::new(MAX_WRITES)),
            under_way: Mutex::default(),
            counts: StripedCounters::default(),
            read_times: Histogram::new(),
            write_times: Histogram::new(),
            wait_limit,
            warned_of_keys: Once::new(),
        }
    }

    /// Returns the durations of reads and of writes.
    #[cfg(feature = "metrics")]
    pub(crate) fn times(
        &self,
    ) -> (crate::metrics::histogram::Counts, crate::metrics::histogram::Counts) {
        (self.read_times.counts(), self.write_times.counts())
    }

    pub(crate) fn stats(&self) -> SecondLevelStats {
        let sums = self.counts.sums();
        let of = |what: Count| sums[what as usize];
        SecondLevelStats {
            hits: of(Count::Hit),
            misses: of(Count::Miss),
            writes: of(Count::Write),
            errors: of(Count::Error),
            corrupt: of(Count::Corrupt),
            dropped: of(Count::Dropped),
            lossy: of(Count::Lossy),
            too_large: of(Count::TooLarge),
            read_time: Latency::new(&self.read_times.counts()),
            write_time: Latency::new(&self.write_times.counts()),
            usage: None,
        }
    }

    /// Reads the entry of a key and, if it is valid and may be served, promotes it into the first level. Returns it if it
    /// is fresh; a stale entry is for the caller to look up there.
    pub(crate) async fn fetch<V: Value>(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        scope: &Scope,
        wanted: StoreLookup<'_>,
        decode: impl FnOnce(Bytes) -> Option<V>,
    ) -> Option<AnyEntry> {
        wanted.tiers.in_shared(self.seals())?;
        // The stamp is taken before the read, because an invalidation during the read must reach the entry that the
        // read returns.
        let stamp = engine.registry.stamp();
        stamp.log?;
        let name = place(wanted.key, wanted.schema);
        let found = self.read(&name, scope.store_waits()).await?;
        self.opened(engine, &name, found, wanted, stamp, decode).await
    }

    /// Reads the entries of several keys in one call of the store, as [`fetch`](Self::fetch) does for one key. `None` for
    /// each key that has no usable entry.
    pub(crate) async fn fetch_many<V: Value>(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        scope: &Scope,
        wanted: &[StoreLookup<'_>],
        decode: impl Fn(Bytes) -> Option<V>,
    ) -> Vec<Option<AnyEntry>> {
        let mut entries = vec![None; wanted.len()];
        // The stamp is taken before the read, as for one key.
        let stamp = engine.registry.stamp();
        let is_readable = |wanted: &StoreLookup<'_>| wanted.tiers.in_shared(self.seals()).is_some();
        if stamp.log.is_none() || !wanted.iter().all(is_readable) {
            return entries;
        }
        let names: Vec<_> = wanted.iter().map(|wanted| place(wanted.key, wanted.schema)).collect();
        let found = self.read_many(&names, scope.store_waits()).await;
        for (at, found) in found.into_iter().enumerate() {
            if let Some(found) = found {
                let (name, wanted) = (&names[at], wanted[at]);
                entries[at] = self.opened(engine, name, found, wanted, stamp, &decode).await;
            }
        }
        entries
    }

    /// Returns how much longer an entry is fresh here. `None` if it is not here or not valid, or if the store does not
    /// answer. It counts no read and promotes nothing.
    pub(crate) async fn peek(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        wanted: StoreLookup<'_>,
    ) -> Option<Duration> {
        wanted.tiers.in_shared(self.seals())?;
        let name = place(wanted.key, wanted.schema);
        let found = tokio::time::timeout(self.deadline(), self.store.get(&name)).await;
        let found = found.ok()?.ok()??;
        let header = self.opened_apart(engine, found, wanted).await.ok()?.header;
        let places = engine.registry.places(&header.tags);
        let verdict =
            engine.registry.reach_shared(wanted.key, &header.tags, &places, header.filled);
        let age = engine.shared_time(engine.clock.now()).duration_since(header.filled_at);
        (verdict == Verdict::Valid).then(|| header.fresh.saturating_sub(age.unwrap_or_default()))
    }

    /// Opens the bytes of an entry, checks it, and promotes it.
    async fn opened<V: Value>(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        name: &str,
        found: Bytes,
        wanted: StoreLookup<'_>,
        stamp: Stamp,
        decode: impl FnOnce(Bytes) -> Option<V>,
    ) -> Option<AnyEntry> {
        let opened = if self.codec.weight_of(&found) < LARGE {
            self.codec.open(found, wanted.key, wanted.schema, &engine.fill_bytes)
        } else {
            self.opened_apart(engine, found, wanted).await
        };
        let judged = opened.and_then(|EnvelopeContents { header, payload, room: _room }| {
            self.judge(engine, wanted, header, payload, stamp, decode)
        });
        let entry = match judged {
            Ok(entry) => entry,
            Err(EnvelopeError::OtherVersion) => None,
            Err(EnvelopeError::NoRoom) => {
                self.count(Count::Dropped);
                None
            }
            Err(EnvelopeError::Corrupt | EnvelopeError::OtherKey) => {
                self.count(Count::Corrupt);
                self.forget(name).await;
                None
            }
        };
        self.count(if entry.is_some() { Count::Hit } else { Count::Miss });
        entry
    }

    /// Opens a large entry on a blocking thread, so that it does not delay the other tasks of this thread.
    async fn opened_apart(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        found: Bytes,
        wanted: StoreLookup<'_>,
    ) -> Result<EnvelopeContents, EnvelopeError> {
        let (shared, engine) = (Arc::clone(self), Arc::clone(engine));
        let (key, schema) = (wanted.key.clone(), wanted.schema);
        let opening = move || shared.codec.open(found, &key, schema, &engine.fill_bytes);
        // This fails only if the runtime is shut down or the task panics.
        tokio::task::spawn_blocking(opening).await.unwrap_or(Err(EnvelopeError::NoRoom))
    }

    fn judge<V: Value>(
        &self,
        engine: &Arc<Engine>,
        wanted: StoreLookup<'_>,
        header: Header,
        payload: Bytes,
        stamp: Stamp,
        decode: impl FnOnce(Bytes) -> Option<V>,
    ) -> Result<Option<AnyEntry>, EnvelopeError> {
        let StoreLookup { key, tiers, .. } = wanted;
        let places = engine.registry.places(&header.tags);
        if engine.registry.reach_shared(key, &header.tags, &places, header.filled) != Verdict::Valid
        {
            return Ok(None);
        }
        let now = engine.clock.now();
        let age = match engine.shared_time(now).duration_since(header.filled_at) {
            Ok(age) => age,
            Err(ahead) if ahead.duration() <= MOST_SKEW => Duration::ZERO,
            // One of the two clocks is off by more than the tolerance.
            Err(_) => return Ok(None),
        };
        let filled = now.before(age);
        // The process that wrote the entry may allow longer lifetimes than this process.
        let end = |after: Duration| filled.after(after.min(engine.max_lifetime));
        let ends = Ends {
            filled,
            fresh: end(header.fresh),
            revalidate: end(header.revalidate),
            on_error: end(header.on_error),
            // The store holds no entry for revalidation.
            held: filled,
            leaves: tiers.in_memory().map_or(Moment::NEVER, |longest| now.after(longest)),
        };
        if now >= ends.served_until().max(ends.fresh) {
            return Ok(None);
        }
        let is_idle = |(after, read): (Duration, Duration)| {
            now >= filled.after(read).after(after).after(BETWEEN_EXTENSIONS)
        };
        if header.idle.is_some_and(is_idle) {
            return Ok(None);
        }
        let idle = header.idle.map(|(after, _)| IdleTime { after, read: now });
        let extended = header.idle.map(|(_, read)| filled.after(read));
        let value = decode(payload).ok_or(EnvelopeError::Corrupt)?;
        // The stamp has the log position of the fill and the sequence number of this promotion.
        let stamp = Stamp { log: Some(header.filled), ..stamp };
        let origins = EntryMetadata {
            hash: engine.memory.hash(key.as_bytes()),
            // The id identifies entries in the first level and writes under way. An entry that is read from the store
            // and not promoted is neither, so it does not need an id.
            id: if tiers.in_memory().is_some() { engine.memory.next_id() } else { 0 },
            ends,
            stamp,
            marks: TagMarks::new(stamp, &places),
            provenance: header.provenance(),
            tags: header.tags,
            cost: header.cost,
            tiers,
            idle,
            extended,
        };
        let entry: AnyEntry = Arc::new(Entry::new(key.clone(), origins, value));
        // A stale entry is promoted as a stale entry, for the lookup in the first level that follows the read.
        let is_stored = engine.promote(&entry, now);
        Ok((is_stored && now < ends.fresh).then_some(entry))
    }

    /// Writes an entry in the background. Drops the write if 1,024 are under way.
    pub(crate) fn write_behind(self: &Arc<Self>, engine: &Arc<Engine>, entry: &AnyEntry) {
        let Some(longest) = entry.tiers().in_shared(self.seals()) else {
            if entry.tiers().requires_sealing() {
                self.warned_of_keys.call_once(|| tracing::warn!(target: "larder", "{NO_KEYS}"));
            }
            return;
        };
        if entry.stamp().log.is_none() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else {
            self.count(Count::Dropped);
            return;
        };
        // A stale window outlives the process: another process serves the stale entry by the same rules.
        let ends = entry.ends();
        let lifetime = ends.fresh_until().max(ends.served_until());
        let lifetime = lifetime.since(engine.clock.now()).min(longest).min(idle_limit(entry));
        if lifetime.is_zero() {
            return;
        }
        let filled_at = engine.shared_time(entry.ends().filled);
        debug_assert_ne!(
            entry.id, 0,
            "an entry that came from the store is not written to it again"
        );
        let (written, under_way) = watch::channel(());
        self.under_way.lock().insert(entry.id, under_way);
        let (shared, entry) = (Arc::clone(self), Arc::clone(entry));
        engine.tasks.spawn(async move {
            if let Some((name, bytes)) = shared.sealed(&entry, filled_at).await {
                shared.write(&name, bytes, lifetime).await;
            }
            shared.under_way.lock().remove(&entry.id);
            drop((permit, written));
        });
    }

    /// Returns the store key of an entry and its bytes; `None` for an entry that is not written to a store.
    async fn sealed(self: &Arc<Self>, entry: &AnyEntry, at: SystemTime) -> Option<(String, Bytes)> {
        if entry.weight() < LARGE {
            return self.envelope(entry, at);
        }
        // This runs on a blocking thread, so that it does not delay the other tasks of this thread.
        let (shared, entry) = (Arc::clone(self), Arc::clone(entry));
        tokio::task::spawn_blocking(move || shared.envelope(&entry, at)).await.ok()?
    }

    fn envelope(&self, entry: &AnyEntry, filled_at: SystemTime) -> Option<(String, Bytes)> {
        if entry.is_lossy() {
            self.count(Count::Lossy);
            return None;
        }
        let EncodedValue { schema, bytes: payload } = entry.encode_value()?;
        let ends = *entry.ends();
        let header = Header {
            schema,
            filled: entry.stamp().log?,
            filled_at,
            fresh: ends.fresh.since(ends.filled),
            revalidate: ends.revalidate.since(ends.filled),
            on_error: ends.on_error.since(ends.filled),
            idle: entry.idle().map(|idle| (idle.after, idle.read.since(ends.filled))),
            cost: entry.cost(),
            tags: entry.tags().to_vec(),
            sources: entry.provenance().into(),
            queries: entry.queries(),
        };
        let bytes = self.codec.seal(entry.key(), &header, &payload)?;
        if self.store.max_value_bytes().is_some_and(|most| bytes.len() > most) {
            self.count(Count::TooLarge);
            return None;
        }
        Some((place(entry.key(), schema), bytes))
    }

    async fn write(&self, name: &str, bytes: Bytes, lifetime: Duration) {
        let began = Instant::now();
        let write = self.store.set(name, bytes, lifetime).instrument(spans::second_level_write());
        let written = tokio::time::timeout(WRITE_DEADLINE, write).await;
        self.write_times.record(began.elapsed());
        match written {
            Ok(written) => self.note(written),
            Err(_) => self.count(Count::Error),
        }
        self.count(Count::Write);
    }

    /// Writes the ends of an entry to the store in the background, if the store still has this entry.
    pub(crate) fn extend(self: &Arc<Self>, engine: &Arc<Engine>, entry: &AnyEntry) {
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else {
            self.count(Count::Dropped);
            return;
        };
        let (shared, engine, entry) = (Arc::clone(self), Arc::clone(engine), Arc::clone(entry));
        let tasks = engine.tasks.clone();
        tasks.spawn(async move {
            let extending = shared.try_extend(&engine, &entry);
            if tokio::time::timeout(WRITE_DEADLINE, extending).await.is_err() {
                shared.count(Count::Error);
            }
            drop(permit);
        });
    }

    async fn try_extend(&self, engine: &Arc<Engine>, entry: &AnyEntry) -> Option<()> {
        let schema = entry.schema()?;
        let name = place(entry.key(), schema);
        let found = match self.store.get(&name).await {
            Ok(found) => found?,
            Err(error) => {
                self.note(Err(error));
                return None;
            }
        };
        let opened =
            self.codec.open(found.clone(), entry.key(), schema, &engine.fill_bytes).ok()?;
        let EnvelopeContents { mut header, payload, room: _room } = opened;
        // Only this entry is extended: another one has another fill.
        let (ends, now) = (*entry.ends(), engine.clock.now());
        let filled_at = engine.shared_time(ends.filled);
        let apart = filled_at.duration_since(header.filled_at);
        let apart = apart.unwrap_or_else(|earlier| earlier.duration());
        if Some(header.filled) != entry.stamp().log
            || apart > SAME_FILL
            || engine.entry_state(entry, now) != EntryState::Fresh
        {
            return None;
        }
        header.fresh = ends.fresh.since(ends.filled);
        header.revalidate = ends.revalidate.since(ends.filled);
        header.on_error = ends.on_error.since(ends.filled);
        header.idle = entry.idle().map(|idle| (idle.after, idle.read.since(ends.filled)));
        let lifetime = ends.fresh.max(ends.served_until()).since(now).min(idle_limit(entry));
        let lifetime = lifetime.min(entry.tiers().in_shared(self.seals())?);
        let bytes = self.codec.seal(entry.key(), &header, &payload)?;
        let replaced = self.store.replace(&name, found, bytes, lifetime).await;
        self.note(replaced.map(drop));
        Some(())
    }

    /// Returns a receiver whose channel closes when the write of this entry has ended. `None` if no write is under way.
    pub(crate) fn under_way(&self, entry: &AnyEntry) -> Option<watch::Receiver<()>> {
        self.under_way.lock().get(&entry.id).cloned()
    }

    /// Returns how long a request waits in total, over all of its reads, for a store that does not answer.
    pub(crate) fn wait_limit(&self) -> Duration {
        self.wait_limit
    }

    pub(crate) fn seals(&self) -> bool {
        self.codec.seals()
    }

    async fn read(&self, name: &str, waits: Option<&StoreWaits>) -> Option<Bytes> {
        let read = || self.store.get(name);
        let answer = self.limited((1, waits), read, Result::is_err).await;
        self.found(answer)
    }

    /// Reads several names in one call. The results are in the order of `names`.
    async fn read_many(&self, names: &[String], waits: Option<&StoreWaits>) -> Vec<Option<Bytes>> {
        let keys: Vec<&str> = names.iter().map(String::as_str).collect();
        let read = || self.store.get_many(&keys);
        let has_failed = |answers: &Vec<Result<_, _>>| answers.iter().any(Result::is_err);
        let answers = self.limited((keys.len(), waits), read, has_failed).await;
        if answers.as_ref().is_some_and(|answers| answers.len() != names.len()) {
            // The store breaks its contract: the missing results are misses.
            self.count(Count::Error);
        }
        let mut answers = answers.unwrap_or_default().into_iter();
        names.iter().map(|_| self.found(answers.next())).collect()
    }

    /// Runs a read for at most the deadline of the store and the rest of the limit on waits. `None` if it has not
    /// answered by then. The time of a read that did not answer or has failed counts against the limit.
    async fn limited<A, F: Future<Output = A>>(
        &self,
        (keys, waits): (usize, Option<&StoreWaits>),
        read: impl FnOnce() -> F,
        has_failed: impl FnOnce(&A) -> bool,
    ) -> Option<A> {
        let left = waits.map_or(Duration::MAX, StoreWaits::left);
        if left.is_zero() {
            // The request has used up its limit on waits.
            return None;
        }
        let began = Instant::now();
        let read = || read().instrument(spans::second_level_read(keys));
        let answer = match self.store.deadline() {
            // The store limits the read itself, so a second timer is not needed.
            Some(deadline) if deadline <= left => Some(read().await),
            _ => tokio::time::timeout(self.deadline().min(left), read()).await.ok(),
        };
        let took = began.elapsed();
        self.read_times.record(took);
        if answer.is_none() {
            self.count(Count::Error);
        }
        if let (true, Some(waits)) = (answer.as_ref().is_none_or(has_failed), waits) {
            waits.add(took);
        }
        answer
    }

    /// Returns the bytes of a result, and counts an error or a miss. `None` stands for a read without an answer.
    fn found(&self, answer: Option<Result<Option<Bytes>, StoreError>>) -> Option<Bytes> {
        let found = match answer {
            Some(Err(error)) => {
                self.note(Err(error));
                None
            }
            answer => answer.and_then(Result::ok).flatten(),
        };
        if found.is_none() {
            self.count(Count::Miss);
        }
        found
    }

    async fn forget(&self, name: &str) {
        match tokio::time::timeout(self.deadline(), self.store.remove(name)).await {
            Ok(removed) => self.note(removed),
            Err(_) => self.count(Count::Error),
        }
    }

    /// Returns how long a read of the store may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.store.deadline().unwrap_or(READ_DEADLINE)
    }

    fn count(&self, what: Count) {
        self.counts.count(what as usize);
    }

    fn note(&self, done: Result<(), StoreError>) {
        if let Err(error) = done {
            self.count(Count::Error);
            tracing::debug!(target: "larder", %error, "a command to the second level failed");
        }
    }
}

/// Returns how long the store holds an entry that is not read: another process may have read it up to a minute later than
/// the store knows.
fn idle_limit(entry: &AnyEntry) -> Duration {
    entry.idle().map_or(Duration::MAX, |idle| idle.after + BETWEEN_EXTENSIONS)
}

/// Returns the store key of an entry. It includes the schema, so that another type under the same key has an entry of
/// its own.
fn place(key: &Key, schema: Schema) -> String {
    let mut place = key.store_key();
    place.push(':');
    schema.add_digits(&mut place);
    place
}

/// An entry of at least this weight is compressed and sealed, or opened, on a blocking thread.
const LARGE: usize = 32 << 10;
/// How far the fill time of an entry may lie in the future of this process, because the clocks of two processes may
/// differ.
const MOST_SKEW: Duration = Duration::from_secs(1);
/// Maximum number of writes that are under way at a time.
const MAX_WRITES: usize = 1024;
/// The default limit on the waits of one request. It is enough for one read that takes the whole 40 ms of the Redis
/// level, and half of another read.
const WAIT_LIMIT: Duration = Duration::from_millis(60);
/// How long a write to the store may take before larder abandons it.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
