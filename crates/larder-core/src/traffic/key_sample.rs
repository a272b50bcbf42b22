//! The history of a sample of all keys. Whether a key belongs to the sample depends on its hash alone, so all requests and
//! fills of a sampled key are seen.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::reuse_distances::{RequestOrder, ReuseDistances};
use crate::{
    clock::Moment,
    entry::AnyEntry,
    key::{Key, Kind},
};

/// The sampled keys, by their hashes.
#[derive(Debug)]
pub(super) struct KeySample {
    keys: HashMap<u64, KeyRecord>,
    order: RequestOrder,
    reuse: ReuseDistances,
    /// Keys below this hash are sampled.
    below: u64,
}

/// The keys that advice judges together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyGroup {
    pub(crate) kind: &'static str,
    /// The name of the response cache, empty for other kinds.
    pub(crate) cache: Arc<str>,
    pub(crate) route: Option<Arc<str>>,
    /// For all but responses, what their names begin with: `user` for `user:7`.
    pub(crate) names: Option<Arc<str>>,
}

/// The history of a key.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyRecord {
    /// Its key and its group, once an entry of it was stored.
    pub(crate) key: Option<(Key, KeyGroup)>,
    pub(crate) requests: u64,
    pub(crate) last_request: Moment,
    pub(crate) intervals: Intervals,
    pub(crate) weight: u64,
    pub(crate) fills: u64,
    pub(crate) fill_time: Duration,
    /// The last fill, with the lifetime that it gave.
    pub(crate) last_fill: Option<LastFill>,
    /// Fills after the end of a lifetime that gave the same value as before.
    pub(crate) identical: u64,
    /// Fills after the end of a lifetime that gave another value.
    pub(crate) changed: u64,
    /// Fills after the end of a lifetime for which requests waited, since the lifetime had no stale window.
    pub(crate) awaited_refills: u64,
    place: Option<usize>,
}

impl KeyRecord {
    pub(crate) fn mean_fill(&self) -> Duration {
        self.fill_time / u32::try_from(self.fills.max(1)).unwrap_or(u32::MAX)
    }
}

/// The last fill of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastFill {
    pub(crate) lifetime: Duration,
    fresh_until: Moment,
    has_stale_window: bool,
    digest: Option<u64>,
}

/// The intervals between the requests of a key: their mean and variance.
///
/// Source: Welford, *Note on a Method for Calculating Corrected Sums of Squares and Products*, 1962.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Intervals {
    pub(crate) count: u64,
    mean: f64,
    squares: f64,
}

impl Intervals {
    fn add(&mut self, interval: Duration) {
        let seconds = interval.as_secs_f64();
        self.count += 1;
        let difference = seconds - self.mean;
        self.mean += difference / self.count as f64;
        self.squares += difference * (seconds - self.mean);
    }

    pub(crate) fn mean(self) -> Duration {
        Duration::try_from_secs_f64(self.mean).unwrap_or_default()
    }

    /// Returns the standard deviation as a part of the mean.
    pub(crate) fn variation(self) -> f64 {
        match self.count > 0 && self.mean > 0.0 {
            true => (self.squares / self.count as f64).sqrt() / self.mean,
            false => f64::INFINITY,
        }
    }
}

impl Default for KeySample {
    fn default() -> Self {
        let (keys, reuse) = (HashMap::new(), ReuseDistances::default());
        Self { keys, order: RequestOrder::of(&[]), reuse, below: u64::MAX }
    }
}

impl KeySample {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Keys below this hash are sampled.
    pub(super) fn below(&self) -> u64 {
        self.below
    }

    pub(super) fn reuse(&self) -> &ReuseDistances {
        &self.reuse
    }

    pub(super) fn records(&self) -> Vec<KeyRecord> {
        self.keys.values().cloned().collect()
    }

    /// Notes a request.
    pub(super) fn request(&mut self, hash: u64, now: Moment) {
        if self.order.is_full() {
            self.renumber();
        }
        let scale = u64::MAX as f64 / self.below as f64;
        let record = self.keys.entry(hash).or_default();
        match record.place {
            Some(place) => {
                let between = self.order.after(place) as f64 * scale;
                self.reuse.add(between as u64 + record.weight);
                self.order.remove(place, record.weight);
                record.intervals.add(now.since(record.last_request));
            }
            None => self.reuse.add_first(),
        }
        record.place = Some(self.order.push(record.weight));
        record.requests += 1;
        record.last_request = now;
    }

    /// Notes a fill, whose value has this digest.
    pub(super) fn fill(&mut self, entry: &AnyEntry, digest: Option<u64>, now: Moment) {
        if entry.hash >= self.below {
            return;
        }
        let record = self.keys.entry(entry.hash).or_default();
        let weight = entry.weight() as u64;
        if let Some(place) = record.place {
            self.order.remove(place, record.weight);
            self.order.add(place, weight);
        }
        record.weight = weight;
        if record.key.is_none() {
            record.key = Some((entry.key().clone(), KeyGroup::of(entry)));
        }
        record.fills += 1;
        record.fill_time += entry.cost();
        let fresh_until = entry.fresh_until();
        if let Some(last) = record.last_fill
            && now >= last.fresh_until
        {
            match (last.digest, digest) {
                (Some(before), Some(after)) if before == after => record.identical += 1,
                (Some(_), Some(_)) => record.changed += 1,
                _ => {}
            }
            record.awaited_refills += u64::from(!last.has_stale_window);
        }
        let lifetime = fresh_until.since(entry.ends().filled());
        let has_stale_window = entry.ends().refreshed_until() > fresh_until;
        record.last_fill = Some(LastFill { lifetime, fresh_until, has_stale_window, digest });
    }

    /// Removes the keys that are not below this hash from the sample.
    pub(super) fn shrink(&mut self, below: u64) {
        self.reuse.scale(below as f64 / self.below as f64);
        self.below = below;
        let order = &mut self.order;
        self.keys.retain(|hash, record| {
            let stays = *hash < below;
            if !stays && let Some(place) = record.place {
                order.remove(place, record.weight);
            }
            stays
        });
        self.keys.shrink_to_fit();
    }

    /// Gives all keys new places, in the same order.
    fn renumber(&mut self) {
        let mut placed: Vec<_> =
            self.keys.values_mut().filter(|record| record.place.is_some()).collect();
        placed.sort_unstable_by_key(|record| record.place);
        let weights: Vec<_> = placed.iter().map(|record| record.weight).collect();
        self.order = RequestOrder::of(&weights);
        for (place, record) in placed.into_iter().enumerate() {
            record.place = Some(place);
        }
    }
}

impl KeyGroup {
    pub(crate) fn of(entry: &AnyEntry) -> Self {
        let key = entry.key();
        let route = entry.route().map(|route| route.template().into());
        // The name of a query begins with its database and its statement, and ends with the values that are bound.
        let colons = if key.kind() == Kind::Query { 2 } else { 1 };
        let names = (key.kind() != Kind::Response).then(|| key.name()).and_then(|name| {
            let (end, _) = name.match_indices(':').nth(colons - 1)?;
            Some(name[..end].into())
        });
        Self { kind: key.kind().as_str(), cache: key.cache().into(), route, names }
    }
}
