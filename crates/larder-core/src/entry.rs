//! Entries: a value with the metadata that decides whether it may still be served.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    clock::Moment,
    key::Key,
    lifetime::{Ends, Phase},
    metrics::Route,
    provenance::{LifetimeCut, LifetimeSource, Provenance, TagSource},
    registry::{Stamp, TagMarks},
    schema::Schema,
    sync::{AtomicU64, Ordering},
    tag::Tag,
    tiers::Tiers,
};

/// A value that an entry can hold. The first level stores it as it is; it is encoded only for a
/// [`Store`](crate::store::Store).
pub trait Value: Any + Send + Sync {
    /// Returns all bytes that it holds, on the heap and elsewhere.
    fn weight(&self) -> usize;

    /// Returns the name of its type, for error messages.
    fn type_name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// Encodes it for the second level. `None` if the value stays in this process.
    fn encode(&self) -> Option<EncodedValue> {
        None
    }

    /// Returns the schema of the encoded value. `None` if the value stays in this process, or if its entry never changes
    /// its lifetime in the second level.
    fn schema(&self) -> Option<Schema> {
        None
    }

    /// Whether decoding its bytes would give another value. Such a value stays in this process.
    fn is_lossy(&self) -> bool {
        false
    }

    /// Returns the route of the response that it is, if a router has told it.
    fn route(&self) -> Option<&Route> {
        None
    }

    /// Returns a digest by which two values of a key are compared. `None` if it takes no bytes that can be compared.
    fn digest(&self) -> Option<u64> {
        self.encode().map(|encoded| xxh3_64(&encoded.bytes))
    }

    /// Returns this value as [`Any`], for a downcast.
    fn as_any(&self) -> &dyn Any;
}

/// A value as it is stored in the second level.
#[derive(Clone, Debug)]
pub struct EncodedValue {
    /// The schema that a reader must have.
    pub schema: Schema,
    /// The encoded value.
    pub bytes: Vec<u8>,
}

/// An entry: one allocation with the value and all the data that a hit reads.
///
/// Fields that only fills and invalidations need are in a separate allocation. The other fields are in the order in
/// which a hit reads them, so that it touches as few cache lines as possible.
#[repr(C)]
pub struct Entry<V: ?Sized = dyn Value> {
    key: Key,
    pub(crate) marks: TagMarks,
    ends: Ends,
    /// When the entry ends unless it is read before, in nanoseconds; the maximum if reads do not matter.
    idle_until: AtomicU64,
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
    provenance: Provenance,
    cost: Duration,
    weight: usize,
    tiers: Tiers,
    /// The time without a read after which the entry ends, if its lifetime slides.
    idle: Option<Duration>,
    /// When its lifetime was last written to the second level, in nanoseconds.
    extended: AtomicU64,
}

/// An entry of any type, as the levels hold it.
pub type AnyEntry = Arc<Entry>;

/// The parts of an entry besides its key and its value.
#[derive(Debug)]
pub(crate) struct EntryMetadata {
    pub(crate) hash: u64,
    pub(crate) id: u64,
    pub(crate) ends: Ends,
    pub(crate) stamp: Stamp,
    pub(crate) marks: TagMarks,
    pub(crate) tags: Vec<Tag>,
    pub(crate) provenance: Provenance,
    pub(crate) cost: Duration,
    pub(crate) tiers: Tiers,
    pub(crate) idle: Option<IdleTime>,
    /// When its ends were last written to the second level, if that was not at its fill.
    pub(crate) extended: Option<Moment>,
}

/// The idle time of an entry whose lifetime slides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleTime {
    /// The time without a read after which the entry ends.
    pub(crate) after: Duration,
    /// The last read.
    pub(crate) read: Moment,
}

impl<V: Value> Entry<V> {
    pub(crate) fn new(key: Key, origins: EntryMetadata, value: V) -> Self {
        let (tags, ends) = (origins.tags.into_boxed_slice(), origins.ends);
        let weight = size_of::<Self>()
            + size_of::<ColdFields>()
            + BOOKKEEPING_BYTES
            + key.heap_bytes()
            + origins.marks.heap_bytes()
            + tags.iter().map(|tag| size_of::<Tag>() + tag.heap_bytes()).sum::<usize>()
            + origins.provenance.tags.len()
            + value.weight();
        Self {
            hash: origins.hash,
            id: origins.id,
            ends,
            marks: origins.marks,
            idle_until: AtomicU64::new(
                origins.idle.map_or(u64::MAX, |idle| idle.read.after(idle.after).as_nanos()),
            ),
            touches: AtomicU64::new(0),
            cold: Box::new(ColdFields {
                stamp: origins.stamp,
                tags,
                provenance: origins.provenance,
                cost: origins.cost,
                weight,
                tiers: origins.tiers,
                idle: origins.idle.map(|idle| idle.after),
                extended: AtomicU64::new(origins.extended.unwrap_or(ends.filled).as_nanos()),
            }),
            key,
            value,
        }
    }
}

impl<V: ?Sized> Entry<V> {
    /// Returns its key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the times at which its phases end.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Returns the phase at `now`, without regard to invalidations.
    pub fn phase(&self, now: Moment) -> Phase {
        if self.is_idle(now) { Phase::Gone } else { self.ends.phase(now) }
    }

