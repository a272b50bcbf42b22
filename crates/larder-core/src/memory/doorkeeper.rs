//! Who asks for the first time is not yet popular.
//!
//! moka admits a new entry when its key was asked for more often than the one that would have to go. A scan
//! asks for each key once; were that once counted, it would push out whatever was asked for once in a
//! while. So a first miss is only noted here, in two bits, and counted from the second on.
//!
//! What was noted is forgotten a word at a time, as new notes come: there is no moment at which all is
//! forgotten, and none at which a request has to clear it all.
//!
//! # Source
//!
//! Einziger, Friedman and Manes, *TinyLFU: A Highly Efficient Cache Admission Policy*, 2017, section 3.4.2.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A set of hashes that forgets the oldest before it is too full to tell them apart.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    bits: Box<[AtomicU64]>,
    noted: AtomicUsize,
}

impl Doorkeeper {
    /// One for a tier of this many bytes: a bit for every 8 of them, from 8 KiB to 16 MiB of bits, resident
    /// where touched.
    pub(crate) fn new(capacity: usize) -> Self {
        let bits = (capacity / 8).next_power_of_two().clamp(1 << 16, 1 << 27);
        Self { bits: bytemuck::zeroed_slice_box(bits / 64), noted: AtomicUsize::new(0) }
    }

    /// Whether this hash was noted before; it is from now on.
    pub(crate) fn knows(&self, hash: u64) -> bool {
        let known = [hash, hash.rotate_left(32).wrapping_mul(ODD)].map(|hash| self.note(hash));
        if known == [true, true] {
            return true;
        }
        let noted = self.noted.fetch_add(1, Ordering::Relaxed);
        if noted.is_multiple_of(NOTES_A_WORD) {
            let oldest = noted / NOTES_A_WORD % self.bits.len();
            self.bits[oldest].store(0, Ordering::Relaxed);
        }
        false
    }

    /// Sets the bit of this hash, and says whether it was set.
    fn note(&self, hash: u64) -> bool {
        let place = (hash >> 6) as usize % self.bits.len();
        let bit = 1 << (hash & 63);
        self.bits[place].fetch_or(bit, Ordering::Relaxed) & bit != 0
    }
}

/// After as many notes a word of 64 bits is cleared: at most a quarter of all is set, an eighth on average,
/// so that one in sixty is taken for known that is not.
const NOTES_A_WORD: usize = 8;

/// Makes a second hash of the first.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(numbers: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
        numbers.map(|number| number.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    #[test]
    fn the_second_time_is_told_from_the_first_until_it_is_forgotten() {
        let door = Doorkeeper::new(0);
        for hash in hashes(1..100) {
            door.knows(hash);
        }
        assert!(hashes(1..100).all(|hash| door.knows(hash)));
        for hash in hashes(100..1 << 14) {
            door.knows(hash);
        }
        assert!(hashes(1..100).filter(|hash| door.knows(*hash)).count() < 20);
    }

    #[test]
    fn few_that_are_new_are_taken_for_known() {
        let door = Doorkeeper::new(0);
        let mistaken = hashes(1..1 << 16).filter(|hash| door.knows(*hash)).count();
        assert!(mistaken < (1 << 16) / 20, "{mistaken}");
    }
}
