//! The command line: what can be said, what is refused, and the exit status.
//!
//! Arguments become a [`RecordConfig`], which is plain, complete and valid: what reads it need not ask again. Its `Default`
//! is where the defaults in `--help` come from.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, ColorChoice, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use tracer_ebpf::sampling::Sampling;

use crate::model::{Bytes, Kind, Mode, Pid, Process, Verdict};
use crate::plan::{Allocator, Declarations, SymbolPrefix};
use crate::report::destination::{Destination, Place, WriteError};
use crate::report::filter::{Filter, pattern};
use crate::report::{FlameOrder, Format, Options, Weight};
use crate::target::choice::Choice;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `tracer --pid N`, `tracer -- COMMAND`
    Record(Box<RecordConfig>),
    /// `tracer doctor`
    Doctor {
        /// When to use colour.
        color: ColorChoice,
    },
    /// `tracer plan`
    Plan(PlanConfig),
    /// `tracer report`
    Report(ReportConfig),
    /// `tracer diff`
    Diff(DiffConfig),
    /// `tracer completions`
    Completions(Shell),
    /// `tracer man`, of one of the commands or of all
    Man(Option<String>),
}

/// What to draw again of a saved recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportConfig {
    /// The recording.
    pub recording: PathBuf,
    /// Which of its stacks.
    pub keep: Keep,
    /// How and where to.
    pub view: ViewConfig,
}

/// Which two recordings to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffConfig {
    /// The older one.
    pub base: PathBuf,
    /// The newer one.
    pub new: PathBuf,
    /// How and where to.
    pub view: ViewConfig,
}

/// How a saved recording is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewConfig {
    /// The reports to write; with none, only the summary is printed.
    pub outputs: Vec<Destination>,
    /// Kinds to draw besides `native` and `mapping`.
    pub include: BTreeSet<Kind>,
    /// How many stacks the summary shows.
    pub top: usize,
    /// What is drawn how.
    pub drawing: Drawing,
    /// When to use colour.
    pub color: ColorChoice,
}

/// What is drawn how.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
#[group(skip)]
pub struct Drawing {
    /// What makes a stack heavy: order, shares and widths.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Weight::Bytes, help_heading = REPORTS)]
    pub weight: Weight,

    /// Which way flame graphs grow.
    #[arg(long, value_name = "ORDER", value_enum, default_value_t = FlameOrder::Flame, help_heading = REPORTS)]
    pub flame_order: FlameOrder,
}

impl Drawing {
    /// What reports show, drawn like this.
    #[must_use]
    pub fn options(self, include: &BTreeSet<Kind>, top: usize) -> Options {
        let Self { weight, flame_order: order } = self;
        Options { include: include.clone(), top, weight, order, ..Options::default() }
    }
}

impl Default for Drawing {
    fn default() -> Self {
        Self { weight: Weight::Bytes, flame_order: FlameOrder::Flame }
    }
}

/// Which stacks of a recording to keep.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Only stacks with a function, module or allocator function that matches this regular expression.
    #[arg(long, value_name = "REGEX", value_parser = parse_pattern, help_heading = KEPT)]
    pub focus: Option<String>,

    /// No stacks with a function, module or allocator function that matches this regular expression.
    #[arg(long, value_name = "REGEX", value_parser = parse_pattern, help_heading = KEPT)]
    pub ignore: Option<String>,

    /// Only stacks that weigh at least this much.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = KEPT)]
    pub min_weight: Option<Bytes>,

    /// Only stacks that were judged so: leaking, growing, steady, one_off or unknown (may be separated by commas).
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = parse_verdict, help_heading = KEPT)]
    pub only: Vec<Verdict>,
}

