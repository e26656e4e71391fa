//! Splits the resident memory of a process into parts that add up to it.
//!
//! What the window saw being mapped is known by its account. The rest of each mapping is told by its name, its place,
//! its neighbours, and what is in it. The allocators' memory is then divided. Where all of it is glibc's, and its arenas
//! can be read, by *measurement*:
//!
//! - `allocator` is what is free in the arenas;
//! - `native` is everything else there: blocks, those from before the window included, with their headers.
//!
//! Else by what the live table knows to be in it, which is an *estimate*:
//!
//! - `native` is what the program holds of it, as far as the window saw: requested bytes of live blocks;
//! - `allocator` is everything else there: blocks from before the window, freed memory that was kept, and the
//!   allocators' own book-keeping. Only its *growth* says something about retention.
//!
//! A block that was never written to is outstanding but not resident; `native` is never more than the allocators'
//! resident memory.

use std::collections::BTreeMap;

use super::allocators::Allocators;
use super::managed::{Runtime, Runtimes};
use crate::memory::heap_walk::Contents;
use crate::model::{Address, AddressRange, AllocatorMemory, Bytes, Part, PartSize};
use crate::target::{Backing, Mapping};

/// A range that was mapped in the window.
#[derive(Clone, Copy, Debug)]
pub struct Tracked {
    /// Where it is.
    pub range: AddressRange,
    pub part: Part,
    /// How much of it is in memory.
    pub resident: Bytes,
    /// The allocator whose it is, by its place in the list of them.
    pub allocator: Option<usize>,
}

/// What a process's resident memory is split by.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Its mappings, by ascending address.
    pub mappings: &'a [Mapping],
    /// Its resident set size.
    pub rss: Bytes,
    pub runtimes: &'a Runtimes,
    /// What was mapped in the window.
    pub tracked: &'a [Tracked],
    /// The stack pointers of its threads, as far as they are known, in ascending order: what contains one is a stack.
    pub stack_pointers: &'a [Address],
    /// What its memory says about itself.
    pub contents: &'a Contents,
    pub allocators: &'a Allocators,
    /// Outstanding bytes of the malloc family.
    pub native: Bytes,
}

/// Every part, in the order of a report.
const PARTS: [Part; 7] =
    [Part::Native, Part::Mapping, Part::Managed, Part::Allocator, Part::File, Part::Stack, Part::Unexplained];

/// The size of each part, those of size 0 included. The sum is the resident set size; every part but `Unexplained` is
/// at least 0.
pub type Split = BTreeMap<Part, i64>;

/// How the memory of allocators is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Division {
    /// By what is free in glibc's arenas.
    Measured,
    /// By the live blocks of the window.
    Estimated,
}

/// How the memory of allocators can be divided: measured where at most a twentieth of it is not glibc's, and where there is
/// none, as in a command that has just been launched.
#[must_use]
pub fn division(evidence: &Evidence) -> Division {
    let sorted = Sorted::new(evidence);
    let of_allocators = sorted.of_allocators();
    let is_glibcs = evidence.contents.kept.is_some() && sorted.foreign * 20 <= of_allocators;
    if is_glibcs || of_allocators == 0 { Division::Measured } else { Division::Estimated }
}

/// Splits the resident memory.
#[must_use]
pub fn split(evidence: &Evidence, division: Division) -> Split {
    let sorted = Sorted::new(evidence);
    let of_allocators = sorted.of_allocators();
    let native = match (&evidence.contents.kept, division) {
        (Some(kept), Division::Measured) => (of_allocators - sorted.foreign).saturating_sub(kept.bytes.0),
        _ => evidence.native.0.min(of_allocators),
    };
    let mut sizes = sorted.sizes;
    sizes.insert(Part::Native, native);
    sizes.insert(Part::Allocator, of_allocators - native);

    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let mut split: Split = sizes.into_iter().map(|(part, bytes)| (part, signed(bytes))).collect();
    let explained = split.values().fold(0, |sum: i64, &bytes| sum.saturating_add(bytes));
    split.insert(Part::Unexplained, signed(evidence.rss.0).saturating_sub(explained));
    split
}

