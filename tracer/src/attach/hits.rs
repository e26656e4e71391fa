//! What the probes take from their target: runs of the programs, which the kernel counts while it is asked to, and what a
//! hit costs beside the program, which is measured on functions of the tracer's own.

use std::{
    arch::naked_asm,
    fmt, fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};
use rustix::time::{ClockId, clock_gettime};

use super::{
    Capture,
    uprobes::{At, ProbeLink, ProbeSites, UprobeLinks, load_empty_program},
};
use crate::{model::Pid, plan::Cost, target::parse_maps};

/// Runs of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How many.
    pub count: u64,
    /// Time in it, in nanoseconds.
    pub ns: u64,
}

/// Runs of the programs of probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllRuns {
    /// At the entry of an allocating function.
    pub allocate: Runs,
    /// At its return.
    pub allocated: Runs,
    /// At both, where one program sees both.
    pub call: Runs,
    /// At an exit of one whose return is not probed.
    pub exited: Runs,
    /// At the entry of a releasing function.
    pub release: Runs,
    /// Where a process tells of its blocks.
    pub told: Runs,
}

/// What a hit costs beside the program that it runs, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitCosts {
    /// At an instruction of each cost.
    emulated: HitCost,
    stepped: HitCost,
}

/// At one instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
struct HitCost {
    entry_ns: f64,
    /// Entry and return of one function.
    pair_ns: f64,
}

/// Which instructions are probed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbedPlaces {
    allocating: Stepped,
    releasing: Stepped,
}

/// How many places there are, and how many of them are single-stepped.
#[derive(Clone, Copy, Debug, Default)]
struct Stepped {
    all: usize,
    stepped: usize,
}

impl Stepped {
    fn add(&mut self, cost: Cost) {
        self.all += 1;
        self.stepped += usize::from(cost == Cost::SingleStepped);
    }

    /// Whether most of them are. Which are hit how often, nobody counts.
    const fn are_most(self) -> bool {
        self.stepped * 2 > self.all
    }
}

impl ProbedPlaces {
    pub(super) fn add_allocating(&mut self, cost: Cost) {
        self.allocating.add(cost);
    }

    pub(super) fn add_releasing(&mut self, cost: Cost) {
        self.releasing.add(cost);
    }
}

/// Makes the kernel count runs of programs until it is dropped: of all programs on the machine, at some 30 ns a run.
///
/// # Errors
/// When the kernel is older than 5.8, or refuses.
pub fn count_runs() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("the kernel does not measure BPF programs")
}

impl Capture {
    /// Runs of the programs since they were loaded, while the kernel [counted](count_runs).
    #[must_use]
    pub fn runs(&self) -> AllRuns {
        let runs = |name| self.programs.find(name).and_then(runs_of).unwrap_or_default();
        AllRuns {
            allocate: runs("allocate"),
            allocated: runs("allocated"),
            call: runs("call"),
            exited: runs("exited"),
            release: runs("release"),
            told: runs("usdt_alloc").plus(runs("usdt_free")),
        }
    }

    /// Which instructions are probed.
    #[must_use]
    pub const fn probed_places(&self) -> ProbedPlaces {
        self.places
    }

    /// How uprobes are attached.
    #[must_use]
    pub const fn uprobe_links(&self) -> UprobeLinks {
        self.links
    }
}

impl fmt::Display for HitCosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { emulated, stepped } = self;
        write!(
            f,
            "a probe costs {:.0} ns, {:.0} ns where it is single-stepped; with its return {:.0} and {:.0} ns",
            emulated.entry_ns, stepped.entry_ns, emulated.pair_ns, stepped.pair_ns
        )
    }
}

impl HitCosts {
    /// Measures what hits cost here, by probes on functions of this program. With perf events it takes a third of a second to let
    /// these go.
    ///
    /// # Errors
    /// When the tracer cannot be probed.
    pub fn measure(links: UprobeLinks) -> Result<Self> {
        let (entry, back) = (Probe::load(links, At::Entry)?, Probe::load(links, At::Return)?);
        let cost = |function, paired: extern "C" fn()| {
            let bare_ns = call_ns(function);
            let held = entry.attach(function)?;
            let entry_ns = (call_ns(function) - bare_ns).max(0.0);
            drop(held);
            let bare_ns = call_ns(paired);
            // In the order of the recording: an entry without its return would be held against the thread.
            let held = (back.attach(paired)?, entry.attach(paired)?);
            let pair_ns = (call_ns(paired) - bare_ns).max(entry_ns);
            drop(held);
            anyhow::Ok(HitCost { entry_ns, pair_ns })
        };
        Ok(Self {
            emulated: cost(emulated_entry, emulated_pair)?,
            stepped: cost(stepped_entry, stepped_pair)?,
        })
    }

