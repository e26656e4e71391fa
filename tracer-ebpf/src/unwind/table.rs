//! From an address to its rule: mappings, pages, rows.
//!
//! All tables stand in three global arrays. `pages` says for each page of code which row is its first; `rows` holds
//! `(offset in page, number of the rule)`; `rules` holds each distinct [`Rule`] once, for all files together. A
//! [`TableHeader`] says which stretches of the first two are a file's.
//!
//! ```text
//! code   │ page 0          │ page 1          │ page 2 │
//! pages  │ 0               │ 3               │ 3      │ 4 (end)
//! rows   │ 0x00 0x08 0x40  │                 │ 0x10   │      row 2 reaches through page 1 to 0x10 of page 2
//! ```

use super::rule::Rule;

/// How many low bits of a code offset are inside a page. Smaller pages mean fewer probes a search and more memory for
/// the index; docs/unwinding.md has the measured choice.
pub const PAGE_BITS: u32 = 8;

/// Bytes of code in a page.
pub const PAGE_SIZE: u32 = 1 << PAGE_BITS;

/// A search in a page ends after at most this many probes, whatever the file: a page has a row at most every byte, and
/// each probe halves what is left.
pub const MAX_PAGE_PROBES: u32 = PAGE_BITS + 1;

/// One row: from its offset on, until the next row, its rule holds. High half the offset in the page, low half the
/// number of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Row(u32);

const _: () = assert!(PAGE_BITS <= 16);

impl Row {
    /// A row; of `offset`, the part inside the page counts.
    #[must_use]
    #[inline(always)]
    pub const fn new(offset: u32, rule: u16) -> Self {
        Self((offset & (PAGE_SIZE - 1)) << 16 | rule as u32)
    }

    /// The row as it stands in maps and files.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// Decodes what [`Row::to_bits`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Where it begins, in its page.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 >> 16
    }

    /// The number of its rule.
    #[must_use]
    #[inline(always)]
    pub const fn rule(self) -> u16 {
        self.0 as u16
    }
}

/// Where the table of a file stands in the global arrays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TableHeader {
    /// The svma of the first page's first byte.
    pub code: u64,
    /// Its first page in `pages`.
    pub first_page: u32,
    /// How many pages there are; one more entry follows them, and says where the rows end.
    pub page_count: u32,
    /// Its first row in `rows`; what `pages` says counts from here.
    pub first_row: u32,
    /// How many rows there are.
    pub row_count: u32,
}

const _: () = assert!(size_of::<TableHeader>() == 24);

/// Where an address falls in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePosition {
    /// Bytes from the start of the table's code; unique in the file.
    pub offset: u32,
    /// The page's entry in `pages`; its successor is the end of the page's rows.
    pub page: u32,
}

impl TableHeader {
    /// Where an svma falls; `None` outside of what the table covers, where its rule is [`Rule::NO_TABLE`].
    #[must_use]
    #[inline(always)]
    pub const fn locate(&self, svma: u64) -> Option<TablePosition> {
        let offset = svma.wrapping_sub(self.code);
        if offset >> PAGE_BITS >= self.page_count as u64 || offset > u32::MAX as u64 {
            return None;
        }
        let offset = offset as u32;
        Some(TablePosition { offset, page: self.first_page.wrapping_add(offset >> PAGE_BITS) })
    }
}

/// The global arrays.
pub trait Tables {
    /// The entry of `pages`.
    fn page(&self, index: u32) -> Option<u32>;
    /// The entry of `rows`.
    fn row(&self, index: u32) -> Option<Row>;
    /// The entry of `rules`.
    fn rule(&self, number: u16) -> Option<Rule>;
}

/// A bisection that stands still between two probes, so that each can be one call of `bpf_loop`: finds the first index
/// of `low..high` whose item lies *beyond* what is sought, in a sorted array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// Items before it are not beyond.
    pub low: u32,
    /// Items from it on are beyond.
    pub high: u32,
}

