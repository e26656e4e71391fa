//! A recording as the command line asks for it, and its reports.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result, ensure};
use env_logger::Target;
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::sync::mpsc::unbounded_channel;

use super::{
    console::Console,
    gate::{KeptGate, check_closed, keep_open},
    logging::start_log,
    terminal::{is_colored, on_terminal, unless_nobody_reads},
};
use crate::{
    cli::{self, Exit, RecordConfig, Verbosity},
    doctor,
    gate::KeptOpen,
    model::{Bytes, Mode, Pid, Profile},
    record::{self, Observer, Recorded},
    report::{
        Options, Report as _,
        destination::{Destination, OutputPlace, write_all},
        text::Text,
    },
    target::{Subject, Target as Process, launch::exit_code},
    tui::{self, Tui},
};

/// Records, and writes the reports.
pub(super) fn record(config: &RecordConfig) -> Result<Exit> {
    if let Some(parent) = config.dies_with {
        die_with(parent)?;
    }
    start_log(config.verbosity, if config.tui { Target::Pipe(tui::log_sink()) } else { Target::Stderr });
    if config.tui {
        tui::check_terminal()?;
    }
    doctor::check_rights()?;
    for destination in &config.outputs {
        destination.check()?;
    }
    if config.outputs.is_empty() {
        cli::check_default_directory()?;
    }
    let mut gates = open_gates(config)?;
    let recorded = run(config);
    if let Some(gate) = &mut gates.opened {
        gate.let_close();
    }
    let exit = recorded.and_then(|recorded| finish(config, recorded));
    // It may take seconds, and the reports are there.
    if let Some(Err(error)) = gates.opened.map(KeptGate::close) {
        _ = writeln!(io::stderr(), "tracer: {error:#}");
    }
    exit
}

/// Writes the reports.
fn finish(config: &RecordConfig, mut recorded: Recorded) -> Result<Exit> {
    config.filter().apply(&mut recorded.profile);

    let written = write_reports(config, &recorded.profile);
    // Not before the reports are written: the command may go on for long.
    let command = recorded.command.map(|mut command| command.wait()).transpose()?;
    written?;
    if let Some(failure) = recorded.failure {
        return Err(failure.context("the recording ended early"));
    }
    let limit = config.fail_on.is_some_and(|limit| recorded.profile.totals.weight_bytes >= limit.0);
    Ok(match command {
        _ if limit => Exit::LimitReached,
        Some(status) if !status.success() => Exit::Command(exit_code(status)),
        _ => Exit::Done,
    })
}

/// The gates of a recording.
#[derive(Default)]
struct Gates {
    /// The one that was asked for, and is closed at the end.
    opened: Option<KeptGate>,
    /// Those that were open before, and stay so.
    _open: Vec<KeptOpen>,
}

/// Opens the gate that is asked for. Where none is, and functions are probed, none may be open.
fn open_gates(config: &RecordConfig) -> Result<Gates> {
    let Subject::Processes(pids) = &config.recording.subject else { return Ok(Gates::default()) };
    match (config.gate, pids.as_slice()) {
        (true, &[pid]) => {
            // What it is refused for is said here, as ever.
            drop(Process::open(pid)?);
            Ok(Gates { opened: Some(KeptGate::open(pid)?), ..Gates::default() })
        }
        _ if config.recording.mode == Mode::Growth => Ok(Gates::default()),
        _ if config.recording.sample != Bytes(0) => {
            let open = pids.iter().filter_map(|&pid| keep_open(pid).transpose()).collect::<Result<_>>()?;
            Ok(Gates { _open: open, ..Gates::default() })
        }
        _ => {
            pids.iter().try_for_each(|&pid| check_closed(pid))?;
            Ok(Gates::default())
        }
    }
}

/// From now on the kernel kills this process when its parent dies, however that comes. The kernel forgets that when a program is
/// executed that has capabilities of its own, so it is asked here and not by the parent.
fn die_with(parent: Pid) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot be tied to the parent")?;
    let own = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    ensure!(own == Some(parent.0), "the service that began this recording is gone");
    Ok(())
}

/// Records, and shows what happens as the command line asks for. A snapshot that is being written is waited for.
fn run(config: &RecordConfig) -> Result<Recorded> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (requests, keys) = unbounded_channel();
    let mut observer: Box<dyn Observer> = match config.tui {
        true => Box::new(Tui::new(config, is_colored(config.color, &io::stdout()), requests)),
        false => Box::new(Console::new(config)),
    };
    runtime.block_on(record::record(&config.recording, keys, &mut *observer))
}

/// Writes every report, and the summary to standard output, or to standard error when a report goes there.
fn write_reports(config: &RecordConfig, profile: &Profile) -> Result<()> {
    let destinations = config.destinations(&profile.target);
    let options = config.view();
    let (written, errors) = write_all(&destinations, profile, &options);

    let on_stderr = destinations.iter().any(|destination| destination.place == OutputPlace::Stdout);
    let summarised = summarise(config, profile, options, &written, on_stderr);
    let mut errors = errors.into_iter();
    let Some(first) = errors.next() else { return summarised.context("cannot write the summary") };
    for error in errors {
        _ = writeln!(io::stderr(), "tracer: {error}");
    }
    Err(first.into())
}

/// Prints the summary.
fn summarise(
    config: &RecordConfig,
    profile: &Profile,
    options: Options,
    written: &[&Destination],
    on_stderr: bool,
) -> io::Result<()> {
    let summary = Text { written };
    let printed = if !on_stderr {
        let options = on_terminal(options, config.color, &io::stdout());
        summary.write(profile, &options, &mut io::stdout().lock())
    } else if config.verbosity > Verbosity::Quiet {
        let options = on_terminal(options, config.color, &io::stderr());
        summary.write(profile, &options, &mut io::stderr().lock())
    } else {
        Ok(())
    };
    unless_nobody_reads(printed)
}
