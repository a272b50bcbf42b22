//! The index of the first level: maps keys to entries. A lookup does not allocate, and reads the entry under the lock
//! of its shard.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use hashbrown::{HashTable, hash_table};

use crate::{entry::AnyEntry, sync::RwLock};

/// A hash table in shards, each with a reader-writer lock.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Box<[CachePadded<RwLock<HashTable<AnyEntry>>>]>,
    hashing: RandomState,
    bytes: AtomicUsize,
    entries: AtomicUsize,
}

impl Index {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| CachePadded::new(RwLock::new(HashTable::new()))).collect();
        Self {
            shards,
            hashing: RandomState::new(),
            bytes: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
        }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.hashing.hash_one(key)
    }

    /// Calls `read` with the entry of a key, under the lock of its shard. `read` must not use the first level again.
    #[inline]
    pub(crate) fn read<R>(
        &self,
        hash: u64,
        key: &[u8],
        read: impl FnOnce(&AnyEntry) -> R,
    ) -> Option<R> {
        let shard = self.shard(hash).read();
        shard.find(hash, |entry| entry.key().as_bytes() == key).map(read)
    }

    /// Stores an entry and returns the entry that it replaced. The error is the present entry, if `keeps_old` preferred
    /// it.
    pub(crate) fn replace(
        &self,
        entry: AnyEntry,
        keeps_old: impl FnOnce(&AnyEntry) -> bool,
    ) -> Result<Option<AnyEntry>, AnyEntry> {
        let weight = entry.weight();
        let mut shard = self.shard(entry.hash).write();
        let slot = shard.entry(
            entry.hash,
            |other| other.hash == entry.hash && other.key() == entry.key(),
            |other| other.hash,
        );
        let before = match slot {
            hash_table::Entry::Occupied(there) if keeps_old(there.get()) => {
                return Err(Arc::clone(there.get()));
            }
            hash_table::Entry::Occupied(mut there) => {
                Some(std::mem::replace(there.get_mut(), entry))
            }
            hash_table::Entry::Vacant(place) => {
                place.insert(entry);
                None
            }
        };
        drop(shard);
        self.bytes.fetch_add(weight, Ordering::Relaxed);
        match &before {
            Some(before) => drop(self.bytes.fetch_sub(before.weight(), Ordering::Relaxed)),
            None => drop(self.entries.fetch_add(1, Ordering::Relaxed)),
        }
        Ok(before)
    }

    /// Removes exactly this entry; an entry that replaced it stays. Returns whether it was present.
    pub(crate) fn remove(&self, entry: &AnyEntry) -> bool {
        let mut shard = self.shard(entry.hash).write();
        let removed = shard
            .find_entry(entry.hash, |other| other.id == entry.id)
            .map(|found| found.remove().0)
            .ok();
        drop(shard);
        let Some(removed) = removed else { return false };
        self.bytes.fetch_sub(removed.weight(), Ordering::Relaxed);
        self.entries.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Calls `read` with each entry until it returns `false`, and returns whether it was called with all of them. `read` is
    /// called under no lock, with entries that were present when it came to their shard.
    pub(crate) fn each(&self, mut read: impl FnMut(&AnyEntry) -> bool) -> bool {
        let mut entries = Vec::new();
        self.shards.iter().all(|shard| {
            entries.clear();
            entries.extend(shard.read().iter().cloned());
            entries.iter().all(&mut read)
        })
    }

    /// Whether the index contains exactly this entry.
    pub(crate) fn holds(&self, entry: &AnyEntry) -> bool {
        self.shard(entry.hash).read().find(entry.hash, |other| other.id == entry.id).is_some()
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<AnyEntry>> {
        // The table itself uses the low bits and the seven highest bits.
        &self.shards[(hash >> 48) as usize % SHARDS]
    }
}

const SHARDS: usize = 64;
