//! Random numbers from a seed.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

/// A generator of random numbers that are the same for the same seed. Clones draw from one sequence.
#[derive(Clone, Debug)]
pub struct SeededRng(Arc<Mutex<u64>>);

impl SeededRng {
    /// Creates a generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// Returns a number below `sides`, which must not be 0.
    pub fn roll(&self, sides: u64) -> u64 {
        // splitmix64.
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    /// Returns `true` in `percent` of 100 cases.
    pub fn chance(&self, percent: u64) -> bool {
        self.roll(100) < percent
    }

    /// Waits for a random time below `longest`.
    pub async fn pause(&self, longest: Duration) {
        let micros = self.roll(longest.as_micros().max(1) as u64);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}
