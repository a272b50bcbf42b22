//! The registry: this process's view of the invalidation log, from which it decides whether an entry is valid.
//!
//! Every invalidation gets a sequence number of this process, `lc`. Every fill takes the current number into its
//! stamp before it reads anything. An entry is valid while no invalidation that reaches it has a later number. Log
//! numbers do the same between processes, for entries of the second level.
//!
//! # Order
//!
//! [`Registry::publish`] writes tag versions and bans first and `lc` last, with release. A reader loads `lc` first,
//! with acquire, so that it sees every tag version of every number up to the loaded number. A mark *clean as of lc* is
//! set to the `lc` that was loaded before the tag versions were read, so it never covers an invalidation whose tag
//! versions were not read. A record that moves from one place to another is written to the new place before it is
//! removed from the old place, and readers read the old place first.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use ahash::RandomState;
use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_utils::CachePadded;
use smallvec::SmallVec;

pub use self::verdict::Verdict;
use self::{
    bans::{Bans, Watermark},
    recent_records::{OwnRecord, RecordOrigin},
    tag_versions::{Severity, TagVersions},
    writer::{Due, MAX_DUE, Ticket, Writer},
};
use crate::{
    bus::{CommitId, Epoch, Position, Record},
    clock::Moment,
    key::Key,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering},
    tag::Tag,
    target::{Glob, Mode, Selector},
};

mod bans;
mod commits;
pub(crate) mod recent_records;
mod tag_versions;
mod verdict;
pub(crate) mod writer;

/// The start of a fill: the sequence number of this process and, if there is a second level, the position in the log.
///
/// A fill takes its stamp before it reads anything, so the stamp decides every race with an invalidation: the filled
/// entry is valid only while no later invalidation reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub(crate) local: u64,
    pub(crate) log: Option<Position>,
}

impl Stamp {
    /// Returns the sequence number of the newest invalidation that it covers.
    pub fn number(self) -> u64 {
        self.local
    }