    /// Returns whether its lifetime slides and has ended, because it was not read for too long.
    pub(crate) fn is_idle(&self, now: Moment) -> bool {
        now.as_nanos() >= self.idle_until.load(Ordering::Relaxed)
    }

    /// Returns when freshness ends if the entry is not read again.
    pub fn fresh_until(&self) -> Moment {
        self.ends.fresh_until().min(Moment::from_nanos(self.idle_until.load(Ordering::Relaxed)))
    }

    /// Returns the idle time, if its lifetime slides.
    pub(crate) fn idle(&self) -> Option<IdleTime> {
        let after = self.cold.idle?;
        let read = Moment::from_nanos(self.idle_until.load(Ordering::Relaxed)).before(after);
        Some(IdleTime { after, read })
    }

    pub(crate) fn extended(&self) -> Moment {
        Moment::from_nanos(self.cold.extended.load(Ordering::Relaxed))
    }

    /// Notes a read, from which a sliding lifetime counts anew.
    pub(crate) fn slide(&self, now: Moment) {
        if let Some(after) = self.cold.idle {
            self.idle_until.fetch_max(now.after(after).as_nanos(), Ordering::Relaxed);
        }
    }

    /// Returns whether to write the lifetime to the second level now: at most once a minute.
    pub(crate) fn is_to_extend(&self, now: Moment) -> bool {
        let extended = self.extended();
        now.since(extended) >= BETWEEN_EXTENSIONS
            && self
                .cold
                .extended
                .compare_exchange(
                    extended.as_nanos(),
                    now.as_nanos(),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// Returns all of its tags, including larder's own.
    pub fn tags(&self) -> &[Tag] {
        &self.cold.tags
    }

    /// Returns all of its tags with their sources.
    pub fn sourced_tags(&self) -> impl Iterator<Item = (&Tag, TagSource)> {
        let sources = self.cold.provenance.tags.iter().copied();
        self.cold.tags.iter().zip(sources.chain(std::iter::repeat(TagSource::Unknown)))
    }

    /// Returns which option, directive or field gave it its freshness lifetime.
    pub fn lifetime_source(&self) -> LifetimeSource {
        self.cold.provenance.lifetime
    }

    /// Returns what ended its freshness before the end of its lifetime.
    pub fn lifetime_cut(&self) -> LifetimeCut {
        self.cold.provenance.cut
    }

    /// Returns the number of queries that ran in its fill.
    pub fn queries(&self) -> u32 {
        self.cold.provenance.queries
    }

    pub(crate) fn provenance(&self) -> &Provenance {
        &self.cold.provenance
    }

    /// Returns the stamp of its fill.
    pub fn stamp(&self) -> Stamp {
        self.cold.stamp
    }

    /// Returns the duration of the fill.
    pub fn cost(&self) -> Duration {
        self.cold.cost
    }

    /// Returns its level placement.
    pub(crate) fn tiers(&self) -> Tiers {
        self.cold.tiers
    }

    /// Returns the bytes that it holds: key, tags, value and bookkeeping.
    pub fn weight(&self) -> usize {
        self.cold.weight
    }

    /// Returns the number of hits in the first level since it was stored there, of which some may be missing.
    pub fn hits(&self) -> u64 {
        self.touches()
    }

    /// Returns the number of hits since it was stored, of which some may be missing.
    pub(crate) fn touches(&self) -> u64 {
        self.touches.load(Ordering::Relaxed)
    }

    /// Counts a hit. Returns the number of hits since the last report if this one is to be reported to the eviction policy of
    /// the first level. Larder reports the first, second, third, fifth, ninth hit and so on, so that a new entry gains
    /// frequency, and later one hit in 64.
    #[inline]
    pub(crate) fn touch(&self) -> Option<u64> {
        // Two hits that race may count as one hit, which is harmless because this count selects a sample and ranks hot URLs.
        let touches = self.touches.load(Ordering::Relaxed);
        self.touches.store(touches.wrapping_add(1), Ordering::Relaxed);
        match touches {
            0 | 1 => Some(1),
            2..=TOUCHES_BETWEEN => touches.is_power_of_two().then_some(touches / 2),
            _ => touches.is_multiple_of(TOUCHES_BETWEEN).then_some(TOUCHES_BETWEEN),
        }
    }
}

impl Entry {
    /// Returns the value, if it is a `V`.
    pub fn value<V: Value>(&self) -> Option<&V> {
        self.value.as_any().downcast_ref()
    }

    /// Returns the name of the value's type.
    pub fn type_name(&self) -> &'static str {
        self.value.type_name()
    }

    pub(crate) fn route(&self) -> Option<&Route> {
        self.value.route()
    }

    pub(crate) fn digest(&self) -> Option<u64> {
        self.value.digest()
    }

    pub(crate) fn is_lossy(&self) -> bool {
        self.value.is_lossy()
    }

    pub(crate) fn schema(&self) -> Option<Schema> {
        self.value.schema()
    }

    pub(crate) fn encode_value(&self) -> Option<EncodedValue> {
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

/// The bytes that the index and the eviction policy of the first level hold for each entry: a slot of the table,
/// and the policy's key, queue nodes and timer.
const BOOKKEEPING_BYTES: usize = 320;
const TOUCHES_BETWEEN: u64 = 64;
/// The time between two writes of the lifetime of an entry to the second level. So another process may serve a sliding
/// entry this much longer than its idle time.
pub(crate) const BETWEEN_EXTENSIONS: Duration = Duration::from_secs(60);
