//! The targets that were invalidated lately for transactions that are committed, by the identity of the transaction.
//!
//! A follower of an outbox reads a change after its commit. If a record that was appended after the same commit covers the
//! change, another record would invalidate only what was stored since then, which is newer than the change.

use std::collections::VecDeque;

use crate::{bus::CommitId, target::Selector};

/// The selectors of the last records with a [`CommitId`].
#[derive(Debug, Default)]
pub(super) struct Commits {
    commits: VecDeque<(CommitId, Vec<Selector>)>,
    selectors: usize,
}

impl Commits {
    /// Adds the selectors of a record that the log has.
    pub(super) fn add(&mut self, commit: CommitId, what: &[Selector]) {
        if self.commits.iter().any(|(known, selectors)| *known == commit && selectors == what) {
            // The record was read back from the log.
            return;
        }
        self.selectors += what.len();
        self.commits.push_back((commit, what.to_vec()));
        while self.selectors > MOST_SELECTORS {
            let Some((_, oldest)) = self.commits.pop_front() else { break };
            self.selectors -= oldest.len();
        }
    }

    /// Whether a record of the transaction is known.
    pub(super) fn knows(&self, commit: CommitId) -> bool {
        self.commits.iter().any(|(known, _)| *known == commit)
    }

    /// Whether the records of the transaction reach everything that a selector reaches.
    pub(super) fn cover(&self, commit: CommitId, selector: &Selector) -> bool {
        let of_commit = self.commits.iter().filter(|(known, _)| *known == commit);
        let mut all = of_commit.flat_map(|(_, what)| what);
        all.any(|wide| match (wide, selector) {
            (Selector::Everything, _) => true,
            (Selector::Tag(wide), Selector::Tag(tag)) => {
                wide == tag || tag.ancestors().any(|ancestor| ancestor == *wide)
            }
            (wide, selector) => wide == selector,
        })
    }
}

/// Maximum number of selectors that are remembered.
const MOST_SELECTORS: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tag, Target};

    #[test]
    fn a_transaction_covers_what_its_records_reach_and_nothing_else() {
        let (own, other) = (CommitId::random(), CommitId::random());
        let mut commits = Commits::default();
        commits.add(other, &Target::everything().selectors());
        let tags = |names: &[&str]| names.iter().map(|tag| Selector::Tag(Tag::new(tag))).collect();
        let written: Vec<Selector> = tags(&["sql:main:a", "sql:main:a:1"]);
        assert!(!commits.knows(own));
        commits.add(own, &written);
        commits.add(own, &Target::prefix("sql:main:b").selectors());
        assert!(commits.knows(own));
        for (target, covered) in [
            (Target::tag("sql:main:a:1"), true),
            (Target::tag("sql:main:a"), true),
            (Target::tag("sql:main:a:2"), false),
            (Target::prefix("sql:main:a"), false),
            (Target::tag("sql:main:b:7"), true),
            (Target::prefix("sql:main:b"), true),
            (Target::tag("sql:main:c"), false),
            (Target::everything(), false),
        ] {
            let selectors = target.clone().selectors();
            let all = selectors.iter().all(|selector| commits.cover(own, selector));
            assert_eq!(all, covered, "{target:?}");
        }
        assert!(commits.cover(other, &written[0]));
    }

    #[test]
    fn the_oldest_transactions_are_forgotten() {
        let (first, mut commits) = (CommitId::random(), Commits::default());
        let what = Target::tag("a").selectors();
        commits.add(first, &what);
        commits.add(first, &what);
        assert_eq!(commits.selectors, 1, "the same record twice");
        for _ in 0..MOST_SELECTORS {
            commits.add(CommitId::random(), &what);
        }
        assert!(!commits.knows(first));
    }
}
