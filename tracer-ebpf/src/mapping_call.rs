//! The system calls that change mappings: what each releases, and whether it maps code. Both sides go by this.

/// The system calls that change mappings, and the page faults that fill them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MappingCall {
    /// `mmap`
    Mmap = 1,
    /// `munmap`
    Munmap = 2,
    /// `mremap`
    Mremap = 3,
    /// `brk`
    Brk = 4,
    /// No call: the first touch of a page. Argument 0 is the address, argument 1 how many faults this one stands for.
    PageFault = 5,
}

impl MappingCall {
    /// The name of the system call, as reports show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mmap => "mmap",
            Self::Munmap => "munmap",
            Self::Mremap => "mremap",
            Self::Brk => "brk",
            Self::PageFault => "page_fault",
        }
    }
}

impl TryFrom<u8> for MappingCall {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            1 => Ok(Self::Mmap),
            2 => Ok(Self::Munmap),
            3 => Ok(Self::Mremap),
            4 => Ok(Self::Brk),
            5 => Ok(Self::PageFault),
            unknown => Err(unknown),
        }
    }
}

/// Flags of `mmap(2)` and `mremap(2)`, as x86_64 numbers them.
pub mod flag {
    /// Nothing but this range will do: what is there is replaced.
    pub const MAP_FIXED: u64 = 0x10;
    /// Memory of no file.
    pub const MAP_ANONYMOUS: u64 = 0x20;
    /// Huge pages, of the size in the bits from [`MAP_HUGE_SHIFT`] on.
    pub const MAP_HUGETLB: u64 = 0x40000;
    /// Where the size of huge pages is.
    pub const MAP_HUGE_SHIFT: u64 = 26;
    /// Its bits, once shifted.
    pub const MAP_HUGE_MASK: u64 = 0x3f;
    /// As [`MAP_FIXED`], of what is moved.
    pub const MREMAP_FIXED: u64 = 2;
    /// What is moved stays mapped, empty.
    pub const MREMAP_DONTUNMAP: u64 = 4;
    /// The memory can be executed.
    pub const PROT_EXEC: u64 = 4;
}

/// So many bytes of memory from an address on; none when there are no bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// The first address.
    pub start: u64,
    /// How many bytes.
    pub length: u64,
}

impl Stretch {
    /// Whether it has an address in common with a range of addresses, whose end is the first one behind it.
    #[must_use]
    pub const fn overlaps(self, start: u64, end: u64) -> bool {
        start < self.start.saturating_add(self.length) && self.start < end
    }
}

impl MappingCall {
    /// What a call with these arguments releases: what it is made for, and what it moves something over. That of `mmap` is gone only
    /// when the call has succeeded, all else may be gone as soon as it is made.
    #[must_use]
    #[inline(always)]
    pub fn released(self, arguments: [u64; 6]) -> [Stretch; 2] {
        let [start, length, new_length, flags, new_start, _] = arguments;
        let named = Stretch { start, length };
        match self {
            Self::Munmap => [named, Stretch::default()],
            Self::Mremap if flags & flag::MREMAP_FIXED != 0 => {
                [named, Stretch { start: new_start, length: new_length }]
            }
            Self::Mremap => [named, Stretch::default()],
            Self::Mmap if flags & flag::MAP_FIXED != 0 => [named, Stretch::default()],
            Self::Mmap | Self::Brk | Self::PageFault => [Stretch::default(); 2],
        }
    }

    /// Whether a call with these arguments maps code.
    #[must_use]
    #[inline(always)]
    pub fn maps_code(self, arguments: [u64; 6]) -> bool {
        let [_, _, protection, ..] = arguments;
        matches!(self, Self::Mmap) && protection & flag::PROT_EXEC != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Stretch = Stretch { start: 0, length: 0 };

    fn stretch(start: u64, length: u64) -> Stretch {
        Stretch { start, length }
    }

    #[test]
    fn a_call_releases_what_it_is_made_for_and_what_it_moves_over() {
        use MappingCall::{Brk, Mmap, Mremap, Munmap};
        let fixed = [0x1000, 0x2000, 0, flag::MAP_FIXED, 0, 0];
        assert_eq!(Mmap.released(fixed), [stretch(0x1000, 0x2000), NOTHING]);
        assert_eq!(Mmap.released([0x1000, 0x2000, 0, 0, 0, 0]), [NOTHING; 2]);
        assert_eq!(Munmap.released([0x1000, 0x2000, 9, 9, 9, 9]), [stretch(0x1000, 0x2000), NOTHING]);
        let moved = [0x1000, 0x2000, 0x3000, flag::MREMAP_FIXED, 0x9000, 0];
        assert_eq!(Mremap.released(moved), [stretch(0x1000, 0x2000), stretch(0x9000, 0x3000)]);
        assert_eq!(Mremap.released([0x1000, 0x2000, 0x3000, 0, 0x9000, 0])[1], NOTHING);
        assert_eq!(Brk.released(moved), [NOTHING; 2]);
    }

    #[test]
    fn only_mmap_maps_code() {
        let arguments = [0, 0x1000, flag::PROT_EXEC, 0, 0, 0];
        assert!(MappingCall::Mmap.maps_code(arguments) && !MappingCall::Mremap.maps_code(arguments));
        assert!(!MappingCall::Mmap.maps_code([0; 6]));
    }

    #[test]
    fn a_stretch_of_nothing_overlaps_nothing() {
        assert!(stretch(0x1000, 0x1000).overlaps(0x1fff, 0x3000));
        assert!(!stretch(0x1000, 0x1000).overlaps(0x2000, 0x3000));
        assert!(!stretch(0x1000, 0).overlaps(0x1000, 0x3000) && !NOTHING.overlaps(0x1000, 0x3000));
        assert!(stretch(u64::MAX - 1, u64::MAX).overlaps(0, u64::MAX));
    }
}
