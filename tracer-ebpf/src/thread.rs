//! What is known of a thread between the entry of an allocator function and its return.

use crate::probe::Arg;

/// How many sets of eight records there are: room for 8,192 threads to be inside an allocator at one time.
pub const RECORD_SETS: u32 = 1 << RECORD_SET_BITS;
const RECORD_SET_BITS: u32 = 10;
/// How many sets of eight captures there are; a thread has one only while its stack is walked.
pub const CAPTURE_SETS: u32 = 32;

/// The set that has a thread's record.
///
/// Threads of one process have neighbouring numbers, so their low bits spread them over the sets as evenly as can be. The bits above
/// are mixed in for those of many processes, or of a pool that was made with gaps.
#[must_use]
#[inline(always)]
pub const fn record_set(thread: u64) -> u32 {
    let tid = thread as u32;
    (tid ^ tid >> RECORD_SET_BITS) & (RECORD_SETS - 1)
}

/// What becomes of the block that a call allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// Its size is not one that is tracked.
    Filtered = 0,
    /// It is left out of the sample.
    Unsampled = 1,
    /// It goes into the live table.
    Kept = 2,
}

/// The outermost allocator call of a thread that has not returned. It belongs to the window in which it was entered: a mark
/// opens a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InFlight {
    /// The stack pointer at entry: where the return address stands.
    pub sp: u64,
    /// The return address at entry, before the kernel put its trampoline in its place.
    pub return_address: u64,
    /// The probe's cookie.
    pub cookie: u64,
    /// Requested bytes.
    pub size: u64,
    /// When the window opened that it belongs to.
    pub opened_ns: u64,
    /// The arguments at entry. Some functions store their result where argument 0 points.
    pub arguments: [u64; Arg::COUNT as usize],
    /// What becomes of the block: a [`Fate`].
    pub fate: u32,
    /// Not 0 when there is an old block that the table did not know.
    pub old_unknown: u32,
    /// Key of the block that the call releases ([`BlockKey::to_bits`](crate::live::BlockKey::to_bits)), taken out of the table; 0 if none.
    pub old_key: u64,
    /// What the table knew of the old block, when `old_key` is not 0.
    pub old: crate::live::Block,
}

impl InFlight {
    /// An argument at entry.
    #[must_use]
    #[inline(always)]
    pub fn argument(&self, arg: Arg) -> u64 {
        self.arguments[usize::from(arg.number()).min(self.arguments.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most threads that share a set, of these.
    fn fullest(tids: impl Iterator<Item = u64>) -> u32 {
        let mut sets = [0; RECORD_SETS as usize];
        tids.for_each(|tid| sets[record_set(7 << 32 | tid) as usize] += 1);
        sets.into_iter().max().unwrap_or(0)
    }

    #[test]
    fn neighbours_and_threads_at_regular_gaps_spread_over_the_sets() {
        assert!(fullest(100_000..108_192) <= 9);
        // Gaps that put all into one set where only low bits count.
        for gap in [512, 1024, 2048] {
            assert!(fullest((0..1000).map(|n| 5000 + n * gap)) <= 8, "{gap}");
        }
    }
}
