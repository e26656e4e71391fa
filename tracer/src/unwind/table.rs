//! The unwind table of one ELF file.

use std::ops::Range;

use gimli::UnwindTableRow;
use tracer_ebpf::unwind::{
    Cfa, PAGE_BITS, PAGE_SIZE, Row, RowSearch, Rule, SavedBp, TableHeader, TablePosition, Tables,
};

use super::cfa_in_register::{self, RegisterCfa};
use super::cfi::{self, Sink};
use super::elf::{self, Elf, Section, Standalone};
use super::instructions;
use super::rules::Rules;
use super::trampolines;

/// The most rows a table can have: 64 MiB of them, four times what the largest known program (Chromium) has.
pub(super) const MAX_ROWS: usize = 1 << 24;

/// How much farther apart the executable parts of a file may be than the file is long: segments are aligned to at most
/// 2 MiB, and there are few.
const MAX_CODE_GAP: u64 = 64 << 20;

/// The most rows whose CFA is in a register that are looked at. The dynamic linker has 14.
const MAX_REGISTER_CFAS: usize = 256;

/// Functions with more rows than so many, of which the dynamic linker has none, are left as they are.
const MAX_OVERLAID: usize = 4096;

/// Why a file has no table. Its code is walked by frame pointer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The bytes are no ELF file, or are cut short.
    #[error("not a readable ELF file: {0}")]
    NotElf(String),
    /// It is an ELF file for another processor.
    #[error("not an ELF file for x86_64")]
    OtherMachine,
    /// It has neither `.eh_frame` nor `.debug_frame`, or none that says anything about its code.
    #[error("the file has no unwind information")]
    NoUnwindInformation,
    /// Its code spans more than a table can address.
    #[error("the file's code spans {0} bytes, more than its length allows")]
    CodeTooLarge(u64),
    /// It has more rows than a table can hold.
    #[error("the file has more than {MAX_ROWS} unwind rows")]
    TooManyRows,
}

/// What became of a file's call frame information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Functions described.
    pub functions: u32,
    /// Rows as the file states them, before equal neighbours are merged.
    pub file_rows: u32,
    /// Of those, the rows whose rule the walk cannot follow.
    pub unsupported_rows: u32,
    /// Entries that could not be read.
    pub broken: u32,
    /// Stretches of code that are described by their instructions; not among the above.
    pub synthesized: u32,
}

/// The unwind table of one ELF file, position independent, in the form that is copied to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub(super) code: u64,
    pub(super) pages: Vec<u32>,
    pub(super) rows: Vec<Row>,
    pub(super) rules: Vec<Rule>,
    pub(super) stats: TableStats,
}

impl Table {
    /// Makes the table of an ELF file (an executable, a shared library, the vdso's image). Time and memory are bounded
    /// by the length of `bytes`.
    ///
    /// Where the file says nothing, the table says so ([`Rule::NO_TABLE`]). Where descriptions overlap, the one that
    /// begins last holds, as it does for the C++ runtime's lookup; of those that begin together, the first in the file.
    ///
    /// # Errors
    /// When there is nothing to walk by.
    pub fn from_elf(bytes: &[u8]) -> Result<Self, TableError> {
        Self::from_parts(&elf::read(bytes)?)
    }

    pub(super) fn from_parts(elf: &Elf<'_>) -> Result<Self, TableError> {
        let span = span(&elf.code)?;
        let length = span.end - span.start;
        if length > elf.length.saturating_add(MAX_CODE_GAP).min(1 << 32) {
            return Err(TableError::CodeTooLarge(length));
        }
        let mut collected = Collected::new(&elf.code, span.start);
        if let Some(code) = &elf.switches {
            collected.describe_switch(code.clone());
        }
        for section in &elf.sections {
            cfi::read(section, &mut collected);
            if let Some(standalone) = &elf.standalone {
                collected.describe_register_cfas(section, standalone);
            }
        }
        let has_any = !collected.functions.is_empty() || elf.standalone.is_some();
        let entries = elf.standalone.as_ref().map_or(&[][..], |standalone| &standalone.entries);
        collected.describe_entry(elf.entry, entries);
        collected.describe_coroutine_end(elf.coroutine_end);
        if let Some(standalone) = &elf.standalone {
            collected.describe_by_instructions(standalone);
        }
        if has_any { collected.into_table(length) } else { Err(TableError::NoUnwindInformation) }
    }

