//! The local picture of the log of invalidations, and the verdict over an entry.
//!
//! Every invalidation gets a number of this process, `lc`. Every fill notes the number before it reads
//! anything. An entry is valid while no invalidation that reaches it has a later one. Log numbers do
//! the same between processes, for entries of the shared store.
//!
//! # Order
//!
//! [`Registry::publish`] writes cells and fence first and `lc` last, with release. A reader loads `lc` first,
//! with acquire: it then sees every cell of every number up to that one. A mark *clean as of lc* is set to
//! the `lc` that was loaded before the cells were read, so it never covers an invalidation whose cells
//! were not looked at. Whatever moves from one place to another is written at the new place before it
//! leaves the old one, and readers look at the old place first.

use std::{sync::Arc, time::Duration};

use ahash::RandomState;
use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_utils::CachePadded;
use smallvec::SmallVec;

use self::{
    bans::{Bans, Watermark},
    tag_versions::{Severity, TagVersions},
    writer::{Due, MAX_DUE, Ticket, Writer},
};
use crate::{
    bus::{Epoch, Position, Record},
    clock::Moment,
    key::Key,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering},
    tag::Tag,
    target::{Glob, Mode, Selector},
};

mod bans;
mod tag_versions;
pub(crate) mod writer;

/// When a fill began to read, in the numbers of this process and of the log.
///
/// Taken before anything is read, it decides every race with an invalidation: what the fill brings is
/// valid only while nothing later reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub(crate) local: u64,
    pub(crate) log: Option<Position>,
}

impl Stamp {
    /// The newest invalidation of this process that it has seen.
    pub fn number(self) -> u64 {
        self.local
    }

    /// The older of two stamps, in each of their parts. Without a log number on either side there is none.
    #[must_use]
    pub fn older(self, other: Self) -> Self {
        let log = match (self.log, other.log) {
            (Some(a), Some(b)) if a.epoch == b.epoch => {
                Some(Position { epoch: a.epoch, number: a.number.min(b.number) })
            }
            _ => None,
        };
        Self { local: self.local.min(other.local), log }
    }
}

/// Whether an entry is still true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// No invalidation reaches it.
    Valid,
    /// It was made stale.
    Stale,
    /// It is gone.
    Invalid,
}

/// What the registry has to know of an entry.
#[derive(Debug)]
pub(crate) struct TagMarks {
    /// The newest `lc` at which the entry was found clean; at first that of its stamp.
    checked: AtomicU64,
    tags: Box<[u64]>,
}

impl TagMarks {
    /// The marks of an entry whose tags lie at these places and that was filled under `stamp`.
    pub(crate) fn new(stamp: Stamp, places: &[u64]) -> Self {
        Self { checked: AtomicU64::new(stamp.local), tags: places.into() }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.tags.len() * size_of::<u64>()
    }
}

/// The log as far as this process has applied it. Replaced as a whole for each epoch.
#[derive(Debug)]
struct View {
    epoch: Epoch,
    applied: AtomicU64,
    /// The newest log number for each tag, for entries of the shared store. None without such a store.
    globals: Option<TagVersions>,
}

/// The local picture of the log.
#[derive(Debug)]
pub(crate) struct Registry {
    lc: CachePadded<AtomicU64>,
    next_due: AtomicU64,
    cells: TagVersions,
    fence: ArcSwap<Bans>,
    view: ArcSwapOption<View>,
    writer: Mutex<Writer>,
    /// How many wait for the log. Changed under the lock of the writer.
    pending: AtomicU64,
    hashing: RandomState,
    options: Options,
}

/// What the builder decides about the registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Cells in each table, a power of two.
    pub(crate) cells: usize,
    /// Whether entries are shared through a store, so that log numbers of tags are kept.
    pub(crate) shared: bool,
    /// The longest lifetime of an entry.
    pub(crate) longest: Duration,
    /// For how long our own invalidations are kept to be appended again.
    pub(crate) failover_bound: Duration,
}

