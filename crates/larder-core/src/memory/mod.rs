//! The memory tier: live values, weighed in bytes.
//!
//! moka decides what stays (weight, admission, expiry); an index of our own answers look-ups. A look-up in
//! moka itself follows five pointers and writes to a channel, several times the budget of a whole hit;
//! the index follows one. Each entry is one slot of moka's, under the hash of its key (so that its
//! frequency survives replacement) and a number of its own (so that replacing is never confused with
//! evicting). moka tells us what it drops, and the index drops it too.

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
use crate::{clock::Clock, entry::AnyEntry};

mod doorkeeper;
mod index;

/// How the memory tier chooses what goes when it is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// What is asked for often stays, and a scan passes through without harm. The default.
    ///
    /// Source: Einziger, Friedman and Manes, *TinyLFU: A Highly Efficient Cache Admission Policy*, 2017.
    #[default]
    TinyLfu,
    /// What was asked for longest ago goes first; of what is asked for often, one hit in 64 tells.
    Lru,
}

/// How often the memory tier dropped an entry by itself, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Evictions {
    /// There was no room, or the policy did not admit it.
    pub size: u64,
    /// Its time had run out.
    pub expired: u64,
}

/// The memory tier.
#[derive(Debug)]
pub(crate) struct Memory {
    index: Arc<Index>,
    keeper: Cache<Slot, AnyEntry, BuildHasherDefault<AsIs>>,
    doorkeeper: Doorkeeper,
    causes: Arc<[AtomicU64; 2]>,
    capacity: usize,
    stored_since_upkeep: AtomicUsize,
    next_id: AtomicU64,
}

impl Memory {
    /// A tier of at most `capacity` bytes.
    pub(crate) fn new(capacity: usize, eviction: Eviction, clock: Clock) -> Self {
        let index = Arc::new(Index::new());
        let causes = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
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
                let (index, causes) = (Arc::clone(&index), Arc::clone(&causes));
                move |_, entry, cause| forget(&index, &causes, &entry, cause)
            })
            .build_with_hasher(BuildHasherDefault::default());
        Self {
            index,
            keeper,
            doorkeeper: Doorkeeper::new(capacity),
            causes,
            capacity,
            stored_since_upkeep: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.index.hash(key)
    }

    /// A number that no other entry of this tier has.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Reads the entry of a key, if there is one, under a guard: `read` must not touch this tier again.
    ///
    /// What `read` answers with `Some` counts as a hit for the policy.
    #[inline]
    pub(crate) fn read<R>(
        &self,
        hash: u64,
        key: &[u8],
        read: impl FnOnce(&AnyEntry) -> Option<R>,
    ) -> Option<R> {
        let (answer, heard) = self.index.read(hash, key, |entry| {
            let answer = read(entry);
            let heard = (answer.is_some() && entry.touch()).then(|| Slot::of(entry));
            (answer, heard)
        })?;
        if let Some(slot) = heard {
            drop(self.keeper.get(&slot));
        }
        answer
    }

    /// The entry of a key as it lies there.
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<AnyEntry> {
        self.index.read(hash, key, Arc::clone)
    }

    /// Counts a hit that was answered from an entry taken out by [`Memory::get`].
    pub(crate) fn note_hit(&self, entry: &AnyEntry) {
        if entry.touch() {
            drop(self.keeper.get(&Slot::of(entry)));
        }
    }

    /// Tells the policy that a key was asked for and not there, so that what is often asked for is
    /// admitted when it is stored. Once for each request: a scan must not look popular.
    pub(crate) fn note_miss(&self, hash: u64) {
        if self.doorkeeper.knows(hash) {
            drop(self.keeper.get(&Slot { hash, id: 0 }));
        }
    }

    /// Keeps an entry, unless `keep` prefers the one that has its place.
    ///
    /// # Errors
    ///
    /// The entry that kept its place.
    pub(crate) fn put(
        &self,
        entry: &AnyEntry,
        keep: impl FnOnce(&AnyEntry) -> bool,
    ) -> Result<(), AnyEntry> {
        if let Some(before) = self.index.replace(Arc::clone(entry), keep)? {
            self.keeper.invalidate(&Slot::of(&before));
        }
        self.keeper.insert(Slot::of(entry), Arc::clone(entry));
        if !self.index.holds(entry) {
            // Replaced before moka knew of it: whoever replaced it could not take it out.
            self.keeper.invalidate(&Slot::of(entry));
        }
        self.keep_to_capacity(entry.weight());
        Ok(())
    }

    /// Drops this very entry; one that took its place stays.
    pub(crate) fn remove(&self, entry: &AnyEntry) {
        if self.index.remove(entry) {
            self.keeper.invalidate(&Slot::of(entry));
        }
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
        let [size, expired] = [0, 1].map(|cause: usize| self.causes[cause].load(Ordering::Relaxed));
        Evictions { size, expired }
    }

    /// moka evicts a batch at a time, when it sees fit. Large bodies would pile up meanwhile.
    fn keep_to_capacity(&self, stored: usize) {
        let since = self.stored_since_upkeep.fetch_add(stored, Ordering::Relaxed) + stored;
        if since > self.capacity / UPKEEP_SHARE {
            self.stored_since_upkeep.store(0, Ordering::Relaxed);
            self.keeper.run_pending_tasks();
        }
    }
}

