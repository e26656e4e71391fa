//! What tracing takes of the targets' CPU time.
//!
//! It is measured for a tenth of the time, since to have the kernel count the runs of programs costs each of them some 30 ns: how
//! often the programs ran and how long, and, beforehand, what a hit costs beside its program. What a call took then, every call in
//! the window took. What the traps take from the CPU's caches is not measured.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use crate::{
    attach::{
        Capture,
        hits::{AllRuns, HitCosts, Runs, count_runs},
    },
    model::{Overhead, Pid},
    target::{CpuTimes, ThreadTimes},
};

/// How long it is measured at a time, and how often.
const SPELL_NS: u64 = 200_000_000;
const PERIOD_NS: u64 = 10 * SPELL_NS;
/// What targets must do for a share of it to mean something.
const LEAST_CPU_NS: f64 = 50e6;
/// What a program takes in a process that is not traced, where probes are everybody's: a look into a hash map.
const LEAVING_NS: u64 = 60;

/// Measures, from the beginning of a window to its end.
pub struct Meter {
    costs: Costs,
    spell: Option<Spell>,
    next_spell_ns: u64,
    measured: Measured,
    cpu: CpuAccount,
    /// Calls by the time that CPU time was last read.
    calls: u64,
}

/// What a hit costs beside its program.
enum Costs {
    /// A thread measures it.
    Awaited(thread::JoinHandle<Option<HitCosts>>),
    Known(HitCosts),
    Unknown,
}

/// A while in which the kernel counts.
struct Spell {
    began_ns: u64,
    calls: u64,
    runs: AllRuns,
    _counting: OwnedFd,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Measured {
    /// Runs of the programs in the targets.
    runs: AllRuns,
    /// Calls in the same time.
    calls: u64,
}

impl Measured {
    /// An allocation with a stack of 16 frames.
    fn usual_call() -> Self {
        let allocated = Runs { count: 1, ns: 1000 };
        Self { runs: AllRuns { allocate: allocated, allocated, ..AllRuns::default() }, calls: 1 }
    }

    /// The runs of so many calls, of which those that were measured are some. Where none of them was, each was a usual one.
    fn of_calls(self, calls: u64) -> AllRuns {
        let Self { runs, calls: measured } = if self.calls == 0 { Self::usual_call() } else { self };
        runs.times(calls as f64 / measured as f64)
    }
}

impl Meter {
    /// Begins to measure what hits cost, on a thread of its own.
    pub fn new(capture: &Capture) -> Self {
        let links = capture.uprobe_links();
        let measure = move || {
            HitCosts::measure(links)
                .inspect_err(|error| log::info!("the cost of tracing is not measured: {error:#}"))
                .ok()
        };
        let costs = thread::Builder::new().name("hits".to_owned()).spawn(measure);
        Self {
            costs: costs.map_or(Costs::Unknown, Costs::Awaited),
            spell: None,
            next_spell_ns: 0,
            measured: Measured::default(),
            cpu: CpuAccount::default(),
            calls: 0,
        }
    }

    /// A window opens: what was before does not count.
    pub fn begin(&mut self, now_ns: u64, capture: &Capture, pids: &[Pid]) {
        self.measured = Measured::default();
        self.cpu = CpuAccount::since(pids);
        self.calls = 0;
        self.begin_spell(now_ns, capture, 0);
    }

    /// Looks at it, so many calls after the window opened.
    pub fn look(&mut self, now_ns: u64, capture: &Capture, pids: &[Pid], calls: u64) {
        self.costs.learn(false);
        if self.cpu.read_if_due(now_ns, pids) {
            self.calls = calls;
        }
        match &self.spell {
            Some(spell) if now_ns >= spell.began_ns + SPELL_NS => self.end_spell(capture, calls),
            None if now_ns >= self.next_spell_ns => self.begin_spell(now_ns, capture, calls),
            _ => {}
        }
    }

    /// The window closes.
    pub fn end(&mut self, capture: &Capture, pids: &[Pid], calls: u64) {
        self.costs.learn(true);
        if self.cpu.read(pids) {
            self.calls = calls;
        }
        self.end_spell(capture, calls);
    }

    fn begin_spell(&mut self, now_ns: u64, capture: &Capture, calls: u64) {
        self.next_spell_ns = now_ns + PERIOD_NS;
        match count_runs() {
            Ok(counting) => {
                self.spell =
                    Some(Spell { began_ns: now_ns, calls, runs: capture.runs(), _counting: counting });
            }
            Err(error) => {
                log::info!("the cost of tracing is not measured: {error:#}");
                self.next_spell_ns = u64::MAX;
            }
        }
    }

