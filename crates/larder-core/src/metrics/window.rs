//! The counts of the last minute: the difference between the counters now and a minute ago.
//!
//! Counters only ever grow. The first count in every five seconds saves a reading of all counters, so that a count
//! costs one addition, not one addition for each window.

use std::{
    array,
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use super::{event::EVENTS, histogram::Counts, meter::SAVED};
use crate::clock::Moment;

const STEP: Duration = Duration::from_secs(5);
const STEPS: usize = 12;

/// The values of the counters of a cache at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct CounterValues {
    pub(crate) events: [u64; EVENTS],
    pub(crate) saved: [u64; SAVED],
    pub(crate) hits: Counts,
    pub(crate) fills: Counts,
}

impl CounterValues {
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            events: difference(self.events, earlier.events),
            saved: difference(self.saved, earlier.saved),
            hits: self.hits.since(&earlier.hits),
            fills: self.fills.since(&earlier.fills),
        }
    }
}

fn difference<const N: usize>(now: [u64; N], then: [u64; N]) -> [u64; N] {
    array::from_fn(|place| now[place].saturating_sub(then[place]))
}

/// Readings of counters, one for each five seconds of the last minute.
#[derive(Debug)]
pub(crate) struct Window<T> {
    ends: AtomicU64,
    noted: Mutex<VecDeque<(Moment, T)>>,
}

impl<T: Clone + Default> Window<T> {
    pub(crate) fn new() -> Self {
        Self { ends: AtomicU64::new(0), noted: Mutex::default() }
    }

    #[inline]
    pub(crate) fn is_over(&self, now: Moment) -> bool {
        now.as_nanos() >= self.ends.load(Ordering::Relaxed)
    }

    /// Saves a reading, unless another thread has just saved one.
    pub(crate) fn turn(&self, now: Moment, reading: impl FnOnce() -> T) {
        let mut noted = self.noted.lock();
        if !self.is_over(now) {
            return;
        }
        self.ends.store(now.after(STEP).as_nanos(), Ordering::Relaxed);
        // The newest reading that is at least a minute old stays, because the last minute begins with it.
        let old = |at: Moment| now.since(at) >= STEP * STEPS as u32;
        while noted.get(1).is_some_and(|(at, _)| old(*at)) {
            noted.pop_front();
        }
        noted.push_back((now, reading()));
    }

    /// Returns the reading of a minute ago; zeros within the first minute.
    pub(crate) fn a_minute_ago(&self) -> T {
        let noted = self.noted.lock();
        let Some((latest, _)) = noted.back() else { return T::default() };
        let old = |at: Moment| latest.since(at) >= STEP * STEPS as u32;
        noted
            .iter()
            .rev()
            .find(|(at, _)| old(*at))
            .map(|(_, then)| then.clone())
            .unwrap_or_default()
    }
}
