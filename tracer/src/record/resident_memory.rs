//! How much of the traced processes is in memory, and where it went: readings over the window, at a bounded cost.
//!
//! Reading takes time from the target too: the kernel walks its page tables with its memory map locked, 7 to 9 ms for
//! each GiB. So each kind of reading is only made when the ones before it took less than a hundredth of the time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, LazyLock},
    thread::{self, JoinHandle},
};

use tracer_ebpf::{
    live::{Block, BlockKey},
    process::ProcessIndex,
    stack::StackId,
};

use super::{clock::now_ns, process::TracedProcess};
use crate::{
    analyze::{
        allocators::Allocators,
        managed::{ManagedHolders, Runtime, Runtimes},
        mappings::{LiveRange, MappingAccount},
        reconcile::{self, Division, Evidence, Split, Tracked},
        verdict,
    },
    memory::{
        heap_walk::Contents,
        residency::{self, ResidencyError},
        threads,
    },
    model::{Address, AddressRange, AllocatorMemory, Bytes, Memory, Part, Pid},
    plan::{AllocatorFamily, ApiId},
    target::{Mapping, Target},
};

/// What is known of the targets' resident memory.
#[derive(Debug, Default)]
pub struct ResidentMemory {
    /// Resident bytes of live ranges at the last look.
    ranges: HashMap<(ProcessIndex, AddressRange), Option<Bytes>>,
    look_pace: DutyCycle,
    before: BTreeMap<ProcessIndex, ResidentReading>,
    latest: BTreeMap<ProcessIndex, ResidentReading>,
    reading_pace: DutyCycle,
    /// A reading that takes long, on a thread of its own; with the time that it took, in nanoseconds.
    under_way: Option<JoinHandle<(Readings, u64)>>,
    allocators: BTreeMap<ProcessIndex, Allocators>,
    block_pace: DutyCycle,
    rss: Option<Bytes>,
    rss_pace: DutyCycle,
}

/// A reading that took longer is made beside the thread that takes events, which would empty the ring buffer too late. Of 10 GiB it
/// takes 72 ms, and as much as 250 ms more where glibc's free chunks are many.
const LONG_NS: u64 = 5_000_000;

/// Whether a look may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Only if it costs less than a hundredth of the time.
    Affordable,
    /// At once: it is the first or the last one.
    Now,
}

impl ResidentMemory {
    /// Reads how much of each live mapping is resident. What cannot be read stays as it was.
    pub fn look_at_mappings(&mut self, processes: &[TracedProcess], account: &MappingAccount, when: When) {
        let Some(started) = self.look_pace.begin(when) else { return };
        let mut live = by_process(account.live());
        let mut looked_at = HashSet::new();
        let mut found = Vec::new();
        for process in processes {
            let Some(live) = live.remove(&process.index).filter(|_| !process.target.has_exited()) else {
                continue;
            };
            let ranges: Vec<_> = live.iter().map(|live| live.range).collect();
            match residency::resident_bytes(process.target.pid(), &ranges) {
                Ok(resident) => {
                    looked_at.insert(process.index);
                    found.extend(ranges.into_iter().map(|range| (process.index, range)).zip(resident));
                }
                Err(error) => log::debug!("cannot read what is resident of {}: {error}", process.name()),
            }
        }
        self.ranges.retain(|(index, _), _| !looked_at.contains(index));
        self.ranges.extend(found);
        self.look_pace.end(started);
    }

    /// How much of a live range was resident at the last look.
    #[must_use]
    pub fn of_range(&self, live: &LiveRange) -> Option<Bytes> {
        self.ranges.get(&(live.holder.process, live.range)).copied().flatten()
    }

