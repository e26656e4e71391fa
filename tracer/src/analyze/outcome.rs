//! From what was counted to the profile: every stack with its totals, what is outstanding, and what was lost.

use std::{collections::BTreeMap, sync::Arc};

use tracer_ebpf::{
    live::{Block, BlockKey},
    process::ProcessIndex,
    sampling::{OBJECT, Sampling, Weight},
    stack::{StackId, StackTotals},
};

use super::{
    growth::{self, Births, Point, Turnover},
    history::{History, Source},
    housekeeping::is_housekeeping,
    jit::{self, Judged},
    managed::{ManagedHolders, is_system_call_wrapper},
    mappings::{Holder, LiveRange, Totals as MappingTotals},
};
use crate::model::{Bytes, Events, Frame, Kind, Pid, StackReport, Stop, Totals};

/// What is known of a stack beside its totals.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownStack {
    pub process: ProcessIndex,
    /// The function that was called, as reports name it.
    pub api: String,
    /// Why the walk ended.
    pub stop: Stop,
    /// Its frames, leaf first.
    pub frames: Vec<Arc<Frame>>,
}

/// What the kernel counted for a stack of the malloc family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NativeTotals {
    /// Requested bytes.
    pub allocated_bytes: u64,
    /// Calls.
    pub allocated_objects: u64,
    /// Bytes of blocks that were freed.
    pub freed_bytes: u64,
    /// Blocks that were freed.
    pub freed_objects: u64,
}

impl From<&StackTotals> for NativeTotals {
    /// Objects are rounded so that what is left of them is what the live blocks add up to.
    fn from(totals: &StackTotals) -> Self {
        // Freed first: programs may be counting more, and freed must not be above allocated.
        let freed = totals.freed();
        let allocated = totals.allocated();
        let allocated_objects = allocated.whole_objects();
        let left = Weight { bytes: 0, objects: allocated.objects.saturating_sub(freed.objects) };
        Self {
            allocated_bytes: allocated.bytes,
            allocated_objects,
            freed_bytes: freed.bytes,
            freed_objects: allocated_objects.saturating_sub(left.whole_objects()),
        }
    }
}

/// What a stack holds at the end.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Of what counts as outstanding.
    weight: Weight,
    oldest_age_ns: u64,
    /// Of everything.
    births: Births,
    /// The variance of the bytes that count as outstanding; 0 when every allocation was kept.
    variance: f64,
    /// That of all bytes.
    born_variance: f64,
}

impl Held {
    const fn nothing(window_ns: u64) -> Self {
        let weight = Weight { bytes: 0, objects: 0 };
        Self {
            weight,
            oldest_age_ns: 0,
            births: Births::new(0, window_ns),
            variance: 0.0,
            born_variance: 0.0,
        }
    }

    fn add(&mut self, weight: Weight, age_ns: u64) {
        self.weight.bytes += weight.bytes;
        self.weight.objects += weight.objects;
        self.variance += variance(weight);
        self.oldest_age_ns = self.oldest_age_ns.max(age_ns);
    }
}

/// Adds up live blocks by stack; those that are at least `min_age_ns` old are outstanding. `window_ns` tells how long ago the
/// window of a process opened, `sampling` how much each stands for.
pub fn held_by_stack(
    blocks: impl Iterator<Item = (BlockKey, Block)>,
    window_ns: impl Fn(ProcessIndex) -> u64,
    min_age_ns: u64,
    sampling: Sampling,
) -> BTreeMap<StackId, Held> {
    let mut held: BTreeMap<StackId, Held> = BTreeMap::new();
    for (key, block) in blocks {
        let window_ns = window_ns(key.process());
        let age_ns = window_ns.saturating_sub(block.born_ns);
        let stack = held.entry(block.stack).or_insert_with(|| Held::nothing(window_ns));
        let weight = block.weight(sampling);
        stack.births.add(block.born_ns, Bytes(weight.bytes));
        stack.born_variance += variance(weight);
        if age_ns >= min_age_ns {
            stack.add(weight, age_ns);
        }
    }
    held
}

/// What a kept block adds to the variance of an estimate of bytes: `(1 - p) (s / p)^2` (Horvitz and Thompson 1952).
fn variance(weight: Weight) -> f64 {
    let left_out = 1.0 - OBJECT as f64 / weight.objects.max(OBJECT) as f64;
    left_out * (weight.bytes as f64).powi(2)
}

/// A live range of a mapping, and how much of it is resident, where that is known.
pub type WeighedRange = (LiveRange, Option<Bytes>);

