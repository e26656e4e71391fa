//! What walking stacks costs: the BPF program at the return of `malloc`, through frames that have unwind tables and through frames
//! that have frame pointers instead, and through Python functions; and what making the tables takes.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    Bed,
    median::median,
    overhead::machine,
    tool::{Attached, Ending, tracer},
    workload::Dialogue,
};
use crate::command;

/// The depths that are compared; the walk ends at 127 frames.
const DEPTHS: [u32; 4] = [4, 16, 64, 120];

/// The two programs: the same source, built so that its frames are walked by tables, or by frame pointers.
const BY_TABLE: &str = "frames_by_table";
const BY_POINTER: &str = "frames_by_pointer";

/// The interpreter whose functions are walked, 3.11 or later: so they call each other with no native frame between.
const PYTHON: &str = "/usr/bin/python3";

/// How many Python functions are on the stack, with some twenty native frames around them, for one of [`DEPTHS`].
const fn functions(depth: u32) -> u32 {
    depth * 3 / 4
}

/// Files whose tables are timed: the first that is there of each line.
const FILES: [&[&str]; 6] = [
    &["/usr/bin/node", "/usr/local/bin/node"],
    &["/usr/lib/llvm-22/lib/libLLVM.so.22.1", "/usr/lib/x86_64-linux-gnu/libLLVM-14.so.1"],
    &["/lib/x86_64-linux-gnu/libc.so.6"],
    &["/usr/lib/x86_64-linux-gnu/libstdc++.so.6"],
    &["/usr/bin/python3.11", "/usr/bin/python3"],
    &["/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so"],
];

/// Measures, and returns the results as tables.
///
/// # Errors
/// When the tracer or a target fails.
pub fn measure(bed: &Bed, rounds: usize, milliseconds: u32) -> Result<String> {
    let machine = machine()?;
    let walks = walks(bed, rounds, milliseconds)?;
    let tables = tables(bed, rounds)?;
    Ok(format!("{}\n{tables}\nMedians of {rounds} rounds. {machine}", Walks(&walks)))
}

/// Nanoseconds of one run of the program, by depth: through tables, through frame pointers, and through Python functions.
type Measured = [Vec<f64>; 3];

fn walks(bed: &Bed, rounds: usize, milliseconds: u32) -> Result<Vec<Measured>> {
    let pointers =
        ["-fno-omit-frame-pointer", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"].as_slice();
    bed.compile_as(BY_TABLE, "pairs", &["-fomit-frame-pointer"])?;
    bed.compile_as(BY_POINTER, "pairs", pointers)?;
    let mut programs = Vec::new();
    let mut tracer = tracer(bed, None);
    let mut python = Command::new(PYTHON);
    python.arg(bed.sources.join("pairs.py"));
    let mut commands = [BY_TABLE, BY_POINTER].map(|name| Command::new(bed.program(name)));
    for command in &mut commands {
        command.arg("1");
    }
    for command in commands.iter_mut().chain([&mut python]) {
        let mut program = Dialogue::start(command)?;
        let ready = program.line_with("ready ")?;
        tracer.args(["--pid", ready.trim_start_matches("ready ")]);
        programs.push(program);
    }
    let _statistics = Statistics::on()?;
    // Both at once: the same programs, maps and caches.
    let attached = Attached::start(&mut tracer, "recording ", Ending::Interrupt)?;
    let pid = attached.id().context("it is not a process")?;
    let mut measured: Vec<Measured> = DEPTHS.iter().map(|_| Measured::default()).collect();
    for round in 0..=rounds {
        command::step(&format!("walking stacks: round {round} of {rounds}"));
        for (depth, measured) in DEPTHS.iter().zip(&mut measured) {
            let asked = [*depth, *depth, functions(*depth)];
            for ((program, measured), asked) in programs.iter_mut().zip(measured).zip(asked) {
                let before = Runs::of(pid)?;
                program.ask(&format!("{asked} {milliseconds}"))?;
                let ns = Runs::of(pid)?.dearest_since(&before).context("no program ran")?;
                // The first round is for what is done once.
                if round > 0 {
                    measured.push(ns);
                }
            }
        }
    }
    attached.detach()?;
    check(bed)?;
    Ok(measured)
}

/// Panics of wrong measurements are better than none: every stack must have been walked whole.
fn check(bed: &Bed) -> Result<()> {
    let report = fs::read_to_string(bed.scratch.join("report.json"))?;
    let cut = report.contains("\"complete\": false") || report.contains("\"complete\":false");
    ensure!(!cut, "some stacks were not walked to their end, so what was measured is not their cost");
    Ok(())
}

/// The kernel's statistics of BPF programs, switched on while this lives.
struct Statistics {
    before: String,
}

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Statistics {
    fn on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context("this kernel keeps no statistics of BPF programs")?;
        fs::write(SWITCH, "1").context("cannot switch the statistics of BPF programs on")?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        // Nothing can be done about a failure.
        let _ = fs::write(SWITCH, &self.before);
    }
}

