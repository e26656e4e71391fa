//! The table of stacks: each distinct stack has a number, and its totals stand in an array under that number.
//!
//! A stack is identified by a 64-bit hash of its frames, the function called and the process. Its number is the place of that
//! hash in an array of [`SlotSet`](crate::slots::SlotSet)s. With the most stacks the table can hold, 2^17, the chance that any two
//! share a hash is 2^34 / 2^65, one in two thousand million recordings; the hash starts from a random seed, so a target cannot
//! bring collisions about.

use crate::{atomic::Word, process::ProcessIndex, runtime::FrameKind, sampling::Weight};

/// Frames a stack can have; deeper stacks are cut at the outer end.
pub const MAX_FRAMES: usize = 128;

/// Room for the words of that many frames, whatever they are. A power of two: so an index within it is a matter of its bits, which
/// every verifier understands.
pub const MAX_WORDS: usize = (MAX_FRAMES * (1 + FrameKind::MOST_WORDS)).next_power_of_two();

/// The number of a stack: its place in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct StackId(u32);

impl StackId {
    /// The stack that takes the allocations whose own found no room in the table.
    pub const NO_ROOM: Self = Self(0);
    /// The stack that has the totals of those whose place was given to others: they held nothing any more.
    pub const RETIRED: Self = Self(1);
    /// In place of a stack: none, or one that is not known.
    pub const NONE: Self = Self(u32::MAX);

    /// The stack with this number.
    #[must_use]
    #[inline(always)]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Its place in the table of totals.
    #[must_use]
    pub const fn place(self) -> usize {
        self.0 as usize
    }
}

/// Bits of a stack's number where a block has it.
pub const STACK_BITS: u32 = 17;

/// The most stacks that a table can have.
pub const MAX_STACKS: u32 = 1 << STACK_BITS;

/// What a stack allocated and freed in the window.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct StackTotals {
    allocated: WeightSum,
    freed: WeightSum,
    /// Not 0 once the stack's frames are in the ring buffer.
    pub delivered: Word,
    padding: [Word; 3],
}

const _: () = assert!(size_of::<StackTotals>() == 64);

impl StackTotals {
    /// Counts an allocation.
    #[inline(always)]
    pub fn add_allocated(&self, weight: Weight) {
        self.allocated.add(weight);
    }

    /// Takes over the totals of a stack that is given up, which is as new then. Nobody may be counting for that stack.
    pub fn take_over(&self, retired: &Self) {
        self.allocated.take_over(&retired.allocated);
        self.freed.take_over(&retired.freed);
        retired.delivered.store(0);
    }

    /// Counts the release of a block, of the same weight.
    #[inline(always)]
    pub fn add_freed(&self, weight: Weight) {
        self.freed.add(weight);
    }

    /// What was allocated in the window.
    #[must_use]
    pub fn allocated(&self) -> Weight {
        self.allocated.load()
    }

    /// What of it has been freed.
    #[must_use]
    pub fn freed(&self) -> Weight {
        self.freed.load()
    }

    /// What of it has not been freed.
    #[must_use]
    pub fn outstanding(&self) -> Weight {
        // Freed first: a block that is freed between the two reads must not count below zero.
        let freed = self.freed();
        let allocated = self.allocated();
        Weight {
            bytes: allocated.bytes.saturating_sub(freed.bytes),
            objects: allocated.objects.saturating_sub(freed.objects),
        }
    }

    /// Forgets what was counted, not that the frames are known. To be called while nobody counts.
    pub fn clear(&self) {
        self.allocated.clear();
        self.freed.clear();
    }
}

/// A sum of [weights](Weight) that many add to.
#[derive(Debug, Default)]
#[repr(C)]
struct WeightSum {
    bytes: Word,
    objects: Word,
}

impl WeightSum {
    #[inline(always)]
    fn add(&self, weight: Weight) {
        self.bytes.add(weight.bytes);
        self.objects.add(weight.objects);
    }

    fn take_over(&self, retired: &Self) {
        self.add(retired.load());
        retired.clear();
    }

    fn clear(&self) {
        self.bytes.store(0);
        self.objects.store(0);
    }

    fn load(&self) -> Weight {
        Weight { bytes: self.bytes.load(), objects: self.objects.load() }
    }
}

/// What precedes the frames in a ring-buffer event of kind [`EventKind::Stack`](crate::event::EventKind::Stack).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StackHeader {
    /// [`EventKind::Stack`](crate::event::EventKind::Stack).
    pub event: u8,
    /// A [`Stop`](crate::stop::Stop).
    pub stop: u8,
    /// The traced process.
    pub process: ProcessIndex,
    /// The function that was called: an index in user space's table of allocator functions, or [`mapping_api`].
    pub api: u16,
    /// How many words follow.
    pub words: u16,
    /// The stack's number.
    pub stack: StackId,
    /// The thread that made it first.
    pub tid: u32,
    /// The process' [`code_changes`](crate::process::ProcessState::code_changes) when the walk began.
    pub code_changes: u32,
    /// Generation of the [`CodeList`](crate::process::CodeList) by which it was walked: what was mapped where.
    pub generation: u16,
    /// 1 when the last frame is in code of which nothing was known then: it is in no list.
    pub last_is_unknown: u8,
    /// Zero.
    pub padding: u8,
}

