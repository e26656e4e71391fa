//! Targets that are chosen by what they are called, or by the control group they are in.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

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
            let directory = cgroup_directory(cgroup)?;
            let mut pids = BTreeSet::new();
            collect(&directory, &mut pids)
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

/// The processes with this name.
fn called(name: &str) -> Result<Vec<Pid>, ChoiceError> {
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

/// The list of processes in a control group's directory, of both versions.
const MEMBERS: &str = "cgroup.procs";

/// The directory of a control group: itself, or below where control groups are mounted.
fn cgroup_directory(cgroup: &Path) -> Result<PathBuf, ChoiceError> {
    let is_cgroup = |directory: &PathBuf| directory.join(MEMBERS).is_file();
    let name = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = cgroup_mounts(&mounts).into_iter().map(|mount| mount.join(name));
    let itself = cgroup.is_absolute().then(|| cgroup.to_owned());
    itself
        .into_iter()
        .chain(below)
        .find(is_cgroup)
        .ok_or_else(|| ChoiceError::NoSuchCgroup(cgroup.to_owned()))
}

/// Where control groups are mounted: version 2 first, then the hierarchy that limits memory, then others.
fn cgroup_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let place = unescaped(mount.split(' ').nth(4)?);
        let mut system = system.split(' ');
        let rank = match (system.next()?, system.nth(1).unwrap_or_default()) {
            ("cgroup2", _) => 0,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => 1,
            ("cgroup", _) => 2,
            _ => return None,
        };
        Some((rank, PathBuf::from(place)))
    };
    let mut mounts: Vec<_> = mountinfo.lines().filter_map(mount).collect();
    mounts.sort_by_key(|(rank, _)| *rank);
    mounts.into_iter().map(|(_, place)| place).collect()
}

/// The kernel writes blanks and backslashes of a path in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Adds the processes of a control group and those below it.
fn collect(directory: &Path, pids: &mut BTreeSet<Pid>) -> io::Result<()> {
    match fs::read_to_string(directory.join(MEMBERS)) {
        // 0 stands for a process of another pid namespace.
        Ok(members) => {
            pids.extend(members.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid| pid != 0).map(Pid));
        }
        // A group of threads: their processes are members of the one above.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        // It has been removed meanwhile.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => return Ok(()),
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_comes_before_that_of_memory_and_others() {
        let mountinfo = "\
30 24 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory
32 24 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 24 0:29 / /tmp rw - tmpfs tmpfs rw
nonsense";
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/my memory", "/sys/fs/cgroup/cpu"];
        assert_eq!(cgroup_mounts(mountinfo), mounts.map(PathBuf::from));
    }

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
