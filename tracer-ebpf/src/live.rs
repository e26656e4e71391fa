//! The live table: every tracked block that has not been freed, in memory that user space maps and reads without a
//! system call.
//!
//! It is an array of [`LiveBucket`]s; a block lives in the bucket its key hashes to. What does not fit, because the bucket is full or
//! the block is huge, goes to a small hash map beside it, and the bucket counts how many of its blocks went there: the hash
//! map is only asked when one did. 16 bytes a block: a key (process and address) and a packed [`Block`].
//!
//! A slot is written by one thread at a time: 0 → `BUSY` (claimed) → value → key (visible). It is given up by exchanging
//! the key for 0. A reader that sees the same key before and after the value has read that block's value.

use crate::{
    atomic::Word,
    process::ProcessIndex,
    sampling::{Sampling, Weight},
    stack::{STACK_BITS, StackId},
};

/// Blocks a bucket holds. With the count of blocks elsewhere it fills four cache lines.
pub const WAYS: usize = 15;

/// The key of a slot that is being written. No block has it: its address would be 1.
const BUSY: u64 = 1;

/// Bits of a user-space address on x86_64 and aarch64 with four-level page tables.
const ADDRESS_BITS: u32 = 48;

/// A block's identity: its process and its address; never 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct BlockKey(u64);

impl BlockKey {
    /// The key of the block at `address`; `None` for addresses that no allocator gives (0, 1, or beyond 48 bits).
    #[must_use]
    #[inline(always)]
    pub const fn new(process: ProcessIndex, address: u64) -> Option<Self> {
        if address <= BUSY || address >> ADDRESS_BITS != 0 {
            return None;
        }
        Some(Self((process.number() as u64) << ADDRESS_BITS | address))
    }

    /// The key as the tables hold it.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The key that a table holds; `None` for a slot that is free or being written.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits <= BUSY { None } else { Some(Self(bits)) }
    }

    /// Index of the traced process.
    #[must_use]
    pub const fn process(self) -> ProcessIndex {
        ProcessIndex::new((self.0 >> ADDRESS_BITS) as u16)
    }

    /// The block's address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & ((1 << ADDRESS_BITS) - 1)
    }

    /// The bucket of this key in a table of `buckets` buckets, a power of two. Fibonacci hashing: the multiplication spreads
    /// the low address bits, which differ, into the high bits, which are used.
    #[must_use]
    #[inline(always)]
    pub const fn bucket(self, buckets: u32) -> u32 {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & (buckets - 1)
    }
}

/// What the table knows of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Block {
    /// Requested bytes.
    pub size: u64,
    /// Nanoseconds from the window's start to its allocation.
    pub born_ns: u64,
    /// The stack that allocated it.
    pub stack: StackId,
    /// 0: the verifier of old kernels refuses to copy bytes that nothing was written to.
    pub padding: u32,
    /// How many objects it stands for, in parts of an [`OBJECT`](crate::sampling::OBJECT), where its process chose that; 0 where
    /// its size says it.
    pub objects: u64,
}

/// A packed block: 27 bits size, 17 bits stack, 20 bits time of birth.
const SIZE_BITS: u32 = 27;
const TIME_AT: u32 = SIZE_BITS + STACK_BITS;
const _: () = assert!(TIME_AT + EXPONENT_BITS + MANTISSA_BITS == 64);

/// Time of birth is a floating-point number: exact to 2^14 ns (16 µs) for the first half second, then to one part in
/// 32,768 of the time since the window's start (2.6 s after a day). 5 bits of exponent reach 36 years.
const TIME_UNIT_SHIFT: u32 = 14;
const MANTISSA_BITS: u32 = 15;
const EXPONENT_BITS: u32 = 5;

#[inline(always)]
const fn pack_time(ns: u64) -> u64 {
    let units = ns >> TIME_UNIT_SHIFT;
    let mut exponent = 0;
    let mut mantissa = units;
    // Five halvings in place of a count of leading zeros, which BPF lacks.
    let mut step = 16;
    while step > 0 {
        if mantissa >> (MANTISSA_BITS + step - 1) != 0 {
            mantissa >>= step;
            exponent += step;
        }
        step >>= 1;
    }
    (exponent as u64) << MANTISSA_BITS | (mantissa & ((1 << MANTISSA_BITS) - 1))
}