    /// Reads what the processes have resident, mapping by mapping, if any of them still has memory. One that took long the last time
    /// is made on a thread of its own, unless it is needed now, and is returned by a later call.
    pub fn read(&mut self, processes: &[TracedProcess], when: When) -> Option<Readings> {
        if when == When::Affordable
            && let Some(thread) = self.under_way.take_if(|thread| thread.is_finished())
        {
            let (readings, took_ns) = thread.join().ok()?;
            self.reading_pace.took(took_ns);
            return readings.if_any();
        }
        if when == When::Now {
            self.under_way = None;
        }
        let started = self.reading_pace.begin(when).filter(|_| self.under_way.is_none())?;
        let targets: Vec<_> =
            running(processes).map(|process| (process.index, Arc::clone(&process.target))).collect();
        if when == When::Affordable && self.reading_pace.took_ns > LONG_NS {
            let targets = targets.clone();
            let read = move || (Readings::of(&targets), now_ns() - started);
            self.under_way = thread::Builder::new().name("memory".into()).spawn(read).ok();
            if self.under_way.is_some() {
                return None;
            }
        }
        let readings = Readings::of(&targets);
        self.reading_pace.end(started);
        readings.if_any()
    }

    /// Keeps readings, with what they are split by: the live mappings, and the outstanding bytes of the malloc family by process and
    /// function.
    pub fn keep(
        &mut self,
        Readings(mut readings): Readings,
        processes: &[TracedProcess],
        account: &MappingAccount,
        native: &BTreeMap<(ProcessIndex, ApiId), u64>,
    ) {
        for process in processes {
            if let Some(reading) = readings.get(&process.index) {
                let allocators = self.allocators.entry(process.index).or_default();
                allocators.learn(&process.allocators(), &reading.mappings);
            }
        }
        let mut live = by_process(account.live());
        for (&index, reading) in &mut readings {
            let live = live.remove(&index).unwrap_or_default().into_iter();
            reading.tracked = live.filter_map(|live| Some((live, self.of_range(&live)?))).collect();
            let native = native.range((index, ApiId(0))..=(index, ApiId(u16::MAX)));
            reading.native = native.map(|(&(_, function), &bytes)| (function, Bytes(bytes))).collect();
        }
        if self.before.is_empty() {
            self.before = readings;
        } else {
            self.latest.extend(readings);
        }
    }

    /// Sees where blocks of allocators are that are not the C library's: what is around them, they have mapped. `function` is that by
    /// which the blocks of a stack were allocated.
    pub fn look_at_blocks<I: Iterator<Item = (BlockKey, Block)>>(
        &mut self,
        blocks: impl FnOnce() -> I,
        function: impl Fn(StackId) -> Option<ApiId>,
        when: When,
    ) {
        if !self.allocators.values().any(Allocators::has_others) {
            return;
        }
        let Some(started) = self.block_pace.begin(when) else { return };
        for (key, block) in blocks() {
            if let (Some(allocators), Some(function)) =
                (self.allocators.get_mut(&key.process()), function(block.stack))
            {
                allocators.see(Address(key.address()), function);
            }
        }
        self.block_pace.end(started);
    }

    /// The resident set size of the targets that still run, as it was when it was last read.
    pub fn rss(&mut self, processes: &[TracedProcess], when: When) -> Option<Bytes> {
        if let Some(started) = self.rss_pace.begin(when) {
            let sizes: Vec<_> =
                running(processes).filter_map(|process| residency::rss(process.target.pid()).ok()).collect();
            self.rss = (!sizes.is_empty()).then(|| Bytes(sizes.iter().map(|size| size.0).sum()));
            self.rss_pace.end(started);
        }
        self.rss
    }

    /// A process has gone while others go on: what it had is no longer part of what they have together.
    pub fn forget(&mut self, gone: ProcessIndex, others: &[TracedProcess]) {
        if running(others).next().is_some() {
            self.latest.remove(&gone);
        }
    }

    /// Resident bytes of managed heaps at the latest reading.
    #[must_use]
    pub fn managed_bytes(&self, managed: &ManagedHolders) -> Option<u64> {
        let split = self.split_of(&self.latest, managed, Division::Estimated);
        let size = split.get(&Part::Managed).copied()?;
        u64::try_from(size).ok()
    }

