//! On real processes: a python3 child maps memory and touches known pages of it.

use super::super::python_child::Target;
use super::*;

const MEBIBYTE: u64 = 1 << 20;

impl Target {
    /// The resident bytes by either way, which must agree.
    fn resident(&self, ranges: &[AddressRange]) -> Vec<u64> {
        let scanned = resident_bytes(self.pid(), ranges).unwrap();
        let pagemap = File::open(proc_file(self.pid(), "pagemap")).unwrap();
        let sorted = Sorted::new(ranges);
        let mappings = mappings(self.pid()).unwrap();
        let estimated = estimate(&mappings, &sorted.ranges, &pagemap, PAGEMAP_BUDGET).unwrap();
        assert_eq!(sorted.restore(estimated), scanned);
        scanned.into_iter().map(|bytes| bytes.unwrap().0).collect()
    }

    /// What it has in huge pages.
    fn huge_bytes(&self) -> u64 {
        let rollup = std::fs::read_to_string(proc_file(self.pid(), "smaps_rollup")).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Runs a statement that answers with an address.
    fn map(&mut self, statement: &str) -> u64 {
        self.run(statement).try_into().unwrap()
    }
}

fn sized(start: u64, length: u64) -> AddressRange {
    AddressRange::sized(start, length).unwrap()
}

#[test]
fn only_touched_pages_are_resident() {
    let mut target = Target::start();
    let at = target.map("answer = mmap(64 << 20); madvise(answer, 64 << 20, 15); write(answer, 100, step=7)");
    // Every 7th page of 700: the halves share them, in whatever order they are asked for.
    let (low, high) = (sized(at, 350 * 4096), sized(at + 350 * 4096, 64 * MEBIBYTE - 350 * 4096));
    assert_eq!(target.resident(&[sized(at, 64 * MEBIBYTE)]), [100 * 4096]);
    assert_eq!(target.resident(&[high, low]), [50 * 4096, 50 * 4096]);
}

#[test]
fn more_regions_than_one_call_returns() {
    let mut target = Target::start();
    // The last call's 900 make the kernel flush its own buffer of 512.
    let pages = 2 * REGIONS as u64 + 900;
    let at = target.map(&format!(
        "answer = mmap({pages} * 8192); madvise(answer, {pages} * 8192, 15); write(answer, {pages}, step=2)"
    ));
    assert_eq!(target.resident(&[sized(at, pages * 8192)]), [pages * 4096]);
}

#[test]
fn a_reservation_weighs_nothing_and_costs_nothing() {
    let mut target = Target::start();
    let tebibyte = 1 << 40;
    // MAP_NORESERVE
    let at = target.map("answer = mmap(1 << 40, prot=0, flags=0x4022)");
    assert_eq!(target.resident(&[sized(at, tebibyte)]), [0]);
    // One page of it committed: a mapping of its own.
    target.run(&format!("answer = mmap(4096, at={at} + (1 << 39)); write(answer, 1)"));
    assert_eq!(target.resident(&[sized(at, tebibyte)]), [4096]);
}

#[test]
fn addresses_that_no_process_has_are_not_resident() {
    let mut target = Target::start();
    let at = target.map("answer = mmap(1 << 20); write(answer, 1)");
    let vsyscall = sized(0xffff_ffff_ff60_0000, 4096);
    let nowhere = sized(4096, 4096);
    assert_eq!(target.resident(&[vsyscall, sized(at, 4096), nowhere]), [0, 4096, 0]);
}

#[test]
fn huge_pages_count_with_their_whole_size() {
    let mut target = Target::start();
    // MADV_HUGEPAGE; one byte written in each of two huge pages.
    let at = target.map(
        "answer = (mmap(16 << 20) + (2 << 20) - 1) & ~((2 << 20) - 1); \
         madvise(answer, 8 << 20, 14); write(answer, 2, step=512)",
    );
    let resident = target.resident(&[sized(at, 8 * MEBIBYTE), sized(at + 8 * MEBIBYTE, 4 * MEBIBYTE)]);
    // They may be switched off, or there may be none left.
    let huge = target.huge_bytes();
    assert_eq!(resident, [huge + (2 - huge / (2 * MEBIBYTE)) * 4096, 0]);
    if huge == 4 * MEBIBYTE {
        // A part of a huge page.
        assert_eq!(resident_bytes(target.pid(), &[sized(at + 4096, 8192)]).unwrap(), [Some(Bytes(8192))]);
    }
}

#[test]
fn the_zero_page_is_not_resident() {
    let mut target = Target::start();
    let at = target.map("answer = mmap(1 << 20); madvise(answer, 1 << 20, 15); read(answer, 10)");
    assert_eq!(resident_bytes(target.pid(), &[sized(at, MEBIBYTE)]).unwrap(), [Some(Bytes(0))]);
    let huge = target.map(
        "answer = (mmap(16 << 20) + (2 << 20) - 1) & ~((2 << 20) - 1); \
         madvise(answer, 8 << 20, 14); read(answer, 1)",
    );
    assert_eq!(resident_bytes(target.pid(), &[sized(huge, 8 * MEBIBYTE)]).unwrap(), [Some(Bytes(0))]);
}

/// Before Linux 6.7 single pages are found by the page map, which calls the zero page present.
#[test]
fn the_zero_page_is_not_present_by_the_page_map_either() {
    let mut target = Target::start();
    let at = target
        .map("answer = mmap(1 << 20); madvise(answer, 1 << 20, 15); read(answer, 256); write(answer, 3)");
    let pagemap = File::open(proc_file(target.pid(), "pagemap")).unwrap();
    let mut pages = Vec::new();
    let mut budget = PAGEMAP_BUDGET;
    assert!(for_each_present(&pagemap, sized(at, MEBIBYTE), &mut budget, |page| pages.push(page)).unwrap());
    assert_eq!(pages, [0, 1, 2].map(|page| sized(at + page * PAGE_BYTES, PAGE_BYTES)));
}

#[test]
fn memory_given_back_is_not_resident() {
    let mut target = Target::start();
    let at = target.map("answer = mmap(1 << 20); madvise(answer, 1 << 20, 15); write(answer, 256)");
    assert_eq!(target.resident(&[sized(at, MEBIBYTE)]), [MEBIBYTE]);
    target.run(&format!("madvise({at}, 1 << 19, 4)")); // MADV_DONTNEED
    assert_eq!(target.resident(&[sized(at, MEBIBYTE)]), [MEBIBYTE / 2]);
}

#[test]
fn a_large_part_of_a_mapping_is_not_read_page_by_page() {
    let mut target = Target::start();
    let at =
        target.map("answer = mmap(1 << 40, flags=0x4022); madvise(answer, 1 << 40, 15); write(answer, 3)");
    let pagemap = File::open(proc_file(target.pid(), "pagemap")).unwrap();
    let ranges = [sized(at, 4096), sized(at + 4096, 1 << 39)];
    let estimated = estimate(&mappings(target.pid()).unwrap(), &ranges, &pagemap, PAGEMAP_BUDGET).unwrap();
    assert_eq!(estimated, [Some(Bytes(4096)), None]);
    // The newer call knows.
    assert_eq!(resident_bytes(target.pid(), &ranges).unwrap(), [Some(Bytes(4096)), Some(Bytes(8192))]);
}

#[test]
fn rss_follows_what_is_touched_and_agrees_with_the_mappings() {
    let mut target = Target::start();
    target.run("answer = 0");
    let before = rss(target.pid()).unwrap().0;
    target.run("at = mmap(32 << 20); madvise(at, 32 << 20, 15); write(at, 8192)");
    let after = rss(target.pid()).unwrap().0;
    let grown = after - before;
    assert!((32 * MEBIBYTE..34 * MEBIBYTE).contains(&grown), "{grown}");
    let mappings = mappings(target.pid()).unwrap();
    let sum: u64 = mappings.iter().filter_map(|mapping| mapping.rss).map(|size| size.0).sum();
    // Per-CPU counters before Linux 6.17.
    assert!(sum.abs_diff(after) < MEBIBYTE, "{sum} {after}");
}

#[test]
fn a_process_that_is_gone_is_an_error_value() {
    let mut target = Target::start();
    let at = target.map("answer = mmap(1 << 20)");
    let pid = target.pid();
    target.child.kill().unwrap();
    // A zombie: it is there, but has no memory.
    let waited = rustix::process::waitid(
        rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&target.child)),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
    );
    assert!(waited.is_ok());
    let gone = |pid| {
        assert!(matches!(rss(pid), Err(ResidencyError::Gone(_))));
        assert!(matches!(mappings(pid), Err(ResidencyError::Gone(_))));
        let resident = resident_bytes(pid, &[sized(at, MEBIBYTE)]);
        assert!(matches!(resident, Err(ResidencyError::Gone(_))), "{resident:?}");
    };
    gone(pid);
    target.child.wait().unwrap();
    gone(pid);
    // A kernel thread has no user memory.
    assert!(matches!(rss(Pid(2)), Err(ResidencyError::Gone(_))));
}