    fn end_spell(&mut self, capture: &Capture, calls: u64) {
        let Some(spell) = self.spell.take() else { return };
        let calls = calls.saturating_sub(spell.calls);
        let runs = capture.runs().since(spell.runs);
        let runs = if capture.shares_probes() { runs.of_calls(calls, LEAVING_NS) } else { runs };
        self.measured = Measured { runs: self.measured.runs.plus(runs), calls: self.measured.calls + calls };
    }

    /// What tracing took since the window opened, be that a moment ago, and of that the walks of stacks in nanoseconds; none where that is
    /// not measured. Clock ticks are too few in a moment to say what of it was in the kernel.
    pub fn of_moment(&mut self, capture: &Capture, pids: &[Pid], calls: u64) -> Option<(Overhead, u64)> {
        self.end(capture, pids, calls);
        let Costs::Known(costs) = self.costs else { return None };
        let (cpu_ns, _) = self.cpu.total(capture.follows());
        let runs = self.measured.of_calls(self.calls);
        let tracing_ns = costs.of(&runs, capture.probed_places());
        log::info!(
            "in {:.1} ms of the targets' CPU time: {:.2} ms of tracing, by {} calls; {:.2} ms of it to walk {} stacks, {:.2} ms in programs besides",
            cpu_ns / 1e6,
            tracing_ns / 1e6,
            runs.calls(),
            runs.walks().ns as f64 / 1e6,
            runs.walks().count,
            (runs.ns() - runs.walks().ns) as f64 / 1e6,
        );
        Some((Overhead::new(cpu_ns, tracing_ns.min(cpu_ns)), runs.walks().ns))
    }

    /// What it came to so far; none when it cannot be told.
    pub fn outcome(&self, capture: &Capture) -> Option<Overhead> {
        let Costs::Known(costs) = self.costs else { return None };
        let (cpu_ns, in_kernel_ns) = self.cpu.total(capture.follows());
        if cpu_ns < LEAST_CPU_NS {
            return None;
        }
        let tracing_ns = costs.of(&self.measured.of_calls(self.calls), capture.probed_places());
        // All of it is time in the kernel.
        Some(Overhead::new(cpu_ns, tracing_ns.min(in_kernel_ns)))
    }
}

impl Costs {
    /// Takes what the thread found out, once it has.
    fn learn(&mut self, waits: bool) {
        if !matches!(self, Self::Awaited(measuring) if waits || measuring.is_finished()) {
            return;
        }
        let Self::Awaited(measuring) = std::mem::replace(self, Self::Unknown) else { return };
        if let Ok(Some(costs)) = measuring.join() {
            log::info!("beside its program, {costs}");
            *self = Self::Known(costs);
        }
    }
}

/// What targets use while nothing is done to them, from a moment on.
pub struct UsualUse {
    began: Instant,
    cpu: CpuAccount,
    threads: ThreadTimes,
}

impl UsualUse {
    /// From now on.
    pub fn from_now(pids: &[Pid]) -> Self {
        Self { began: Instant::now(), cpu: CpuAccount::since(pids), threads: ThreadTimes::of(pids) }
    }

    /// The part of the time until now, as far as others left them a CPU; none where that is too short a time to tell, or they did nothing in
    /// it: what they may have waited for the kernel counts later.
    pub fn until_now(mut self, pids: &[Pid]) -> Option<f64> {
        const LEAST: Duration = Duration::from_millis(50);
        let time = self.began.elapsed();
        self.cpu.read(pids);
        let had_ns = ThreadTimes::of(pids).had_since(&self.threads, time.as_nanos() as u64);
        let cpu_ns = self.cpu.total(false).0;
        (time >= LEAST && cpu_ns > 0.0).then(|| cpu_ns / (had_ns as f64).max(cpu_ns))
    }
}

/// The CPU time of the targets since the window opened.
#[derive(Debug, Default)]
struct CpuAccount {
    before: BTreeMap<Pid, CpuTimes>,
    /// As it was last read, also of those that are gone.
    last: BTreeMap<Pid, CpuTimes>,
    /// The most that those that are there had, with the children that they waited for. Those have no time of their own any more.
    most_of_tree_ns: u64,
    next_reading_ns: u64,
}

impl CpuAccount {
    fn since(pids: &[Pid]) -> Self {
        Self { before: read(pids), ..Self::default() }
    }

