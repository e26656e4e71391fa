//! Unwind tables and lists of executable mappings, in the arrays that the walk in BPF reads.

use std::collections::HashMap;

use anyhow::Result;
use aya::Ebpf;
use tracer_ebpf::{
    atomic::Word,
    process::{CodeList, ProcessState},
    unwind::{CACHE_BITS, Chunk, MAX_CODE_MAPPINGS, MAX_RULES, MAX_TABLES, Mapping},
};

use super::{shared::SharedArray, tables::array};
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
    sizes: UnwindSizes,
    pages: SharedArray<Chunk>,
    rows: SharedArray<Chunk>,
    rules: SharedArray<Word>,
    headers: SharedArray<[Word; 3]>,
    mappings: SharedArray<[Word; 4]>,
    cache: SharedArray<Word>,
    numbers: Rules,
    rules_written: usize,
    next_page: u32,
    next_row: u32,
    next_table: u32,
    lists: HashMap<u16, Lists>,
    next_mapping: u32,
}

/// The place of a process' two lists.
#[derive(Clone, Copy, Debug)]
struct Lists {
    first: u32,
    capacity: u32,
    generation: u16,
}

impl UnwindTables {
    pub(super) fn map(ebpf: &Ebpf, sizes: UnwindSizes) -> Result<Self> {
        Ok(Self {
            sizes,
            pages: array(ebpf, "UNWIND_PAGES", sizes.page_chunks)?,
            rows: array(ebpf, "UNWIND_ROWS", sizes.row_chunks)?,
            rules: array(ebpf, "UNWIND_RULES", MAX_RULES)?,
            headers: array(ebpf, "UNWIND_TABLES", MAX_TABLES)?,
            mappings: array(ebpf, "UNWIND_MAPPINGS", MAX_CODE_MAPPINGS)?,
            cache: array(ebpf, "UNWIND_CACHE", 1 << CACHE_BITS)?,
            numbers: Rules::new(),
            rules_written: 0,
            next_page: 0,
            next_row: 0,
            next_table: 0,
            lists: HashMap::new(),
            next_mapping: 0,
        })
    }

    /// Copies a file's table, and gives the number to name it by. `None` when there is no room left.
    pub fn add(&mut self, table: &Table) -> Option<u32> {
        let number = self.next_table;
        let header_slot = self.headers.elements().get(number as usize)?;
        let header = table.header(self.next_page, self.next_row);
        let pages_end = end_in(self.next_page, table.pages().len(), self.sizes.page_chunks)?;
        let rows_end = end_in(self.next_row, table.rows().len(), self.sizes.row_chunks)?;

        let rows = table.renumbered(&mut self.numbers).map(|row| row.to_bits());
        write(&self.rows, self.next_row, rows);
        write(&self.pages, self.next_page, table.pages().iter().copied());
        for (rule, word) in self.numbers.as_slice().iter().zip(self.rules.elements()).skip(self.rules_written)
        {
            word.store(rule.to_bits());
        }
        self.rules_written = self.numbers.as_slice().len();
        store(header_slot, header.to_words());
        (self.next_page, self.next_row, self.next_table) = (pages_end, rows_end, number + 1);
        Some(number)
    }

    /// Makes these, sorted by address, the executable mappings of a process. `false` when there is no room for them.
    pub fn set_code(&mut self, process: u16, state: &ProcessState, code: &[Mapping]) -> bool {
        let Ok(count) = u32::try_from(code.len()) else { return false };
        let Some(lists) = self.lists_with_room(process, count) else { return false };
        let generation = lists.generation.wrapping_add(1);
        let first = lists.first + u32::from(generation % 2) * lists.capacity;
        for (mapping, words) in code.iter().zip(&self.mappings.elements()[first as usize..]) {
            store(words, mapping.to_words());
        }
        state.code.store(CodeList { first, count, generation }.to_bits());
        self.lists.insert(process, Lists { generation, ..lists });
        true
    }

    /// The process' lists, moved when they are too small. What they leave stays unused: lists grow by half at least, so that is
    /// no more than twice what is used.
    fn lists_with_room(&mut self, process: u16, count: u32) -> Option<Lists> {
        let known = self.lists.get(&process).copied();
        if let Some(lists) = known.filter(|lists| lists.capacity >= count) {
            return Some(lists);
        }
        let capacity = (count + count / 2).max(64);
        let first = self.next_mapping;
        let end = first.checked_add(capacity.checked_mul(2)?).filter(|&end| end <= MAX_CODE_MAPPINGS)?;
        self.next_mapping = end;
        Some(Lists { first, capacity, generation: known.map_or(0, |lists| lists.generation) })
    }

    /// Forgets which rules were looked up: to be called when the number of a table changes its meaning.
    pub fn clear_cache(&self) {
        self.cache.elements().iter().for_each(|slot| slot.store(0));
    }
}

/// Where `length` numbers from `first` on end, if there is room in so many chunks.
fn end_in(first: u32, length: usize, chunks: u32) -> Option<u32> {
    let end = first.checked_add(u32::try_from(length).ok()?)?;
    (u64::from(end) <= u64::from(chunks) * u64::from(Chunk::LENGTH)).then_some(end)
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
