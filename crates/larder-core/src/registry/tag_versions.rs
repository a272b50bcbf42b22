//! A fixed table of numbers in place of an index of keys.
//!
//! A tag hashes to one cell in each of two tables. Invalidating it writes the number of the invalidation
//! into both; an entry is reached only if both cells of one of its tags are later than its stamp. So two
//! tags that share a cell in one table cost nothing, two that share both cost a needless miss, and no
//! tag is ever missed. One table at a thousand distinct tags a second would lose a third of all hits
//! needlessly within a minute; two lose a fiftieth.
//!
//! Before the tables a small *summary* is read: the newest number of each of 4,096 blocks of the first
//! table, 32 KiB that stay in the nearest cache. Where a block has not moved since the entry was last
//! looked at, its cells have not either, and no cold line is touched.

use crate::{
    registry::Verdict,
    sync::{AtomicU64, Ordering, zeros},
};

/// Which of the two numbers of a cell is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Hard = 0,
    Soft = 1,
}

/// The two tables and their summary.
///
/// Only one thread writes at a time (the registry's lock); reading needs no lock. The order between a
/// cell and the counter that announces it is the registry's business.
#[derive(Debug)]
pub(crate) struct TagVersions {
    tables: [Box<[AtomicU64]>; 2],
    summary: Box<[AtomicU64]>,
    mask: usize,
    block_shift: u32,
}

impl TagVersions {
    /// Two tables of `cells` cells, a power of two. 32 bytes a cell, resident where they were written to.
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

    /// Writes `number` for this tag. Called under the registry's lock, before the number is announced.
    pub(crate) fn raise(&self, tag: u64, side: Severity, number: u64) {
        let [first, second] = self.places(tag);
        raise(&self.tables[0][2 * first + side as usize], number);
        raise(&self.tables[1][2 * second + side as usize], number);
        raise(&self.summary[first >> self.block_shift], number);
    }

    /// What reaches an entry of these tags that was right when the counter stood at `after`.
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

    /// The halves of one keyed 64-bit hash serve as two hashes.
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
    fn a_tag_is_reached_by_its_own_number_and_not_by_an_older_one() {
        let cells = TagVersions::new(1 << 10);
        cells.raise(7 << 32 | 7, Severity::Hard, 5);
        assert_eq!(cells.reach(&[7 << 32 | 7], 4), Verdict::Invalid);
        assert_eq!(cells.reach(&[7 << 32 | 7], 5), Verdict::Valid);
    }

    #[test]
    fn sharing_a_cell_in_one_table_is_not_enough() {
        let cells = TagVersions::new(1 << 10);
        cells.raise(1 << 32 | 7, Severity::Hard, 5);
        assert_eq!(cells.reach(&[2 << 32 | 7], 0), Verdict::Valid);
    }

    #[test]
    fn hard_is_seen_behind_a_later_soft_number() {
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
