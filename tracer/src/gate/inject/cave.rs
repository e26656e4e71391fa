//! Where the stub goes: behind the end of a file's code there are zeros up to the end of the page, which nobody executes.

use std::{fs::File, os::unix::fs::FileExt as _};

use object::{
    LittleEndian, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use super::stub::MARK;
use crate::{
    model::{Address, AddressRange},
    target::{MappedObject, MappedSegment},
};

/// Room in the code of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cave {
    pub(super) start: Address,
    pub(super) bytes: u64,
    /// Whether a tracer has left its code there which was killed.
    pub(super) is_used: bool,
}

impl Cave {
    pub(super) fn has(self, address: u64) -> bool {
        address.wrapping_sub(self.start.0) < self.bytes
    }
}

/// Stubs begin at such addresses.
const ALIGNMENT: u64 = 16;

/// The largest one that nobody uses, and that is not in pages which are about to be replaced.
pub(super) fn largest(caves: Vec<Cave>, replaced: AddressRange) -> Option<Cave> {
    let stays = |cave: &Cave| cave.start.0 + cave.bytes <= replaced.start.0 || replaced.end <= cave.start;
    caves.into_iter().filter(|cave| !cave.is_used && stays(cave)).max_by_key(|cave| cave.bytes)
}

/// All the room that the process has.
pub(super) fn all(objects: &[MappedObject], memory: &File) -> Vec<Cave> {
    let caves = objects.iter().flat_map(|object| {
        let ends = code_ends(object);
        let of_segment = move |segment: &MappedSegment| {
            let cave = ends.iter().find_map(|&end| behind(segment, end))?;
            looked_at(memory, cave)
        };
        object.segments.iter().filter(|segment| segment.executable).filter_map(of_segment).collect::<Vec<_>>()
    });
    caves.collect()
}

/// Where in the file its code ends.
fn code_ends(object: &MappedObject) -> Vec<u64> {
    /// The header, and the headers of segments, which linkers put behind it.
    const HEADERS: usize = 4096;
    let mut head = vec![0; HEADERS];
    let Ok(read) = object.file.read_at(&mut head, 0) else { return Vec::new() };
    head.truncate(read);
    let Ok(header) = elf::FileHeader64::<LittleEndian>::parse(&*head) else { return Vec::new() };
    let Ok(segments) = header.program_headers(LittleEndian, &*head) else { return Vec::new() };
    let is_code = |segment: &&elf::ProgramHeader64<LittleEndian>| {
        segment.p_type(LittleEndian) == elf::PT_LOAD
            && segment.p_flags(LittleEndian) & elf::PF_X != elf::ProgramFlags(0)
    };
    let end = |segment: &elf::ProgramHeader64<LittleEndian>| {
        segment.p_offset(LittleEndian).checked_add(segment.p_filesz(LittleEndian))
    };
    segments.iter().filter(is_code).filter_map(end).collect()
}

fn behind(segment: &MappedSegment, end: u64) -> Option<Cave> {
    let distance = end.checked_sub(segment.file_offset)?;
    let start = segment.start.0.checked_add(distance)?.checked_next_multiple_of(ALIGNMENT)?;
    let bytes = segment.end.0.checked_sub(start).filter(|&bytes| bytes > 0)?;
    Some(Cave { start: Address(start), bytes, is_used: false })
}

/// The room, if it is as the loader left it, or as a tracer did that was killed.
fn looked_at(memory: &File, cave: Cave) -> Option<Cave> {
    let mut bytes = vec![0; usize::try_from(cave.bytes).ok()?];
    memory.read_exact_at(&mut bytes, cave.start.0).ok()?;
    let is_used = bytes.starts_with(MARK);
    (is_used || bytes.iter().all(|&byte| byte == 0)).then_some(Cave { is_used, ..cave })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cave(start: u64, bytes: u64) -> Cave {
        Cave { start: Address(start), bytes, is_used: false }
    }

    #[test]
    fn no_cave_is_in_pages_that_are_replaced() {
        let (before, within, behind) = (cave(0x1f00, 0x100), cave(0x4800, 0x800), cave(0x5000, 0x10));
        let used = Cave { is_used: true, ..cave(0x8000, 0xfff) };
        let replaced = AddressRange { start: Address(0x2000), end: Address(0x5000) };
        let all = vec![before, within, used, behind];
        assert_eq!(largest(all.clone(), replaced), Some(before));
        assert_eq!(largest(vec![within, used], replaced), None);
        assert_eq!(largest(all, AddressRange { start: Address(0x2000), end: Address(0x4000) }), Some(within));
    }
}