/// moka dropped an entry: so does the index, and outside every lock of ours the value goes too.
fn forget(index: &Index, causes: &[AtomicU64; 2], entry: &AnyEntry, cause: RemovalCause) {
    let cause = match cause {
        RemovalCause::Size => 0,
        RemovalCause::Expired => 1,
        // Ours: the index was changed first.
        RemovalCause::Explicit | RemovalCause::Replaced => return,
    };
    if index.remove(entry) {
        causes[cause].fetch_add(1, Ordering::Relaxed);
    }
}

/// The place of one entry in moka. Its hash is that of the entry's key.
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

/// Passes a hash on: keys were hashed already, with a secret of this process.
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

/// Frees what nobody may be served any more. What was filled elsewhere, or was old when it came, has less time left.
struct UntilGone(Clock);

impl moka::Expiry<Slot, AnyEntry> for UntilGone {
    fn expire_after_create(&self, _: &Slot, entry: &AnyEntry, _: Instant) -> Option<Duration> {
        Some(entry.ends().gone_at().since(self.0.now()))
    }
}

/// After storing this share of its capacity the tier is brought down to its capacity.
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
        };
        Arc::new(Entry::new(key, origins, Block(weight)))
    }

    fn put(memory: &Memory, entry: &AnyEntry) {
        memory.put(entry, |_| false).unwrap();
    }

    #[test]
    fn what_is_put_is_found_and_replaced_and_counted_once() {
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
    fn a_scan_stays_within_the_capacity_and_evictions_have_a_cause() {
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
    fn two_keys_of_one_hash_are_two_entries() {
        let memory = Memory::new(1 << 20, Eviction::TinyLfu, Clock::start());
        let a = entry(&memory, "a", 10);
        put(&memory, &a);
        assert!(memory.get(a.hash, b"something else").is_none());
    }

    #[test]
    fn the_one_that_is_there_may_keep_its_place() {
        let memory = Memory::new(1 << 20, Eviction::TinyLfu, Clock::start());
        let (first, second) = (entry(&memory, "a", 10), entry(&memory, "a", 10));
        put(&memory, &first);
        let kept = memory.put(&second, |_| true).unwrap_err();
        assert!(Arc::ptr_eq(&kept, &first));
    }

    /// It lay there, of use to nobody, for as long as it had been on its way.
    #[tokio::test(start_paused = true)]
    async fn what_was_old_when_it_came_is_freed_when_its_time_is_over() {
        let clock = Clock::start();
        let memory = Memory::new(1 << 20, Eviction::TinyLfu, clock);
        // Filled when the clock started, it lives for a minute.
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
