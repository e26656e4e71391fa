//! Files that lie: real ones with bytes changed, and headers made to ask for too much. Making a table from any of them
//! ends soon, does not panic, and takes memory in proportion to the file.

use std::ops::Range;

use object::{Object, ObjectSection};
use proptest::prelude::*;
use tracer::unwind::{CodeSegments, Table, TableError};
use tracer_ebpf::unwind::{PAGE_SIZE, Rule};

/// The dynamic linker: 200 KB with hand-written code, signal frames and PLT rows.
fn original() -> &'static [u8] {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our mappings");
        let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        let path = paths.find(|path| path.contains("/ld-linux")).expect("the dynamic linker");
        std::fs::read(path).expect("its bytes")
    })
}

fn section(name: &str) -> Range<usize> {
    let file = object::File::parse(original()).expect("an ELF file");
    let (offset, size) =
        file.section_by_name(name).and_then(|section| section.file_range()).expect("the section");
    offset as usize..(offset + size) as usize
}

fn section_headers() -> Range<usize> {
    let bytes = original();
    let offset = u64::from_le_bytes(bytes[0x28..0x30].try_into().expect("8 bytes")) as usize;
    offset..bytes.len()
}

/// What may be done with whatever came out.
fn survives(bytes: &[u8]) -> Result<(), TestCaseError> {
    let _ = CodeSegments::of(bytes).load_bias(0x7f00_0000_0000, 0x1000);
    let Ok(table) = Table::from_elf(bytes) else { return Ok(()) };
    // A row takes at least one byte of the file, and the ends of a function 3 more rows; code may span a little more
    // than the file.
    let index = (bytes.len() + (64 << 20)) / PAGE_SIZE as usize * 4 + 64;
    prop_assert!(table.kernel_bytes() <= 16 * bytes.len() + index);
    prop_assert!(table.probes().0 <= tracer_ebpf::unwind::MAX_PAGE_PROBES);
    for svma in (0..bytes.len() as u64).step_by(97).chain([u64::MAX, 1 << 32, 1 << 63]) {
        let _ = table.lookup(svma);
    }
    Ok(())
}

fn change(at: Range<usize>) -> impl Strategy<Value = (usize, u8)> {
    let interesting = prop_oneof![Just(0), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()];
    (at, interesting)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_frame_information(changes in prop::collection::vec(change(section(".eh_frame")), 1..32)) {
        let mut bytes = original().to_vec();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        survives(&bytes)?;
    }

    #[test]
    fn changed_headers(
        header in prop::collection::vec(change(0..0x400), 0..8),
        sections in prop::collection::vec(change(section_headers()), 0..8),
        length in 0..=original().len() * 2,
    ) {
        let mut bytes = original().to_vec();
        header.into_iter().chain(sections).for_each(|(at, byte)| bytes[at] = byte);
        bytes.truncate(length);
        survives(&bytes)?;
    }

    #[test]
    fn anything(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut file = original()[..64].to_vec();
        file.extend(bytes);
        survives(&file)?;
    }
}

proptest! {
    // Following code takes a quarter of a second in a build for debugging.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn changed_code(changes in prop::collection::vec(change(section(".text")), 1..64)) {
        // What the file says of its frames is taken away, so that all of its code is followed.
        let mut bytes = original().to_vec();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes[section(".eh_frame")].fill(0);
        survives(&bytes)?;
    }
}

/// Where the file's executable program header is.
fn executable_segment(bytes: &[u8]) -> usize {
    let headers = u64::from_le_bytes(bytes[0x20..0x28].try_into().expect("8 bytes")) as usize;
    (0..usize::from(bytes[0x38]))
        .map(|index| headers + 56 * index)
        .find(|&at| bytes[at] == 1 && bytes[at + 4] & 1 == 1)
        .expect("executable code")
}

#[test]
fn code_that_spans_more_than_the_file_can_hold_is_refused() {
    let mut bytes = original().to_vec();
    let at = executable_segment(&bytes);
    // A second executable segment, far away: the one before, which is read-only data.
    bytes[at - 56 + 4] |= 1;
    bytes[at - 56 + 0x10..at - 56 + 0x18].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert!(matches!(Table::from_elf(&bytes), Err(TableError::CodeTooLarge(_))));
}

#[test]
fn without_section_headers_the_table_is_the_same() {
    let mut bytes = original().to_vec();
    let with = Table::from_elf(&bytes).expect("a table");
    bytes[0x28..0x30].fill(0); // e_shoff
    bytes[0x3c..0x40].fill(0); // e_shnum, e_shstrndx
    let without = Table::from_elf(&bytes).expect("a table");
    assert_eq!((with.pages(), with.rows(), with.rules()), (without.pages(), without.rows(), without.rules()));
}

#[test]
fn frame_information_that_is_cut_short_keeps_what_came_before() {
    let mut bytes = original().to_vec();
    let frames = section(".eh_frame");
    let whole = Table::from_elf(&bytes).expect("a table");
    bytes[frames.start + frames.len() / 2..frames.end].fill(0xff);
    let half = Table::from_elf(&bytes).expect("a table");
    assert!(half.stats().broken > 0);
    assert!(
        half.stats().functions > whole.stats().functions / 4
            && half.stats().functions < whole.stats().functions
    );
}

#[test]
fn the_load_bias_follows_the_executable_segment() {
    let bytes = original();
    let at = executable_segment(bytes);
    let field = |offset| u64::from_le_bytes(bytes[at + offset..at + offset + 8].try_into().expect("8 bytes"));
    let (offset, vaddr) = (field(0x08), field(0x10));
    assert_eq!(CodeSegments::of(bytes).load_bias(0x7f00_0000_0000 + vaddr, offset), Some(0x7f00_0000_0000));
    assert_eq!(
        CodeSegments::of(bytes).load_bias(0x7f00_0000_0000 + vaddr + 0x1000, offset + 0x1000),
        Some(0x7f00_0000_0000)
    );
    assert_eq!(CodeSegments::of(bytes).load_bias(0x7f00_0000_0000, u64::MAX), None);
    assert_eq!(CodeSegments::of(b"").load_bias(0, 0), None);
}

#[test]
fn a_table_says_nothing_about_what_is_no_code() {
    let table = Table::from_elf(original()).expect("a table");
    assert_eq!(table.lookup(0), Rule::NO_TABLE);
    assert_eq!(table.lookup(u64::MAX), Rule::NO_TABLE);
}
