//! On a real process, and on memory full of nonsense.

use std::cell::Cell;

use proptest::prelude::*;

use super::super::python_child::Target;
use super::*;
use crate::target::Backing;

impl Contents {
    fn of_target(target: &Target) -> Self {
        let mappings = residency::mappings(target.pid()).unwrap();
        let unclear = mappings.iter().filter(|mapping| {
            mapping.name.is_empty() && mapping.backing() == Backing::Anonymous && mapping.rss > Some(Bytes(0))
        });
        let unclear: Vec<_> = unclear.map(Mapping::range).collect();
        Self::of(target.pid(), &mappings, &unclear, true).unwrap()
    }
}

/// Memory of words at some places, and how often it is read.
#[derive(Debug, Default)]
struct Words {
    places: Vec<(u64, Vec<u64>)>,
    reads: Cell<usize>,
}

impl Words {
    fn new(at: u64, words: &[u64]) -> Self {
        Self::default().and(at, words)
    }

    fn and(mut self, at: u64, words: &[u64]) -> Self {
        self.places.push((at, words.to_vec()));
        self
    }
}

impl ReadMemory for Words {
    fn read(&self, Address(at): Address, buffer: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        let wanted = buffer.as_chunks_mut().0;
        let found = self.places.iter().find_map(|(start, words)| {
            let first = usize::try_from(at.checked_sub(*start)? / 8).ok()?;
            words.get(first..first.checked_add(wanted.len())?)
        });
        found.into_iter().for_each(|words| {
            wanted.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        });
        found.is_some()
    }
}

fn range(start: u64, length: u64) -> AddressRange {
    AddressRange::sized(start, length).unwrap()
}

#[test]
fn a_block_with_a_mapping_of_its_own_has_a_header() {
    let block =
        |words: &[u64], end| glibc::mapped_block(&Words::new(0x7000, words), Address(0x7000), Address(end));
    assert_eq!(block(&[0, 0x21002], 0x2_8000), Some(0x21000));
    assert_eq!(block(&[0, 0x21002], 0x2_7000), None, "longer than its mapping");
    assert_eq!(block(&[0, 0x21003], 0x2_8000), None, "in an arena");
    assert_eq!(block(&[1, 0x21002], 0x2_8000), None);
    assert_eq!(block(&[0, 0x20ff2], 0x2_8000), Some(0x21000), "of glibc 2.43, which leaves its header out");
    assert_eq!(block(&[0, 0x21012], 0x2_8000), None, "no pages");
    assert_eq!(block(&[0, !5], 0x2_8000), None);
    assert_eq!(block(&[0], 0x2_8000), None, "cannot be read");
}

#[test]
fn memory_that_can_hold_nothing_is_not_read() {
    let words = Words::new(0x7f00_0000_0000, &[0; 8]);
    let small: Vec<_> = (0..100).map(|index| range(0x7f00_0000_0000 + index * 0x2_0000, 0x8000)).collect();
    assert_eq!(pieces(&words, &small, &small, false), []);
    assert_eq!(words.reads.get(), 0);
    let large = range(0x7f00_0000_0000, 0x1_2000);
    assert_eq!(pieces(&words, &[large], &[large], false), []);
    assert_eq!(words.reads.get(), 3, "once for each page that a block can begin at");
}

#[test]
fn a_pool_of_python_has_a_header() {
    // 3 blocks of 48 bytes are given out of a pool of 16 KiB, the fourth is free.
    let (at, class) = (0x7f00_0000_4000, 2);
    let header =
        [3, at + 48 + 3 * 48, at + 0x4000, at - 0x4000, 7 | class << 32, (48 + 4 * 48) | (0x4000 - 48) << 32];
    assert_eq!(cpython::pool(&Words::new(at, &header), Address(at)), Some(0x4000));
    let without = |index: usize| {
        let mut header = header;
        header[index] = 1 << 40 | 0x1234_5678;
        cpython::pool(&Words::new(at, &header), Address(at))
    };
    assert_eq!([0, 1, 4, 5].map(without), [None; 4]);
    assert_eq!(cpython::pool(&Words::new(at + 16, &header), Address(at + 16)), None);
}

#[test]
fn pieces_are_found_among_what_is_in_memory() {
    let block = [0, 0x20002];
    let memory =
        Words::new(0x10_0000, &block).and(0x12_0000, &block).and(0x18_0000, &[5, 5]).and(0x19_0000, &block);
    let mappings = [range(0x10_0000, 0x8_0000), range(0x18_0000, 0x10_0000)];
    // The inside of the second block was never touched; the third page of the mapping is somebody's.
    let present = [range(0x10_0000, 0x1000), range(0x12_0000, 0x1000), range(0x18_0000, 0x8_0000)];
    let found = pieces(&memory, &present, &mappings, false);
    assert_eq!(
        found,
        [(range(0x10_0000, 0x4_0000), Part::Allocator), (range(0x19_0000, 0x2_0000), Part::Allocator)]
    );
}

