//! What walking stacks costs: the BPF program at the return of `malloc`, through frames that have unwind tables and through frames
//! that have frame pointers instead, and through functions of JavaScript, Python and Java; and what making the tables takes.

use std::{
    fmt::{self, Write as _},
    fs,
    path::PathBuf,
    process::Command,
};

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

/// How many functions of a runtime are on the stack, with up to forty frames around them that are native or the runtime's own, for one of
/// [`DEPTHS`].
const fn functions(depth: u32) -> u32 {
    depth * 5 / 8
}

/// The programs in turn: two whose frames are native, and those of runtimes, by what the table calls a frame of theirs.
const NATIVE: usize = 2;
const RUNTIMES: [&str; 4] = ["Python", "V8, interpreted", "Java, compiled", "Java, interpreted"];
const PROGRAMS: usize = NATIVE + RUNTIMES.len();

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

/// Nanoseconds of one run of the program at one depth, of each program.
type Measured = [Vec<f64>; PROGRAMS];

/// What starts each of the programs.
fn commands(bed: &Bed) -> Result<[Command; PROGRAMS]> {
    let pointers =
        ["-fno-omit-frame-pointer", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"].as_slice();
    bed.compile_as(BY_TABLE, "pairs", &["-fomit-frame-pointer"])?;
    bed.compile_as(BY_POINTER, "pairs", pointers)?;
    let [by_table, by_pointer] = [BY_TABLE, BY_POINTER].map(|name| {
        let mut command = Command::new(bed.program(name));
        command.arg("1");
        command
    });
    let mut python = Command::new(PYTHON);
    python.arg(bed.sources.join("pairs.py"));
    Ok([by_table, by_pointer, python, javascript(bed)?, java(bed, &[])?, java(bed, &["-Xint"])?])
}

/// Without compilers all its functions are interpreted.
fn javascript(bed: &Bed) -> Result<Command> {
    const ADDON: &str = "pairs_addon.node";
    let headers = format!("-I{}", bed.node_headers.display());
    bed.compile_as(ADDON, "pairs_addon", &["-shared", "-fPIC", &headers])?;
    let mut node = Command::new("node");
    node.arg("--jitless").arg(bed.sources.join("pairs.js")).arg(bed.program(ADDON));
    Ok(node)
}

/// Without inlining each method has a frame of its own.
fn java(bed: &Bed, options: &[&str]) -> Result<Command> {
    let mut compiler = Command::new("javac");
    compiler.args(["-nowarn", "-d"]).arg(&bed.scratch).arg(bed.sources.join("Pairs.java"));
    command::run_quietly("compiling Pairs.java", &mut compiler)?;
    let mut java = Command::new("java");
    java.arg("-XX:-Inline").args(options).arg("-cp").arg(&bed.scratch).arg("Pairs");
    Ok(java)
}

fn walks(bed: &Bed, rounds: usize, milliseconds: u32) -> Result<Vec<Measured>> {
    let mut programs = Vec::new();
    let mut tracer = tracer(bed, None);
    for command in &mut commands(bed)? {
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
            for (index, (program, measured)) in programs.iter_mut().zip(measured).enumerate() {
                let asked = if index < NATIVE { *depth } else { functions(*depth) };
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

/// The results as tables: native frames, and those of runtimes beside native ones of the same run.
struct Walks<'a>(&'a [Measured]);

impl fmt::Display for Walks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| frames | by table | a frame more | by frame pointer | a frame more |\n|--:|--:|--:|--:|--:|"
        )?;
        let native = |depth| depth;
        for (row, depth) in DEPTHS.iter().enumerate() {
            write!(f, "| {depth} |")?;
            (0..NATIVE).try_for_each(|program| self.cells(f, program, row, native))?;
            writeln!(f)?;
        }
        writeln!(f, "\n| functions | {} | a function more |", RUNTIMES.join(" | a function more | "))?;
        writeln!(f, "|--:|{}", "--:|--:|".repeat(RUNTIMES.len()))?;
        for (row, &depth) in DEPTHS.iter().enumerate() {
            write!(f, "| {} |", functions(depth))?;
            (NATIVE..PROGRAMS).try_for_each(|program| self.cells(f, program, row, functions))?;
            writeln!(f)?;
        }
        let last = DEPTHS.len() - 1;
        let one = |program, frames| self.slope(program, 0, last, frames);
        let by_table = one(0, native);
        let ratios = RUNTIMES.iter().enumerate().map(|(index, name)| {
            let ns = one(NATIVE + index, functions);
            format!("{name} {ns:.0} ns ({:.1})", ns / by_table)
        });
        let ratios: Vec<_> = ratios.collect();
        writeln!(
            f,
            "\nOver all depths, a function more costs, and how many native frames by table ({by_table:.1} ns) that is: {}.",
            ratios.join(", ")
        )
    }
}

impl Walks<'_> {
    fn median(&self, program: usize, row: usize) -> f64 {
        self.0.get(row).and_then(|measured| median(&measured[program])).unwrap_or(f64::NAN)
    }

    /// What one of the frames that are more costs.
    fn slope(&self, program: usize, from: usize, to: usize, frames: fn(u32) -> u32) -> f64 {
        let more = frames(DEPTHS[to]) - frames(DEPTHS[from]);
        (self.median(program, to) - self.median(program, from)) / f64::from(more)
    }

    /// Two cells: what a run took, and what each frame cost that the row before has not.
    fn cells(
        &self,
        f: &mut fmt::Formatter<'_>,
        program: usize,
        row: usize,
        frames: fn(u32) -> u32,
    ) -> fmt::Result {
        write!(f, " {:.0} ns |", self.median(program, row))?;
        match row.checked_sub(1) {
            Some(before) => write!(f, " {:.1} ns |", self.slope(program, before, row, frames)),
            None => write!(f, "  |"),
        }
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
            .map(|ns| [ns, ns / 2.0, ns * 3.0, ns, ns, ns].map(|ns| vec![ns, ns, ns]))
            .into();
        let shown = Walks(&measured).to_string();
        assert!(shown.contains("| 16 | 340 ns | 20.0 ns | 170 ns | 10.0 ns |\n"), "{shown}");
        assert!(shown.contains("| 10 | 1020 ns | 90.0 ns | 340 ns | 30.0 ns |"), "{shown}");
        assert!(
            shown.contains("native frames by table (20.0 ns) that is: Python 95 ns (4.8), V8"),
            "{shown}"
        );
    }
}
