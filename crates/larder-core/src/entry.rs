//! What is kept: a value with what it takes to know whether it may still be served.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use crate::{
    clock::Moment,
    key::Key,
    lifetime::{Ends, Phase},
    registry::{Stamp, TagMarks},
    schema::Schema,
    sync::{AtomicU64, Ordering},
    tag::Tag,
    tiers::Tiers,
};

/// Something an entry can hold. In memory it is kept as it is; only for a [`Store`](crate::store::Store) is it
/// ever turned into bytes.
pub trait Value: Any + Send + Sync {
    /// All bytes it holds, on the heap and off it.
    fn weight(&self) -> usize;

    /// The name of its type, for errors that have to name it.
    fn type_name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// Its bytes for a shared store; `None` for what stays in this process.
    fn encode(&self) -> Option<Encoded> {
        None
    }

    /// Whether its bytes would give back another value, so that it stays in this process.
    fn is_lossy(&self) -> bool {
        false
    }

    /// This value as something that can be asked for its type.
    fn as_any(&self) -> &dyn Any;
}

/// A value as it lies in a shared store.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Who can read it.
    pub schema: Schema,
    /// What is written.
    pub bytes: Vec<u8>,
}

/// An entry: one allocation with the value and all that a hit looks at.
///
/// What only fills and invalidations need lies apart, and what a hit reads lies in the order in which it
/// reads it, so that it touches as few cache lines as it can.
#[repr(C)]
pub struct Entry<V: ?Sized = dyn Value> {
    key: Key,
    pub(crate) marks: TagMarks,
    ends: Ends,
    touches: AtomicU64,
    pub(crate) hash: u64,
    pub(crate) id: u64,
    cold: Box<ColdFields>,
    value: V,
}

#[derive(Debug)]
struct ColdFields {
    stamp: Stamp,
    tags: Box<[Tag]>,
    cost: Duration,
    weight: usize,
    tiers: Tiers,
}

/// An entry of any type, as the tiers hold it.
pub type AnyEntry = Arc<Entry>;

/// All that makes an entry besides its value and its key.
#[derive(Debug)]
pub(crate) struct EntryMetadata {
    pub(crate) hash: u64,
    pub(crate) id: u64,
    pub(crate) ends: Ends,
    pub(crate) stamp: Stamp,
    pub(crate) marks: TagMarks,
    pub(crate) tags: Vec<Tag>,
    pub(crate) cost: Duration,
    pub(crate) tiers: Tiers,
}

impl<V: Value> Entry<V> {
    pub(crate) fn new(key: Key, origins: EntryMetadata, value: V) -> Self {
        let tags = origins.tags.into_boxed_slice();
        let weight = size_of::<Self>()
            + size_of::<ColdFields>()
            + BOOKKEEPING_BYTES
            + key.heap_bytes()
            + origins.marks.heap_bytes()
            + tags.iter().map(|tag| size_of::<Tag>() + tag.heap_bytes()).sum::<usize>()
            + value.weight();
        Self {
            hash: origins.hash,
            id: origins.id,
            ends: origins.ends,
            marks: origins.marks,
            touches: AtomicU64::new(0),
            cold: Box::new(ColdFields {
                stamp: origins.stamp,
                tags,
                cost: origins.cost,
                weight,
                tiers: origins.tiers,
            }),
            key,
            value,
        }
    }
}

impl<V: ?Sized> Entry<V> {
    /// The name.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// When its phases end.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// The phase at `now`, by time alone.
    pub fn phase(&self, now: Moment) -> Phase {
        self.ends.phase(now)
    }

    /// Everything it was made of, larder's own tags included.
    pub fn tags(&self) -> &[Tag] {
        &self.cold.tags
    }

    /// When its fill began to read.
    pub fn stamp(&self) -> Stamp {
        self.cold.stamp
    }

    /// What the fill took.
    pub fn cost(&self) -> Duration {
        self.cold.cost
    }

    /// Where it is kept.
    pub(crate) fn tiers(&self) -> Tiers {
        self.cold.tiers
    }

    /// All bytes held: key, tags, value and bookkeeping.
    pub fn weight(&self) -> usize {
        self.cold.weight
    }

    /// Counts a hit, and says whether the policy of the memory tier should hear of it: of the
    /// first, second, third, fifth, ninth and so on, so that an entry earns its place, and then of one in 64.
    pub(crate) fn touch(&self) -> bool {
        // Two hits that race may count as one: this only steers a sample.
        let touches = self.touches.load(Ordering::Relaxed);
        self.touches.store(touches.wrapping_add(1), Ordering::Relaxed);
        touches.is_multiple_of(TOUCHES_BETWEEN)
            || (touches < TOUCHES_BETWEEN && touches.is_power_of_two())
    }
}

impl Entry {
    /// The value, if it is a `V`.
    pub fn value<V: Value>(&self) -> Option<&V> {
        self.value.as_any().downcast_ref()
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> &'static str {
        self.value.type_name()
    }

    pub(crate) fn is_lossy(&self) -> bool {
        self.value.is_lossy()
    }

    pub(crate) fn encode_value(&self) -> Option<Encoded> {
        self.value.encode()
    }
}

impl<V: ?Sized> fmt::Debug for Entry<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("ends", &self.ends)
            .field("tags", &self.cold.tags)
            .finish_non_exhaustive()
    }
}

/// What the index and the policy of the memory tier hold for each entry: a slot of the table, and the
/// policy's key, queue nodes and timer.
const BOOKKEEPING_BYTES: usize = 320;
const TOUCHES_BETWEEN: u64 = 64;
