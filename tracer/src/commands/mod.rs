//! What the command line asks for, done: one place that decides what is printed where, and the exit status.

mod console;
mod gate;
mod logging;
mod manual;
mod record;
mod report;
mod terminal;
mod watch;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use self::terminal::is_colored;
use crate::{
    cli::{self, Action, Exit, PlanConfig},
    descriptors, doctor,
    record::plan_of,
    signals,
    target::{Target, launch::LaunchError},
};

/// Does what the command line of this process says, and gives its exit status.
#[must_use]
pub fn run() -> ExitCode {
    descriptors::raise_limit();
    signals::let_children_be_waited_for();
    let done = match cli::parse() {
        Action::Record(config) => record::record(&config),
        Action::Doctor { color } => diagnose(color),
        Action::Plan(config) => show_plan(&config),
        Action::Gate(config) => gate::keep(config),
        Action::Report(config) => report::draw_again(&config),
        Action::Diff(config) => report::compare(&config),
        Action::Watch(config) => watch::watch(&config),
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

fn diagnose(color: clap::ColorChoice) -> Result<Exit> {
    let checks = doctor::check();
    print!("{}", doctor::render(&checks, is_colored(color, &io::stdout())));
    Ok(if doctor::can_trace(&checks) { Exit::Done } else { Exit::Failed })
}

fn show_plan(config: &PlanConfig) -> Result<Exit> {
    let target = Target::open(config.pid)?;
    if config.gate {
        print!("{}", crate::gate::plan_of(&target)?);
        return Ok(Exit::Done);
    }
    print!("{}", plan_of(&target, &config.declarations)?);
    Ok(Exit::Done)
}
