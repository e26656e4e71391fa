//! Growth mode: no probes, but the page faults that make memory resident, at a bounded rate, and what of it still is.

mod pages;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::File,
};

use anyhow::Result;
use tracer_ebpf::{
    event::{MappingCall, MappingEvent},
    process::ProcessIndex,
    stack::StackId,
};

use self::pages::{Touch, TouchedPages, scaled};
use super::{
    clock::now_ns,
    process::TracedProcess,
    resident_memory::{DutyCycle, When},
};
use crate::{
    analyze::{
        history::Source,
        managed::{ManagedHolders, Runtimes},
        mappings::{Holder, LiveRange, MappingAccount, Totals},
        outcome::WeighedRange,
    },
    attach::Capture,
    memory::residency,
    model::{AddressRange, Bytes, Extents, Kind, PAGE_BYTES},
    target::{Backing, Mapping},
};

/// Events a second that are worth their cost: at 2 µs each, 1 % of a CPU.
const MOST_A_SECOND: u64 = 5_000;
/// After so many events their rate is looked at: a burst of 20 MiB is still seen whole.
const HANDFUL: u64 = 5_000;
/// The longest period: a fault in 4,096, of which each stands for 16 MiB.
const LONGEST_PERIOD: u64 = 1 << 12;
/// The size of a huge page.
const HUGE: u64 = 2 << 20;
/// By then the kernel has seen to a fault: to clear a huge page takes it a third of a millisecond.
const LONGEST_FAULT_NS: u64 = 5_000_000;
/// How reports call what a fault did.
const API: &str = MappingCall::PageFault.name();

/// What was touched in the window.
#[derive(Debug)]
pub struct Touched {
    pages: TouchedPages,
    /// What is not accounted yet.
    waiting: VecDeque<MappingEvent>,
    pagemaps: HashMap<ProcessIndex, File>,
    /// Of [`TouchedPages::live`], in its order, at the last look.
    weights: Vec<RangeWeight>,
    look_pace: DutyCycle,
    period: u64,
    events: u64,
    since_ns: u64,
}

/// What a range weighed at the last look.
#[derive(Clone, Copy, Debug)]
struct RangeWeight {
    process: ProcessIndex,
    range: AddressRange,
    touch: Touch,
    kind: Option<Kind>,
    resident: Option<Bytes>,
}

