//! What traced programs lose: every tool on every workload, taking turns, so that what disturbs the machine disturbs all of them.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::{
    Bed,
    median::median,
    tool::Tool,
    workload::{Kind, Measured, Running},
};
use crate::{command, privilege::found_in_path};

/// A tool, and how deep the stacks are that it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    tool: Tool,
    depth: Option<u32>,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often each tool is measured.
    pub rounds: usize,
    /// How long one measurement takes.
    pub milliseconds: u32,
    /// Only these tools, beside what they are compared with; all when there are none.
    pub tools: Vec<Tool>,
}

impl Plan {
    fn has(&self, tool: Tool) -> bool {
        let is_compared_with = matches!(tool, Tool::Untraced | Tool::EmptyPlanned);
        self.tools.is_empty() || is_compared_with || self.tools.contains(&tool)
    }
}

/// How deep the stacks of malloc's callers are where it is not what is compared.
const USUAL_DEPTH: u32 = 16;

/// Measures one workload under every tool, and returns the results as a table.
///
/// # Errors
/// When a tool or workload fails.
pub fn measure(bed: &Bed, plan: &Plan, kind: Kind) -> Result<String> {
    let Plan { rounds, milliseconds, .. } = *plan;
    let began_on = machine()?;
    let cases: Vec<Case> =
        cases(kind).into_iter().filter(|case| plan.has(case.tool) && is_there(case.tool)).collect();
    let mut results = vec![Vec::new(); cases.len()];
    for round in 1..=rounds {
        command::step(&format!("{}: round {round} of {rounds}", kind.title()));
        // One process for all tools of a round that start it alike, as old as the others when the first is measured.
        let mut processes: Vec<(Vec<String>, Running)> = Vec::new();
        for case in &cases {
            let launcher = case.tool.launcher(bed);
            if processes.iter().all(|(other, _)| *other != launcher) {
                processes.push((launcher.clone(), warm(kind, bed, &launcher)?));
            }
        }
        // Whoever is measured first finds the process youngest: each in its turn.
        for place in (0..cases.len()).map(|place| (place + round) % cases.len()) {
            let case = cases[place];
            let launcher = case.tool.launcher(bed);
            let running = processes.iter_mut().find(|(other, _)| *other == launcher);
            let (_, running) = running.context("each case has its process")?;
            results[place].push(one(bed, case, running, milliseconds)?);
        }
    }
    let table = table(kind, &cases, &results)?;
    Ok(format!("{table}\nMedian of {rounds}. {began_on}"))
}

/// A process that has worked for a while: what compiles as it runs becomes several times faster in its first seconds.
fn warm(kind: Kind, bed: &Bed, launcher: &[String]) -> Result<Running> {
    let mut running = kind.start(bed, launcher)?;
    running.measure(USUAL_DEPTH, if kind == Kind::Node { 10_000 } else { 200 })?;
    Ok(running)
}

fn cases(kind: Kind) -> Vec<Case> {
    let is_pairs = matches!(kind, Kind::Pairs | Kind::Pairs8);
    let depths: &[Option<u32>] = if is_pairs { &[Some(4), Some(16), Some(64)] } else { &[None] };
    let plain = |tool| Case { tool, depth: None };
    let before = [
        Tool::Untraced,
        Tool::SamplerIdle,
        Tool::Sampler,
        Tool::Gate,
        Tool::EmptyPlanned,
        Tool::EmptyEntries,
    ]
    .map(plain);
    let exact = depths.iter().map(|&depth| Case { tool: Tool::Tracer, depth });
    // Of a sample hardly any stacks are walked, however deep.
    let others = [Tool::Sampled, Tool::Growth, Tool::Bpftrace, Tool::Heaptrack].map(plain);
    before.into_iter().chain(exact).chain(others).collect()
}

fn is_there(tool: Tool) -> bool {
    let program = match tool {
        Tool::Bpftrace => "bpftrace",
        Tool::Heaptrack => "heaptrack",
        _ => return true,
    };
    let found = found_in_path(program);
    if !found {
        command::step(&format!("{program} is not installed, so it is left out"));
    }
    found
}

fn one(bed: &Bed, case: Case, running: &mut Running, milliseconds: u32) -> Result<Measured> {
    let depth = case.depth.unwrap_or(USUAL_DEPTH);
    let attached = case.tool.attach(bed, running.pid, &running.allocator()?)?;
    // A first run, for caches and for what is done once.
    running.measure(depth, milliseconds / 10)?;
    let measured = running.measure(depth, milliseconds)?;
    attached.detach().with_context(|| format!("cannot measure {}", case.tool))?;
    Ok(measured)
}

fn table(kind: Kind, cases: &[Case], results: &[Vec<Measured>]) -> Result<String> {
    let medians = |value: fn(&Measured) -> Option<f64>| -> Vec<Option<f64>> {
        results.iter().map(|runs| median(&runs.iter().filter_map(value).collect::<Vec<_>>())).collect()
    };
    let ns = medians(|measured| Some(measured.ns));
    let p99 = medians(|measured| measured.p99_ns);
    let of = |tool: Tool| cases.iter().position(|case| case.tool == tool).and_then(|at| ns[at]);
    let untraced = of(Tool::Untraced).context("nothing was measured")?;
    let floor = of(Tool::EmptyPlanned).context("nothing was measured")?;
    let mut text = format!("**{}**\n\n", kind.title());
    text += "| | median | times untraced | times the floor | fewer operations | p99 |\n|---|--:|--:|--:|--:|--:|\n";
    for ((case, ns), p99) in cases.iter().zip(ns).zip(p99) {
        let ns = ns.context("nothing was measured")?;
        let depth = case.depth.map(|depth| format!(", {depth} frames")).unwrap_or_default();
        let floors = if case.tool == Tool::Untraced { String::new() } else { format!("{:.2}", ns / floor) };
        writeln!(
            text,
            "| {}{depth} | {} | {:.2} | {floors} | {:.0} % | {} |",
            case.tool,
            time(ns),
            ns / untraced,
            (1.0 - untraced / ns) * 100.0,
            p99.map(time).unwrap_or_default()
        )?;
    }
    Ok(text)
}

/// Nanoseconds in the unit that suits them.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 10e6 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

/// What it was measured on.
pub fn machine() -> Result<String> {
    let read = std::fs::read_to_string;
    let cpus = std::thread::available_parallelism()?;
    let cpu = read("/proc/cpuinfo")?;
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let load = read("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!(
        "Linux {}, {cpus} CPUs ({}), load when it began {load}.\n",
        read("/proc/sys/kernel/osrelease")?.trim(),
        model.unwrap_or("unknown")
    ))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn ratios_are_those_of_the_medians() {
        let cases: Vec<Case> =
            [Tool::Untraced, Tool::EmptyPlanned, Tool::Tracer].map(|tool| Case { tool, depth: None }).into();
        let run = |ns| Measured { ns, p99_ns: None };
        let results = [vec![run(10.0), run(900.0), run(10.0)], vec![run(1000.0)], vec![run(1500.0)]];
        let table = table(Kind::Pairs, &cases, &results).unwrap();
        assert!(table.contains("| untraced | 10.0 ns | 1.00 |  | 0 % |  |"), "{table}");
        assert!(table.contains("| tracer, exact | 1500 ns | 150.00 | 1.50 | 99 % |  |"), "{table}");
    }

    #[test]
    fn every_workload_is_compared_with_the_floor() {
        for &kind in Kind::value_variants() {
            assert!(cases(kind).iter().any(|case| case.tool == Tool::EmptyPlanned));
        }
    }
}
