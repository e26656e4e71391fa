//! Every counter of the BPF programs. Loss is counted where it happens, each cause by itself.

use crate::atomic::Word;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal $(, lost: $meaning:literal)?;)*) => {
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

            /// What happened to events that are missing from the account, and what to do about it; none of what is not lost.
            #[must_use]
            pub const fn loss(self) -> Option<&'static str> {
                match self { $(Counter::$variant => counters!(@loss $($meaning)?)),* }
            }
        }
    };
    (@loss) => { None };
    (@loss $meaning:literal) => { Some($meaning) };
}

counters! {
    /// Releases of a block the table does not know.
    UnmatchedFree = 0, "unmatched_frees";
    /// Allocator calls that failed.
    Failed = 1, "failed_allocations";
    /// Calls inside another allocator call; the outermost is accounted.
    Nested = 2, "nested_calls";
    /// Calls outside `--min-size`/`--max-size`.
    Filtered = 3, "filtered_allocations";
    /// A block for which the live table had no room.
    LiveTableFull = 4, "live_table_full",
        lost: "the table of live blocks was full: raise --max-live";
    /// A call that could not be followed to its return: too many threads were inside the allocator.
    NoThreadRecord = 5, "no_thread_record",
        lost: "too many threads were inside an allocator at once: trace fewer processes";
    /// A call that never returned (an exception, `longjmp`), or whose return the kernel did not report.
    NeverReturned = 6, "never_returned",
        lost: "the call never returned: an exception or longjmp";
    /// An address was allocated again while its block was live: its release was not seen.
    MissedFree = 7, "missed_free",
        lost: "an address was allocated again, but its release was not seen";
    /// The address of the new block could not be read or is none.
    UnreadableResult = 8, "unreadable_result",
        lost: "the address of the new block could not be read";
    /// A mapping event for which the ring buffer had no room.
    MappingEventDropped = 9, "mapping_event_dropped",
        lost: "mappings changed faster than the tracer could read: give it a free CPU";
    /// Allocations that were left out of the sample.
    Unsampled = 10, "unsampled_allocations";
    /// Allocations that were kept in the sample, and those that blocks stand for which the process itself sampled, in parts of an
    /// [`OBJECT`](crate::sampling::OBJECT); not counted without sampling.
    Sampled = 11, "sampled_allocations";
    /// Releases of such blocks, in the same parts; not counted without sampling.
    SampleFreed = 12, "sampled_frees";
    /// A child or a new program of a followed process for which there was no place among the traced processes.
    ProcessNotFollowed = 13, "process_not_followed",
        lost: "more processes appeared than can be followed (4,096)";
    /// Events that an understudy handled: the kernel had left its program out, or the program had left them to it.
    DoneByUnderstudy = 14, "done_by_understudy";
    /// Events that a program left to its understudy, for want of room for a mark.
    LeftToUnderstudy = 15, "left_to_understudy";
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
    /// Adds to a counter.
    #[inline(always)]
    pub fn add(&self, counter: Counter, number: u64) {
        self.counters[counter as usize].add(number);
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
