//! Keeps tracing within a part of the target's CPU time, by sampling more or less.
//!
//! What tracing takes is measured: the programs' time as the kernel counts it, and for each hit what the trap costs here. Of
//! that, sampling can spare what keeping an allocation costs, most of which is the walk up its stack. The traps stay.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use anyhow::Result;
use tracer_ebpf::{
    counter::Counter,
    sampling::{LEVELS, OBJECT},
};

use super::sampling::Sampler;
use crate::{
    attach::{
        Capture,
        overhead::{AllRuns, HitCosts, count_runs},
    },
    model::{Overhead, Pid},
    target::cpu_ns,
};

/// Time between decisions.
const PERIOD_NS: u64 = 1_000_000_000;
/// What a target must do in that time for the figures to mean something: 2 % of a CPU.
const LEAST_CPU_NS: u64 = PERIOD_NS / 50;
/// How many periods in a row there must be room before more is kept.
const PATIENCE: u32 = 3;

/// A part of a whole, in thousandths of a per cent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u32);

impl Percent {
    /// The part of one.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0) / 100_000.0
    }
}

/// A budget in force.
pub struct Budget {
    max: f64,
    costs: HitCosts,
    /// The kernel counts runs as long as this is open.
    _counting: OwnedFd,
    last: Option<Reading>,
    total: Load,
    governor: Governor,
    told: bool,
}

/// Figures that only grow.
struct Reading {
    at_ns: u64,
    cpu_ns: BTreeMap<Pid, u64>,
    runs: AllRuns,
    kept: u64,
}

impl Budget {
    /// Takes at most `max` of the targets' CPU time, at `lowest` or higher levels of sampling. Measures what hits cost.
    pub fn new(max: f64, lowest: u32, capture: &mut Capture) -> Result<Self> {
        let counting = count_runs()?;
        let costs = capture.measure_hits()?;
        log::info!(
            "a call of an allocating function costs {:.0} ns beside the programs, of a releasing one {:.0} ns",
            costs.allocate_ns,
            costs.release_ns
        );
        Ok(Self {
            max,
            costs,
            _counting: counting,
            last: None,
            total: Load::default(),
            governor: Governor::new(lowest),
            told: false,
        })
    }

    /// What it came to.
    pub fn outcome(&self, sampler: &Sampler) -> Overhead {
        let is_known = self.total.cpu_ns > 0.0;
        Overhead {
            max_percent: 100.0 * self.max,
            percent: is_known.then(|| 100.0 * self.total.share()),
            probes_percent: is_known.then(|| 100.0 * self.total.floor_share()),
            least_sample_bytes: sampler.mean_at(self.governor.least).0,
        }
    }

    /// The largest level that was in force.
    pub fn highest_level(&self) -> u32 {
        self.governor.most
    }

    /// Looks at what tracing takes, once a period, and keeps more or less from then on.
    pub fn review(&mut self, now_ns: u64, capture: &mut Capture, pids: impl Iterator<Item = Pid>) {
        if self.last.as_ref().is_some_and(|last| now_ns < last.at_ns + PERIOD_NS) {
            return;
        }
        let cpu_ns = pids.filter_map(|pid| Some((pid, cpu_ns(pid)?))).collect();
        let kept = capture.tables().count(Counter::Sampled) / OBJECT;
        let reading = Reading { at_ns: now_ns, cpu_ns, runs: capture.runs(), kept };
        let load = self.last.as_ref().map(|last| Load::between(last, &reading, self.costs));
        self.last = Some(reading);
        let Some(load) = load else { return };
        self.total = self.total.plus(load);
        if load.cpu_ns >= LEAST_CPU_NS as f64 {
            self.govern(load, capture);
        }
    }