    /// The table of code that was copied at run time ([`begins_with_trampoline`](super::begins_with_trampoline)), from its first byte
    /// on; none when there is no copy.
    #[must_use]
    pub fn of_trampolines(code: &[u8]) -> Option<Self> {
        let length = code.len() as u64;
        let whole = [Range { start: 0, end: length }];
        let mut collected = Collected::new(&whole, 0);
        for copy in trampolines::copies(code) {
            let start = copy.start;
            if collected.function(copy) {
                for (at, cfa) in trampolines::ROWS {
                    let rule = Rule::new(Cfa::Sp(cfa), SavedBp::Same).unwrap_or(Rule::UNSUPPORTED);
                    collected.row(start + at, rule);
                }
            }
        }
        if collected.functions.is_empty() { None } else { collected.into_table(length).ok() }
    }

    /// Where the table stands when its pages and rows are copied to these places of the global arrays.
    #[must_use]
    pub fn header(&self, first_page: u32, first_row: u32) -> TableHeader {
        TableHeader {
            code: self.code,
            first_page,
            page_count: self.pages.len() as u32 - 1,
            first_row,
            row_count: self.rows.len() as u32,
        }
    }

    /// The index: for each page of code its first row, then the number of rows. To be copied as it is.
    #[must_use]
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// The rows, with this table's own numbers for rules.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The rules, by this table's own numbers.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rows with the numbers that `rules` gives to this table's rules, to be copied to the kernel.
    pub fn renumbered<'a>(&'a self, rules: &mut Rules) -> impl ExactSizeIterator<Item = Row> + 'a {
        let numbers: Vec<u16> = self.rules.iter().map(|&rule| rules.number(rule)).collect();
        self.rows.iter().map(move |row| Row::new(row.offset(), numbers[usize::from(row.rule())]))
    }

    /// The rule at an svma, found as the kernel finds it.
    #[must_use]
    pub fn lookup(&self, svma: u64) -> Rule {
        let header = self.header(0, 0);
        let Some(place) = header.locate(svma) else { return Rule::NO_TABLE };
        self.rule(RowSearch::run(&header, place, self)).unwrap_or(Rule::UNSUPPORTED)
    }

    /// How many probes [`Table::lookup`] needs at most, and on average over the rows.
    #[must_use]
    pub fn probes(&self) -> (u32, f64) {
        let header = self.header(0, 0);
        let (mut most, mut total) = (0, 0_u64);
        for (page, bounds) in self.pages.windows(2).enumerate() {
            for row in &self.rows[bounds[0] as usize..bounds[1] as usize] {
                let place = TablePosition { offset: row.offset(), page: page as u32 };
                let Some(mut search) = RowSearch::begin(&header, place, self) else { continue };
                let mut probes = 0;
                while search.advance(self) {
                    probes += 1;
                }
                most = most.max(probes);
                total += u64::from(probes);
            }
        }
        (most, total as f64 / self.rows.len().max(1) as f64)
    }

    /// Bytes that the table takes in the kernel.
    #[must_use]
    pub fn kernel_bytes(&self) -> usize {
        size_of_val(&self.pages[..]) + size_of_val(&self.rows[..]) + size_of::<TableHeader>()
    }

    /// What became of the file's information.
    #[must_use]
    pub const fn stats(&self) -> TableStats {
        self.stats
    }
}

/// A table by itself is the arrays that hold nothing else.
impl Tables for Table {
    fn page(&self, index: u32) -> Option<u32> {
        self.pages.get(index as usize).copied()
    }

    fn row(&self, index: u32) -> Option<Row> {
        self.rows.get(index as usize).copied()
    }

    fn rule(&self, number: u16) -> Option<Rule> {
        self.rules.get(usize::from(number)).copied()
    }
}

/// From the page where the code begins to its end.
fn span(code: &[Range<u64>]) -> Result<Range<u64>, TableError> {
    let start = code.first().map(|range| range.start & !u64::from(PAGE_SIZE - 1));
    let end = code.iter().map(|range| range.end).max();
    start.zip(end).map(|(start, end)| start..end).ok_or(TableError::NoUnwindInformation)
}

/// A function's stretch of code, and of the collected rows.
struct FunctionRows {
    code: Range<u32>,
    rows: Range<usize>,
}

/// The functions as they stand in the file, in any order.
struct Collected<'a> {
    /// Ascending svmas of executable code.
    code: &'a [Range<u64>],
    /// The svma that offsets count from.
    base: u64,
    functions: Vec<FunctionRows>,
    rows: Vec<(u32, u16)>,
    rules: Rules,
    register_cfas: Vec<RegisterCfa>,
    stats: TableStats,
}

