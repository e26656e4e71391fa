//! The process to trace: who it is, what it has mapped, and whether it is still there.
//!
//! A [`Target`] cannot be fooled by a reused pid. It holds the process' directory in `/proc`, which the kernel ties to
//! the process and not to the number: once the process is gone every read through it fails with `ESRCH`.

pub mod cgroup;
pub mod choice;
mod cpu_clock;
mod error;
mod hold;
pub mod launch;
mod mapping;
mod object;
mod root;
mod status;
mod subject;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::model::{Address, Pid, Process};

pub use cpu_clock::{CpuTimes, ThreadTimes};
pub use error::TargetError;
pub(crate) use hold::while_held;
pub(crate) use mapping::kibibytes;
pub use mapping::{Backing, Device, FileId, GATE_FILE, Mapping, Permissions, parse_maps, read_smaps};
pub use object::{MappedObject, MappedSegment, Objects, Unopened};
use root::Root;
pub use root::RootId;
pub(crate) use root::open_regular;
use status::{Stat, Status};
pub use subject::{CommandLine, Subject};

/// A running process, held so that its pid cannot come to mean another one.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    start_time: u64,
    namespace_pids: Vec<u32>,
    comm: String,
    exe: Option<PathBuf>,
    command: Vec<String>,
    user: u32,
    /// `/proc/PID`.
    proc: OwnedFd,
    root: Option<Root>,
    /// Readable once the process has exited.
    pidfd: OwnedFd,
}

impl Target {
    /// Opens the process with this pid and finds out whether it can be traced at all.
    ///
    /// # Errors
    /// No such process, a thread, a kernel thread, the tracer itself, a zombie, a 32-bit program, or one that this
    /// user may not look into; each says what to do about it.
    pub fn open(pid: Pid) -> Result<Self, TargetError> {
        let io = |what| move |source: Errno| TargetError::from_errno(pid, what, source);
        let raw = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw);
        let raw = raw.ok_or(TargetError::NoSuchProcess { pid })?;

        let path = format!("/proc/{pid}");
        let proc = openat(CWD, &*path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io("open its directory in /proc"))?;
        let status = Status::parse(&read(&proc, "status").map_err(io("read its status"))?);
        let process = Pid(status.tgid.unwrap_or(pid.0));
        if process.0 == std::process::id() {
            return Err(TargetError::OwnProcess);
        }
        if process != pid {
            return Err(TargetError::Thread { pid, process });
        }
        // From here on `proc` and `pidfd` could only be of two processes when the pid was reused between the two
        // calls; then `proc` is of the dead one, and the reads below fail.
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(io("open a pidfd"))?;
        let stat = read(&proc, "stat").map_err(io("read its state"))?;
        let stat = Stat::parse(&stat).ok_or_else(|| io("understand its state")(Errno::INVAL))?;
        let comm = stat.comm;
        if stat.is_kernel_thread {
            return Err(TargetError::KernelThread { pid, comm });
        }
        if matches!(stat.state, 'Z' | 'X') {
            return Err(TargetError::Zombie { pid, comm });
        }

