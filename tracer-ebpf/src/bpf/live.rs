//! Blocks in and out of the live table and the hash map beside it.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use tracer_ebpf::{
    counter::Counter,
    live::{Block, BlockKey},
};

use super::{
    count::count,
    maps::{LIVE, SPILL, TOTALS, live_buckets},
};

/// Takes a block out of the table. Of several threads that take the same one, one gets it.
#[inline(always)]
pub fn take(key: BlockKey) -> Option<Block> {
    let bucket = LIVE.get(key.bucket(live_buckets()))?;
    if let Some(value) = bucket.take(key) {
        return Some(Block::unpack(value));
    }
    if !bucket.has_spilled() {
        return None;
    }
    let key = key.to_bits();
    // SAFETY: the value is copied at once; the entry of a block that no thread is allocating or freeing does not change.
    let block = *unsafe { SPILL.get(key) }?;
    SPILL.remove(key).ok()?;
    bucket.unspill();
    Some(block)
}

/// Puts a block in. `false`, and counted, when there is no room.
#[inline(always)]
pub fn insert<C: EbpfContext>(ctx: &C, key: BlockKey, block: Block) -> bool {
    // An allocator gives no address twice: the release of a block that is still there was not seen.
    if let Some(old) = take(key) {
        count(Counter::MissedFree);
        debug!(ctx, "{:x} was allocated again, and its release had not been seen", key.address());
        freed(&old);
    }
    let Some(bucket) = LIVE.get(key.bucket(live_buckets())) else { return false };
    if let Some(value) = block.pack()
        && bucket.insert(key, value)
    {
        return true;
    }
    // First the count, so that whoever frees the block looks for it in the hash map.
    bucket.spill();
    if SPILL.insert(key.to_bits(), block, 0).is_ok() {
        return true;
    }
    bucket.unspill();
    count(Counter::LiveTableFull);
    false
}

/// Counts the release of a block under the stack that allocated it.
#[inline(always)]
pub fn freed(block: &Block) {
    if let Some(totals) = TOTALS.get(block.stack) {
        totals.freed(block.size);
    }
}