impl<'a> Collected<'a> {
    fn new(code: &'a [Range<u64>], base: u64) -> Self {
        let stats = TableStats::default();
        let (functions, rows, register_cfas) = (Vec::new(), Vec::new(), Vec::new());
        Self { code, base, functions, rows, rules: Rules::new(), register_cfas, stats }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= MAX_ROWS || self.functions.len() >= MAX_ROWS
    }

    /// Code at the entry point that the file says nothing of, as in the dynamic linker and in musl's start files, has no caller.
    fn describe_entry(&mut self, entry: Option<u64>, others: &[u64]) {
        /// What stands there is some instructions long, and sets up the call of a function in C.
        const LONGEST: u64 = 128;
        let Some(entry) = entry else { return };
        let Some(start) = entry.checked_sub(self.base).and_then(|start| u32::try_from(start).ok()) else {
            return;
        };
        if self.functions.iter().any(|function| function.code.contains(&start)) {
            return;
        }
        let next =
            self.functions.iter().map(|function| function.code.start).filter(|&next| next > start).min();
        let next = next.map_or(u64::MAX, |next| self.base + u64::from(next));
        let next =
            others.iter().copied().filter(|&other| other > entry).min().map_or(next, |other| other.min(next));
        if self.function(entry..next.min(entry.saturating_add(LONGEST))) {
            self.row(entry, Rule::BASE);
        }
    }

    /// Callers are looked up one byte before their return address, which here no call has put there.
    fn describe_coroutine_end(&mut self, end: Option<u64>) {
        let Some(end) = end else { return };
        let before = end.saturating_sub(1);
        let is_before = |range: &Range<u32>| range.contains(&(before.wrapping_sub(self.base) as u32));
        if !self.functions.iter().any(|function| is_before(&function.code)) && self.function(before..end) {
            self.row(before, Rule::BASE);
        }
    }

    /// Code that runs on another stack than its caller, before anything else is said of it.
    fn describe_switch(&mut self, code: Range<u64>) {
        if self.function(code.clone()) {
            self.row(code.start, Rule::SWITCHED);
        }
    }

    /// Calls from frames whose CFA is in a register.
    fn describe_register_cfas(&mut self, section: &Section<'_>, standalone: &Standalone<'_>) {
        for (code, rule) in
            cfa_in_register::rows(&std::mem::take(&mut self.register_cfas), section, &standalone.code)
        {
            let offset = |svma: u64| u32::try_from(svma.checked_sub(self.base)?).ok();
            if let (Some(start), Some(end)) = (offset(code.start), offset(code.end)) {
                self.overlay(start..end, rule);
            }
        }
    }

    /// Says something else of a part of a function. Its rows so far are left where they are, unused.
    fn overlay(&mut self, code: Range<u32>, rule: Rule) {
        let covers =
            |function: &&mut FunctionRows| function.code.start <= code.start && code.end <= function.code.end;
        let Some(function) = self.functions.iter_mut().find(covers) else { return };
        if function.rows.len() > MAX_OVERLAID {
            return;
        }
        let rows = self.rows[function.rows.clone()].to_vec();
        let resumed = rows.iter().rfind(|row| row.0 <= code.end).map_or(Rules::NO_TABLE, |row| row.1);
        let before = rows.iter().filter(|row| row.0 < code.start);
        let after = rows.iter().filter(|row| row.0 > code.end);
        let start = self.rows.len();
        self.rows.extend(before);
        self.rows.extend([(code.start, self.rules.number(rule)), (code.end, resumed)]);
        self.rows.extend(after);
        function.rows = start..self.rows.len();
    }

    /// Code that the sections say nothing of.
    fn describe_by_instructions(&mut self, standalone: &Standalone<'_>) {
        let base = self.base;
        let svmas = |function: &FunctionRows| {
            base + u64::from(function.code.start)..base + u64::from(function.code.end)
        };
        let mut covered: Vec<Range<u64>> = self.functions.iter().map(svmas).collect();
        covered.sort_unstable_by_key(|range| range.start);
        let stated = self.stats;
        for (code, rows) in instructions::describe(&standalone.code, &standalone.entries, &covered) {
            if self.function(code) {
                rows.into_iter().for_each(|(start, rule)| self.row(start, rule));
            }
        }
        self.stats = TableStats { synthesized: self.stats.functions - stated.functions, ..stated };
    }

