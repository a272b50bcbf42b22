//! Bans: invalidations of everything and by patterns over names, which reach entries by other means than a tag.
//!
//! [`Bans`] is one object that is replaced as a whole, so that a reader never sees half of a change.

use std::time::Duration;

use crate::{
    clock::Moment,
    key::Key,
    registry::{tag_versions::Severity, verdict::Verdict},
    tag::Tag,
    target::Glob,
};

/// Both numbers of one invalidation: the sequence number of this process, and the number in the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watermark {
    /// The sequence number of this process.
    pub(crate) local: u64,
    /// The number in the log.
    pub(crate) log: u64,
}

#[derive(Clone, Debug)]
struct Ban {
    glob: Glob,
    side: Severity,
    at: Watermark,
    made: Moment,
}

/// The floors (one for hard and one for soft invalidations of everything) and the bans by pattern.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bans {
    floors: [Watermark; 2],
    bans: Vec<Ban>,
}

/// Maximum number of patterns. If there is one more, all of them collapse into the floors.
pub(crate) const MAX_BANS: usize = 64;

impl Bans {
    /// Returns these bans with everything invalidated at `at`.
    #[must_use]
    pub(crate) fn with_floor(mut self, side: Severity, at: Watermark) -> Self {
        let floor = &mut self.floors[side as usize];
        floor.local = floor.local.max(at.local);
        floor.log = floor.log.max(at.log);
        self
    }

    /// Returns these bans with all matches of `glob` invalidated at `at`. When there are too many patterns, all of
    /// them, hard and soft, collapse into the floors. Patterns that are older than any entry can be are dropped.
    #[must_use]
    pub(crate) fn with_ban(
        mut self,
        glob: Glob,
        side: Severity,
        at: Watermark,
        now: Moment,
        longest: Duration,
    ) -> Self {
        self.bans.retain(|ban| now.since(ban.made) <= longest);
        if let Some(same) = self.bans.iter_mut().find(|ban| ban.side == side && ban.glob == glob) {
            same.at.local = same.at.local.max(at.local);
            same.at.log = same.at.log.max(at.log);
            same.made = now;
            return self;
        }
        self.bans.push(Ban { glob, side, at, made: now });
        if self.bans.len() <= MAX_BANS {
            return self;
        }
        let all = std::mem::take(&mut self.bans);
        all.into_iter().fold(self, |fence, ban| fence.with_floor(ban.side, ban.at))
    }

    /// Returns the verdict on an entry that was valid at sequence number `after` of this process.
    pub(crate) fn reach(&self, key: &Key, tags: &[Tag], after: u64) -> Verdict {
        self.reach_by(key, tags, |at| at.local > after)
    }

    /// Returns the verdict on an entry of the second level that was filled at number `filled` of the log.
    pub(crate) fn reach_in_log(&self, key: &Key, tags: &[Tag], filled: u64) -> Verdict {
        self.reach_by(key, tags, |at| at.log > filled)
    }

    fn reach_by(&self, key: &Key, tags: &[Tag], is_later: impl Fn(Watermark) -> bool) -> Verdict {
        // The worst verdict of all later bans and floors.
        let mut reach = Verdict::Valid;
        for ban in &self.bans {
            if is_later(ban.at) && ban.glob.matches(key, tags) {
                reach = reach.max(ban.side.into());
            }
        }
        for side in [Severity::Hard, Severity::Soft] {
            if is_later(self.floors[side as usize]) {
                reach = reach.max(side.into());
            }
        }
        reach
    }
}

impl From<Severity> for Verdict {
    fn from(side: Severity) -> Self {
        match side {
            Severity::Hard => Self::Invalid,
            Severity::Soft => Self::Stale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyBuf, Kind};

    const DAY: Duration = Duration::from_secs(86_400);

    fn key(name: &str) -> Key {
        let mut key = KeyBuf::new(Kind::Object, "", "", "");
        key.push(name.as_bytes());
        key.finish().unwrap()
    }

    fn at(number: u64) -> Watermark {
        Watermark { local: number, log: number }
    }

    #[test]
    fn more_than_64_patterns_collapse_into_an_invalidation_of_everything() {
        let mut fence = Bans::default();
        for number in 1..=65 {
            let glob = Glob::new("", &format!("user:{number}"));
            fence = fence.with_ban(glob, Severity::Hard, at(number), Moment::START, DAY);
        }
        assert_eq!(fence.reach(&key("something else"), &[], 64), Verdict::Invalid);
        assert_eq!(fence.reach(&key("something else"), &[], 65), Verdict::Valid);
    }

    #[test]
    fn a_pattern_older_than_any_entry_is_dropped() {
        let glob = |text| Glob::new("", text);
        let later = Moment::START.after(2 * DAY);
        let fence = Bans::default()
            .with_ban(glob("a*"), Severity::Hard, at(1), Moment::START, DAY)
            .with_ban(glob("b*"), Severity::Soft, at(2), later, DAY);
        assert_eq!(fence.reach(&key("abc"), &[], 0), Verdict::Valid);
        assert_eq!(fence.reach(&key("bcd"), &[], 0), Verdict::Stale);
    }
}
