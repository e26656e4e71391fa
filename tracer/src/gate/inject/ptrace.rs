//! ptrace(2), as far as leading one thread aside needs it.
//!
//! The kernel takes these requests only from the *thread* that seized the other one, and lets go of all that it holds when it ends.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use libc::{c_int, c_uint, pid_t, user_regs_struct};

use crate::model::Address;

/// Bytes of a word.
pub(super) const WORD: usize = size_of::<usize>();

/// Has this thread run as soon as it can, before others if it may, and wake up on time: another process' thread stands still meanwhile.
pub(super) fn go_first() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: both change this thread's scheduling alone. musl's function refuses, the kernel does not.
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const lowest);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
    }
}

/// Sleeps between two looks for what has been waited for since then. That may need this CPU, and a thread which goes first and wakes up
/// again and again leaves nothing of it to others: of 5 µs of sleep they get 1 %, of 20 µs a quarter, of 1 ms all.
pub(super) fn pause_since(began: Instant) {
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_millis(1);
    thread::sleep((began.elapsed() / 4).clamp(SHORTEST, LONGEST));
}

/// A thread of another process, held by this one.
#[derive(Debug)]
pub(super) struct HeldThread {
    id: pid_t,
    since: Instant,
    /// Whether it stands still: then it must be let go by request, or its registers are lost.
    stands: bool,
    signal: c_int,
}

/// Why a thread stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Because it was asked to.
    Interrupted,
    /// Because its whole process is stopped by a signal.
    WholeProcess,
    /// It is about to take a signal.
    Signal,
    /// It enters a system call, or leaves it.
    SystemCall,
    /// It has begun a thread of this number.
    Began(pid_t),
    /// It is about to end, and executes nothing any more.
    Ending,
    /// It has ended, with this status.
    Ended(Option<c_int>),
}

impl HeldThread {
    /// Takes hold of a thread, which runs on.
    pub(super) fn seize(id: pid_t) -> io::Result<Self> {
        request(libc::PTRACE_SEIZE, id, 0, 0)?;
        Ok(Self::running(id))
    }

    pub(super) fn set_options(&self, options: c_int) -> io::Result<()> {
        self.request(libc::PTRACE_SETOPTIONS, 0, options as usize)
    }

    /// A thread that another one of the process has begun while it was held: the kernel holds it, too.
    pub(super) fn running(id: pid_t) -> Self {
        Self { id, since: Instant::now(), stands: false, signal: 0 }
    }

