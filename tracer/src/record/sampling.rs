//! Sampling during a recording: which allocations are kept, and how the calls that were not are counted.

use tracer_ebpf::{
    counter::Counter,
    live::{Block, BlockKey},
    sampling::{OBJECT, Sampling, Weight},
    stack::StackTotals,
};

use crate::{attach::SharedTables, model::Bytes};

/// Which allocations are kept.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    mean: Bytes,
    sampling: Sampling,
}

/// Calls of the malloc family in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    pub allocations: u64,
    /// Releases of what was allocated in the window.
    pub frees: u64,
    /// Releases of what was not.
    pub unmatched_frees: u64,
}

impl Sampler {
    /// One sample every `mean` bytes; 0 keeps every allocation.
    pub fn new(mean: Bytes) -> Self {
        Self { mean, sampling: Sampling::with_mean(mean.0) }
    }

    /// How allocations are chosen.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// How many live blocks to expect of targets with so much resident memory.
    ///
    /// Tracking all: one for every 128 bytes, and at least a million: 32 MiB of tables. Of a sample no more than one for
    /// every mean of what is allocated: room for four times what is resident and 16 GiB more. A small table has another
    /// merit: every free looks into it, and finds it in the CPU's cache.
    pub fn room_for(&self, resident: Bytes) -> u64 {
        match self.mean.0 {
            0 => (resident.0 / 128).clamp(1 << 20, 1 << 24),
            mean => (resident.0.saturating_mul(4).saturating_add(16 << 30) / mean).clamp(1 << 14, 1 << 24),
        }
    }

    /// How many calls there have been, roughly while there are more.
    pub fn calls_so_far(&self, tables: &SharedTables) -> u64 {
        let Calls { allocations, frees, unmatched_frees } = self.counted(tables);
        allocations + frees + unmatched_frees
    }

    /// How many blocks from before the window have been freed so far; `None` of a sample, which does not know them from those that were
    /// left out.
    pub fn older_frees_so_far(&self, tables: &SharedTables) -> Option<u64> {
        self.sampling.keeps_every_one().then(|| tables.count(Counter::UnmatchedFree))
    }

    /// How often probed functions were called so far, roughly: whatever came of the call.
    pub fn calls_of_probes(&self, tables: &SharedTables) -> u64 {
        let others = [Counter::Nested, Counter::Failed, Counter::Filtered];
        self.calls_so_far(tables) + others.map(|counter| tables.count(counter)).iter().sum::<u64>()
    }

    /// The calls of a window that is over, given what is live at its end.
    pub fn calls(&self, tables: &SharedTables) -> Calls {
        let calls = self.counted(tables);
        if self.sampling.keeps_every_one() {
            return calls;
        }
        divided(
            calls.allocations,
            calls.frees + calls.unmatched_frees,
            left(tables.live_blocks(), self.sampling),
        )
    }

    /// The calls as the programs tell them apart: what is left out of a sample is unknown to them when it is freed.
    fn counted(&self, tables: &SharedTables) -> Calls {
        let count = |counter| tables.count(counter);
        let (allocations, frees) = if self.sampling.keeps_every_one() {
            let sum = |weight: fn(&StackTotals) -> Weight| {
                tables.totals().iter().map(|totals| weight(totals).whole_objects()).sum::<u64>()
            };
            (sum(StackTotals::allocated) + count(Counter::LiveTableFull), sum(StackTotals::freed))
        } else {
            let objects = |counter| (count(counter) + OBJECT / 2) / OBJECT;
            (objects(Counter::Sampled) + count(Counter::Unsampled), objects(Counter::SampleFreed))
        };
        Calls { allocations, frees, unmatched_frees: count(Counter::UnmatchedFree) }
    }
}

/// How many objects are left, estimated from those that were kept.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    objects: f64,
    variance: f64,
}

fn left(blocks: impl Iterator<Item = (BlockKey, Block)>, sampling: Sampling) -> Left {
    blocks.fold(Left::default(), |sum, (_, block)| {
        let objects = block.weight(sampling).objects as f64 / OBJECT as f64;
        Left { objects: sum.objects + objects, variance: sum.variance + objects * (objects - 1.0) }
    })
}

/// Divides releases into those of blocks from the window and the others, which are not told apart where blocks are left out.
///
/// Allocations and releases are counted, all of them. What was allocated and is not left was released. There is an error in
/// what is left; as long as the others are within three times that, there are none that we know of.
fn divided(allocations: u64, all_frees: u64, left: Left) -> Calls {
    let released = (allocations as f64 - left.objects).max(0.0);
    let others = all_frees as f64 - released;
    // What was rounded may be one.
    let unmatched_frees = if others > 3.0 * left.variance.sqrt() + 1.0 { others.round() as u64 } else { 0 };
    let unmatched_frees = unmatched_frees.min(all_frees);
    Calls { allocations, frees: all_frees - unmatched_frees, unmatched_frees }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::process::ProcessIndex;

    use super::*;

    #[test]
    fn frees_of_older_blocks_are_those_that_the_window_cannot_explain() {
        let left = |objects, error: f64| Left { objects, variance: error * error };
        let calls = |frees, unmatched_frees| Calls { allocations: 1000, frees, unmatched_frees };
        assert_eq!(divided(1000, 900, left(100.0, 10.0)), calls(900, 0));
        // Within the error of the estimate.
        assert_eq!(divided(1000, 925, left(100.0, 10.0)), calls(925, 0));
        assert_eq!(divided(1000, 950, left(100.0, 10.0)), calls(900, 50));
        // Fewer than expected, or more left than there can be.
        assert_eq!(divided(1000, 850, left(100.0, 10.0)), calls(850, 0));
        assert_eq!(divided(1000, 500, left(2000.0, 10.0)), calls(0, 500));
    }

    #[test]
    fn what_is_left_is_estimated_with_its_error() {
        let sampling = Sampling::with_mean(1 << 20);
        let block = |address, size| {
            let key = BlockKey::new(ProcessIndex::default(), address).unwrap();
            (key, Block { size, ..Block::default() })
        };
        let certain = left([block(16, 1 << 30)].into_iter(), sampling);
        assert!(certain.objects == 1.0 && certain.variance == 0.0);
        let small = left([block(16, 1024), block(32, 1024)].into_iter(), sampling);
        assert!((small.objects - 2049.0).abs() < 0.1, "{small:?}");
        assert!((small.variance.sqrt() - 1448.0).abs() < 1.0, "{small:?}");
    }

    #[test]
    fn a_sample_needs_little_room() {
        assert_eq!(Sampler::new(Bytes(0)).room_for(Bytes(1 << 30)), 1 << 23);
        assert_eq!(Sampler::new(Bytes(512 << 10)).room_for(Bytes(1 << 30)), 20 << 11);
    }
}
