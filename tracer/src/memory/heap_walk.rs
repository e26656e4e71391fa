//! What the contents of a process's memory say about whose it is: which of it glibc keeps free, and which mappings from
//! before the window are blocks of `malloc` or arenas of Python.
//!
//! The target runs on while it is read, and may write anything to its memory. So every word is checked before it is
//! believed, every search is bounded, and what does not make sense is not known. Only pages that are in memory are read,
//! as far as their neighbours tell: reading a page that is swapped out would bring it back.

mod cpython;
mod glibc;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::residency::{self, ResidencyError};
use crate::model::{Address, AddressRange, Bytes, PAGE_BYTES, Part, Pid};
use crate::target::Mapping;

use self::glibc::Arenas;
pub use glibc::Kept;

/// Memory that can be read.
pub trait ReadMemory {
    /// Fills `buffer` with what is at `at`, and tells whether all of it could be read.
    fn read(&self, at: Address, buffer: &mut [u8]) -> bool;

    /// The 64-bit words at `at`.
    fn words<const N: usize>(&self, at: Address) -> Option<[u64; N]> {
        let mut bytes = [[0; 8]; N];
        self.read(at, bytes.as_flattened_mut()).then(|| bytes.map(u64::from_le_bytes))
    }
}

/// The memory of a process, through `/proc/PID/mem`. Reading does not stop it.
#[derive(Debug)]
pub struct ProcessMemory(File);

impl ProcessMemory {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel reports: the process has exited, or may not be traced.
    pub fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/mem"))?))
    }
}

impl ReadMemory for ProcessMemory {
    fn read(&self, Address(at): Address, buffer: &mut [u8]) -> bool {
        self.0.read_exact_at(buffer, at).is_ok()
    }
}

/// Counts what is free in the arenas of glibc that are in some memory, if there are any.
#[cfg(any(test, feature = "fuzzing"))]
pub fn count_free(memory: &impl ReadMemory, mappings: &[Mapping]) {
    let _ = Arenas::find(memory, mappings).and_then(|arenas| arenas.free(memory));
}

/// What was found in a process's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Mappings, or parts of some, that are a block of `malloc` or an arena of a runtime; by ascending address.
    pub pieces: Vec<Piece>,
    /// What glibc keeps, if that can be told.
    pub kept: Option<Kept>,
}

/// A part of an anonymous mapping whose contents tell whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is.
    pub range: AddressRange,
    /// The part of resident memory that it is in.
    pub part: Part,
    /// How much of it is in memory.
    pub resident: Bytes,
}

impl Contents {
    /// Looks into a process's memory. `unclear` are those of its mappings of which nothing else tells whose they are, and
    /// `has_python` is whether some of it may be CPython's.
    ///
    /// # Errors
    /// What the kernel reports when the process has exited.
    pub fn of(
        pid: Pid,
        mappings: &[Mapping],
        unclear: &[AddressRange],
        has_python: bool,
    ) -> Result<Self, ResidencyError> {
        let Ok(memory) = ProcessMemory::open(pid) else { return Ok(Self::default()) };
        // What was swapped out would be brought back.
        let is_swapped = residency::swapped(pid)? > Bytes(0);
        let arenas = if is_swapped { None } else { Arenas::find(&memory, mappings) };
        let is_heap = |range: AddressRange| {
            arenas.iter().flat_map(Arenas::heaps).any(|heap| heap.intersection(range).is_some())
        };
        // A process can have tens of thousands of mappings: what is too small costs nothing.
        let can_tell = |range: AddressRange| has_python || glibc::can_hold_block(range);
        let unclear: Vec<_> =
            unclear.iter().copied().filter(|&range| can_tell(range) && !is_heap(range)).collect();
        let present = residency::present(pid, &unclear)?;
        let found = pieces(&memory, &present, &unclear, has_python);
        let ranges: Vec<_> = found.iter().map(|&(range, _)| range).collect();
        let resident = residency::resident_bytes(pid, &ranges)?;
        let piece =
            |((range, part), resident): (_, Option<Bytes>)| Some(Piece { range, part, resident: resident? });
        let pieces = found.into_iter().zip(resident).filter_map(piece).collect();
        let kept = match arenas.and_then(|arenas| arenas.free(&memory)) {
            Some(free) => free.resident(|ranges| residency::resident_bytes(pid, ranges))?,
            None => None,
        };
        Ok(Self { pieces, kept })
    }

    /// Whether a mapping of an allocator is known to be glibc's: (of) an arena, or a large block.
    #[must_use]
    pub fn is_of_glibc(&self, range: AddressRange) -> bool {
        let touches = |other: AddressRange| other.intersection(range).is_some();
        let behind = self.pieces.partition_point(|piece| piece.range.end <= range.start);
        self.pieces.get(behind).is_some_and(|piece| piece.part == Part::Allocator && touches(piece.range))
            || self.kept.iter().flat_map(|kept| &kept.heaps).any(|heap| touches(*heap))
    }
}

/// How many places of a process's memory are looked at: each takes about a microsecond.
const MOST_LOOKS: usize = 1 << 16;

/// Finds the pieces in mappings. `present` are the addresses that are in memory, by ascending address.
fn pieces(
    memory: &impl ReadMemory,
    present: &[AddressRange],
    mappings: &[AddressRange],
    has_python: bool,
) -> Vec<(AddressRange, Part)> {
    let mut found: Vec<(AddressRange, Part)> = Vec::new();
    let mut looks = 0;
    let mut next = Address(0);
    for region in present {
        let mut at = region.start.max(next);
        while at < region.end && looks < MOST_LOOKS {
            looks += 1;
            let mapping = mappings.partition_point(|mapping| mapping.end <= at);
            let Some(end) = mappings.get(mapping).map(|mapping| mapping.end) else { break };
            let block = || Some((glibc::mapped_block(memory, at, end)?, Part::Allocator));
            let pool = || Some((has_python.then(|| cpython::pool(memory, at))??, Part::Managed));
            let Some((length, part)) = block().or_else(pool) else {
                at.0 += PAGE_BYTES;
                continue;
            };
            let range = AddressRange { start: at, end: Address(at.0 + length) };
            match found.last_mut() {
                Some((last, same)) if *same == part && last.end == at => last.end = range.end,
                _ => found.push((range, part)),
            }
            at = range.end;
        }
        next = at;
    }
    found
}
