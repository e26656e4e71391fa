//! What glibc's malloc keeps free: `malloc/malloc.c` and `malloc/arena.c` of glibc 2.27 to 2.43.
//!
//! Distributions strip the names of glibc's own variables, so the first arena, `main_arena`, is found by what is in it:
//! 127 lists of free chunks, the empty ones of which point to themselves, and a link to the other arenas, which leads back
//! to where the arena begins. Only one layout makes it do that: of a version that has another one, nothing is said.
//! Free chunks are counted list by list. A list that changes while it is walked shows that by links that do not fit.

use super::ReadMemory;
use crate::memory::residency::ResidencyError;
use crate::model::{Address, AddressRange, Bytes, PAGE_BYTES};
use crate::target::{Backing, Mapping};

/// `struct malloc_state` from `top` on, in words of 8 bytes. All versions have that part alike.
mod state {
    pub const TOP: usize = 0;
    /// Behind `last_remainder`.
    pub const LISTS: usize = 2;
    /// `NBINS - 1`: each has two words.
    pub const LIST_COUNT: usize = 127;
    /// Behind `binmap`.
    pub const NEXT: usize = 258;
    /// Behind `next_free` and `attached_threads`.
    pub const SYSTEM_BYTES: usize = 261;
    pub const WORDS: usize = 263;
}

/// What versions have before it, in words of 8 bytes.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Where `top` is.
    top: usize,
    /// Where `fastbinsY` is.
    fast_lists: usize,
    /// `NFASTBINS`.
    fast_list_count: usize,
}

const LAYOUTS: [Layout; 2] = [
    // 2.27 to 2.42: mutex, flags, `have_fastchunks`, `fastbinsY`.
    Layout { top: 12, fast_lists: 2, fast_list_count: 10 },
    // From 2.43 on: mutex and flags.
    Layout { top: 1, fast_lists: 1, fast_list_count: 0 },
];

/// `struct tcache_perthread_struct`: a count of 16 bits for each list, and then the lists.
#[derive(Clone, Copy, Debug)]
struct TcacheLayout {
    chunk: u64,
    lists: usize,
    /// Whether the counts are of blocks that would still fit.
    counts_down: bool,
}

const TCACHE_LAYOUTS: [TcacheLayout; 2] = [
    // 2.30 to 2.41. Before, counts were bytes.
    TcacheLayout { chunk: 0x290, lists: 64, counts_down: false },
    // From 2.42 on. The last lists are of larger blocks, which are kept only where a tunable says so.
    TcacheLayout { chunk: 0x300, lists: 76, counts_down: true },
];

/// Its lists of blocks of one size.
const TCACHE_SMALL_LISTS: usize = 64;

/// How far into a heap records of threads are looked for. A thread makes its own when it first allocates or, from 2.42 on,
/// first frees.
const TCACHE_WITHIN: u64 = 256 << 10;

/// Where in a chunk its size is; the lower three bits are flags.
const SIZE: u64 = 8;
/// Where in a free chunk the link to the next one is; the one to the previous follows.
const LINKS: u64 = 16;
/// What a free chunk's own fields take (`struct malloc_chunk`).
const CHUNK_HEADER: u64 = 48;
const SMALLEST_CHUNK: u64 = 32;
const FLAGS: u64 = 7;
const IS_MMAPPED: u64 = 2;

/// `HEAP_MAX_SIZE`: what arenas other than the first consist of, aligned to its size.
const HEAP_BYTES: u64 = 64 << 20;

/// Of a process, in chunks; walking as many takes a quarter of a second.
const MOST_CHUNKS: usize = 1 << 18;

/// Of a process.
const MOST_ARENAS: usize = 1 << 12;

/// Blocks from this size on are looked for among mappings. `malloc` maps those of 128 KiB and more, unless told otherwise.
const SMALLEST_MAPPED: u64 = 64 << 10;

/// Whether a block of `malloc` with a mapping of its own has room in a range.
pub(super) const fn can_hold_block(range: AddressRange) -> bool {
    range.bytes() >= SMALLEST_MAPPED
}