/// What to record and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordConfig {
    /// What to trace.
    pub subject: Subject,
    /// Whether to trace the targets' children, too.
    pub follow: bool,
    /// How long; until Ctrl-C or the end of the target when absent.
    pub duration: Option<Duration>,
    /// The reports to write; none asks for [`default_output`].
    pub outputs: Vec<Destination>,
    /// Count only blocks at least this old at the end.
    pub min_age: Duration,
    /// Count only requests of at least this many bytes.
    pub min_size: Option<Bytes>,
    /// Count only requests of at most this many bytes.
    pub max_size: Option<Bytes>,
    /// Kinds to draw besides `native` and `mapping`.
    pub include: BTreeSet<Kind>,
    /// Only stacks with one of these verdicts; empty for any.
    pub only: Vec<Verdict>,
    /// How many stacks the text summary shows.
    pub top: usize,
    /// What is drawn how.
    pub drawing: Drawing,
    /// Fail when at least this much is outstanding.
    pub fail_on: Option<Bytes>,
    /// Mean bytes between sampled allocations; 0 tracks every one.
    pub sample: Bytes,
    /// The most that tracing may take of the target's CPU time.
    pub max_overhead: Option<Percent>,
    /// Live blocks to make room for; sized for the targets when absent.
    pub max_live: Option<u64>,
    /// Time between two points of the timeline.
    pub interval: Duration,
    /// Allocators that only the user knows.
    pub declarations: Declarations,
    /// What to look at.
    pub mode: Mode,
    /// Leave out what is allocated before so much time has passed.
    pub mark_after: Option<Duration>,
    /// Whether to show the recording as it goes on, all over the terminal.
    pub tui: bool,
    /// How much is said on standard error.
    pub verbosity: Verbosity,
    /// When to use colour.
    pub color: ColorChoice,
    /// Whether to show the status line while recording.
    pub progress: bool,
}

impl Default for RecordConfig {
    /// No process, which the command line does not allow, and the default of every option.
    fn default() -> Self {
        Self {
            subject: Subject::Processes(Vec::new()),
            follow: false,
            duration: None,
            outputs: Vec::new(),
            min_age: Duration::ZERO,
            min_size: None,
            max_size: None,
            include: BTreeSet::new(),
            only: Vec::new(),
            top: 10,
            drawing: Drawing::default(),
            fail_on: None,
            sample: Bytes(0),
            max_overhead: None,
            max_live: None,
            interval: Duration::from_secs(1),
            declarations: Declarations::default(),
            mode: Mode::Allocations,
            mark_after: None,
            tui: false,
            verbosity: Verbosity::Normal,
            color: ColorChoice::Auto,
            progress: true,
        }
    }
}

impl RecordConfig {
    /// Where the reports go: the default place when no other was named.
    #[must_use]
    pub fn destinations(&self, target: &Process) -> Vec<Destination> {
        if !self.outputs.is_empty() {
            return self.outputs.clone();
        }
        let place = Place::Path(default_output(&target.comm, target.pid));
        vec![Destination { format: Format::Svg, place }]
    }

    /// What the reports show.
    #[must_use]
    pub fn view(&self) -> Options {
        self.drawing.options(&self.include, self.top)
    }

    /// Which stacks the reports have.
    #[must_use]
    pub fn filter(&self) -> Filter {
        Filter { only: self.only.iter().copied().collect(), ..Filter::default() }
    }

    /// Where a launched command writes while the terminal is in use.
    #[must_use]
    pub fn command_output(&self) -> Option<PathBuf> {
        let Subject::Command(command) = &self.subject else { return None };
        let name = Path::new(&command.program).file_name().unwrap_or_default();
        self.tui.then(|| PathBuf::from(format!("tracer-{}.out", plain(&name.to_string_lossy()))))
    }

    /// Whether nothing is said of what goes well.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.verbosity == Verbosity::Quiet
    }
}

/// What to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Running processes, each once.
    Processes(Vec<Pid>),
    /// Running processes, by what they are.
    Chosen(Choice),
    /// A command to start.
    Command(CommandLine),
}

impl Subject {
    /// Whether it is a command to start.
    #[must_use]
    pub const fn is_command(&self) -> bool {
        matches!(self, Self::Command(_))
    }
}

/// A command to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The program, searched in `PATH` unless it has a slash.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Whether it stays root under sudo.
    pub as_root: bool,
}

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

/// How much is said on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only (`-q`).
    Quiet,
    /// Also warnings.
    Normal,
    /// Also what is being done, and what the BPF programs say (`-v`).
    Verbose,
    /// Everything (`-vv`).
    Debug,
}

/// Of which process to show the probe plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanConfig {
    /// The process.
    pub pid: Pid,
    /// Allocators that only the user knows.
    pub declarations: Declarations,
    /// When to use colour.
    pub color: ColorChoice,
}

