//! How much of a process is in memory: as a whole, and range by range.
//!
//! *Resident* is what is present in memory: not swapped out, not the shared zero page of memory that was only read,
//! huge pages with their whole size. Pages that several processes share count in full for each, as in RSS. (Pages of
//! `MAP_HUGETLB` are present too, though the kernel leaves them out of RSS.)
//!
//! From Linux 6.7 the kernel lists present pages itself (`PAGEMAP_SCAN`), which passes over what was never touched
//! without a look: 1 TiB of reserved addresses costs one system call, 1 GiB of touched small pages 2 to 4 ms. Before,
//! `/proc/PID/smaps` gives the resident size of whole mappings, and the page map (8 bytes a page) is read only where
//! a range is part of a mapping that has resident pages at all.

mod pagemap_scan;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::LazyLock;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use self::pagemap_scan::PageRegion;
use crate::model::{Address, AddressRange, Bytes, PAGE_BYTES, Pid};
use crate::target::{Mapping, kibibytes, read_smaps};

/// Why the resident size is not known.
#[derive(Debug, thiserror::Error)]
pub enum ResidencyError {
    /// It exited, is a zombie, or never had user memory.
    #[error("process {0} has no memory any more")]
    Gone(Pid),
    /// The kernel does not let us.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file below `/proc`.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ResidencyError {
    fn new(pid: Pid, path: &Path, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::SRCH) => Self::Gone(pid),
            _ => Self::Read { path: path.to_owned(), source },
        }
    }
}

/// Regions that one system call can return. 4096 take 96 KiB; a range of more fragments takes several calls.
const REGIONS: usize = 4096;

/// The most that one call reads of the page map on kernels before 6.7, in bytes: 32 GiB of addresses, 0.2 s.
const PAGEMAP_BUDGET: u64 = 64 << 20;

/// The process's resident set size.
///
/// Read from `/proc/PID/statm`, which costs microseconds however large the process; `smaps_rollup` walks every page
/// table (7 to 9 ms per GiB of small pages). From Linux 6.17 both are exact. In 6.2 to 6.16 `statm` does not sum the
/// kernel's per-CPU counters, so it can be off by max(32, 2n) pages on each of n CPUs.
///
/// # Errors
/// [`ResidencyError`].
pub fn rss(pid: Pid) -> Result<Bytes, ResidencyError> {
    let path = proc_file(pid, "statm");
    let text = std::fs::read_to_string(&path).map_err(|error| ResidencyError::new(pid, &path, error))?;
    let mut pages = text.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0));
    match (pages.next(), pages.next()) {
        (None | Some(0), _) | (_, None) => Err(ResidencyError::Gone(pid)),
        (Some(_), Some(resident)) => Ok(Bytes(u64::saturating_mul(resident, PAGE_BYTES))),
    }
}

/// How much of the process is swapped out.
///
/// # Errors
/// [`ResidencyError`].
pub fn swapped(pid: Pid) -> Result<Bytes, ResidencyError> {
    let path = proc_file(pid, "status");
    let text = std::fs::read_to_string(&path).map_err(|error| ResidencyError::new(pid, &path, error))?;
    let size = text.lines().find_map(|line| kibibytes(line.as_bytes(), b"VmSwap:"));
    size.ok_or(ResidencyError::Gone(pid))
}

/// The mappings of the process with their resident sizes. Costs a walk of its page tables: 7 to 9 ms per
/// GiB of small pages, and 2 µs a mapping (110 ms for 60,000).
///
/// # Errors
/// [`ResidencyError`].
pub fn mappings(pid: Pid) -> Result<Vec<Mapping>, ResidencyError> {
    let path = proc_file(pid, "smaps");
    let read = || read_smaps(BufReader::with_capacity(1 << 16, File::open(&path)?));
    let mappings = read().map_err(|error| ResidencyError::new(pid, &path, error))?;
    if mappings.is_empty() { Err(ResidencyError::Gone(pid)) } else { Ok(mappings) }
}