/// The length of the block of `malloc` that begins at an address with a mapping of its own, if one does. Its size is that
/// of the mapping, and from 2.43 on without the header.
pub(super) fn mapped_block(memory: &impl ReadMemory, at: Address, end: Address) -> Option<u64> {
    const HEADER: u64 = 16;

    if !can_hold_block(AddressRange { start: at, end }) {
        return None;
    }
    let [before, size] = memory.words(at)?;
    let chunk = size & !FLAGS;
    let length = if chunk.is_multiple_of(PAGE_BYTES) { chunk } else { chunk.saturating_add(HEADER) };
    let is_one = before == 0
        && size & FLAGS == IS_MMAPPED
        && length.is_multiple_of(PAGE_BYTES)
        && (SMALLEST_MAPPED..=end.0 - at.0).contains(&length);
    is_one.then_some(length)
}

/// An arena, as it was when it was read.
#[derive(Debug)]
struct Arena {
    at: Address,
    layout: Layout,
    /// From `top` on.
    words: [u64; state::WORDS],
}

impl Arena {
    fn read(memory: &impl ReadMemory, at: Address, layout: Layout) -> Option<Self> {
        let words = memory.words(Address(at.0.checked_add(8 * layout.top as u64)?))?;
        let arena = Self { at, layout, words };
        let top = arena.words[state::TOP];
        (top != 0 && top.is_multiple_of(SIZE)).then_some(arena)
    }

    const fn next(&self) -> Address {
        Address(self.words[state::NEXT])
    }

    /// Where the word with an index in `words` is.
    const fn word_at(&self, index: usize) -> Address {
        Address(self.at.0 + 8 * (self.layout.top + index) as u64)
    }
}

/// The arenas of a process.
#[derive(Debug)]
pub(super) struct Arenas {
    arenas: Vec<Arena>,
    /// The `brk` heap and the heaps of threads.
    heaps: Vec<AddressRange>,
    /// The parts of these where records of threads may be.
    beginnings: Vec<AddressRange>,
}

impl Arenas {
    /// Where they are.
    pub fn heaps(&self) -> &[AddressRange] {
        &self.heaps
    }

    /// Finds them.
    pub fn find(memory: &impl ReadMemory, mappings: &[Mapping]) -> Option<Self> {
        let first = mappings.iter().filter(|mapping| may_have_main_arena(mapping, mappings));
        first.flat_map(|mapping| tails_of_main_arena(memory, mapping)).find_map(|tail| {
            LAYOUTS.iter().find_map(|layout| {
                let at = Address(tail.0.checked_sub(8 * layout.top as u64)?);
                Self::linked(memory, Arena::read(memory, at, *layout)?, mappings)
            })
        })
    }

    /// Follows the ring of arenas.
    fn linked(memory: &impl ReadMemory, main: Arena, mappings: &[Mapping]) -> Option<Self> {
        let (first, layout) = (main.at, main.layout);
        let mut found = Self { arenas: Vec::new(), heaps: Vec::new(), beginnings: Vec::new() };
        let top = Address(main.words[state::TOP]);
        // The kernel may show it as several mappings.
        let heap =
            || mappings.iter().filter(|mapping| mapping.name == "[heap]").map(|mapping| mapping.range());
        let heap = AddressRange { start: heap().next()?.start, end: heap().next_back()?.end };
        if !(heap.start..heap.end).contains(&top) {
            return None;
        }
        found.heaps.push(heap);
        found.beginnings.push(beginning(heap.start, top, heap.end));
        let mut next = main.next();
        found.arenas.push(main);
        while next != first {
            if found.arenas.len() > MOST_ARENAS {
                return None;
            }
            let arena = Arena::read(memory, next, layout)?;
            found.add_heaps(memory, &arena)?;
            next = arena.next();
            found.arenas.push(arena);
        }
        Some(found)
    }

