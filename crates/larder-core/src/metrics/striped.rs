//! Striped counters, for which threads do not contend.

use std::{
    array,
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crossbeam_utils::CachePadded;

/// `N` counters, each in 8 stripes of memory. Counting is one addition to the stripe of the thread; only a reader of
/// the sums visits all stripes.
#[derive(Debug)]
pub(crate) struct StripedCounters<const N: usize>([CachePadded<[AtomicU64; N]>; STRIPES]);

impl<const N: usize> Default for StripedCounters<N> {
    fn default() -> Self {
        Self(array::from_fn(|_| CachePadded::new(array::from_fn(|_| AtomicU64::new(0)))))
    }
}

impl<const N: usize> StripedCounters<N> {
    /// Adds one to the counter at `place`.
    #[inline]
    pub(crate) fn count(&self, place: usize) {
        self.add(place, 1);
    }

    /// Adds a number to the counter at `place`.
    #[inline]
    pub(crate) fn add(&self, place: usize, number: u64) {
        self.mine()[place].fetch_add(number, Ordering::Relaxed);
    }

    /// Returns the counts of all threads.
    pub(crate) fn sums(&self) -> [u64; N] {
        array::from_fn(|place| {
            self.0.iter().map(|stripe| stripe[place].load(Ordering::Relaxed)).sum()
        })
    }

    #[inline]
    fn mine(&self) -> &[AtomicU64; N] {
        thread_local! {
            static STRIPE: Cell<usize> =
                Cell::new(NEXT_STRIPE.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        &self.0[STRIPE.get()]
    }
}

const STRIPES: usize = 8;
static NEXT_STRIPE: AtomicUsize = AtomicUsize::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_is_lost_between_threads() {
        let counters = StripedCounters::<3>::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| (0..100).for_each(|_| counters.count(1)));
            }
        });
        assert_eq!(counters.sums(), [0, 2 * STRIPES as u64 * 100, 0]);
    }
}
