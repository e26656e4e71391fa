//! Why a process cannot be traced: one line each, which says what to do.

use std::io;

use rustix::io::Errno;

use crate::{kernel, model::Pid};

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing runs under this pid.
    #[error("no process has pid {pid}: it may have ended; `ps -e` lists what runs")]
    NoSuchProcess {
        /// The pid asked for.
        pid: Pid,
    },
    /// The number is that of a thread.
    #[error("{pid} is a thread, not a process: use --pid {process}, the process it belongs to")]
    Thread {
        /// The number asked for.
        pid: Pid,
        /// The process that the thread belongs to.
        process: Pid,
    },
    /// A thread of the kernel, which has no user memory.
    #[error("{pid} ({comm}) is a kernel thread: it has no memory of its own, choose a user process")]
    KernelThread {
        /// The pid asked for.
        pid: Pid,
        /// Its name.
        comm: String,
    },
    /// The tracer was asked to trace itself.
    #[error("that is the tracer's own process: choose another one")]
    OwnProcess,
    /// The process has exited, its parent has not collected it yet.
    #[error("process {pid} ({comm}) has already exited (zombie): there is nothing left to trace")]
    Zombie {
        /// The pid asked for.
        pid: Pid,
        /// Its name.
        comm: String,
    },
    /// A 32-bit program on a 64-bit kernel.
    #[error("process {pid} ({comm}) runs a 32-bit program: only 64-bit programs can be traced")]
    ThirtyTwoBit {
        /// The pid asked for.
        pid: Pid,
        /// Its name.
        comm: String,
    },
    /// The user may not look into the process.
    #[error("no permission to look into process {pid}: run as root (sudo) or with CAP_SYS_PTRACE")]
    NotPermitted {
        /// The pid asked for.
        pid: Pid,
    },
    /// The tracer's profile of AppArmor lets it look only into processes under the same one.
    #[error(
        "no permission to look into process {pid}: tracer runs under AppArmor's profile {profile}, the process does not: start the \
         container with --security-opt apparmor=unconfined"
    )]
    Confined {
        /// The pid asked for.
        pid: Pid,
        /// The tracer's profile.
        profile: String,
    },
    /// The process may be looked into, but its program file may not be read.
    #[error(
        "no permission to read the program file of process {pid}: run as root (sudo) or with CAP_DAC_READ_SEARCH"
    )]
    ProgramUnreadable {
        /// The pid asked for.
        pid: Pid,
    },
    /// Something else went wrong.
    #[error("process {pid}: cannot {what}: {source}")]
    Io {
        /// The pid asked for.
        pid: Pid,
        /// What was being done, in the imperative.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl TargetError {
    pub(super) fn from_errno(pid: Pid, what: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::SRCH | Errno::NOENT => Self::NoSuchProcess { pid },
            Errno::ACCESS | Errno::PERM => match kernel::profile() {
                Some(profile) => Self::Confined { pid, profile },
                None => Self::NotPermitted { pid },
            },
            errno => Self::Io { pid, what, source: errno.into() },
        }
    }

    /// For failures to read the program file, whose permissions are not those of the process.
    pub(super) fn program(pid: Pid, error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::PERM) => Self::ProgramUnreadable { pid },
            Some(errno) => Self::from_errno(pid, "read the program", errno),
            None => Self::Io { pid, what: "read the program", source: error },
        }
    }
}
