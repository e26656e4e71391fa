//! The target's directory in `/proc`, held open: everything that the symbolizer reads of the live process.
//!
//! A descriptor of `/proc/PID` refers to that process and no other: once it is gone, opening through it fails with
//! `ESRCH`, even when the pid has been given to somebody else.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use super::mappings::{FileId, Mapping};
use crate::model::Pid;

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);
/// Finds a file without opening it yet.
const LOCATE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

/// `st_mtime` and the time a process started come from clocks that differ by less than this.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The largest vDSO that is believed; real ones are 8 to 16 KiB.
const VDSO_LIMIT: u64 = 1 << 20;

/// A traced process as `/proc` shows it.
pub(super) struct Process {
    directory: OwnedFd,
    /// Its root directory, which stays reachable when it has exited: debug and perf map files are found below it.
    root: Option<OwnedFd>,
    /// Where that is for the tracer, by which `maps` shows the paths of a target that has only changed its root;
    /// those of another mount namespace it shows as the target sees them.
    root_path: PathBuf,
    /// Its pid in its own pid namespace, by which it names its perf map.
    namespace_pid: u32,
    /// Its effective user.
    user: u32,
    started: Option<SystemTime>,
}

impl Process {
    /// Opens the directory of process `pid`.
    pub(super) fn open(pid: Pid) -> io::Result<Self> {
        let directory = rustix::fs::openat(CWD, format!("/proc/{pid}"), DIRECTORY, Mode::empty())?;
        let root = rustix::fs::openat(&directory, "root", DIRECTORY, Mode::empty())
            .inspect_err(|error| log::debug!("cannot open the root directory of {pid}: {error}"))
            .ok();
        let root_path = rustix::fs::readlinkat(&directory, "root", Vec::new());
        let root_path =
            root_path.map_or_else(|_| "/".into(), |path| OsString::from_vec(path.into_bytes()).into());
        let mut process = Self { user: 0, root, root_path, namespace_pid: pid.0, started: None, directory };
        process.user = rustix::fs::fstat(&process.directory)?.st_uid;
        let status = process.read("status")?;
        process.namespace_pid = namespace_pid(&status).unwrap_or(pid.0);
        process.started = process.read("stat").ok().and_then(|stat| start_time(&stat));
        Ok(process)
    }

    /// The text of `/proc/PID/maps`; empty for a zombie.
    pub(super) fn maps(&self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.open_below("maps")?.read_to_end(&mut text)?;
        Ok(text)
    }

    /// The path of `mapping`'s file below the target's root.
    pub(super) fn path_below_root(&self, mapping: &Mapping) -> PathBuf {
        match mapping.path.strip_prefix(&self.root_path) {
            Ok(path) if mapping.file.is_some() => Path::new("/").join(path),
            _ => mapping.path.clone(),
        }
    }

    /// The file behind a mapping: exactly it through `map_files`, whatever happened to its path since; without the
    /// privilege for that (`CAP_SYS_ADMIN` or `CAP_CHECKPOINT_RESTORE`) by its path below the target's root, provided
    /// that the file found there is still the one that is mapped.
    pub(super) fn open_mapped(&self, mapping: &Mapping, id: FileId) -> io::Result<File> {
        let Range { start, end } = mapping.range;
        let link = format!("map_files/{start:x}-{end:x}");
        let mapped = rustix::fs::openat(&self.directory, link, LOCATE, Mode::empty());
        // Devices are not compared: overlayfs and btrfs show another one in `maps` than in `stat`.
        let is_mapped = |file: File| match file.metadata()?.ino() == id.inode {
            true => Ok(file),
            false => Err(io::Error::other("the file at that path is not the mapped one")),
        };
        // By now another file may be mapped at the same addresses.
        mapped.map_err(io::Error::from).and_then(read_regular).and_then(is_mapped).or_else(|error| {
            self.open_in_root(&self.path_below_root(mapping)).map_err(|_| error).and_then(is_mapped)
        })
    }

