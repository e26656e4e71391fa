//! `/proc/PID/maps` and `/proc/PID/smaps`, parsed without trusting them: names hold anything, lines that make no sense are
//! skipped.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use crate::model::{Address, AddressRange, Bytes};

/// One mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: Address,
    /// First address behind it.
    pub end: Address,
    /// What may be done with it.
    pub permissions: Permissions,
    /// Where in the file it begins; 0 of anonymous memory.
    pub file_offset: u64,
    /// The device that holds the file; 0:0 of anonymous memory.
    pub device: Device,
    /// The file on the device; 0 of anonymous memory.
    pub inode: u64,
    /// The file's path as the process names it, `[heap]`, `[stack]`, `[vdso]`, `[anon:...]` (`PR_SET_VMA_ANON_NAME`),
    /// or empty.
    pub name: OsString,
    /// Whether the file has been unlinked (or replaced) since. Told by the end of the name, so a file that is really
    /// called `x (deleted)` is mistaken for one.
    pub deleted: bool,
    /// Bytes present in memory, page cache of a mapped file included; `None` where only `maps` was read.
    pub rss: Option<Bytes>,
}

impl Mapping {
    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> AddressRange {
        AddressRange { start: self.start, end: self.end }
    }

    /// Its length in bytes.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "the kernel makes no empty ones, and the parser leaves them out"
    )]
    pub const fn len(&self) -> u64 {
        self.range().bytes()
    }

    /// The path of the mapped file, as the process names it; `None` of anonymous and special memory.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        (self.inode != 0 && self.name.as_bytes().starts_with(b"/")).then(|| Path::new(&self.name))
    }

    /// The last part of its path; `None` of anonymous and special memory, and of a name that is no text.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        self.path()?.file_name()?.to_str()
    }

    /// Whether its name begins so.
    #[must_use]
    pub fn is_named(&self, beginning: &str) -> bool {
        self.name.as_bytes().starts_with(beginning.as_bytes())
    }

    /// What fills its pages.
    #[must_use]
    pub fn backing(&self) -> Backing {
        // Zeroes too are mapped from a device, and shared anonymous memory is shown as a deleted file of the same name
        // (`shmem_zero_setup` in mm/shmem.c); what `MAP_HUGETLB` maps, as one of hugetlbfs (fs/hugetlbfs/inode.c).
        let is_zeroes = self.inode == 0 || self.name == "/dev/zero" || self.name == "/anon_hugepage";
        if is_zeroes { Backing::Anonymous } else { Backing::File }
    }

    /// Which file is mapped; `None` of anonymous and special memory.
    #[must_use]
    pub fn file_id(&self) -> Option<FileId> {
        self.path().map(|_| FileId { device: self.device, inode: self.inode })
    }
}

/// Which file, while it exists: an inode number is reused once its file is gone for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The file system's device.
    pub device: Device,
    /// The file's number on it.
    pub inode: u64,
}

/// A device number as `/proc/PID/maps` writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}", self.major, self.minor)
    }
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// It can be executed.
    pub execute: bool,
    /// Writes are seen by others that map the same file.
    pub shared: bool,
}

/// What fills the pages of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Zeroes at first, private or shared.
    Anonymous,
    /// A file, `memfd` and `shm_open` included.
    File,
}

/// Parses the text of `/proc/PID/maps`. A line that makes no sense is left out.
#[must_use]
pub fn parse_maps(text: &[u8]) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    // The kernel writes a newline in a name as `\012`, so every newline ends a line.
    text.split(|&byte| byte == b'\n').for_each(|line| take_line(&mut mappings, line));
    mappings
}

/// How the file of a gate is named, by which `tracer --gate` replaces code.
pub const GATE_FILE: &str = "/memfd:tracer-gate";

/// Whether a gate's copy of code is in its place, away from the rest of its file.
pub(super) fn has_open_gate(mappings: &[Mapping]) -> bool {
    let follows = |before: &Mapping, part: &Mapping| before.inode == part.inode && before.end == part.start;
    mappings.windows(2).any(|pair| {
        let [before, part] = pair else { return false };
        part.is_named(GATE_FILE) && part.file_offset != 0 && !follows(before, part)
    })
}

