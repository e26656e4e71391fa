//! ptrace(2), as far as holding a new program needs it.
//!
//! The kernel takes these requests only from the *thread* that started the program.

use std::io;
use std::mem::offset_of;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use libc::{c_long, c_uint, pid_t};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::model::Address;

/// Why the program stands still.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TraceeStop {
    /// It has entered or is about to leave a system call.
    SystemCall,
    /// It has replaced itself by another program.
    Exec,
    /// It is about to take a signal.
    Signal(i32),
    /// It does not: it has ended.
    Ended(ExitStatus),
}

/// Asks the kernel to stop this process at its next `exec`, for its parent. To be called between `fork` and `exec`.
///
/// Signals are blocked until then, but for the `SIGTRAP` of that stop: one that stopped the process any earlier would
/// leave its parent waiting for an `exec` that never comes.
pub(super) fn trace_me() -> io::Result<()> {
    // SAFETY: the set is a plain bit mask that `sigfillset` initialises; the calls only write what they are given, and
    // all may be used between `fork` and `exec`.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut blocked);
        libc::sigdelset(&raw mut blocked, libc::SIGTRAP);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const blocked, std::ptr::null_mut());
    }
    request(libc::PTRACE_TRACEME, 0, 0, 0)
}

/// A program held by this thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracee {
    pid: Pid,
}

impl Tracee {
    pub(super) const fn new(pid: Pid) -> Self {
        Self { pid }
    }

    /// Waits until the program stands still.
    pub(super) fn wait(self) -> io::Result<TraceeStop> {
        let status = loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => break status.as_raw(),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
        const EXEC: i32 = libc::SIGTRAP | libc::PTRACE_EVENT_EXEC << 8;
        if !libc::WIFSTOPPED(status) {
            return Ok(TraceeStop::Ended(ExitStatus::from_raw(status)));
        }
        Ok(match status >> 8 {
            SYSTEM_CALL => TraceeStop::SystemCall,
            EXEC => TraceeStop::Exec,
            _ => TraceeStop::Signal(libc::WSTOPSIG(status)),
        })
    }

    /// Makes the program end with the tracer, from now on until it is let go, tells system calls and `exec` apart from
    /// signals, and undoes the blocking of signals of [`trace_me`].
    pub(super) fn set_up(self) -> io::Result<()> {
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC;
        self.request(libc::PTRACE_SETOPTIONS, 0, options as usize)?;
        // The kernel's own type for the set, one bit a signal: none blocked, as the standard library starts programs.
        let blocked = 0_u64;
        self.request(libc::PTRACE_SETSIGMASK, size_of_val(&blocked), &raw const blocked as usize)
    }

    /// Lets the program run to its next system call, with the signal it was about to take (0: none).
    pub(super) fn resume(self, signal: i32) -> io::Result<()> {
        self.request(libc::PTRACE_SYSCALL, 0, signal as usize)
    }

    /// Lets the program go for good.
    pub(super) fn detach(self) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH, 0, 0)
    }

    /// Where the program stands.
    pub(super) fn position(self) -> io::Result<Position> {
        // struct ptrace_syscall_info as words: op and arch, instruction pointer, stack pointer, and for an entry the
        // number of the call and its six arguments.
        let mut words = [0_u64; 11];
        self.request(libc::PTRACE_GET_SYSCALL_INFO, size_of_val(&words), words.as_mut_ptr() as usize)?;
        let [op, instruction, _, number, args @ ..] = words;
        let entry = op as u8 == libc::PTRACE_SYSCALL_INFO_ENTRY;
        let call = entry.then(|| SystemCall { number: number as c_long, protection: args[2] as i32 });
        Ok(Position { instruction: Address(instruction), entered: call })
    }

    /// Makes the processor stop the program (with `SIGTRAP`) before it executes this instruction. It is a breakpoint of
    /// the processor's, and does not change the program's memory as a breakpoint instruction would.
    pub(super) fn set_breakpoint(self, at: Address) -> io::Result<()> {
        self.set_debug_register(0, at.0)?;
        /// Breakpoint 0 on, for this thread, on execution.
        const EXECUTE_0: u64 = 1;
        self.set_debug_register(7, EXECUTE_0)
    }

    /// Undoes [`Tracee::set_breakpoint`].
    pub(super) fn clear_breakpoint(self) -> io::Result<()> {
        self.set_debug_register(7, 0)?;
        self.set_debug_register(0, 0)
    }

    fn set_debug_register(self, number: usize, value: u64) -> io::Result<()> {
        let offset = offset_of!(libc::user, u_debugreg) + number * size_of::<u64>();
        self.request(libc::PTRACE_POKEUSER, offset, value as usize)
    }

    fn request(self, request_number: c_uint, address: usize, value: usize) -> io::Result<()> {
        request(request_number, self.pid.as_raw_nonzero().get(), address, value)
    }
}

/// Where a program stands.
pub(super) struct Position {
    /// The instruction it will execute next.
    pub instruction: Address,
    /// The system call it has just entered, if it has.
    pub entered: Option<SystemCall>,
}

/// A system call, and what its third argument is when it is one of those that [`SystemCall::may_map_code`] asks about.
pub(super) struct SystemCall {
    number: c_long,
    protection: i32,
}

impl SystemCall {
    /// Whether executable memory can come of it.
    pub(super) fn may_map_code(&self) -> bool {
        let maps = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect].contains(&self.number);
        maps && self.protection & libc::PROT_EXEC != 0
    }
}

/// One request. Those used here read or write no more of the tracer's memory than `address` bytes at `value`.
fn request(request: c_uint, pid: pid_t, address: usize, value: usize) -> io::Result<()> {
    // SAFETY: the two requests that take a pointer get that of a live local variable of the length in `address`; all
    // others take numbers, and what they change is the held program's.
    let result = unsafe { libc::ptrace(request, pid, address, value) };
    // PEEK requests, whose results may be -1, are not used.
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