/// Everything that was counted.
#[derive(Debug)]
pub struct Counted {
    /// Pids by index.
    pub pids: Vec<Pid>,
    /// Stacks by number.
    pub stacks: BTreeMap<StackId, KnownStack>,
    /// Totals of the malloc family, by stack.
    pub native: BTreeMap<StackId, NativeTotals>,
    /// What the malloc family holds, by stack.
    pub held: BTreeMap<StackId, Held>,
    pub mappings: Vec<(Holder, MappingTotals)>,
    /// What mappings hold.
    pub ranges: Vec<WeighedRange>,
    /// Which of them are heaps of a runtime.
    pub managed: ManagedHolders,
    /// What was held over the window.
    pub history: History,
    /// Only blocks at least this old count as outstanding.
    pub min_age_ns: u64,
    /// Monotonic clock at the start of the window.
    pub opened_ns: u64,
    /// Monotonic clock at its end.
    pub ended_ns: u64,
}

impl Counted {
    /// Makes what is held agree with the totals. Where blocks come and go, those that are live and the totals are read at different
    /// moments; the totals of a stack agree with each other.
    pub fn settle_held(&mut self) {
        let window_ns = self.window_ns();
        for (&number, totals) in &self.native {
            let held = self.held.entry(number).or_insert_with(|| Held::nothing(window_ns));
            let left = Weight {
                bytes: totals.allocated_bytes.saturating_sub(totals.freed_bytes),
                objects: totals.allocated_objects.saturating_sub(totals.freed_objects) * OBJECT,
            };
            held.weight = if self.min_age_ns == 0 { left } else { held.weight.min(left) };
        }
    }

    /// Every stack that allocated, judged, largest weight first.
    #[must_use]
    pub fn judged(&self) -> Vec<Judged> {
        let native = self.native.iter().map(|(&number, totals)| self.native_stack(number, totals));
        let mut judged: Vec<_> = native.chain(self.mapping_stacks()).collect();
        jit::judge_together(&mut judged, &self.history);
        judged.sort_by(|Judged { stack: a, .. }, Judged { stack: b, .. }| {
            (b.weight_bytes, b.outstanding_bytes, b.allocated_bytes)
                .cmp(&(a.weight_bytes, a.outstanding_bytes, a.allocated_bytes))
                .then_with(|| {
                    a.frames.iter().map(|frame| frame.ip).cmp(b.frames.iter().map(|frame| frame.ip))
                })
        });
        judged
    }

    /// Every stack that allocated, largest weight first.
    #[cfg(test)]
    fn stacks(&self) -> Vec<StackReport> {
        self.judged().into_iter().map(|judged| judged.stack).collect()
    }

    fn native_stack(&self, number: StackId, totals: &NativeTotals) -> Judged {
        let held = self.held.get(&number).copied().unwrap_or_else(|| self.nothing());
        let stack = StackReport {
            weight_bytes: held.weight.bytes,
            outstanding_bytes: held.weight.bytes,
            outstanding_objects: held.weight.whole_objects(),
            allocated_bytes: totals.allocated_bytes,
            allocated_objects: totals.allocated_objects,
            freed_bytes: totals.freed_bytes,
            freed_objects: totals.freed_objects,
            standard_error_bytes: (held.variance > 0.0).then(|| held.variance.sqrt().round() as u64),
            oldest_age_ns: (held.weight.objects > 0).then_some(held.oldest_age_ns),
            median_age_ns: held.births.median_age_ns(held.weight.bytes),
            ..self.bare_stack(number, Kind::Native)
        };
        self.judge(stack, Source::Native(number), &held)
    }

    /// What kinds `native` and `mapping` held over the window.
    #[must_use]
    pub fn outstanding(&self) -> Vec<Point> {
        self.history.total(|source| match source {
            Source::Native(_) => true,
            Source::Mapping(holder) => self.managed.judged(holder).kind.counts_by_default(),
        })
    }

    fn nothing(&self) -> Held {
        Held::nothing(self.window_ns())
    }

    fn window_ns(&self) -> u64 {
        self.ended_ns.saturating_sub(self.opened_ns)
    }

