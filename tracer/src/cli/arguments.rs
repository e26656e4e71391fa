//! The command line as it is written, and what is refused of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, ColorChoice, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::config::{Drawing, Keep, RecordConfig, Verbosity, ViewConfig};
use super::values::{
    parse_allocator, parse_format, parse_interval, parse_pid, parse_positive_time, parse_prefix,
    parse_sample, parse_size, parse_time, parse_verdict, time,
};
use super::watch::WatchArguments;
use super::{heading, plain};
use crate::model::{Bytes, Kind, Mode, Pid, Verdict};
use crate::plan::{Allocator, Declarations, SymbolPrefix};
use crate::record::{self, CostLimit};
use crate::report::Format;
use crate::report::destination::Destination;
use crate::symbolize::Wish;
use crate::target::{CommandLine, Subject, choice::Choice};

const EXAMPLES: &str = "\
Examples:
  sudo tracer --pid 4242                 until Ctrl-C; writes a flame graph
  sudo tracer -d 1m --min-age 10s -p 4242 -o leak.svg -o leak.json
  sudo tracer -- ./server --port 80      from its first instruction, as the user who called sudo
  tracer doctor                          what is missing to trace here

Exit status: 0 done; 1 failed; 2 wrong usage; 3 --fail-on reached; a launched command's own non-zero
status is passed on (128 + the signal that killed it; 127 not found, 126 not executable).";

const GATE: &str = "\
Experimental: open a gate in a process, and close it on Ctrl-C; or close one that was left open.

While a gate is open, the process samples its own allocations at nanoseconds a call, and any tool can read the sample by the USDT \
probes otel_memory:alloc and otel_memory:free of the file memfd:tracer-gate. `tracer --gate --pid <PID>` opens one for its recording. \
A gate changes code in the process: read docs/gate.md first.";

/// Finds native memory leaks in a running, unmodified process.
///
/// Tracks every allocation that the process makes while tracer is attached, and shows the stacks of those that are not
/// freed. Needs no restart and no recompilation, and changes nothing in the process.
#[derive(Debug, Parser)]
#[command(
    name = "tracer",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "tracer [OPTIONS] --pid <PID>\n       tracer [OPTIONS] -- <COMMAND> [ARGS]...\n       \
        tracer report <RECORDING>\n       tracer diff <BASE> <NEW>\n       tracer doctor\n       \
        tracer plan --pid <PID>\n       tracer gate --pid <PID>\n       tracer watch [OPTIONS] <--all|--cgroup|--name|--pid>"
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Sub>,
    #[command(flatten)]
    pub(super) record: RecordArguments,
    /// When to use colour.
    #[arg(long, value_name = "WHEN", global = true, default_value_t = RecordConfig::default().color, help_heading = heading::TERMINAL)]
    pub(super) color: ColorChoice,
}

#[derive(Debug, Subcommand)]
pub(super) enum Sub {
    /// Show what this kernel and this user can do, with remedies for the rest.
    Doctor,
    /// Show where in a process the probes would go.
    Plan {
        /// The process.
        #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
        pid: Pid,
        /// Show what --gate would do instead: the instructions that it would replace, or why it would not.
        #[arg(long)]
        gate: bool,
        #[command(flatten)]
        allocators: AllocatorArguments,
    },
    /// Experimental: open a gate in a process, and close it on Ctrl-C; or close one that was left open.
    #[command(long_about = GATE)]
    Gate {
        /// The process.
        #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
        pid: Pid,
        /// Close the gate that a tracer has left open which was killed.
        #[arg(long)]
        remove: bool,
        /// For `tracer --gate`: until standard input ends.
        #[arg(long, hide = true, conflicts_with = "remove")]
        until_input_ends: bool,
    },
    /// Draw a saved recording again: other formats, fewer stacks.
    Report {
        /// A report that was written as .json or .json.gz.
        recording: PathBuf,
        /// Name functions without a name by debug files, from this debuginfod server, or from the servers in DEBUGINFOD_URLS or
        /// /etc/debuginfod.
        #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "", help_heading = heading::REPORTS)]
        debuginfod: Option<String>,
        #[command(flatten)]
        keep: Keep,
        #[command(flatten)]
        view: ViewArguments,
    },
    /// Show what grew between two saved recordings; functions are compared by name.
    Diff {
        /// The older one, a .json or .json.gz report.
        base: PathBuf,
        /// The newer one.
        new: PathBuf,
        #[command(flatten)]
        view: ViewArguments,
    },
    /// Watch containers, services and processes, and record when one runs out of memory.
    #[command(after_help = super::watch::EXAMPLES, override_usage = "tracer watch [OPTIONS] <--all|--cgroup|--name|--pid>")]
    Watch(Box<WatchArguments>),
    /// Print the completions of a shell, for instance into /etc/bash_completion.d/tracer.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the man page, of tracer or of one of its commands: `tracer man | man -l -`.
    Man {
        /// The command.
        #[arg(value_parser = ["doctor", "plan", "gate", "report", "diff", "watch"])]
        command: Option<String>,
    },
}