/// The resident bytes of each of the given ranges, which must not overlap. `None` where a kernel before 6.7 would have
/// to be asked about more pages than can be read in time.
///
/// # Errors
/// [`ResidencyError`].
pub fn resident_bytes(pid: Pid, ranges: &[AddressRange]) -> Result<Vec<Option<Bytes>>, ResidencyError> {
    let path = proc_file(pid, "pagemap");
    let failed = |error| ResidencyError::new(pid, &path, error);
    let pagemap = File::open(&path).map_err(failed)?;
    let sorted = Sorted::new(ranges);
    match scan(&pagemap, &sorted.ranges) {
        Ok(resident) => Ok(sorted.restore(resident.into_iter().map(Some))),
        Err(Errno::NOTTY | Errno::INVAL) => {
            let resident =
                estimate(&mappings(pid)?, &sorted.ranges, &pagemap, PAGEMAP_BUDGET).map_err(failed)?;
            Ok(sorted.restore(resident))
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

/// The parts of ascending ranges that are in memory, by ascending address; on kernels before 6.7 as far as can be read in
/// time.
///
/// # Errors
/// [`ResidencyError`].
pub fn present(pid: Pid, ranges: &[AddressRange]) -> Result<Vec<AddressRange>, ResidencyError> {
    let path = proc_file(pid, "pagemap");
    let failed = |error| ResidencyError::new(pid, &path, error);
    let pagemap = File::open(&path).map_err(failed)?;
    let mut buffer = vec![PageRegion::default(); REGIONS];
    let mut found = Vec::new();
    let scanned = ranges.iter().try_for_each(|&range| {
        scan_range(&pagemap, range, &mut buffer, |regions| {
            found.extend(regions.iter().map(PageRegion::range));
        })
    });
    match scanned {
        Ok(()) => Ok(found),
        Err(Errno::NOTTY | Errno::INVAL) => {
            let mut budget = PAGEMAP_BUDGET;
            for &range in ranges {
                for_each_present(&pagemap, range, &mut budget, |page| found.push(page)).map_err(failed)?;
            }
            Ok(found)
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Whether a range, of the size and place of a huge page, is one. `pagemap` is the process' `/proc/PID/pagemap`; none on kernels
/// before 6.7.
#[must_use]
pub fn is_huge(pagemap: &File, range: AddressRange) -> Option<bool> {
    pagemap_scan::is_huge(pagemap, range).ok()
}

fn proc_file(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Ranges in ascending order, with the way back to the order they came in.
struct Sorted {
    ranges: Vec<AddressRange>,
    order: Vec<usize>,
}

impl Sorted {
    fn new(ranges: &[AddressRange]) -> Self {
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_unstable_by_key(|&index| ranges[index]);
        Self { ranges: order.iter().map(|&index| ranges[index]).collect(), order }
    }

    fn restore(&self, values: impl IntoIterator<Item = Option<Bytes>>) -> Vec<Option<Bytes>> {
        let mut restored = vec![None; self.order.len()];
        for (&index, value) in self.order.iter().zip(values) {
            restored[index] = value;
        }
        restored
    }
}

/// Asks the kernel for the present pages of ascending ranges. Ranges that touch are asked for together.
fn scan(pagemap: &File, ranges: &[AddressRange]) -> Result<Vec<Bytes>, Errno> {
    let mut buffer = vec![PageRegion::default(); REGIONS];
    let mut resident = vec![Bytes(0); ranges.len()];
    let mut first = 0;
    for together in ranges.chunk_by(|range, next| range.end == next.start) {
        let sizes = &mut resident[first..first + together.len()];
        let whole = AddressRange { start: together[0].start, end: together[together.len() - 1].end };
        scan_range(pagemap, whole, &mut buffer, |regions| {
            add_regions(together, sizes, regions.iter().map(PageRegion::range));
        })?;
        first += together.len();
    }
    Ok(resident)
}

/// Asks the kernel for the present pages of a range, as many at a time as the buffer holds.
fn scan_range(
    pagemap: &File,
    range: AddressRange,
    buffer: &mut [PageRegion],
    mut found: impl FnMut(&[PageRegion]),
) -> Result<(), Errno> {
    let mut from = Some(range.start);
    while let Some(start) = from.filter(|start| *start < range.end) {
        match pagemap_scan::scan(pagemap, AddressRange { start, end: range.end }, buffer) {
            Ok((regions, next)) => {
                found(regions);
                from = next;
            }
            // No address of user space, such as the `[vsyscall]` page.
            Err(Errno::FAULT) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Adds what the ascending regions have in common with the ascending ranges to the ranges' sizes.
fn add_regions(ranges: &[AddressRange], sizes: &mut [Bytes], regions: impl Iterator<Item = AddressRange>) {
    let mut index = 0;
    for region in regions {
        index += ranges[index..].partition_point(|range| range.end <= region.start);
        for (range, size) in ranges[index..].iter().zip(&mut sizes[index..]) {
            let Some(common) = range.intersection(region) else { break };
            size.0 += common.bytes();
        }
    }
}

/// The resident bytes of ascending ranges from the sizes of whole mappings, and from the page map (which has one 64-bit
/// word a page) where a range is only a part of one.
fn estimate(
    mappings: &[Mapping],
    ranges: &[AddressRange],
    pagemap: &File,
    mut budget: u64,
) -> io::Result<Vec<Option<Bytes>>> {
    let mut resident = vec![Some(Bytes(0)); ranges.len()];
    let resident_mappings =
        mappings.iter().filter_map(|mapping| Some((mapping, mapping.rss.filter(|&rss| rss > Bytes(0))?)));
    for (mapping, rss) in resident_mappings {
        let first = ranges.partition_point(|range| range.end <= mapping.start);
        for (range, size) in ranges[first..].iter().zip(&mut resident[first..]) {
            let Some(part) = range.intersection(mapping.range()) else { break };
            let found = if part == mapping.range() {
                Some(rss)
            } else {
                present_bytes(pagemap, part, &mut budget)?.map(|bytes| bytes.min(rss))
            };
            *size = size.zip(found).map(|(size, found)| Bytes(size.0 + found.0));
        }
    }
    Ok(resident)
}

/// Counts the present pages of a range; `None` when the budget does not allow it.
fn present_bytes(pagemap: &File, range: AddressRange, budget: &mut u64) -> io::Result<Option<Bytes>> {
    let mut bytes = 0;
    let was_read = for_each_present(pagemap, range, budget, |page| bytes += page.bytes())?;
    Ok(was_read.then_some(Bytes(bytes)))
}

/// The number of a page frame in a word of the page map; 0 without CAP_SYS_ADMIN.
const FRAME: u64 = (1 << 55) - 1;

/// The frame of the zero page, which is mapped where memory is read before it is written: it is nobody's.
fn zero_page() -> Option<u64> {
    let length = PAGE_BYTES as usize;
    // SAFETY: the kernel chooses a place where nothing is.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE) }.ok()?;
    // SAFETY: the page has just been mapped to be read.
    let _read = unsafe { page.cast::<u8>().read_volatile() };
    let mut word = [0; 8];
    let at = page.addr() as u64 / PAGE_BYTES * 8;
    let read = File::open("/proc/self/pagemap").and_then(|pagemap| pagemap.read_exact_at(&mut word, at));
    // SAFETY: nobody else knows of the page.
    let _ = unsafe { munmap(page, length) };
    read.ok().map(|()| u64::from_ne_bytes(word) & FRAME).filter(|&frame| frame != 0)
}

/// Passes on each present page of a range, unless the budget does not allow it: then it says so.
fn for_each_present(
    pagemap: &File,
    range: AddressRange,
    budget: &mut u64,
    mut found: impl FnMut(AddressRange),
) -> io::Result<bool> {
    const WORD: u64 = 8;
    const PRESENT: u64 = 1 << 63;
    static ZERO_PAGE: LazyLock<Option<u64>> = LazyLock::new(zero_page);

    let is_present = |word: u64| word & PRESENT != 0 && Some(word & FRAME) != *ZERO_PAGE;
    let words = range.bytes() / PAGE_BYTES;
    let Some(left) = budget.checked_sub(words * WORD) else { return Ok(false) };
    *budget = left;
    let mut buffer = vec![0; 1 << 16];
    let (mut at, end) = (range.start.0 / PAGE_BYTES * WORD, range.end.0 / PAGE_BYTES * WORD);
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = pagemap.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            break;
        }
        let (words, _) = buffer[..read].as_chunks();
        for (word, start) in words.iter().zip((at / WORD * PAGE_BYTES..).step_by(PAGE_BYTES as usize)) {
            if is_present(u64::from_ne_bytes(*word)) {
                found(AddressRange { start: Address(start), end: Address(start + PAGE_BYTES) });
            }
        }
        at += read as u64;
    }
    Ok(true)
}
