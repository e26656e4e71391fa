//! What both sides know of a traced process.

use crate::{atomic::Word, runtime::python::Interpreter, unwind::MAX_CODE_MAPPINGS};

/// How many processes one recording can trace.
pub const MAX_PROCESSES: u32 = 4096;

/// The place of a traced process in the tables. A process that executes another program goes on as a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ProcessIndex(u16);

impl ProcessIndex {
    /// The place with this number.
    #[must_use]
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    #[inline(always)]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl From<ProcessIndex> for u32 {
    #[inline(always)]
    fn from(index: ProcessIndex) -> Self {
        index.0.into()
    }
}

impl From<ProcessIndex> for u64 {
    #[inline(always)]
    fn from(index: ProcessIndex) -> Self {
        index.0.into()
    }
}

impl From<ProcessIndex> for usize {
    #[inline(always)]
    fn from(index: ProcessIndex) -> Self {
        index.0.into()
    }
}

/// The state of a traced process.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ProcessState {
    /// A [`ProcessWindow`].
    pub window: Word,
    /// The address of the kernel's return trampoline in this process, which user space finds among its mappings (`[uprobes]`) once
    /// the kernel has made it; 0 until then.
    pub trampoline: Word,
    /// Monotonic time at which its window opened.
    pub opened_ns: Word,
    /// Its executable mappings: a [`CodeList`].
    pub code: Word,
    /// How often code was mapped, or code of the list was unmapped or replaced. Counted by BPF.
    pub code_changes: Word,
    /// How many of these changes user space had seen when it made the list.
    pub code_changes_seen: Word,
    /// Not 0 when it reports its blocks itself, so that what its allocator's functions do counts no more. Only told where probes are
    /// everybody's.
    pub reports_blocks: Word,
    /// Of so many page faults one is reported, a power of two; 0 for none.
    pub fault_period: Word,
    /// The name of the thread that made it or of the program it executed, as [`Comm`].
    pub comm: [Word; 2],
    /// Where it came from: an [`Origin`].
    pub from: Word,
    /// Where things are in the objects of its V8: a [`Layout`](crate::runtime::v8::Layout); 0 when it has none.
    pub v8: Word,
    /// Which of the [layouts](crate::runtime::hotspot::SharedLayout) is that of its HotSpot, counted from 1; 0 when it has none.
    pub hotspot: Word,
    /// Its Python: an [`Interpreter`], as words; all 0 when it has none.
    pub python: [Word; Interpreter::WORDS],
    /// Its pid, in the numbers of user space. Written last: until then the others are not to be read. 0 where children are not
    /// followed.
    pub tgid: Word,
}

/// Where a process came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Index of the process that it was forked from, or was before it executed its program; its own index when it was there from the
    /// start.
    pub index: ProcessIndex,
    /// Whether it executed a program of its own.
    pub executed: bool,
}

impl Origin {
    /// The origin in one word.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.index.0 as u64 | (self.executed as u64) << 16
    }

    /// What [`Origin::to_bits`] made.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self { index: ProcessIndex::new(bits as u16), executed: bits >> 16 & 1 == 1 }
    }
}

/// The kernel's name for a process, at most 15 bytes and a 0.
pub type Comm = [u64; 2];

/// Where the executable mappings of a process stand in the array of all mappings, sorted by address.
///
/// A process has room for two lists. User space writes the one that is not in use and then names it here, so that a walk that is reading
/// the other is not disturbed, unless two changes come during one walk; the generation shows that.
///
/// The word counts, too, how often BPF made mappings of the list unknown, because they are about to be unmapped: so a list that was made
/// from what was mapped before cannot replace it (it would make them known again).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeList {
    /// Index of the first mapping.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// How many lists there have been, modulo 2^16.
    pub generation: u16,
    /// How often mappings were made unknown, modulo 2^14.
    pub forgotten: u16,
}

// A process has two lists, so one has half of the room at most; and the kernel lets a process have fewer mappings than 2^16.
const _: () = assert!(
    MAX_CODE_MAPPINGS / 2 <= 1 << CodeList::COUNT_BITS && MAX_CODE_MAPPINGS < 1 << CodeList::FIRST_BITS
);

impl CodeList {
    const FIRST_BITS: u32 = 18;
    const COUNT_BITS: u32 = 16;
    const FORGOTTEN_SHIFT: u32 = Self::FIRST_BITS + Self::COUNT_BITS + u16::BITS;
    /// To be added to the word when mappings are made unknown.
    pub const FORGOTTEN: u64 = 1 << Self::FORGOTTEN_SHIFT;
    /// A search in the longest list ends after at most this many probes.
    pub const MAX_PROBES: u32 = Self::COUNT_BITS + 1;

    /// The list in one word; what does not fit is cut off.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        const FIRST: u64 = (1 << CodeList::FIRST_BITS) - 1;
        const COUNT: u64 = (1 << CodeList::COUNT_BITS) - 1;
        (self.first as u64 & FIRST)
            | (self.count as u64 & COUNT) << Self::FIRST_BITS
            | (self.generation as u64) << (Self::FIRST_BITS + Self::COUNT_BITS)
            | (self.forgotten as u64) << Self::FORGOTTEN_SHIFT
    }

    /// What [`CodeList::to_bits`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            first: bits as u32 & ((1 << Self::FIRST_BITS) - 1),
            count: (bits >> Self::FIRST_BITS) as u32 & ((1 << Self::COUNT_BITS) - 1),
            generation: (bits >> (Self::FIRST_BITS + Self::COUNT_BITS)) as u16,
            forgotten: (bits >> Self::FORGOTTEN_SHIFT) as u16,
        }
    }

    /// Whether this list, or a later one, was written where `earlier` stood.
    #[must_use]
    #[inline(always)]
    pub const fn was_overwritten_since(self, earlier: Self) -> bool {
        self.generation.wrapping_sub(earlier.generation) > 1
    }
}

/// Whether a process' events are accounted: its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ProcessWindow {
    /// It has not opened, or is over.
    Closed = 0,
    /// It is open.
    Open = 1,
    /// Over, since the process replaced its program: what its probes see now is another program.
    Exec = 2,
    /// Over, since the process has exited. Only told where children are followed.
    Exited = 3,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip_and_tell_when_they_are_overwritten() {
        let list =
            CodeList { first: (1 << 17) - 1, count: 77, generation: u16::MAX, forgotten: (1 << 14) - 1 };
        assert_eq!(CodeList::from_bits(list.to_bits()), list);
        let forgotten = CodeList::from_bits(list.to_bits().wrapping_add(CodeList::FORGOTTEN));
        assert_eq!(
            forgotten,
            CodeList { forgotten: 0, ..list },
            "it counts around, and touches nothing else"
        );
        let next = CodeList { generation: 0, ..list };
        assert!(!list.was_overwritten_since(list) && !next.was_overwritten_since(list));
        assert!(CodeList { generation: 1, ..list }.was_overwritten_since(list));
    }
}
