//! The tables that the programs fill, as memory of this process.

use std::{collections::HashMap as StdHashMap, mem::offset_of};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
};
use tracer_ebpf::{
    atomic::Word,
    counter::{Counter, STRIPES, Stripe},
    live::{Block, BlockKey, LiveBucket, WAYS as BUCKET_WAYS},
    process::{MAX_PROCESSES, ProcessState},
    slots::{SlotSet, WAYS as SET_WAYS, set_and_way},
    stack::{MAX_STACKS, StackId, StackTotals},
    thread::{InFlight, RECORD_SETS},
    usdt::{Argument, Arguments, MAX_ARGUMENTS},
};

use super::shared::{Shared, SharedArray};

/// Sizes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Buckets of the live table; a power of two.
    pub live_buckets: u32,
    /// Room for blocks that have no place in their bucket.
    pub spilled_blocks: u32,
    /// Sets of the table of stacks; a power of two.
    pub stack_sets: u32,
}

impl Sizes {
    /// Sizes with room for `max_live` blocks and `max_stacks` stacks.
    ///
    /// A bucket of 15 is planned for 9 blocks: one in 30 buckets then holds more than it has room for (Poisson), and a sixteenth
    /// of the blocks has room beside the table.
    #[must_use]
    pub fn with_room_for(max_live: u64, max_stacks: u32) -> Self {
        const PLANNED: u64 = 9;
        // 2^26 buckets are 16 GiB and hold 600 million blocks.
        let live_buckets = max_live.div_ceil(PLANNED).next_power_of_two().clamp(1, 1 << 26) as u32;
        let spilled_blocks = (max_live / 16).clamp(64, 1 << 26) as u32;
        let stack_sets = (max_stacks.clamp(64, MAX_STACKS) / SET_WAYS as u32).next_power_of_two();
        Self { live_buckets, spilled_blocks, stack_sets }
    }

    /// How many stacks there is room for.
    #[must_use]
    pub const fn stacks(self) -> u32 {
        self.stack_sets * SET_WAYS as u32
    }

    /// How many blocks there is room for, at the very most.
    #[must_use]
    pub const fn blocks(self) -> u64 {
        self.live_buckets as u64 * BUCKET_WAYS as u64 + self.spilled_blocks as u64
    }

    /// Memory that the live table takes from the kernel, in bytes; what spills comes on top.
    #[must_use]
    pub const fn live_bytes(self) -> u64 {
        self.live_buckets as u64 * size_of::<LiveBucket>() as u64
    }
}

/// The tables of a loaded capture. They can be read at any time, and are at rest after it is detached.
pub struct SharedTables {
    processes: SharedArray<ProcessState>,
    process_count: SharedArray<Word>,
    live: SharedArray<LiveBucket>,
    spill: HashMap<MapData, u64, SpilledBlock>,
    spill_room: u32,
    stacks: SharedArray<SlotSet>,
    totals: SharedArray<StackTotals>,
    counters: SharedArray<Stripe>,
    usdt_arguments: SharedArray<Arguments>,
    records: SharedArray<RecordWords>,
    record_owners: SharedArray<SlotSet>,
}

/// A [`Block`] as the hash map gives it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct SpilledBlock(Block);

// SAFETY: `Block` is plain integers without padding that is not a field.
unsafe impl aya::Pod for SpilledBlock {}

/// An [`InFlight`] as words, since threads may be writing it.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct RecordWords([tracer_ebpf::atomic::Word; size_of::<InFlight>() / 8]);

impl SharedTables {
    pub(super) fn map(ebpf: &Ebpf, sizes: Sizes) -> Result<Self> {
        let tables = Self {
            processes: array(ebpf, "PROCESSES", MAX_PROCESSES)?,
            process_count: array(ebpf, "PROCESS_COUNT", 1)?,
            live: array(ebpf, "LIVE", sizes.live_buckets)?,
            spill: spill(ebpf)?,
            spill_room: sizes.spilled_blocks,
            stacks: array(ebpf, "STACKS", sizes.stack_sets)?,
            totals: array(ebpf, "TOTALS", sizes.stacks())?,
            counters: array(ebpf, "COUNTERS", STRIPES)?,
            usdt_arguments: array(ebpf, "USDT_ARGUMENTS", MAX_ARGUMENTS)?,
            records: array(ebpf, "RECORDS", RECORD_SETS * SET_WAYS as u32)?,
            record_owners: array(ebpf, "RECORD_OWNERS", RECORD_SETS)?,
        };
        tables.reserve_numbers();
        Ok(tables)
    }

