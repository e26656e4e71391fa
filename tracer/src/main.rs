//! The command line tool: one place that decides what is printed where, and the exit status.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::ColorChoice;
use env_logger::Target;
use log::LevelFilter;
use tokio::sync::mpsc::unbounded_channel;
use tracer::{
    cli::{
        self, Action, DiffConfig, Exit, Keep, Percent, PlanConfig, RecordConfig, ReportConfig, Verbosity,
        ViewConfig,
    },
    doctor, manual,
    model::Profile,
    record::{self, Console, Onlooker, Recorded},
    report::{
        Options, Report as _,
        destination::{Destination, Place, write_all},
        diff::{self, Diff},
        filter::{Filter, pattern},
        human::printable,
        saved,
        text::Text,
    },
    target::{
        self,
        launch::{LaunchError, exit_code},
    },
    tui::{self, Tui},
};

fn main() -> ExitCode {
    raise_descriptor_limit();
    let done = match cli::parse() {
        Action::Record(config) => record(&config),
        Action::Doctor { color } => diagnose(color),
        Action::Plan(config) => show_plan(&config),
        Action::Report(config) => draw_again(&config),
        Action::Diff(config) => compare(&config),
        Action::Completions(shell) => {
            manual::write_completions(shell, &mut io::stdout().lock());
            Ok(Exit::Done)
        }
        Action::Man(command) => manual::write_man(command.as_deref(), &mut io::stdout().lock())
            .map(|()| Exit::Done)
            .context("cannot write the man page"),
    };
    done.unwrap_or_else(|error| {
        _ = writeln!(io::stderr(), "tracer: {}", one_line(&error));
        match error.downcast_ref::<LaunchError>() {
            Some(error) => Exit::Command(error.exit_code()),
            None => Exit::Failed,
        }
    })
    .into()
}

/// Every library of a target takes a few descriptors. The limit that processes start with is low for the sake of `select(2)`, which is
/// not used here.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it, small targets still work.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// What went wrong and why, in one line. A cause that has been told already is not told again.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    // The verifier's log is for those who ask for it.
    match line.split_once('\n') {
        Some((first, rest)) => {
            log::debug!("{rest}");
            first.trim_end().to_owned()
        }
        None => line,
    }
}

fn record(config: &RecordConfig) -> Result<Exit> {
    start_log(config);
    if config.tui {
        tui::check_terminal()?;
    }
    let missing = doctor::required_capabilities_missing();
    if !missing.is_empty() {
        bail!("not permitted: {} missing; run it with sudo (`tracer doctor` says more)", missing.join(", "));
    }
    for destination in &config.outputs {
        destination.check()?;
    }
    if config.outputs.is_empty() {
        cli::check_default_directory()?;
    }
    let mut recorded = run(config)?;
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

/// Records, and shows what happens as the command line asks for. A snapshot that is being written is waited for.
fn run(config: &RecordConfig) -> Result<Recorded> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (requests, keys) = unbounded_channel();
    let mut onlooker: Box<dyn Onlooker> = match config.tui {
        true => Box::new(Tui::new(config, is_colored(config.color, &io::stdout()), requests)),
        false => Box::new(Console::new(config)),
    };
    runtime.block_on(record::record(&record_config(config), keys, &mut *onlooker))
}

fn record_config(config: &RecordConfig) -> record::Config {
    record::Config {
        subject: config.subject.clone(),
        follow: config.follow,
        duration: config.duration,
        min_age: config.min_age,
        min_size: config.min_size,
        max_size: config.max_size,
        sample: config.sample,
        max_overhead: config.max_overhead.map(Percent::share),
        max_live: config.max_live,
        interval: config.interval,
        declarations: config.declarations.clone(),
        mode: config.mode,
        mark_after: config.mark_after,
        command_output: config.command_output(),
    }
}

/// Writes every report, and the summary to standard output, or to standard error when a report goes there.
fn write_reports(config: &RecordConfig, profile: &Profile) -> Result<()> {
    let destinations = config.destinations(&profile.target);
    let options = config.view();
    let (written, errors) = write_all(&destinations, profile, &options);

    let on_stderr = destinations.iter().any(|destination| destination.place == Place::Stdout);
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

/// Whoever closed the pipe has read what there was to read, and a terminal that is gone has nobody before it.
fn unless_nobody_reads(printed: io::Result<()>) -> io::Result<()> {
    match printed {
        Err(error)
            if error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO) =>
        {
            Ok(())
        }
        printed => printed,
    }
}

