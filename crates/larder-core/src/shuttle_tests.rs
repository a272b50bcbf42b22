//! Promise 1 (fresh: no read after an invalidation returns an older value) under random schedules of threads.
//!
//! The tests are built only with `--cfg larder_shuttle`, which makes each atomic and lock of the registry and of the
//! index a point at which the explorer may switch threads. `scripts/test` runs them.

use std::{sync::Arc, time::Duration};

use shuttle::{
    check_pct, check_random,
    future::block_on,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::{
    Larder,
    bus::{Epoch, Position, Record, WriterId},
    clock::{Clock, Moment},
    entry::{AnyEntry, Entry, EntryMetadata, Value},
    kernel::{
        fill_loop::row_request::{Outcome, ReadRow, RowRequest},
        fill_or_wait,
    },
    key::{Key, KeyBuf, Kind},
    lifetime::Lifetime,
    memory::{Eviction, Memory},
    registry::{Options, Registry, Stamp, Verdict},
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

/// A row, a cache of it, and the registry of that cache.
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
            memory: Memory::new(1 << 20, Eviction::Lru, Clock::start()),
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
        let origins = EntryMetadata {
            hash: self.memory.hash(key.as_bytes()),
            id: self.memory.next_id(),
            ends: ends.ends(Moment::START, Duration::from_secs(60), 0),
            stamp,
            marks: self.registry.marks(stamp, &Self::tags()),
            tags: Self::tags(),
            provenance: crate::provenance::Provenance::default(),
            cost: Duration::ZERO,
            tiers: crate::Tiers::MEMORY,
            idle: None,
            extended: None,
        };
        Arc::new(Entry::new(key, origins, Version(version)))
    }

    fn is_valid(&self, entry: &AnyEntry) -> bool {
        self.registry.reach(&entry.marks, || (entry.key(), entry.tags())) == Verdict::Valid
    }

    /// Reads through the cache, as a request does.
    fn read(&self) -> u64 {
        let key = Self::key();
        let hash = self.memory.hash(key.as_bytes());
        let kept = self
            .memory
            .read(hash, key.as_bytes(), |entry| self.is_valid(entry).then(|| version(entry)));
        kept.unwrap_or_else(|| version(&self.fill(self.registry.stamp())))
    }

    /// Reads the row and stores its value.
    fn fill(&self, stamp: Stamp) -> AnyEntry {
        let entry = self.entry(stamp, self.row.load(Ordering::SeqCst));
        if self.is_valid(&entry) {
            let newer =
                |there: &AnyEntry| there.stamp().local > stamp.local && self.is_valid(there);
            drop(self.memory.put(&entry, newer));
        }
        entry
    }

    /// Writes the row, then invalidates the entries that depend on it.
    fn write(&self, version: u64) {
        self.row.store(version, Ordering::SeqCst);
        let what = vec![Selector::Tag(Tag::new("row"))];
        let record = Record {
            origin: WriterId::random(),
            mode: Mode::Hard,
            what,
            commit: None,
            note: crate::record_note::RecordNote::default(),
        };
        drop(self.registry.begin(record, Moment::START));
    }
}

fn version(entry: &AnyEntry) -> u64 {
    entry.value::<Version>().expect("nothing else is kept here").0
}

#[test]
fn a_read_after_an_invalidation_never_sees_an_older_value() {
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
fn two_writers_do_not_leave_a_stale_entry() {
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

/// Reads the row through the fill loop, as a request does that may wait for the fill of another.
fn read_together(larder: &Larder, row: &ReadRow) -> u64 {
    let request = RowRequest::new(larder.kernel(), row);
    let outcome = request.look().unwrap_or_else(|| block_on(fill_or_wait(request)));
    match outcome {
        Outcome::Hit(version)
        | Outcome::Led(version)
        | Outcome::Took(version)
        | Outcome::Alone(_, version) => version,
        Outcome::ReadAlong | Outcome::Failed => unreachable!("no fill here streams or fails"),
    }
}

#[test]
fn the_fill_loop_returns_nothing_from_before_an_invalidation() {
    // Waits have deadlines, which need the clock of a runtime. All threads of an exploration are on this one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime starts");
    let _entered = runtime.enter();
    // By priorities: at random, a fill seldom spans a whole invalidation and the request after it.
    check_pct(
        || {
            let builder = Larder::builder().tag_table_slots(1 << 10);
            let larder = builder.build().expect("the options are valid");
            let row = Arc::new(AtomicU64::new(0));
            let read: ReadRow = {
                let row = Arc::clone(&row);
                Arc::new(move || row.load(Ordering::SeqCst))
            };
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let (larder, read) = (larder.clone(), Arc::clone(&read));
                    thread::spawn(move || read_together(&larder, &read))
                })
                .collect();
            for version in 1..=2 {
                row.store(version, Ordering::SeqCst);
                let _ = block_on(larder.invalidate(RowRequest::tag()));
                assert!(read_together(&larder, &read) >= version);
            }
            for reader in readers {
                reader.join().expect("no reader panics");
            }
            assert_eq!(larder.stats().fills_running, 0);
            assert_eq!(read_together(&larder, &read), 2);
        },
        SCHEDULES / 5,
        3,
    );
}

/// The registry of a process that shares its log with others.
fn shared_registry() -> Arc<Registry> {
    Arc::new(Registry::new(Options {
        cells: 2,
        shared: true,
        longest: Duration::from_secs(60),
        failover_bound: Duration::ZERO,
    }))
}

#[test]
fn a_stamp_never_mixes_two_views_of_the_log() {
    check_random(
        || {
            let registry = shared_registry();
            let [old, new] = [(Epoch::random(), 700), (Epoch::random(), 3)]
                .map(|(epoch, number)| Position { epoch, number });
            registry.open_view(old, 0, &[], Moment::START);
            let opening = Arc::clone(&registry);
            let opens = thread::spawn(move || opening.open_view(new, 0, &[], Moment::START));
            let seen = registry.stamp().log;
            assert!([Some(old), Some(new)].contains(&seen), "{seen:?}");
            opens.join().expect("it does not panic");
        },
        SCHEDULES,
    );
}

/// A fill under a log number must not read an entry that the record of this number reaches, because its own value would
/// be stored in the second level as if it were newer than the record.
#[test]
fn a_stamp_with_a_log_number_sees_the_effect_of_that_record() {
    check_random(
        || {
            let registry = shared_registry();
            let end = Position { epoch: Epoch::random(), number: 7 };
            registry.open_view(end, 0, &[], Moment::START);
            let (key, tags) = (World::key(), World::tags());
            let part = registry.marks(registry.stamp(), &tags);
            let applying = Arc::clone(&registry);
            let applies = thread::spawn(move || {
                let what = World::tags().into_iter().map(Selector::Tag).collect();
                let record = Record {
                    origin: WriterId::random(),
                    mode: Mode::Hard,
                    what,
                    commit: None,
                    note: crate::record_note::RecordNote::default(),
                };
                applying.apply(8, &record, Moment::START);
            });
            let stamp = registry.stamp();
            let reach = registry.reach(&part, || (&key, &tags));
            let follows = stamp.log.is_some_and(|at| at.number == 8);
            assert!(!follows || reach == Verdict::Invalid, "{stamp:?}: {reach:?}");
            applies.join().expect("it does not panic");
        },
        SCHEDULES,
    );
}