/// What each allocator has resident, in the order of their list.
#[must_use]
pub fn heaps(evidence: &Evidence) -> Vec<Bytes> {
    Sorted::new(evidence).heaps.into_iter().map(Bytes).collect()
}

/// The resident memory by whose it is, before that of allocators is divided.
struct Sorted {
    sizes: BTreeMap<Part, u64>,
    /// Of allocators, but not known to be glibc's.
    foreign: u64,
    /// By allocator.
    heaps: Vec<u64>,
}

impl Sorted {
    fn new(evidence: &Evidence) -> Self {
        let mut rest: Vec<u64> =
            evidence.mappings.iter().map(|mapping| mapping.rss.unwrap_or_default().0).collect();
        let heaps = vec![0; evidence.allocators.list().len()];
        let mut sorted = Self { sizes: PARTS.map(|part| (part, 0)).into(), foreign: 0, heaps };
        for tracked in evidence.tracked {
            let bytes = deduct(evidence.mappings, &mut rest, tracked.range, tracked.resident);
            sorted.add(evidence, tracked.range, (tracked.part, tracked.allocator), bytes);
        }
        let mut known = evidence.tracked.to_vec();
        known.sort_unstable_by_key(|tracked| tracked.range);
        for piece in &evidence.contents.pieces {
            let resident = Bytes(piece.resident.0.saturating_sub(resident_of(&known, piece.range)));
            let bytes = deduct(evidence.mappings, &mut rest, piece.range, resident);
            sorted.add(evidence, piece.range, (piece.part, None), bytes);
        }
        for ((index, mapping), rest) in evidence.mappings.iter().enumerate().zip(rest) {
            let whose = classify(evidence, index);
            sorted.add(evidence, mapping.range(), whose, rest);
        }
        sorted
    }

    fn add(
        &mut self,
        evidence: &Evidence,
        range: AddressRange,
        (part, allocator): (Part, Option<usize>),
        bytes: u64,
    ) {
        *self.sizes.entry(part).or_default() += bytes;
        if part != Part::Allocator {
            return;
        }
        let is_of_glibc = evidence.contents.is_of_glibc(range);
        if !is_of_glibc {
            self.foreign += bytes;
        }
        let by_contents = || is_of_glibc.then(|| evidence.allocators.of_c_library()).flatten();
        let by_blocks = || evidence.allocators.with_blocks_in(range);
        if let Some(index) = allocator.or_else(by_contents).or_else(by_blocks) {
            self.heaps[index] += bytes;
        }
    }

    fn of_allocators(&self) -> u64 {
        self.sizes[&Part::Allocator] + self.sizes[&Part::Native]
    }
}

/// Two splits side by side, with what a reader should know about each part. `runtime` is whose heap the managed one is, `allocators`
/// say what each of them keeps.
#[must_use]
pub fn compare(
    before: &Split,
    after: &Split,
    division: Division,
    runtime: Option<Runtime>,
    allocators: &[AllocatorMemory],
) -> Vec<PartSize> {
    let size = |split: &Split, part| split.get(&part).copied().unwrap_or(0);
    let note = |part| match (part, division) {
        (Part::Native, Division::Measured) => {
            Some((false, "blocks with their headers, those from before the window included".to_owned()))
        }
        (Part::Allocator, Division::Measured) => {
            let trimmable = allocators.iter().find_map(|allocator| allocator.trimmable_bytes);
            let trim = trimmable.filter(|&bytes| bytes >= WORTH_TRIMMING).map(Bytes);
            let trim = trim.map(|bytes| format!("; malloc_trim(0) would give back {bytes}"));
            Some((false, format!("freed by the program, kept by glibc{}", trim.unwrap_or_default())))
        }
        (Part::Native, Division::Estimated) => {
            Some((false, "requested bytes of blocks allocated in the window".to_owned()))
        }
        (Part::Allocator, Division::Estimated) => {
            let grown = u64::try_from(size(after, part) - size(before, part)).unwrap_or(0);
            let keeper = allocators.iter().max_by_key(|allocator| allocator.growth());
            let keeper = keeper.filter(|keeper| keeper.growth() > 0 && keeper.growth() >= grown / 2);
            let whose = keeper.map(|keeper| format!("; most by {}", keeper.sentence()));
            let what = "freed memory that was kept, overhead, blocks from before the window";
            Some((true, format!("{what}{}", whose.unwrap_or_default())))
        }
        (Part::Mapping, _) => {
            Some((true, "memory from before the window is recognised by place and content".to_owned()))
        }
        _ => None,
    };
    let row = |part| PartSize {
        part,
        before_bytes: size(before, part),
        after_bytes: size(after, part),
        runtime: runtime.filter(|_| part == Part::Managed).map(|runtime| runtime.to_string()),
        estimated: note(part).is_some_and(|(estimated, _)| estimated),
        note: note(part).map(|(_, text)| text),
    };
    PARTS.map(row).into()
}