/// How a run of the tracer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Done,
    /// Something failed; a line on standard error says what, why and what to do.
    Failed,
    /// `--fail-on` was reached.
    LimitReached,
    /// The launched command's own status, or that of a shell which cannot start it.
    Command(u8),
}

impl From<Exit> for ExitCode {
    /// The exit status. Wrong usage is 2, which [`parse`] sees to itself.
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::from(1),
            Exit::LimitReached => Self::from(3),
            Exit::Command(status) => Self::from(status),
        }
    }
}

/// Reads the command line of this process. Does not return when it asks for help (exit status 0) or is wrong (2).
#[must_use]
pub fn parse() -> Action {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// When it is wrong or asks for help.
pub fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Action, clap::Error> {
    let cli = Cli::try_parse_from(arguments)?;
    match cli.command {
        Some(Sub::Doctor) => Ok(Action::Doctor { color: cli.color }),
        Some(Sub::Report { recording, keep, view }) => {
            Ok(Action::Report(ReportConfig { recording, keep, view: view.validate(cli.color)? }))
        }
        Some(Sub::Diff { base, new, view }) => {
            Ok(Action::Diff(DiffConfig { base, new, view: view.validate(cli.color)? }))
        }
        Some(Sub::Plan { pid, allocators }) => {
            Ok(Action::Plan(PlanConfig { pid, declarations: allocators.into(), color: cli.color }))
        }
        Some(Sub::Completions { shell }) => Ok(Action::Completions(shell)),
        Some(Sub::Man { command }) => Ok(Action::Man(command)),
        None => Ok(Action::Record(cli.record.validate(cli.color)?.into())),
    }
}

/// The whole command line, for what is made from it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The file that gets the flame graph when no `-o` names one: `tracer-<comm>-<pid>.svg`.
#[must_use]
pub fn default_output(comm: &str, pid: Pid) -> PathBuf {
    PathBuf::from(format!("tracer-{}-{pid}.svg", plain(comm)))
}

/// A process names itself as it likes, and must not choose the directory with it.
fn plain(name: &str) -> String {
    let plain = |letter: char| if letter.is_alphanumeric() || "-_.+".contains(letter) { letter } else { '_' };
    name.chars().map(plain).collect()
}

/// Finds out whether the default output can be written: its name is only known once the target is.
///
/// # Errors
/// When the current directory takes no files.
pub fn check_default_directory() -> Result<(), WriteError> {
    Destination { format: Format::Svg, place: Place::Path(default_output("check", Pid(0))) }.check()
}

const EXAMPLES: &str = "\
Examples:
  sudo tracer --pid 4242                 until Ctrl-C; writes a flame graph
  sudo tracer -d 1m --min-age 10s -p 4242 -o leak.svg -o leak.json
  sudo tracer -- ./server --port 80      from its first instruction, as the user who called sudo
  tracer doctor                          what is missing to trace here

Exit status: 0 done; 1 failed; 2 wrong usage; 3 --fail-on reached; a launched command's own non-zero
status is passed on (128 + the signal that killed it; 127 not found, 126 not executable).";

/// Finds native memory leaks in a running, unmodified process.
///
/// Tracks every allocation that the process makes while tracer looks on, and shows the stacks of those that are not
/// freed. Needs no restart, no recompilation, and changes nothing in the process.
#[derive(Debug, Parser)]
#[command(
    name = "tracer",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "tracer [OPTIONS] --pid <PID>\n       tracer [OPTIONS] -- <COMMAND> [ARGS]...\n       \
        tracer report <RECORDING>\n       tracer diff <BASE> <NEW>\n       tracer doctor\n       \
        tracer plan --pid <PID>"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    record: RecordArguments,
    /// When to use colour.
    #[arg(long, value_name = "WHEN", global = true, default_value_t = RecordConfig::default().color, help_heading = TERMINAL)]
    color: ColorChoice,
}

/// What the help calls groups of options.
const TARGET: &str = "What to trace";
const WINDOW: &str = "When";
const COUNTED: &str = "What counts";
const KEPT: &str = "Which stacks";
const REPORTS: &str = "Reports";
const TERMINAL: &str = "Terminal";

