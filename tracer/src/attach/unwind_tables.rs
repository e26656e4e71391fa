//! Unwind tables and lists of executable mappings, in the arrays that the walk in BPF reads.

use std::{collections::HashMap, ops::Range};

use anyhow::Result;
use aya::Ebpf;
use tracer_ebpf::{
    atomic::Word,
    process::{CodeList, ProcessIndex, ProcessState},
    unwind::{CACHE_BITS, Chunk, MAX_CODE_MAPPINGS, MAX_RULES, MAX_TABLES, Mapping, cache::Key},
};

use super::{gaps::Gaps, shared::SharedArray, tables::array};
use crate::unwind::{Rules, Table};

/// How much room the arrays have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwindSizes {
    /// Chunks of page indexes.
    pub page_chunks: u32,
    /// Chunks of rows.
    pub row_chunks: u32,
}

impl UnwindSizes {
    /// Room for so many page entries and rows, half as many again for libraries that are loaded later, and a million rows (4 MiB)
    /// and 256 MiB of code (4 MiB) in any case.
    #[must_use]
    pub fn with_room_for(pages: u64, rows: u64) -> Self {
        let chunks = |numbers: u64| {
            let wanted = (numbers + numbers / 2).max(1 << 20).div_ceil(u64::from(Chunk::LENGTH));
            u32::try_from(wanted).unwrap_or(u32::MAX).min(u32::MAX / Chunk::LENGTH)
        };
        Self { page_chunks: chunks(pages), row_chunks: chunks(rows) }
    }
}

/// The arrays, and what is in them.
pub struct UnwindTables {
    pages: SharedArray<Chunk>,
    rows: SharedArray<Chunk>,
    rules: SharedArray<Word>,
    headers: SharedArray<[Word; 3]>,
    mappings: SharedArray<[Word; 4]>,
    cache: SharedArray<Word>,
    numbers: Rules,
    rules_written: usize,
    page_room: Gaps,
    row_room: Gaps,
    /// The tables by number, at least as far as numbers were given.
    tables: Vec<Option<Stretches>>,
    /// The number to begin to look for a free one at: the longer ago a number was used, the better.
    next_number: usize,
    lists: HashMap<ProcessIndex, Lists>,
    next_mapping: u32,
}

/// Where a table stands.
#[derive(Clone, Debug)]
struct Stretches {
    pages: Range<u32>,
    rows: Range<u32>,
}

/// The place of a process' two lists.
#[derive(Clone, Copy, Debug)]
struct Lists {
    first: u32,
    capacity: u32,
}

impl UnwindTables {
    pub(super) fn map(ebpf: &Ebpf, sizes: UnwindSizes) -> Result<Self> {
        Ok(Self {
            pages: array(ebpf, "UNWIND_PAGES", sizes.page_chunks)?,
            rows: array(ebpf, "UNWIND_ROWS", sizes.row_chunks)?,
            rules: array(ebpf, "UNWIND_RULES", MAX_RULES)?,
            headers: array(ebpf, "UNWIND_TABLES", MAX_TABLES)?,
            mappings: array(ebpf, "UNWIND_MAPPINGS", MAX_CODE_MAPPINGS)?,
            cache: array(ebpf, "UNWIND_CACHE", 1 << CACHE_BITS)?,
            numbers: Rules::new(),
            rules_written: 0,
            page_room: Gaps::new(sizes.page_chunks * Chunk::LENGTH),
            row_room: Gaps::new(sizes.row_chunks * Chunk::LENGTH),
            tables: vec![None; MAX_TABLES as usize],
            next_number: 0,
            lists: HashMap::new(),
            next_mapping: 0,
        })
    }

    /// Copies a file's table, and gives the number to name it by. `None` when there is no room left.
    pub fn add(&mut self, table: &Table) -> Option<u32> {
        let number = self.free_number()?;
        let pages = self.page_room.take(table.pages().len())?;
        let Some(rows) = self.row_room.take(table.rows().len()) else {
            self.page_room.give_back(pages);
            return None;
        };
        let numbered = table.renumbered(&mut self.numbers).map(|row| row.to_bits());
        write(&self.rows, rows.start, numbered);
        write(&self.pages, pages.start, table.pages().iter().copied());
        for (rule, word) in self.numbers.as_slice().iter().zip(self.rules.elements()).skip(self.rules_written)
        {
            word.store(rule.to_bits());
        }
        self.rules_written = self.numbers.as_slice().len();
        self.forget_look_ups(number as u32);
        store(self.headers.elements().get(number)?, table.header(pages.start, rows.start).to_words());
        self.tables[number] = Some(Stretches { pages, rows });
        self.next_number = number + 1;
        Some(number as u32)
    }

    /// Gives the room of a table to others. No list may name it any more, and a list that did must have been replaced by
    /// [`UnwindTables::set_code`] with `dropped_tables`.
    pub fn remove(&mut self, number: u32) {
        if let Some(Stretches { pages, rows }) = self.tables.get_mut(number as usize).and_then(Option::take) {
            self.page_room.give_back(pages);
            self.row_room.give_back(rows);
        }
    }

