//! Targets that are chosen by what they are called, or by the control group they are in.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::cgroup;
use crate::model::Pid;

/// Which processes to trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// These.
    pub pids: Vec<Pid>,
    /// All that are called so: the kernel's name for the process, or the file name of its program.
    pub names: Vec<String>,
    /// All in these control groups, and in those below them.
    pub cgroups: Vec<PathBuf>,
}

/// Why a choice is empty: one line each, which says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// No process is called so.
    #[error("no process is called {0}: it must be the whole name, as `ps -e -o pid,comm,exe` shows it")]
    NoSuchName(String),
    /// There is no such control group.
    #[error(
        "there is no control group {}: give its directory, or its name as in /proc/PID/cgroup", .0.display()
    )]
    NoSuchCgroup(PathBuf),
    /// There is nobody in the control group.
    #[error("no process is in control group {}", .0.display())]
    EmptyCgroup(PathBuf),
    /// A list of processes cannot be read.
    #[error("cannot read {}: {source}", .directory.display())]
    Unreadable {
        /// It.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Choice {
    /// The processes that are chosen now, each once, without the tracer itself and threads of the kernel.
    ///
    /// # Errors
    /// When a part of the choice chooses nobody.
    pub fn pids(&self) -> Result<Vec<Pid>, ChoiceError> {
        let mut chosen = self.pids.clone();
        for name in &self.names {
            let pids = called(name)?;
            if pids.is_empty() {
                return Err(ChoiceError::NoSuchName(name.clone()));
            }
            chosen.extend(pids);
        }
        for cgroup in &self.cgroups {
            let directory =
                cgroup::directory(cgroup).ok_or_else(|| ChoiceError::NoSuchCgroup(cgroup.clone()))?;
            let mut pids = cgroup::members(&directory)
                .map_err(|source| ChoiceError::Unreadable { directory: directory.clone(), source })?;
            pids.retain(|&pid| is_traceable(pid));
            if pids.is_empty() {
                return Err(ChoiceError::EmptyCgroup(cgroup.clone()));
            }
            chosen.extend(pids);
        }
        let mut seen = BTreeSet::new();
        chosen.retain(|pid| seen.insert(*pid));
        Ok(chosen)
    }
}

/// The processes with this name, now.
///
/// # Errors
/// When the list of processes cannot be read.
pub fn called(name: &str) -> Result<Vec<Pid>, ChoiceError> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc)
        .map_err(|source| ChoiceError::Unreadable { directory: proc.to_owned(), source })?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid));
    let mut pids: Vec<Pid> = pids.filter(|&pid| is_traceable(pid) && is_called(pid, name)).collect();
    pids.sort_unstable();
    Ok(pids)
}

fn is_called(pid: Pid, name: &str) -> bool {
    let comm = fs::read(format!("/proc/{pid}/comm"));
    comm.is_ok_and(|comm| comm.strip_suffix(b"\n") == Some(name.as_bytes()))
        || program(pid).is_some_and(|program| program == name.as_bytes())
}

/// The file name of a process' program, also when the file has been replaced.
fn program(pid: Pid) -> Option<Vec<u8>> {
    let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = link.file_name()?.as_bytes();
    Some(name.strip_suffix(b" (deleted)").unwrap_or(name).to_owned())
}

/// Whether it is a process with a program, other than this one. Threads of the kernel and zombies have none.
fn is_traceable(pid: Pid) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe"));
    let has_program = !exe.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    pid.0 != std::process::id() && has_program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_an_error_that_says_so() {
        let by_name = |name: &str| Choice { names: vec![name.into()], ..Choice::default() };
        let by_group = |group: &str| Choice { cgroups: vec![group.into()], ..Choice::default() };
        let error = |choice: Choice| choice.pids().expect_err("nobody").to_string();
        assert!(error(by_name("no such process")).contains("no process is called no such process"));
        assert!(error(by_name("kthreadd")).contains("no process"), "a thread of the kernel is no process");
        assert!(error(by_group("/no/such/group")).contains("/no/such/group"));
    }

    #[test]
    fn the_tracer_itself_is_not_chosen() {
        let own = program(Pid(std::process::id())).expect("it has a program");
        let own = String::from_utf8(own).expect("in ASCII");
        let chosen = Choice { names: vec![own], ..Choice::default() }.pids();
        assert!(!chosen.unwrap_or_default().contains(&Pid(std::process::id())));
    }
}
