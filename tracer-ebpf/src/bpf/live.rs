//! Blocks in and out of the live table and the hash map beside it.

use tracer_ebpf::{
    counter::Counter,
    live::{Block, BlockKey},
    sampling::{OBJECT, Weight},
    stack::StackId,
};

use super::{
    count::{count, count_many},
    maps::{LIVE, SPILL, TOTALS, live_buckets, sampling},
    processes::open_process,
};

/// Takes a block out of the table. Of several threads that take the same one, one gets it.
#[inline(always)]
pub fn take(key: BlockKey) -> Option<Block> {
    let mut block = Block::default();
    if take_block(key.to_bits(), &raw mut block) == 0 { None } else { Some(block) }
}

/// As [`take`]; `false` when it was not there.
#[inline(always)]
pub fn take_to(key: BlockKey, taken: &mut Block) -> bool {
    take_block(key.to_bits(), taken) != 0
}

/// [`take`] as a global function, which the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_block(key: u64, taken: *mut Block) -> u32 {
    let Some(key) = BlockKey::from_bits(key) else { return 0 };
    if taken.is_null() {
        return 0;
    }
    let Some(block) = find_and_take(key) else { return 0 };
    // SAFETY: the only caller passes a block; the verifier sees to its size.
    unsafe { *taken = block };
    1
}

#[inline(always)]
fn find_and_take(key: BlockKey) -> Option<Block> {
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
pub fn insert(key: BlockKey, block: Block) -> bool {
    put(key.to_bits(), block.size, block.born_ns, block.stack.number(), block.objects) != 0
}

/// Puts a block in; 0 when there is no room. A global function, so that the verifier looks at it once and not after every way that leads
/// here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put(key: u64, size: u64, born_ns: u64, stack: u32, objects: u64) -> u32 {
    let Some(key) = BlockKey::from_bits(key) else { return 0 };
    // An allocator gives no address twice: the release of a block that is still there was not seen. A call that began before its window
    // closed counts to its end, but a release that began since then does not: it is made up for here.
    if let Some(old) = take(key) {
        if open_process(key.process()).is_some() {
            count(Counter::MissedFree);
        }
        freed(&old);
    }
    let Some(bucket) = LIVE.get(key.bucket(live_buckets())) else { return 0 };
    let block = Block { size, born_ns, stack: StackId::new(stack), objects, ..Block::default() };
    if let Some(value) = block.pack()
        && bucket.insert(key, value)
    {
        return 1;
    }
    // First the count, so that whoever frees the block looks for it in the hash map.
    bucket.spill();
    if SPILL.insert(key.to_bits(), block, 0).is_ok() {
        return 1;
    }
    bucket.unspill();
    count(Counter::LiveTableFull);
    0
}

/// Counts the release of a block under the stack that allocated it.
#[inline(always)]
pub fn freed(block: &Block) {
    add_freed(block, weight(block));
    if !sampling().keeps_every_one() {
        count_many(Counter::SampleFreed, OBJECT);
    }
}

/// As [`freed`], of a block that its process sampled: the calls that were left out are not seen, so those that it stands for are counted.
#[inline(always)]
pub fn freed_of_sample(block: &Block) {
    let weight = weight(block);
    add_freed(block, weight);
    count_many(Counter::SampleFreed, weight.objects);
}

#[inline(always)]
fn add_freed(block: &Block, weight: Weight) {
    if let Some(totals) = TOTALS.get(block.stack.number()) {
        totals.add_freed(weight);
    }
}

/// Counts an allocation of which the process sampled a block.
#[inline(always)]
pub fn allocated_of_sample(block: &Block) {
    let weight = weight(block);
    if let Some(totals) = TOTALS.get(block.stack.number()) {
        totals.add_allocated(weight);
    }
    count_many(Counter::Sampled, weight.objects);
}

/// Counts an allocation under its stack.
#[inline(always)]
pub fn allocated(block: &Block) {
    if let Some(totals) = TOTALS.get(block.stack.number()) {
        totals.add_allocated(weight(block));
    }
}

/// How much a block stands for.
#[inline(always)]
fn weight(block: &Block) -> Weight {
    let objects = match block.objects {
        0 if sampling().keeps_every_one() => OBJECT,
        0 => objects(block.size),
        objects => objects,
    };
    Weight::of(block.size, objects)
}

/// How many objects a block stands for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn objects(size: u64) -> u64 {
    sampling().objects(size)
}