    /// Where the memory went, if it was read at the window's start and after. A process that has exited counts as it was
    /// last seen.
    #[must_use]
    pub fn split(&self, managed: &ManagedHolders) -> Option<Memory> {
        if self.before.is_empty() || self.latest.is_empty() {
            return None;
        }
        let rss = |readings: &BTreeMap<ProcessIndex, ResidentReading>| {
            readings.values().map(|reading| reading.rss.0).sum()
        };
        let mut readings = self.before.iter().chain(&self.latest);
        let is_measured = |(index, reading): (&ProcessIndex, &ResidentReading)| {
            reading.with_evidence(managed, self.allocators_of(*index), reconcile::division)
                == Division::Measured
        };
        let division = if readings.all(is_measured) { Division::Measured } else { Division::Estimated };
        let before = self.split_of(&self.before, managed, division);
        let after = self.split_of(&self.latest, managed, division);
        let allocators = self.kept_by_allocators(managed);
        Some(Memory {
            rss_before_bytes: Some(rss(&self.before)),
            rss_after_bytes: Some(rss(&self.latest)),
            parts: reconcile::compare(&before, &after, division, self.runtime(managed), &allocators),
            allocators,
        })
    }

    fn allocators_of(&self, process: ProcessIndex) -> &Allocators {
        static NONE: LazyLock<Allocators> = LazyLock::new(Allocators::default);
        self.allocators.get(&process).unwrap_or(&NONE)
    }

    fn split_of(
        &self,
        readings: &BTreeMap<ProcessIndex, ResidentReading>,
        managed: &ManagedHolders,
        division: Division,
    ) -> Split {
        let mut sum = Split::new();
        for (index, reading) in readings {
            let split = |evidence: &Evidence| reconcile::split(evidence, division);
            let split = reading.with_evidence(managed, self.allocators_of(*index), split);
            split.into_iter().for_each(|(part, bytes)| *sum.entry(part).or_default() += bytes);
        }
        sum
    }

    /// What each allocator has beyond what the program holds of it, the most first. Those that have nothing are left out.
    fn kept_by_allocators(&self, managed: &ManagedHolders) -> Vec<AllocatorMemory> {
        let (before, mut after) =
            (self.heaps_of(&self.before, managed), self.heaps_of(&self.latest, managed));
        after.retain(|_, heap| heap.resident > 0);
        let of = |((family, file), heap): ((AllocatorFamily, String), KeptMemory)| AllocatorMemory {
            kept_before_bytes: before.get(&(family, file.clone())).map_or(0, |heap| heap.kept),
            kept_after_bytes: heap.kept,
            resident_bytes: heap.resident,
            trimmable_bytes: heap.trimmable,
            name: (family != AllocatorFamily::Other).then(|| family.to_string()),
            is_whole_file: family.is_whole(&file),
            file,
        };
        let mut allocators: Vec<_> = after.into_iter().map(of).collect();
        allocators.sort_by_key(|allocator| std::cmp::Reverse(allocator.kept_after_bytes));
        allocators
    }

    fn heaps_of(
        &self,
        readings: &BTreeMap<ProcessIndex, ResidentReading>,
        managed: &ManagedHolders,
    ) -> BTreeMap<(AllocatorFamily, String), KeptMemory> {
        let mut sum: BTreeMap<(AllocatorFamily, String), KeptMemory> = BTreeMap::new();
        for (index, reading) in readings {
            let allocators = self.allocators_of(*index);
            let resident = reading.with_evidence(managed, allocators, reconcile::heaps);
            for (place, (allocator, resident)) in allocators.list().iter().zip(resident).enumerate() {
                let heap = sum.entry((allocator.family, allocator.file.clone())).or_default();
                heap.add(reading, allocators, place, resident);
            }
        }
        sum
    }

    /// A runtime in the targets, the one that mapped in the window before others.
    #[must_use]
    pub fn runtime(&self, managed: &ManagedHolders) -> Option<Runtime> {
        let seen = || {
            self.latest
                .values()
                .flat_map(|reading| Runtimes::of(&reading.mappings).iter().collect::<Vec<_>>())
        };
        managed.runtimes().min().or_else(|| seen().min())
    }

    /// By how much shared memory grew that the kernel shows as files.
    #[must_use]
    pub fn shared_growth(&self) -> u64 {
        const NAMES: [&str; 3] = ["/memfd:", "/dev/shm/", "/SYSV"];

        let is_shared = |mapping: &&Mapping| NAMES.iter().any(|name| mapping.is_named(name));
        let size = |readings: &BTreeMap<ProcessIndex, ResidentReading>| -> u64 {
            let mappings = readings.values().flat_map(|reading| &reading.mappings);
            mappings.filter(is_shared).filter_map(|mapping| mapping.rss).map(|size| size.0).sum()
        };
        size(&self.latest).saturating_sub(size(&self.before))
    }