    /// The heaps of an arena, from that with its top on: each begins with the arena's address and that of the previous one
    /// (`struct heap_info`).
    fn add_heaps(&mut self, memory: &impl ReadMemory, arena: &Arena) -> Option<()> {
        let mut heap = arena.words[state::TOP] & !(HEAP_BYTES - 1);
        for _ in 0..MOST_ARENAS {
            let [of, previous] = memory.words(Address(heap))?;
            if of != arena.at.0 {
                return None;
            }
            let range = AddressRange::sized(heap, HEAP_BYTES)?;
            self.heaps.push(range);
            if previous == 0 {
                // The arena itself is in its first heap, and the first block behind it.
                let first = Address(arena.word_at(state::WORDS).0.next_multiple_of(16));
                self.beginnings.push(beginning(first, Address(arena.words[state::TOP]), range.end));
                return (heap == arena.at.0 & !(HEAP_BYTES - 1)).then_some(());
            }
            heap = previous;
        }
        None
    }

    /// Counts what is free in them; `None` if that is too much to count, or changes too fast.
    pub fn free(self, memory: &impl ReadMemory) -> Option<Free> {
        let mut free = Free { heaps: self.heaps, ..Free::default() };
        for (arena, is_main) in self.arenas.iter().zip(std::iter::once(true).chain(std::iter::repeat(false)))
        {
            let top = arena.words[state::TOP];
            let [size] = memory.words(Address(top + SIZE))?;
            if size & !FLAGS > arena.words[state::SYSTEM_BYTES] {
                return None;
            }
            free.add_top(top, size & !FLAGS, is_main);
            for list in 0..state::LIST_COUNT {
                free.add_list(memory, arena, list)?;
            }
            for list in 0..arena.layout.fast_list_count {
                free.add_fast_list(memory, arena, list)?;
            }
        }
        for beginning in self.beginnings {
            free.add_tcaches(memory, beginning);
        }
        Some(free)
    }
}

/// Where the first blocks of a heap are. What is behind `top` was never touched.
fn beginning(first: Address, top: Address, end: Address) -> AddressRange {
    let used = if (first..end).contains(&top) { top } else { end };
    AddressRange { start: first, end: used.min(Address(first.0.saturating_add(TCACHE_WITHIN))) }
}

/// Whether a mapping is the data of the C library, or of the program, which may contain it.
fn may_have_main_arena(mapping: &Mapping, mappings: &[Mapping]) -> bool {
    const MOST_DATA: u64 = 4 << 20;

    let is_libc =
        mapping.file_name().is_some_and(|file| file.starts_with("libc.so") || file.starts_with("libc-"));
    let is_program = mappings.first().is_some_and(|first| first.name == mapping.name);
    mapping.backing() == Backing::File
        && !mapping.permissions.execute
        && mapping.rss > Some(Bytes(0))
        && mapping.len() <= MOST_DATA
        && (is_libc || is_program)
}

/// Where `top` of `main_arena` may be in a mapping. What is before and behind the lists can look like more of them.
fn tails_of_main_arena(memory: &impl ReadMemory, mapping: &Mapping) -> Vec<Address> {
    let words = words_of(memory, mapping.range()).unwrap_or_default();
    let places = words.windows(state::WORDS).zip((mapping.start.0..).step_by(8));
    places.filter(|(words, at)| is_tail_of_main_arena(words, *at)).map(|(_, at)| Address(at)).collect()
}