/// How often, and for how long, the BPF programs of a process have run.
struct Runs(Vec<(u64, u64, u64)>);

impl Runs {
    fn of(pid: u32) -> Result<Self> {
        let mut runs = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // A descriptor may be closed meanwhile.
            let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
            let field =
                |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            if let (Some(id), Some(ns), Some(count)) =
                (field("prog_id:"), field("run_time_ns:"), field("run_cnt:"))
            {
                runs.push((id, ns, count));
            }
        }
        Ok(Self(runs))
    }

    /// Nanoseconds a run of the program that took most time since then: the one that walks.
    fn dearest_since(&self, before: &Self) -> Option<f64> {
        let since = self.0.iter().filter_map(|&(id, ns, count)| {
            let &(_, earlier_ns, earlier) = before.0.iter().find(|&&(other, ..)| other == id)?;
            (count > earlier).then(|| (ns - earlier_ns, count - earlier))
        });
        since.max_by_key(|&(ns, _)| ns).map(|(ns, count)| ns as f64 / count as f64)
    }
}

/// The results as a table.
struct Walks<'a>(&'a [Measured]);

impl std::fmt::Display for Walks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = "| frames | by table | a frame more | by frame pointer | a frame more | Python functions | with them | a function more |";
        writeln!(f, "{head}\n|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        let mut earlier: Option<(u32, [f64; 3])> = None;
        for (&depth, measured) in DEPTHS.iter().zip(self.0) {
            let ns = [0, 1, 2].map(|way: usize| median(&measured[way]).unwrap_or(f64::NAN));
            let slope = |way: usize, frames: fn(u32) -> u32| match earlier {
                Some((before, earlier)) => {
                    format!("{:.1} ns", (ns[way] - earlier[way]) / f64::from(frames(depth) - frames(before)))
                }
                None => String::new(),
            };
            let native = |depth| depth;
            write!(
                f,
                "| {depth} | {:.0} ns | {} | {:.0} ns | {} ",
                ns[0],
                slope(0, native),
                ns[1],
                slope(1, native)
            )?;
            writeln!(f, "| {} | {:.0} ns | {} |", functions(depth), ns[2], slope(2, functions))?;
            earlier = Some((depth, ns));
        }
        Ok(())
    }
}

fn tables(bed: &Bed, rounds: usize) -> Result<String> {
    let files = FILES.iter().filter_map(|paths| paths.iter().map(PathBuf::from).find(|path| path.exists()));
    let mut example = Command::new(&bed.unwind_tables);
    example.args(["--rounds", &rounds.to_string()]).args(files);
    command::step("making unwind tables");
    let mut text = String::new();
    writeln!(text, "{}", command::output(&mut example)?.trim_end())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_that_took_most_is_the_one_that_counts() {
        let before = Runs(vec![(1, 100, 10), (2, 100, 10), (3, 900, 1)]);
        let after = Runs(vec![(1, 1100, 20), (2, 200, 20), (3, 900, 1), (4, 9999, 1)]);
        assert_eq!(after.dearest_since(&before), Some(100.0));
        assert_eq!(before.dearest_since(&before), None);
    }

    #[test]
    fn a_frame_more_is_what_lies_between_two_depths() {
        let measured: Vec<Measured> = [100.0, 340.0, 1300.0, 2420.0]
            .map(|ns| [vec![ns, ns, 9999.0], vec![ns / 2.0], vec![ns * 3.0]])
            .into();
        let shown = Walks(&measured).to_string();
        let row = "| 16 | 340 ns | 20.0 ns | 170 ns | 10.0 ns | 12 | 1020 ns | 80.0 ns |";
        assert!(shown.contains(row), "{shown}");
    }
}