/// What `mallinfo2` says is free.
const FREE: &str = "
class Info(ctypes.Structure): _fields_ = [(name, ctypes.c_size_t) for name in 'abcdefghij']
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def free(): return libc.mallinfo2().i
def fragment(count, size):
    blocks = [libc.malloc(ctypes.c_size_t(size)) for _ in range(count)]
    for block in blocks: ctypes.memset(block, 1, size)
    for block in blocks[::2]: libc.free(block)
";

#[test]
fn what_glibc_keeps_is_what_it_says() {
    let mut target = Target::start();
    target.run(&format!("exec({FREE:?})"));
    // Lists of small chunks, fast ones, and large ones; those of a thread, too.
    target.run("for size in (24, 100, 500, 4080, 30000): fragment(1000, size)");
    target.run(
        "import threading; t = threading.Thread(target=fragment, args=(2000, 3000)); t.start(); t.join()",
    );
    let said = target.run("answer = free()") as f64;
    let contents = Contents::of_target(&target);
    let kept = contents.kept.expect("they are found");
    // The top of a heap is free, and was never touched; what threads keep for themselves is not free in its eyes.
    assert!((kept.bytes.0 as f64 / said - 1.0).abs() < 0.02, "glibc says {said}, found {kept:?}");
    // The blocks of a thread are in a heap of their own.
    assert!(kept.heaps.len() > 1, "{kept:?}");

    let trimmed = target.run("libc.malloc_trim(0); answer = free()") as u64;
    let contents = Contents::of_target(&target);
    let Bytes(kept) = contents.kept.expect("they are found").bytes;
    // What was given back is not kept: the insides of 500 chunks of 30,000 bytes.
    assert!(kept + 500 * 20_000 < trimmed, "glibc says {trimmed}, found {kept}");
}

#[test]
fn large_blocks_and_arenas_of_python_are_told() {
    let mut target = Target::start();
    target.run(&format!("exec({FREE:?})"));
    let before = Contents::of_target(&target);
    target.run("for _ in range(5): ctypes.memset(libc.malloc(ctypes.c_size_t(300000)), 1, 300000)");
    target.run("kept = [(number, str(number)) for number in range(100000)]");
    let after = Contents::of_target(&target);
    let grown = |part| {
        let sum = |contents: &Contents| {
            contents
                .pieces
                .iter()
                .filter(|piece| piece.part == part)
                .map(|piece| piece.resident.0)
                .sum::<u64>()
        };
        sum(&after) - sum(&before)
    };
    // Those from before are Python's own, and one gets another page now and then: its tree of arenas, in which 512 MiB of addresses have
    // a page (`arena_map_bot_t` of `Objects/obmalloc.c`), wherever the new arenas begin.
    let older: Vec<_> = before.pieces.iter().filter(|piece| piece.part == Part::Allocator).collect();
    let ranges: Vec<_> = older.iter().map(|piece| piece.range).collect();
    let now = residency::resident_bytes(target.pid(), &ranges).unwrap();
    let touched = now.iter().flatten().map(|bytes| bytes.0).sum::<u64>()
        - older.iter().map(|piece| piece.resident.0).sum::<u64>();
    // The list of objects is such a block, too: 800,984 bytes.
    let blocks = 5 * 303_104 + 802_816;
    assert_eq!(grown(Part::Allocator) - touched, blocks, "{touched}");
    // A tuple of two (56 + 16 of the collector), a number (28) and a text of 5 or 6 characters (54).
    let objects = 100_000 * (64 + 32 + 64);
    assert!((objects..objects * 11 / 10).contains(&grown(Part::Managed)), "{}", grown(Part::Managed));
}

/// The words of an arena at an address, with all lists empty, whose `top` is at an index.
fn arena(at: u64, index: usize, top: u64) -> Vec<u64> {
    let mut words = vec![0; index + 263];
    words[index] = top;
    for list in 0..127 {
        let links = index + 2 + 2 * list;
        words[links..links + 2].fill(at + 8 * links as u64 - 16);
    }
    words[index + 258] = at;
    words[index + 261] = 0x4000;
    words
}

/// A process with an arena whose `top` is at an index, and a heap: a free block, the record of a thread, and the top.
fn heap_of_glibc(index: usize, record: &[u64]) -> (Words, Vec<Mapping>) {
    let (data, heap, top) = (0x70_0000, 0x10_0000, 0x10_2000);
    let mut blocks = vec![0; 0x800];
    blocks[0x20 / 8 + 1] = 0x111;
    blocks[0x130 / 8..][..record.len()].copy_from_slice(record);
    blocks[0x2000 / 8 + 1] = 0x1001;
    let mut memory = vec![0; 0x40];
    memory.extend(arena(data + 0x200, index, top));
    memory.resize(0x200, 0);
    // The list of what was freed last.
    let head = data + 0x200 + 8 * (index as u64 + 2) - 16;
    memory[0x40 + index + 2..][..2].fill(heap + 0x20);
    blocks[0x20 / 8 + 2..][..2].fill(head);
    let mapping = |start, name| {
        let range = range(start, if start == heap { 0x4000 } else { 0x1000 });
        Mapping { rss: Some(Bytes(0x1000)), ..Mapping::made_up(range, "rw-p", name) }
    };
    let mappings = vec![mapping(data, "/lib/libc.so.6"), mapping(heap, "[heap]")];
    (Words::new(data, &memory).and(heap, &blocks), mappings)
}