    /// The first stacks take what found no room, and what was of stacks that are gone; no hash may claim them.
    fn reserve_numbers(&self) {
        const { assert!(StackId::NO_ROOM.number() == 0 && StackId::RETIRED.number() == 1) };
        if let Some(set) = self.stacks.elements().first() {
            set.claim(WITHDRAWN);
            set.claim(WITHDRAWN);
        }
    }
}

/// A key that is no stack's: their hashes have the highest bit.
const WITHDRAWN: u64 = u64::MAX >> 1;

fn map_data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match ebpf.map(name) {
        Some(Map::Array(data) | Map::HashMap(data)) => Ok(data),
        _ => anyhow::bail!("the BPF object has no map {name}"),
    }
}

pub(super) fn array<T: Shared>(ebpf: &Ebpf, name: &str, length: u32) -> Result<SharedArray<T>> {
    SharedArray::map(map_data(ebpf, name)?.fd(), length as usize)
        .with_context(|| format!("cannot map the BPF array {name}"))
}

/// A second descriptor of the hash map, so that it can be read while `Ebpf` is used for other things.
fn spill(ebpf: &Ebpf) -> Result<HashMap<MapData, u64, SpilledBlock>> {
    use std::os::fd::AsFd as _;
    let fd = map_data(ebpf, "SPILL")?.fd().as_fd().try_clone_to_owned()?;
    Ok(HashMap::try_from(Map::HashMap(MapData::from_fd(fd)?))?)
}

impl SharedTables {
    /// State of the traced processes, by index.
    #[must_use]
    pub fn processes(&self) -> &[ProcessState] {
        self.processes.elements()
    }

    /// How many indexes of processes are taken.
    #[must_use]
    pub fn process_count(&self) -> &Word {
        &self.process_count.elements()[0]
    }

    /// Totals of the stacks, by number.
    #[must_use]
    pub fn totals(&self) -> &[StackTotals] {
        self.totals.elements()
    }

    /// Totals of the stacks, with their numbers.
    pub fn stacks(&self) -> impl Iterator<Item = (StackId, &StackTotals)> {
        (0..).map(StackId::new).zip(self.totals())
    }

    /// Takes a stack's place from it: from now on no program finds it, or takes its place for another stack. Programs that found
    /// it before may still count for it. Whether there was a stack.
    #[must_use]
    pub fn withdraw(&self, stack: StackId) -> bool {
        let Some((set, way)) = self.place(stack) else { return false };
        let key = set.key(way);
        key != 0 && key != WITHDRAWN && set.hand_over(way, key, WITHDRAWN)
    }

    /// Gives the place of a withdrawn stack to whoever comes, and its totals to [`StackId::RETIRED`]. Every program that ran when
    /// it was withdrawn must have ended.
    pub fn vacate(&self, stack: StackId) {
        let Some((set, way)) = self.place(stack).filter(|(set, way)| set.key(*way) == WITHDRAWN) else {
            return;
        };
        if let (Some(all), Some(totals)) =
            (self.totals().get(StackId::RETIRED.place()), self.totals().get(stack.place()))
        {
            all.take_over(totals);
        }
        set.release(way);
    }

    /// How many stacks have a place.
    #[must_use]
    pub fn known_stacks(&self) -> usize {
        let ways = 0..SET_WAYS as u32;
        self.stacks.elements().iter().map(|set| ways.clone().filter(|&way| set.key(way) != 0).count()).sum()
    }

    fn place(&self, stack: StackId) -> Option<(&SlotSet, u32)> {
        if stack <= StackId::RETIRED {
            return None;
        }
        let (set, way) = set_and_way(stack.number());
        Some((self.stacks.elements().get(set as usize)?, way))
    }