    /// A file as the target would find it at `path`: symbolic links cannot lead out of its root.
    pub(super) fn open_in_root(&self, path: &Path) -> io::Result<File> {
        self.open_in_root_with(path, OFlags::empty())
    }

    fn open_in_root_with(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let root = self.root.as_ref().ok_or(io::ErrorKind::NotFound)?;
        read_regular(rustix::fs::openat2(root, path, LOCATE | flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
    }

    /// The perf map that the target's runtime writes, if it is this process's.
    ///
    /// Directories like `/tmp` are open to all: the file must belong to the target's user or to root, as `perf`
    /// demands, and must have been written since the target started (pids are small and reused in containers).
    pub(super) fn open_perf_map(&self) -> io::Result<File> {
        let path = format!("/tmp/perf-{}.map", self.namespace_pid);
        let file = self.open_in_root_with(Path::new(&path), OFlags::NOFOLLOW)?;
        let metadata = file.metadata()?;
        if metadata.uid() != self.user && metadata.uid() != 0 {
            return Err(io::Error::other(format!("{path} belongs to another user")));
        }
        if self.started.is_some_and(|started| metadata.modified().is_ok_and(|at| at + CLOCK_SLACK < started))
        {
            return Err(io::Error::other(format!("{path} is older than the process")));
        }
        Ok(file)
    }

    /// The vDSO, an ELF file that exists in memory only, as a file.
    pub(super) fn copy_vdso(&self, range: &Range<u64>) -> io::Result<File> {
        let length = (range.end - range.start).min(VDSO_LIMIT);
        let mut memory = self.open_below("mem")?;
        memory.seek(SeekFrom::Start(range.start))?;
        let copy = rustix::fs::memfd_create("vdso", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut copy = File::from(copy);
        io::copy(&mut memory.take(length), &mut copy)?;
        Ok(copy)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        io::read_to_string(self.open_below(name)?)
    }

    fn open_below(&self, name: &str) -> io::Result<File> {
        Ok(rustix::fs::openat(self.directory.as_fd(), name, READ, Mode::empty())?.into())
    }
}

/// Opens a file of the tracer's own root for reading.
pub(super) fn open_on_host(path: &Path) -> io::Result<File> {
    read_regular(rustix::fs::openat(CWD, path, LOCATE, Mode::empty())?)
}

/// Opens for reading what has been located, if it is a regular file: opening a device can have effects, and a FIFO
/// makes us wait.
fn read_regular(located: OwnedFd) -> io::Result<File> {
    if FileType::from_raw_mode(rustix::fs::fstat(&located)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    File::open(format!("/proc/self/fd/{}", located.as_raw_fd()))
}

/// The innermost pid of `/proc/PID/status`: how the process numbers itself.
fn namespace_pid(status: &str) -> Option<u32> {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_ascii_whitespace().next_back()?.parse().ok()
}

/// When the process of this `/proc/PID/stat` started.
fn start_time(stat: &str) -> Option<SystemTime> {
    // The name, in parentheses, can hold anything; the start is field 22, the 20th after it.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let since_boot = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1));
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(boot))?.checked_add(since_boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_pid_names_the_perf_map() {
        assert_eq!(namespace_pid("Name:\tx\nNStgid:\t70\t8\nNSpid:\t71\t9\n"), Some(9));
        assert_eq!(namespace_pid("NSpid:\t71\n"), Some(71));
        assert_eq!(namespace_pid("Name:\tx\n"), None);
    }

    #[test]
    fn start_time_survives_any_name() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (pid, rest) = (stat.split_once('(').unwrap().0, stat.rsplit_once(')').unwrap().1);
        let renamed = format!("{pid}(a) b) 1 2){rest}");
        let started = start_time(&stat).unwrap();
        assert_eq!(start_time(&renamed), Some(started));
        assert!(started <= SystemTime::now() + CLOCK_SLACK);
        assert!(started.elapsed().unwrap_or_default() < Duration::from_secs(24 * 3600));
    }
}