/// Less is not mentioned.
const WORTH_TRIMMING: u64 = 1 << 20;

/// The mappings of which what is in them tells best whose they are: without a name, and not a runtime's nor a stack.
#[must_use]
pub fn unclear(mappings: &[Mapping], runtimes: &Runtimes, stack_pointers: &[Address]) -> Vec<AddressRange> {
    let nothing = (&Contents::default(), &Allocators::default());
    let evidence = Evidence {
        mappings,
        rss: Bytes(0),
        runtimes,
        tracked: &[],
        stack_pointers,
        contents: nothing.0,
        allocators: nothing.1,
        native: Bytes(0),
    };
    let is_unclear = |&(index, mapping): &(usize, &Mapping)| {
        let has_no_name = mapping.name.is_empty() && mapping.backing() == Backing::Anonymous;
        has_no_name
            && mapping.rss > Some(Bytes(0))
            && matches!(classify(&evidence, index).0, Part::Mapping | Part::Allocator | Part::File)
    };
    mappings.iter().enumerate().filter(is_unclear).map(|(_, mapping)| mapping.range()).collect()
}

/// Takes the resident bytes of a range off the mappings that it lies in, as far as they have them: the sizes were
/// read at slightly different times. Returns how much that was.
fn deduct(mappings: &[Mapping], rest: &mut [u64], range: AddressRange, resident: Bytes) -> u64 {
    let first = mappings.partition_point(|mapping| mapping.end <= range.start);
    let mut left = resident.0;
    for (mapping, rest) in mappings[first..].iter().zip(&mut rest[first..]) {
        let Some(common) = mapping.range().intersection(range) else { break };
        let here = left.min(*rest).min(common.bytes());
        *rest -= here;
        left -= here;
    }
    resident.0 - left
}

/// How much of a range is known to be resident by what the window saw, which is sorted.
fn resident_of(tracked: &[Tracked], range: AddressRange) -> u64 {
    let first = tracked.partition_point(|tracked| tracked.range.end <= range.start);
    let common = tracked[first..].iter().map_while(|tracked| {
        tracked.range.intersection(range).map(|common| common.bytes().min(tracked.resident.0))
    });
    common.sum()
}

/// How the names of mappings begin that tell whose they are. glibc gives such names with the tunable
/// `glibc.mem.decorate_maps`, jemalloc when it was built with `--enable-pageid`.
const NAMES: &[(&str, Part)] = &[
    ("[heap]", Part::Allocator),
    ("[stack", Part::Stack),
    ("[anon: glibc: malloc", Part::Allocator),
    ("[anon: glibc: loader malloc", Part::Allocator),
    ("[anon: glibc: pthread", Part::Stack),
    ("[anon:jemalloc", Part::Allocator),
    ("[anon:scudo:", Part::Allocator),
    ("[anon:tcmalloc_", Part::Allocator),
    ("[anon:mimalloc", Part::Allocator),
    ("[anon:partition_alloc", Part::Allocator),
    ("[vdso]", Part::File),
    ("[vvar", Part::File),
    ("[vsyscall]", Part::File),
];