    /// Returns the older of two stamps, part by part. The log position is `None` unless both stamps have a position in
    /// the same epoch.
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

/// The registry's data of an entry: the hashes of its tags, and when it was last found valid.
#[derive(Debug)]
pub(crate) struct TagMarks {
    /// The newest `lc` at which the entry was found valid, which is initially the number of its stamp.
    checked: AtomicU64,
    tags: Box<[u64]>,
}

impl TagMarks {
    /// Creates the marks of an entry that was filled under `stamp` and whose tags have these hashes.
    pub(crate) fn new(stamp: Stamp, places: &[u64]) -> Self {
        Self { checked: AtomicU64::new(stamp.local), tags: places.into() }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.tags.len() * size_of::<u64>()
    }
}

/// A view of the log, as far as this process has applied it. Replaced as a whole when a new view is opened.
#[derive(Debug)]
struct View {
    epoch: Epoch,
    applied: AtomicU64,
    /// Tag versions by log number, for entries of the second level. `None` without a second level.
    globals: Option<TagVersions>,
}

/// This process's view of the log: tag versions, bans, and invalidations that are pending or scheduled.
#[derive(Debug)]
pub(crate) struct Registry {
    lc: CachePadded<AtomicU64>,
    next_due: AtomicU64,
    cells: TagVersions,
    fence: ArcSwap<Bans>,
    view: ArcSwapOption<View>,
    writer: Mutex<Writer>,
    /// Number of invalidations that are pending for the log. Changed under the lock of the writer.
    pending: AtomicU64,
    hashing: RandomState,
    /// Whether the writer remembers records one by one.
    remembers: AtomicBool,
    options: Options,
}

/// Options of the registry, set by the builder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Slots in each tag table, a power of two.
    pub(crate) cells: usize,
    /// Whether there is a second level, so that tag versions by log number are needed.
    pub(crate) shared: bool,
    /// The longest lifetime of an entry.
    pub(crate) longest: Duration,
    /// How long own invalidations are retained, to be appended again if the log is replaced.
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
            remembers: AtomicBool::new(false),
            options,
        }
    }

    /// Returns the sequence number of the newest invalidation.
    pub(crate) fn sequence(&self) -> u64 {
        self.lc.load(Ordering::Acquire)
    }

    /// Takes a stamp for all later reads. It reads the sequence number of this process first, and then the position in
    /// the log.
    pub(crate) fn stamp(&self) -> Stamp {
        let local = self.sequence();
        let log = if self.options.shared { self.applied() } else { None };
        Stamp { local, log }
    }

    /// Returns the position up to which the log has been applied; `None` while there is no view of it.
    pub(crate) fn applied(&self) -> Option<Position> {
        let view = self.view.load();
        let view = view.as_ref()?;
        Some(Position { epoch: view.epoch, number: view.applied.load(Ordering::Acquire) })
    }

    /// Creates the marks of an entry with these tags that was filled under `stamp`.
    pub(crate) fn marks(&self, stamp: Stamp, tags: &[Tag]) -> TagMarks {
        TagMarks::new(stamp, &self.places(tags))
    }

    /// Returns the verdict on an entry of the first level.
    ///
    /// This takes one comparison if nothing was invalidated since the entry was last found valid. Only otherwise it
    /// reads `names`, the key and tags of the entry, which are in other cache lines.
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

    /// Returns the verdict on an entry of the second level, by log numbers.
    ///
    /// An entry is invalid if its log number cannot be compared (there is no view, or the epochs differ).
    pub(crate) fn reach_shared(
        &self,
        key: &Key,
        tags: &[Tag],
        places: &[u64],
        filled: Position,
    ) -> Verdict {
        // This list is read first, because a record is in the tag versions before it leaves the list.
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
            // The process that filled it has applied records that this process has not applied, and one of them may
            // have replaced a record of this process that the log has lost. The follower will soon find out.
            return Verdict::Invalid;
        }
        let by_fence = self.fence.load().reach_in_log(key, tags, filled.number);
        view.globals
            .as_ref()
            .map_or(Verdict::Invalid, |globals| by_fence.max(globals.reach(places, filled.number)))
    }

    /// Step 1 of an invalidation: applies the record in this process, and adds it to the pending records.
    pub(crate) fn begin(&self, record: Record, now: Moment) -> StartedInvalidation {
        self.begin_locked(&mut self.writer.lock(), record, now)
    }

    fn begin_locked(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        record: Record,
        now: Moment,
    ) -> StartedInvalidation {
        // The record is on the list before `lc` moves, so that a reader that sees the new `lc` also sees the pending
        // record.
        let (ticket, record, collapsed) = writer.add_pending(record);
        self.count_pending(writer);
        let local = self.publish(writer, &record, RecordOrigin::Own(ticket, 0), now);
        self.start_grace(writer, &record, local, None, now);
        StartedInvalidation { ticket, record, collapsed }
    }

    /// Step 3 of an invalidation: settles a record that the log has.
    ///
    /// Publishes it a second time, since an entry may have been promoted from the second level in between. Returns
    /// `false` if there is no view of that epoch. The record then stays pending, and larder appends it again.
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
            self.publish(&mut writer, record, RecordOrigin::Own(ticket, 0), now);
            return false;
        };
        self.raise_globals(&view, record, at.number);
        self.publish(&mut writer, record, RecordOrigin::Own(ticket, at.number), now);
        if !self.options.failover_bound.is_zero() {
            writer.note_own(at, record.clone());
            writer.retain(record.clone(), now, now.after(self.options.failover_bound));
        }
        writer.settle(ticket);
        writer.note_commit(record);
        self.count_pending(&writer);
        true
    }

    /// Whether the log has a record of this transaction.
    pub(crate) fn knows_commit(&self, commit: CommitId) -> bool {
        self.writer.lock().commits.knows(commit)
    }

    /// Whether the records of this transaction in the log reach everything that these selectors reach.
    pub(crate) fn covers(&self, commit: CommitId, what: &[Selector]) -> bool {
        let writer = self.writer.lock();
        what.iter().all(|selector| writer.commits.cover(commit, selector))
    }

    /// Marks a record of a local log as applied. It has already been published.
    pub(crate) fn advance_local(&self, at: Position) {
        if let Some(view) = self.view.load().as_ref() {
            view.applied.fetch_max(at.number, Ordering::AcqRel);
        }
    }

    /// Whether the log has another record at a position where it had accepted a record of this process, which means
    /// that it has lost its tail since then.
    pub(crate) fn contradicts(&self, at: Position, record: &Record) -> bool {
        self.writer.lock().contradicts(at, record)
    }

    /// Applies the next record of the log.
    pub(crate) fn apply(&self, number: u64, record: &Record, now: Moment) {
        let mut writer = self.writer.lock();
        let Some(view) = self.view.load_full() else { return };
        self.raise_globals(&view, record, number);
        let local = self.publish(&mut writer, record, RecordOrigin::Log(number), now);
        let log = Some(Position { epoch: view.epoch, number });
        self.start_grace(&mut writer, record, local, log, now);
        writer.note_commit(record);
        // The log number is stored last, so that a stamp with this log number has a sequence number that covers the
        // publish above.
        view.applied.fetch_max(number, Ordering::AcqRel);
    }

    /// Closes the view. The second level is then neither read nor written, and stamps do not have a log position.
    pub(crate) fn close_view(&self) {
        self.view.store(None);
    }

    /// Opens a view at `end`, from the compacted log. Invalidates all entries of the first level, since this process
    /// may have missed records up to `end`. The log numbers still decide which entries of the second level are valid.
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
        // The floor covers the patterns of this process that the new bans do not have.
        self.fence.store(Arc::new(fence));
        writer.recent.forget(next);
        self.announce(&mut writer, next);
        self.view.store(Some(Arc::new(view)));
    }

    /// Replaces the view with a newer view of the same log after a gap. All records up to `seen` were applied before;
    /// the later records are applied now, and no other entry of the first level is invalidated.
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
        // The compacted log has only the newest record of a target.
        let next = self.sequence() + 1;
        writer.recent.forget(next);
        self.announce(&mut writer, next);
        for (number, record) in records.iter().filter(|(number, _)| *number > seen) {
            let record = Record { mode: without_grace(record.mode), ..record.clone() };
            self.publish(&mut writer, &record, RecordOrigin::Log(*number), now);
        }
        let floor = Watermark { local: 0, log: horizon };
        let fence = Bans::clone(&self.fence.load()).with_floor(Severity::Hard, floor);
        self.fence.store(Arc::new(fence));
        // The view is stored last, so that a stamp with a log number of this view has a sequence number that covers the
        // publishes above.
        self.view.store(Some(Arc::new(view)));
    }

    /// Builds a view at `end` from the records of the compacted log.
    fn view_of(&self, end: Position, records: &[(u64, Record)]) -> View {
        let globals = self.options.shared.then(|| TagVersions::new(self.options.cells));
        let view = View { epoch: end.epoch, applied: AtomicU64::new(end.number), globals };
        for (number, record) in records {
            let record = Record { mode: without_grace(record.mode), ..record.clone() };
            self.raise_globals(&view, &record, *number);
        }
        view
    }

    /// Schedules an invalidation for `at`, and returns its id. There is no limit, because an invalidation that is
    /// applied earlier than `at` does not reach entries that are filled in between.
    pub(crate) fn schedule(&self, at: Moment, record: Record) -> u64 {
        let mut writer = self.writer.lock();
        let id = writer.schedule(at, Due::Publish(record));
        self.announce_due(&writer);
        id
    }

    /// Notes that the log of this epoch has registered the scheduled invalidation `id`.
    pub(crate) fn note_registered(&self, id: u64, epoch: Epoch) {
        self.writer.lock().note_registered(id, epoch);
    }

    /// Returns at most 64 scheduled invalidations that the current log has not registered, and that would be lost with
    /// this process.
    pub(crate) fn unregistered(&self) -> Vec<(u64, Moment, Record)> {
        let epoch = self.applied().map(|at| at.epoch);
        epoch.map(|epoch| self.writer.lock().unregistered(epoch)).unwrap_or_default()
    }

    /// Whether a scheduled invalidation or the end of a grace period is due. This takes one atomic load.
    #[inline]
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        now.as_nanos() >= self.next_due.load(Ordering::Acquire)
    }

    /// Runs everything that is due, and returns the records that have now been applied. Afterwards [`Registry::unsent`]
    /// may return more records.
    ///
    /// Every request calls this before its lookups, so larder does not need timers, which could be late.
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

    /// Returns the pending invalidations, which the log does not have yet.
    pub(crate) fn unsent(&self) -> Vec<(Ticket, Record)> {
        self.writer.lock().pending().cloned().collect()
    }

    /// Makes retained records pending again, since the log was replaced.
    pub(crate) fn resend_retained(&self, now: Moment) {
        let mut writer = self.writer.lock();
        for record in writer.take_retained(now) {
            drop(writer.add_pending(record));
            self.count_pending(&writer);
        }
    }

    /// Whether there is a pending invalidation for whose ticket `holds` returns `false`.
    pub(crate) fn has_unsent_but(&self, holds: impl Fn(Ticket) -> bool) -> bool {
        self.writer.lock().pending().any(|(ticket, _)| !holds(*ticket))
    }

    /// Returns how many invalidations are pending for the log, and how many are scheduled.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let writer = self.writer.lock();
        (writer.pending_len(), writer.scheduled_len())
    }

    /// Writes tag versions and bans first, then `lc`.
    fn publish(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        record: &Record,
        origin: RecordOrigin,
        now: Moment,
    ) -> u64 {
        let next = self.sequence() + 1;
        writer.recent.add(next, origin, &record.what);
        let side = side(record.mode);
        for selector in &record.what {
            if let Selector::Tag(tag) = selector {
                self.cells.raise(self.place(tag), side, next);
            }
        }
        self.fence_off(record, Watermark { local: next, log: origin.number() }, now);
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

    /// Returns `fence` with the selectors of the record that are not tags.
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
            // It is safe to make the invalidation hard early, because the entries are already stale.
            self.harden(writer, local, log, &record.what, now);
        }
    }

    /// Makes a soft invalidation hard under its original numbers; only `lc` advances.
    fn harden(
        &self,
        writer: &mut MutexGuard<'_, Writer>,
        local: u64,
        log: Option<Position>,
        what: &[Selector],
        now: Moment,
    ) {
        let view = self.view.load();
        // The numbers of a replaced log have no meaning in the new log.
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
            commit: None,
            note: crate::record_note::RecordNote::default(),
        };
        self.fence_off(&record, Watermark { local, log }, now);
        let next = self.sequence() + 1;
        writer.recent.add(next, RecordOrigin::Grace, what);
        self.announce(writer, next);
    }

    fn count_pending(&self, writer: &Writer) {
        self.pending.store(writer.pending_len() as u64, Ordering::Release);
    }

    fn announce_due(&self, writer: &MutexGuard<'_, Writer>) {
        self.next_due.store(writer.next_due().as_nanos(), Ordering::Release);
    }

    fn names(&self, record: &Record, key: &Key, tags: &[Tag], places: &[u64]) -> bool {
        record.what.iter().any(|selector| self.selects(selector, key, tags, places))
    }

    fn selects(&self, selector: &Selector, key: &Key, tags: &[Tag], places: &[u64]) -> bool {
        match selector {
            Selector::Tag(tag) => places.contains(&self.place(tag)),
            Selector::Pattern { namespace, glob } => Glob::new(namespace, glob).matches(key, tags),
            Selector::Everything => true,
        }
    }

    /// Remembers the records that are published from now on one by one, for [`Registry::stamp_of_write`].
    pub(crate) fn remember_records(&self) {
        if !self.remembers.load(Ordering::Acquire) {
            let mut writer = self.writer.lock();
            writer.recent.start(self.sequence());
            self.remembers.store(true, Ordering::Release);
        }
    }

    /// Returns the stamp under which a value may be stored that was written after `since`, with these own records, of which
    /// the log has the last at `at`. `None` if any other record since then reaches a value with this key and these tags, or if it is
    /// unknown whether one does.
    ///
    /// The caller has waited until this process had applied the log up to `at`.
    pub(crate) fn stamp_of_write(
        &self,
        since: u64,
        own: &[OwnRecord],
        at: Position,
        key: &Key,
        tags: &[Tag],
    ) -> Option<Stamp> {
        let places = self.places(tags);
        // No record can be published while the lock is held.
        let writer = self.writer.lock();
        let applied = self.applied()?;
        if applied.epoch != at.epoch || applied.number < at.number {
            return None;
        }
        let reaches = |selector: &Selector| self.selects(selector, key, tags, &places);
        let is_clear = writer.recent.are_clear(since, own, reaches);
        let log = self.options.shared.then_some(at);
        is_clear.then(|| Stamp { local: self.sequence(), log })
    }

    fn place(&self, tag: &Tag) -> u64 {
        self.hashing.hash_one(tag.as_str())
    }

    /// Returns the hashes of the tags and of their ancestors, which select their slots.
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

/// An invalidation that has been applied in this process and is still to be appended to the log.
#[derive(Clone, Debug)]
pub(crate) struct StartedInvalidation {
    pub(crate) ticket: Ticket,
    /// The record to append: this invalidation, or an invalidation of everything.
    pub(crate) record: Record,
    /// Whether too many invalidations were pending, so that all of them collapsed into an invalidation of everything.
    pub(crate) collapsed: bool,
}

/// Makes a soft invalidation from the compacted log hard if it has a grace period, since the start of that period is
/// unknown.
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