#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct ViewArguments {
    /// Write a report; the ending picks the format. `-` is standard output. May be repeated.
    #[arg(short, long = "output", value_name = "FILE", help_heading = heading::REPORTS)]
    outputs: Vec<PathBuf>,

    /// Format of outputs without a known ending: svg, html, json, json.gz, folded, pb.gz, speedscope.json or
    /// heapprofile.
    #[arg(long, value_name = "FORMAT", requires = "outputs", value_parser = parse_format, help_heading = heading::REPORTS)]
    format: Option<Format>,

    /// Also draw memory of this kind (may be repeated, or separated by commas).
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = heading::REPORTS)]
    include: Vec<Included>,

    /// Number of stacks in the text summary.
    #[arg(long, value_name = "N", default_value_t = RecordConfig::default().top, help_heading = heading::REPORTS)]
    top: usize,

    #[command(flatten)]
    drawing: Drawing,
}

impl ViewArguments {
    pub(super) fn validate(self, color: ColorChoice) -> Result<ViewConfig, clap::Error> {
        Ok(ViewConfig {
            outputs: destinations(&self.outputs, self.format)?,
            include: self.include.into_iter().map(Kind::from).collect(),
            top: self.top,
            drawing: self.drawing,
            color,
        })
    }
}

/// The files that `-o` names.
fn destinations(outputs: &[PathBuf], format: Option<Format>) -> Result<Vec<Destination>, clap::Error> {
    let wrong = |message: String| Cli::command().error(ErrorKind::ValueValidation, message);
    if let Some(twice) = first_repeated(outputs) {
        return Err(wrong(format!("--output {} is given twice", twice.display())));
    }
    let destinations = outputs.iter().map(|output| Destination::parse(output, format));
    destinations.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))
}

/// What no table of allocators can know.
#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct AllocatorArguments {
    /// Also trace these functions of a file, each by the known function that it resembles: `libpool.so:malloc=pool_get,free=pool_put`.
    /// FILE is a name or a path as the target sees it; LIKE is malloc, new (a malloc that throws), calloc, realloc,
    /// reallocarray, posix_memalign, aligned_alloc, memalign or free; `malloc+1=f` has one more argument in front. May be
    /// repeated.
    #[arg(long = "allocator", value_name = "FILE:LIKE=FUNCTION,...", value_parser = parse_allocator, help_heading = heading::TARGET)]
    allocators: Vec<Allocator>,

    /// Also trace the malloc family under this prefix: `my_` for my_malloc, my_free and so on. May be repeated.
    #[arg(long = "symbol-prefix", value_name = "PREFIX", value_parser = parse_prefix, help_heading = heading::TARGET)]
    prefixes: Vec<SymbolPrefix>,

    /// Also trace the object allocator of this runtime: objects of up to 512 bytes, which a C extension may leak. Each costs a probe.
    #[arg(long, value_name = "RUNTIME", value_enum, help_heading = heading::TARGET)]
    objects: Option<ObjectsOf>,
}

/// A runtime whose objects can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectsOf {
    /// CPython: what comes from its pools.
    Python,
}

impl From<AllocatorArguments> for Declarations {
    fn from(arguments: AllocatorArguments) -> Self {
        Self {
            prefixes: arguments.prefixes,
            allocators: arguments.allocators,
            python_objects: arguments.objects == Some(ObjectsOf::Python),
        }
    }
}

