//! The records that were published lately, one by one.
//!
//! A value that is written through may be stored only if no other invalidation reached it during the write. Tag versions
//! keep only the newest number of a tag, which is that of the write's own record, so they cannot tell.

use std::collections::VecDeque;

use super::writer::Ticket;
use crate::target::Selector;

/// A record of this process that the log has accepted: by its ticket, and by its number in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnRecord {
    pub(crate) ticket: Ticket,
    pub(crate) number: u64,
}

/// The origin of a published record.
#[derive(Clone, Copy, Debug)]
pub(super) enum RecordOrigin {
    /// This process: under this ticket, in the log under this number, which is 0 while it is pending.
    Own(Ticket, u64),
    /// The log: under this number.
    Log(u64),
    /// The end of a grace period.
    Grace,
}

impl RecordOrigin {
    /// Returns the number in the log; 0 if it is not known.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Own(_, number) | Self::Log(number) => number,
            Self::Grace => 0,
        }
    }

    fn is_one_of(self, own: &[OwnRecord]) -> bool {
        match self {
            Self::Own(ticket, _) => own.iter().any(|own| own.ticket == ticket),
            Self::Log(number) => own.iter().any(|own| own.number == number),
            Self::Grace => false,
        }
    }
}

#[derive(Debug)]
struct RecentRecord {
    local: u64,
    origin: RecordOrigin,
    what: Vec<Selector>,
}

/// The published records since a sequence number of this process.
#[derive(Debug, Default)]
pub(super) struct RecentRecords {
    /// The sequence number after which all records are here. `None` until the first value is written through.
    since: Option<u64>,
    records: VecDeque<RecentRecord>,
    selectors: usize,
}

impl RecentRecords {
    /// Remembers all records after `local` from now on, if it does not do so already.
    pub(super) fn start(&mut self, local: u64) {
        self.since.get_or_insert(local);
    }

    /// Forgets all records up to `local`, because some of them are unknown.
    pub(super) fn forget(&mut self, local: u64) {
        self.since = self.since.map(|_| local);
        self.records.clear();
        self.selectors = 0;
    }

    pub(super) fn add(&mut self, local: u64, origin: RecordOrigin, what: &[Selector]) {
        let Some(since) = &mut self.since else { return };
        self.selectors += what.len();
        self.records.push_back(RecentRecord { local, origin, what: what.to_vec() });
        while self.selectors > MOST_SELECTORS {
            let Some(oldest) = self.records.pop_front() else { break };
            self.selectors -= oldest.what.len();
            *since = oldest.local;
        }
    }

    /// Returns whether no record after `local` reaches an entry, apart from own records. `false` if not all records
    /// since then are known.
    pub(super) fn are_clear(
        &self,
        local: u64,
        own: &[OwnRecord],
        reaches: impl Fn(&Selector) -> bool,
    ) -> bool {
        self.since.is_some_and(|since| since <= local)
            && self
                .records
                .iter()
                .filter(|record| record.local > local && !record.origin.is_one_of(own))
                .all(|record| !record.what.iter().any(&reaches))
    }
}

/// Maximum number of selectors in the records that are remembered.
const MOST_SELECTORS: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tag::Tag;

    fn tag(name: &str) -> Vec<Selector> {
        vec![Selector::Tag(Tag::new(name))]
    }

    const OWN: &[OwnRecord] = &[OwnRecord { ticket: Ticket(7), number: 40 }];

    fn are_clear(records: &RecentRecords, local: u64) -> bool {
        records.are_clear(local, OWN, |selector| *selector == tag("a")[0])
    }

    #[test]
    fn only_the_own_record_and_those_of_other_entries_leave_an_entry_clear() {
        for (origin, what, clear) in [
            (RecordOrigin::Own(Ticket(7), 0), "a", true),
            (RecordOrigin::Own(Ticket(7), 40), "a", true),
            (RecordOrigin::Log(40), "a", true),
            (RecordOrigin::Own(Ticket(8), 0), "a", false),
            (RecordOrigin::Log(41), "a", false),
            (RecordOrigin::Grace, "a", false),
            (RecordOrigin::Log(41), "b", true),
        ] {
            let mut records = RecentRecords::default();
            records.start(1);
            records.add(2, origin, &tag(what));
            assert_eq!(are_clear(&records, 1), clear, "{origin:?} of {what}");
            assert!(are_clear(&records, 2), "it came before");
        }
    }

    #[test]
    fn nothing_is_clear_of_records_that_are_unknown() {
        let mut records = RecentRecords::default();
        assert!(!are_clear(&records, 0), "never started");
        records.add(1, RecordOrigin::Log(1), &tag("a"));
        records.start(1);
        assert!(!are_clear(&records, 0) && are_clear(&records, 1));
        records.forget(5);
        assert!(!are_clear(&records, 4) && are_clear(&records, 5));
        for local in 6..=20_000 {
            records.add(local, RecordOrigin::Log(local), &tag("b"));
        }
        assert!(!are_clear(&records, 5), "more than it remembers");
        assert!(are_clear(&records, 19_000));
    }
}
