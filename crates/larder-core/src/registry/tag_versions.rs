//! Tag tables: a fixed number of tag versions instead of an index of keys.
//!
//! A tag hashes to one slot in each of two tables. Invalidating it writes the number of the invalidation into both; an
//! entry is reached only if both slots of one of its tags are later than its stamp. So two tags that share a slot in
//! one table do no harm, two tags that share both slots cause needless misses, and no invalidation is ever missed. With
//! one table, invalidations of a thousand distinct tags per second would cost a third of all hits within a minute; with
//! two tables they cost a fiftieth.
//!
//! A reader first reads a small *summary*, which has the newest number of each of the 4,096 blocks of the first table.
//! It takes 32 KiB, so it usually stays in the L1 or L2 cache. If the number of a block has not changed since the entry was last found valid, its
//! slots have not changed either, and the reader does not touch the tables.

use crate::{
    registry::verdict::Verdict,
    sync::{AtomicU64, Ordering, zeros},
};

/// Which of the two numbers of a slot: the newest hard or the newest soft invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Hard = 0,
    Soft = 1,
}

/// The two tables and their summary.
///
/// One thread writes at a time (under the registry's lock); reading needs no lock. The registry writes a slot before
/// it writes the counter that announces it.
#[derive(Debug)]
pub(crate) struct TagVersions {
    tables: [Box<[AtomicU64]>; 2],
    summary: Box<[AtomicU64]>,
    mask: usize,
    block_shift: u32,
}

impl TagVersions {
    /// Creates two tables of `cells` slots each, a power of two. A slot takes 32 bytes in both tables together, and
    /// only slots that were written are resident.
    pub(crate) fn new(cells: usize) -> Self {
        debug_assert!(cells.is_power_of_two(), "the builder allows powers of two only");
        let blocks = cells.min(SUMMARY_BLOCKS);
        Self {
            tables: [zeros(2 * cells), zeros(2 * cells)],
            summary: zeros(blocks),
            mask: cells - 1,
            block_shift: (cells / blocks).trailing_zeros(),
        }
    }

    /// Writes `number` for this tag. The registry calls this under its lock, before it announces the number.
    pub(crate) fn raise(&self, tag: u64, side: Severity, number: u64) {
        let [first, second] = self.places(tag);
        raise(&self.tables[0][2 * first + side as usize], number);
        raise(&self.tables[1][2 * second + side as usize], number);
        raise(&self.summary[first >> self.block_shift], number);
    }

    /// Returns the verdict on an entry with these tags that was valid at number `after`.
    pub(crate) fn reach(&self, tags: &[u64], after: u64) -> Verdict {
        let mut reach = Verdict::Valid;
        for &tag in tags {
            let [first, second] = self.places(tag);
            if load(&self.summary[first >> self.block_shift]) <= after {
                continue;
            }
            if self.is_later([first, second], Severity::Hard, after) {
                return Verdict::Invalid;
            }
            if self.is_later([first, second], Severity::Soft, after) {
                reach = Verdict::Stale;
            }
        }
        reach
    }

    fn is_later(&self, [first, second]: [usize; 2], side: Severity, after: u64) -> bool {
        load(&self.tables[0][2 * first + side as usize]) > after
            && load(&self.tables[1][2 * second + side as usize]) > after
    }

    /// Returns the slots of a tag. The two halves of its keyed 64-bit hash serve as two hashes.
    fn places(&self, tag: u64) -> [usize; 2] {
        [tag as usize & self.mask, (tag >> 32) as usize & self.mask]
    }
}

fn raise(cell: &AtomicU64, number: u64) {
    if load(cell) < number {
        cell.store(number, Ordering::Relaxed);
    }
}

fn load(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

const SUMMARY_BLOCKS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_version_reaches_older_entries_only() {
        let cells = TagVersions::new(1 << 10);
        cells.raise(7 << 32 | 7, Severity::Hard, 5);
        assert_eq!(cells.reach(&[7 << 32 | 7], 4), Verdict::Invalid);
        assert_eq!(cells.reach(&[7 << 32 | 7], 5), Verdict::Valid);
    }

    #[test]
    fn tags_that_share_a_slot_in_one_table_do_not_collide() {
        let cells = TagVersions::new(1 << 10);
        cells.raise(1 << 32 | 7, Severity::Hard, 5);
        assert_eq!(cells.reach(&[2 << 32 | 7], 0), Verdict::Valid);
    }

    #[test]
    fn a_later_soft_version_does_not_hide_a_hard_one() {
        let cells = TagVersions::new(1 << 10);
        cells.raise(9, Severity::Hard, 5);
        cells.raise(9, Severity::Soft, 6);
        assert_eq!(cells.reach(&[9], 4), Verdict::Invalid);
        assert_eq!(cells.reach(&[9], 5), Verdict::Stale);
    }

    #[test]
    fn a_table_smaller_than_the_summary_works() {
        let cells = TagVersions::new(2);
        cells.raise(u64::MAX, Severity::Soft, 1);
        assert_eq!(cells.reach(&[u64::MAX], 0), Verdict::Stale);
    }
}
