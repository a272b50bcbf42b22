//! The first level: live values in process memory, weighed in bytes.
//!
//! moka decides which entries stay (weight, admission, expiry), and larder's own index serves the lookups. A lookup in
//! moka itself follows five pointers and writes to a channel, which costs several times the budget of a whole hit; a
//! lookup in the index follows one pointer. Each entry has one slot in moka, under the hash of its key (so that its
//! frequency survives replacement) and an id of its own (so that a replacement is never confused with an eviction).
//! moka reports each entry that it evicts, and the index drops it too.

use std::{
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use moka::{notification::RemovalCause, policy::EvictionPolicy, sync::Cache};

use self::doorkeeper::Doorkeeper;
pub(crate) use self::index::Index;
use crate::{clock::Clock, entry::AnyEntry, metrics::window::Window, traffic::Traffic};

mod doorkeeper;
mod index;

/// The policy by which the first level chooses the entries that it evicts when it is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// Keeps frequently requested entries; a scan does not displace them. The default.
    ///
    /// Source: Einziger, Friedman and Manes, *TinyLFU: A Highly Efficient Cache Admission Policy*, 2017.
    #[default]
    TinyLfu,
    /// Evicts the least recently used entry first. For a popular entry, only one hit in 64 updates its recency.
    Lru,
}

/// Number of entries that the first level evicted, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Evictions {
    /// Evicted because the level was full, or not admitted by the policy.
    pub size: u64,
    /// Removed because their lifetime had ended.
    pub expired: u64,
}

impl Evictions {
    fn since(self, earlier: Self) -> Self {
        Self {
            size: self.size.saturating_sub(earlier.size),
            expired: self.expired.saturating_sub(earlier.expired),
        }
    }
}

/// The evictions of the first level: how many there were, by cause, and how many a minute ago.
#[derive(Debug)]
struct EvictionCounts {
    size: AtomicU64,
    expired: AtomicU64,
    window: Window<Evictions>,
    clock: Clock,
}

impl EvictionCounts {
    fn new(clock: Clock) -> Self {
        let (size, expired) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { size, expired, window: Window::new(), clock }
    }

    fn count(&self, cause: &AtomicU64) {
        self.turn();
        cause.fetch_add(1, Ordering::Relaxed);
    }

    fn turn(&self) {
        let now = self.clock.now();
        if self.window.is_over(now) {
            self.window.turn(now, || self.all());
        }
    }

    fn all(&self) -> Evictions {
        let [size, expired] =
            [&self.size, &self.expired].map(|cause| cause.load(Ordering::Relaxed));
        Evictions { size, expired }
    }

    fn last_minute(&self) -> Evictions {
        self.turn();
        self.all().since(self.window.a_minute_ago())
    }
}

/// The first level: the index for lookups, and moka for eviction.
#[derive(Debug)]
pub(crate) struct Memory {
    index: Arc<Index>,
    keeper: Cache<Slot, AnyEntry, BuildHasherDefault<AsIs>>,
    doorkeeper: Doorkeeper,
    evictions: Arc<EvictionCounts>,
    pub(crate) traffic: Traffic,
    capacity: usize,
    stored_since_upkeep: AtomicUsize,
    next_id: AtomicU64,
}