    /// Says how a stack grew, and whether that is a leak.
    fn judge(&self, mut stack: StackReport, source: Source, held: &Held) -> Judged {
        let Held { births, born_variance: variance, .. } = *held;
        if matches!(stack.kind, Kind::Allocator | Kind::File) {
            return Judged { stack, source, births, variance };
        }
        let history = self.history.of(source);
        stack.growth_bytes_per_second = growth::rate(&history);
        stack.history_bytes = evenly_spaced(&history);
        if stack.kind.counts_by_default() {
            let turnover = Turnover {
                allocated_objects: stack.allocated_objects,
                freed_objects: stack.freed_objects,
                births,
                standard_error: Bytes(variance.sqrt() as u64),
                times: births.blocks(),
                is_one_in_use: stack.outstanding_objects == 1
                    && stack.resident_bytes.is_some_and(|resident| resident <= stack.outstanding_bytes / 4),
                is_housekeeping: is_housekeeping(&stack.frames),
            };
            let judgement = growth::judge(&history, &turnover);
            stack.verdict = Some(judgement.verdict);
            stack.reason = Some(judgement.reason.to_owned());
        }
        Judged { stack, source, births, variance }
    }

    /// A stack with nothing but its frames.
    fn bare_stack(&self, number: StackId, kind: Kind) -> StackReport {
        let known = self.stacks.get(&number);
        let stop = match known {
            Some(known) => known.stop,
            None if number == StackId::NO_ROOM || number == StackId::NONE => Stop::NoRoom,
            None if number == StackId::RETIRED => Stop::Retired,
            None => Stop::NotDelivered,
        };
        let process = || known.map(|known| known.process);
        StackReport {
            pid: process().and_then(|process| self.pid(process)),
            process: process().filter(|&process| self.pid(process).is_some()).map(u32::from),
            kind,
            api: known.map_or_else(|| "unknown".to_owned(), |known| known.api.clone()),
            weight_bytes: 0,
            outstanding_bytes: 0,
            outstanding_objects: 0,
            allocated_bytes: 0,
            allocated_objects: 0,
            freed_bytes: 0,
            freed_objects: 0,
            resident_bytes: None,
            standard_error_bytes: None,
            oldest_age_ns: None,
            median_age_ns: None,
            growth_bytes_per_second: None,
            history_bytes: Vec::new(),
            verdict: None,
            reason: None,
            complete: stop.is_complete(),
            stop: (!stop.is_complete()).then(|| stop.name().to_owned()),
            frames: known.map_or_else(Vec::new, |known| known.frames.clone()),
        }
    }

    /// The pid of a process, when there are several.
    fn pid(&self, process: ProcessIndex) -> Option<Pid> {
        self.pids.get(usize::from(process)).copied().filter(|_| self.pids.len() > 1)
    }

    fn mapping_stacks(&self) -> impl Iterator<Item = Judged> + '_ {
        let held = self.held_by_holder();
        self.mappings.iter().map(move |(holder, totals)| {
            // What holds nothing has nothing resident, which is known without a look.
            let nothing = || HeldRanges { resident_bytes: Some(0), ..self.nothing_mapped() };
            let held = held.get(holder).copied().unwrap_or_else(nothing);
            let all = self.min_age_ns == 0;
            let mut stack = StackReport {
                pid: self.pid(holder.process),
                process: self.pid(holder.process).map(|_| holder.process.into()),
                api: holder.api.to_owned(),
                weight_bytes: held.resident_bytes.unwrap_or(0),
                resident_bytes: held.resident_bytes,
                outstanding_bytes: if all { totals.outstanding_bytes() } else { held.held.weight.bytes },
                outstanding_objects: if all {
                    totals.outstanding_objects()
                } else {
                    held.held.weight.whole_objects()
                },
                allocated_bytes: totals.allocated_bytes,
                allocated_objects: totals.allocated_objects,
                freed_bytes: totals.freed_bytes,
                freed_objects: totals.freed_objects,
                oldest_age_ns: (held.held.weight.objects > 0).then_some(held.held.oldest_age_ns),
                median_age_ns: held.held.births.median_age_ns(held.resident_bytes.unwrap_or(0)),
                ..self.bare_stack(holder.stack, self.managed.judged(*holder).kind)
            };
            drop_system_call_wrappers(&mut stack.frames);
            self.judge(stack, Source::Mapping(*holder), &held.held)
        })
    }

    fn nothing_mapped(&self) -> HeldRanges {
        HeldRanges { held: self.nothing(), resident_bytes: None }
    }

    fn held_by_holder(&self) -> BTreeMap<Holder, HeldRanges> {
        let mut held: BTreeMap<Holder, HeldRanges> = BTreeMap::new();
        for (live, resident) in &self.ranges {
            let age_ns = self.ended_ns.saturating_sub(live.born_ns);
            let ranges = held.entry(live.holder).or_insert_with(|| self.nothing_mapped());
            let born_ns = live.born_ns.saturating_sub(self.opened_ns);
            ranges.held.births.add(born_ns, resident.unwrap_or_default());
            if age_ns < self.min_age_ns {
                continue;
            }
            ranges.held.add(Weight::exactly(live.range.bytes()), age_ns);
            if let Some(resident) = resident {
                *ranges.resident_bytes.get_or_insert(0) += resident.0;
            }
        }
        held
    }
}

