//! A direct-mapped cache from code to rule, so that most frames need no search.
//!
//! One slot is one 64-bit word that holds its whole key and its value, so readers and writers on many processors need
//! no lock: a slot is either the one or the other, never half of each. The key is exact, not a hash: a hit is never
//! wrong. When a table's number is given to another file, the cache must be cleared first.

/// The largest number of a table that can be cached; others miss.
pub const MAX_TABLE: u32 = u16::MAX as u32;

/// What a slot must hold besides the number of the rule: 16 bits table, 32 bits offset in the table's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

const RULE_BITS: u32 = 16;
const RULE_MASK: u64 = (1 << RULE_BITS) - 1;
/// 2^64 divided by the golden ratio: spreads neighbouring keys (Knuth, The Art of Computer Programming, 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Key {
    /// The key of an offset in a table's code, or `None` when it has none.
    #[must_use]
    #[inline(always)]
    pub const fn new(table: u32, offset: u32) -> Option<Self> {
        if table > MAX_TABLE {
            return None;
        }
        Some(Self((table as u64) << 48 | (offset as u64) << RULE_BITS))
    }

    /// The slot to look in, in a cache of `2^bits` slots. `bits` is 1 to 31.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self, bits: u32) -> u32 {
        (self.0.wrapping_mul(SPREAD) >> 32) as u32 >> (32 - bits)
    }

    /// The number of the rule in a slot that holds `word`, or `None` when that is another key's, or nobody's.
    #[must_use]
    #[inline(always)]
    pub const fn rule(self, word: u64) -> Option<u16> {
        let rule = word & RULE_MASK;
        if word ^ rule == self.0 && word != 0 { Some(rule as u16) } else { None }
    }

    /// The table whose rule a slot holds; 0 also of an empty one.
    #[must_use]
    #[inline(always)]
    pub const fn table_of(word: u64) -> u32 {
        (word >> 48) as u32
    }

    /// What to put in the slot. Rule 0, "no table", of the first byte of table 0 is not cached: an empty slot looks the same.
    #[must_use]
    #[inline(always)]
    pub const fn word(self, rule: u16) -> u64 {
        self.0 | rule as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_answers_its_own_key_only() {
        let key = Key::new(7, 0x1234_5678).expect("small table number");
        let word = key.word(42);
        assert_eq!(key.rule(word), Some(42));
        assert_eq!(Key::new(7, 0x1234_5679).and_then(|other| other.rule(word)), None);
        assert_eq!(Key::new(8, 0x1234_5678).and_then(|other| other.rule(word)), None);
        assert_eq!((key.rule(0), Key::table_of(word)), (None, 7));
        assert_eq!(
            key.rule(key.word(0)),
            Some(0),
            "code that no table covers, as a runtime's, is met again and again"
        );
        assert_eq!(Key::new(0, 0).and_then(|zero| zero.rule(0)), None, "an empty slot is nobody's");
        assert_eq!(Key::new(MAX_TABLE + 1, 0), None);
    }

    #[test]
    fn slots_stay_inside_the_cache_and_spread() {
        let mut used = [false; 64];
        for offset in 0..64 {
            let slot = Key::new(0, offset * 16).expect("small table number").slot(6);
            used[slot as usize] = true;
        }
        assert!(used.iter().filter(|used| **used).count() > 40);
    }
}
