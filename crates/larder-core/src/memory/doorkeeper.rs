//! Who asks for the first time is not yet popular.
//!
//! moka admits a new entry when its key was asked for more often than the one that would have to go. A scan
//! asks for each key once; were that once counted, it would push out whatever was asked for once in a
//! while. So a first miss is only noted here, in one bit, and counted from the second on.
//!
//! # Source
//!
//! Einziger, Friedman and Manes, *TinyLFU: A Highly Efficient Cache Admission Policy*, 2017, section 3.4.2.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A set of hashes that forgets everything when it has become too full to tell them apart.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    bits: Box<[AtomicU64]>,
    noted: AtomicUsize,
}

impl Doorkeeper {
    /// One for a tier of this many bytes: a bit for every 64 of them, from 8 KiB to 2 MiB of bits.
    pub(crate) fn new(capacity: usize) -> Self {
        let bits = (capacity / 64).next_power_of_two().clamp(1 << 16, 1 << 24);
        let bits = (0..bits / 64).map(|_| AtomicU64::new(0)).collect();
        Self { bits, noted: AtomicUsize::new(0) }
    }

    /// Whether this hash was noted before; it is from now on.
    pub(crate) fn knows(&self, hash: u64) -> bool {
        let place = (hash >> 6) as usize % self.bits.len();
        let bit = 1 << (hash & 63);
        if self.bits[place].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return true;
        }
        if self.noted.fetch_add(1, Ordering::Relaxed) >= self.bits.len() * 64 / 8 {
            self.noted.store(0, Ordering::Relaxed);
            self.bits.iter().for_each(|bits| bits.store(0, Ordering::Relaxed));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_time_is_told_from_the_first_until_it_forgets() {
        let door = Doorkeeper::new(0);
        assert!(!door.knows(7));
        assert!(door.knows(7));
        for hash in 0..1 << 16 {
            door.knows(hash * 977);
        }
        assert!(!door.knows(u64::MAX));
    }
}
