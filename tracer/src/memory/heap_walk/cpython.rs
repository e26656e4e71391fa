//! Python's small objects: `Objects/obmalloc.c` of CPython 3.3 to 3.14.
//!
//! Arenas (256 KiB, and 1 MiB from 3.10) are mapped anonymously and have no header. They consist of pools of 4 KiB, and
//! of 16 KiB from 3.10, each with a header whose fields follow from each other.

use super::ReadMemory;
use crate::model::Address;

/// `POOL_SIZE`: with a radix tree (3.10), and before.
const POOL_BYTES: [u64; 2] = [16 << 10, 4 << 10];

/// Blocks are multiples of this (`ALIGNMENT`); before 3.8 of half of it.
const ALIGNMENTS: [u64; 2] = [16, 8];

/// `struct pool_header`: count, free block, two neighbours, arena, size class, two offsets.
const HEADER_BYTES: u64 = 48;

/// `SMALL_REQUEST_THRESHOLD`.
const LARGEST_BLOCK: u64 = 512;

/// The length of the pool that begins at an address, if one does.
pub(super) fn pool(memory: &impl ReadMemory, at: Address) -> Option<u64> {
    if !at.0.is_multiple_of(POOL_BYTES[1]) {
        return None;
    }
    let header = memory.words(at)?;
    POOL_BYTES.into_iter().find(|&length| is_pool(&header, at, length))
}

fn is_pool(header: &[u64; 6], Address(at): Address, length: u64) -> bool {
    let &[count, free_block, next, previous, arena_and_class, offsets] = header;
    let halves = |word: u64| (word & u64::from(u32::MAX), word >> 32);
    let ((arena, class), (next_offset, last_offset)) = (halves(arena_and_class), halves(offsets));
    // The upper half of `count` is padding.
    let count = count & u64::from(u32::MAX);
    let is_in_pool = |address: u64| (at + HEADER_BYTES..at + length).contains(&address);
    ALIGNMENTS.into_iter().any(|alignment| {
        let size = (class + 1).saturating_mul(alignment);
        at.is_multiple_of(length)
            && arena < 1 << 24
            && size <= LARGEST_BLOCK
            // `init_pool` in `allocate_from_new_pool`; it is never changed while the pool is of this class.
            && last_offset == length - size
            && (HEADER_BYTES..=length).contains(&next_offset)
            && count <= (length - HEADER_BYTES) / size
            && (free_block == 0 || is_in_pool(free_block))
            && next != 0
            && previous.is_multiple_of(8)
    })
}
