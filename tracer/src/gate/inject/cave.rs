//! Where the stub goes: behind the end of a file's code there are zeros up to the end of the page, which nobody executes.

use std::{fs::File, os::unix::fs::FileExt as _};

use object::{
    LittleEndian, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use super::stub::{HEADER, Left, MARK, MARK_DONE, Stub, is_unused};
use crate::{
    model::{Address, AddressRange},
    target::{MappedObject, MappedSegment, Target},
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
pub(super) const ALIGNMENT: u64 = 16;

/// The largest one that nobody uses, and that is not in pages which are about to be replaced.
pub(super) fn largest(caves: Vec<Cave>, replaced: AddressRange) -> Option<Cave> {
    let free = caves.into_iter().filter(|cave| !cave.is_used && is_apart(cave, replaced));
    free.max_by_key(|cave| cave.bytes)
}

/// How many tracers can be killed one after the other in the middle of such code, before there is no room for the next one.
pub(super) fn stubs(caves: &[Cave], replaced: AddressRange, stub: &Stub) -> u64 {
    let bytes = stub.bytes.len() as u64;
    let in_cave = |cave: &Cave| {
        let rest = cave.bytes.checked_sub(bytes).filter(|_| !cave.is_used && is_apart(cave, replaced))?;
        Some(1 + rest / stub.kept.next_multiple_of(ALIGNMENT))
    };
    caves.iter().filter_map(in_cave).sum()
}

fn is_apart(cave: &Cave, replaced: AddressRange) -> bool {
    cave.start.0 + cave.bytes <= replaced.start.0 || replaced.end <= cave.start
}

/// All the room that there is for as long as the program.
pub(super) fn all(target: &Target, objects: &[MappedObject], memory: &File) -> Vec<Cave> {
    // What `dlopen` has loaded another thread may unload at any time.
    let stays = |object: &&MappedObject| {
        let name = object.name();
        target.is_program(object) || ["ld-", "libc.", "libc-"].iter().any(|prefix| name.starts_with(prefix))
    };
    let caves = objects.iter().filter(stays).flat_map(|object| {
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
    // Behind what can be written, or is longer in memory, there are variables; and the stub reads itself.
    let is_code = |segment: &&elf::ProgramHeader64<LittleEndian>| {
        segment.p_type(LittleEndian) == elf::PT_LOAD
            && segment.p_flags(LittleEndian) == elf::PF_R | elf::PF_X
            && segment.p_memsz(LittleEndian) == segment.p_filesz(LittleEndian)
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

/// The room behind what stays of the code of tracers that were killed, if it is as the loader left it, or as a tracer did that was
/// killed.
fn looked_at(memory: &File, cave: Cave) -> Option<Cave> {
    let mut bytes = vec![0; usize::try_from(cave.bytes).ok()?];
    memory.read_exact_at(&mut bytes, cave.start.0).ok()?;
    behind_done(cave, &bytes)
}

fn behind_done(mut cave: Cave, mut bytes: &[u8]) -> Option<Cave> {
    while bytes.starts_with(MARK_DONE) {
        let left = Left::parse(bytes.first_chunk()?)?;
        let kept = left.kept.next_multiple_of(ALIGNMENT);
        bytes = bytes.get(usize::try_from(kept).ok()?..)?;
        cave = Cave { start: Address(cave.start.0 + kept), bytes: bytes.len() as u64, ..cave };
    }
    let is_used = bytes.len() >= HEADER && (bytes.starts_with(MARK) || is_unused(bytes));
    (is_used || bytes.iter().all(|&byte| byte == 0)).then_some(Cave { is_used, ..cave })
}

#[cfg(test)]
mod tests {
    use super::{
        super::stub::{MARK_UNUSED, Restored, stub},
        *,
    };

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

    #[test]
    fn it_is_known_how_often_there_is_room() {
        let stub = stub(Address(0), &[], &Restored::longest());
        let (bytes, kept) = (stub.bytes.len() as u64, stub.kept.next_multiple_of(ALIGNMENT));
        let replaced = AddressRange { start: Address(0x2000), end: Address(0x5000) };
        let count = |caves: &[Cave]| stubs(caves, replaced, &stub);
        assert_eq!(count(&[cave(0x1000, bytes - 1), cave(0x3000, 0x1000)]), 0);
        assert_eq!(count(&[cave(0x1000, bytes), cave(0x6000, bytes + 3 * kept)]), 5);
    }

    #[test]
    fn what_stays_of_those_who_were_killed_is_left_alone() {
        let cave = cave(0x1000, 2048);
        let stub = stub(Address(0x1000), &[], &Restored::longest()).bytes;
        let left = Left::parse(stub[..HEADER].try_into().unwrap()).unwrap();
        let kept = left.kept.next_multiple_of(ALIGNMENT);
        let mut bytes = vec![0; 2048];
        assert_eq!(behind_done(cave, &bytes), Some(cave));
        bytes[..stub.len()].copy_from_slice(&stub);
        assert_eq!(behind_done(cave, &bytes), Some(Cave { is_used: true, ..cave }));
        // The first one is done, then the second one is there, and is done.
        for done in 1..=2 {
            let at = (kept * (done - 1)) as usize;
            bytes[at..][..16].copy_from_slice(MARK_DONE);
            bytes[at + kept as usize..].fill(0);
            let rest = Cave { start: Address(0x1000 + kept * done), bytes: 2048 - kept * done, ..cave };
            assert_eq!(behind_done(cave, &bytes), Some(rest));
            bytes[at + kept as usize..][..stub.len()].copy_from_slice(&stub);
            assert_eq!(behind_done(cave, &bytes), Some(Cave { is_used: true, ..rest }));
        }
        // One that is being written, or taken away.
        bytes.fill(0);
        bytes[..16].copy_from_slice(MARK_UNUSED);
        for _ in 0..2 {
            assert_eq!(behind_done(cave, &bytes), Some(Cave { is_used: true, ..cave }));
            bytes[..8].fill(0);
        }
        bytes[..HEADER].fill(1);
        assert_eq!(behind_done(cave, &bytes), None);
    }
}
