//! How much memory a hit needs: the bytes of the other keys that were requested since a key was requested last.
//!
//! A cache that keeps the most recently requested entries has a hit if this distance, with the entry itself, is not greater
//! than its capacity. So one histogram of distances tells the hit ratio of each capacity.
//!
//! The distances are those of sampled keys, and are scaled by the share of keys in the sample.
//!
//! # Source
//!
//! Waldspurger, Park, Garthwaite and Ahmad, *Efficient MRC Construction with SHARDS*, 2015; Olken, *Efficient Methods for
//! Calculating the Success Function of Fixed-Space Replacement Policies*, 1981.

/// The histogram of reuse distances.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReuseDistances {
    /// The requests by distance, in eight steps for each power of two.
    by_distance: Vec<f64>,
    /// Requests of keys that were not requested before.
    first: f64,
}

impl Default for ReuseDistances {
    fn default() -> Self {
        Self { by_distance: vec![0.0; 64 * STEPS], first: 0.0 }
    }
}

impl ReuseDistances {
    pub(super) fn add(&mut self, bytes: u64) {
        self.by_distance[step(bytes)] += 1.0;
    }

    pub(super) fn add_first(&mut self) {
        self.first += 1.0;
    }

    /// Scales the counts, since the sample has become smaller.
    pub(super) fn scale(&mut self, share: f64) {
        self.by_distance.iter_mut().for_each(|count| *count *= share);
        self.first *= share;
    }

    /// The number of requests of sampled keys.
    pub(crate) fn requests(&self) -> f64 {
        self.first + self.by_distance.iter().sum::<f64>()
    }

    /// Returns the hit ratio of a cache of this capacity, in which nothing expires and nothing is invalidated.
    pub(crate) fn hit_ratio(&self, capacity: u64) -> f64 {
        let hits: f64 = self.by_distance[..=step(capacity)].iter().sum();
        match self.requests() {
            0.0 => 0.0,
            all => hits / all,
        }
    }
}

fn step(bytes: u64) -> usize {
    let bytes = bytes.max(1);
    let power = bytes.ilog2() as usize;
    let rest = (bytes - (1 << power)) as f64 / (1_u64 << power) as f64;
    power * STEPS + ((rest * STEPS as f64) as usize).min(STEPS - 1)
}

/// The requested keys in the order of their last requests, each with its bytes: a tree of partial sums.
///
/// Source: Fenwick, *A New Data Structure for Cumulative Frequency Tables*, 1994.
#[derive(Debug)]
pub(super) struct RequestOrder {
    sums: Vec<u64>,
    next: usize,
}

impl RequestOrder {
    pub(super) fn of(bytes: &[u64]) -> Self {
        let places = (2 * bytes.len()).max(1024);
        let mut order = Self { sums: vec![0; places + 1], next: 0 };
        for bytes in bytes {
            order.push(*bytes);
        }
        order
    }

    /// Whether there is no place for a further request.
    pub(super) fn is_full(&self) -> bool {
        self.next + 1 == self.sums.len()
    }

    /// Adds a key as the last one, and returns its place.
    pub(super) fn push(&mut self, bytes: u64) -> usize {
        let place = self.next;
        self.next += 1;
        self.add(place, bytes);
        place
    }

    /// Adds bytes to the key of a place.
    pub(super) fn add(&mut self, place: usize, bytes: u64) {
        self.change(place, |sum| sum + bytes);
    }

    /// Removes the key of a place.
    pub(super) fn remove(&mut self, place: usize, bytes: u64) {
        self.change(place, |sum| sum - bytes);
    }

    /// Returns the bytes of the keys after a place.
    pub(super) fn after(&self, place: usize) -> u64 {
        self.up_to(self.next) - self.up_to(place + 1)
    }

    fn change(&mut self, place: usize, change: impl Fn(u64) -> u64) {
        let mut at = place + 1;
        while let Some(sum) = self.sums.get_mut(at) {
            *sum = change(*sum);
            at += at & at.wrapping_neg();
        }
    }

    fn up_to(&self, mut places: usize) -> u64 {
        let mut sum = 0;
        while places > 0 {
            sum += self.sums[places];
            places &= places - 1;
        }
        sum
    }
}

/// The steps of the histogram for each power of two.
const STEPS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_after_a_place_are_those_of_the_keys_that_are_left() {
        let mut order = RequestOrder::of(&[10, 20, 30]);
        assert_eq!((order.after(0), order.after(1), order.after(2)), (50, 30, 0));
        order.remove(1, 20);
        let place = order.push(20);
        assert_eq!((place, order.after(0), order.after(2), order.after(3)), (3, 50, 20, 0));
        while !order.is_full() {
            order.push(1);
        }
        assert_eq!(order.after(3), 1020);
    }

    #[test]
    fn each_distance_is_in_a_step_that_is_an_eighth_wide() {
        for bytes in [0, 1, 2, 7, 8, 1_000, 65_536, 10_000_000_000, u64::MAX] {
            let mut distances = ReuseDistances::default();
            distances.add(bytes);
            assert!(
                (distances.hit_ratio(bytes.saturating_add(bytes / 7)) - 1.0).abs() < 1e-9,
                "{bytes}"
            );
            assert!(bytes < 8 || distances.hit_ratio(bytes - bytes / 7) == 0.0, "{bytes}");
        }
    }
}