    /// Puts the functions in order, one after the other, and merges what says the same.
    fn into_table(mut self, length: u64) -> Result<Table, TableError> {
        if self.is_full() {
            return Err(TableError::TooManyRows);
        }
        self.functions.sort_by_key(|function| function.code.start);
        self.functions.dedup_by_key(|function| function.code.start);
        let mut merged = Merged::default();
        for (index, function) in self.functions.iter().enumerate() {
            let next = self.functions.get(index + 1).map_or(u32::MAX, |next| next.code.start);
            let end = function.code.end.min(next);
            for &(start, rule) in &self.rows[function.rows.clone()] {
                if start < end {
                    merged.push(start, rule);
                }
            }
            merged.push(end, Rules::NO_TABLE);
        }
        if merged.0.len() > MAX_ROWS {
            return Err(TableError::TooManyRows);
        }
        let page_count = length.div_ceil(u64::from(PAGE_SIZE)) as usize;
        Ok(Table {
            code: self.base,
            pages: index(&merged.0, page_count),
            rows: merged.0.iter().map(|&(start, rule)| Row::new(start, rule)).collect(),
            rules: self.rules.as_slice().to_vec(),
            stats: self.stats,
        })
    }
}

impl Sink for Collected<'_> {
    fn function(&mut self, code: Range<u64>) -> bool {
        let after = self.code.partition_point(|range| range.start <= code.start);
        let Some(range) = after.checked_sub(1).and_then(|at| self.code.get(at)) else { return false };
        let offset = |svma: u64| u32::try_from(svma - self.base).ok();
        let (Some(start), Some(end)) = (offset(code.start), offset(code.end.min(range.end))) else {
            return false;
        };
        if start >= end || self.is_full() {
            return false;
        }
        self.stats.functions += 1;
        self.functions.push(FunctionRows { code: start..end, rows: self.rows.len()..self.rows.len() });
        true
    }

    fn row(&mut self, start: u64, rule: Rule) {
        let Some(function) = self.functions.last_mut() else { return };
        let Some(start) = start.checked_sub(self.base).and_then(|start| u32::try_from(start).ok()) else {
            return;
        };
        let last = self.rows[function.rows.clone()].last().map_or(function.code.start, |&(start, _)| start);
        // A file may state rows backwards or beyond their function; nobody can be at such an address.
        if start < last || start >= function.code.end || self.rows.len() >= MAX_ROWS {
            return;
        }
        self.stats.file_rows += 1;
        self.stats.unsupported_rows += u32::from(rule == Rule::UNSUPPORTED);
        self.rows.push((start, self.rules.number(rule)));
        function.rows.end = self.rows.len();
    }

    fn stated(&mut self, row: &UnwindTableRow<usize>) {
        if self.register_cfas.len() < MAX_REGISTER_CFAS {
            self.register_cfas.extend(RegisterCfa::of(row));
        }
    }

    fn broken(&mut self) {
        self.stats.broken = self.stats.broken.saturating_add(1);
    }
}

/// Rows in order of their start, no two neighbours with the same start or the same rule.
#[derive(Default)]
struct Merged(Vec<(u32, u16)>);

impl Merged {
    fn push(&mut self, start: u32, rule: u16) {
        // A row that ends where it begins says nothing.
        if self.0.last().is_some_and(|last| last.0 == start) {
            self.0.pop();
        }
        if self.0.last().map_or(Rules::NO_TABLE, |last| last.1) != rule {
            self.0.push((start, rule));
        }
    }
}

