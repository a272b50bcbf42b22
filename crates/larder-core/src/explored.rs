//! Promise 1 over every order in which two threads can meet, as far as chance explores them.
//!
//! Built only with `--cfg larder_shuttle`, under which each atomic and lock of the registry and of the
//! index is a point where the explorer may switch. `scripts/test` runs them.

use std::{sync::Arc, time::Duration};

use shuttle::{
    check_random,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::{
    bus::{Origin, Record},
    clock::Moment,
    entry::{AnyEntry, Entry, Origins, Value},
    key::{Key, KeyBuf, Kind},
    lifetime::Lifetime,
    memory::{Eviction, Memory},
    registry::{Options, Reach, Registry, Stamp},
    tag::Tag,
    target::{Mode, Selector},
};

const SCHEDULES: usize = 5_000;

struct Version(u64);

impl Value for Version {
    fn weight(&self) -> usize {
        8
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// A row, a cache of it, and what its cache knows.
struct World {
    row: AtomicU64,
    registry: Registry,
    memory: Memory,
}

impl World {
    fn new() -> Arc<Self> {
        let options = Options {
            cells: 2,
            shared: false,
            longest: Duration::from_secs(60),
            failover_bound: Duration::ZERO,
        };
        Arc::new(Self {
            row: AtomicU64::new(0),
            registry: Registry::new(options),
            memory: Memory::new(1 << 20, Eviction::Lru),
        })
    }

    fn key() -> Key {
        let mut key = KeyBuf::new(Kind::Object, "", "", "");
        key.push(b"row");
        key.finish().expect("it is short")
    }

    fn tags() -> Vec<Tag> {
        vec![Tag::new("row")]
    }

    fn entry(&self, stamp: Stamp, version: u64) -> AnyEntry {
        let key = Self::key();
        let ends = Lifetime::fresh_for(Duration::from_secs(60));
        let origins = Origins {
            hash: self.memory.hash(key.as_bytes()),
            id: self.memory.next_id(),
            ends: ends.ends(Moment::START, Duration::from_secs(60), 0),
            stamp,
            marks: self.registry.marks(stamp, &Self::tags()),
            tags: Self::tags(),
            cost: Duration::ZERO,
        };
        Arc::new(Entry::new(key, origins, Version(version)))
    }

    fn is_valid(&self, entry: &AnyEntry) -> bool {
        self.registry.reach(entry.key(), entry.tags(), &entry.marks) == Reach::Clean
    }

    /// Reads through the cache, as a request does.
    fn read(&self) -> u64 {
        let key = Self::key();
        let hash = self.memory.hash(key.as_bytes());
        let kept = self.memory.read(hash, key.as_bytes(), |entry| {
            self.is_valid(entry).then(|| entry.value::<Version>().map(|version| version.0))
        });
        if let Some(Some(version)) = kept {
            return version;
        }
        let stamp = self.registry.stamp();
        let version = self.row.load(Ordering::SeqCst);
        let entry = self.entry(stamp, version);
        if self.is_valid(&entry) {
            let newer =
                |there: &AnyEntry| there.stamp().local > stamp.local && self.is_valid(there);
            drop(self.memory.put(&entry, newer));
        }
        version
    }

    /// Writes the row, then invalidates what was made of it.
    fn write(&self, version: u64) {
        self.row.store(version, Ordering::SeqCst);
        let what = vec![Selector::Tag(Tag::new("row"))];
        let record = Record { origin: Origin::random(), mode: Mode::Hard, what };
        drop(self.registry.begin(record, Moment::START));
    }
}

#[test]
fn a_read_after_an_invalidation_never_sees_what_was_before() {
    check_random(
        || {
            let world = World::new();
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let world = Arc::clone(&world);
                    thread::spawn(move || (world.read(), world.read()))
                })
                .collect();
            for version in 1..=2 {
                world.write(version);
                assert!(world.read() >= version);
            }
            for reader in readers {
                reader.join().expect("no reader panics");
            }
            assert_eq!(world.read(), 2);
        },
        SCHEDULES,
    );
}

#[test]
fn two_writers_leave_nothing_stale_behind() {
    check_random(
        || {
            let world = World::new();
            let writers: Vec<_> = (0..2)
                .map(|_| {
                    let world = Arc::clone(&world);
                    thread::spawn(move || {
                        let version = world.row.load(Ordering::SeqCst) + 1;
                        world.write(version);
                        assert!(world.read() >= 1);
                    })
                })
                .collect();
            world.read();
            for writer in writers {
                writer.join().expect("no writer panics");
            }
            let row = world.row.load(Ordering::SeqCst);
            assert_eq!(world.read(), row);
        },
        SCHEDULES,
    );
}
