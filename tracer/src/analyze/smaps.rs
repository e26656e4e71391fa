//! The mappings of a process with their resident sizes, as `/proc/PID/smaps` states them.
//!
//! Only the fields that the analysis uses are taken: a large process has a hundred thousand mappings of 25 lines each.

use std::io::{self, BufRead};

use crate::model::{Address, AddressRange, Bytes};
use crate::target::Backing;

/// One mapping (VMA).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Where it is.
    pub range: AddressRange,
    /// What fills its pages.
    pub backing: Backing,
    /// Whether code may run in it.
    pub executable: bool,
    /// The file's path, or the kernel's name for it: `[heap]`, `[stack]`, `[anon:v8]`; empty when it has none.
    pub name: String,
    /// Bytes present in memory, page cache of a mapped file included.
    pub rss: Bytes,
}

/// Reads the text of `/proc/PID/smaps`. A line that makes no sense is passed over.
///
/// The kernel tells a page of text at once and then goes on at the address where that ended. If the last mapping has grown
/// meanwhile, that is within it, and it is told again, whole: what comes later counts.
///
/// # Errors
/// What the reader reports; an exited process ends the text or fails with `ESRCH`.
pub fn parse(mut text: impl BufRead) -> io::Result<Vec<Vma>> {
    let mut vmas: Vec<Vma> = Vec::new();
    let mut line = Vec::with_capacity(256);
    loop {
        line.clear();
        if text.read_until(b'\n', &mut line)? == 0 {
            return Ok(vmas);
        }
        if let Some(bytes) = field(&line, b"Rss:") {
            vmas.last_mut().into_iter().for_each(|vma| vma.rss = bytes);
        } else if line.first().is_some_and(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()) {
            let Some(vma) = header(&String::from_utf8_lossy(&line)) else { continue };
            while vmas.pop_if(|earlier| earlier.range.end > vma.range.start).is_some() {}
            vmas.push(vma);
        }
    }
}

/// The value of a line like `Rss:     12 kB`.
pub(super) fn field(line: &[u8], name: &[u8]) -> Option<Bytes> {
    let value = std::str::from_utf8(line.strip_prefix(name)?).ok()?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kibibytes.checked_mul(1024)?))
}

/// A line like `7f12a000-7f12b000 r-xp 00000000 08:01 12    /usr/lib/libc.so.6`.
fn header(line: &str) -> Option<Vma> {
    let mut rest = line.trim_end_matches('\n');
    let mut word = || {
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail.trim_start();
        word
    };
    let (start, end) = word().split_once('-')?;
    let permissions = word();
    let (_offset, _device, inode) = (word(), word(), word());
    let address = |text| u64::from_str_radix(text, 16).ok().map(Address);
    let name = rest;
    Some(Vma {
        range: AddressRange { start: address(start)?, end: address(end)? },
        // How the kernel shows MAP_SHARED | MAP_ANONYMOUS.
        backing: if inode == "0" || name == "/dev/zero (deleted)" {
            Backing::Anonymous
        } else {
            Backing::File
        },
        executable: permissions.contains('x'),
        name: name.to_owned(),
        rss: Bytes(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_ranges_names_and_sizes() {
        let text = "\
00400000-00401000 r-xp 00000000 08:01 12                         /opt/my app/bin (deleted)
Size:                  4 kB
Rss:                   4 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000002000 rw-p 00000000 00:00 0                  [anon:v8]
Rss:                   8 kB
7f0000004000-7f0000005000 rw-s 00000000 00:01 7                  /dev/zero (deleted)
Rss:                   0 kB
7f0000006000-7f0000007000 rw-p 00000000 00:00 0\x20
";
        let vmas = parse(text.as_bytes()).unwrap();
        let names: Vec<_> = vmas.iter().map(|vma| vma.name.as_str()).collect();
        assert_eq!(names, ["/opt/my app/bin (deleted)", "[anon:v8]", "/dev/zero (deleted)", ""]);
        let sizes: Vec<_> = vmas.iter().map(|vma| vma.rss.0).collect();
        assert_eq!(sizes, [4096, 8192, 0, 0]);
        use Backing::{Anonymous, File};
        let backings: Vec<_> = vmas.iter().map(|vma| vma.backing).collect();
        assert_eq!(backings, [File, Anonymous, Anonymous, Anonymous]);
        assert!(vmas[0].executable && !vmas[1].executable);
        assert_eq!(vmas[0].range, AddressRange { start: Address(0x40_0000), end: Address(0x40_1000) });
    }

    #[test]
    fn what_grew_while_it_was_read_counts_once() {
        let text = "\
00400000-00401000 rw-p 00000000 08:01 12                         /bin/server
Rss:                   4 kB
01000000-01800000 rw-p 00000000 00:00 0                          [heap]
Rss:                8000 kB
01000000-01900000 rw-p 00000000 00:00 0                          [heap]
Rss:                9000 kB
7f0000000000-7f0000002000 rw-p 00000000 00:00 0\x20
Rss:                   8 kB
";
        let sizes: Vec<_> = parse(text.as_bytes()).unwrap().iter().map(|vma| vma.rss.0 >> 10).collect();
        assert_eq!(sizes, [4, 9000, 8]);
    }

    #[test]
    fn survives_nonsense() {
        let text = b"Rss: 4 kB\nzz-yy r-xp\n1-2\nRss: 99999999999999999999 kB\nRss: -1 kB\n\xff\xff\n\nabc";
        let vmas = parse(&text[..]).unwrap();
        assert!(vmas.iter().all(|vma| vma.rss == Bytes(0)));
    }
}