    /// What these hits took, programs included, in nanoseconds.
    #[must_use]
    pub fn of(&self, runs: &AllRuns, places: ProbedPlaces) -> f64 {
        let allocating = self.at(places.allocating);
        let entries = runs.allocate.count.saturating_sub(runs.allocated.count);
        let pairs = runs.allocated.count as f64 + runs.call.count as f64 / 2.0;
        let traps = allocating.pair_ns * pairs
            + allocating.entry_ns * entries as f64
            + self.at(places.releasing).entry_ns * runs.release.count as f64
            + self.stepped.entry_ns * runs.exited.count as f64
            + self.emulated.entry_ns * runs.told.count as f64;
        traps + runs.ns() as f64
    }

    const fn at(&self, places: Stepped) -> HitCost {
        if places.are_most() { self.stepped } else { self.emulated }
    }
}

impl Runs {
    fn since(self, earlier: Self) -> Self {
        Self { count: self.count.saturating_sub(earlier.count), ns: self.ns.saturating_sub(earlier.ns) }
    }

    const fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, ns: self.ns + other.ns }
    }
}

impl AllRuns {
    /// Those since another reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.with(earlier, Runs::since)
    }

    /// Those, and others.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, Runs::plus)
    }

    /// So many times as many.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        let of = |number: u64| (number as f64 * factor).round() as u64;
        self.with(Self::default(), |runs, _| Runs { count: of(runs.count), ns: of(runs.ns) })
    }

    /// The part of these runs that so many calls made, where other processes made the rest: there a program takes that long.
    #[must_use]
    pub fn of_calls(self, calls: u64, leaving_ns: u64) -> Self {
        let part = (calls as f64 / self.calls().max(1) as f64).min(1.0);
        self.with(Self::default(), |runs, _| {
            let count = (runs.count as f64 * part).round() as u64;
            Runs { count, ns: runs.ns.saturating_sub((runs.count - count) * leaving_ns) }
        })
    }

    fn with(self, other: Self, make: impl Fn(Runs, Runs) -> Runs) -> Self {
        Self {
            allocate: make(self.allocate, other.allocate),
            allocated: make(self.allocated, other.allocated),
            call: make(self.call, other.call),
            exited: make(self.exited, other.exited),
            release: make(self.release, other.release),
            told: make(self.told, other.told),
        }
    }

    /// Runs that walked a stack, where every allocation is kept, and what the walks took of them: the rest is about what a run takes that
    /// walks none.
    #[must_use]
    pub const fn walks(&self) -> Runs {
        /// Measured: 90 to 190 ns, by whether its data are in the CPU's cache.
        const WITHOUT_NS: u64 = 150;
        let (returns, at_both) = (self.allocated.count + self.exited.count, self.call.count);
        let ns = self.allocated.ns + self.exited.ns + self.call.ns;
        Runs { count: returns + at_both / 2, ns: ns.saturating_sub((returns + at_both) * WITHOUT_NS) }
    }

    /// How many calls began.
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.allocate.count + self.call.count / 2 + self.release.count + self.told.count
    }

    /// Time in the programs, in nanoseconds.
    #[must_use]
    pub const fn ns(&self) -> u64 {
        self.allocate.ns + self.allocated.ns + self.call.ns + self.exited.ns + self.release.ns + self.told.ns
    }
}

fn runs_of(program: BorrowedFd<'_>) -> Option<Runs> {
    Some(Runs { count: statistic(program, "run_cnt:")?, ns: statistic(program, "run_time_ns:")? })
}