impl Touched {
    /// Watches the page faults of these processes. Every one is seen, until there are too many.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn attach(processes: &[TracedProcess], capture: &mut Capture) -> Result<Self> {
        capture.attach_page_faults()?;
        let mut touched = Self {
            pages: TouchedPages::default(),
            waiting: VecDeque::new(),
            pagemaps: HashMap::new(),
            weights: Vec::new(),
            look_pace: DutyCycle::default(),
            period: 1,
            events: 0,
            since_ns: now_ns(),
        };
        processes.iter().for_each(|process| touched.add_process(process, capture));
        Ok(touched)
    }

    /// What was touched so far counts no more.
    pub fn forget(&mut self, processes: &[TracedProcess], capture: &Capture) {
        (self.pages, self.waiting, self.weights) = Default::default();
        processes.iter().for_each(|process| self.add_process(process, capture));
    }

    /// A process is to be watched from now on.
    pub fn add_process(&mut self, process: &TracedProcess, capture: &Capture) {
        let initial = process.initial_mappings().unwrap_or_default();
        self.pages.add_process(process.index, initial.program_break);
        if let Ok(pagemap) = File::open(format!("/proc/{}/pagemap", process.target.pid())) {
            self.pagemaps.insert(process.index, pagemap);
        }
        capture.set_fault_period(process.index, self.period);
    }

    /// Takes an event, to be accounted soon: a fault is reported before the kernel has seen to it.
    pub fn take(&mut self, event: &MappingEvent) {
        self.events += u64::from(is_fault(event));
        self.waiting.push_back(*event);
    }

    /// Accounts, in their order, the events that happened before this time.
    fn settle(&mut self, before_ns: u64) {
        while let Some(event) = self.waiting.pop_front_if(|event| event.time_ns < before_ns) {
            let range = if is_fault(&event) { self.made_resident(&event) } else { None };
            self.pages.apply(&event, range);
        }
    }

    /// What a fault made resident: a page that is huge soon after was made so by the fault.
    fn made_resident(&self, event: &MappingEvent) -> Option<AddressRange> {
        let [address, ..] = event.args;
        let huge = AddressRange::sized(address / HUGE * HUGE, HUGE)?;
        let is_huge = |pagemap| residency::is_huge(pagemap, huge).unwrap_or(false);
        if self.pagemaps.get(&event.process).is_some_and(is_huge) {
            return Some(huge);
        }
        AddressRange::sized(address / PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)
    }

    /// Keeps the rate of events in bounds.
    pub fn pace(&mut self, processes: &[TracedProcess], capture: &Capture) {
        let now = now_ns();
        self.settle(now.saturating_sub(LONGEST_FAULT_NS));
        let passed = now.saturating_sub(self.since_ns);
        let Some(period) = next_period(self.period, self.events, passed) else { return };
        (self.events, self.since_ns) = (0, now);
        if period != self.period {
            log::debug!("one in {period} page faults is examined from now on");
            self.period = period;
            processes.iter().for_each(|process| capture.set_fault_period(process.index, period));
        }
    }

    /// Looks at how much of what was touched is resident, and whose it is.
    ///
    /// What lies in a mapping that the program made in the window counts there, under who mapped it.
    pub fn weigh(
        &mut self,
        processes: &[TracedProcess],
        account: &MappingAccount,
        managed: &ManagedHolders,
        when: When,
    ) {
        let Some(started) = self.look_pace.begin(when) else { return };
        if when == When::Now {
            self.settle(u64::MAX);
        }
        let mut weights = Vec::new();
        let mut touched: BTreeMap<ProcessIndex, Vec<(AddressRange, Touch)>> = BTreeMap::new();
        for (process, range, touch) in self.pages.live() {
            touched.entry(process).or_default().push((range, touch));
        }
        for (index, touched) in touched {
            let Some(process) = processes.iter().find(|process| process.index == index) else { continue };
            if process.target.has_exited() {
                weights.extend(self.weights.iter().filter(|weight| weight.process == index));
                continue;
            }
            let kinds = Kinds::of(process, account, managed, when);
            let pieces: Vec<_> = touched
                .into_iter()
                .flat_map(|(range, touch)| {
                    kinds.split(range).into_iter().map(move |(range, kind)| (range, kind, touch))
                })
                .collect();
            let ranges: Vec<_> = pieces.iter().map(|(range, ..)| *range).collect();
            let resident = residency::resident_bytes(process.target.pid(), &ranges);
            let resident = resident.unwrap_or_else(|error| {
                log::debug!("cannot read what is resident of {}: {error}", process.name());
                vec![None; ranges.len()]
            });
            weights.extend(pieces.into_iter().zip(resident).map(|((range, kind, touch), resident)| {
                RangeWeight {
                    process: index,
                    range,
                    touch,
                    kind,
                    resident: resident.map(|bytes| Bytes(bytes.0.saturating_mul(touch.period))),
                }
            }));
        }
        self.weights = weights;
        self.look_pace.end(started);
    }

    /// What counts, with its holder.
    fn counted(&self) -> impl Iterator<Item = (Holder, &RangeWeight)> {
        self.weights.iter().filter_map(|weight| {
            let kind = weight.kind?;
            Some((Holder { process: weight.process, stack: weight.touch.stack, kind, api: API }, weight))
        })
    }

    /// Resident bytes of kinds that count.
    pub fn weight(&self) -> u64 {
        let counted = self.counted().filter(|(holder, _)| holder.kind.counts_by_default());
        counted.filter_map(|(_, weight)| weight.resident).map(|bytes| bytes.0).sum()
    }

    /// What every stack holds, for the history.
    pub fn sizes(&self) -> BTreeMap<Source, Bytes> {
        let mut sizes: BTreeMap<Source, Bytes> = BTreeMap::new();
        for (holder, weight) in self.counted() {
            sizes.entry(Source::Mapping(holder)).or_default().0 += weight.resident.unwrap_or_default().0;
        }
        sizes
    }

    /// Totals by holder, as the account of mappings has them. Of what counts under who mapped it, nothing.
    pub fn totals(&self) -> Vec<(Holder, Totals)> {
        let mut live: BTreeMap<(ProcessIndex, StackId), BTreeMap<Option<Kind>, u64>> = BTreeMap::new();
        for weight in &self.weights {
            let kinds = live.entry((weight.process, weight.touch.stack)).or_default();
            *kinds.entry(weight.kind).or_default() += scaled(weight.range, weight.touch);
        }
        let mut all = Vec::new();
        for ((process, stack), totals) in self.pages.totals() {
            let mut kinds = live.remove(&(process, stack)).unwrap_or_default();
            kinds.remove(&None);
            // What was released is of no kind any more; it goes with most of the rest.
            let main =
                kinds.iter().max_by_key(|(_, bytes)| **bytes).map_or(Some(Kind::Mapping), |(kind, _)| *kind);
            kinds.entry(main).or_default();
            for (kind, bytes) in kinds {
                let freed = if kind == main { (totals.freed_bytes, totals.freed_objects) } else { (0, 0) };
                let of_kind = Totals {
                    allocated_bytes: bytes + freed.0,
                    allocated_objects: bytes / PAGE_BYTES + freed.1,
                    freed_bytes: freed.0,
                    freed_objects: freed.1,
                };
                if let Some(kind) = kind.filter(|_| of_kind != Totals::default()) {
                    all.push((Holder { process, stack, kind, api: API }, of_kind));
                }
            }
        }
        all
    }

    /// The ranges that count, with what is resident of them.
    pub fn ranges(&self) -> impl Iterator<Item = WeighedRange> + '_ {
        self.counted().map(|(holder, weight)| {
            (LiveRange { range: weight.range, holder, born_ns: weight.touch.at_ns }, weight.resident)
        })
    }

    /// Pages that were touched and released, of kinds that count.
    pub fn calls(&self) -> (u64, u64) {
        let counted = self.totals().into_iter().filter(|(holder, _)| holder.kind.counts_by_default());
        counted.fold((0, 0), |(touched, released), (_, totals)| {
            (touched + totals.allocated_objects, released + totals.freed_objects)
        })
    }

    /// Faults that found no room in the account.
    pub fn table_full(&self) -> u64 {
        self.pages.table_full()
    }
}