/// For each page its first row, and at last the number of rows.
fn index(rows: &[(u32, u16)], page_count: usize) -> Vec<u32> {
    let mut pages = Vec::with_capacity(page_count + 1);
    let mut row = 0;
    for page in 0..=page_count as u64 {
        while rows.get(row).is_some_and(|&(start, _)| u64::from(start) >> PAGE_BITS < page) {
            row += 1;
        }
        pages.push(row as u32);
    }
    pages
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A table of rows that begin at these offsets of `length` bytes of code at svma 0.
    pub(in super::super) fn table_of(rows: &[(u32, Rule)], length: u32) -> Table {
        let code = [Range { start: 0, end: u64::from(length) }];
        let mut collected = Collected::new(&code, 0);
        assert!(collected.function(code[0].clone()));
        for &(start, rule) in rows {
            collected.row(u64::from(start), rule);
        }
        collected.into_table(u64::from(length)).expect("few rows")
    }

    /// A function as a file describes it: its code, and its rows.
    type Described<'a> = (Range<u64>, &'a [(u64, Rule)]);

    fn table_of_functions(code: Range<u64>, functions: &[Described<'_>]) -> Table {
        let ranges = [code];
        let mut collected = Collected::new(&ranges, ranges[0].start);
        for (code, rows) in functions {
            if collected.function(code.clone()) {
                rows.iter().for_each(|&(start, rule)| collected.row(start, rule));
            }
        }
        collected.into_table(ranges[0].end - ranges[0].start).expect("few rows")
    }

    fn sp(offset: i64) -> Rule {
        Rule::new(Cfa::Sp(offset), SavedBp::Same).expect("fits")
    }

    #[test]
    fn functions_in_any_order_are_sorted_and_their_gaps_stay_open() {
        let table = table_of_functions(
            0x1000..0x3000,
            &[(0x2010..0x2020, &[(0x2010, sp(8))]), (0x1000..0x1010, &[(0x1000, sp(8)), (0x1001, sp(16))])],
        );
        for (svma, rule) in [
            (0xfff, Rule::NO_TABLE),
            (0x1000, sp(8)),
            (0x1001, sp(16)),
            (0x100f, sp(16)),
            (0x1010, Rule::NO_TABLE),
            (0x200f, Rule::NO_TABLE),
            (0x2010, sp(8)),
            (0x201f, sp(8)),
            (0x2020, Rule::NO_TABLE),
            (0x3000, Rule::NO_TABLE),
            (u64::MAX, Rule::NO_TABLE),
        ] {
            assert_eq!(table.lookup(svma), rule, "{svma:#x}");
        }
    }

    #[test]
    fn neighbours_that_say_the_same_are_one_row() {
        let table = table_of_functions(
            0..0x100,
            &[
                (0..0x10, &[(0, sp(8)), (4, sp(8))]),
                (0x10..0x20, &[(0x10, sp(8)), (0x18, sp(16)), (0x18, sp(8))]),
            ],
        );
        assert_eq!(table.rows().len(), 2, "the rule, and its end");
    }

    #[test]
    fn of_overlapping_functions_the_one_that_begins_last_holds() {
        let table = table_of_functions(
            0..0x100,
            &[(0..0x40, &[(0, sp(8))]), (0x10..0x20, &[(0x10, sp(16))]), (0x10..0x30, &[(0x10, sp(24))])],
        );
        assert_eq!(table.lookup(0xf), sp(8));
        assert_eq!(table.lookup(0x10), sp(16), "the first in the file");
        assert_eq!(table.lookup(0x20), Rule::NO_TABLE);
    }

    #[test]
    fn what_lies_outside_of_code_or_function_is_dropped() {
        let table = table_of_functions(
            0x1000..0x1100,
            &[
                (0x0..0x10, &[(0, sp(8))]),
                (0x10f0..0x2000, &[(0x10f0, sp(8)), (0x10f8, sp(16)), (0x10f4, sp(24)), (0x1200, sp(32))]),
            ],
        );
        assert_eq!(table.stats().functions, 1);
        assert_eq!(table.lookup(0x10f4), sp(8), "rows do not go backwards");
        assert_eq!(table.lookup(0x10ff), sp(16));
        assert_eq!(table.lookup(0x1100), Rule::NO_TABLE);
    }

    #[test]
    fn renumbered_rows_lead_to_the_same_rules() {
        let table = table_of(&[(0, sp(8)), (8, sp(16)), (300, sp(24))], 512);
        let mut all = Rules::new();
        all.number(sp(24));
        let renumbered: Vec<_> = table.renumbered(&mut all).collect();
        for (own, global) in table.rows().iter().zip(renumbered) {
            assert_eq!(own.offset(), global.offset());
            let rule = table.rules()[usize::from(own.rule())];
            assert_eq!(all.as_slice()[usize::from(global.rule())], rule);
        }
    }

    #[test]
    fn what_is_no_x86_64_elf_file_is_refused_with_a_reason() {
        assert!(matches!(Table::from_elf(b""), Err(TableError::NotElf(_))));
        assert!(matches!(Table::from_elf(b"#!/bin/sh\n"), Err(TableError::NotElf(_))));
        let mut other = std::fs::read(std::env::current_exe().expect("our path")).expect("our bytes");
        other[18] = 183; // aarch64
        assert_eq!(Table::from_elf(&other), Err(TableError::OtherMachine));
    }
}
