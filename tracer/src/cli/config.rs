//! What the command line says, complete and valid.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, ColorChoice};

use super::values::{parse_pattern, parse_size, parse_verdict};
use super::{default_output, heading};
use crate::model::{Bytes, Kind, Pid, Process, Verdict};
use crate::plan::Declarations;
use crate::record;
use crate::report::destination::{Destination, OutputPlace};
use crate::report::filter::Filter;
use crate::report::{FlameOrder, Format, Options, WeightUnit};
use crate::symbolize::Wish;
use crate::watch;

/// What to draw again of a saved recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportConfig {
    pub recording: PathBuf,
    /// Whether servers are to be asked for debug files now.
    pub debuginfod: Option<Wish>,
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
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = WeightUnit::Bytes, help_heading = heading::REPORTS)]
    pub weight: WeightUnit,

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
        Self { weight: WeightUnit::Bytes, flame_order: FlameOrder::Flame }
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

    /// Only stacks with this verdict: leaking, growing, steady, one_off or unknown (may be separated by commas).
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = parse_verdict, help_heading = heading::KEPT)]
    pub only: Vec<Verdict>,
}

/// What to record, and what to show of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordConfig {
    pub recording: record::Config,
    /// The reports to write; none asks for [`default_output`].
    pub outputs: Vec<Destination>,
    /// Kinds to draw besides `native` and `mapping`.
    pub include: BTreeSet<Kind>,
    /// Only stacks with one of these verdicts; empty for any.
    pub only: Vec<Verdict>,
    /// Number of stacks in the text summary.
    pub top: usize,
    /// What is drawn how.
    pub drawing: Drawing,
    /// Whose death is that of this recording, too: the service that began it.
    pub dies_with: Option<Pid>,
    /// Whether the target is to sample its allocations itself, by a gate.
    pub gate: bool,
    /// Fail when at least this much is outstanding.
    pub fail_on: Option<Bytes>,
    /// Whether to show the recording as it goes on, all over the terminal.
    pub tui: bool,
    /// Whether to show the status line while recording.
    pub progress: bool,
    /// How much is said on standard error.
    pub verbosity: Verbosity,
    /// When to use colour.
    pub color: ColorChoice,
}

impl Default for RecordConfig {
    /// No process, which the command line does not allow, and the default of every option.
    fn default() -> Self {
        Self {
            recording: record::Config::default(),
            outputs: Vec::new(),
            include: BTreeSet::new(),
            only: Vec::new(),
            top: 10,
            drawing: Drawing::default(),
            dies_with: None,
            gate: false,
            fail_on: None,
            tui: false,
            progress: true,
            verbosity: Verbosity::Normal,
            color: ColorChoice::Auto,
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
        let place = OutputPlace::Path(default_output(&target.comm, target.pid));
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

    /// Whether nothing is said of what goes well.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.verbosity == Verbosity::Quiet
    }
}

/// What the service does, and what is done before.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchConfig {
    /// What it does.
    pub service: watch::Config,
    /// Whether only to check it.
    pub check: bool,
    /// How much is said on standard error.
    pub verbosity: Verbosity,
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
    /// Whether to show what a gate would do instead.
    pub gate: bool,
    /// Allocators that only the user knows.
    pub declarations: Declarations,
    /// When to use colour.
    pub color: ColorChoice,
}

/// What to do with the gate of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateConfig {
    /// The process.
    pub pid: Pid,
    /// What to do.
    pub wish: GateWish,
}

/// What to do with a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateWish {
    /// Keep it open until Ctrl-C.
    UntilInterrupted,
    /// Keep it open until standard input ends.
    UntilInputEnds,
    /// Close the one that was left open.
    Remove,
}