/// Shows the copy of code that a gate has put in its place as the code that it is a copy of, and leaves out where the original is parked:
/// directly in front of the gate's file, as the gate's layout has it.
pub(super) fn without_gate(mut mappings: Vec<Mapping>) -> Vec<Mapping> {
    let begins = |mapping: &Mapping| mapping.is_named(GATE_FILE) && mapping.file_offset == 0;
    while let Some(first) =
        mappings.windows(2).position(|pair| begins(&pair[1]) && is_parked(&pair[0], &pair[1]))
    {
        let parked = mappings.remove(first);
        let gate = mappings[first].inode;
        let is_copy = |mapping: &&mut Mapping| mapping.inode == gate && mapping.is_named(GATE_FILE);
        // Where it is not in its place it follows the rest of its file.
        let mut end = parked.end;
        for mapping in mappings.iter_mut().filter(is_copy) {
            if mapping.start == end {
                end = mapping.end;
            } else {
                let (range, permissions) = (mapping.range(), mapping.permissions);
                *mapping = Mapping {
                    start: range.start,
                    end: range.end,
                    permissions,
                    rss: mapping.rss,
                    ..parked.clone()
                };
            }
        }
    }
    mappings
}

fn is_parked(mapping: &Mapping, gate: &Mapping) -> bool {
    mapping.end == gate.start
        && mapping.path().is_some()
        && !mapping.is_named(GATE_FILE)
        && mapping.permissions.execute
}

/// Reads the text of `/proc/PID/smaps`, as [`parse_maps`] does, line by line: a large process has a hundred thousand
/// mappings of 25 lines each.
///
/// # Errors
/// What the reader reports; an exited process ends the text or fails with `ESRCH`.
pub fn read_smaps(mut text: impl BufRead) -> io::Result<Vec<Mapping>> {
    let mut mappings = Vec::new();
    let mut line = Vec::with_capacity(256);
    while text.read_until(b'\n', &mut line)? > 0 {
        take_line(&mut mappings, line.strip_suffix(b"\n").unwrap_or(&line));
        line.clear();
    }
    Ok(mappings)
}

/// Takes in a line: a mapping, or what `smaps` says of the last one.
///
/// The kernel states a page of text at once and then goes on at the address where that ended. If the last mapping has
/// grown meanwhile, that is within it, and it is stated again, whole: what comes later counts.
fn take_line(mappings: &mut Vec<Mapping>, line: &[u8]) {
    if let Some(mapping) = parse_line(line) {
        while mappings.pop_if(|earlier| earlier.end > mapping.start).is_some() {}
        mappings.push(mapping);
    } else if let (Some(rss), Some(last)) = (kibibytes(line, b"Rss:"), mappings.last_mut()) {
        last.rss = Some(rss);
    }
}

/// The value of a line of `smaps` or `status` like `Rss:     12 kB`.
pub(crate) fn kibibytes(line: &[u8], name: &[u8]) -> Option<Bytes> {
    let value = std::str::from_utf8(line.strip_prefix(name)?).ok()?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kibibytes.checked_mul(1024)?))
}

/// `55d0c0000000-55d0c0001000 r-xp 00001000 fe:00 10272874                   /usr/bin/cat`
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (field, tail) = rest.split_at(end);
        rest = tail.get(1..).unwrap_or_default();
        field
    };
    let (range, permissions, file_offset, device, inode) = (field(), field(), field(), field(), field());
    let (start, end) = hex_pair(range, b'-')?;
    let (major, minor) = hex_pair(device, b':')?;
    let (name, deleted) = name(rest.trim_ascii_start());
    if end <= start {
        return None;
    }
    Some(Mapping {
        start: Address(start),
        end: Address(end),
        permissions: parse_permissions(permissions)?,
        file_offset: hex(file_offset)?,
        device: Device { major: u32::try_from(major).ok()?, minor: u32::try_from(minor).ok()? },
        inode: std::str::from_utf8(inode).ok()?.parse().ok()?,
        name,
        deleted,
        rss: None,
    })
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn hex_pair(text: &[u8], separator: u8) -> Option<(u64, u64)> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((hex(&text[..at])?, hex(&text[at + 1..])?))
}

fn parse_permissions(letters: &[u8]) -> Option<Permissions> {
    let &[read, write, execute, sharing] = letters else { return None };
    Some(Permissions {
        read: read == b'r',
        write: write == b'w',
        execute: execute == b'x',
        shared: sharing == b's',
    })
}

/// A path as the kernel shows it, without what it adds when the file has been unlinked or replaced; whether it did.
pub(super) fn without_deleted(path: &[u8]) -> (&[u8], bool) {
    match path.strip_suffix(b" (deleted)") {
        Some(path) if path.starts_with(b"/") => (path, true),
        _ => (path, false),
    }
}