/// The words of a range of addresses.
fn words_of(memory: &impl ReadMemory, range: AddressRange) -> Option<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(range.bytes()).ok()?];
    let is_read = memory.read(range.start, &mut bytes);
    is_read.then(|| bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

fn is_tail_of_main_arena(words: &[u64], at: u64) -> bool {
    const LEAST_EMPTY: usize = 8;

    let next = words[state::NEXT];
    let links = &words[state::LISTS..state::LISTS + 2 * state::LIST_COUNT];
    // In the order of what rules most out.
    if next == 0
        || !next.is_multiple_of(SIZE)
        || links.iter().any(|link| *link == 0 || !link.is_multiple_of(SIZE))
    {
        return false;
    }
    let head = |list: usize| at + 8 * (state::LISTS + 2 * list) as u64 - LINKS;
    let is_empty = |list: &usize| links[2 * list] == head(*list) && links[2 * list + 1] == head(*list);
    (0..state::LIST_COUNT).filter(is_empty).count() >= LEAST_EMPTY
}

/// What is free in arenas.
#[derive(Debug, Default)]
pub(super) struct Free {
    heaps: Vec<AddressRange>,
    /// Of chunks that share their pages with others.
    bytes: u64,
    /// Whole pages of larger ones, which may have been given back.
    pages: Vec<AddressRange>,
    /// The same behind the last block of arenas other than the first: `malloc_trim` leaves those alone (`mtrim`).
    untrimmed: Vec<AddressRange>,
    looks: usize,
}

impl Free {
    /// Adds a free chunk.
    fn add(&mut self, at: u64, size: u64) {
        let pages = whole_pages(at, size);
        self.bytes += size - pages.bytes();
        if !pages.is_empty() {
            self.pages.push(pages);
        }
    }

    /// Adds what is behind the last block of an arena.
    fn add_top(&mut self, at: u64, size: u64, of_main_arena: bool) {
        if of_main_arena {
            return self.add(at, size);
        }
        let pages = whole_pages(at, size);
        self.bytes += size - pages.bytes();
        if !pages.is_empty() {
            self.untrimmed.push(pages);
        }
    }

    /// Adds the chunks of a list of `bins`; `None` when it changes too fast.
    fn add_list(&mut self, memory: &impl ReadMemory, arena: &Arena, list: usize) -> Option<()> {
        const ATTEMPTS: usize = 4;

        let head = Address(arena.word_at(state::LISTS + 2 * list).0 - LINKS);
        (0..ATTEMPTS).find_map(|_| {
            let (pages, bytes) = (self.pages.len(), self.bytes);
            let walked = self.walk(memory, head);
            if walked.is_none() {
                self.bytes = bytes;
                self.pages.truncate(pages);
            }
            walked
        })
    }

    fn walk(&mut self, memory: &impl ReadMemory, head: Address) -> Option<()> {
        let [first, _] = memory.words(Address(head.0 + LINKS))?;
        let (mut previous, mut at) = (head.0, first);
        while at != head.0 {
            self.look()?;
            let [size, next, back] = memory.words(Address(at.checked_add(SIZE)?))?;
            let size = size & !FLAGS;
            if back != previous || !self.is_chunk(at, size) {
                return None;
            }
            self.add(at, size);
            (previous, at) = (at, next);
        }
        Some(())
    }

    /// Adds the chunks of a list of `fastbinsY`, which are all of one size. From 2.32 on links are obfuscated
    /// (`PROTECT_PTR`), and blocks are aligned to 16 bytes.
    fn add_fast_list(&mut self, memory: &impl ReadMemory, arena: &Arena, list: usize) -> Option<()> {
        let size = SMALLEST_CHUNK + 16 * list as u64;
        let [mut at] = memory.words(Address(arena.at.0 + 8 * (arena.layout.fast_lists + list) as u64))?;
        while at != 0 {
            self.look()?;
            let [found, link] = memory.words(Address(at.checked_add(SIZE)?))?;
            // Another thread has taken it meanwhile: what was counted is as good as any other moment's.
            if found & !FLAGS != size || !self.is_chunk(at, size) {
                break;
            }
            self.add(at, size);
            let clear = ((at + LINKS) >> 12) ^ link;
            at = if clear == 0 || self.is_chunk(clear, size) { clear } else { link };
        }
        Some(())
    }

    /// Adds the blocks that threads keep for themselves (`tcache`). Their records are among the first blocks of heaps.
    fn add_tcaches(&mut self, memory: &impl ReadMemory, beginning: AddressRange) {
        let Some(words) = words_of(memory, beginning) else { return };
        // Chunks are aligned to 16 bytes.
        for (index, size) in words.iter().enumerate().skip(1).step_by(2) {
            let layout = TCACHE_LAYOUTS.iter().find(|layout| layout.chunk == size & !FLAGS);
            let kept = layout.and_then(|layout| self.kept_by_thread(&words[index + 1..], layout));
            self.bytes += kept.unwrap_or(0);
        }
    }

    /// What a thread keeps, if `words` begin with its record. Lists are empty where the count says so, and lead into heaps
    /// elsewhere. Larger blocks are not looked at.
    fn kept_by_thread(&self, words: &[u64], layout: &TcacheLayout) -> Option<u64> {
        const MOST: u64 = 127;

        let counts = words.get(..layout.lists / 4)?;
        let lists = words.get(layout.lists / 4..)?.get(..layout.lists)?;
        let count = |list: usize| counts[list / 4] >> (16 * (list % 4)) & 0xffff;
        // The count of an empty list.
        let empty = if layout.counts_down { (0..layout.lists).map(count).max()? } else { 0 };
        let blocks = |list: usize| count(list).abs_diff(empty);
        let leads_to_one = |list: usize| {
            let at = lists[list];
            at.is_multiple_of(16) && self.is_chunk(at.wrapping_sub(LINKS), SMALLEST_CHUNK)
        };
        let fits = |list: usize| match blocks(list) {
            0 => lists[list] == 0,
            blocks => blocks <= MOST && leads_to_one(list),
        };
        let bytes = |list: usize| blocks(list) * (SMALLEST_CHUNK + 16 * list as u64);
        (0..layout.lists).all(fits).then(|| (0..TCACHE_SMALL_LISTS).map(bytes).sum())
    }

    fn is_chunk(&self, at: u64, size: u64) -> bool {
        let is_in = |heap: &AddressRange| heap.start.0 <= at && at < heap.end.0 && size <= heap.end.0 - at;
        at.is_multiple_of(SIZE) && size >= SMALLEST_CHUNK && self.heaps.iter().any(is_in)
    }

    /// One more chunk is read, if it may be.
    fn look(&mut self) -> Option<()> {
        self.looks += 1;
        (self.looks <= MOST_CHUNKS).then_some(())
    }

    /// How much of it is in memory. `resident` tells that of ranges.
    pub fn resident(
        mut self,
        resident: impl FnOnce(&[AddressRange]) -> Result<Vec<Option<Bytes>>, ResidencyError>,
    ) -> Result<Option<Kept>, ResidencyError> {
        // Lists that changed between them may have had the same chunk twice.
        self.pages.sort_unstable();
        let mut end = Address(0);
        self.pages.retain(|pages| {
            let is_new = pages.start >= end;
            end = end.max(pages.end);
            is_new
        });
        let trimmed = self.pages.len();
        self.pages.append(&mut self.untrimmed);
        let pages: Option<Vec<Bytes>> = resident(&self.pages)?.into_iter().collect();
        let sum = |pages: &[Bytes]| pages.iter().map(|bytes| bytes.0).sum::<u64>();
        Ok(pages.map(|pages| Kept {
            bytes: Bytes(self.bytes + sum(&pages)),
            trimmable: Bytes(sum(&pages[..trimmed])),
            heaps: self.heaps,
        }))
    }
}

/// The pages that a free chunk has for itself.
fn whole_pages(at: u64, size: u64) -> AddressRange {
    AddressRange {
        start: Address(at.saturating_add(CHUNK_HEADER).next_multiple_of(PAGE_BYTES)),
        end: Address(at.saturating_add(size) / PAGE_BYTES * PAGE_BYTES),
    }
}

/// What glibc's malloc keeps free in its arenas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Resident bytes of free chunks.
    pub bytes: Bytes,
    /// Of that, what `malloc_trim(0)` would give back to the kernel: whole pages of chunks in lists, and behind the last block of the
    /// first arena. It may be a little more, since `malloc_trim` first joins neighbours.
    pub trimmable: Bytes,
    /// Where arenas are; what is not free there is in use.
    pub heaps: Vec<AddressRange>,
}