#[inline(always)]
const fn unpack_time(bits: u64) -> u64 {
    let mantissa = bits & ((1 << MANTISSA_BITS) - 1);
    let exponent = bits >> MANTISSA_BITS;
    mantissa << exponent << TIME_UNIT_SHIFT
}

impl Block {
    /// How much it stands for.
    #[must_use]
    #[inline(always)]
    pub const fn weight(self, sampling: Sampling) -> Weight {
        match self.objects {
            0 => sampling.weight(self.size),
            objects => Weight::of(self.size, objects),
        }
    }

    /// The block in 8 bytes; `None` when its size (128 MiB and more) or stack does not fit, or its process chose its weight.
    #[must_use]
    #[inline(always)]
    pub const fn pack(self) -> Option<u64> {
        if self.size >> SIZE_BITS != 0 || self.stack.number() >> STACK_BITS != 0 || self.objects != 0 {
            return None;
        }
        Some(self.size | (self.stack.number() as u64) << SIZE_BITS | pack_time(self.born_ns) << TIME_AT)
    }

    /// The block that [`Block::pack`] packed, its time rounded down. Any 64 bits give some block.
    #[must_use]
    #[inline(always)]
    pub const fn unpack(bits: u64) -> Self {
        Self {
            size: bits & ((1 << SIZE_BITS) - 1),
            born_ns: unpack_time(bits >> TIME_AT),
            stack: StackId::new((bits >> SIZE_BITS) as u32 & ((1 << STACK_BITS) - 1)),
            padding: 0,
            objects: 0,
        }
    }
}

/// Some blocks of the live table.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct LiveBucket {
    spilled: Word,
    keys: [Word; WAYS],
    values: [Word; WAYS],
    padding: Word,
}

const _: () = assert!(size_of::<LiveBucket>() == 256);

impl LiveBucket {
    /// Puts a packed block in; `false` when the bucket is full. The key must not be in it already.
    #[inline(always)]
    pub fn insert(&self, key: BlockKey, value: u64) -> bool {
        for way in 0..WAYS {
            if self.keys[way].load() == 0 && self.keys[way].compare_exchange(0, BUSY) == 0 {
                self.values[way].store(value);
                self.keys[way].store(key.0);
                return true;
            }
        }
        false
    }

    /// Takes a block out. Of several threads that take the same block, one gets it.
    #[inline(always)]
    pub fn take(&self, key: BlockKey) -> Option<u64> {
        for way in 0..WAYS {
            if self.keys[way].load() == key.0 {
                let value = self.values[way].load();
                if self.keys[way].compare_exchange(key.0, 0) == key.0 {
                    return Some(value);
                }
            }
        }
        None
    }

    /// Whether blocks of this bucket are in the hash map beside the table.
    #[inline(always)]
    pub fn has_spilled(&self) -> bool {
        self.spilled.load() != 0
    }

    /// A block of this bucket goes to the hash map; to be called before it is there.
    #[inline(always)]
    pub fn spill(&self) {
        self.spilled.add(1);
    }

    /// A block of this bucket is in the hash map no more.
    #[inline(always)]
    pub fn unspill(&self) {
        self.spilled.add(1_u64.wrapping_neg());
    }

    /// Forgets every block. To be called while nobody else changes the bucket.
    pub fn clear(&self) {
        // A word that is 0 is only read: memory that the table never used stays untouched.
        for word in self.keys.iter().chain([&self.spilled]).filter(|word| word.load() != 0) {
            word.store(0);
        }
    }