    /// What a counter says, over all its copies.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        self.counters.elements().iter().map(|stripe| stripe.get(counter)).sum()
    }

    /// The place of these arguments of a USDT probe, which are put there if they are new; none when there is no room.
    #[must_use]
    pub(super) fn place_of_arguments(&self, arguments: &[Argument]) -> Option<u16> {
        let is_free = |there: &Arguments| there.get(0).is_none();
        let wanted =
            |there: &Arguments| (0..Arguments::MOST).all(|at| there.get(at) == arguments.get(at).copied());
        let places = self.usdt_arguments.elements();
        let at = places.iter().position(|there| is_free(there) || wanted(there))?;
        if is_free(&places[at]) {
            places[at].set(arguments);
        }
        u16::try_from(at).ok()
    }

    /// Every block that is live, while others may be changing the table. At rest it is exact: blocks that a `realloc` was about to
    /// release when the window closed are among them.
    pub fn live_blocks(&self) -> impl Iterator<Item = (BlockKey, Block)> + '_ {
        let table = self.live.elements().iter().flat_map(LiveBucket::blocks);
        table.chain(self.spilled_blocks()).chain(self.blocks_in_flight())
    }

    /// The kernel begins again with the first key when the one that was last is gone: hence the set, and an end.
    fn spilled_blocks(&self) -> impl Iterator<Item = (BlockKey, Block)> + use<> {
        let most = 2 * self.spill_room as usize + 64;
        let spilled: StdHashMap<u64, Block> =
            self.spill.iter().take(most).flatten().map(|(key, SpilledBlock(block))| (key, block)).collect();
        spilled.into_iter().filter_map(|(key, block)| Some((BlockKey::from_bits(key)?, block)))
    }

    /// Forgets every block and everything that was counted. To be called while no program runs that counts.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.live.elements().iter().for_each(LiveBucket::clear);
        let spilled: Vec<u64> = self.spill.keys().collect::<Result<_, _>>()?;
        for key in spilled {
            self.spill.remove(&key)?;
        }
        self.totals.elements().iter().for_each(StackTotals::clear);
        self.counters.elements().iter().for_each(Stripe::clear);
        Ok(())
    }

    /// What calls of this window are about to release.
    fn blocks_in_flight(&self) -> impl Iterator<Item = (BlockKey, Block)> + '_ {
        let owned =
            self.record_owners.elements().iter().flat_map(|set| (0..SET_WAYS as u32).map(|way| set.key(way)));
        owned
            .zip(self.records.elements())
            .filter_map(|(owner, record)| if owner == 0 { None } else { record.old_block(self.processes()) })
    }
}

// SAFETY: it is made of words.
unsafe impl Shared for RecordWords {}

impl RecordWords {
    /// The block that the recorded call is about to release.
    fn old_block(&self, processes: &[ProcessState]) -> Option<(BlockKey, Block)> {
        let word = |offset: usize| self.0[offset / 8].load();
        let block = offset_of!(InFlight, old);
        let key = BlockKey::from_bits(word(offset_of!(InFlight, old_key)))?;
        let process = processes.get(usize::from(key.process()))?;
        if word(offset_of!(InFlight, opened_ns)) != process.opened_ns.load() {
            return None;
        }
        // Its padding is 0.
        let stack = StackId::new(word(block + offset_of!(Block, stack)) as u32);
        let size = word(block + offset_of!(Block, size));
        let born_ns = word(block + offset_of!(Block, born_ns));
        let objects = word(block + offset_of!(Block, objects));
        Some((key, Block { size, born_ns, stack, objects, ..Block::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_room_they_are_asked_for() {
        for max_live in [1, 1000, 1 << 20, 10_000_000] {
            let sizes = Sizes::with_room_for(max_live, 1 << 17);
            assert!(sizes.live_buckets.is_power_of_two() && sizes.stack_sets.is_power_of_two());
            assert!(sizes.blocks() >= max_live);
            // At most 64 bytes for a block that there is room for.
            assert!(sizes.live_bytes() <= 64 * max_live.max(16), "{max_live}: {}", sizes.live_bytes());
        }
        assert_eq!(Sizes::with_room_for(1, u32::MAX).stacks(), MAX_STACKS);
    }
}