/// A number that the kernel shows in the descriptor's `fdinfo`.
pub(super) fn statistic(program: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// A program that does nothing, to be run at functions of ours.
struct Probe {
    links: UprobeLinks,
    at: At,
    program: OwnedFd,
}

impl Probe {
    fn load(links: UprobeLinks, at: At) -> Result<Self> {
        let program =
            load_empty_program(links.attach_type(at)).context("the kernel rejects every BPF program")?;
        Ok(Self { links, at, program })
    }

    /// Runs at a function of this process until what is given is dropped.
    fn attach(&self, function: extern "C" fn()) -> Result<Vec<ProbeLink>> {
        let place: ProbeSites = [(file_offset(function)?, 0, None)].into_iter().collect();
        let own = Some(Pid(std::process::id()));
        self.links.attach(self.program.as_fd(), Path::new("/proc/self/exe"), &place, self.at, own)
    }
}

/// CPU time of one call in nanoseconds: the median of a few batches, since others disturb.
fn call_ns(function: extern "C" fn()) -> f64 {
    const BATCHES: usize = 5;
    const CALLS: u32 = 400;
    let cpu_ns = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
    };
    let batch = || {
        let began = cpu_ns();
        (0..CALLS).for_each(|_| function());
        (cpu_ns() - began) / f64::from(CALLS)
    };
    let mut batches: [f64; BATCHES] = std::array::from_fn(|_| batch());
    batches.sort_by(f64::total_cmp);
    batches[BATCHES / 2]
}

/// Where a function of ours is in our file.
fn file_offset(function: extern "C" fn()) -> Result<u64> {
    let address = function as usize as u64;
    let mappings = parse_maps(&fs::read("/proc/self/maps")?);
    let mapping = mappings.iter().find(|mapping| (mapping.start.0..mapping.end.0).contains(&address));
    let mapping = mapping.ok_or_else(|| io::Error::other("the tracer's own code is not mapped"))?;
    Ok(address - mapping.start.0 + mapping.file_offset)
}

// Functions to probe: of each, one for the entry alone and one for the return too, since probes at one place share a trap.
// They differ in what they return, lest the linker makes one of them.

#[unsafe(naked)]
extern "C" fn emulated_entry() {
    naked_asm!("nop", "mov eax, 1", "ret")
}

#[unsafe(naked)]
extern "C" fn emulated_pair() {
    naked_asm!("nop", "mov eax, 2", "ret")
}

#[unsafe(naked)]
extern "C" fn stepped_entry() {
    naked_asm!("mov eax, 3", "ret")
}

#[unsafe(naked)]
extern "C" fn stepped_pair() {
    naked_asm!("mov eax, 4", "ret")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_cost_what_their_traps_and_programs_do() {
        let costs = HitCosts {
            emulated: HitCost { entry_ns: 400.0, pair_ns: 700.0 },
            stepped: HitCost { entry_ns: 900.0, pair_ns: 1300.0 },
        };
        let mut places = ProbedPlaces::default();
        places.add_allocating(Cost::Emulated);
        places.add_allocating(Cost::Emulated);
        places.add_allocating(Cost::SingleStepped);
        places.add_releasing(Cost::SingleStepped);
        let runs = |count, ns| Runs { count, ns };
        let earlier = AllRuns { allocate: runs(1, 60), ..AllRuns::default() };
        let later = AllRuns {
            allocate: runs(13, 660),
            allocated: runs(10, 1500),
            call: runs(4, 80),
            exited: runs(2, 20),
            release: runs(5, 300),
            told: runs(1, 40),
        };
        let runs = later.since(earlier);
        assert_eq!((runs.calls(), runs.ns()), (20, 2540));
        let traps = 12.0 * 700.0 + 2.0 * 400.0 + 5.0 * 900.0 + 2.0 * 900.0 + 400.0;
        assert_eq!(costs.of(&runs, places), traps + 2540.0);
    }

    #[test]
    fn the_runs_of_others_are_those_that_calls_do_not_explain() {
        let runs = AllRuns { call: Runs { count: 2000, ns: 130_000 }, ..AllRuns::default() };
        // 100 calls of ours, 900 of others at 60 ns twice.
        let ours = AllRuns { call: Runs { count: 200, ns: 22_000 }, ..AllRuns::default() };
        assert_eq!(runs.of_calls(100, 60), ours);
        assert_eq!(runs.of_calls(5000, 60), runs);
    }

    /// As root.
    #[test]
    fn a_pair_costs_more_than_an_entry_and_a_step_more_than_none() {
        let HitCosts { emulated, stepped } = HitCosts::measure(UprobeLinks::of_this_kernel()).unwrap();
        assert!(emulated.entry_ns > 50.0 && emulated.pair_ns > emulated.entry_ns, "{emulated:?}");
        assert!(stepped.entry_ns > emulated.entry_ns && stepped.entry_ns < 100_000.0, "{stepped:?}");
    }
}