    /// Numbers go around. A walk that found a rule just before its table was removed puts it into the cache a moment later; by the
    /// time that the number is used again, it has been forgotten.
    fn free_number(&self) -> Option<usize> {
        let from = self.next_number % self.tables.len();
        let (before, after) = self.tables.split_at(from);
        let first_free = |tables: &[Option<Stretches>]| tables.iter().position(Option::is_none);
        first_free(after).map(|free| from + free).or_else(|| first_free(before))
    }

    /// Forgets which rules of a table were looked up, before its number changes its meaning.
    fn forget_look_ups(&self, number: u32) {
        let slots = self.cache.elements().iter();
        slots.filter(|slot| Key::table_of(slot.load()) == number).for_each(|slot| slot.store(0));
    }

    /// Whether this mapping is in the list of a process just as it is.
    pub fn is_listed(&self, state: &ProcessState, mapping: &Mapping) -> bool {
        let CodeList { first, count, .. } = CodeList::from_bits(state.code.load());
        let mut listed = self.mappings.elements().iter().skip(first as usize).take(count as usize);
        listed.any(|words| is_in(words, mapping))
    }

    /// Whether this list is the process' own, not that of the one that it was forked from, and says just this.
    fn lists_just(&self, process: ProcessIndex, list: CodeList, code: &[Mapping]) -> bool {
        let CodeList { first, count, .. } = list;
        let own = self.lists.get(&process);
        own.is_some_and(|own| [own.first, own.first + own.capacity].contains(&first))
            && count as usize == code.len()
            && self.mappings.elements()[first as usize..]
                .iter()
                .zip(code)
                .all(|(words, code)| is_in(words, code))
    }

    /// Makes these, sorted by address, the executable mappings of a process, and gives the list. `None` when there
    /// is no room for them, or when code of the list `before` was unmapped since that was the list.
    ///
    /// When the list does not name a table that the one before named, `dropped_tables` says so: then walks that are reading the one
    /// before find that it was overwritten, so that what the tables had can be given to others.
    pub fn set_code(
        &mut self,
        process: ProcessIndex,
        state: &ProcessState,
        code: &[Mapping],
        before: CodeList,
        dropped_tables: bool,
    ) -> Option<CodeList> {
        // A new list ends the walks that are reading the one before the last.
        if !dropped_tables && self.lists_just(process, before, code) && state.code.load() == before.to_bits()
        {
            return Some(before);
        }
        let list = self.publish(process, state, code, before)?;
        if dropped_tables { self.publish(process, state, code, list) } else { Some(list) }
    }

    fn publish(
        &mut self,
        process: ProcessIndex,
        state: &ProcessState,
        code: &[Mapping],
        before: CodeList,
    ) -> Option<CodeList> {
        let count = u32::try_from(code.len()).ok()?;
        let lists = self.lists_with_room(process, count)?;
        // After the one that is in use, which may be that of the process that this one was forked from.
        let generation = before.generation.wrapping_add(1);
        let first = lists.first + u32::from(generation % 2) * lists.capacity;
        for (mapping, words) in code.iter().zip(&self.mappings.elements()[first as usize..]) {
            store(words, mapping.to_words());
        }
        let list = CodeList { first, count, generation, ..before };
        if state.code.compare_exchange(before.to_bits(), list.to_bits()) != before.to_bits() {
            return None;
        }
        self.lists.insert(process, lists);
        Some(list)
    }

    /// The process' lists, moved when they are too small. What they leave stays unused: lists grow by half at least, so that is
    /// no more than twice what is used.
    fn lists_with_room(&mut self, process: ProcessIndex, count: u32) -> Option<Lists> {
        let known = self.lists.get(&process).copied();
        if let Some(lists) = known.filter(|lists| lists.capacity >= count) {
            return Some(lists);
        }
        let capacity = (count + count / 2).max(16);
        let first = self.next_mapping;
        let end = first.checked_add(capacity.checked_mul(2)?).filter(|&end| end <= MAX_CODE_MAPPINGS)?;
        self.next_mapping = end;
        Some(Lists { first, capacity })
    }
}

/// Whether these words of a list are this mapping, just as it is.
fn is_in(words: &[Word; 4], mapping: &Mapping) -> bool {
    words.iter().zip(mapping.to_words()).all(|(word, wanted)| word.load() == wanted)
}

fn write(chunks: &SharedArray<Chunk>, first: u32, numbers: impl Iterator<Item = u32>) {
    for (index, number) in (first..).zip(numbers) {
        if let Some(chunk) = chunks.elements().get(Chunk::number(index) as usize) {
            chunk.set(index, number);
        }
    }
}

fn store<const N: usize>(words: &[Word; N], values: [u64; N]) {
    words.iter().zip(values).for_each(|(word, value)| word.store(value));
}
