//! The executable mappings of the target, past ones included. Pure: text and addresses in, regions out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One executable line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) range: Range<u64>,
    /// Offset in the file of the first byte of `range`.
    pub(super) file_offset: u64,
    /// Absent for memory without a file.
    pub(super) file: Option<FileId>,
    /// Path of the file, without ` (deleted)`; a name like `[vdso]`; or empty.
    pub(super) path: PathBuf,
}

/// Which file a mapping shows, as `maps` states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
}

impl Mapping {
    /// What a frame in it calls its module: the file's name, the mapping's name, or `[anon]`.
    pub(super) fn module_name(&self) -> String {
        match self.path.file_name() {
            // Names like `[anon:a/b]` are no paths.
            Some(name) if self.file.is_some() => name.to_string_lossy().into_owned(),
            Some(_) => self.path.to_string_lossy().into_owned(),
            None => "[anon]".to_owned(),
        }
    }
}

/// The executable mappings of `/proc/PID/maps`; lines that do not read as one are left out.
pub(super) fn parse(maps: &[u8]) -> impl Iterator<Item = Mapping> {
    maps.split(|&byte| byte == b'\n').filter_map(parse_line)
}

fn parse_line(line: &[u8]) -> Option<Mapping> {
    // address perms offset device inode, one space between, then padding and the path, which can hold anything.
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = field()?.split_once('-')?;
    let executable = field()?.as_bytes().get(2) == Some(&b'x');
    let file_offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = field()?.parse().ok()?;
    let range = hex(start)?..hex(end)?;
    (executable && range.start < range.end).then(|| Mapping {
        range,
        file_offset,
        file: (inode != 0).then_some(FileId { device, inode }),
        path: path(fields.next().unwrap_or_default().trim_ascii_start()),
    })
}

/// The kernel writes a newline in a path as `\012`, and marks files that have no path any more.
fn path(text: &[u8]) -> PathBuf {
    let text = text.strip_suffix(b" (deleted)").unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(4).position(|window| window == b"\\012") {
        bytes.extend_from_slice(&rest[..at]);
        bytes.push(b'\n');
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest);
    OsString::from_vec(bytes).into()
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

/// A part of the address space and what is, or was last, mapped there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region<M> {
    end: u64,
    mapped_at: u64,
    file_offset: u64,
    /// Whose code it is.
    pub(super) module: M,
}

impl<M> Region<M> {
    /// The offset in the mapped file of the byte at `address`.
    pub(super) fn file_offset(&self, address: u64) -> u64 {
        self.file_offset.wrapping_add(address.wrapping_sub(self.mapped_at))
    }

    /// Whether an address that is in both means the same byte of the same module.
    fn agrees_with(&self, other: &Self) -> bool
    where
        M: PartialEq,
    {
        self.module == other.module && self.file_offset(0) == other.file_offset(0)
    }
}

/// Which module's code is where. A new mapping hides older ones where they overlap; one that is gone is remembered
/// until then, since a stack can be captured just before a library is unloaded or the target exits.
#[derive(Clone, Debug)]
pub(super) struct AddressSpace<M> {
    regions: BTreeMap<u64, Region<M>>,
}

impl<M> Default for AddressSpace<M> {
    fn default() -> Self {
        Self { regions: BTreeMap::new() }
    }
}

impl<M: Clone + PartialEq> AddressSpace<M> {
    /// What is mapped at `address`.
    pub(super) fn find(&self, address: u64) -> Option<&Region<M>> {
        let (_, region) = self.regions.range(..=address).next_back()?;
        (address < region.end).then_some(region)
    }

    /// Notes that `mapping` is there now, showing code of `module`. Says whether some of its addresses meant anything
    /// else before.
    pub(super) fn map(&mut self, mapping: &Mapping, module: M) -> bool {
        let Range { start, end } = mapping.range;
        let region = Region { end, mapped_at: start, file_offset: mapping.file_offset, module };
        let replaced = self.clear(start..end);
        let changed = replaced.iter().any(|old| !old.agrees_with(&region));
        self.regions.insert(start, region);
        changed
    }

    /// Number of regions.
    pub(super) fn len(&self) -> usize {
        self.regions.len()
    }