        // A link that cannot be read means no right to look into the process.
        let exe = match readlinkat(&proc, "exe", Vec::new()) {
            Ok(path) => Some(PathBuf::from(OsStr::from_bytes(mapping::without_deleted(path.to_bytes()).0))),
            // A process whose executable is gone altogether, as between the steps of its exit.
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(io("read the name of its program")(errno)),
        };
        if exe.is_some() && is_32_bit(&proc).map_err(|source| TargetError::program(pid, source))? {
            return Err(TargetError::ThirtyTwoBit { pid, comm });
        }
        let root = Root::of(&proc)
            .inspect_err(|error| log::debug!("cannot open the root directory of {pid}: {error}"));
        let user = fstat(&proc).map_err(io("learn its user"))?.st_uid;
        let command = read(&proc, "cmdline").map_err(io("read its command line"))?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
            namespace_pids: status.namespace_pids,
            comm,
            exe,
            command: split_command_line(&command),
            user,
            proc,
            root: root.ok(),
            pidfd,
        })
    }

    /// The pid that the tracer sees.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// When the process started, in clock ticks since boot: with the pid, its identity on this machine.
    #[must_use]
    pub const fn start_time(&self) -> u64 {
        self.start_time
    }

    /// The pid that the process itself sees, in the innermost pid namespace it is in. JIT compilers name their
    /// `/tmp/perf-PID.map` by it.
    #[must_use]
    pub fn inner_pid(&self) -> Pid {
        self.namespace_pids.last().map_or(self.pid, |&pid| Pid(pid))
    }

    /// Its effective user; root if it is not dumpable (`PR_SET_DUMPABLE`).
    #[must_use]
    pub const fn user(&self) -> u32 {
        self.user
    }

    /// Opens a regular file as the process would find it at `path`: symbolic links cannot lead out of its root. That
    /// stays reachable when the process has exited.
    ///
    /// # Errors
    /// When there is none, or it may not be read.
    pub fn open_in_root(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let root = self.root.as_ref().ok_or(io::ErrorKind::NotFound)?;
        open_regular(&root.locate(path, flags)?)
    }

    /// Opens the regular file that a mapping shows, whether it is an ELF file or not. While the process lives it is certainly this one;
    /// afterwards, the one at its path if that is the same.
    ///
    /// # Errors
    /// When it is a device, is gone with the process, or may not be read.
    pub fn open_mapped(&self, mapping: &Mapping) -> io::Result<File> {
        let opened = object::open_mapped(&self.proc, self.root.as_ref(), mapping)?;
        Ok(opened.ok_or(io::ErrorKind::Unsupported)?.0)
    }

    /// Which directory its root is, if that could be opened.
    #[must_use]
    pub fn root_id(&self) -> Option<RootId> {
        self.root.as_ref().and_then(Root::id)
    }

    /// How the process itself names a file that its mappings show under this path.
    #[must_use]
    pub fn own_path(&self, shown: &Path) -> PathBuf {
        self.root.as_ref().map_or_else(|| shown.to_owned(), |root| root.own_path(shown))
    }

    /// The kernel's name for the process, at most 15 bytes.
    #[must_use]
    pub fn comm(&self) -> &str {
        &self.comm
    }

    /// What reports say about the process.
    #[must_use]
    pub fn describe(&self) -> Process {
        Process {
            pid: self.pid,
            comm: self.comm.clone(),
            exe: self.exe.as_ref().map(|path| path.to_string_lossy().into_owned()),
            command: self.command.clone(),
            from: None,
            end: None,
        }
    }

    /// What the process has mapped now, by ascending address. Code that a gate has replaced is shown as what it is a copy of.
    ///
    /// # Errors
    /// When the process has exited (`ESRCH`), or may not be looked into.
    pub fn mappings(&self) -> io::Result<Vec<Mapping>> {
        Ok(mapping::without_gate(self.mappings_with_gate()?))
    }

    /// As [`Target::mappings`], as the kernel shows them.
    ///
    /// # Errors
    /// As [`Target::mappings`].
    pub fn mappings_with_gate(&self) -> io::Result<Vec<Mapping>> {
        Ok(parse_maps(&self.read("maps")?))
    }

    /// Whether this thread of it executes code of the kernel alone (of io_uring, of vhost). Of one that is not there, not.
    #[must_use]
    pub fn is_worker(&self, thread: i32) -> bool {
        let stat = self.read(&format!("task/{thread}/stat")).ok();
        stat.and_then(|stat| Stat::parse(&stat)).is_some_and(|stat| stat.is_worker)
    }

    /// Whether a gate is open in it.
    #[must_use]
    pub fn has_open_gate(&self) -> bool {
        self.mappings_with_gate().is_ok_and(|mappings| mapping::has_open_gate(&mappings))
    }

    /// Whether it has one that is closed. Another program that it executes has none, and of a process that ends nothing is shown.
    #[must_use]
    pub fn has_closed_gate(&self) -> bool {
        self.mappings_with_gate().is_ok_and(|mappings| {
            mappings.iter().any(|mapping| mapping.is_named(GATE_FILE)) && !mapping::has_open_gate(&mappings)
        })
    }

    /// The ELF files that the process has mapped with executable parts, in order of their first mapping.
    ///
    /// # Errors
    /// As [`Target::mappings`]. Files that cannot be opened are no error; they are listed with the reason.
    pub fn objects(&self) -> io::Result<Objects> {
        self.objects_where(|_| true)
    }

    /// As [`Target::objects`], but leaves alone the files for which `wanted` is false.
    ///
    /// # Errors
    /// As [`Target::mappings`].
    pub fn objects_where(&self, wanted: impl FnMut(FileId) -> bool) -> io::Result<Objects> {
        Ok(self.objects_among(&self.mappings()?, wanted))
    }

    /// As [`Target::objects_where`], by what it had mapped when that was read.
    #[must_use]
    pub fn objects_among(&self, mappings: &[Mapping], wanted: impl FnMut(FileId) -> bool) -> Objects {
        object::open_all(&self.proc, self.root.as_ref(), mappings, wanted)
    }

    /// Reads a whole file of the process' directory in `/proc`.
    ///
    /// # Errors
    /// `ESRCH` when the process has exited, `EACCES` when it may not be looked into.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(read(&self.proc, name)?)
    }

    /// Opens a file of the process' directory in `/proc` for reading (`smaps`, `pagemap`, `mem`).
    ///
    /// # Errors
    /// As [`Target::read`].
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        Ok(open(&self.proc, name)?)
    }

    /// Whether this is the file of its program, not of a library.
    #[must_use]
    pub fn is_program(&self, object: &MappedObject) -> bool {
        self.exe.as_ref() == Some(&object.path)
    }

    /// Writes eight bytes of its memory. To be done with what is there to be written by others, and nothing else.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write_word(&self, address: Address, value: u64) -> io::Result<()> {
        let memory: File = openat(&self.proc, "mem", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?.into();
        memory.write_all_at(&value.to_ne_bytes(), address.0)
    }

    /// Opens its memory to be read and written: that of the program that it executes now, whatever comes after.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_memory(&self) -> io::Result<File> {
        Ok(openat(&self.proc, "mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Whether the process has exited. Its descriptor ([`AsFd`]) becomes readable when it does.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // An interrupted poll says nothing; the caller asks again.
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
    }

    /// Whether the process is stopped by a signal (`SIGSTOP`, Ctrl-Z) or held by a debugger: it cannot allocate.
    ///
    /// # Errors
    /// When the process has exited.
    pub fn is_stopped(&self) -> io::Result<bool> {
        let stat = Stat::parse(&self.read("stat")?);
        Ok(stat.is_some_and(|stat| matches!(stat.state, 'T' | 't')))
    }
}

impl AsFd for Target {
    /// The pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn open(proc: &OwnedFd, name: &str) -> Result<File, Errno> {
    Ok(openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

fn read(proc: &OwnedFd, name: &str) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let read = open(proc, name)?.read_to_end(&mut bytes);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(bytes)
}

/// Whether the program of the process is a 32-bit one. Read from the file that runs, so a deleted or replaced program
/// is told right.
fn is_32_bit(proc: &OwnedFd) -> io::Result<bool> {
    const CLASS: usize = 4;
    let mut identity = Vec::new();
    open(proc, "exe")?.take(16).read_to_end(&mut identity)?;
    Ok(identity.starts_with(b"\x7fELF") && identity.get(CLASS) == Some(&1))
}

fn split_command_line(bytes: &[u8]) -> Vec<String> {
    let arguments = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if arguments.is_empty() {
        return Vec::new();
    }
    arguments.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

#[cfg(test)]
mod tests;