/// The options for text that goes to `out`.
fn on_terminal<T: io::IsTerminal + std::os::fd::AsFd>(
    options: Options,
    color: ColorChoice,
    out: &T,
) -> Options {
    let width = if out.is_terminal() {
        rustix::termios::tcgetwinsize(out).map_or(options.width, |size| usize::from(size.ws_col).max(40))
    } else {
        options.width
    };
    Options { color: is_colored(color, out), width, ..options }
}

fn is_colored(color: ColorChoice, out: &impl io::IsTerminal) -> bool {
    match color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        // https://no-color.org
        ColorChoice::Auto => {
            out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

fn start_log(config: &RecordConfig) {
    let level = match config.verbosity {
        Verbosity::Quiet => LevelFilter::Error,
        Verbosity::Normal => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(LevelFilter::Error)
        .filter_module("tracer", level)
        .target(if config.tui { Target::Pipe(tui::log_sink()) } else { Target::Stderr })
        .format(|out, record| {
            let level = match record.level() {
                log::Level::Warn => "warning: ",
                log::Level::Error => "error: ",
                _ => "",
            };
            // A target names itself and its files as it likes.
            writeln!(out, "tracer: {level}{}", printable(&record.args().to_string()))
        })
        .init();
}

fn open(recording: &Path) -> Result<Profile> {
    saved::open(recording).with_context(|| format!("cannot read {}", recording.display()))
}

fn draw_again(config: &ReportConfig) -> Result<Exit> {
    let Keep { focus, ignore, min_weight, only } = &config.keep;
    let regex = |text: &Option<String>| text.as_deref().map(pattern).transpose();
    let filter = Filter {
        focus: regex(focus)?,
        ignore: regex(ignore)?,
        min_weight: min_weight.unwrap_or_default(),
        only: only.iter().copied().collect(),
    };
    let mut profile = open(&config.recording)?;
    filter.apply(&mut profile);
    let profile = leaked(profile);
    let view = &config.view;
    let (written, errors) = write_all(&view.outputs, profile, &view_options(view));
    show(view, |options, out| Text { written: &written }.write(profile, options, out))?;
    errors.into_iter().next().map_or(Ok(Exit::Done), |error| Err(error.into()))
}

/// A profile that is used to the end of the program. To give its memory back piece by piece would take as long as a report.
fn leaked(profile: Profile) -> &'static Profile {
    Box::leak(Box::new(profile))
}

fn compare(config: &DiffConfig) -> Result<Exit> {
    let view = &config.view;
    view.outputs.iter().try_for_each(|output| diff::check(output.format))?;
    let (base, new) = (leaked(open(&config.base)?), leaked(open(&config.new)?));
    let options = view_options(view);
    let diff = Diff::new(base, new, &options);
    for destination in &view.outputs {
        destination.write_with(|out| diff.write(destination.format, &options, out))?;
    }
    show(view, |options, out| diff.write_text(options, out))?;
    Ok(Exit::Done)
}

fn view_options(view: &ViewConfig) -> Options {
    view.drawing.options(&view.include, view.top)
}

/// Prints a summary where no report goes.
fn show(view: &ViewConfig, write: impl FnOnce(&Options, &mut dyn io::Write) -> io::Result<()>) -> Result<()> {
    let printed = if view.outputs.iter().any(|output| output.place == Place::Stdout) {
        write(&on_terminal(view_options(view), view.color, &io::stderr()), &mut io::stderr().lock())
    } else {
        write(&on_terminal(view_options(view), view.color, &io::stdout()), &mut io::stdout().lock())
    };
    unless_nobody_reads(printed).context("cannot write the summary")
}

fn diagnose(color: ColorChoice) -> Result<Exit> {
    let checks = doctor::check();
    print!("{}", doctor::render(&checks, is_colored(color, &io::stdout())));
    Ok(if doctor::can_trace(&checks) { Exit::Done } else { Exit::Failed })
}

fn show_plan(config: &PlanConfig) -> Result<Exit> {
    let target = target::Target::open(config.pid)?;
    print!("{}", record::plan_of(&target, &config.declarations)?);
    Ok(Exit::Done)
}