#[derive(Args, Debug)]
#[group(skip)]
pub(super) struct RecordArguments {
    /// Trace this process (may be repeated).
    #[arg(short, long = "pid", value_name = "PID", value_parser = parse_pid, required_unless_present_any = ["launch", "names", "cgroups"], help_heading = heading::TARGET)]
    pids: Vec<Pid>,

    /// Trace all processes with this name: the process' own, or the file name of its program (may be repeated).
    #[arg(long = "name", value_name = "NAME", help_heading = heading::TARGET)]
    names: Vec<String>,

    /// Trace all processes in this control group and below it: its directory, or its name as in /proc/PID/cgroup (may be
    /// repeated).
    #[arg(long = "cgroup", value_name = "PATH", help_heading = heading::TARGET)]
    cgroups: Vec<PathBuf>,

    /// Start this command and trace it from its first instruction.
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pids", "names", "cgroups"])]
    launch: Vec<OsString>,

    /// Under sudo, start the command as root and not as the user who called sudo.
    #[arg(long, requires = "launch", conflicts_with = "pids", help_heading = heading::TARGET)]
    as_root: bool,

    /// Also trace the targets' children, present and future ones, and the programs that they execute; each has an account of its own.
    #[arg(long, help_heading = heading::TARGET)]
    follow: bool,

    /// `growth` needs no probes and hardly slows the target: it shows which code makes the process' memory grow, not which
    /// memory is never freed. Also for targets without a malloc (Go).
    #[arg(long, value_name = "MODE", value_enum, default_value_t = record::Config::default().mode, help_heading = heading::TARGET)]
    mode: Mode,

    /// How long to record (`30s`, `5m`) [default: until Ctrl-C or the target ends].
    #[arg(short, long, value_name = "TIME", value_parser = parse_positive_time, help_heading = heading::WINDOW)]
    duration: Option<Duration>,

    /// Also show the internal frames of language runtimes between functions: V8's entries and adaptors, Python's interpreter.
    #[arg(long, help_heading = heading::REPORTS)]
    native_frames: bool,

    /// Fetch missing debug files after the recording, from this debuginfod server, or from the servers in DEBUGINFOD_URLS or
    /// /etc/debuginfod. Without this option tracer does so only if DEBUGINFOD_URLS is set (sudo removes it). Snapshots and --tui
    /// have the names of files that came before.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "", help_heading = heading::REPORTS)]
    debuginfod: Option<String>,

    /// Write a report; the ending picks the format: .svg flame graph, .html page, .json or .json.gz (can be read back),
    /// .folded stacks, .pb.gz pprof, .speedscope.json, .heapprofile for Chrome DevTools. `-` is standard output. May be
    /// repeated [default: tracer-COMM-PID.svg].
    #[arg(short, long = "output", value_name = "FILE", help_heading = heading::REPORTS)]
    outputs: Vec<PathBuf>,

    /// Format of outputs without a known ending: svg, html, json, json.gz, folded, pb.gz, speedscope.json or
    /// heapprofile.
    #[arg(long, value_name = "FORMAT", requires = "outputs", value_parser = parse_format, help_heading = heading::REPORTS)]
    format: Option<Format>,

    /// Count only blocks at least this old at the end.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = time(record::Config::default().min_age), help_heading = heading::COUNTED)]
    min_age: Duration,

