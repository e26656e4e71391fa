//! The allocators of a process, and which of its memory is whose.
//!
//! Memory is an allocator's when a function of the allocator's file mapped it in the window. Of what was mapped before, three things
//! tell whose it is: a name that the allocator gave it, a place where only this allocator puts memory, and that blocks of the window
//! lie in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Address, AddressRange};
use crate::plan::{AllocatorFamily, ApiId};
use crate::target::{Backing, Mapping};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileAllocator {
    /// Which one.
    pub family: AllocatorFamily,
    /// The file's name.
    pub file: String,
    /// Its functions that are probed.
    pub functions: BTreeSet<ApiId>,
}

/// Those of one process, and where blocks of theirs were seen.
#[derive(Clone, Debug, Default)]
pub struct Allocators {
    list: Vec<FileAllocator>,
    /// Pieces of [`PIECE`] bytes that had a block of an allocator in them.
    places: BTreeMap<u64, usize>,
}

/// Blocks tell of so many bytes around them, as far as one mapping reaches.
const PIECE: u64 = 1 << 20;

/// 64 GiB of them.
const MOST_PIECES: usize = 1 << 16;

impl Allocators {
    /// Of the allocators that were found in files, the process has those whose file it has mapped.
    pub fn learn(&mut self, found: &[FileAllocator], mappings: &[Mapping]) {
        let is_mapped = |file: &str| {
            let mut code = mappings.iter().filter(|mapping| mapping.permissions.execute);
            code.any(|mapping| mapping.file_name() == Some(file))
        };
        for allocator in found {
            let is_same = |known: &&mut FileAllocator| {
                (known.family, &known.file) == (allocator.family, &allocator.file)
            };
            match self.list.iter_mut().find(is_same) {
                Some(known) => known.functions.extend(&allocator.functions),
                None if is_mapped(&allocator.file) => self.list.push(allocator.clone()),
                None => {}
            }
        }
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> &[FileAllocator] {
        &self.list
    }

    /// Whether there is another one than that of the C library.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.list.iter().any(|allocator| !allocator.family.is_of_c_library())
    }

    /// A block was seen.
    pub fn see(&mut self, at: Address, function: ApiId) {
        if self.places.len() < MOST_PIECES
            && let Some(index) = self.of_function(function)
            && !self.list[index].family.is_of_c_library()
        {
            self.places.insert(at.0 / PIECE, index);
        }
    }

    /// The allocator that has a function. The usual names may be in several files: then others stand before the C library.
    #[must_use]
    pub fn of_function(&self, function: ApiId) -> Option<usize> {
        let having = |(_, allocator): &(usize, &FileAllocator)| allocator.functions.contains(&function);
        let having = self.list.iter().enumerate().filter(having);
        having.min_by_key(|(_, allocator)| allocator.family.is_of_c_library()).map(|(index, _)| index)
    }

    /// The allocator in a file; of several the one of a family, if that is known.
    #[must_use]
    pub fn in_file(&self, file: &str, family: Option<AllocatorFamily>) -> Option<usize> {
        let in_file = || self.list.iter().enumerate().filter(|(_, allocator)| allocator.file == file);
        let named = family.and_then(|family| in_file().find(|(_, allocator)| allocator.family == family));
        named.or_else(|| in_file().next()).map(|(index, _)| index)
    }

    #[must_use]
    pub fn of_c_library(&self) -> Option<usize> {
        self.list.iter().position(|allocator| allocator.family.is_of_c_library())
    }

    /// The allocator whose blocks were seen in a range.
    #[must_use]
    pub fn with_blocks_in(&self, range: AddressRange) -> Option<usize> {
        let first = range.start.0.div_ceil(PIECE);
        let last = range.end.0 / PIECE;
        // Only the pieces that are in it as a whole, unless it is smaller than one.
        let pieces =
            if first < last { first..last } else { range.start.0 / PIECE..range.end.0.div_ceil(PIECE) };
        self.places.range(pieces).next().map(|(_, &index)| index)
    }