/// The period from now on, when there is enough to judge by: a handful of events, a second, or a fifth of one that was quiet. Fewer
/// than a handful never lengthen it, however soon they come: figures are to be exact where they can.
fn next_period(period: u64, events: u64, passed_ns: u64) -> Option<u64> {
    const SECOND: u64 = 1_000_000_000;
    let rate = events.saturating_mul(SECOND) / passed_ns.max(1);
    let is_quiet = rate < MOST_A_SECOND / 4;
    if events >= HANDFUL && rate > MOST_A_SECOND {
        Some((rate / MOST_A_SECOND).saturating_mul(period).next_power_of_two().clamp(2, LONGEST_PERIOD))
    } else if is_quiet && passed_ns >= SECOND / 5 {
        Some((period / 2).max(1))
    } else {
        (passed_ns >= SECOND).then_some(period)
    }
}

fn is_fault(event: &MappingEvent) -> bool {
    event.call == MappingCall::PageFault as u8
}

/// What kind of memory a process has where. The kind is none where memory counts otherwise, or not at all.
struct Kinds(Extents<Option<Kind>>);

impl Kinds {
    fn of(process: &TracedProcess, account: &MappingAccount, managed: &ManagedHolders, when: When) -> Self {
        let mut known = Extents::default();
        for (range, kind) in mappings(process, when) {
            known.put(range, kind);
        }
        for live in account.live().filter(|live| live.holder.process == process.index) {
            let kind = match managed.judged(live.holder).kind {
                Kind::Mapping | Kind::File | Kind::Native => None,
                Kind::Managed => Some(Kind::Managed),
                Kind::Allocator => Some(Kind::Mapping),
            };
            known.put(live.range, kind);
        }
        Self(known)
    }

    /// The parts of a range, and the kind of each.
    fn split(&self, range: AddressRange) -> Vec<(AddressRange, Option<Kind>)> {
        let mut parts = Extents::default();
        parts.put(range, Some(Kind::Mapping));
        for (part, kind) in self.0.within(range) {
            parts.put(part, kind);
        }
        parts.iter().collect()
    }
}

/// Where files and heaps of runtimes are mapped. Looking for the latter takes time, so only at the end.
fn mappings(process: &TracedProcess, when: When) -> Vec<(AddressRange, Option<Kind>)> {
    let read = |when| match when {
        When::Now => residency::mappings(process.target.pid()).ok(),
        When::Affordable => None,
    };
    let Some(mappings) = read(when) else {
        let initial = process.initial_mappings().unwrap_or_default();
        let files = initial.mappings.into_iter().filter(|(_, backing)| *backing == Backing::File);
        return files.map(|(range, _)| (range, None)).collect();
    };
    let runtimes = Runtimes::of(&mappings);
    let kind = |mapping: &Mapping| match mapping.backing() {
        Backing::File => Some(None),
        Backing::Anonymous => runtimes.of_mapping(mapping).map(|_| Some(Kind::Managed)),
    };
    mappings.iter().filter_map(|mapping| Some((mapping.range(), kind(mapping)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    #[test]
    fn a_burst_is_seen_whole_whenever_it_is_looked_at() {
        for passed in (1..5_000).step_by(7) {
            for events in [1, 1_034, HANDFUL - 1] {
                let period = next_period(1, events, passed * MILLISECOND);
                assert_eq!(period.unwrap_or(1), 1, "{events} events in {passed} ms");
            }
        }
    }

    #[test]
    fn too_many_faults_are_sampled_and_few_are_not() {
        assert_eq!(next_period(1, HANDFUL, 10 * MILLISECOND), Some(128), "500,000 a second");
        assert_eq!(next_period(4, HANDFUL, 900 * MILLISECOND), Some(4));
        assert_eq!(next_period(LONGEST_PERIOD, HANDFUL, 1), Some(LONGEST_PERIOD));
        assert_eq!(next_period(8, 100, 100 * MILLISECOND), None, "it is too soon to tell");
        assert_eq!(next_period(8, 100, 200 * MILLISECOND), Some(4));
        assert_eq!(next_period(1, 0, 200 * MILLISECOND), Some(1));
        assert_eq!(next_period(8, 4_000, 999 * MILLISECOND), None);
        assert_eq!(next_period(8, 4_000, 1000 * MILLISECOND), Some(8));
    }
}