#[derive(Debug, Subcommand)]
enum Sub {
    /// Show what this kernel and this user can do, and what to do about the rest.
    Doctor,
    /// Show where in a process the probes would go.
    Plan {
        /// The process.
        #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
        pid: Pid,
        #[command(flatten)]
        allocators: AllocatorArguments,
    },
    /// Draw a saved recording again: other formats, fewer stacks.
    Report {
        /// A report that was written as .pb.gz or .json.
        recording: PathBuf,
        #[command(flatten)]
        keep: Keep,
        #[command(flatten)]
        view: ViewArguments,
    },
    /// Show what grew between two saved recordings; functions are compared by name.
    Diff {
        /// The older one, a .pb.gz or .json report.
        base: PathBuf,
        /// The newer one.
        new: PathBuf,
        #[command(flatten)]
        view: ViewArguments,
    },
    /// Print the completions of a shell, for instance into /etc/bash_completion.d/tracer.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the man page, of tracer or of one of its commands: `tracer man | man -l -`.
    Man {
        /// The command.
        #[arg(value_parser = ["doctor", "plan", "report", "diff"])]
        command: Option<String>,
    },
}

#[derive(Args, Debug)]
#[group(skip)]
struct ViewArguments {
    /// Write a report; the ending picks the format. `-` is standard output. May be repeated.
    #[arg(short, long = "output", value_name = "FILE", help_heading = REPORTS)]
    outputs: Vec<PathBuf>,

    /// Format of outputs whose ending does not say it: svg, html, json, folded, pb.gz, speedscope.json or heapprofile.
    #[arg(long, value_name = "FORMAT", requires = "outputs", value_parser = parse_format, help_heading = REPORTS)]
    format: Option<Format>,

    /// Also draw memory of this kind (may be repeated, or separated by commas).
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = REPORTS)]
    include: Vec<Included>,

    /// How many stacks the text summary shows.
    #[arg(long, value_name = "N", default_value_t = RecordConfig::default().top, help_heading = REPORTS)]
    top: usize,

    #[command(flatten)]
    drawing: Drawing,
}

impl ViewArguments {
    fn validate(self, color: ColorChoice) -> Result<ViewConfig, clap::Error> {
        Ok(ViewConfig {
            outputs: destinations(&self.outputs, self.format)?,
            include: self.include.into_iter().map(Kind::from).collect(),
            top: self.top,
            drawing: self.drawing,
            color,
        })
    }
}

/// The places that `-o` names.
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
struct AllocatorArguments {
    /// Also trace these functions of a file, each as one whose arguments it has: `libpool.so:malloc=pool_get,free=pool_put`.
    /// FILE is a name or a path as the target sees it; LIKE is malloc, new (a malloc that throws), calloc, realloc,
    /// reallocarray, posix_memalign, aligned_alloc, memalign or free; `malloc+1=f` has one more argument in front. May be
    /// repeated.
    #[arg(long = "allocator", value_name = "FILE:LIKE=FUNCTION,...", value_parser = parse_allocator, help_heading = TARGET)]
    allocators: Vec<Allocator>,

    /// Also trace the malloc family under this prefix: `my_` for my_malloc, my_free and so on. May be repeated.
    #[arg(long = "symbol-prefix", value_name = "PREFIX", value_parser = parse_prefix, help_heading = TARGET)]
    prefixes: Vec<SymbolPrefix>,
}

impl From<AllocatorArguments> for Declarations {
    fn from(arguments: AllocatorArguments) -> Self {
        Self { prefixes: arguments.prefixes, allocators: arguments.allocators }
    }
}

#[derive(Args, Debug)]
#[group(skip)]
struct RecordArguments {
    /// Trace this process (may be repeated).
    #[arg(short, long = "pid", value_name = "PID", value_parser = parse_pid, required_unless_present_any = ["launch", "names", "cgroups"], help_heading = TARGET)]
    pids: Vec<Pid>,

    /// Trace all processes with this name: the process' own, or the file name of its program (may be repeated).
    #[arg(long = "name", value_name = "NAME", help_heading = TARGET)]
    names: Vec<String>,

    /// Trace all processes in this control group and below it: its directory, or its name as in /proc/PID/cgroup (may be
    /// repeated).
    #[arg(long = "cgroup", value_name = "PATH", help_heading = TARGET)]
    cgroups: Vec<PathBuf>,

