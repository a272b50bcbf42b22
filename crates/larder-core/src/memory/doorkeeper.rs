//! The doorkeeper: keeps the first miss of a key out of moka's frequency counts.
//!
//! moka admits a new entry if its key was requested more often than the key of the entry that would be evicted. A scan
//! requests each key once; if that counted, the scan would evict entries that are requested occasionally. So the first
//! miss of a key is only noted here, in two bits, and misses count from the second miss on.
//!
//! Notes are cleared one word at a time as new notes arrive, so that no request ever has to clear all of them.
//!
//! # Source
//!
//! Einziger, Friedman and Manes, *TinyLFU: A Highly Efficient Cache Admission Policy*, 2017, section 3.4.2.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// An approximate set of hashes, which forgets old hashes before it is too full to distinguish hashes.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    bits: Box<[AtomicU64]>,
    noted: AtomicUsize,
}

impl Doorkeeper {
    /// Creates a doorkeeper for a level of `capacity` bytes, with one bit per 8 bytes of capacity, rounded up to a
    /// power of two, from 8 KiB to 16 MiB of bits. Only the pages that were written are resident.
    pub(crate) fn new(capacity: usize) -> Self {
        let bits = (capacity / 8).next_power_of_two().clamp(1 << 16, 1 << 27);
        Self { bits: bytemuck::zeroed_slice_box(bits / 64), noted: AtomicUsize::new(0) }
    }

    /// Notes a hash. Returns whether it was noted before.
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

    /// Sets the bit of a hash. Returns whether it was set before.
    fn note(&self, hash: u64) -> bool {
        let place = (hash >> 6) as usize % self.bits.len();
        let bit = 1 << (hash & 63);
        self.bits[place].fetch_or(bit, Ordering::Relaxed) & bit != 0
    }
}

/// One word of 64 bits is cleared per this many notes. At most a quarter of all bits are set, and an eighth on average,
/// so one new hash in sixty is mistaken for a known hash.
const NOTES_A_WORD: usize = 8;

/// The multiplier that derives a second hash from the first.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(numbers: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
        numbers.map(|number| number.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    #[test]
    fn a_noted_hash_is_known_until_it_is_forgotten() {
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
    fn fewer_than_one_new_hash_in_twenty_is_taken_for_known() {
        let door = Doorkeeper::new(0);
        let mistaken = hashes(1..1 << 16).filter(|hash| door.knows(*hash)).count();
        assert!(mistaken < (1 << 16) / 20, "{mistaken}");
    }
}
