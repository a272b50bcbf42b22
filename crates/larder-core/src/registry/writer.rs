//! The state that the registry's lock protects: invalidations that are pending for the log, that are scheduled, or that
//! are retained to be appended again, and own records that are still to be read back from the log.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use super::{commits::Commits, recent_records::RecentRecords};
use crate::{
    bus::{Epoch, Position, Record},
    clock::Moment,
    target::{Mode, Selector},
};

/// Maximum number of pending invalidations. If there is one more, all of them collapse into an invalidation of
/// everything.
pub(crate) const MAX_PENDING: usize = 16 * 1024;
/// Maximum number of scheduled actions; beyond it, a grace period ends at once.
pub(crate) const MAX_DUE: usize = 16 * 1024;
/// Maximum number of scheduled invalidations that are registered with a log at a time.
const MOST_AT_ONCE: usize = 64;
/// Maximum number of own records that are retained to be compared with the records read from the log.
const MAX_OWN: usize = 1024;
/// Maximum number of own records that are retained to be appended again. If there is one more, all of them collapse
/// into an invalidation of everything.
const MAX_RETAINED: usize = 16 * 1024;

/// The id of a pending invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// An action that is due at some time.
#[derive(Clone, Debug)]
pub(crate) enum Due {
    /// A scheduled invalidation.
    Publish(Record),
    /// The end of a grace period, at which the soft invalidation with these numbers becomes hard.
    Harden {
        /// Its sequence number in this process.
        local: u64,
        /// Its position in the log, if it came from there.
        log: Option<Position>,
        /// Its selectors.
        what: Vec<Selector>,
    },
}

#[derive(Debug)]
struct ScheduledRecord {
    at: Moment,
    order: u64,
    due: Due,
}

impl PartialEq for ScheduledRecord {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for ScheduledRecord {}
impl PartialOrd for ScheduledRecord {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ScheduledRecord {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The state that the lock protects.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pending: VecDeque<(Ticket, Record)>,
    retained: VecDeque<(Moment, Record)>,
    schedule: BinaryHeap<Reverse<ScheduledRecord>>,
    own: VecDeque<(Position, Record)>,
    /// Scheduled invalidations by id, with the epoch of the log that has registered them, if a log has done so.
    registered: HashMap<u64, Option<Epoch>>,
    next: u64,
    /// The records that were published lately.
    pub(super) recent: RecentRecords,
    /// The targets that were invalidated lately for committed transactions.
    pub(super) commits: Commits,
}

impl Writer {
    /// Adds an invalidation that is about to be appended. It never drops an invalidation; beyond [`MAX_PENDING`], all
    /// of them collapse into an invalidation of everything.
    pub(crate) fn add_pending(&mut self, mut record: Record) -> (Ticket, Record, bool) {
        self.next += 1;
        let ticket = Ticket(self.next);
        let collapsed = self.pending.len() >= MAX_PENDING;
        if collapsed {
            self.pending.clear();
            record = Record { mode: Mode::Hard, what: vec![Selector::Everything], ..record };
        }
        self.pending.push_back((ticket, record.clone()));
        (ticket, record, collapsed)
    }

    /// Removes a pending invalidation, because the log has it and its numbers are written.
    pub(crate) fn settle(&mut self, ticket: Ticket) {
        self.pending.retain(|(other, _)| *other != ticket);
    }

    /// Notes what a record in the log invalidates for a committed transaction, if it belongs to one. An invalidation that
    /// is soft does not replace the hard one of a follower.
    pub(crate) fn note_commit(&mut self, record: &Record) {
        if let Some(commit) = record.commit.filter(|_| record.mode == Mode::Hard) {
            self.commits.add(commit, &record.what);
        }
    }

    pub(crate) fn pending(&self) -> impl Iterator<Item = &(Ticket, Record)> {
        self.pending.iter()
    }

    pub(crate) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Notes the position at which the log accepted an own record, until the record is read back from there.
    pub(crate) fn note_own(&mut self, at: Position, record: Record) {
        if self.own.len() >= MAX_OWN {
            self.own.pop_front();
        }
        self.own.push_back((at, record));
    }

    /// Whether the log has another record at a position where it had accepted a record of this process.
    pub(crate) fn contradicts(&mut self, at: Position, record: &Record) -> bool {
        let found = self.own.iter().position(|(own, _)| *own == at);
        found.and_then(|found| self.own.remove(found)).is_some_and(|(_, own)| own != *record)
    }

    /// Retains a record until `until`, to append it again if the log is replaced.
    pub(crate) fn retain(&mut self, record: Record, now: Moment, until: Moment) {
        while self.retained.front().is_some_and(|(until, _)| *until <= now) {
            self.retained.pop_front();
        }
        if self.retained.len() >= MAX_RETAINED {
            self.retained.clear();
            let everything = vec![Selector::Everything];
            let all = Record { mode: Mode::Hard, what: everything, ..record };
            self.retained.push_back((until, all));
            return;
        }
        self.retained.push_back((until, record));
    }

    /// Takes the retained records, which must be appended to the log that replaced theirs.
    pub(crate) fn take_retained(&mut self, now: Moment) -> Vec<Record> {
        let all = std::mem::take(&mut self.retained);
        all.into_iter().filter(|(until, _)| *until > now).map(|(_, record)| record).collect()
    }

    /// Schedules an action. Returns its id, under which the log may register it.
    pub(crate) fn schedule(&mut self, at: Moment, due: Due) -> u64 {
        self.next += 1;
        if matches!(due, Due::Publish(_)) {
            self.registered.insert(self.next, None);
        }
        self.schedule.push(Reverse(ScheduledRecord { at, order: self.next, due }));
        self.next
    }

    /// Notes that the log of this epoch has registered the scheduled invalidation `id`.
    pub(crate) fn note_registered(&mut self, id: u64, epoch: Epoch) {
        // An invalidation that was applied in the meantime is no longer listed.
        if let Some(kept) = self.registered.get_mut(&id) {
            *kept = Some(epoch);
        }
    }

    /// Returns up to 64 scheduled invalidations that the log of this epoch has not registered.
    pub(crate) fn unregistered(&self, epoch: Epoch) -> Vec<(u64, Moment, Record)> {
        let of = |scheduled: &ScheduledRecord| match &scheduled.due {
            Due::Publish(record) if self.registered.get(&scheduled.order) != Some(&Some(epoch)) => {
                Some((scheduled.order, scheduled.at, record.clone()))
            }
            _ => None,
        };
        let all = self.schedule.iter().filter_map(|Reverse(scheduled)| of(scheduled));
        all.take(MOST_AT_ONCE).collect()
    }

    pub(crate) fn next_due(&self) -> Moment {
        self.schedule.peek().map_or(Moment::NEVER, |Reverse(first)| first.at)
    }

    pub(crate) fn take_due(&mut self, now: Moment) -> Option<Due> {
        if self.next_due() > now {
            return None;
        }
        let Reverse(first) = self.schedule.pop()?;
        self.registered.remove(&first.order);
        Some(first.due)
    }

    pub(crate) fn scheduled_len(&self) -> usize {
        self.schedule.len()
    }
}
