//! What reaches entries by other means than a tag: "everything", and patterns over names.
//!
//! The fence is one object that is replaced as a whole, so that a reader never sees half of a change.

use std::time::Duration;

use crate::{
    clock::Moment,
    key::Key,
    registry::{Verdict, tag_versions::Severity},
    tag::Tag,
    target::Glob,
};

/// Both numbers of one invalidation: that of this process and that of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watermark {
    /// The number in this process.
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

/// Floors and bans.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bans {
    floors: [Watermark; 2],
    bans: Vec<Ban>,
}

/// How many patterns are kept apart.
pub(crate) const MAX_BANS: usize = 64;

impl Bans {
    /// With everything invalidated at `at`.
    #[must_use]
    pub(crate) fn with_floor(mut self, side: Severity, at: Watermark) -> Self {
        let floor = &mut self.floors[side as usize];
        floor.local = floor.local.max(at.local);
        floor.log = floor.log.max(at.log);
        self
    }

    /// With what matches `glob` invalidated at `at`. When there are too many patterns, all of this side
    /// collapse into its floor. Patterns older than any entry can be are dropped.
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

    /// What reaches an entry that was right when this process stood at `after`.
    pub(crate) fn reach(&self, key: &Key, tags: &[Tag], after: u64) -> Verdict {
        self.reach_by(key, tags, |at| at.local > after)
    }

    /// What reaches an entry of the shared store that was filled at number `filled` of the log.
    pub(crate) fn reach_in_log(&self, key: &Key, tags: &[Tag], filled: u64) -> Verdict {
        self.reach_by(key, tags, |at| at.log > filled)
    }

    fn reach_by(&self, key: &Key, tags: &[Tag], is_later: impl Fn(Watermark) -> bool) -> Verdict {
        // Bans first: one that collapses is in the floor before it leaves the list.
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
    fn too_many_patterns_collapse_towards_missing() {
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
