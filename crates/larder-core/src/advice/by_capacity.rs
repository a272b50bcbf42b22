//! Advice on the capacity of the first level.

use super::{Advice, AdviceKind};
use crate::{metrics::MemoryStats, traffic::ReuseDistances};

pub(super) fn advice(reuse: &ReuseDistances, memory: &MemoryStats) -> Option<Advice> {
    if reuse.requests() < FEWEST_REQUESTS {
        return None;
    }
    let capacity = memory.capacity_bytes as u64;
    let [half, same, twice] =
        [capacity / 2, capacity, 2 * capacity].map(|bytes| reuse.hit_ratio(bytes));
    let (kind, change) = if twice - same >= 0.02 {
        (AdviceKind::MoreMemory, "raise `LarderBuilder::memory`")
    } else if same - half < 0.002 && capacity >= 32 << 20 {
        (AdviceKind::LessMemory, "`LarderBuilder::memory` can be halved")
    } else {
        return None;
    };
    let percent = |ratio: f64| format!("{:.1} %", 100.0 * ratio);
    let text = format!(
        "By reuse distances, the first level finds {} of the requested keys at its {} MiB, {} at half and {} at twice of it: \
         {change}.",
        percent(same),
        capacity >> 20,
        percent(half),
        percent(twice),
    );
    Some(Advice { kind, cache: String::new(), route: None, about: None, text })
}

/// With fewer requests of sampled keys the ratios are guesses.
const FEWEST_REQUESTS: f64 = 1000.0;