    /// The allocator that a mapping is of, by its name and its place.
    #[must_use]
    pub fn of_mapping(&self, mapping: &Mapping) -> Option<usize> {
        let only =
            |family: AllocatorFamily| self.list.iter().position(|allocator| allocator.family == family);
        if let Some((_, family)) = NAMES.iter().find(|(name, _)| mapping.is_named(name)) {
            return only(*family);
        }
        let is_mimallocs = mapping.name.is_empty()
            && mapping.backing() == Backing::Anonymous
            && MIMALLOC_HINTS.contains(&mapping.start.0)
            && mapping.start.0.is_multiple_of(MIMALLOC_SLICE);
        is_mimallocs.then(|| only(AllocatorFamily::Mimalloc)).flatten()
    }
}

/// How the names of mappings begin that allocators give theirs.
const NAMES: &[(&str, AllocatorFamily)] = &[
    ("[anon: glibc: malloc", AllocatorFamily::Glibc),
    ("[anon:jemalloc", AllocatorFamily::Jemalloc),
    ("[anon:tcmalloc_", AllocatorFamily::Tcmalloc),
    ("[anon:mimalloc", AllocatorFamily::Mimalloc),
];

/// Where mimalloc 2 asks for its memory (`MI_HINT_BASE` and `MI_HINT_MAX` in src/os.c): 2 to 30 TiB, far below where Linux maps by
/// itself.
const MIMALLOC_HINTS: std::ops::Range<u64> = 2 << 40..30 << 40;

/// `MI_SEGMENT_SLICE_SIZE`: what it commits and protects begins at a multiple.
const MIMALLOC_SLICE: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, length: u64, name: &str) -> Mapping {
        let permissions = if name.starts_with('/') { "r-xp" } else { "rw-p" };
        Mapping::made_up(AddressRange::sized(start, length).unwrap(), permissions, name)
    }

    fn allocators() -> Allocators {
        let allocator = |family, file: &str, functions: &[u16]| FileAllocator {
            family,
            file: file.to_owned(),
            functions: functions.iter().copied().map(ApiId).collect(),
        };
        let found = [
            allocator(AllocatorFamily::Glibc, "libc.so.6", &[1]),
            allocator(AllocatorFamily::Mimalloc, "libarrow.so", &[1, 7]),
            allocator(AllocatorFamily::Jemalloc, "libelsewhere.so", &[9]),
        ];
        let mapped = [mapping(4096, 4096, "/lib/libc.so.6"), mapping(8192, 4096, "/lib/libarrow.so")];
        let mut allocators = Allocators::default();
        allocators.learn(&found, &mapped);
        allocators
    }

    #[test]
    fn a_process_has_the_allocators_of_its_files() {
        let allocators = allocators();
        assert_eq!(allocators.list().len(), 2);
        assert_eq!(allocators.of_function(ApiId(1)), Some(1), "the C library comes last");
        assert_eq!(
            (allocators.of_function(ApiId(9)), allocators.in_file("libc.so.6", None)),
            (None, Some(0))
        );
    }

    #[test]
    fn mimalloc_is_known_by_its_place() {
        let (at, length) = (0x2c9_6a00_0000, 1 << 30);
        let allocators = allocators();
        assert_eq!(allocators.of_mapping(&mapping(at, length, "")), Some(1));
        assert_eq!(allocators.of_mapping(&mapping(at + 4096, length, "")), None);
        assert_eq!(allocators.of_mapping(&mapping(0x7f00_0000_0000, length, "")), None);
        assert_eq!(allocators.of_mapping(&mapping(4096, 4096, "[anon:mimalloc]")), Some(1));
        assert_eq!(Allocators::default().of_mapping(&mapping(at, length, "")), None);
    }

    #[test]
    fn a_mapping_is_whose_blocks_are_in_it() {
        let mut allocators = allocators();
        allocators.see(Address(0x7f00_0030_0010), ApiId(7));
        allocators.see(Address(0x7e00_0000_0010), ApiId(2));
        let with = |start, length| allocators.with_blocks_in(AddressRange::sized(start, length).unwrap());
        assert_eq!(with(0x7f00_0010_0000, 4 << 20), Some(1));
        assert_eq!(with(0x7f00_0030_0000, 8192), Some(1));
        assert_eq!(with(0x7f00_0040_0000, 4 << 20), None);
        assert_eq!(with(0x7e00_0000_0000, 4 << 20), None, "nobody has that function");
    }
}
