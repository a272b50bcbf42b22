//! Scans the first level: lists entries, and counts what an invalidation would reach.
//!
//! A scan takes the entries out of the index shard by shard, looks at them under no lock, and ends when its time is over.
//! It changes nothing. Invalidations never scan.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    entry::AnyEntry,
    explain::Partitions,
    invalidation_history::{PastInvalidation, PastTarget},
    kernel::Kernel,
    tag::Tag,
    target::{Glob, Invalidation, Selector},
};

/// The result of a scan.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Scan {
    /// The first entries that matched.
    pub entries: Vec<AnyEntry>,
    /// The number of entries that matched, those that are not returned included.
    pub matched: usize,
    /// The number of entries that the scan visited.
    pub visited: usize,
    /// Whether it visited all entries. If not, its time was over, and the numbers are those of a part.
    pub is_complete: bool,
}

/// What an invalidation would reach in the first level of this process.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Preview {
    /// The targets, with those that rules add.
    pub targets: Vec<PastTarget>,
    /// The number of entries that it would reach, or an estimate of that number.
    pub entries: usize,
    /// Whether the number is an estimate, because the time for the scan was not enough.
    pub is_estimate: bool,
    /// The bytes of these entries in memory.
    pub bytes: usize,
    /// The names of some of them.
    pub examples: Vec<String>,
}

impl Kernel {
    /// Returns the entries of the first level that match, at most `most` of them, and how many there are. The scan ends
    /// after `budget`.
    pub fn scan(
        &self,
        most: usize,
        budget: Duration,
        mut matches: impl FnMut(&AnyEntry) -> bool,
    ) -> Scan {
        let mut scan = Scan { entries: Vec::new(), matched: 0, visited: 0, is_complete: false };
        let until = Instant::now() + budget;
        scan.is_complete = self.engine().memory.each(|entry| {
            scan.visited += 1;
            if matches(entry) {
                scan.matched += 1;
                if scan.entries.len() < most {
                    scan.entries.push(AnyEntry::clone(entry));
                }
            }
            // Reading the clock for each entry would take longer than the scan.
            !scan.visited.is_multiple_of(64) || Instant::now() < until
        });
        scan
    }

    /// Counts the entries that an invalidation would reach, in at most `budget`. If that is not enough, the number is an
    /// estimate from the part that was visited. Entries that are invalid or expired already do not count.
    pub fn preview(
        &self,
        invalidation: impl Into<Invalidation>,
        budget: Duration,
        partitions: Partitions,
    ) -> Preview {
        let selectors = self.selectors(invalidation.into().targets);
        let reached: Vec<_> = selectors.iter().map(Reached::of).collect();
        let mut bytes = 0;
        let now = self.now();
        let scan = self.scan(EXAMPLES, budget, |entry| {
            let is = reached.iter().any(|reached| reached.matches(entry))
                && self.entry_state(entry, now).may_be_served();
            bytes += if is { entry.weight() } else { 0 };
            is
        });
        let entries = self.engine().memory.entries().max(scan.visited);
        let scaled = |part: usize| match scan.visited {
            0 => 0,
            visited => (part as f64 * entries as f64 / visited as f64).round() as usize,
        };
        Preview {
            targets: self.shown_targets(selectors.iter().map(PastTarget::of), partitions),
            entries: if scan.is_complete { scan.matched } else { scaled(scan.matched) },
            is_estimate: !scan.is_complete,
            bytes: if scan.is_complete { bytes } else { scaled(bytes) },
            examples: scan.entries.iter().map(|entry| entry.key().to_string()).collect(),
        }
    }

    /// Returns the targets of an invalidation, with those that rules add.
    pub fn targets_of(
        &self,
        invalidation: Invalidation,
        partitions: Partitions,
    ) -> Vec<PastTarget> {
        let selectors = self.selectors(invalidation.targets);
        self.shown_targets(selectors.iter().map(PastTarget::of), partitions)
    }

    /// Returns the last 256 invalidations that acted in this process and have a greater number, the oldest first.
    pub fn past_invalidations(&self, after: u64, partitions: Partitions) -> Vec<PastInvalidation> {
        let past = self.engine().history.after(after);
        let shown = past.into_iter().map(|past| PastInvalidation {
            targets: self.shown_targets(past.targets.iter().cloned(), partitions),
            ..PastInvalidation::clone(&past)
        });
        shown.collect()
    }

    fn shown_targets(
        &self,
        targets: impl Iterator<Item = PastTarget>,
        partitions: Partitions,
    ) -> Vec<PastTarget> {
        let shown = |target: PastTarget| PastTarget {
            text: self.shown_tag(target.class, &target.text, partitions),
            ..target
        };
        targets.map(shown).collect()
    }
}

/// A selector, ready to be compared with many entries.
enum Reached<'a> {
    Everything,
    Tag(&'a Tag),
    Pattern(Glob),
}

impl<'a> Reached<'a> {
    fn of(selector: &'a Selector) -> Self {
        match selector {
            Selector::Everything => Self::Everything,
            Selector::Tag(tag) => Self::Tag(tag),
            Selector::Pattern { namespace, glob } => Self::Pattern(Glob::new(namespace, glob)),
        }
    }

    fn matches(&self, entry: &AnyEntry) -> bool {
        match self {
            Self::Everything => true,
            Self::Tag(tag) => entry
                .tags()
                .iter()
                .any(|of| of == *tag || of.ancestors().any(|ancestor| ancestor == **tag)),
            Self::Pattern(glob) => glob.matches(entry.key(), entry.tags()),
        }
    }
}

/// The number of entries that a preview names.
const EXAMPLES: usize = 10;