    /// Start this command and trace it from its first instruction.
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pids", "names", "cgroups"])]
    launch: Vec<OsString>,

    /// Under sudo, start the command as root and not as the user who called sudo.
    #[arg(long, requires = "launch", conflicts_with = "pids", help_heading = TARGET)]
    as_root: bool,

    /// Also trace the children of the targets, now and later, and the programs they execute; each is accounted by itself.
    #[arg(long, help_heading = TARGET)]
    follow: bool,

    /// `growth` needs no probes and slows the target by next to nothing: it shows which code makes the process' memory grow,
    /// not which of it is never freed. Also for targets without a malloc (Go).
    #[arg(long, value_name = "MODE", value_enum, default_value_t = RecordConfig::default().mode, help_heading = TARGET)]
    mode: Mode,

    /// How long to record (`30s`, `5m`) [default: until Ctrl-C or the target ends].
    #[arg(short, long, value_name = "TIME", value_parser = parse_positive_time, help_heading = WINDOW)]
    duration: Option<Duration>,

    /// Write a report; the ending picks the format: .svg flame graph, .html page, .json report, .folded stacks, .pb.gz
    /// pprof, .speedscope.json, .heapprofile for Chrome DevTools. `-` is standard output. May be repeated [default:
    /// tracer-COMM-PID.svg].
    #[arg(short, long = "output", value_name = "FILE", help_heading = REPORTS)]
    outputs: Vec<PathBuf>,

    /// Format of outputs whose ending does not say it: svg, html, json, folded, pb.gz, speedscope.json or heapprofile.
    #[arg(long, value_name = "FORMAT", requires = "outputs", value_parser = parse_format, help_heading = REPORTS)]
    format: Option<Format>,

    /// Count only blocks at least this old at the end.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = time(RecordConfig::default().min_age), help_heading = COUNTED)]
    min_age: Duration,

    /// Count only requests of at least this size (`4096`, `512KiB`).
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = COUNTED)]
    min_size: Option<Bytes>,

    /// Count only requests of at most this size.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = COUNTED)]
    max_size: Option<Bytes>,

    /// Also draw memory of this kind (may be repeated, or separated by commas).
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = REPORTS)]
    include: Vec<Included>,

    /// Only stacks that were judged so: leaking, growing, steady, one_off or unknown (may be separated by commas).
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = parse_verdict, help_heading = REPORTS)]
    only: Vec<Verdict>,

    /// How many stacks the text summary shows.
    #[arg(long, value_name = "N", default_value_t = RecordConfig::default().top, help_heading = REPORTS)]
    top: usize,

    #[command(flatten)]
    drawing: Drawing,

    /// Exit with status 3 when at least this much is outstanding at the end.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = REPORTS)]
    fail_on: Option<Bytes>,

    /// Track only a sample of the allocations, one every SIZE bytes (`512KiB`), and estimate the rest: cheaper. 0 tracks
    /// every one.
    #[arg(long, value_name = "SIZE", value_parser = parse_sample, default_value = "0", help_heading = COUNTED)]
    sample: Bytes,

    /// The most that tracing may take of the target's CPU time (`5%`): allocations are sampled, more sparsely the more there
    /// are, to stay below it. What a probe costs in itself stays.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, conflicts_with = "follow", help_heading = COUNTED)]
    max_overhead: Option<Percent>,

    /// How many live blocks to make room for, in about 32 bytes each. Blocks beyond are counted as lost
    /// [default: one for every 128 bytes that the target has resident, from 1 to 16 million].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_LIVE), help_heading = COUNTED)]
    max_live: Option<u64>,

    /// Time between two points of the timeline.
    #[arg(long, value_name = "TIME", value_parser = parse_interval, default_value = time(RecordConfig::default().interval), help_heading = WINDOW)]
    interval: Duration,

    #[command(flatten)]
    allocators: AllocatorArguments,

    /// Begin anew after this time: what was allocated before counts no more, nor do its frees. SIGUSR2 does the same at
    /// any moment.
    #[arg(long, value_name = "TIME", value_parser = parse_positive_time, help_heading = WINDOW)]
    mark_after: Option<Duration>,

    /// Watch the recording as it goes on: verdict, timeline, stacks and their frames; `?` there lists the keys.
    #[arg(long, conflicts_with_all = ["quiet", "no_progress"], help_heading = TERMINAL)]
    tui: bool,

    /// On standard error, say only what went wrong.
    #[arg(short, long, conflicts_with = "verbose", help_heading = TERMINAL)]
    quiet: bool,

    /// Say what is being done (-vv: everything).
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = TERMINAL)]
    verbose: u8,

    /// Show no status line while recording.
    #[arg(long, help_heading = TERMINAL)]
    no_progress: bool,
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

