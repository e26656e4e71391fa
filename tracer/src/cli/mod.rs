//! The command line: what can be said, what is refused, and the exit status.
//!
//! Arguments become a [`RecordConfig`], which is plain, complete and valid: what reads it need not ask again. Its `Default`
//! is where the defaults in `--help` come from.

mod arguments;
mod config;
#[cfg(test)]
mod tests;
mod values;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{
    ArgMatches, ColorChoice, CommandFactory as _, FromArgMatches as _, Parser as _, error::ErrorKind,
};
use clap_complete::Shell;

use self::arguments::{Cli, Sub};
pub use self::config::{
    DiffConfig, GateConfig, GateWish, Keep, PlanConfig, RecordConfig, ReportConfig, Verbosity, ViewConfig,
    WatchConfig,
};
use self::watch::WatchArguments;
use crate::model::Pid;
use crate::report::Format;
use crate::report::destination::{Destination, OutputPlace, WriteError};
use crate::symbolize::Wish;

/// What the help calls groups of options.
mod heading {
    pub const TARGET: &str = "What to trace";
    pub const WINDOW: &str = "When";
    pub const COUNTED: &str = "What counts";
    pub const KEPT: &str = "Which stacks";
    pub const REPORTS: &str = "Reports";
    pub const SERVED: &str = "Served";
    pub const TERMINAL: &str = "Terminal";
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
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
    /// `tracer gate`
    Gate(GateConfig),
    /// `tracer report`
    Report(ReportConfig),
    /// `tracer diff`
    Diff(DiffConfig),
    /// `tracer watch`
    Watch(Box<WatchConfig>),
    /// `tracer completions`
    Completions(Shell),
    /// `tracer man`, of one of the commands or of all
    Man(Option<String>),
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
    /// The exit status. Wrong usage is 2, which `parse` sees to itself.
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
    let words: Vec<OsString> = arguments.into_iter().collect();
    let matches = Cli::command().try_get_matches_from(&words)?;
    let cli = Cli::from_arg_matches(&matches)?;
    match cli.command {
        Some(Sub::Doctor) => Ok(Action::Doctor { color: cli.color }),
        Some(Sub::Report { recording, debuginfod, keep, view }) => {
            let debuginfod = debuginfod.map(Wish::Servers);
            Ok(Action::Report(ReportConfig { recording, debuginfod, keep, view: view.validate(cli.color)? }))
        }
        Some(Sub::Diff { base, new, view }) => {
            Ok(Action::Diff(DiffConfig { base, new, view: view.validate(cli.color)? }))
        }
        Some(Sub::Gate { pid, remove, until_input_ends }) => {
            let wish = match (remove, until_input_ends) {
                (true, _) => GateWish::Remove,
                (false, true) => GateWish::UntilInputEnds,
                (false, false) => GateWish::UntilInterrupted,
            };
            Ok(Action::Gate(GateConfig { pid, wish }))
        }
        Some(Sub::Plan { pid, gate, allocators }) => {
            Ok(Action::Plan(PlanConfig { pid, gate, declarations: allocators.into(), color: cli.color }))
        }
        Some(Sub::Watch(arguments)) => watch_action(*arguments, &matches, &words),
        Some(Sub::Completions { shell }) => Ok(Action::Completions(shell)),
        Some(Sub::Man { command }) => Ok(Action::Man(command)),
        None => Ok(Action::Record(cli.record.validate(cli.color)?.into())),
    }
}

/// The service, with what its file says.
fn watch_action(
    arguments: WatchArguments,
    matches: &ArgMatches,
    words: &[OsString],
) -> Result<Action, clap::Error> {
    let wrong = |message: String| {
        let mut command = command();
        command.build();
        match command.find_subcommand_mut(watch::NAME) {
            Some(watch) => watch.error(ErrorKind::ValueValidation, message),
            None => command.error(ErrorKind::ValueValidation, message),
        }
    };
    let own = matches.subcommand_matches(watch::NAME).unwrap_or(matches);
    let arguments = match arguments.with_file(own, words).map_err(wrong)? {
        None => arguments,
        Some(words) => match Cli::try_parse_from(words)?.command {
            Some(Sub::Watch(whole)) => *whole,
            _ => arguments,
        },
    };
    Ok(Action::Watch(arguments.complete().map_err(wrong)?.into()))
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
    Destination { format: Format::Svg, place: OutputPlace::Path(default_output("check", Pid(0))) }.check()
}
