//! The sampled blocks that are live, so that exactly their releases are told.
//!
//! `free` must learn in a nanosecond that a block is *not* in it: there is a filter of counts by a hash of the address in front, of
//! which 0 means no. Behind it are tables of buckets, each four times as large as the one before, taken from the kernel when the
//! bucket of the one before is full. No lock: a slot goes 0 → busy → address by compare-exchange, and back to 0 by whoever takes the
//! block out. A block is in before its address leaves `malloc`, so no release can miss it.

use core::sync::atomic::{
    AtomicPtr, AtomicU8, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::kernel;

/// Slots of a bucket: their addresses fill a cache line.
const WAYS: usize = 8;
/// Tables; together they have room for 22 million blocks.
const TABLES: usize = 7;
/// Buckets of the first table, as a power of two.
const FIRST_BITS: u32 = 9;
/// How many times as many the next one has, as a power of two.
const GROWTH_BITS: u32 = 2;
/// Counts of the filter, as a power of two.
const FILTER_BITS: u32 = 16;
/// A slot that is being written. No block has that address.
const BUSY: u64 = 1;
/// A count that stays: there were more blocks than it can count.
const MANY: u8 = u8::MAX;

/// What is known of a sampled block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Requested bytes.
    pub size: u64,
    /// The bytes that it stands for.
    pub weight: u64,
    /// When it was sampled, as the one that puts it in counts that.
    pub generation: u16,
}

/// Bits of a word that a size leaves to the generation: no process has more addresses.
const SIZE_BITS: u32 = 48;

impl Sampled {
    /// Its size and its generation, in one word.
    fn size_and_generation(self) -> u64 {
        self.size.min((1 << SIZE_BITS) - 1) | u64::from(self.generation) << SIZE_BITS
    }

    fn of_words(size_and_generation: u64, weight: u64) -> Self {
        let size = size_and_generation & ((1 << SIZE_BITS) - 1);
        Self { size, weight, generation: (size_and_generation >> SIZE_BITS) as u16 }
    }
}

#[repr(C, align(64))]
struct Bucket {
    addresses: [AtomicU64; WAYS],
    sizes_and_generations: [AtomicU64; WAYS],
    weights: [AtomicU64; WAYS],
}

/// The set.
#[repr(C, align(64))]
pub struct Set {
    /// How many blocks are in it. The machine code reads it, and the filter.
    pub(crate) count: AtomicU64,
    tables: [AtomicPtr<Bucket>; TABLES],
    pub(crate) filter: [AtomicU8; 1 << FILTER_BITS],
}

impl Default for Set {
    fn default() -> Self {
        Self::new()
    }
}

impl Set {
    /// An empty set, which has no memory from the kernel yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            tables: [const { AtomicPtr::new(core::ptr::null_mut()) }; TABLES],
            filter: [const { AtomicU8::new(0) }; 1 << FILTER_BITS],
        }
    }

    /// How many blocks are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Whether no block is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a block in, which must not be in it. `false` when there is no room, or no memory.
    #[must_use]
    pub fn insert(&self, address: u64, sampled: Sampled) -> bool {
        let Some((bucket, way)) = (0..TABLES).find_map(|table| self.claim(table, address)) else {
            return false;
        };
        self.count_in_filter(address);
        self.count.fetch_add(1, Relaxed);
        bucket.sizes_and_generations[way].store(sampled.size_and_generation(), Relaxed);
        bucket.weights[way].store(sampled.weight, Relaxed);
        bucket.addresses[way].store(address, Release);
        true
    }

    /// Takes a block out, if it is in. Of several threads that take the same one, one gets it.
    pub fn remove(&self, address: u64) -> Option<Sampled> {
        if address <= BUSY || !self.may_have(address) {
            return None;
        }
        let sampled = self
            .tables
            .iter()
            .enumerate()
            .find_map(|(number, table)| take(bucket(table.load(Acquire), number, address)?, address))?;
        self.count.fetch_sub(1, Relaxed);
        // A count that is full stays so: nobody knows how many there are.
        let less = |count: u8| (count != MANY).then(|| count.saturating_sub(1));
        let _ = self.filter[filter_index(address)].fetch_update(Relaxed, Relaxed, less);
        Some(sampled)
    }

    fn may_have(&self, address: u64) -> bool {
        self.filter[filter_index(address)].load(Relaxed) != 0
    }

    fn count_in_filter(&self, address: u64) {
        let more = |count: u8| (count != MANY).then(|| count + 1);
        let _ = self.filter[filter_index(address)].fetch_update(Relaxed, Relaxed, more);
    }

    /// A free slot for an address in one of the tables, which is made if it is not there yet.
    fn claim(&self, number: usize, address: u64) -> Option<(&Bucket, usize)> {
        let bucket = bucket(self.table(number)?, number, address)?;
        let claimed = |slot: &AtomicU64| {
            slot.load(Relaxed) == 0 && slot.compare_exchange(0, BUSY, Acquire, Relaxed).is_ok()
        };
        bucket.addresses.iter().position(claimed).map(|way| (bucket, way))
    }

    fn table(&self, number: usize) -> Option<*mut Bucket> {
        let table = self.tables.get(number)?;
        let there = table.load(Acquire);
        if !there.is_null() {
            return Some(there);
        }
        let bytes = size_of::<Bucket>() << bits(number);
        let made: *mut Bucket = kernel::map(bytes)?.cast();
        match table.compare_exchange(core::ptr::null_mut(), made, AcqRel, Acquire) {
            Ok(_) => Some(made),
            Err(theirs) => {
                // SAFETY: it is what was just mapped, and nobody has seen it.
                unsafe { kernel::unmap(made.cast(), bytes) };
                Some(theirs)
            }
        }
    }
}

