//! What the probes take from their target: runs of the programs, which the kernel counts while it is asked to, and what a
//! hit costs beside the program, which is measured on functions of the tracer's own.

use std::{
    arch::naked_asm,
    fs, io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};
use rustix::time::{ClockId, clock_gettime};
use tracer_ebpf::{
    probe::{Arg, Cookie, ResultPlace, Signature, WayOut},
    process::{MAX_PROCESSES, ProcessIndex},
};

use super::{Capture, ProbedEvent, Site};
use crate::{model::Pid, plan::Cost, target::parse_maps};

/// Runs of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How many.
    pub count: u64,
    /// Time in it, in nanoseconds.
    pub ns: u64,
}

/// Runs of the programs at allocating functions' entries, at their returns or exits, and at releasing functions' entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllRuns {
    /// At the entry of an allocating function.
    pub allocate: Runs,
    /// At its return.
    pub allocated: Runs,
    /// At an exit of one whose return is not probed.
    pub exited: Runs,
    /// At the entry of a releasing function.
    pub release: Runs,
}

/// What a hit costs beside the program that it runs, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitCosts {
    /// Entry and return of an allocating function, together.
    pub allocate_ns: f64,
    /// Entry of a releasing function.
    pub release_ns: f64,
    /// Exit of an allocating function: its last instruction, which is single-stepped.
    pub exit_ns: f64,
    /// The program at the return, when it has nothing to do.
    pub idle_return_ns: f64,
}

/// How many places of a kind there are, and how many of them are single-stepped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    all: usize,
    stepped: usize,
}

impl Places {
    pub(super) fn add(&mut self, cost: Cost) {
        self.all += 1;
        self.stepped += usize::from(cost == Cost::SingleStepped);
    }

    /// Whether most of them are. Which are hit how often, nobody counts.
    const fn are_stepped(self) -> bool {
        self.stepped * 2 > self.all
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
        let [allocate, allocated, exited, release] =
            ["allocate", "allocated", "exited", "release"].map(|name| self.runs_of(name).unwrap_or_default());
        AllRuns { allocate, allocated, exited, release }
    }

    fn runs_of(&self, name: &str) -> Option<Runs> {
        let program = self.programs.find(name)?;
        Some(Runs { count: statistic(program, "run_cnt:")?, ns: statistic(program, "run_time_ns:")? })
    }

    /// Measures what hits cost here, at places like those that are probed. The kernel must be [counting](count_runs).
    ///
    /// # Errors
    /// When the tracer cannot be probed.
    pub fn measure_hits(&mut self) -> Result<HitCosts> {
        let [allocating, releasing] = self.places.map(Places::are_stepped);
        let pair = self.hit(ProbedEvent::Allocate, if allocating { stepped_pair } else { emulated_pair })?;
        let release =
            self.hit(ProbedEvent::Release, if releasing { stepped_entry } else { emulated_entry })?;
        let exit = self.hit(ProbedEvent::Release, stepped_exit)?;
        Ok(HitCosts {
            allocate_ns: pair.beside_ns,
            release_ns: release.beside_ns,
            exit_ns: exit.beside_ns,
            idle_return_ns: pair.idle_return_ns,
        })
    }

    /// Measures a probe on a function of ours. It belongs to a process whose window never opens, so the programs leave at once.
    fn hit(&mut self, event: ProbedEvent, function: extern "C" fn()) -> Result<Hit> {
        let arg = Some(Arg::new(0));
        let signature = Signature { size: arg, count: None, old: arg, result: ResultPlace::Register };
        let cookie = Cookie {
            process: ProcessIndex::new((MAX_PROCESSES - 1) as u16),
            api: 0,
            signature,
            way_out: WayOut::Trampoline,
        };
        let offset = file_offset(function)?;
        let site = Site { offset, cookie: cookie.to_bits(), semaphore: None, event, cost: Cost::Emulated };
        let bare_ns = call_ns(function);
        let attached_before = self.probes.len();
        let places = self.places;
        self.attach_probes(Path::new("/proc/self/exe"), &[site], Pid(std::process::id()))?;
        self.places = places;
        let before = self.runs();
        let probed_ns = call_ns(function);
        let runs = self.runs().since(before);
        drop(self.probes.split_off(attached_before));
        let in_programs =
            [runs.allocate, runs.allocated, runs.release].map(Runs::mean_ns).iter().sum::<f64>();
        Ok(Hit {
            beside_ns: (probed_ns - bare_ns - in_programs).max(0.0),
            idle_return_ns: runs.allocated.mean_ns(),
        })
    }
}

struct Hit {
    beside_ns: f64,
    idle_return_ns: f64,
}

impl Runs {
    fn since(self, earlier: Self) -> Self {
        Self { count: self.count.saturating_sub(earlier.count), ns: self.ns.saturating_sub(earlier.ns) }
    }

    fn mean_ns(self) -> f64 {
        self.ns as f64 / self.count.max(1) as f64
    }
}

impl AllRuns {
    /// Those since another reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            allocate: self.allocate.since(earlier.allocate),
            allocated: self.allocated.since(earlier.allocated),
            exited: self.exited.since(earlier.exited),
            release: self.release.since(earlier.release),
        }
    }
}

/// A number that the kernel shows in the descriptor's `fdinfo`.
pub(super) fn statistic(program: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
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

#[unsafe(naked)]
extern "C" fn stepped_exit() {
    naked_asm!("mov eax, 5", "ret")
}