    /// Every region, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, &Region<M>)> {
        self.regions.iter().map(|(&start, region)| (start..region.end, region))
    }

    /// Makes a hole, and returns the regions that were in it, whole or in part.
    fn clear(&mut self, hole: Range<u64>) -> Vec<Region<M>> {
        let first = self.regions.range(..hole.start).next_back().map_or(hole.start, |(&start, _)| start);
        let overlapping: Vec<u64> = (self.regions.range(first..hole.end))
            .filter_map(|(&start, region)| (region.end > hole.start).then_some(start))
            .collect();
        let mut removed = Vec::new();
        for start in overlapping {
            let Some(region) = self.regions.remove(&start) else { continue };
            if region.end > hole.end {
                self.regions.insert(hole.end, region.clone());
            }
            if start < hole.start {
                self.regions.insert(start, Region { end: hole.start, ..region.clone() });
            }
            removed.push(region);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mapping(range: Range<u64>, file_offset: u64) -> Mapping {
        Mapping { range, file_offset, file: None, path: PathBuf::new() }
    }

    #[test]
    fn only_executable_lines_are_read() {
        let maps = b"55e0-55f0 r--p 00000000 fe:00 42                     /usr/bin/x\n\
            55f0-5600 r-xp 00001000 fe:00 42                     /usr/bin/x y (deleted)\n\
            7f00-7f10 rwxp 00000000 00:00 0 \n\
            7f10-7f20 r-xp 00000000 00:00 0                      [anon:a/b]\n\
            7f20-7f30 r-xp 00000000 fe:00 43                     /a\\012b\n\
            rubbish r-xp\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]";
        let found: Vec<Mapping> = parse(maps).collect();
        let names: Vec<String> = found.iter().map(Mapping::module_name).collect();
        assert_eq!(names, ["x y", "[anon]", "[anon:a/b]", "a\nb", "[vsyscall]"]);
        assert_eq!(found[0].path, PathBuf::from("/usr/bin/x y"));
        assert_eq!(found[0].file, Some(FileId { device: (0xfe, 0), inode: 42 }));
        assert_eq!((found[0].range.clone(), found[0].file_offset), (0x55f0..0x5600, 0x1000));
        assert_eq!(found[1].file, None);
    }

    #[test]
    fn what_is_gone_is_remembered_until_something_else_is_there() {
        let mut space = AddressSpace::default();
        space.map(&mapping(0x1000..0x4000, 0x100), "old");
        assert!(space.map(&mapping(0x2000..0x3000, 0), "new"));
        let at = |address| space.find(address).map(|region| (region.module, region.file_offset(address)));
        assert_eq!(at(0x1fff), Some(("old", 0x10ff)));
        assert_eq!(at(0x2000), Some(("new", 0)));
        assert_eq!(at(0x3000), Some(("old", 0x2100)));
        assert_eq!(at(0x4000), None);
        assert_eq!(at(0xfff), None);
    }

    #[test]
    fn a_mapping_that_is_split_or_grows_changes_nothing() {
        let mut space = AddressSpace::default();
        assert!(!space.map(&mapping(0x1000..0x4000, 0x100), "library"));
        assert!(!space.map(&mapping(0x1000..0x4000, 0x100), "library"));
        assert!(!space.map(&mapping(0x2000..0x3000, 0x1100), "library"));
        assert!(!space.map(&mapping(0x3000..0x6000, 0x2100), "library"));
        assert!(space.map(&mapping(0x3000..0x6000, 0x1000), "library"), "another part of it");
        assert!(space.map(&mapping(0x5000..0x8000, 0x3000), "another"));
    }

    proptest! {
        /// Against the naive model: an array of bytes, painted over.
        #[test]
        fn the_last_mapping_wins(mappings in prop::collection::vec((0u64..60, 1u64..20), 0..30)) {
            let mut space = AddressSpace::default();
            let mut bytes = [None; 80];
            for (index, &(start, length)) in mappings.iter().enumerate() {
                space.map(&mapping(start..start + length, 1000), index);
                for address in start..start + length {
                    bytes[address as usize] = Some((index, 1000 + address - start));
                }
            }
            for (address, expected) in bytes.iter().enumerate() {
                let address = address as u64;
                prop_assert_eq!(space.find(address).map(|r| (r.module, r.file_offset(address))), *expected);
            }
        }
    }
}