    /// Count only requests of at least this size (`4096`, `512KiB`).
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = heading::COUNTED)]
    min_size: Option<Bytes>,

    /// Count only requests of at most this size.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = heading::COUNTED)]
    max_size: Option<Bytes>,

    /// Also draw memory of this kind (may be repeated, or separated by commas).
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = heading::REPORTS)]
    include: Vec<Included>,

    /// Only stacks with this verdict: leaking, growing, steady, one_off or unknown (may be separated by commas).
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = parse_verdict, help_heading = heading::REPORTS)]
    only: Vec<Verdict>,

    /// Number of stacks in the text summary.
    #[arg(long, value_name = "N", default_value_t = RecordConfig::default().top, help_heading = heading::REPORTS)]
    top: usize,

    #[command(flatten)]
    drawing: Drawing,

    /// Exit with status 3 when at least this much is outstanding at the end.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = heading::REPORTS)]
    fail_on: Option<Bytes>,

    /// Track only a sample of the allocations, one every SIZE bytes (`512KiB`), and estimate the rest: cheaper. 0 tracks
    /// every one.
    #[arg(long, value_name = "SIZE", value_parser = parse_sample, default_value = "0", help_heading = heading::COUNTED)]
    sample: Bytes,

    /// Experimental: sample within the running process, at nanoseconds a call instead of a trap (implies --sample 512KiB). This replaces
    /// code in the process while the recording lasts: read docs/gate.md first. `tracer plan --gate` shows what it would do.
    #[arg(long, conflicts_with_all = ["names", "cgroups", "launch", "follow", "tui", "min_size", "max_size", "allocators", "prefixes", "objects", "dies_with"], help_heading = heading::COUNTED)]
    gate: bool,

    /// The library that --sample loads into a launched command, which then samples its own allocations at nanoseconds a call
    /// [default: libtracer_sampler.so beside tracer, or in /usr/lib/tracer].
    #[arg(long, value_name = "FILE", requires = "launch", help_heading = heading::COUNTED)]
    sampler: Option<PathBuf>,

    /// Room for this many live blocks, at about 32 bytes each. Blocks that do not fit are counted as lost
    /// [default: one for every 128 bytes that the target has resident, from 1 to 16 million].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_LIVE), help_heading = heading::COUNTED)]
    max_live: Option<u64>,

    /// Time between two points of the timeline.
    #[arg(long, value_name = "TIME", value_parser = parse_interval, default_value = time(record::Config::default().interval), help_heading = heading::WINDOW)]
    interval: Duration,

    #[command(flatten)]
    allocators: AllocatorArguments,

    /// Begin a new window after this time: earlier allocations and their frees do not count. SIGUSR2 does the same at any
    /// moment.
    #[arg(long, value_name = "TIME", value_parser = parse_positive_time, help_heading = heading::WINDOW)]
    mark_after: Option<Duration>,

    /// Show the recording while it goes on: verdict, timeline, stacks and their frames; the key `?` lists the keys.
    #[arg(long, conflicts_with_all = ["quiet", "no_progress"], help_heading = heading::TERMINAL)]
    tui: bool,

    /// Print only errors on standard error.
    #[arg(short, long, conflicts_with = "verbose", help_heading = heading::TERMINAL)]
    quiet: bool,

    /// Say what tracer does (-vv: everything).
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = heading::TERMINAL)]
    verbose: u8,

    /// Show no status line while recording.
    #[arg(long, help_heading = heading::TERMINAL)]
    no_progress: bool,

    /// For `tracer watch`, whose recordings end when it is killed.
    #[arg(long, value_name = "PID", value_parser = parse_pid, hide = true)]
    dies_with: Option<Pid>,

    /// For `tracer watch`: probes that take more make way for growth mode.
    #[arg(long, value_name = "PERCENT", hide = true, conflicts_with_all = ["launch", "mode", "follow"])]
    max_cost: Option<CostLimit>,

    /// For `tracer watch`: a recording that has taken more CPU time ends.
    #[arg(long, value_name = "TIME", value_parser = parse_time, hide = true)]
    max_cpu: Option<Duration>,
}

/// The kinds that are not drawn by default.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Included {
    /// A language runtime's own heap.
    Managed,
    /// Memory that an allocator took from the kernel for itself.
    Allocator,
    /// File-backed mappings.
    File,
}

impl From<Included> for Kind {
    fn from(included: Included) -> Self {
        match included {
            Included::Managed => Self::Managed,
            Included::Allocator => Self::Allocator,
            Included::File => Self::File,
        }
    }
}

/// Mean bytes between the samples of a gate, unless others are wanted.
const GATE_SAMPLE: Bytes = Bytes(512 << 10);

/// As many as the live table can have room for.
const MOST_LIVE: u64 = 500_000_000;