#[derive(Clone, Copy, Debug)]
struct HeldRanges {
    held: Held,
    resident_bytes: Option<u64>,
}

/// The caller of `mmap` is frame 0, not `mmap` itself, in which the system call was made.
fn drop_system_call_wrappers(frames: &mut Vec<Arc<Frame>>) {
    let wrappers = frames.iter().take_while(|frame| is_system_call_wrapper(frame)).count();
    // `sbrk` calls `brk`, both are wrappers; but a stack of nothing else is better than none.
    if wrappers < frames.len() {
        frames.drain(..wrappers);
    }
}

/// Sums over the stacks that count: kinds `native` and `mapping`.
#[must_use]
pub fn totals(stacks: &[StackReport]) -> Totals {
    let mut totals = Totals::default();
    for stack in stacks.iter().filter(|stack| stack.kind.counts_by_default()) {
        totals.outstanding_bytes += stack.outstanding_bytes;
        totals.outstanding_objects += stack.outstanding_objects;
        totals.allocated_bytes += stack.allocated_bytes;
        totals.allocated_objects += stack.allocated_objects;
        totals.freed_bytes += stack.freed_bytes;
        totals.freed_objects += stack.freed_objects;
        totals.weight_bytes += stack.weight_bytes;
    }
    totals
}

/// Counts allocations with an incomplete stack, by cause, into `events`.
pub fn count_incomplete(events: &mut Events, stacks: &[StackReport]) {
    for stack in stacks.iter().filter(|stack| stack.kind.counts_by_default()) {
        if let Some(stop) = &stack.stop {
            *events.incomplete_stacks.entry(stop.clone()).or_default() += stack.allocated_objects;
        }
    }
    events.incomplete_stacks.retain(|_, allocations| *allocations > 0);
}

/// Points of a history that go into the report: enough for a line as small as a word.
const HISTORY_POINTS: usize = 24;