impl Memory {
    /// Creates a first level of at most `capacity` bytes.
    pub(crate) fn new(capacity: usize, eviction: Eviction, clock: Clock) -> Self {
        let index = Arc::new(Index::new());
        let evictions = Arc::new(EvictionCounts::new(clock));
        let policy = match eviction {
            Eviction::TinyLfu => EvictionPolicy::tiny_lfu(),
            Eviction::Lru => EvictionPolicy::lru(),
        };
        let keeper = Cache::builder()
            .max_capacity(capacity as u64)
            .eviction_policy(policy)
            .weigher(|_, entry: &AnyEntry| u32::try_from(entry.weight()).unwrap_or(u32::MAX))
            .expire_after(UntilGone(clock))
            .eviction_listener({
                let (index, evictions) = (Arc::clone(&index), Arc::clone(&evictions));
                move |_, entry, cause| forget(&index, &evictions, &entry, cause)
            })
            .build_with_hasher(BuildHasherDefault::default());
        Self {
            index,
            keeper,
            doorkeeper: Doorkeeper::new(capacity),
            evictions,
            traffic: Traffic::new(clock),
            capacity,
            stored_since_upkeep: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.index.hash(key)
    }

    /// Returns an id that no other entry of this level has.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Calls `read` with the entry of a key, if there is one, under the lock of its shard. Therefore `read` must not
    /// use the first level again.
    ///
    /// A `Some` from `read` counts as a hit for the eviction policy.
    #[inline]
    pub(crate) fn read<R>(
        &self,
        hash: u64,
        key: &[u8],
        read: impl FnOnce(&AnyEntry) -> Option<R>,
    ) -> Option<R> {
        let (answer, touched) = self.index.read(hash, key, |entry| {
            let answer = read(entry);
            let touched = answer.is_some().then(|| self.touch(entry)).flatten();
            (answer, touched)
        })?;
        if answer.is_some() {
            self.traffic.hit(hash);
        }
        if let Some(slot) = touched {
            drop(self.keeper.get(&slot));
        }
        answer
    }

    /// Returns the entry of a key, without checking whether it is valid or fresh.
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<AnyEntry> {
        self.index.read(hash, key, Arc::clone)
    }

    /// Counts a hit that was served from an entry that [`Memory::get`] returned.
    pub(crate) fn note_hit(&self, entry: &AnyEntry) {
        self.traffic.hit(entry.hash);
        if let Some(slot) = self.touch(entry) {
            drop(self.keeper.get(&slot));
        }
    }

    /// Counts a hit of an entry. Returns its slot in moka if the hit is to be reported to it.
    #[inline]
    fn touch(&self, entry: &AnyEntry) -> Option<Slot> {
        let hits = entry.touch()?;
        self.traffic.hits(entry, hits);
        Some(Slot::of(entry))
    }

    /// Counts a miss of a key for the admission policy, so that a frequently requested key is admitted when it is
    /// stored. Callers must call this once per request, so that a scan does not look popular.
    pub(crate) fn note_miss(&self, hash: u64) {
        self.traffic.miss(hash);
        if self.doorkeeper.knows(hash) {
            drop(self.keeper.get(&Slot { hash, id: 0 }));
        }
    }

    /// Stores an entry, unless `keeps_old` prefers the present entry of the same key.
    ///
    /// # Errors
    ///
    /// The present entry, if `keeps_old` preferred it.
    pub(crate) fn put(
        &self,
        entry: &AnyEntry,
        keeps_old: impl FnOnce(&AnyEntry) -> bool,
    ) -> Result<(), AnyEntry> {
        if let Some(before) = self.index.replace(Arc::clone(entry), keeps_old)? {
            self.keeper.invalidate(&Slot::of(&before));
        }
        self.keeper.insert(Slot::of(entry), Arc::clone(entry));
        if !self.index.holds(entry) {
            // Another thread replaced the entry before it was inserted into moka, so that thread could not remove it
            // there.
            self.keeper.invalidate(&Slot::of(entry));
        }
        self.traffic.stored(entry);
        self.keep_to_capacity(entry.weight());
        Ok(())
    }

    /// Removes exactly this entry; an entry that replaced it stays.
    pub(crate) fn remove(&self, entry: &AnyEntry) {
        if self.index.remove(entry) {
            self.keeper.invalidate(&Slot::of(entry));
        }
    }

    /// Returns the URLs of responses that do not belong to a partition, with their hits since they were stored.
    pub(crate) fn public_urls(&self, namespace: &str) -> Vec<(String, u64)> {
        let mut urls = Vec::new();
        self.index.each(|entry| {
            let key = entry.key();
            if key.namespace() == namespace.as_bytes()
                && let Some(url) = key.public_url()
            {
                urls.push((url, entry.touches()));
            }
            true
        });
        urls
    }

    /// Calls `read` with each entry, under no lock, until it returns `false`. Returns whether it was called with all of them.
    pub(crate) fn each(&self, read: impl FnMut(&AnyEntry) -> bool) -> bool {
        self.index.each(read)
    }

    pub(crate) fn entries(&self) -> usize {
        self.index.entries()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.index.bytes()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn evictions(&self) -> Evictions {
        self.evictions.all()
    }

    /// Returns the evictions of the last minute, accurate to five seconds.
    pub(crate) fn evictions_last_minute(&self) -> Evictions {
        self.evictions.last_minute()
    }

    /// Runs moka's pending evictions each time 1/64 of the capacity was stored. moka evicts in batches at times of its
    /// own choice, so large bodies would accumulate in the meantime.
    fn keep_to_capacity(&self, stored: usize) {
        let since = self.stored_since_upkeep.fetch_add(stored, Ordering::Relaxed) + stored;
        if since > self.capacity / UPKEEP_SHARE {
            self.stored_since_upkeep.store(0, Ordering::Relaxed);
            self.keeper.run_pending_tasks();
        }
    }
}

/// Removes an entry that moka evicted from the index. The value is dropped outside of all locks of larder.
fn forget(index: &Index, evictions: &EvictionCounts, entry: &AnyEntry, cause: RemovalCause) {
    let cause = match cause {
        RemovalCause::Size => &evictions.size,
        RemovalCause::Expired => &evictions.expired,
        // Larder itself caused the removal, and changed the index first.
        RemovalCause::Explicit | RemovalCause::Replaced => return,
    };
    if index.remove(entry) {
        evictions.count(cause);
    }
}

/// The key of an entry in moka. Its hash is the hash of the entry's own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    hash: u64,
    id: u64,
}

impl Slot {
    fn of(entry: &AnyEntry) -> Self {
        Self { hash: entry.hash, id: entry.id }
    }
}

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A hasher that returns its input, because keys are already hashed with a secret of this process.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        unreachable!("a slot hashes as one u64, not as {} bytes", bytes.len());
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The expiry policy for moka, which frees an entry once it can neither be served nor revalidated. An entry that was
/// filled in another process, or that was already old when it was stored, has less time left.
struct UntilGone(Clock);

impl moka::Expiry<Slot, AnyEntry> for UntilGone {
    fn expire_after_create(&self, _: &Slot, entry: &AnyEntry, _: Instant) -> Option<Duration> {
        Some(entry.ends().gone_at().since(self.0.now()))
    }
}

/// Each time 1/64 of the capacity was stored, pending evictions bring the level down to its capacity.
const UPKEEP_SHARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Moment,
        entry::{Entry, EntryMetadata, Value},
        key::{KeyBuf, Kind},
        lifetime::Lifetime,
        registry::{Options, Registry},
    };

    struct Block(usize);

    impl Value for Block {
        fn weight(&self) -> usize {
            self.0
        }

        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }

    fn entry(memory: &Memory, name: &str, weight: usize) -> AnyEntry {
        let registry = Registry::new(Options {
            cells: 2,
            shared: false,
            longest: Duration::MAX,
            failover_bound: Duration::ZERO,
        });
        let mut key = KeyBuf::new(Kind::Object, "", "", "");
        key.push(name.as_bytes());
        let key = key.finish().unwrap();
        let stamp = registry.stamp();
        let origins = EntryMetadata {
            provenance: crate::provenance::Provenance::default(),
            hash: memory.hash(key.as_bytes()),
            id: memory.next_id(),
            ends: Lifetime::fresh_for(Duration::from_secs(60)).ends(
                Moment::START,
                Duration::MAX,
                0,
            ),
            stamp,
            marks: registry.marks(stamp, &[]),
            tags: Vec::new(),
            cost: Duration::ZERO,
            tiers: crate::Tiers::BOTH,
            idle: None,
            extended: None,
        };
        Arc::new(Entry::new(key, origins, Block(weight)))
    }

    fn put(memory: &Memory, entry: &AnyEntry) {
        memory.put(entry, |_| false).unwrap();
    }

    #[test]
    fn put_replaces_the_entry_of_a_key_and_counts_it_once() {
        let memory = Memory::new(1 << 20, Eviction::TinyLfu, Clock::start());
        let (first, second) = (entry(&memory, "a", 1000), entry(&memory, "a", 3000));
        put(&memory, &first);
        put(&memory, &second);
        let found = memory.get(first.hash, first.key().as_bytes()).unwrap();
        assert!(Arc::ptr_eq(&found, &second));
        assert_eq!((memory.entries(), memory.bytes()), (1, second.weight()));
        memory.remove(&first);
        assert_eq!(memory.entries(), 1, "the entry that took its place stays");
        memory.remove(&second);
        assert_eq!((memory.entries(), memory.bytes()), (0, 0));
    }

    #[test]
    fn a_scan_stays_within_the_capacity_and_its_evictions_are_counted() {
        for eviction in [Eviction::TinyLfu, Eviction::Lru] {
            let memory = Memory::new(1 << 20, eviction, Clock::start());
            for number in 0..1000 {
                put(&memory, &entry(&memory, &format!("{number}"), 10_000));
                assert!(memory.bytes() < (1 << 20) + (1 << 18), "{}", memory.bytes());
            }
            memory.keeper.run_pending_tasks();
            assert!(memory.bytes() <= 1 << 20);
            assert_eq!(memory.evictions().size as usize, 1000 - memory.entries());
        }
    }

    #[test]
    fn another_key_with_the_same_hash_is_a_miss() {
        let memory = Memory::new(1 << 20, Eviction::TinyLfu, Clock::start());
        let a = entry(&memory, "a", 10);
        put(&memory, &a);
        assert!(memory.get(a.hash, b"something else").is_none());
    }

    #[test]
    fn put_returns_the_present_entry_if_keeps_old_prefers_it() {
        let memory = Memory::new(1 << 20, Eviction::TinyLfu, Clock::start());
        let (first, second) = (entry(&memory, "a", 10), entry(&memory, "a", 10));
        put(&memory, &first);
        let kept = memory.put(&second, |_| true).unwrap_err();
        assert!(Arc::ptr_eq(&kept, &first));
    }

    /// Regression: an entry that was old when it was stored was freed too late, by as much as its age.
    #[tokio::test(start_paused = true)]
    async fn expiry_counts_from_the_fill_and_not_from_the_insertion() {
        let clock = Clock::start();
        let memory = Memory::new(1 << 20, Eviction::TinyLfu, clock);
        // The entry was filled when the clock started, with a lifetime of one minute.
        let entry = entry(&memory, "a", 1);
        let held = || {
            let (until, now) = (UntilGone(clock), Instant::now());
            moka::Expiry::expire_after_create(&until, &Slot::of(&entry), &entry, now).unwrap()
        };
        let second = Duration::from_secs(1);
        assert_eq!(held(), 60 * second);
        tokio::time::advance(50 * second).await;
        assert_eq!(held(), 10 * second);
        tokio::time::advance(50 * second).await;
        assert_eq!(held(), Duration::ZERO);
    }
}