impl RecordArguments {
    /// An option that was given and says which allocations to look at.
    fn about_allocations(&self) -> Option<&'static str> {
        let options = [
            ("--sample", self.sample != record::Config::default().sample),
            ("--min-size", self.min_size.is_some()),
            ("--max-size", self.max_size.is_some()),
            ("--max-live", self.max_live.is_some()),
            ("--allocator", !self.allocators.allocators.is_empty()),
            ("--symbol-prefix", !self.allocators.prefixes.is_empty()),
            ("--objects", self.allocators.objects.is_some()),
        ];
        options.into_iter().find_map(|(option, given)| given.then_some(option))
    }

    /// What no single argument can tell.
    pub(super) fn validate(self, color: ColorChoice) -> Result<RecordConfig, clap::Error> {
        let wrong = |message: String| Cli::command().error(ErrorKind::ValueValidation, message);
        if let (Some(min), Some(max)) = (self.min_size, self.max_size)
            && min > max
        {
            return Err(wrong(format!(
                "--min-size {} is more than --max-size {}: nothing can be both",
                min.0, max.0
            )));
        }
        if self.mode == Mode::Growth
            && let Some(option) = self.about_allocations()
        {
            return Err(wrong(format!("{option} is about allocations, and --mode growth sees none")));
        }
        if let (Some(mark), Some(duration)) = (self.mark_after, self.duration)
            && mark >= duration
        {
            return Err(wrong(format!(
                "--mark-after {} is not before the end of --duration {}: nothing would be left",
                time(mark),
                time(duration)
            )));
        }
        if self.gate && self.pids.len() > 1 {
            return Err(wrong("--gate is for one process: give one --pid".to_owned()));
        }
        if self.gate && self.mode == Mode::Growth {
            return Err(wrong("--gate is about allocations, and --mode growth sees none".to_owned()));
        }
        if self.sampler.is_some() && self.sample == Bytes(0) {
            return Err(wrong("--sampler is about a sample: give --sample, too".to_owned()));
        }
        let outputs = destinations(&self.outputs, self.format)?;
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, 1) => Verbosity::Verbose,
            (false, _) => Verbosity::Debug,
        };
        let subject =
            subject(self.pids, self.names, self.cgroups, self.launch, self.as_root).map_err(wrong)?;
        let recording = record::Config {
            command_output: if self.tui { command_output(&subject) } else { None },
            subject,
            follow: self.follow,
            native_frames: self.native_frames,
            duration: self.duration,
            min_age: self.min_age,
            min_size: self.min_size,
            max_size: self.max_size,
            sample: if self.gate && self.sample == Bytes(0) { GATE_SAMPLE } else { self.sample },
            sampler: self.sampler,
            max_live: self.max_live,
            interval: self.interval,
            declarations: self.allocators.into(),
            mode: self.mode,
            max_cost: self.max_cost,
            max_cpu: self.max_cpu,
            mark_after: self.mark_after,
            debuginfod: self.debuginfod.map_or(Wish::Unsaid, Wish::Servers),
        };
        Ok(RecordConfig {
            recording,
            outputs,
            include: self.include.into_iter().map(Kind::from).collect(),
            only: self.only,
            top: self.top,
            drawing: self.drawing,
            dies_with: self.dies_with,
            gate: self.gate,
            fail_on: self.fail_on,
            tui: self.tui,
            verbosity,
            color,
            progress: !self.no_progress && verbosity != Verbosity::Quiet,
        })
    }
}

fn subject(
    pids: Vec<Pid>,
    names: Vec<String>,
    cgroups: Vec<PathBuf>,
    launch: Vec<OsString>,
    as_root: bool,
) -> Result<Subject, String> {
    if let Some(twice) = first_repeated(&pids) {
        return Err(format!("--pid {twice} is given twice"));
    }
    let mut words = launch.into_iter();
    Ok(match words.next() {
        Some(program) => Subject::Command(CommandLine { program, arguments: words.collect(), as_root }),
        None if names.is_empty() && cgroups.is_empty() => Subject::Processes(pids),
        None => Subject::Chosen(Choice { pids, names, cgroups }),
    })
}

/// Where a launched command writes while the terminal is in use.
fn command_output(subject: &Subject) -> Option<PathBuf> {
    let Subject::Command(command) = subject else { return None };
    let name = Path::new(&command.program).file_name().unwrap_or_default();
    Some(PathBuf::from(format!("tracer-{}.out", plain(&name.to_string_lossy()))))
}

fn first_repeated<T: Ord>(items: &[T]) -> Option<&T> {
    let mut seen = BTreeSet::new();
    items.iter().find(|item| !seen.insert(*item))
}