/// As many as the live table can have room for.
const MOST_LIVE: u64 = 500_000_000;

/// Shorter intervals would cost more to look than there is to see.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

impl RecordArguments {
    /// An option that was given and says which allocations to look at.
    fn about_allocations(&self) -> Option<&'static str> {
        let options = [
            ("--sample", self.sample != RecordConfig::default().sample),
            ("--max-overhead", self.max_overhead.is_some()),
            ("--min-size", self.min_size.is_some()),
            ("--max-size", self.max_size.is_some()),
            ("--max-live", self.max_live.is_some()),
            ("--allocator", !self.allocators.allocators.is_empty()),
            ("--symbol-prefix", !self.allocators.prefixes.is_empty()),
        ];
        options.into_iter().find_map(|(option, given)| given.then_some(option))
    }

    /// What no single argument can tell.
    fn validate(self, color: ColorChoice) -> Result<RecordConfig, clap::Error> {
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
        let outputs = destinations(&self.outputs, self.format)?;
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, 1) => Verbosity::Verbose,
            (false, _) => Verbosity::Debug,
        };
        Ok(RecordConfig {
            subject: subject(self.pids, self.names, self.cgroups, self.launch, self.as_root)
                .map_err(wrong)?,
            follow: self.follow,
            duration: self.duration,
            outputs,
            min_age: self.min_age,
            min_size: self.min_size,
            max_size: self.max_size,
            include: self.include.into_iter().map(Kind::from).collect(),
            only: self.only,
            top: self.top,
            drawing: self.drawing,
            fail_on: self.fail_on,
            sample: self.sample,
            max_overhead: self.max_overhead,
            max_live: self.max_live,
            interval: self.interval,
            declarations: self.allocators.into(),
            mode: self.mode,
            mark_after: self.mark_after,
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

fn first_repeated<T: Ord>(items: &[T]) -> Option<&T> {
    let mut seen = BTreeSet::new();
    items.iter().find(|item| !seen.insert(*item))
}

fn parse_pid(text: &str) -> Result<Pid, String> {
    /// `PID_MAX_LIMIT` of the kernel.
    const LARGEST: u32 = 4 << 20;
    match text.parse() {
        Ok(0) => Err("process ids begin at 1".into()),
        Ok(pid) if pid <= LARGEST => Ok(Pid(pid)),
        Ok(_) => Err(format!("process ids end at {LARGEST}")),
        Err(_) => Err("a process id is a number, as `pgrep -l NAME` shows it".into()),
    }
}

fn parse_allocator(text: &str) -> Result<Allocator, String> {
    text.parse().map_err(|error: crate::plan::declared::AllocatorSyntaxError| error.to_string())
}

fn parse_prefix(text: &str) -> Result<SymbolPrefix, String> {
    text.parse().map_err(|error: crate::plan::ApiSyntaxError| error.to_string())
}

fn parse_time(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|_| "a time is a number and a unit, such as 30s, 5m, 1h 30m or 500ms".into())
}

fn parse_positive_time(text: &str) -> Result<Duration, String> {
    let time = parse_time(text)?;
    if time.is_zero() { Err("it must be more than nothing".into()) } else { Ok(time) }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_time(text)?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("it must be at least {}", time(SHORTEST_INTERVAL)));
    }
    Ok(interval)
}

fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn parse_size(text: &str) -> Result<Bytes, String> {
    let size: Result<bytesize::ByteSize, _> = text.parse();
    let size = size.map_err(|_| "a size is a number of bytes or has a unit, such as 512KiB, 1MiB or 10MB")?;
    Ok(Bytes(size.as_u64()))
}

fn parse_percent(text: &str) -> Result<Percent, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Percent((percent * 1000.0).round() as u32)),
        Ok(_) => Err("it must be more than 0% and at most 100%".into()),
        Err(_) => Err("a part is a number of per cent, such as 5% or 0.5%".into()),
    }
}

