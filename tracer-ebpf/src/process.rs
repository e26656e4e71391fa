//! What both sides know of a traced process.

use crate::atomic::Word;

/// How many processes one recording can trace.
pub const MAX_PROCESSES: u32 = 1024;

/// The state of a traced process.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ProcessState {
    /// A [`Gate`].
    pub gate: Word,
    /// The address of the kernel's return trampoline in this process, which user space finds among its mappings (`[uprobes]`) once
    /// the kernel has made it; 0 until then.
    pub trampoline: Word,
    /// Monotonic time at which its window opened.
    pub opened_ns: Word,
    /// Its executable mappings: a [`CodeList`].
    pub code: Word,
    /// The level of [sampling](crate::sampling) that is in force.
    pub level: Word,
}

/// Where the executable mappings of a process stand in the array of all mappings, sorted by address.
///
/// A process has room for two lists. User space writes the one that is not in use and then names it here, so that a walk that is reading
/// the other is not disturbed, unless two changes come during one walk; the generation tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeList {
    /// Index of the first mapping.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// How many lists there have been, modulo 2^16.
    pub generation: u16,
}

impl CodeList {
    const FIRST_BITS: u32 = 24;
    const COUNT_BITS: u32 = 24;
    /// A search in the longest list ends after at most this many probes.
    pub const MAX_PROBES: u32 = Self::COUNT_BITS + 1;

    /// The list in one word; what does not fit is cut off.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        const FIRST: u64 = (1 << CodeList::FIRST_BITS) - 1;
        const COUNT: u64 = (1 << CodeList::COUNT_BITS) - 1;
        (self.first as u64 & FIRST)
            | (self.count as u64 & COUNT) << Self::FIRST_BITS
            | (self.generation as u64) << (Self::FIRST_BITS + Self::COUNT_BITS)
    }

    /// What [`CodeList::to_bits`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            first: bits as u32 & ((1 << Self::FIRST_BITS) - 1),
            count: (bits >> Self::FIRST_BITS) as u32 & ((1 << Self::COUNT_BITS) - 1),
            generation: (bits >> (Self::FIRST_BITS + Self::COUNT_BITS)) as u16,
        }
    }

    /// Whether this list, or a later one, was written where `earlier` stood.
    #[must_use]
    #[inline(always)]
    pub const fn was_overwritten_since(self, earlier: Self) -> bool {
        self.generation.wrapping_sub(earlier.generation) > 1
    }
}

/// Whether a process' events are accounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Gate {
    /// Its window has not opened, or is over.
    Closed = 0,
    /// Its window is open.
    Open = 1,
    /// It replaced its program: what its probes see now is another program.
    Exec = 2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip_and_tell_when_they_are_overwritten() {
        let list = CodeList { first: (1 << 24) - 1, count: 77, generation: u16::MAX };
        assert_eq!(CodeList::from_bits(list.to_bits()), list);
        let next = CodeList { generation: 0, ..list };
        assert!(!list.was_overwritten_since(list) && !next.was_overwritten_since(list));
        assert!(CodeList { generation: 1, ..list }.was_overwritten_since(list));
    }
}
