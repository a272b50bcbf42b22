//! Which keys get the most requests.

use std::{collections::HashMap, time::Duration};

use crate::{clock::Moment, key::Key};

/// The hot keys of this minute and of the last one.
#[derive(Debug)]
pub(super) struct HotKeyWindows {
    began: Moment,
    current: FrequentKeys,
    last: FrequentKeys,
    last_began: Moment,
}

/// The hottest keys, with their requests since a moment that is one to two minutes ago.
#[derive(Clone, Debug)]
pub(crate) struct HotKeys {
    pub(crate) seconds: f64,
    /// The keys with their requests, the hottest first.
    pub(crate) keys: Vec<(Key, u64)>,
}

impl HotKeyWindows {
    pub(super) fn new(now: Moment) -> Self {
        let (current, last) = (FrequentKeys::default(), FrequentKeys::default());
        Self { began: now, current, last, last_began: now }
    }

    /// Counts requests of a key, whose name follows later if it is not known.
    pub(super) fn add(&mut self, hash: u64, requests: u64, key: Option<&Key>, now: Moment) {
        self.turn(now);
        self.current.add(hash, requests, key);
    }

    /// Notes the name of a key that may have been counted.
    pub(super) fn name(&mut self, hash: u64, key: &Key) {
        for window in [&mut self.current, &mut self.last] {
            if let Some(counter) = window.counters.get_mut(&hash)
                && counter.key.is_none()
            {
                counter.key = Some(key.clone());
            }
        }
    }

    pub(super) fn hottest(&mut self, now: Moment) -> HotKeys {
        self.turn(now);
        let mut all: HashMap<u64, (Option<&Key>, u64)> = HashMap::new();
        for (hash, counter) in self.last.counters.iter().chain(&self.current.counters) {
            let (key, requests) = all.entry(*hash).or_default();
            *key = key.or(counter.key.as_ref());
            *requests += counter.requests;
        }
        let named = all.into_values().filter_map(|(key, requests)| Some((key?.clone(), requests)));
        let mut keys: Vec<_> = named.collect();
        keys.sort_by(|(a, more), (b, less)| {
            less.cmp(more).then_with(|| a.as_bytes().cmp(b.as_bytes()))
        });
        keys.truncate(MOST_HOT);
        HotKeys { seconds: now.since(self.last_began).as_secs_f64().max(1.0), keys }
    }

    fn turn(&mut self, now: Moment) {
        if now.since(self.began) >= MINUTE {
            self.last = std::mem::take(&mut self.current);
            self.last_began = self.began;
            if now.since(self.began) >= 2 * MINUTE {
                // There was no request for more than a minute.
                (self.last, self.last_began) = (FrequentKeys::default(), now);
            }
            self.began = now;
        }
    }
}

/// Counts the most frequent keys. Each count is at most too small by what [`FrequentKeys::shrink`] has subtracted, which is
/// less than two thousandths of all requests.
///
/// Source: Anderson, Bevin, Lang, Liberty, Rhodes and Thaler, *A High-Performance Algorithm for Identifying Frequent Items in
/// Data Streams*, 2017.
#[derive(Debug, Default)]
struct FrequentKeys {
    counters: HashMap<u64, Counter>,
}

#[derive(Debug)]
struct Counter {
    key: Option<Key>,
    requests: u64,
}

impl FrequentKeys {
    fn add(&mut self, hash: u64, requests: u64, key: Option<&Key>) {
        if self.counters.len() >= MOST_COUNTERS && !self.counters.contains_key(&hash) {
            self.shrink();
        }
        let counter = self.counters.entry(hash).or_insert(Counter { key: None, requests: 0 });
        counter.requests += requests;
        if counter.key.is_none() {
            counter.key = key.cloned();
        }
    }

    /// Subtracts the median from all counters, which frees half of them.
    fn shrink(&mut self) {
        let mut counts: Vec<_> = self.counters.values().map(|counter| counter.requests).collect();
        let middle = counts.len() / 2;
        let median = *counts.select_nth_unstable(middle).1;
        self.counters.retain(|_, counter| {
            counter.requests = counter.requests.saturating_sub(median);
            counter.requests > 0
        });
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const MOST_COUNTERS: usize = 1024;
const MOST_HOT: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyBuf, Kind};

    fn key(number: u64) -> Key {
        let mut key = KeyBuf::new(Kind::Object, "", "", "");
        key.push(number.to_string().as_bytes());
        key.finish().unwrap()
    }

    /// A stream with known frequencies: key n has 100,000 / n requests, among 200,000 keys that have one.
    #[test]
    fn the_hottest_keys_of_a_long_stream_are_found_with_their_counts() {
        let now = Moment::START;
        let mut windows = HotKeyWindows::new(now);
        let mut stream: Vec<u64> =
            (1..=50_u64).flat_map(|n| vec![n; (100_000 / n) as usize]).collect();
        stream.extend(1_000..201_000);
        let mut place = 0_u64;
        stream.sort_by_cached_key(|_| {
            place += 1;
            xxhash_rust::xxh3::xxh3_64(&place.to_le_bytes())
        });
        for number in &stream {
            windows.add(*number, 1, Some(&key(*number)), now);
        }
        let hot = windows.hottest(now);
        let names: Vec<_> = hot.keys.iter().take(20).map(|(key, _)| key.name()).collect();
        let expected: Vec<_> = (1..=20).map(|n: u64| n.to_string()).collect();
        assert_eq!(names, expected);
        let most = stream.len() as u64 / 500;
        for (place, (_, requests)) in hot.keys.iter().take(20).enumerate() {
            let right = 100_000 / (place as u64 + 1);
            assert!(
                *requests <= right && *requests + most >= right,
                "{place}: {requests} of {right}"
            );
        }
        assert!(windows.current.counters.len() <= MOST_COUNTERS);
    }

    #[test]
    fn a_key_that_is_not_requested_any_more_is_forgotten_after_two_minutes() {
        let mut windows = HotKeyWindows::new(Moment::START);
        let at = |seconds| Moment::START.after(Duration::from_secs(seconds));
        windows.add(1, 10, None, at(0));
        windows.name(1, &key(1));
        windows.add(2, 5, Some(&key(2)), at(61));
        let hot = windows.hottest(at(70));
        assert_eq!(hot.keys, [(key(1), 10), (key(2), 5)]);
        assert!((69.0..71.0).contains(&hot.seconds));
        assert_eq!(windows.hottest(at(121)).keys, [(key(2), 5)]);
        assert_eq!(windows.hottest(at(500)).keys, []);
    }
}