    /// Every block that is in the bucket, while others may be changing it.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockKey, Block)> + '_ {
        (0..WAYS).filter_map(|way| {
            let key = self.keys[way].load();
            let value = self.values[way].load();
            (self.keys[way].load() == key).then_some(())?;
            Some((BlockKey::from_bits(key)?, Block::unpack(value)))
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{collections::BTreeMap, vec::Vec};

    #[test]
    fn time_is_never_later_and_off_by_at_most_one_part_in_32768() {
        for shift in 0..60 {
            for ns in [(1_u64 << shift) - 1, 1 << shift, (1 << shift) + 12_345] {
                let packed = pack_time(ns);
                assert!(packed < 1 << (MANTISSA_BITS + EXPONENT_BITS));
                let back = unpack_time(packed);
                assert!(
                    back <= ns && ns - back <= (ns >> MANTISSA_BITS).max(1 << TIME_UNIT_SHIFT),
                    "{ns} {back}"
                );
            }
        }
    }

    #[test]
    fn blocks_round_trip_and_what_does_not_fit_says_so() {
        let block = Block {
            size: (1 << 27) - 1,
            stack: StackId::new((1 << 17) - 1),
            born_ns: 1 << 20,
            padding: 0,
            objects: 0,
        };
        assert_eq!(Block::unpack(block.pack().unwrap()), block);
        assert_eq!(Block { size: 1 << 27, ..block }.pack(), None);
        assert_eq!(Block { stack: StackId::new(1 << 17), ..block }.pack(), None);
        assert_eq!(Block { objects: 1, ..block }.pack(), None);
    }

    #[test]
    fn keys_keep_process_and_address_and_refuse_what_is_no_block() {
        let key = BlockKey::new(ProcessIndex::new(u16::MAX), 0x7fff_ffff_f000).unwrap();
        assert_eq!((key.process().number(), key.address()), (u16::MAX, 0x7fff_ffff_f000));
        for address in [0, 1, 1 << 48, u64::MAX] {
            assert_eq!(BlockKey::new(ProcessIndex::default(), address), None);
        }
    }

    #[test]
    fn a_bucket_holds_its_blocks_and_refuses_more() {
        let bucket = LiveBucket::default();
        let key = |n: u64| BlockKey::new(ProcessIndex::new(3), n * 16).unwrap();
        for n in 1..=WAYS as u64 {
            assert!(bucket.insert(key(n), n));
        }
        assert!(!bucket.insert(key(100), 100));
        assert_eq!(bucket.take(key(7)), Some(7));
        assert_eq!(bucket.take(key(7)), None);
        assert!(bucket.insert(key(100), 100));
        let held: BTreeMap<u64, u64> =
            bucket.blocks().map(|(key, block)| (key.address(), block.size)).collect();
        assert_eq!(held.len(), WAYS);
        assert_eq!(held[&1600], 100);
    }

    #[test]
    fn of_many_threads_exactly_one_takes_a_block_and_none_is_lost() {
        let bucket = LiveBucket::default();
        let key = |n: u64| BlockKey::new(ProcessIndex::default(), n * 16).unwrap();
        let taken = Word::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (bucket, taken) = (&bucket, &taken);
                scope.spawn(move || {
                    for round in 0..20_000_u64 {
                        let own = key(1000 + thread);
                        assert!(bucket.insert(own, round));
                        assert_eq!(bucket.take(own), Some(round));
                        // Everybody inserts and takes the shared block; whoever takes it had it inserted.
                        if round % 4 == thread && bucket.insert(key(1), round) {
                            taken.add(1_u64.wrapping_neg());
                        }
                        if bucket.take(key(1)).is_some() {
                            taken.add(1);
                        }
                    }
                });
            }
        });
        while bucket.take(key(1)).is_some() {
            taken.add(1);
        }
        assert_eq!(taken.load(), 0);
        assert_eq!(bucket.blocks().collect::<Vec<_>>(), []);
    }

    #[test]
    fn sixteen_byte_aligned_addresses_fill_the_buckets_evenly() {
        let mut load = [0_u32; 1024];
        for n in 0..8 * 1024 {
            load[BlockKey::new(ProcessIndex::default(), 0x5555_0000_0000 + n * 48).unwrap().bucket(1024)
                as usize] += 1;
        }
        assert!(load.iter().all(|&blocks| blocks <= WAYS as u32), "{:?}", load.iter().max());
    }
}