/// What a mapping is that the window did not see being made, and the allocator whose it is, if that is known.
fn classify(evidence: &Evidence, index: usize) -> (Part, Option<usize>) {
    let Evidence { mappings, allocators, .. } = *evidence;
    let mapping = &mappings[index];
    let named = NAMES.iter().find(|(name, _)| mapping.is_named(name)).map(|&(_, part)| part);
    let is_anonymous = mapping.backing() != Backing::File;
    let with_blocks = || is_anonymous.then(|| allocators.with_blocks_in(mapping.range())).flatten();
    if let Some(part) = named {
        (part, allocators.of_mapping(mapping))
    } else if evidence.runtimes.of_mapping(mapping).is_some() {
        (Part::Managed, None)
    } else if !is_anonymous || is_data_of_object(mappings, index) {
        (Part::File, None)
    } else if contains_one_of(mapping.range(), evidence.stack_pointers) {
        (Part::Stack, None)
    } else if let Some(allocator) = allocators.of_mapping(mapping).or_else(with_blocks) {
        (Part::Allocator, Some(allocator))
    } else if is_arena(mapping) {
        (Part::Allocator, None)
    } else {
        (Part::Mapping, None)
    }
}

/// Whether one of ascending addresses is in a range.
fn contains_one_of(range: AddressRange, addresses: &[Address]) -> bool {
    let first = addresses.partition_point(|&address| address < range.start);
    addresses.get(first).is_some_and(|&address| address < range.end)
}

/// Whether it is the uninitialised data (`.bss`) of the object whose mapping ends where it begins.
fn is_data_of_object(mappings: &[Mapping], index: usize) -> bool {
    let before = index.checked_sub(1).map(|index| &mappings[index]);
    let touches =
        |before: &&Mapping| before.end == mappings[index].start && before.backing() == Backing::File;
    mappings[index].name.is_empty() && before.filter(touches).is_some()
}