    /// The allocator that the targets use.
    #[must_use]
    pub fn allocator(&self) -> Option<&'static str> {
        let mappings = self.latest.values().flat_map(|reading| &reading.mappings);
        verdict::allocator_of(
            mappings.filter(|mapping| mapping.permissions.execute).filter_map(Mapping::file_name),
        )
    }
}

/// What processes have resident, as read at one time.
#[derive(Debug)]
pub struct Readings(BTreeMap<ProcessIndex, ResidentReading>);

impl Readings {
    /// Those of processes that exit meanwhile are left out.
    fn of(targets: &[(ProcessIndex, Arc<Target>)]) -> Self {
        let read = |(index, target): &(ProcessIndex, Arc<Target>)| match ResidentReading::of(target.pid()) {
            // Another process may have got its pid.
            Ok(reading) => (!target.has_exited()).then_some((*index, reading)),
            Err(error) => {
                log::debug!("cannot read the mappings of {}: {error}", target.pid());
                None
            }
        };
        Self(targets.iter().filter_map(read).collect())
    }

    fn if_any(self) -> Option<Self> {
        (!self.0.is_empty()).then_some(self)
    }

    /// Resident bytes of all of them.
    #[must_use]
    pub fn rss(&self) -> Bytes {
        Bytes(self.0.values().map(|reading| reading.rss.0).sum())
    }
}

fn by_process(live: impl Iterator<Item = LiveRange>) -> BTreeMap<ProcessIndex, Vec<LiveRange>> {
    let mut ranges: BTreeMap<ProcessIndex, Vec<LiveRange>> = BTreeMap::new();
    live.for_each(|live| ranges.entry(live.holder.process).or_default().push(live));
    ranges
}

fn running(processes: &[TracedProcess]) -> impl Iterator<Item = &TracedProcess> {
    processes.iter().filter(|process| !process.target.has_exited())
}

/// What an allocator has in several processes.
#[derive(Debug, Default)]
struct KeptMemory {
    resident: u64,
    kept: u64,
    trimmable: Option<u64>,
}

impl KeptMemory {
    /// Adds what the allocator at a place of the list has in one process.
    fn add(
        &mut self,
        reading: &ResidentReading,
        allocators: &Allocators,
        place: usize,
        Bytes(resident): Bytes,
    ) {
        let is_of_c_library = allocators.of_c_library() == Some(place);
        self.resident += resident;
        match reading.contents.kept.as_ref().filter(|_| is_of_c_library) {
            Some(kept) => {
                self.kept += kept.bytes.0;
                *self.trimmable.get_or_insert(0) += kept.trimmable.0;
            }
            None => self.kept += resident.saturating_sub(reading.held_of(allocators, place)),
        }
    }
}

/// What the memory of a process is split by, as it was at one moment.
#[derive(Debug)]
struct ResidentReading {
    rss: Bytes,
    mappings: Vec<Mapping>,
    stack_pointers: Vec<Address>,
    contents: Contents,
    tracked: Vec<(LiveRange, Bytes)>,
    /// Outstanding bytes of the malloc family, by function.
    native: Vec<(ApiId, Bytes)>,
}

impl ResidentReading {
    /// How often to read at most until mappings and sum agree.
    const ATTEMPTS: usize = 3;