    fn govern(&mut self, load: Load, capture: &mut Capture) {
        let before = self.governor.level;
        let level = self.governor.decide(load, self.max);
        let (took, max) = (100.0 * load.share(), 100.0 * self.max);
        if level != before {
            capture.set_sample_level(level);
            let change = if level > before { "fewer" } else { "more" };
            log::info!(
                "tracing took {took:.1} % of the CPU time, of {max} %: {change} allocations are kept from now on"
            );
        }
        if load.floor_share() > self.max && !self.told {
            self.told = true;
            log::warn!(
                "the probes alone take {:.1} % of the target's CPU time, more than --max-overhead {max}%; no sampling \
                 changes that (--mode growth needs no probes)",
                100.0 * load.floor_share()
            );
        }
    }
}

/// What tracing took in a while, and the targets with it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Load {
    cpu_ns: f64,
    /// Traps, and programs that keep nothing.
    floor_ns: f64,
    /// What keeping allocations took on top.
    keeping_ns: f64,
    allocations: f64,
    kept: f64,
}

impl Load {
    fn between(earlier: &Reading, later: &Reading, costs: HitCosts) -> Self {
        let runs = later.runs.since(earlier.runs);
        let cpu_ns: u64 = later
            .cpu_ns
            .iter()
            .filter_map(|(pid, now)| Some(now.saturating_sub(*earlier.cpu_ns.get(pid)?)))
            .sum();
        let returns = (runs.allocated.count + runs.exited.count) as f64;
        let returning_ns = (runs.allocated.ns + runs.exited.ns) as f64;
        let keeping_ns = (returning_ns - costs.idle_return_ns * returns).max(0.0);
        // Where the return is not probed, an entry costs what it does at a releasing function.
        let entries_alone = runs.allocate.count.saturating_sub(runs.allocated.count) + runs.release.count;
        let traps_ns = costs.allocate_ns * runs.allocated.count as f64
            + costs.release_ns * entries_alone as f64
            + costs.exit_ns * runs.exited.count as f64;
        let programs_ns = (runs.allocate.ns + runs.release.ns) as f64 + returning_ns;
        Self {
            cpu_ns: cpu_ns as f64,
            floor_ns: traps_ns + programs_ns - keeping_ns,
            keeping_ns,
            allocations: returns,
            kept: later.kept.saturating_sub(earlier.kept) as f64,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            floor_ns: self.floor_ns + other.floor_ns,
            keeping_ns: self.keeping_ns + other.keeping_ns,
            allocations: self.allocations + other.allocations,
            kept: self.kept + other.kept,
        }
    }

    fn share(self) -> f64 {
        (self.floor_ns + self.keeping_ns) / self.cpu_ns.max(1.0)
    }

    fn floor_share(self) -> f64 {
        self.floor_ns / self.cpu_ns.max(1.0)
    }

    /// The share if so many times as many allocations were kept, but no more than there are.
    fn share_with(self, times: f64) -> f64 {
        /// A usual stack, where nothing has been kept that would tell.
        const USUAL_NS: f64 = 2000.0;
        let each_ns = if self.kept >= 20.0 { self.keeping_ns / self.kept } else { USUAL_NS };
        let kept = (self.kept.max(1.0) * times).min(self.allocations);
        (self.floor_ns + kept * each_ns) / self.cpu_ns.max(1.0)
    }
}

/// Decides the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Governor {
    lowest: u32,
    level: u32,
    /// Periods with room for more.
    calm: u32,
    least: u32,
    most: u32,
}

impl Governor {
    const fn new(lowest: u32) -> Self {
        Self { lowest, level: lowest, calm: 0, least: lowest, most: lowest }
    }

    /// One level up as soon as it is too much and sampling can help; one down when that has long been affordable.
    fn decide(&mut self, load: Load, max: f64) -> u32 {
        let sampling_helps = load.keeping_ns > load.floor_ns / 20.0;
        if load.share() > max {
            self.calm = 0;
            if sampling_helps && self.level + 1 < LEVELS {
                self.level += 1;
            }
        } else if self.level > self.lowest && self.can_afford_more(load, max) {
            self.calm += 1;
            if self.calm == PATIENCE {
                self.calm = 0;
                self.level -= 1;
            }
        } else {
            self.calm = 0;
        }
        self.least = self.least.min(self.level);
        self.most = self.most.max(self.level);
        self.level
    }