impl Search {
    /// A search in `low..high`.
    #[must_use]
    #[inline(always)]
    pub const fn new(low: u32, high: u32) -> Self {
        Self { low, high }
    }

    /// The index to look at next, or `None` when the search is over.
    #[must_use]
    #[inline(always)]
    pub const fn probe(&self) -> Option<u32> {
        if self.low < self.high { Some(self.low + (self.high - self.low) / 2) } else { None }
    }

    /// Takes what was seen at index `probe`. Each call at least halves what is left, whatever is seen.
    #[inline(always)]
    pub const fn narrow(&mut self, probe: u32, beyond: bool) {
        if beyond {
            self.high = probe;
        } else {
            self.low = probe.wrapping_add(1);
        }
    }

    /// After the search: the last item that is not beyond, or `None` when every item is. It may stand before where the
    /// search began: then it is the item that reaches into the stretch.
    #[must_use]
    #[inline(always)]
    pub const fn last(&self) -> Option<u32> {
        self.low.checked_sub(1)
    }
}

/// The search for the row of a [`TablePosition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSearch {
    /// What is left of the page's rows.
    pub search: Search,
    /// The offset that is sought, in the page.
    offset: u32,
    /// The table's first row: nothing before it is the table's.
    first_row: u32,
}

impl RowSearch {
    /// Begins a search; `None` when the page's entries are not there.
    #[must_use]
    #[inline(always)]
    pub fn begin(table: &TableHeader, place: TablePosition, tables: &impl Tables) -> Option<Self> {
        let low = tables.page(place.page)?;
        let high = tables.page(place.page.wrapping_add(1))?;
        let search = Search::new(table.first_row.wrapping_add(low), table.first_row.wrapping_add(high));
        Some(Self { search, offset: place.offset & (PAGE_SIZE - 1), first_row: table.first_row })
    }

    /// One probe. Returns whether another one is needed; at most [`MAX_PAGE_PROBES`] are.
    #[inline(always)]
    pub fn advance(&mut self, tables: &impl Tables) -> bool {
        let Some(probe) = self.search.probe() else { return false };
        let Some(row) = tables.row(probe) else { return false };
        self.search.narrow(probe, row.offset() > self.offset);
        true
    }

    /// After the search: the number of the rule that holds; 0, "no table", before the table's first row.
    #[must_use]
    #[inline(always)]
    pub fn rule(&self, tables: &impl Tables) -> u16 {
        match self.search.last() {
            Some(last) if last >= self.first_row => tables.row(last).map_or(0, Row::rule),
            _ => 0,
        }
    }

    /// The whole search, in one loop with a fixed bound.
    #[must_use]
    #[inline(always)]
    pub fn run(table: &TableHeader, place: TablePosition, tables: &impl Tables) -> u16 {
        let Some(mut search) = Self::begin(table, place, tables) else { return 0 };
        for _ in 0..MAX_PAGE_PROBES {
            if !search.advance(tables) {
                break;
            }
        }
        search.rule(tables)
    }
}

/// Executable memory of a process: from where to where, and whose code. A process's mappings are sorted by `start` and
/// do not overlap; to find one, [`Search`] with `beyond = mapping.start > address`, then ask [`Mapping::contains`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// What the loader added to the file's addresses: `svma = avma - bias`.
    pub bias: u64,
    /// The number of the file's [`TableHeader`], or [`Mapping::NO_TABLE`].
    pub table: u32,
    /// Which file it is. The number of a table goes to another file when the first is gone; this one never does. 0 for none.
    pub file: u32,
}

const _: () = assert!(size_of::<Mapping>() == 32);

impl Mapping {
    /// Code without a table (compiled at run time, or a file without unwind information): walked by frame pointer.
    pub const NO_TABLE: u32 = u32::MAX;
    /// Code whose table is being made: [`crate::stop::Stop::TableNotReady`].
    pub const NOT_READY: u32 = u32::MAX - 1;
    /// Code of HotSpot, which says itself how it is walked ([`crate::runtime::hotspot`]). In no list: the walk knows where it is.
    pub const HOTSPOT: u32 = u32::MAX - 2;

