//! A small set of owned slots: who claims one has it alone until it is released.
//!
//! BPF programs of the uprobe kind are preemptible, so "one per CPU" would let two threads share a slot. A slot here belongs to
//! the key that claimed it, wherever its thread runs. Keys stand side by side in one cache line.

use crate::atomic::Word;

/// How many slots a set has: eight keys fill a cache line of 64 bytes.
pub const WAYS: usize = 8;

/// The number of slot `way` of set `set` among those of all sets.
#[must_use]
#[inline(always)]
pub const fn slot_number(set: u32, way: u32) -> u32 {
    set * WAYS as u32 + way
}

/// The set and the way in it of the slot with this number.
#[must_use]
#[inline(always)]
pub const fn set_and_way(number: u32) -> (u32, u32) {
    (number / WAYS as u32, number % WAYS as u32)
}

/// Eight slots; the word of a free one is 0.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct SlotSet {
    keys: [Word; WAYS],
}

impl SlotSet {
    /// The slot that `key` has.
    #[inline(always)]
    pub fn find(&self, key: u64) -> Option<u32> {
        (0..WAYS).find(|&way| self.keys[way].load() == key).map(|way| way as u32)
    }

    /// Gives a free slot to `key`, which is not 0. `None` when all are taken.
    #[inline(always)]
    pub fn claim(&self, key: u64) -> Option<u32> {
        (0..WAYS)
            .find(|&way| self.keys[way].load() == 0 && self.keys[way].compare_exchange(0, key) == 0)
            .map(|way| way as u32)
    }

    /// The slot that `key` has or, failing that, a free one, whose key is `key` from now on.
    #[inline(always)]
    pub fn find_or_claim(&self, key: u64) -> Option<u32> {
        // A free word that another key takes first is looked at again: it may now hold the same key.
        for way in 0..WAYS {
            let word = self.keys[way].load();
            if word == key {
                return Some(way as u32);
            }
            if word == 0 {
                let previous = self.keys[way].compare_exchange(0, key);
                if previous == 0 || previous == key {
                    return Some(way as u32);
                }
            }
        }
        None
    }

    /// Frees a slot that was claimed. A `way` beyond the set does nothing.
    #[inline(always)]
    pub fn release(&self, way: u32) {
        if let Some(word) = self.keys.get(way as usize) {
            word.store(0);
        }
    }

    /// Gives a slot of the key `current` to the key `new`; whether it was `current`'s.
    #[inline(always)]
    pub fn hand_over(&self, way: u32, current: u64, new: u64) -> bool {
        self.keys.get(way as usize).is_some_and(|word| word.compare_exchange(current, new) == current)
    }

    /// The key of a slot; 0 when it is free.
    #[inline(always)]
    pub fn key(&self, way: u32) -> u64 {
        self.keys.get(way as usize).map_or(0, |word| word.load())
    }
}

const _: () = assert!(size_of::<SlotSet>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_set_refuses_and_a_released_slot_is_given_again() {
        let set = SlotSet::default();
        for key in 1..=WAYS as u64 {
            assert_eq!(set.claim(key), Some(key as u32 - 1));
        }
        assert_eq!(set.claim(99), None);
        assert_eq!(set.find_or_claim(99), None);
        assert_eq!(set.find(5), Some(4));
        set.release(4);
        assert_eq!(set.find(5), None);
        assert_eq!(set.claim(99), Some(4));
        set.release(1000);
        assert!(set.hand_over(4, 99, 5) && !set.hand_over(4, 99, 6) && !set.hand_over(1000, 0, 1));
        assert_eq!((set.find(99), set.find(5)), (None, Some(4)));
    }

    #[test]
    fn find_or_claim_gives_one_key_one_slot() {
        let set = SlotSet::default();
        assert_eq!(set.find_or_claim(7), Some(0));
        assert_eq!(set.find_or_claim(8), Some(1));
        assert_eq!(set.find_or_claim(7), Some(0));
    }
}
