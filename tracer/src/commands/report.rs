//! Saved recordings, drawn again or compared.

use std::{io, path::Path};

use anyhow::{Context as _, Result};

use super::terminal::{on_terminal, unless_nobody_reads};
use crate::{
    cli::{DiffConfig, Exit, Keep, ReportConfig, ViewConfig},
    model::{Bytes, Profile},
    report::{
        Options, Report as _,
        destination::{OutputPlace, write_all},
        diff::{self, Diff},
        filter::{Filter, pattern},
        saved,
        text::Text,
    },
    signals::Interruptible,
    symbolize::{Debuginfod, Progress, Watcher},
};

/// `tracer report`.
pub(super) fn draw_again(config: &ReportConfig) -> Result<Exit> {
    let Keep { focus, ignore, min_weight, only } = &config.keep;
    let regex = |text: &Option<String>| text.as_deref().map(pattern).transpose();
    let filter = Filter {
        focus: regex(focus)?,
        ignore: regex(ignore)?,
        min_weight: min_weight.unwrap_or_default(),
        only: only.iter().copied().collect(),
    };
    let mut profile = open(&config.recording)?;
    if let Some(wish) = &config.debuginfod
        && let Some(debuginfod) = Debuginfod::wanted(wish)?
    {
        name(&mut profile, &debuginfod);
    }
    filter.apply(&mut profile);
    let profile = leaked(profile);
    let view = &config.view;
    let (written, errors) = write_all(&view.outputs, profile, &view_options(view));
    show(view, |options, out| Text { written: &written }.write(profile, options, out))?;
    errors.into_iter().next().map_or(Ok(Exit::Done), |error| Err(error.into()))
}

/// Names what has no name by the debug files that servers have.
fn name(profile: &mut Profile, debuginfod: &Debuginfod) {
    let mut waiting = Waiting { debuginfod, interruptible: Interruptible::begin() };
    let came = debuginfod.refine_saved(profile, &mut waiting);
    eprintln!("tracer: debug files: {} of {} were had", came.had, came.wanted);
    came.warn();
}

struct Waiting<'a> {
    debuginfod: &'a Debuginfod,
    interruptible: Interruptible,
}

impl Watcher for Waiting<'_> {
    fn begin(&mut self, servers: &[String], files: usize) {
        eprintln!("tracer: {}", self.debuginfod.announcement(servers, files));
    }

    fn progress(&mut self, progress: Progress<'_>) {
        log::debug!("debug file of {}: {}", progress.module, Bytes(progress.bytes));
    }

    fn is_tired(&self) -> bool {
        self.interruptible.was_interrupted()
    }
}

/// `tracer diff`.
pub(super) fn compare(config: &DiffConfig) -> Result<Exit> {
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

fn open(recording: &Path) -> Result<Profile> {
    saved::open(recording).with_context(|| format!("cannot read {}", recording.display()))
}

/// A profile that is used to the end of the program. To give its memory back piece by piece would take as long as a report.
fn leaked(profile: Profile) -> &'static Profile {
    Box::leak(Box::new(profile))
}

fn view_options(view: &ViewConfig) -> Options {
    view.drawing.options(&view.include, view.top)
}

/// Prints a summary where no report goes.
fn show(view: &ViewConfig, write: impl FnOnce(&Options, &mut dyn io::Write) -> io::Result<()>) -> Result<()> {
    let printed = if view.outputs.iter().any(|output| output.place == OutputPlace::Stdout) {
        write(&on_terminal(view_options(view), view.color, &io::stderr()), &mut io::stderr().lock())
    } else {
        write(&on_terminal(view_options(view), view.color, &io::stdout()), &mut io::stdout().lock())
    };
    unless_nobody_reads(printed).context("cannot write the summary")
}