/// Takes an address out of a bucket.
fn take(bucket: &Bucket, address: u64) -> Option<Sampled> {
    (0..WAYS).find_map(|way| {
        let slot = &bucket.addresses[way];
        if slot.load(Acquire) != address {
            return None;
        }
        let size_and_generation = bucket.sizes_and_generations[way].load(Relaxed);
        let sampled = Sampled::of_words(size_and_generation, bucket.weights[way].load(Relaxed));
        slot.compare_exchange(address, 0, AcqRel, Relaxed).is_ok().then_some(sampled)
    })
}

/// Buckets of a table, as a power of two.
const fn bits(table: usize) -> u32 {
    FIRST_BITS + GROWTH_BITS * table as u32
}

/// The bucket of an address in a table; none of a table that is not there. Fibonacci hashing.
fn bucket<'a>(table: *mut Bucket, number: usize, address: u64) -> Option<&'a Bucket> {
    let hash = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // SAFETY: a table has 2^bits buckets, which are never unmapped and consist of atomics, of which zeros are a value.
    (!table.is_null()).then(|| unsafe { &*table.add((hash >> (64 - bits(number))) as usize) })
}

/// What an address is multiplied by for the filter, of which the upper 16 of 32 bits are the index. The machine code
/// computes the same.
pub(crate) const FILTER_FACTOR: u32 = 0x9e37_79b1;

fn filter_index(address: u64) -> usize {
    ((address as u32).wrapping_mul(FILTER_FACTOR) >> (32 - FILTER_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, thread};

    use super::*;
    use crate::interval::Random;

    const SAMPLED: Sampled = Sampled { size: 48, weight: 512, generation: 7 };

    fn set() -> Box<Set> {
        Box::new(Set::new())
    }

    #[test]
    fn what_is_put_in_comes_out_once() {
        let set = set();
        assert!(set.insert(0x5000, SAMPLED));
        assert_eq!(set.remove(0x5010), None);
        assert_eq!(set.remove(0x5000), Some(SAMPLED));
        assert_eq!(set.remove(0x5000), None);
        assert_eq!(set.remove(0), None);
        assert!(set.is_empty());
        assert!(set.filter.iter().all(|count| count.load(Relaxed) == 0));
    }

    #[test]
    fn it_grows_to_a_million_blocks_and_forgets_none() {
        let set = set();
        let address = |number: u64| 0x7f00_0000_0000 + number * 48;
        for number in 0..1_000_000 {
            assert!(set.insert(address(number), Sampled { size: number, weight: 2 * number, generation: 0 }));
        }
        assert_eq!(set.len(), 1_000_000);
        for number in 0..1_000_000 {
            assert_eq!(
                set.remove(address(number)),
                Some(Sampled { size: number, weight: 2 * number, generation: 0 })
            );
        }
        assert!(set.is_empty());
    }

    #[test]
    fn a_filter_that_is_full_goes_on_letting_everything_through() {
        let set = set();
        // Addresses of one count: they differ above the 32 bits that are hashed.
        let address = |number: u64| 0x1000 + (number << 32);
        for number in 0..400 {
            assert!(set.insert(address(number), SAMPLED));
        }
        for number in 0..400 {
            assert_eq!(set.remove(address(number)), Some(SAMPLED));
        }
        assert_eq!(set.remove(address(7)), None);
    }

    #[test]
    fn eight_threads_agree_with_a_model() {
        let set = set();
        thread::scope(|scope| {
            for number in 0..8_u64 {
                let set = &set;
                scope.spawn(move || {
                    let (mut model, mut random) = (HashMap::new(), Random::new(number));
                    for round in 0..100_000_u64 {
                        let drawn = random.next(0);
                        let address = (number << 40) + 0x1000 + drawn % 5000 * 16;
                        let sampled = Sampled { size: round, weight: drawn, generation: round as u16 };
                        if drawn >> 32 & 1 == 0 && !model.contains_key(&address) {
                            assert!(set.insert(address, sampled));
                            model.insert(address, sampled);
                        } else {
                            assert_eq!(set.remove(address), model.remove(&address));
                        }
                    }
                    for (address, sampled) in model {
                        assert_eq!(set.remove(address), Some(sampled));
                    }
                });
            }
        });
        assert!(set.is_empty());
        assert!(set.filter.iter().all(|count| matches!(count.load(Relaxed), 0 | MANY)));
    }

    #[test]
    fn of_many_threads_one_takes_a_block() {
        let set = set();
        let taken = AtomicU64::new(0);
        for round in 0..2000_u64 {
            assert!(set.insert(0x1000 + round * 16, SAMPLED));
        }
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2000_u64 {
                        taken.fetch_add(set.remove(0x1000 + round * 16).is_some().into(), Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.load(Relaxed), 2000);
    }
}
