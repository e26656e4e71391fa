//! Every counter of the BPF programs. Loss is counted where it happens, each cause by itself.

use crate::atomic::Word;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $loss:literal;)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $variant = $number),* }

        impl Counter {
            /// Every counter, by ascending number.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant),*];

            /// The name that reports use, in snake case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name),* }
            }

            /// Whether it counts events that could not be accounted.
            #[must_use]
            pub const fn is_loss(self) -> bool {
                match self { $(Counter::$variant => $loss),* }
            }
        }
    };
}

counters! {
    /// Releases of a block the table does not know.
    UnmatchedFree = 0, "unmatched_frees", false;
    /// Allocator calls that failed.
    Failed = 1, "failed_allocations", false;
    /// Calls inside another allocator call; the outermost is accounted.
    Nested = 2, "nested_calls", false;
    /// Calls outside `--min-size`/`--max-size`.
    Filtered = 3, "filtered_allocations", false;
    /// A block for which the live table had no room.
    LiveTableFull = 4, "live_table_full", true;
    /// A call that could not be followed to its return: too many threads were inside the allocator.
    NoThreadRecord = 5, "no_thread_record", true;
    /// A call that never returned (an exception, `longjmp`, a killed thread), or whose return the kernel did not report.
    NeverReturned = 6, "never_returned", true;
    /// An address was allocated again while its block was live: its release was not seen.
    MissedFree = 7, "missed_free", true;
    /// The address of the new block could not be read or is none.
    UnreadableResult = 8, "unreadable_result", true;
    /// A mapping event for which the ring buffer had no room.
    MappingEventDropped = 9, "mapping_event_dropped", true;
    /// Allocations that were left out of the sample.
    Unsampled = 10, "unsampled_allocations", false;
    /// Allocations that were kept in the sample; not counted without sampling.
    Sampled = 11, "sampled_allocations", false;
    /// Releases of blocks that were kept in the sample; not counted without sampling.
    SampleFreed = 12, "sampled_frees", false;
}

/// How many counters there are; a power of two, so that indexes are masked.
pub const COUNTERS: usize = 16;
const _: () = assert!(Counter::ALL.len() <= COUNTERS);

/// How many copies there are, so that CPUs seldom share a cache line.
pub const STRIPES: u32 = 64;

/// One copy of the counters; their value is the sum over all copies.
#[repr(C, align(64))]
pub struct Stripe {
    counters: [Word; COUNTERS],
}

impl Stripe {
    /// Adds one.
    #[inline(always)]
    pub fn add(&self, counter: Counter) {
        self.counters[counter as usize].add(1);
    }

    /// The value of one counter in this copy.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load()
    }

    /// Sets every counter to 0.
    pub fn clear(&self) {
        self.counters.iter().for_each(|counter| counter.store(0));
    }
}