const _: () = assert!(size_of::<StackHeader>() == 24);

/// The number of an api that is a system call which changes mappings.
#[must_use]
#[inline(always)]
pub const fn mapping_api(call: crate::mapping_call::MappingCall) -> u16 {
    0xff00 | call as u16
}

/// The system call of an api number, if it is one.
#[must_use]
pub fn mapping_call(api: u16) -> Option<crate::mapping_call::MappingCall> {
    if api >> 8 != 0xff {
        return None;
    }
    crate::mapping_call::MappingCall::try_from(api as u8).ok()
}

/// A stack on its way to user space: header and frames are one run of bytes.
#[repr(C)]
pub struct Capture {
    /// Header of the event.
    pub header: StackHeader,
    /// Its frames, leaf first: the word of each with its return address, and what words it has besides ([`FrameKind`]).
    pub frames: [u64; MAX_WORDS],
    /// What the walk has read of the stack.
    pub window: StackWindow,
}

/// A stretch of stack memory, copied by one read: that costs hardly more than the read of one word.
#[repr(C)]
pub struct StackWindow {
    /// Where it begins.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// What is there.
    pub words: [u64; StackWindow::WORDS],
}

impl StackWindow {
    /// How many words a window has at most: ten usual frames.
    pub const WORDS: usize = 128;
    /// The most bytes of a window.
    pub const BYTES: u64 = 8 * Self::WORDS as u64;

    /// How much to read at an address. Not beyond its page: what follows may not be there, and finding that out is dear.
    #[must_use]
    #[inline(always)]
    pub const fn length_at(address: u64) -> u64 {
        const PAGE: u64 = 4096;
        let in_page = PAGE - address % PAGE;
        if in_page < Self::BYTES { in_page } else { Self::BYTES }
    }

    /// The index of the word at an address, if it is in the window.
    #[must_use]
    #[inline(always)]
    pub const fn index(&self, address: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.start);
        if offset < self.length && offset & 7 == 0 { Some(offset as usize / 8 % Self::WORDS) } else { None }
    }
}

/// A hash that takes one word at a time.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct StackHash(u64);

impl StackHash {
    /// A hash that starts from a seed.
    #[must_use]
    #[inline(always)]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Takes in a word: multiply and fold, as wyhash's inner step does with 64-bit halves (BPF has no wide multiplication).
    #[must_use]
    #[inline(always)]
    pub const fn mix(self, word: u64) -> Self {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self(mixed ^ (mixed >> 29))
    }

    /// The hash; never 0, which marks a free slot.
    #[must_use]
    #[inline(always)]
    pub const fn finish(self) -> u64 {
        self.0 | 1 << 63
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::mapping_call::MappingCall;
    use std::collections::BTreeSet;

    #[test]
    fn similar_stacks_hash_apart() {
        let hashes: BTreeSet<u64> = (0..64_u64)
            .flat_map(|a| (0..64_u64).map(move |b| (a, b)))
            .map(|(a, b)| StackHash::new(1).mix(0x5555_0000 + a).mix(0x5555_0000 + b).finish())
            .collect();
        assert_eq!(hashes.len(), 64 * 64);
        assert_ne!(StackHash::new(0).mix(1).mix(2).finish(), StackHash::new(0).mix(2).mix(1).finish());
    }

    #[test]
    fn a_window_has_its_own_words_and_ends_with_a_page() {
        let mut window = StackWindow { start: 0x1000, length: 16, words: [0; StackWindow::WORDS] };
        let indexes = [0xff8, 0x1000, 0x1004, 0x1008, 0x1010].map(|address| window.index(address));
        assert_eq!(indexes, [None, Some(0), None, Some(1), None]);
        window.length = 0;
        assert_eq!(window.index(0x1000), None);
        assert_eq!(StackWindow::length_at(0x7000), StackWindow::BYTES);
        assert_eq!(StackWindow::length_at(0x7ff8), 8);
        assert_eq!(StackWindow::length_at(u64::MAX), 1);
    }

    #[test]
    fn apis_of_system_calls_round_trip() {
        assert_eq!(mapping_call(mapping_api(MappingCall::Mremap)), Some(MappingCall::Mremap));
        assert_eq!(mapping_call(3), None);
        assert_eq!(mapping_call(0xff77), None);
    }
}
