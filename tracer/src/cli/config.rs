//! What the command line says, complete and valid.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ColorChoice};

use super::values::{parse_pattern, parse_size, parse_verdict};
use super::{default_output, heading, plain};
use crate::model::{Bytes, Kind, Mode, Pid, Process, Verdict};
use crate::plan::Declarations;
use crate::report::destination::{Destination, Place};
use crate::report::filter::Filter;
use crate::report::{FlameOrder, Format, Options, Weight};
use crate::target::choice::Choice;

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
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Weight::Bytes, help_heading = heading::REPORTS)]
    pub weight: Weight,

    /// Which way flame graphs grow.
    #[arg(long, value_name = "ORDER", value_enum, default_value_t = FlameOrder::Flame, help_heading = heading::REPORTS)]
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
    #[arg(long, value_name = "REGEX", value_parser = parse_pattern, help_heading = heading::KEPT)]
    pub focus: Option<String>,

    /// No stacks with a function, module or allocator function that matches this regular expression.
    #[arg(long, value_name = "REGEX", value_parser = parse_pattern, help_heading = heading::KEPT)]
    pub ignore: Option<String>,

    /// Only stacks that weigh at least this much.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = heading::KEPT)]
    pub min_weight: Option<Bytes>,

    /// Only stacks that were judged so: leaking, growing, steady, one_off or unknown (may be separated by commas).
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = parse_verdict, help_heading = heading::KEPT)]
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