    /// Reads mappings and resident set size so that they belong together. A process that frees and allocates many megabytes in
    /// milliseconds may have changed in between: then it is read again.
    fn of(pid: Pid) -> Result<Self, ResidencyError> {
        let mut rss_before = residency::rss(pid)?;
        let mut best: Option<(u64, Bytes, Vec<Mapping>)> = None;
        for _ in 0..Self::ATTEMPTS {
            let mappings = residency::mappings(pid)?;
            let rss_after = residency::rss(pid)?;
            let sum = Bytes(mappings.iter().filter_map(|mapping| mapping.rss).map(|size| size.0).sum());
            let rss = sum.clamp(rss_before.min(rss_after), rss_before.max(rss_after));
            let apart = rss.0.abs_diff(sum.0);
            if best.as_ref().is_none_or(|(least, ..)| apart < *least) {
                best = Some((apart, rss, mappings));
            }
            if apart <= rss.0 / 256 {
                break;
            }
            rss_before = rss_after;
        }
        let (_, rss, mappings) = best.ok_or(ResidencyError::Gone(pid))?;
        let stack_pointers = threads::stack_pointers(pid);
        let runtimes = Runtimes::of(&mappings);
        let unclear = reconcile::unclear(&mappings, &runtimes, &stack_pointers);
        let has_python = runtimes.iter().any(|runtime| runtime == Runtime::CPython);
        let contents = Contents::of(pid, &mappings, &unclear, has_python)?;
        Ok(Self { rss, mappings, stack_pointers, contents, tracked: Vec::new(), native: Vec::new() })
    }

    /// What the program holds of an allocator, as far as the window saw. What nobody is known to have given out is the C library's.
    fn held_of(&self, allocators: &Allocators, place: usize) -> u64 {
        let whose = |function| allocators.of_function(function).or_else(|| allocators.of_c_library());
        let held = self.native.iter().filter(|(function, _)| whose(*function) == Some(place));
        held.map(|(_, bytes)| bytes.0).sum()
    }

    /// What the parts are depends on what is known of the stacks and of the allocators by now.
    fn with_evidence<T>(
        &self,
        managed: &ManagedHolders,
        allocators: &Allocators,
        use_it: impl FnOnce(&Evidence) -> T,
    ) -> T {
        let tracked = self.tracked.iter().map(|&(live, resident)| Tracked {
            range: live.range,
            part: managed.part(live.holder),
            resident,
            allocator: managed
                .allocators_file(live.holder)
                .and_then(|(file, family)| allocators.in_file(file, family)),
        });
        use_it(&Evidence {
            mappings: &self.mappings,
            rss: self.rss,
            runtimes: &Runtimes::of(&self.mappings),
            tracked: &tracked.collect::<Vec<_>>(),
            stack_pointers: &self.stack_pointers,
            contents: &self.contents,
            allocators,
            native: Bytes(self.native.iter().map(|(_, bytes)| bytes.0).sum()),
        })
    }
}

/// Keeps something costly below a hundredth of the time.
#[derive(Debug, Default)]
pub struct DutyCycle {
    next_ns: u64,
    /// How long it took the last time.
    took_ns: u64,
}

impl DutyCycle {
    const TIMES_AS_LONG: u64 = 100;

    /// The present time, if it may be done now.
    pub fn begin(&self, when: When) -> Option<u64> {
        let now = now_ns();
        (when == When::Now || now >= self.next_ns).then_some(now)
    }

    /// It is done.
    pub fn end(&mut self, started_ns: u64) {
        self.took(now_ns().saturating_sub(started_ns));
    }

    /// It was done elsewhere.
    fn took(&mut self, nanoseconds: u64) {
        self.took_ns = nanoseconds;
        self.next_ns = now_ns() + Self::TIMES_AS_LONG * nanoseconds;
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Instant};

    use super::*;

    #[test]
    fn what_takes_long_is_read_beside() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let processes = [TracedProcess::open(Pid(child.id())).expect("it runs")];
        let mut memory = ResidentMemory::default();
        assert!(memory.read(&processes, When::Affordable).is_some(), "nothing is known of how long it takes");
        memory.reading_pace = DutyCycle { next_ns: 0, took_ns: LONG_NS + 1 };
        assert!(memory.read(&processes, When::Affordable).is_none(), "it is under way");
        let started = Instant::now();
        let readings = loop {
            if let Some(readings) = memory.read(&processes, When::Affordable) {
                break readings;
            }
            assert!(started.elapsed().as_secs() < 60, "it was never read");
            std::thread::yield_now();
        };
        assert!(readings.rss() > Bytes(0));
        memory.reading_pace = DutyCycle { next_ns: 0, took_ns: LONG_NS + 1 };
        assert!(memory.read(&processes, When::Affordable).is_none());
        assert!(memory.read(&processes, When::Now).is_some(), "what is needed now is read at once");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        assert!(memory.read(&processes, When::Now).is_none());
    }
}