    /// Whether it holds the address.
    #[must_use]
    #[inline(always)]
    pub const fn contains(&self, avma: u64) -> bool {
        self.start <= avma && avma < self.end
    }

    /// The address as the file states it.
    #[must_use]
    #[inline(always)]
    pub const fn svma(&self, avma: u64) -> u64 {
        avma.wrapping_sub(self.bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the module's documentation, behind another file's page and row.
    struct Example;

    const PAGES: [u32; 7] = [99, 0, 3, 3, 4, 0, 1];
    const ROWS: [Row; 6] = [
        Row::new(0, 99),
        Row::new(0x00, 1),
        Row::new(0x08, 2),
        Row::new(0x40, 3),
        Row::new(0x10, 4),
        Row::new(0, 98),
    ];
    const HEADER: TableHeader =
        TableHeader { code: 0x40_0000, first_page: 1, page_count: 3, first_row: 1, row_count: 4 };

    impl Tables for Example {
        fn page(&self, index: u32) -> Option<u32> {
            PAGES.get(index as usize).copied()
        }

        fn row(&self, index: u32) -> Option<Row> {
            ROWS.get(index as usize).copied()
        }

        fn rule(&self, _: u16) -> Option<Rule> {
            None
        }
    }

    fn rule_at(table: &TableHeader, svma: u64) -> Option<u16> {
        table.locate(svma).map(|place| RowSearch::run(table, place, &Example))
    }

    #[test]
    fn a_row_holds_until_the_next_across_pages() {
        let page = u64::from(PAGE_SIZE);
        for (offset, rule) in [
            (0, 1),
            (7, 1),
            (8, 2),
            (0x3f, 2),
            (0x40, 3),
            (page, 3),
            (2 * page + 0xf, 3),
            (2 * page + 0x10, 4),
        ] {
            assert_eq!(rule_at(&HEADER, HEADER.code + offset), Some(rule), "{offset:#x}");
        }
        assert_eq!(rule_at(&HEADER, HEADER.code - 1), None);
        assert_eq!(rule_at(&HEADER, HEADER.code + 3 * page), None);
        assert_eq!(rule_at(&HEADER, HEADER.code + (1 << 32)), None, "beyond what a row can say");
    }

    #[test]
    fn before_the_first_row_nothing_of_another_table_is_taken() {
        let late = TableHeader { first_row: 4, row_count: 1, first_page: 5, page_count: 1, ..HEADER };
        assert_eq!(rule_at(&late, late.code), Some(0));
        assert_eq!(rule_at(&late, late.code + 0x10), Some(4));
    }

    #[test]
    fn a_search_finds_what_a_scan_finds_within_its_bound() {
        let starts: [u32; 9] = [3, 5, 5, 8, 13, 21, 34, 55, 89];
        for length in 0..=starts.len() {
            for sought in 0..100 {
                let mut search = Search::new(0, length as u32);
                let mut probes = 0;
                while let Some(probe) = search.probe() {
                    search.narrow(probe, starts[probe as usize] > sought);
                    probes += 1;
                }
                assert!(probes <= 4);
                let scanned = starts[..length].iter().rposition(|&start| start <= sought);
                assert_eq!(search.last().map(|last| last as usize), scanned);
            }
        }
    }

    #[test]
    fn a_full_page_is_searched_within_the_bound() {
        let mut search = Search::new(0, PAGE_SIZE);
        let mut probes = 0;
        while let Some(probe) = search.probe() {
            search.narrow(probe, false);
            probes += 1;
        }
        assert!(probes <= MAX_PAGE_PROBES);
    }

    #[test]
    fn mappings_hold_half_open_ranges() {
        let mapping = Mapping { start: 0x1000, end: 0x2000, bias: 0x800, table: 0, file: 0 };
        assert!(mapping.contains(0x1000) && mapping.contains(0x1fff));
        assert!(!mapping.contains(0xfff) && !mapping.contains(0x2000));
        assert_eq!(mapping.svma(0x1000), 0x800);
    }
}