impl Registry {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            lc: CachePadded::new(AtomicU64::new(0)),
            next_due: AtomicU64::new(Moment::NEVER.as_nanos()),
            cells: TagVersions::new(options.cells),
            fence: ArcSwap::default(),
            view: ArcSwapOption::empty(),
            writer: Mutex::new(Writer::default()),
            pending: AtomicU64::new(0),
            hashing: RandomState::new(),
            options,
        }
    }

    /// The number of the newest invalidation.
    pub(crate) fn sequence(&self) -> u64 {
        self.lc.load(Ordering::Acquire)
    }

    /// A stamp for what is read from now on: first the number of this process, then that of the log.
    pub(crate) fn stamp(&self) -> Stamp {
        let local = self.sequence();
        let log = if self.options.shared { self.applied() } else { None };
        Stamp { local, log }
    }

    /// How far the log has been applied. None while there is no view of it.
    pub(crate) fn applied(&self) -> Option<Position> {
        let view = self.view.load();
        let view = view.as_ref()?;
        Some(Position { epoch: view.epoch, number: view.applied.load(Ordering::Acquire) })
    }

    /// The marks of an entry of these tags that was filled under `stamp`.
    pub(crate) fn marks(&self, stamp: Stamp, tags: &[Tag]) -> TagMarks {
        TagMarks::new(stamp, &self.places(tags))
    }

    /// The verdict over an entry in memory.
    ///
    /// One comparison when nothing at all was invalidated since it was last found clean; what names the entry
    /// lies elsewhere and is then not looked at.
    #[inline]
    pub(crate) fn reach<'a>(
        &self,
        marks: &TagMarks,
        names: impl FnOnce() -> (&'a Key, &'a [Tag]),
    ) -> Verdict {
        let now = self.sequence();
        let clean_as_of = marks.checked.load(Ordering::Relaxed);
        if now <= clean_as_of {
            return Verdict::Valid;
        }
        let (key, tags) = names();
        self.reach_since(clean_as_of, now, marks, key, tags)
    }

    #[inline(never)]
    fn reach_since(
        &self,
        clean_as_of: u64,
        now: u64,
        marks: &TagMarks,
        key: &Key,
        tags: &[Tag],
    ) -> Verdict {
        let reach = match self.fence.load().reach(key, tags, clean_as_of) {
            Verdict::Invalid => Verdict::Invalid,
            by_fence => by_fence.max(self.cells.reach(&marks.tags, clean_as_of)),
        };
        if reach == Verdict::Valid {
            marks.checked.fetch_max(now, Ordering::Relaxed);
        }
        reach
    }

    /// The verdict over an entry of the shared store, by the numbers of the log.
    ///
    /// What cannot be decided (no view, another epoch) is invalid.
    pub(crate) fn reach_shared(
        &self,
        key: &Key,
        tags: &[Tag],
        places: &[u64],
        filled: Position,
    ) -> Verdict {
        // What leaves this list was written to the cells before.
        if self.pending.load(Ordering::Acquire) > 0
            && self.writer.lock().pending().any(|(_, record)| self.names(record, key, tags, places))
        {
            return Verdict::Invalid;
        }
        let view = self.view.load();
        let Some(view) = view.as_ref().filter(|view| view.epoch == filled.epoch) else {
            return Verdict::Invalid;
        };
        if filled.number > view.applied.load(Ordering::Acquire) {
            // Whoever filled it has seen records that we have not, and one of them may stand where the log
            // has lost one of ours. A moment later we know.
            return Verdict::Invalid;
        }
        let by_fence = self.fence.load().reach_in_log(key, tags, filled.number);
        view.globals
            .as_ref()
            .map_or(Verdict::Invalid, |globals| by_fence.max(globals.reach(places, filled.number)))
    }

    /// Acts in this process, and notes the record for the log: step 1 of an invalidation.
    pub(crate) fn begin(&self, record: Record, now: Moment) -> StartedInvalidation {
        self.begin_locked(&mut self.writer.lock(), record, now)
    }

    fn begin_locked(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        record: Record,
        now: Moment,
    ) -> StartedInvalidation {
        // On the list before `lc` moves: whoever sees the new `lc` also sees what is pending.
        let (ticket, record, collapsed) = writer.add_pending(record);
        self.count_pending(writer);
        let local = self.publish(writer, &record, 0, now);
        self.start_grace(writer, &record, local, None, now);
        StartedInvalidation { ticket, record, collapsed }
    }

    /// The log has the record: step 3.
    ///
    /// Published a second time, since something may have been promoted from the shared store in between.
    /// Where the view is of another epoch the record stays pending, to be appended again: `false`.
    pub(crate) fn settle(
        &self,
        ticket: Ticket,
        record: &Record,
        at: Position,
        now: Moment,
    ) -> bool {
        let mut writer = self.writer.lock();
        let view = self.view.load_full();
        let Some(view) = view.filter(|view| view.epoch == at.epoch) else {
            self.publish(&mut writer, record, 0, now);
            return false;
        };
        self.raise_globals(&view, record, at.number);
        self.publish(&mut writer, record, at.number, now);
        if !self.options.failover_bound.is_zero() {
            writer.note_own(at, record.clone());
            writer.retain(record.clone(), now, now.after(self.options.failover_bound));
        }
        writer.settle(ticket);
        self.count_pending(&writer);
        true
    }

    /// A log nobody else appends to is applied as soon as its record is published.
    pub(crate) fn advance_local(&self, at: Position) {
        if let Some(view) = self.view.load().as_ref() {
            view.applied.fetch_max(at.number, Ordering::AcqRel);
        }
    }

    /// Whether the log has another record where it once took one of ours: it has lost its tail since.
    pub(crate) fn contradicts(&self, at: Position, record: &Record) -> bool {
        self.writer.lock().contradicts(at, record)
    }

    /// A record that the log brought, the next one in order.
    pub(crate) fn apply(&self, number: u64, record: &Record, now: Moment) {
        let mut writer = self.writer.lock();
        let Some(view) = self.view.load_full() else { return };
        self.raise_globals(&view, record, number);
        let local = self.publish(&mut writer, record, number, now);
        let log = Some(Position { epoch: view.epoch, number });
        self.start_grace(&mut writer, record, local, log, now);
        // Last: a scope that sees this number has a local number behind the publish above.
        view.applied.fetch_max(number, Ordering::AcqRel);
    }

    /// Closes the view: the shared store is neither read nor written, and stamps carry no log number.
    pub(crate) fn close_view(&self) {
        self.view.store(None);
    }

    /// Opens a view at `end`, from the compacted log. What this process holds is dropped, since it may
    /// have missed anything up to here; of what lies in the shared store, what the log vouches for stays.
    pub(crate) fn open_view(
        &self,
        end: Position,
        horizon: u64,
        records: &[(u64, Record)],
        now: Moment,
    ) {
        let mut writer = self.writer.lock();
        let view = self.view_of(end, records);
        let next = self.sequence() + 1;
        let floor = Watermark { local: next, log: horizon };
        let mut fence = Bans::default().with_floor(Severity::Hard, floor);
        for (number, record) in records {
            let record = Record { mode: without_grace(record.mode), ..record.clone() };
            fence = self.fenced(fence, &record, Watermark { local: 0, log: *number }, now);
        }
        // The floor covers the patterns of this process that the new fence no longer has.
        self.fence.store(Arc::new(fence));
        self.announce(&mut writer, next);
        self.view.store(Some(Arc::new(view)));
    }

    /// Goes on with the same log, of which all up to `seen` was applied, behind a gap: what came since acts now, and
    /// nothing else is dropped.
    pub(crate) fn go_on(
        &self,
        end: Position,
        horizon: u64,
        records: &[(u64, Record)],
        seen: u64,
        now: Moment,
    ) {
        let mut writer = self.writer.lock();
        let view = self.view_of(end, records);
        for (number, record) in records.iter().filter(|(number, _)| *number > seen) {
            let record = Record { mode: without_grace(record.mode), ..record.clone() };
            self.publish(&mut writer, &record, *number, now);
        }
        let floor = Watermark { local: 0, log: horizon };
        let fence = Bans::clone(&self.fence.load()).with_floor(Severity::Hard, floor);
        self.fence.store(Arc::new(fence));
        // Last: a scope that sees its end has a local number behind the publishes above.
        self.view.store(Some(Arc::new(view)));
    }

    /// A view at `end`, of what the compacted log says.
    fn view_of(&self, end: Position, records: &[(u64, Record)]) -> View {
        let globals = self.options.shared.then(|| TagVersions::new(self.options.cells));
        let view = View { epoch: end.epoch, applied: AtomicU64::new(end.number), globals };
        for (number, record) in records {
            let record = Record { mode: without_grace(record.mode), ..record.clone() };
            self.raise_globals(&view, &record, *number);
        }
        view
    }

    /// Notes an invalidation that acts at `at`. However many wait, none is refused: to act too early would
    /// be to miss what is filled until then.
    pub(crate) fn schedule(&self, at: Moment, record: Record) -> u64 {
        let mut writer = self.writer.lock();
        let id = writer.schedule(at, Due::Publish(record));
        self.announce_due(&writer);
        id
    }

    /// The log of this epoch keeps what was scheduled under this number.
    pub(crate) fn note_registered(&self, id: u64, epoch: Epoch) {
        self.writer.lock().note_registered(id, epoch);
    }

    /// What acts later and the current log does not keep: it would be lost with this process.
    pub(crate) fn unregistered(&self) -> Vec<(u64, Moment, Record)> {
        let epoch = self.applied().map(|at| at.epoch);
        epoch.map(|epoch| self.writer.lock().unregistered(epoch)).unwrap_or_default()
    }

    /// Whether something waits whose time has come. One load.
    #[inline]
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        now.as_nanos() >= self.next_due.load(Ordering::Acquire)
    }

    /// Acts on everything whose time has come. Afterwards [`Registry::unsent`] may have more.
    ///
    /// Whoever looks an entry up does this first, so no timer is needed and none can be late.
    pub(crate) fn run_due(&self, now: Moment) -> Vec<Record> {
        let mut published = Vec::new();
        loop {
            let mut writer = self.writer.lock();
            let Some(due) = writer.take_due(now) else {
                self.announce_due(&writer);
                return published;
            };
            match due {
                Due::Publish(record) => {
                    published.push(self.begin_locked(&mut writer, record, now).record);
                }
                Due::Harden { local, log, what } => {
                    self.harden(&mut writer, local, log, &what, now);
                }
            }
        }
    }

    /// What the log does not have yet.
    pub(crate) fn unsent(&self) -> Vec<(Ticket, Record)> {
        self.writer.lock().pending().cloned().collect()
    }

    /// What has to be appended again because the log was replaced: it becomes pending once more.
    pub(crate) fn resend_retained(&self, now: Moment) {
        let mut writer = self.writer.lock();
        for record in writer.take_retained(now) {
            drop(writer.add_pending(record));
            self.count_pending(&writer);
        }
    }

    /// Whether an invalidation waits for the log of which this does not hold.
    pub(crate) fn has_unsent_but(&self, holds: impl Fn(Ticket) -> bool) -> bool {
        self.writer.lock().pending().any(|(ticket, _)| !holds(*ticket))
    }

    /// How many invalidations wait for the log, and how many for their time.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let writer = self.writer.lock();
        (writer.pending_len(), writer.scheduled_len())
    }

    /// Cells or fence first, then `lc`.
    fn publish(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        record: &Record,
        log: u64,
        now: Moment,
    ) -> u64 {
        let next = self.sequence() + 1;
        let side = side(record.mode);
        for selector in &record.what {
            if let Selector::Tag(tag) = selector {
                self.cells.raise(self.place(tag), side, next);
            }
        }
        self.fence_off(record, Watermark { local: next, log }, now);
        self.announce(writer, next);
        next
    }

    fn announce(&self, _held: &mut MutexGuard<'_, Writer>, next: u64) {
        self.lc.store(next, Ordering::Release);
    }

    fn fence_off(&self, record: &Record, at: Watermark, now: Moment) {
        if record.what.iter().all(|selector| matches!(selector, Selector::Tag(_))) {
            return;
        }
        let fence = Bans::clone(&self.fence.load());
        self.fence.store(Arc::new(self.fenced(fence, record, at, now)));
    }

    /// `fence` with what the record names by other means than tags.
    fn fenced(&self, fence: Bans, record: &Record, at: Watermark, now: Moment) -> Bans {
        let side = side(record.mode);
        record.what.iter().fold(fence, |fence, selector| match selector {
            Selector::Tag(_) => fence,
            Selector::Everything => fence.with_floor(side, at),
            Selector::Pattern { namespace, glob } => {
                let glob = Glob::new(namespace, glob);
                fence.with_ban(glob, side, at, now, self.options.longest)
            }
        })
    }

    fn raise_globals(&self, view: &View, record: &Record, number: u64) {
        let Some(globals) = &view.globals else { return };
        for selector in &record.what {
            if let Selector::Tag(tag) = selector {
                globals.raise(self.place(tag), side(record.mode), number);
            }
        }
    }

    fn start_grace(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        record: &Record,
        local: u64,
        log: Option<Position>,
        now: Moment,
    ) {
        let Mode::Soft { grace: Some(grace) } = record.mode else { return };
        let due = Due::Harden { local, log, what: record.what.clone() };
        if writer.scheduled_len() < MAX_DUE {
            writer.schedule(now.after(grace), due);
            self.announce_due(writer);
        } else {
            // Too early is safe for what is stale already.
            self.harden(writer, local, log, &record.what, now);
        }
    }

    /// What was soft under these numbers becomes hard under the same numbers; only `lc` moves on.
    fn harden(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        local: u64,
        log: Option<Position>,
        what: &[Selector],
        now: Moment,
    ) {
        let view = self.view.load();
        // Numbers of a log that was replaced say nothing of the new one.
        let log = log.filter(|at| view.as_ref().is_some_and(|view| view.epoch == at.epoch));
        let log = log.map_or(0, |at| at.number);
        for selector in what {
            if let Selector::Tag(tag) = selector {
                self.cells.raise(self.place(tag), Severity::Hard, local);
                if let Some(globals) = view.as_ref().and_then(|view| view.globals.as_ref()) {
                    globals.raise(self.place(tag), Severity::Hard, log);
                }
            }
        }
        let record = Record {
            origin: crate::bus::WriterId::random(),
            mode: Mode::Hard,
            what: what.to_vec(),
        };
        self.fence_off(&record, Watermark { local, log }, now);
        let next = self.sequence() + 1;
        self.announce(writer, next);
    }

    fn count_pending(&self, writer: &Writer) {
        self.pending.store(writer.pending_len() as u64, Ordering::Release);
    }

    fn announce_due(&self, writer: &MutexGuard<'_, Writer>) {
        self.next_due.store(writer.next_due().as_nanos(), Ordering::Release);
    }

    fn names(&self, record: &Record, key: &Key, tags: &[Tag], places: &[u64]) -> bool {
        record.what.iter().any(|selector| match selector {
            Selector::Tag(tag) => places.contains(&self.place(tag)),
            Selector::Pattern { namespace, glob } => Glob::new(namespace, glob).matches(key, tags),
            Selector::Everything => true,
        })
    }

    fn place(&self, tag: &Tag) -> u64 {
        self.hashing.hash_one(tag.as_str())
    }

    /// Where the tags and everything above them lie.
    pub(crate) fn places(&self, tags: &[Tag]) -> SmallVec<[u64; 12]> {
        let mut places = SmallVec::new();
        for tag in tags {
            places.push(self.place(tag));
            for ancestor in tag.ancestors() {
                let place = self.place(&ancestor);
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        places
    }
}

/// An invalidation that acts in this process and is on its way into the log.
#[derive(Clone, Debug)]
pub(crate) struct StartedInvalidation {
    pub(crate) ticket: Ticket,
    /// What has to be appended: the invalidation, or everything.
    pub(crate) record: Record,
    /// Whether so many were waiting that all became one of everything.
    pub(crate) collapsed: bool,
}

/// Nobody knows when a grace of the compacted log began, so it is over.
fn without_grace(mode: Mode) -> Mode {
    match mode {
        Mode::Soft { grace: Some(_) } => Mode::Hard,
        mode => mode,
    }
}

fn side(mode: Mode) -> Severity {
    match mode {
        Mode::Hard => Severity::Hard,
        Mode::Soft { .. } => Severity::Soft,
    }
}

#[cfg(test)]
mod tests;