    /// A level down keeps four times as many, or all.
    fn can_afford_more(self, load: Load, max: f64) -> bool {
        let times = if self.level == 1 { f64::INFINITY } else { 4.0 };
        load.share_with(times) < 0.8 * max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second of one CPU in which `allocations` are made, of which a part is kept for 2 µs each; a pair of traps is 1 µs.
    fn second(allocations: f64, kept: f64) -> Load {
        let keeping_ns = kept * 2000.0;
        Load { cpu_ns: 1e9, floor_ns: allocations * 1000.0, keeping_ns, allocations, kept }
    }

    /// The levels that follow when `allocations` a second are made, of which a level keeps a quarter of the one below.
    fn levels(governor: &mut Governor, seconds: usize, allocations: f64) -> Vec<u32> {
        let kept = |level: u32| {
            if level == 0 { allocations } else { allocations / 8.0 / 4_f64.powi(level as i32 - 1) }
        };
        (0..seconds).map(|_| governor.decide(second(allocations, kept(governor.level)), 0.05)).collect()
    }

    #[test]
    fn a_quiet_target_is_tracked_wholly() {
        assert_eq!(levels(&mut Governor::new(0), 5, 10_000.0), [0; 5]);
    }

    #[test]
    fn a_busy_one_is_sampled_until_it_fits_and_no_more() {
        // 4 % are traps.
        assert_eq!(levels(&mut Governor::new(0), 6, 40_000.0), [1, 1, 1, 1, 1, 1]);
        // 4.8 % are.
        assert_eq!(levels(&mut Governor::new(0), 6, 48_000.0), [1, 2, 3, 3, 3, 3]);
    }

    #[test]
    fn when_traps_alone_are_too_much_sampling_stops_where_it_spares_nothing() {
        assert_eq!(levels(&mut Governor::new(0), 6, 400_000.0), [1, 2, 3, 3, 3, 3]);
    }

    #[test]
    fn when_it_is_quiet_again_more_is_kept_after_a_while() {
        let mut governor = Governor::new(0);
        levels(&mut governor, 3, 48_000.0);
        assert_eq!(levels(&mut governor, 9, 5000.0), [3, 3, 2, 2, 2, 1, 1, 1, 0]);
        assert_eq!((governor.least, governor.most), (0, 3));
    }

    #[test]
    fn what_the_user_asked_for_is_the_least() {
        let mut governor = Governor::new(1);
        assert_eq!(levels(&mut governor, 5, 1000.0), [1; 5]);
    }

    #[test]
    fn costs_are_those_of_traps_and_programs() {
        use crate::attach::overhead::Runs;
        let costs = HitCosts { allocate_ns: 700.0, release_ns: 400.0, exit_ns: 900.0, idle_return_ns: 50.0 };
        let runs = |count, ns| Runs { count, ns };
        let reading = |at_ns, cpu, runs, kept| Reading { at_ns, cpu_ns: [(Pid(1), cpu)].into(), runs, kept };
        let earlier = reading(0, 500, AllRuns::default(), 0);
        let exited = Runs::default();
        let later =
            AllRuns { allocate: runs(10, 600), allocated: runs(10, 1500), exited, release: runs(5, 300) };
        let load = Load::between(&earlier, &reading(1, 100_500, later, 2), costs);
        let traps_ns = 10.0 * 700.0 + 5.0 * 400.0;
        assert_eq!(load.keeping_ns, 1000.0);
        assert_eq!(load.floor_ns, traps_ns + 600.0 + 500.0 + 300.0);
        assert_eq!((load.cpu_ns, load.allocations, load.kept), (100_000.0, 10.0, 2.0));
    }
}