/// Whether it begins like an arena of glibc's malloc other than the first: at a multiple of 64 MiB, of which it fills a
/// part (`HEAP_MAX_SIZE` in malloc/arena.c).
fn is_arena(mapping: &Mapping) -> bool {
    const HEAP_MAX_SIZE: u64 = 64 << 20;

    mapping.name.is_empty() && mapping.start.0.is_multiple_of(HEAP_MAX_SIZE) && mapping.len() <= HEAP_MAX_SIZE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::heap_walk::{Kept, Piece};
    use crate::memory::python_child::Target;
    use crate::memory::residency;

    const MEBIBYTE: u64 = 1 << 20;

    static NONE: std::sync::LazyLock<Allocators> = std::sync::LazyLock::new(Allocators::default);

    fn mapping(start: u64, length: u64, rss: u64, name: &str) -> Mapping {
        let permissions = if name.starts_with("/bin") { "r-xp" } else { "rw-p" };
        let made_up = Mapping::made_up(AddressRange::sized(start, length).unwrap(), permissions, name);
        Mapping { rss: Some(Bytes(rss)), ..made_up }
    }

    fn split_of(mappings: &[Mapping], tracked: &[Tracked], stack_pointers: &[Address], native: u64) -> Split {
        let runtimes = Runtimes::of(mappings);
        let rss = Bytes(mappings.iter().filter_map(|mapping| mapping.rss).map(|size| size.0).sum());
        let contents = &Contents::default();
        let native = Bytes(native);
        let evidence = Evidence {
            mappings,
            rss,
            runtimes: &runtimes,
            tracked,
            stack_pointers,
            contents,
            allocators: &NONE,
            native,
        };
        assert_eq!(division(&evidence), Division::Estimated);
        split(&evidence, Division::Estimated)
    }

    #[test]
    fn every_mapping_finds_its_part() {
        let mappings = [
            mapping(0x40_0000, 4096, 1, "/bin/node"),
            mapping(0x40_1000, 4096, 2, ""), // .bss
            mapping(0x50_0000, 4096, 4, "[heap]"),
            mapping(0x1059_3790_0000, 4096, 8, ""),
            mapping(0x7f00_0000_0000, MEBIBYTE, 16, ""), // an arena
            mapping(0x7f10_0000_5000, 4096, 32, ""),
            mapping(0x7f10_0001_0000, 4096, 64, ""), // a thread's stack
            mapping(0x7fff_0000_0000, 4096, 128, "[stack]"),
        ];
        let split = split_of(&mappings, &[], &[Address(0x7f10_0001_0800)], 5);
        let expected = [
            (Part::Native, 5),
            (Part::Mapping, 32),
            (Part::Managed, 8),
            (Part::Allocator, 4 + 16 - 5),
            (Part::File, 1 + 2),
            (Part::Stack, 64 + 128),
            (Part::Unexplained, 0),
        ];
        assert_eq!(split, Split::from(expected));
    }

    #[test]
    fn a_range_contains_what_is_between_its_ends() {
        let range = AddressRange { start: Address(10), end: Address(20) };
        let contains = |addresses: &[u64]| {
            contains_one_of(range, &addresses.iter().copied().map(Address).collect::<Vec<_>>())
        };
        assert!(contains(&[10]) && contains(&[1, 19, 30]) && contains(&[12, 13]));
        assert!(!contains(&[]) && !contains(&[9, 20]) && !contains(&[20]) && !contains(&[1, 9]));
    }

    #[test]
    fn what_the_window_saw_is_known_better_than_by_place() {
        let mappings = [mapping(0x7f10_0000_0000, 8 * MEBIBYTE, 6 * MEBIBYTE, "")];
        let tracked = |offset, part, resident| Tracked {
            range: AddressRange::sized(0x7f10_0000_0000 + offset, 2 * MEBIBYTE).unwrap(),
            part,
            resident: Bytes(resident),
            allocator: None,
        };
        let split = split_of(
            &mappings,
            &[
                tracked(0, Part::Mapping, MEBIBYTE),
                tracked(2 * MEBIBYTE, Part::Managed, 2 * MEBIBYTE),
                tracked(4 * MEBIBYTE, Part::Allocator, 2 * MEBIBYTE),
            ],
            &[],
            MEBIBYTE,
        );
        assert_eq!(split[&Part::Mapping], MEBIBYTE as i64);
        assert_eq!(split[&Part::Managed], 2 * MEBIBYTE as i64);
        // What is left of the mapping looks like an arena, too.
        assert_eq!((split[&Part::Native], split[&Part::Allocator]), (MEBIBYTE as i64, 2 * MEBIBYTE as i64));
    }

    #[test]
    fn blocks_that_were_never_written_are_not_resident() {
        let split = split_of(&[mapping(0x50_0000, MEBIBYTE, 4096, "[heap]")], &[], &[], 1 << 30);
        assert_eq!((split[&Part::Native], split[&Part::Allocator]), (4096, 0));
    }

    #[test]
    fn where_allocators_have_nothing_yet_nothing_is_estimated() {
        let division_of = |mappings: &[Mapping]| {
            division(&Evidence {
                mappings,
                rss: Bytes(4096),
                runtimes: &Runtimes::default(),
                tracked: &[],
                stack_pointers: &[],
                contents: &Contents::default(),
                allocators: &NONE,
                native: Bytes(0),
            })
        };
        let program = mapping(0x40_0000, 4096, 4096, "/bin/program");
        assert_eq!(division_of(std::slice::from_ref(&program)), Division::Measured);
        let heap = mapping(0x50_0000, 4096, 4096, "[heap]");
        assert_eq!(division_of(&[program, heap]), Division::Estimated);
    }

    #[test]
    fn what_no_mapping_shows_is_unexplained() {
        let runtimes = Runtimes::default();
        let mappings = [mapping(0x50_0000, 4096, 4096, "[heap]")];
        let evidence = Evidence {
            mappings: &mappings,
            rss: Bytes(5000),
            runtimes: &runtimes,
            tracked: &[],
            stack_pointers: &[],
            contents: &Contents::default(),
            allocators: &NONE,
            native: Bytes(0),
        };
        let unexplained = |evidence: &Evidence| split(evidence, Division::Estimated)[&Part::Unexplained];
        assert_eq!(unexplained(&evidence), 904);
        assert_eq!(unexplained(&Evidence { rss: Bytes(4000), ..evidence }), -96);
    }

    #[test]
    fn a_comparison_has_every_part() {
        let parts = compare(
            &Split::from([(Part::File, 3)]),
            &Split::from([(Part::File, 5), (Part::Native, 1)]),
            Division::Estimated,
            None,
            &[],
        );
        let sizes: Vec<_> =
            parts.iter().map(|part| (part.part, part.before_bytes, part.after_bytes)).collect();
        assert!(sizes.contains(&(Part::File, 3, 5)) && sizes.contains(&(Part::Native, 0, 1)));
        assert_eq!(sizes.len(), 7);
    }

    #[test]
    fn what_is_free_in_arenas_is_kept_and_the_rest_of_them_is_held() {
        let mappings = [
            mapping(0x50_0000, MEBIBYTE, 1000, "[heap]"),
            mapping(0x7f10_0000_5000, MEBIBYTE, 600, ""),
            mapping(0x7f20_0000_5000, MEBIBYTE, 80, ""),
        ];
        let piece = |start, part, resident| Piece {
            range: AddressRange::sized(start, 4096).unwrap(),
            part,
            resident: Bytes(resident),
        };
        // A block from before the window, and one that the window saw growing.
        let pieces = vec![
            piece(0x7f10_0000_5000, Part::Allocator, 200),
            piece(0x7f10_0000_8000, Part::Managed, 100),
            piece(0x7f20_0000_6000, Part::Allocator, 80),
        ];
        let kept = Some(Kept { bytes: Bytes(300), trimmable: Bytes(0), heaps: vec![mappings[0].range()] });
        let contents = Contents { pieces, kept };
        let grown = AddressRange::sized(0x7f20_0000_6800, 2048).unwrap();
        let of_allocator = |range, resident| Tracked {
            range,
            part: Part::Allocator,
            resident: Bytes(resident),
            allocator: None,
        };
        let tracked = of_allocator(grown, 50);
        let evidence = Evidence {
            mappings: &mappings,
            rss: Bytes(1680),
            runtimes: &Runtimes::default(),
            tracked: &[tracked],
            stack_pointers: &[],
            contents: &contents,
            allocators: &NONE,
            native: Bytes(10),
        };
        assert_eq!(division(&evidence), Division::Measured);
        let split = split(&evidence, Division::Measured);
        assert_eq!(split[&Part::Allocator], 300);
        assert_eq!(split[&Part::Native], 700 + 200 + 80);
        assert_eq!((split[&Part::Managed], split[&Part::Mapping]), (100, 300));

        // Of another allocator.
        let elsewhere = AddressRange::sized(0x7f10_0000_a000, MEBIBYTE / 2).unwrap();
        let foreign = of_allocator(elsewhere, 300);
        let evidence = Evidence { tracked: &[tracked, foreign], ..evidence };
        assert_eq!(division(&evidence), Division::Estimated);
    }

    proptest! {
        #[test]
        fn the_parts_add_up(
            sizes in prop::collection::vec((1..20_u64, 0..20_u64, 0..4_usize), 0..20),
            tracked in prop::collection::vec((0..200_u64, 1..30_u64, 0..40_u64, 0..4_usize), 0..10),
            pieces in prop::collection::vec((0..200_u64, 1..30_u64, 0..40_u64, any::<bool>()), 0..10),
            kept in prop::option::of(any::<u64>()), native in any::<u64>(), rss in 0..1_u64 << 62,
        ) {
            let mut start = 0;
            let mappings: Vec<Mapping> = sizes.iter().map(|&(pages, resident, name)| {
                start += pages * 4096;
                let name = ["", "[heap]", "/bin/node", "[stack]"][name];
                mapping(start - pages * 4096, pages * 4096, resident.min(pages) * 4096, name)
            }).collect();
            let tracked: Vec<Tracked> = tracked.iter().map(|&(page, pages, resident, kind)| Tracked {
                range: AddressRange::sized(page * 4096, pages * 4096).unwrap(),
                part: [Part::Mapping, Part::Allocator, Part::Managed, Part::File][kind],
                resident: Bytes(resident * 4096),
                allocator: None,
            }).collect();
            let runtimes = Runtimes::of(&mappings);
            let pieces = pieces.iter().map(|&(page, pages, resident, is_managed)| Piece {
                range: AddressRange::sized(page * 4096, pages * 4096).unwrap(),
                part: if is_managed { Part::Managed } else { Part::Allocator },
                resident: Bytes(resident * 4096),
            });
            let kept = kept.map(|bytes| Kept { bytes: Bytes(bytes), trimmable: Bytes(0), heaps: Vec::new() });
            let evidence = Evidence {
                mappings: &mappings,
                rss: Bytes(rss),
                runtimes: &runtimes,
                tracked: &tracked,
                stack_pointers: &[],
                contents: &Contents { pieces: pieces.collect(), kept },
                allocators: &NONE,
                native: Bytes(native),
            };
            for division in [Division::Estimated, Division::Measured] {
                let split = split(&evidence, division);
                prop_assert_eq!(split.values().sum::<i64>(), rss as i64);
                prop_assert!(split.iter().all(|(&part, &bytes)| part == Part::Unexplained || bytes >= 0));
                let seen: u64 = mappings.iter().filter_map(|mapping| mapping.rss).map(|size| size.0).sum();
                prop_assert_eq!(split[&Part::Unexplained], rss as i64 - seen as i64);
            }
        }
    }

    #[test]
    fn a_real_process_is_explained() {
        let mut target = Target::start();
        let observe = |target: &Target, tracked: &[Tracked], native: u64| {
            let mappings = residency::mappings(target.pid()).unwrap();
            let rss = residency::rss(target.pid()).unwrap();
            let runtimes = Runtimes::of(&mappings);
            let contents = &Contents::default();
            let evidence = Evidence {
                mappings: &mappings,
                rss,
                runtimes: &runtimes,
                tracked,
                stack_pointers: &[],
                contents,
                allocators: &NONE,
                native: Bytes(native),
            };
            split(&evidence, Division::Estimated)
        };
        target.run("libc.malloc.restype = ctypes.c_void_p");
        let before = observe(&target, &[], 0);
        // 8 MiB of small blocks in the heap, and 16 MiB mapped.
        target.run(
            "for _ in range(8192): ctypes.memset(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(1000))), 1, 1000)",
        );
        let at = target.run("answer = mmap(16 << 20); write(answer, 4096)").try_into().unwrap();
        let range = AddressRange::sized(at, 16 * MEBIBYTE).unwrap();
        let resident = residency::resident_bytes(target.pid(), &[range]).unwrap()[0].unwrap();
        let tracked = [Tracked { range, part: Part::Mapping, resident, allocator: None }];
        let after = observe(&target, &tracked, 8192 * 1000);

        let grown = |part| after[&part] - before[&part];
        assert_eq!(grown(Part::Mapping), 16 * MEBIBYTE as i64);
        assert_eq!(grown(Part::Native), 8192 * 1000);
        // 8 bytes of header a block, and what python took besides.
        assert!((0..2 * MEBIBYTE as i64).contains(&grown(Part::Allocator)), "{before:?} {after:?}");
        assert!(grown(Part::Unexplained).unsigned_abs() < MEBIBYTE, "{before:?} {after:?}");
    }
}
