//! A histogram of durations that counts without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// There are four buckets for each doubling, from 64 ns to 73 minutes, so a quantile is at most a quarter too long.
const BUCKETS: usize = 4 * 36;
const FIRST_POWER: u32 = 6;

#[derive(Debug)]
pub(crate) struct Histogram([AtomicU64; BUCKETS]);

impl Histogram {
    pub(crate) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    pub(crate) fn record(&self, duration: Duration) {
        self.0[bucket(duration)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

/// The counts of a histogram at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(Box<[u64]>);

impl Counts {
    /// Returns the counts since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let earlier = earlier.0.iter().copied().chain(std::iter::repeat(0));
        Self(self.0.iter().zip(earlier).map(|(now, then)| now.saturating_sub(then)).collect())
    }

    /// Returns a duration in the middle of each bucket that counted any, with its count.
    #[cfg(feature = "metrics")]
    pub(crate) fn durations(&self) -> impl Iterator<Item = (Duration, u64)> {
        let counted = self.0.iter().copied().enumerate().filter(|(_, count)| *count > 0);
        counted.map(|(bucket, count)| {
            let lower = bucket.checked_sub(1).map_or(Duration::ZERO, upper_end);
            ((lower + upper_end(bucket)) / 2, count)
        })
    }

    /// Returns the duration that this share of the counted durations does not exceed; zero if no duration was counted.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let total: u64 = self.0.iter().sum();
        let mut left = ((total as f64 * share).ceil() as u64).clamp(1, total.max(1));
        for (bucket, &count) in self.0.iter().enumerate() {
            if count >= left {
                return upper_end(bucket);
            }
            left -= count;
        }
        Duration::ZERO
    }
}

fn bucket(duration: Duration) -> usize {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1 << FIRST_POWER);
    let power = nanos.ilog2();
    let quarter = (nanos >> (power - 2)) & 3;
    (4 * (power - FIRST_POWER) as usize + quarter as usize).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> Duration {
    let (power, quarter) = (bucket / 4 + FIRST_POWER as usize, bucket % 4);
    Duration::from_nanos((1 << power) + ((quarter as u64 + 1) << (power - 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_off_by_at_most_a_quarter() {
        for nanos in [64, 100, 999, 12_345, 7_000_000, 60_000_000_000] {
            let histogram = Histogram::new();
            histogram.record(Duration::from_nanos(nanos));
            let found = histogram.counts().quantile(0.5).as_nanos() as u64;
            assert!(found >= nanos && found <= nanos + nanos / 4 + 1, "{nanos}: {found}");
        }
    }

    #[test]
    fn quantiles_of_a_difference_leave_out_earlier_counts() {
        let histogram = Histogram::new();
        (0..100).for_each(|_| histogram.record(Duration::from_millis(1)));
        let before = histogram.counts();
        histogram.record(Duration::from_secs(1));
        let since = histogram.counts().since(&before);
        assert!(since.quantile(0.5) >= Duration::from_secs(1));
        assert!(histogram.counts().quantile(0.99) < Duration::from_millis(2));
        assert_eq!(Counts::default().quantile(0.5), Duration::ZERO);
    }
}