fn name(escaped: &[u8]) -> (OsString, bool) {
    let (path, deleted) = without_deleted(escaped);
    let name = match unescape_newlines(path) {
        Cow::Borrowed(bytes) => OsStr::from_bytes(bytes).to_owned(),
        Cow::Owned(bytes) => OsString::from_vec(bytes),
    };
    (name, deleted)
}

/// Undoes the kernel's `\012` for a newline, the one byte it escapes here. A file whose name really holds the four
/// characters `\012` cannot be told apart and gets a newline.
fn unescape_newlines(bytes: &[u8]) -> Cow<'_, [u8]> {
    const ESCAPED: &[u8] = b"\\012";
    if !bytes.contains(&b'\\') {
        return Cow::Borrowed(bytes);
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(ESCAPED) {
            plain.push(b'\n');
            rest = tail;
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    Cow::Owned(plain)
}

#[cfg(any(test, feature = "fuzzing"))]
impl Mapping {
    /// One for a test: of a file if its name is a path.
    pub(crate) fn made_up(range: AddressRange, permissions: &str, name: &str) -> Self {
        let inode = u8::from(name.starts_with('/'));
        let line = format!("{:x}-{:x} {permissions} 0 0:0 {inode} {name}", range.start.0, range.end.0);
        parse_line(line.as_bytes()).expect("a mapping")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_one(line: &str) -> Mapping {
        let mappings = parse_maps(line.as_bytes());
        assert_eq!(mappings.len(), 1, "{line}");
        mappings.into_iter().next().expect("one mapping")
    }

    #[test]
    fn a_file_mapping() {
        let mapping = parse_one(
            "7f62f06e9000-7f62f06ea000 r-xs 00001000 fe:10 10272874                   /usr/lib/a b.so (deleted)\n",
        );
        assert_eq!((mapping.start, mapping.end), (Address(0x7f62_f06e_9000), Address(0x7f62_f06e_a000)));
        assert_eq!(mapping.len(), 0x1000);
        let expected = Permissions { read: true, write: false, execute: true, shared: true };
        assert_eq!(mapping.permissions, expected);
        assert_eq!(mapping.file_offset, 0x1000);
        let device = Device { major: 0xfe, minor: 0x10 };
        assert_eq!(mapping.file_id(), Some(FileId { device, inode: 10_272_874 }));
        assert_eq!(mapping.path(), Some(Path::new("/usr/lib/a b.so")));
        assert!(mapping.deleted);
    }

    #[test]
    fn memory_without_a_file() {
        for name in ["", "[heap]", "[stack]", "[anon:a name (deleted)]"] {
            let mapping = parse_one(&format!("1000-2000 rw-p 00000000 00:00 0 {name}"));
            assert_eq!((mapping.name.to_str(), mapping.path(), mapping.deleted), (Some(name), None, false));
        }
    }

    #[test]
    fn newlines_in_names_are_restored() {
        let mapping = parse_one("1000-2000 r--p 00000000 08:01 7   /tmp/a\\012b\\01c\\");
        assert_eq!(mapping.path(), Some(Path::new("/tmp/a\nb\\01c\\")));
    }

    #[test]
    fn a_mapping_that_grew_while_it_was_read_is_one() {
        let text = b"1000-2000 rw-p 0 0:0 0 [heap]\n1000-3000 rw-p 0 0:0 0 [heap]\n3000-4000 rw-p 0 0:0 0\n";
        let ends: Vec<_> = parse_maps(text).iter().map(|mapping| mapping.end.0).collect();
        assert_eq!(ends, [0x3000, 0x4000]);
    }

    #[test]
    fn code_that_a_gate_has_replaced_is_shown_as_what_it_is_a_copy_of() {
        let text = "\
1000-4000 r-xp 00098000 fe:00 7 /usr/lib/libc.so.6
4000-6000 r-xp 00000000 00:01 9 /memfd:tracer-gate (deleted)
6000-9000 rw-p 00002000 00:01 9 /memfd:tracer-gate (deleted)
9000-d000 r-xp 00005000 00:01 9 /memfd:tracer-gate (deleted)
20000-92000 r-xp 00026000 fe:00 7 /usr/lib/libc.so.6
92000-95000 r-xp 00006000 00:01 9 /memfd:tracer-gate (deleted)
95000-a0000 r-xp 0009b000 fe:00 7 /usr/lib/libc.so.6
";
        let shown = without_gate(parse_maps(text.as_bytes()));
        let at = |start: u64| {
            shown.iter().find(|mapping| mapping.start.0 == start).map(|it| (it.inode, it.file_offset))
        };
        assert_eq!(at(0x1000), None, "the parked original");
        assert_eq!(
            [at(0x4000), at(0x6000), at(0x9000)],
            [Some((9, 0)), Some((9, 0x2000)), Some((9, 0x5000))]
        );
        assert_eq!([at(0x92000), at(0x95000)], [Some((7, 0x98000)), Some((7, 0x9b000))]);
        assert!(!shown.iter().any(|mapping| mapping.start.0 == 0x92000 && mapping.deleted));
        assert!(has_open_gate(&parse_maps(text.as_bytes())));
        // A gate that is closed, and one that is only put in.
        let closed = text.replace("92000-95000 r-xp 00006000 00:01 9 /memfd:tracer-gate (deleted)\n", "");
        assert_eq!(without_gate(parse_maps(closed.as_bytes())).len(), 5);
        assert!(!has_open_gate(&parse_maps(closed.as_bytes())));
        let reserved =
            closed.replace("r-xp 00098000 fe:00 7 /usr/lib/libc.so.6\n4000", "---p 00000000 00:00 0 \n4000");
        assert_eq!(without_gate(parse_maps(reserved.as_bytes())).len(), 6);
        assert!(!has_open_gate(&parse_maps(reserved.as_bytes())));
    }

    #[test]
    fn lines_that_make_no_sense_are_left_out() {
        let text = b"\nnonsense\n2000-1000 r--p 0 0:0 0\n1000-2000 r-p 0 0:0 0\n1000-2000 rw-p 0 0:0 0\n";
        assert_eq!(parse_maps(text).len(), 1);
    }

    #[test]
    fn smaps_say_what_is_resident() {
        let text = "\
00400000-00401000 r-xp 00000000 08:01 12                         /opt/my app/bin (deleted)
Size:                  4 kB
Rss:                   4 kB
VmFlags: rd ex mr mw me
01000000-01800000 rw-p 00000000 00:00 0                          [heap]
Rss:                8000 kB
01000000-01900000 rw-p 00000000 00:00 0                          [heap]
Rss:                9000 kB
7f0000000000-7f0000002000 rw-p 00000000 00:00 0                  [anon:v8]
Rss:                   0 kB
7f0000006000-7f0000007000 rw-p 00000000 00:00 0\x20
";
        let mappings = read_smaps(text.as_bytes()).expect("it can be read");
        let names: Vec<_> = mappings.iter().map(|mapping| mapping.name.to_str().expect("text")).collect();
        assert_eq!(names, ["/opt/my app/bin", "[heap]", "[anon:v8]", ""]);
        let sizes: Vec<_> = mappings.iter().map(|mapping| mapping.rss.map(|size| size.0 >> 10)).collect();
        assert_eq!(sizes, [Some(4), Some(9000), Some(0), None]);
        assert_eq!(parse_maps(text.as_bytes()), mappings);
    }

    #[test]
    fn sizes_that_make_no_sense_are_left_out() {
        let text =
            b"Rss: 4 kB\n1000-2000 r-xp 0 0:0 0\nRss: 99999999999999999999 kB\nRss: -1 kB\nRss: 4\n\xff\xff";
        let mappings = read_smaps(&text[..]).expect("it can be read");
        assert_eq!(mappings.iter().map(|mapping| mapping.rss).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn memory_of_zeroes_is_anonymous() {
        let backing = |line: &str| parse_one(line).backing();
        // As Linux 6.18 shows a shared and a private mapping of /dev/zero, and MAP_HUGETLB.
        let shared =
            "7ff98378d000-7ff98378e000 rw-s 00000000 00:01 1168                       /dev/zero (deleted)";
        let private = "7ff98378c000-7ff98378d000 rw-p 00000000 00:06 4                          /dev/zero";
        let huge = "7f3bf5200000-7f3bf5400000 rw-p 00000000 00:11 230950                     /anon_hugepage (deleted)";
        assert_eq!([shared, private, huge].map(backing), [Backing::Anonymous; 3]);
        assert_eq!(backing("1000-2000 rw-p 00000000 00:00 0 [heap]"), Backing::Anonymous);
        let memfd =
            "7ff9835d2000-7ff9835d3000 rw-s 00000000 00:01 1170                       /memfd:x y (deleted)";
        let ring = "1000-2000 rw-s 00000000 00:0e 1057 anon_inode:[io_uring]";
        assert_eq!([memfd, ring].map(backing), [Backing::File; 2]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mappings = parse_maps(&bytes);
            prop_assert_eq!(read_smaps(&*bytes).expect("it can be read"), mappings);
        }
    }
}
