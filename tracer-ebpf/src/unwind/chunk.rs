//! How the tables stand in the maps that user space and BPF share.

use super::{Mapping, TableHeader};
use crate::atomic::Word;

/// Room for unwind tables, one a file.
pub const MAX_TABLES: u32 = 4096;
/// Room for distinct rules: as many as a row can name.
pub const MAX_RULES: u32 = 1 << 16;
/// Room for the executable mappings of all processes, each list twice.
pub const MAX_CODE_MAPPINGS: u32 = 1 << 16;
/// The rule cache has 2^15 slots, 256 KiB: a program that allocates from a thousand places at a depth of 30 fits.
pub const CACHE_BITS: u32 = 15;

/// Many 32-bit numbers of an array in one element of a map, which would take 8 bytes for each alone.
#[derive(Debug)]
#[repr(C)]
pub struct Chunk([Word; Chunk::LENGTH as usize / 2]);

impl Chunk {
    /// How many numbers a chunk has.
    pub const LENGTH: u32 = 1024;

    /// The chunk that has the number with this index.
    #[must_use]
    #[inline(always)]
    pub const fn number(index: u32) -> u32 {
        index / Self::LENGTH
    }

    /// The number with this index, of which the part inside the chunk counts.
    #[must_use]
    #[inline(always)]
    pub fn get(&self, index: u32) -> u32 {
        let pair = self.0[(index % Self::LENGTH / 2) as usize].load();
        (pair >> (index % 2 * 32)) as u32
    }

    /// Sets the number with this index. For the one that writes, while it alone does.
    pub fn set(&self, index: u32, number: u32) {
        let pair = &self.0[(index % Self::LENGTH / 2) as usize];
        let shift = index % 2 * 32;
        pair.store(pair.load() & !(u64::from(u32::MAX) << shift) | u64::from(number) << shift);
    }
}

impl TableHeader {
    /// The header as words of a map.
    #[must_use]
    pub fn to_words(self) -> [u64; 3] {
        let pair = |low: u32, high: u32| low as u64 | (high as u64) << 32;
        [self.code, pair(self.first_page, self.page_count), pair(self.first_row, self.row_count)]
    }

    /// What [`TableHeader::to_words`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_words([code, pages, rows]: [u64; 3]) -> Self {
        Self {
            code,
            first_page: pages as u32,
            page_count: (pages >> 32) as u32,
            first_row: rows as u32,
            row_count: (rows >> 32) as u32,
        }
    }
}

impl Mapping {
    /// The mapping as words of a map.
    #[must_use]
    pub const fn to_words(self) -> [u64; 4] {
        [self.start, self.end, self.bias, self.table as u64 | (self.file as u64) << 32]
    }

    /// What [`Mapping::to_words`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_words([start, end, bias, numbers]: [u64; 4]) -> Self {
        Self { start, end, bias, table: numbers as u32, file: (numbers >> 32) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_chunk_are_apart() {
        let chunk = Chunk([const { Word::new(0) }; 512]);
        chunk.set(7, 70);
        chunk.set(6, 60);
        chunk.set(Chunk::LENGTH + 1023, u32::MAX);
        assert_eq!([6, 7, 8, 1022, 1023].map(|index| chunk.get(index)), [60, 70, 0, 0, u32::MAX]);
        assert_eq!(Chunk::number(Chunk::LENGTH + 1), 1);
    }

    #[test]
    fn headers_and_mappings_round_trip() {
        let header =
            TableHeader { code: 1 << 40, first_page: 2, page_count: 3, first_row: 4, row_count: u32::MAX };
        assert_eq!(TableHeader::from_words(header.to_words()), header);
        let mapping = Mapping { start: 1, end: u64::MAX, bias: 3, table: Mapping::NOT_READY, file: 77 };
        assert_eq!(Mapping::from_words(mapping.to_words()), mapping);
    }
}
