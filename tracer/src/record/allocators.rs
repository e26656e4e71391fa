//! Whether there is anything to trace: a target without a known allocator, and what its user declared but it has not, are
//! told before the window opens.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Result, bail};

use super::process::TracedProcess;
use crate::{
    model::Mode,
    plan::{Allocator, Catalog, Declarations, ObjectPlan, declared},
    report::human::printable,
    target::Subject,
};

/// What was looked at for allocators, and what was found there.
#[derive(Clone, Debug, Default)]
pub struct Found {
    files: BTreeSet<PathBuf>,
    /// Functions, probed or not.
    functions: BTreeSet<String>,
}

impl Found {
    /// A file was looked at.
    pub fn add_file(&mut self, path: PathBuf) {
        self.files.insert(path);
    }

    /// This is to be probed in a file.
    pub fn add_plan(&mut self, plan: &ObjectPlan, catalog: &Catalog) {
        self.functions.extend(plan.names(catalog));
    }

    fn extend(&mut self, other: &Self) {
        self.files.extend(other.files.iter().cloned());
        self.functions.extend(other.functions.iter().cloned());
    }

    /// What of the declarations was not found, in words that follow "has no".
    #[must_use]
    pub fn lacks(&self, declarations: &Declarations) -> Option<String> {
        if let Some(allocator) = declarations.allocators.iter().find(|allocator| !self.has_file(allocator)) {
            return Some(self.no_file(allocator));
        }
        let is_used = |prefix: &str| self.functions.iter().any(|name| name.starts_with(prefix));
        let unused =
            declarations.prefixes.iter().map(|prefix| prefix.as_str()).find(|prefix| !is_used(prefix));
        unused.map(|prefix| format!("function {prefix}malloc, nor another of the family with this prefix"))
    }

    fn has_file(&self, allocator: &Allocator) -> bool {
        self.files.iter().any(|path| allocator.is_in(path))
    }

    fn no_file(&self, allocator: &Allocator) -> String {
        let file = allocator.file.rsplit('/').next().unwrap_or(&allocator.file);
        let names = self.files.iter().filter_map(|path| path.file_name()?.to_str());
        let near = declared::suggestion(&declared::near(file, names));
        format!("mapped file {}{}", printable(&allocator.file), printable(&near))
    }
}

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
    let mut without = processes.iter().filter(|process| process.probes() == 0);
    let Some(first) = without.next() else { return Ok(()) };
    if processes.iter().any(|process| process.probes() > 0) {
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

fn has_no(processes: &[TracedProcess], what: &str) -> String {
    match processes {
        [process] => format!("{} has no {what}", process.name()),
        processes => format!("none of the {} processes has a {what}", processes.len()),
    }
}