    /// Reads it of those that are there; `false` when nobody is.
    fn read(&mut self, pids: &[Pid]) -> bool {
        let now = read(pids);
        let is_known = !now.is_empty();
        self.add(now);
        is_known
    }

    /// As [`CpuAccount::read`], unless that is not due: it takes some 20 µs a process, so this is 2 % of a CPU at the most.
    fn read_if_due(&mut self, now_ns: u64, pids: &[Pid]) -> bool {
        const SPACING_NS: u64 = 1_000_000;
        if now_ns < self.next_reading_ns {
            return false;
        }
        self.next_reading_ns = now_ns + SPACING_NS * pids.len() as u64;
        self.read(pids)
    }

    fn add(&mut self, now: BTreeMap<Pid, CpuTimes>) {
        let of_tree = now.iter().map(|(pid, now)| {
            let before = self.before(*pid);
            now.own_ns.saturating_sub(before.own_ns) + now.children_ns.saturating_sub(before.children_ns)
        });
        self.most_of_tree_ns = self.most_of_tree_ns.max(of_tree.sum());
        self.last.extend(now);
    }

    /// Those that came later began with none.
    fn before(&self, pid: Pid) -> CpuTimes {
        self.before.get(&pid).copied().unwrap_or_default()
    }

    /// CPU time in nanoseconds, and how much of it was in the kernel. Of children that nobody saw alive only those that wait for them
    /// know.
    fn total(&self, with_children: bool) -> (f64, f64) {
        let (mut own_ns, mut user, mut system) = (0, 0, 0);
        for (&pid, last) in &self.last {
            let before = self.before(pid);
            own_ns += last.own_ns.saturating_sub(before.own_ns);
            user += last.user.saturating_sub(before.user);
            system += last.system.saturating_sub(before.system);
        }
        let ns = if with_children { own_ns.max(self.most_of_tree_ns) } else { own_ns } as f64;
        // Without a tick nothing can be said.
        let in_kernel = if user + system == 0 { 1.0 } else { system as f64 / (user + system) as f64 };
        (ns, in_kernel * ns)
    }
}

fn read(pids: &[Pid]) -> BTreeMap<Pid, CpuTimes> {
    pids.iter().filter_map(|&pid| Some((pid, CpuTimes::of(pid)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(own_ns: u64, children_ns: u64, user: u64, system: u64) -> CpuTimes {
        CpuTimes { own_ns, children_ns, user, system }
    }

    #[test]
    fn calls_that_nobody_measured_took_what_the_others_did() {
        let runs = |count, ns| AllRuns { call: Runs { count, ns }, ..AllRuns::default() };
        let measured = Measured { runs: runs(20, 3000), calls: 10 };
        assert_eq!(measured.of_calls(10), runs(20, 3000));
        assert_eq!(measured.of_calls(25), runs(50, 7500));
        assert_eq!(Measured::default().of_calls(3), Measured::usual_call().runs.times(3.0));
        assert_eq!(Measured::default().of_calls(0), AllRuns::default());
    }

    #[test]
    fn cpu_time_is_that_of_the_window_and_of_those_that_are_gone() {
        let mut account = CpuAccount {
            before: [(Pid(1), times(100, 50, 10, 10)), (Pid(2), times(0, 0, 0, 0))].into(),
            ..CpuAccount::default()
        };
        account.add([(Pid(1), times(300, 50, 10, 40)), (Pid(2), times(80, 0, 10, 0))].into());
        account.add([(Pid(1), times(400, 50, 20, 50))].into());
        let (ns, in_kernel_ns) = account.total(false);
        assert_eq!((ns, (3.0 * in_kernel_ns).round()), (380.0, 2.0 * 380.0));
    }

    #[test]
    fn children_count_once_whether_they_were_seen_or_only_waited_for() {
        let mut account =
            CpuAccount { before: [(Pid(1), times(100, 50, 0, 0))].into(), ..CpuAccount::default() };
        account.add([(Pid(1), times(110, 50, 0, 0)), (Pid(2), times(500, 0, 0, 0))].into());
        // That one has ended, and so has another that nobody saw.
        account.add([(Pid(1), times(120, 50 + 600 + 300, 0, 0))].into());
        assert_eq!(account.total(true).0, 20.0 + 900.0);
        assert_eq!(account.total(false).0, 20.0 + 500.0);
    }
}