/// The mean of a sample.
fn parse_sample(text: &str) -> Result<Bytes, String> {
    let size = parse_size(text)?;
    if size.0 > Sampling::LARGEST_MEAN {
        return Err(format!(
            "it must be at most {}: larger blocks than that are tracked anyway",
            Bytes(Sampling::LARGEST_MEAN)
        ));
    }
    Ok(size)
}

fn parse_pattern(text: &str) -> Result<String, String> {
    pattern(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn parse_verdict(name: &str) -> Result<Verdict, String> {
    const KNOWN: [Verdict; 5] =
        [Verdict::Leaking, Verdict::Growing, Verdict::Steady, Verdict::OneOff, Verdict::Unknown];
    let known = KNOWN.into_iter().find(|verdict| verdict.name() == name);
    known.ok_or_else(|| format!("the verdicts are {}", KNOWN.map(Verdict::name).join(", ")))
}

fn parse_format(name: &str) -> Result<Format, String> {
    Format::from_name(name).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::destination::Place;

    fn parse(arguments: &str) -> Result<Action, clap::Error> {
        let words = std::iter::once("tracer").chain(arguments.split_whitespace());
        parse_from(words.map(OsString::from))
    }

    fn record(arguments: &str) -> RecordConfig {
        match parse(arguments) {
            Ok(Action::Record(config)) => *config,
            other => panic!("{arguments}: {other:?}"),
        }
    }

    fn refused(arguments: &str) -> String {
        let error = parse(arguments).expect_err(arguments);
        assert_eq!(error.exit_code(), 2, "{arguments}");
        error.to_string()
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_options_everything_has_its_default() {
        let subject = Subject::Processes(vec![Pid(42)]);
        assert_eq!(record("--pid 42"), RecordConfig { subject, ..RecordConfig::default() });
    }

    #[test]
    fn every_option_arrives() {
        let config = record(
            "-p 1 --pid 2 --follow -d 1m30s -o a.svg -o - --format folded --min-age 500ms --min-size 4096 --max-size 1MiB \
             --include file,managed --only leaking --top 3 --weight objects --flame-order icicle --fail-on 1.5KiB --sample 512KiB \
             --max-live 1000 --interval 2s --mark-after 5s --tui -vv --color never --symbol-prefix my_ \
             --allocator lib.so:malloc=get,free=put",
        );
        let expected = RecordConfig {
            subject: Subject::Processes(vec![Pid(1), Pid(2)]),
            follow: true,
            duration: Some(Duration::from_secs(90)),
            outputs: vec![
                Destination { format: Format::Svg, place: Place::Path("a.svg".into()) },
                Destination { format: Format::Folded, place: Place::Stdout },
            ],
            min_age: Duration::from_millis(500),
            min_size: Some(Bytes(4096)),
            max_size: Some(Bytes(1 << 20)),
            include: BTreeSet::from([Kind::File, Kind::Managed]),
            only: vec![Verdict::Leaking],
            top: 3,
            drawing: Drawing { weight: Weight::Objects, flame_order: FlameOrder::Icicle },
            fail_on: Some(Bytes(1536)),
            sample: Bytes(512 << 10),
            max_overhead: None,
            max_live: Some(1000),
            interval: Duration::from_secs(2),
            declarations: Declarations {
                prefixes: vec!["my_".parse().unwrap()],
                allocators: vec!["lib.so:malloc=get,free=put".parse().unwrap()],
            },
            mode: Mode::Allocations,
            mark_after: Some(Duration::from_secs(5)),
            tui: true,
            verbosity: Verbosity::Debug,
            color: ColorChoice::Never,
            progress: true,
        };
        assert_eq!(config, expected);
        assert_eq!(record("--max-overhead 2.5% --pid 1").max_overhead, Some(Percent(2500)));
        assert!(!record("-q --pid 1").progress && !record("--no-progress --pid 1").progress);
    }

    #[test]
    fn processes_are_chosen_by_what_they_are() {
        let choice = Choice {
            pids: vec![Pid(1)],
            names: vec!["node".into(), "nginx".into()],
            cgroups: vec!["system.slice/a.service".into()],
        };
        let config = record("--name node --name nginx --cgroup system.slice/a.service --pid 1 --follow");
        assert_eq!((config.subject, config.follow), (Subject::Chosen(choice), true));
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let command = CommandLine {
            program: "node".into(),
            arguments: vec!["--pid".into(), "0".into(), "--".into(), "doctor".into()],
            as_root: true,
        };
        assert_eq!(record("--as-root -d 1s -- node --pid 0 -- doctor").subject, Subject::Command(command));
    }

    #[test]
    fn other_commands_are_told_apart() {
        assert_eq!(parse("doctor").ok(), Some(Action::Doctor { color: ColorChoice::Auto }));
        let plan =
            PlanConfig { pid: Pid(7), declarations: Declarations::default(), color: ColorChoice::Always };
        assert_eq!(parse("plan --pid 7 --color always").ok(), Some(Action::Plan(plan)));
    }

    #[test]
    fn wrong_usage_says_what_is_wrong() {
        let cases = [
            ("", "--pid"),
            ("--pid 0", "begin at 1"),
            ("--pid node", "pgrep"),
            ("--pid -5", "-5"),
            ("--pid 4294967296", "pgrep"),
            ("--pid 4194305", "end at 4194304"),
            ("--pid 1 --pid 1", "--pid 1 is given twice"),
            ("--pid 1 -- ls", "cannot be used with"),
            ("--pid 1 --as-root", "cannot be used with"),
            ("--as-root", "COMMAND"),
            ("--pid 1 doctor", "doctor"),
            ("plan", "--pid"),
            ("plan --pid 0", "begin at 1"),
            ("--pid 1 -d 0s", "more than nothing"),
            ("--pid 1 -d 30", "30s"),
            ("--pid 1 -d -30s", "-3"),
            ("--pid 1 --interval 1ms", "at least 10ms"),
            ("--pid 1 -d 5s --mark-after 5s", "nothing would be left"),
            ("--pid 1 --tui -q", "cannot be used with"),
            ("--pid 1 --min-size many", "512KiB"),
            ("--pid 1 --min-size 2KiB --max-size 1KiB", "nothing can be both"),
            ("--pid 1 --max-live 0", "1.."),
            ("--pid 1 --include native", "managed"),
            ("--pid 1 -o leak.png", "leak.png"),
            ("--pid 1 -o -", "--format"),
            ("--pid 1 -o a.svg -o a.svg", "given twice"),
            ("--pid 1 --format svg", "--output"),
            ("--pid 1 --format png -o -", "png"),
            ("--pid 1 -q -v", "cannot be used with"),
            ("--name node -- node", "cannot be used with"),
            ("--cgroup a -- node", "cannot be used with"),
            ("--pid 1 --sample 2GiB", "at most 1.0 GiB"),
            ("--pid 1 --sample often", "512KiB"),
            ("--pid 1 --mode growth --min-size 4096", "--min-size is about allocations"),
            ("--pid 1 --mode leaks", "growth"),
            ("--pid 1 --max-overhead 5% --follow", "cannot be used with"),
            ("--pid 1 --max-overhead 0%", "more than 0%"),
            ("--pid 1 --max-overhead 101", "at most 100%"),
            ("--pid 1 --max-overhead little", "such as 5%"),
            ("--pid 1 --allocator lib.so", "libpool.so:malloc="),
            ("--pid 1 --allocator lib.so:get=put", "known are malloc"),
            ("--pid 1 --symbol-prefix my-", "not a symbol"),
        ];
        for (arguments, reason) in cases {
            let message = refused(arguments);
            assert!(message.contains(reason), "{arguments:?}: {message}");
        }
    }

    #[test]
    fn defaults_stand_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        for expected in
            ["[default: 10]", "[default: 0s]", "[default: 1s]", "[default: one for every", "-- <COMMAND>"]
        {
            assert!(help.contains(expected), "{expected}: {help}");
        }
    }

    #[test]
    fn a_process_does_not_choose_the_directory_of_its_report() {
        assert_eq!(default_output("node", Pid(4)), PathBuf::from("tracer-node-4.svg"));
        assert_eq!(default_output("../a b/c\n", Pid(4)), PathBuf::from("tracer-.._a_b_c_-4.svg"));
    }
}