/// The sizes at so many points of a history, its first and its last one among them. Nothing when it was always 0.
pub(super) fn evenly_spaced(history: &[growth::Point]) -> Vec<u64> {
    let points = history.len().min(HISTORY_POINTS);
    if points < 2 || history.iter().all(|point| point.bytes.0 == 0) {
        return Vec::new();
    }
    (0..points).map(|i| history[i * (history.len() - 1) / (points - 1)].bytes.0).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Address, AddressRange, Verdict};

    fn frame(ip: u64, function: &str) -> Frame {
        Frame { ip: Address(ip), function: Some(function.to_owned()), ..Frame::default() }
    }

    fn known(api: &str, functions: &[&str]) -> KnownStack {
        let frames = functions.iter().zip(1..).map(|(function, ip)| Arc::new(frame(ip, function))).collect();
        KnownStack { process: ProcessIndex::default(), api: api.to_owned(), stop: Stop::Base, frames }
    }

    fn id(number: u32) -> StackId {
        StackId::new(number)
    }

    fn block(address: u64, size: u64, born_ns: u64, stack: u32) -> (BlockKey, Block) {
        let stack = id(stack);
        (
            BlockKey::new(ProcessIndex::default(), address).unwrap(),
            Block { size, born_ns, stack, ..Block::default() },
        )
    }

    fn counted() -> Counted {
        Counted {
            pids: vec![Pid(1)],
            stacks: BTreeMap::new(),
            native: BTreeMap::new(),
            held: BTreeMap::new(),
            mappings: Vec::new(),
            ranges: Vec::new(),
            managed: ManagedHolders::default(),
            history: History::new(1),
            min_age_ns: 0,
            opened_ns: 0,
            ended_ns: 1000,
        }
    }

    /// A stack of nothing.
    pub(in super::super) fn bare() -> StackReport {
        counted().bare_stack(id(9), Kind::Native)
    }

    fn held(bytes: u64, objects: u64, oldest_age_ns: u64) -> Held {
        Held { weight: Weight { bytes, objects: objects * OBJECT }, oldest_age_ns, ..Held::nothing(1000) }
    }

    fn figures(held: &Held) -> (u64, u64, u64) {
        (held.weight.bytes, held.weight.whole_objects(), held.oldest_age_ns)
    }

    #[test]
    fn blocks_add_up_by_stack_and_young_ones_are_left_out() {
        let blocks = [block(16, 10, 100, 1), block(32, 20, 900, 1), block(48, 5, 950, 2)];
        let held = held_by_stack(blocks.into_iter(), |_| 1000, 0, Sampling::EVERY);
        assert_eq!(figures(&held[&id(1)]), (30, 2, 900));
        assert_eq!(figures(&held[&id(2)]), (5, 1, 50));
        let old = held_by_stack(blocks.into_iter(), |_| 1000, 100, Sampling::EVERY);
        assert_eq!(figures(&old[&id(1)]), (30, 2, 900));
        assert_eq!(figures(&old[&id(2)]), (0, 0, 0));
    }

    #[test]
    fn a_reservation_weighs_nothing_and_the_heaviest_stack_is_first() {
        let holder =
            Holder { process: ProcessIndex::default(), stack: id(2), kind: Kind::Mapping, api: "mmap" };
        let range = AddressRange { start: Address(0x1000), end: Address(0x1000 + (1 << 40)) };
        let counted = Counted {
            stacks: [(id(1), known("malloc", &["leak"])), (id(2), known("mmap", &["__mmap64", "reserve"]))]
                .into(),
            native: [(
                id(1),
                NativeTotals { allocated_bytes: 64, allocated_objects: 2, freed_bytes: 24, freed_objects: 1 },
            )]
            .into(),
            held: [(id(1), held(40, 1, 7))].into(),
            mappings: vec![(
                holder,
                MappingTotals { allocated_bytes: 1 << 40, allocated_objects: 1, ..MappingTotals::default() },
            )],
            ranges: vec![(LiveRange { range, holder, born_ns: 0 }, Some(Bytes(0)))],
            ..counted()
        };
        let stacks = counted.stacks();
        let brief: Vec<_> = stacks
            .iter()
            .map(|stack| (stack.kind, stack.weight_bytes, stack.outstanding_bytes, stack.frames[0].label()))
            .collect();
        assert_eq!(
            brief,
            [(Kind::Native, 40, 40, "leak".to_owned()), (Kind::Mapping, 0, 1 << 40, "reserve".to_owned())]
        );
        let totals = totals(&stacks);
        assert_eq!((totals.weight_bytes, totals.outstanding_bytes), (40, 40 + (1 << 40)));
        assert_eq!(totals.allocated_bytes - totals.freed_bytes, totals.outstanding_bytes);
    }

    #[test]
    fn a_leak_is_told_from_what_is_made_once() {
        const SECOND: u64 = 1_000_000_000;
        let seconds = 20;
        let mut history = History::new(SECOND);
        for second in 0..=seconds {
            let sizes = [(Source::Native(id(1)), Bytes(10 * second)), (Source::Native(id(2)), Bytes(500))];
            history.push(second * SECOND, sizes);
        }
        let leaked = (0..seconds).map(|second| block(16 * (second + 1), 10, second * SECOND, 1));
        let kept = block(1 << 20, 500, 5, 2);
        let totals = |bytes, objects| NativeTotals {
            allocated_bytes: bytes,
            allocated_objects: objects,
            ..NativeTotals::default()
        };
        let window_ns = seconds * SECOND;
        let counted = Counted {
            native: [(id(1), totals(10 * seconds, seconds)), (id(2), totals(500, 1))].into(),
            held: held_by_stack(leaked.chain([kept]), |_| window_ns, 0, Sampling::EVERY),
            history,
            ended_ns: window_ns,
            ..counted()
        };
        let stacks = counted.stacks();
        let brief: Vec<_> = stacks
            .iter()
            .map(|stack| (stack.weight_bytes, stack.growth_bytes_per_second, stack.verdict))
            .collect();
        assert_eq!(
            brief,
            [(500, Some(0.0), Some(Verdict::Unknown)), (200, Some(10.0), Some(Verdict::Leaking))]
        );
    }

    #[test]
    fn totals_without_a_stack_are_kept_and_say_why() {
        let counted = Counted {
            native: [
                (StackId::NO_ROOM, NativeTotals { allocated_objects: 3, ..NativeTotals::default() }),
                (id(9), NativeTotals { allocated_objects: 4, ..NativeTotals::default() }),
            ]
            .into(),
            ..counted()
        };
        let mut events = Events::default();
        count_incomplete(&mut events, &counted.stacks());
        assert_eq!(
            events.incomplete_stacks,
            [("no_room".to_owned(), 3), ("not_delivered".to_owned(), 4)].into()
        );
    }
}