    /// Since when it is held.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn interrupt(&self) -> io::Result<()> {
        request(libc::PTRACE_INTERRUPT, self.id, 0, 0)
    }

    /// Waits until it stands still, or has ended.
    pub(super) fn wait(&mut self, deadline: Instant) -> io::Result<Stop> {
        let began = Instant::now();
        loop {
            let mut status = 0;
            // SAFETY: the kernel writes to `status` alone.
            let waited = unsafe { libc::waitpid(self.id, &raw mut status, libc::__WALL | libc::WNOHANG) };
            if waited == self.id {
                return self.stop(status);
            }
            let error = io::Error::last_os_error();
            if waited < 0 && error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            pause_since(began);
        }
    }

    fn stop(&mut self, status: c_int) -> io::Result<Stop> {
        const SYSTEM_CALL: c_int = libc::SIGTRAP | 0x80;
        if !libc::WIFSTOPPED(status) {
            self.stands = false;
            return Ok(Stop::Ended(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))));
        }
        self.stands = true;
        let signal = libc::WSTOPSIG(status);
        self.signal = 0;
        Ok(match status >> 16 {
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
            libc::PTRACE_EVENT_STOP => Stop::WholeProcess,
            libc::PTRACE_EVENT_CLONE => {
                let mut id = 0_u64;
                self.request(libc::PTRACE_GETEVENTMSG, 0, &raw mut id as usize)?;
                Stop::Began(id as pid_t)
            }
            libc::PTRACE_EVENT_EXIT => Stop::Ending,
            _ if signal == SYSTEM_CALL => Stop::SystemCall,
            _ => {
                self.signal = signal;
                Stop::Signal
            }
        })
    }

    /// Lets it go on, with the signal that it was about to take.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.go_on(libc::PTRACE_CONT)
    }

    /// As [`HeldThread::resume`], until it enters or leaves a system call.
    pub(super) fn resume_to_system_call(&mut self) -> io::Result<()> {
        self.go_on(libc::PTRACE_SYSCALL)
    }

    fn go_on(&mut self, how: c_uint) -> io::Result<()> {
        self.request(how, 0, self.signal as usize)?;
        (self.stands, self.signal) = (false, 0);
        Ok(())
    }

    /// Lets it go for good.
    pub(super) fn let_go(&mut self) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH, 0, self.signal as usize)?;
        self.stands = false;
        Ok(())
    }

    pub(super) fn registers(&self) -> io::Result<user_regs_struct> {
        // SAFETY: it is made of numbers alone.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, 0, &raw mut registers as usize)?;
        Ok(registers)
    }

    pub(super) fn set_registers(&self, registers: &user_regs_struct) -> io::Result<()> {
        self.request(libc::PTRACE_SETREGS, 0, std::ptr::from_ref(registers) as usize)
    }

    /// The signals that it has blocked, one bit each.
    pub(super) fn blocked_signals(&self) -> io::Result<u64> {
        let mut blocked = 0_u64;
        self.request(libc::PTRACE_GETSIGMASK, size_of_val(&blocked), &raw mut blocked as usize)?;
        Ok(blocked)
    }

    /// Blocks signals, one bit each; until the thread changes that, whatever the call would do in which it was interrupted.
    pub(super) fn set_blocked_signals(&self, blocked: u64) -> io::Result<()> {
        self.request(libc::PTRACE_SETSIGMASK, size_of_val(&blocked), &raw const blocked as usize)
    }

    /// Writes to the memory of its process, code or not: a thread that stands still is what every kernel asks for that
    /// (`proc_mem.force_override`). To be written are whole words.
    pub(super) fn write(&self, at: Address, bytes: &[u8]) -> io::Result<()> {
        for (number, word) in bytes.chunks(WORD).enumerate() {
            let mut whole = [0; WORD];
            whole[..word.len()].copy_from_slice(word);
            let at = at.0 as usize + number * WORD;
            self.request(libc::PTRACE_POKEDATA, at, usize::from_ne_bytes(whole))?;
        }
        Ok(())
    }

    /// Where the thread keeps what the kernel has to know of its restartable sequences; none if it has none, or the kernel does not
    /// say (before Linux 5.13).
    pub(super) fn restartable_sequences(&self) -> Option<u64> {
        const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;
        // struct ptrace_rseq_configuration: pointer, size and signature, flags and padding.
        let mut configuration = [0_u64; 3];
        let bytes = size_of_val(&configuration);
        self.request(PTRACE_GET_RSEQ_CONFIGURATION, bytes, configuration.as_mut_ptr() as usize).ok()?;
        Some(configuration[0]).filter(|&pointer| pointer != 0)
    }

    /// Whether the program has its system calls dispatched to itself (`PR_SET_SYSCALL_USER_DISPATCH`); none if the kernel does not say
    /// (before Linux 6.4).
    pub(super) fn dispatches_system_calls(&self) -> Option<bool> {
        const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4211;
        // struct ptrace_sud_config: mode, selector, offset, length.
        let mut configuration = [0_u64; 4];
        let bytes = size_of_val(&configuration);
        let at = configuration.as_mut_ptr() as usize;
        self.request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, bytes, at).ok()?;
        Some(configuration[0] != 0)
    }

    /// The request writes or reads no more of this process' memory than what it is given.
    fn request(&self, number: c_uint, address: usize, value: usize) -> io::Result<()> {
        request(number, self.id, address, value)
    }
}

impl Drop for HeldThread {
    fn drop(&mut self) {
        // One that does not stand is let go by the end of this thread.
        if self.stands {
            let _ = self.request(libc::PTRACE_DETACH, 0, self.signal as usize);
        }
    }
}

/// One request. Those used here read or write no more of this process' memory than `address` bytes at `value`, or a structure of
/// registers there.
fn request(number: c_uint, id: pid_t, address: usize, value: usize) -> io::Result<()> {
    // SAFETY: pointers are those of live local variables of the length that the request has; what else it changes is the held thread's.
    let result = unsafe { libc::ptrace(number, id, address, value) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