/// The record of a thread that keeps 3 blocks of 32 bytes, and one of 64.
fn record_of_thread(chunk: u64, lists: usize, empty: u64) -> Vec<u64> {
    let mut record = vec![0, chunk | 1];
    record.extend(vec![empty * 0x0001_0001_0001_0001; lists / 4]);
    record[2] = empty.abs_diff(3) | empty << 16 | empty.abs_diff(1) << 32 | empty << 48;
    record.extend(vec![0; lists]);
    let first = 2 + lists / 4;
    (record[first], record[first + 2]) = (0x10_1010, 0x10_1040);
    record
}

#[test]
fn each_layout_of_glibc_is_known_and_no_other() {
    let old = record_of_thread(0x290, 64, 0);
    let new = record_of_thread(0x300, 76, 16);
    let free = |index, record: &[u64]| {
        let (memory, vmas) = heap_of_glibc(index, record);
        let free = Arenas::find(&memory, &vmas)?.free(&memory)?;
        Some(free.resident(|pages| Ok(vec![Some(Bytes(0)); pages.len()])).unwrap().unwrap().bytes)
    };
    // The free block, what of the top is not whole pages, and what the thread keeps.
    let (block_and_top, kept) = (0x110 + 0x1000, 3 * 32 + 64);
    assert_eq!(free(12, &[]), Some(Bytes(block_and_top)));
    assert_eq!(free(12, &old), Some(Bytes(block_and_top + kept)), "2.30 to 2.41");
    assert_eq!(free(12, &new), Some(Bytes(block_and_top + kept)), "2.42");
    assert_eq!(free(1, &new), Some(Bytes(block_and_top + kept)), "2.43");
    for unknown in [2, 3, 5, 11, 13] {
        assert_eq!(free(unknown, &new), None, "{unknown}");
    }
}

#[test]
fn what_is_no_record_of_a_thread_is_not_counted() {
    let free = |record: &[u64]| {
        let (memory, vmas) = heap_of_glibc(1, record);
        Arenas::find(&memory, &vmas).unwrap().free(&memory).unwrap()
    };
    let good = record_of_thread(0x300, 76, 16);
    let nothing = format!("{:?}", free(&[]));
    let is_counted = |record: &[u64]| {
        let free = format!("{:?}", free(record));
        free != nothing
    };
    assert!(is_counted(&good));
    // A list without its count, a count without its list, one that leads nowhere, and another size.
    for (index, word) in [(2 + 19 + 7, 0x10_1080), (2 + 19, 0), (2 + 19, 0x99_0000), (1, 0x311)] {
        let mut bad = good.clone();
        bad[index] = word;
        assert!(!is_counted(&bad), "{index}");
    }
}

/// The data of the C library and the first heap, both in this memory.
fn libc_and_heap(range: AddressRange) -> [Mapping; 2] {
    ["/lib/libc.so.6", "[heap]"].map(|name| {
        let rss = Some(Bytes(range.bytes()));
        Mapping { rss, ..Mapping::made_up(range, "rw-p", name) }
    })
}

/// Words that look like something now and then.
fn nonsense() -> impl Strategy<Value = Vec<u64>> {
    let address = (0..0x800_u64).prop_map(|word| 0x10_0000 + word * 8);
    let word = prop_oneof![Just(0), address.clone(), address, 0..0x1000_u64, any::<u64>(), Just(0x20002)];
    prop::collection::vec(word, 0x800)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nonsense_is_survived(words in nonsense()) {
        let memory = Words::new(0x10_0000, &words);
        let mapping = range(0x10_0000, 0x4000);
        let mappings = libc_and_heap(mapping);
        let found = pieces(&memory, &[mapping], &[mapping], true);
        prop_assert!(found.iter().all(|(piece, _)| piece.start >= mapping.start && piece.end <= mapping.end));
        if let Some(arenas) = Arenas::find(&memory, &mappings) {
            let _ = arenas.free(&memory);
        }
        prop_assert!(memory.reads.get() < 1 << 20);
    }

    #[test]
    fn a_list_that_is_nonsense_ends(mut words in nonsense()) {
        // An arena whose lists begin anywhere.
        let at = 0x10_0000;
        words[12] = at + 0x3000;
        words[270] = at;
        words[0x601] = 0x1000;
        words[273] = 0x4000;
        for list in 0..127 {
            let head = at + 8 * (14 + 2 * list as u64) - 16;
            if list % 3 == 0 || words[14 + 2 * list] == 0 || words[15 + 2 * list] == 0 {
                (words[14 + 2 * list], words[15 + 2 * list]) = (head, head);
            }
            for word in &mut words[14 + 2 * list..16 + 2 * list] {
                *word &= !7;
                if *word == 0 { *word = head }
            }
        }
        let memory = Words::new(at, &words);
        let arenas = Arenas::find(&memory, &libc_and_heap(range(at, 0x4000))).expect("it looks like one");
        let _ = arenas.free(&memory);
        prop_assert!(memory.reads.get() < 1 << 20);
    }
}
