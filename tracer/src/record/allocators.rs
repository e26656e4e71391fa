//! Whether there is anything to trace: a target without a known allocator, and what its user declared but it has not, are
//! told before the window opens.

use anyhow::{Result, bail};

use super::{found::Found, process::TracedProcess};
use crate::{model::Mode, plan::Declarations, target::Subject};

/// Fails unless every declaration was found and there is an allocator to trace.
///
/// A launched command may load later what is declared. A process that was found, one of several, may have no allocator.
///
/// # Errors
/// One line that says what is not there, and what to do.
pub fn check(
    mode: Mode,
    subject: &Subject,
    processes: &[TracedProcess],
    declarations: &Declarations,
) -> Result<()> {
    if mode == Mode::Growth {
        return Ok(());
    }
    let mut found = Found::default();
    processes.iter().for_each(|process| found.extend(process.found()));
    match found.lacks(declarations) {
        Some(lack) if subject.is_command() => {
            log::warn!("{} yet: it is traced once it is loaded", has_no(processes, &lack));
        }
        Some(lack) => bail!(has_no(processes, &lack)),
        None => {}
    }
    let mut without = processes.iter().filter(|process| !is_probed(process));
    let Some(first) = without.next() else { return Ok(()) };
    if processes.iter().any(is_probed) {
        for process in std::iter::once(first).chain(without) {
            log::warn!("{} has no allocator that tracer knows: only its mappings are traced", process.name());
        }
    } else if !subject.is_command() || declarations.is_empty() {
        bail!(
            "{} has no allocator that tracer knows: name its functions (--allocator, --symbol-prefix), or see what makes \
             its memory grow with --mode growth",
            first.name()
        );
    }
    Ok(())
}

fn is_probed(process: &TracedProcess) -> bool {
    process.probes() + process.usdt_probes() > 0
}

fn has_no(processes: &[TracedProcess], what: &str) -> String {
    match processes {
        [process] => format!("{} has no {what}", process.name()),
        processes => format!("none of the {} processes has a {what}", processes.len()),
    }
}
