//! Has a process make system calls: one of its threads is led aside for half a millisecond, all others go on.
//!
//! - [`mod@stub`]: the machine code that makes them, by which no death of ours leaves the target halfway.
//! - `cave`: where that code goes.
//! - `restart`: how a thread goes on that was interrupted in a system call.
//! - `ptrace`: the requests to the kernel.

mod cave;
mod ptrace;
mod restart;
pub mod stub;

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::FileExt as _,
    thread,
    time::{Duration, Instant},
};

use libc::{pid_t, user_regs_struct};

use self::{
    cave::Cave,
    ptrace::{HeldThread, Stop},
    stub::{Restored, Stub, SystemCall, stub},
};
use crate::{
    model::{Address, AddressRange},
    target::{MappedObject, Target, cgroup},
};

/// So long is tried to find a thread that can be led aside.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long a thread has to stand still: it needs a CPU for that.
const TO_STOP: Duration = Duration::from_millis(100);
/// So long a thread that was led aside has to come back: it waits for a CPU, and for whoever else maps memory.
const TO_RETURN: Duration = Duration::from_secs(5);

/// Why a thread cannot be led aside.
const ENDS: &str = "threads end as they are looked at";

/// Why the calls were not made.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    /// The process has ended meanwhile.
    #[error("it has ended")]
    Ended,
    /// It is stopped by a signal.
    #[error("it is stopped (SIGSTOP): a thread of it has to run, continue it with `kill -CONT`")]
    Stopped,
    /// Its control group is frozen.
    #[error("its control group is frozen: a thread of it has to run, thaw it")]
    Frozen,
    /// Another one traces it.
    #[error("another program traces it (gdb, strace): only one can at a time")]
    Traced,
    /// No thread could be led aside in time.
    #[error("none of its threads could be led aside for {} s: {why}", PATIENCE.as_secs())]
    NoThread {
        /// What was in the way, the last time.
        why: &'static str,
    },
    /// There is no room for the code that makes the calls.
    #[error("there is no room of {bytes} bytes behind its code")]
    NoRoom {
        /// How much is needed.
        bytes: usize,
    },
    /// A filter of system calls that cannot be suspended.
    #[error(
        "its system calls are filtered (seccomp), and the filter cannot be suspended without CAP_SYS_ADMIN and from a process that is filtered \
         itself"
    )]
    Filtered,
    /// The program handles its system calls itself.
    #[error("it handles its system calls itself (PR_SET_SYSCALL_USER_DISPATCH)")]
    Dispatched,
    /// The kernel did not make a call.
    #[error("the kernel refuses it ({0})")]
    Refused(io::Error),
    /// The thread that was led aside did not come back in time. It does so by itself.
    #[error("the thread that was led aside did not come back within {} s", TO_RETURN.as_secs())]
    Late,
    /// The kernel refused a request.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        source: io::Error,
    },
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> NotMade {
    move |source| match source.raw_os_error() {
        Some(libc::ESRCH | libc::ECHILD) => NotMade::Ended,
        _ => NotMade::Io { what, source },
    }
}

/// Makes a process do these calls, all or the first ones up to one that fails. How long the thread was held that was led aside. The code
/// that makes them is not in the pages that they replace.
///
/// # Errors
/// Each says whether something was done: [`NotMade::Refused`] and [`NotMade::Late`] may follow some of the calls, all others none.
pub fn make_calls(
    target: &Target,
    objects: &[MappedObject],
    calls: &[SystemCall],
    replaced: AddressRange,
) -> Result<Duration, NotMade> {
    let memory = target.open_memory().map_err(io_error("its memory cannot be opened"))?;
    let longest = stub(Address(1 << 46), calls, &Restored::longest());
    let bytes = longest.bytes.len();
    let cave = cave::largest(cave::all(objects, &memory), replaced);
    let cave = cave.filter(|cave| cave.bytes >= bytes as u64).ok_or(NotMade::NoRoom { bytes })?;
    // Nothing changes, and it is known that the code can be taken away again when nobody traces the process any more: a kernel may have
    // that for the writing (`proc_mem.force_override=ptrace`).
    memory.write_all_at(&[0], cave.start.0).map_err(io_error("its code cannot be written"))?;
    let deadline = Instant::now() + PATIENCE;
    let mut why = "it has no thread that runs or sleeps";
    loop {
        // In a group of the second version a thread could be led aside, but would not come back.
        if cgroup::is_frozen(target.pid()) {
            return Err(NotMade::Frozen);
        }
        // As many as can be tried soon.
        for thread in threads(target)?.into_iter().take(16) {
            // The kernel lets go of all that a thread holds when that ends: one that does not stand still yet, too.
            let attempt = || -> Result<Result<Duration, &'static str>, NotMade> {
                let since = Instant::now();
                match hold(target, thread, &memory)? {
                    Hold::NotNow(reason) => Ok(Err(reason)),
                    Hold::Held(held) => {
                        let child = None;
                        Injection { target, thread, since, held, memory: &memory, cave, child }
                            .run(calls)
                            .map(Ok)
                    }
                }
            };
            let attempted = thread::scope(|scope| scope.spawn(attempt).join());
            match attempted.unwrap_or(Ok(Err("the thread that holds it panicked")))? {
                Ok(held) => return Ok(held),
                Err(reason) => why = reason,
            }
        }
        if Instant::now() > deadline {
            return Err(NotMade::NoThread { why });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Takes away the code that a tracer has left which was killed, when it has made its calls. Whoever calls [`make_calls`] does this before
/// he looks at what is mapped.
///
/// # Errors
/// When a thread may still be in it.
pub fn clear(target: &Target, objects: &[MappedObject]) -> Result<(), NotMade> {
    let memory = target.open_memory().map_err(io_error("its memory cannot be opened"))?;
    for cave in cave::all(objects, &memory).into_iter().filter(|cave| cave.is_used) {
        wait_until_left(target, cave, &memory)?;
        let zeros = vec![0; usize::try_from(cave.bytes).unwrap_or(0)];
        memory.write_all_at(&zeros, cave.start.0).map_err(io_error("its code cannot be written"))?;
    }
    Ok(())
}

/// Waits until no thread is in the code that a tracer has left. One that was seen elsewhere never comes back: only a tracer leads it there.
fn wait_until_left(target: &Target, cave: Cave, memory: &fs::File) -> Result<(), NotMade> {
    let deadline = Instant::now() + TO_RETURN;
    let mut elsewhere = BTreeSet::new();
    loop {
        let unknown: Vec<pid_t> =
            threads(target)?.into_iter().filter(|thread| !elsewhere.contains(thread)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        for thread in unknown {
            let look = || -> Result<bool, NotMade> {
                let Hold::Held(held) = hold(target, thread, memory)? else { return Ok(false) };
                let registers = held.registers().map_err(io_error("registers cannot be read"))?;
                let going_on = restart::of_interrupted(&registers);
                held.set_registers(&going_on).map_err(io_error("a thread cannot be let go"))?;
                Ok(!cave.has(registers.rip))
            };
            if thread::scope(|scope| scope.spawn(look).join()).unwrap_or(Ok(false))? {
                elsewhere.insert(thread);
            }
        }
        if Instant::now() > deadline {
            return Err(NotMade::Late);
        }
    }
}

/// Its threads; those first that are likely to stand still without any of their calls failing: who sleep in a call that is made again,
/// then who run.
fn threads(target: &Target) -> Result<Vec<pid_t>, NotMade> {
    let pid = target.pid();
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| NotMade::Ended)?.flatten();
    let mut threads: Vec<(u8, pid_t)> = entries
        .filter_map(|entry| {
            let id: pid_t = entry.file_name().to_str()?.parse().ok()?;
            let call = fs::read_to_string(entry.path().join("syscall")).ok()?;
            let number = call.split(' ').next()?.trim().parse::<i64>();
            let rank = match number {
                Ok(number) if restart::can_be_interrupted(number) => 0,
                // It runs.
                Err(_) => 1,
                Ok(_) => 2,
            };
            Some((rank, id))
        })
        .collect();
    if threads.is_empty() && target.has_exited() {
        return Err(NotMade::Ended);
    }
    threads.sort_unstable();
    Ok(threads.into_iter().map(|(_, id)| id).collect())
}

enum Hold {
    /// It stands still, and can be led aside.
    Held(HeldThread),
    /// Another moment or another thread may do.
    NotNow(&'static str),
}

fn hold(target: &Target, thread: pid_t, memory: &fs::File) -> Result<Hold, NotMade> {
    // The thread that it begins is held, too, with the same options.
    let mut options = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACESYSGOOD;
    let Some(is_filtered) = is_filtered(target, thread) else { return Ok(Hold::NotNow(ENDS)) };
    if is_filtered {
        options |= libc::PTRACE_O_SUSPEND_SECCOMP;
    }
    let mut held = match HeldThread::seize(thread, options) {
        Ok(held) => held,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return not_seized(target, thread, is_filtered);
        }
        Err(_) => return Ok(Hold::NotNow(ENDS)),
    };
    held.interrupt().map_err(io_error("a thread cannot be held"))?;
    if let Some(reason) = stand_still(target, thread, &mut held)? {
        return Ok(Hold::NotNow(reason));
    }
    if held.dispatches_system_calls() {
        return Err(NotMade::Dispatched);
    }
    let registers = held.registers().map_err(io_error("registers cannot be read"))?;
    if registers.orig_rax.cast_signed() < 0 && is_in_restartable_sequence(&held, memory, registers.rip) {
        return Ok(Hold::NotNow("a thread is in the middle of a restartable sequence"));
    }
    Ok(Hold::Held(held))
}

/// Whether a filter decides which system calls a thread may make: each has its own. None when the thread has ended.
fn is_filtered(target: &Target, thread: pid_t) -> Option<bool> {
    let status = target.read(&format!("task/{thread}/status")).ok()?;
    Some(field(&status, "Seccomp:").is_some_and(|mode| mode != 0))
}

/// Waits until the thread stands still where no signal is about to come, which may be what the program wants a call interrupted by: one
/// that is, it takes first, and stands still at the beginning of its handler. If it does not, why not.
fn stand_still(
    target: &Target,
    thread: pid_t,
    held: &mut HeldThread,
) -> Result<Option<&'static str>, NotMade> {
    let deadline = Instant::now() + TO_STOP;
    while Instant::now() < deadline {
        match held.wait(deadline) {
            Ok(Stop::Interrupted) if !has_pending_signal(target, thread)? => return Ok(None),
            Ok(Stop::Interrupted) => {}
            Ok(Stop::WholeProcess) => return Err(NotMade::Stopped),
            Ok(Stop::Ended(_)) => return Ok(Some(ENDS)),
            // It is to stand still again as soon as it has taken it.
            Ok(Stop::Signal) => held.interrupt().map_err(io_error("a thread cannot be held"))?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
            Err(error) => return Err(io_error("a thread cannot be waited for")(error)),
        }
        held.resume().map_err(io_error("a thread cannot go on"))?;
    }
    Ok(Some("a thread does not stand still (it waits for a CPU, a disk, or a child of vfork)"))
}

fn not_seized(target: &Target, thread: pid_t, is_filtered: bool) -> Result<Hold, NotMade> {
    let Ok(status) = target.read(&format!("task/{thread}/status")) else {
        return Ok(Hold::NotNow(ENDS));
    };
    let tracer = field(&status, "TracerPid:").filter(|&tracer| tracer != 0);
    // A thread of this process that has tried before is not gone yet: it can be joined before the kernel has taken back what it held.
    let is_other = |tracer: &u64| {
        let exists = |path: String| fs::exists(path).unwrap_or(false);
        exists(format!("/proc/{tracer}")) && !exists(format!("/proc/self/task/{tracer}"))
    };
    match tracer.filter(is_other) {
        Some(_) => Err(NotMade::Traced),
        None if is_filtered && tracer.is_none() => Err(NotMade::Filtered),
        None => Ok(Hold::NotNow(
            "the kernel does not let tracer trace it (Yama's ptrace_scope, AppArmor, SELinux)",
        )),
    }
}

/// A decimal number of `/proc/PID/status`.
fn field(status: &[u8], name: &str) -> Option<u64> {
    text_of(status, name)?.trim().parse().ok()
}

fn text_of<'text>(status: &'text [u8], name: &str) -> Option<&'text str> {
    let text = std::str::from_utf8(status).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// Whether a signal has come that the thread does not block at this moment: some calls block others than the program does.
fn has_pending_signal(target: &Target, thread: pid_t) -> Result<bool, NotMade> {
    let status =
        target.read(&format!("task/{thread}/status")).map_err(io_error("its status cannot be read"))?;
    let signals = |name| {
        text_of(&status, name).and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
    };
    Ok((signals("SigPnd:") | signals("ShdPnd:")) & !signals("SigBlk:") != 0)
}

/// Such a sequence is begun anew by the kernel if its thread is interrupted, which it can only see by where the thread is.
fn is_in_restartable_sequence(held: &HeldThread, memory: &fs::File, instruction: u64) -> bool {
    /// Of `struct rseq`: the sequence that the thread is in, or was.
    const SEQUENCE: u64 = 8;
    /// Of `struct rseq_cs`: where it begins and how long it is; the version and flags are before that.
    const PLACE: u64 = 8;
    let Some(area) = held.restartable_sequences() else { return false };
    let word = |at: u64| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, at).ok().map(|()| u64::from_ne_bytes(bytes))
    };
    let Some(sequence) = word(area.wrapping_add(SEQUENCE)).filter(|&sequence| sequence != 0) else {
        return false;
    };
    let place = word(sequence.wrapping_add(PLACE)).zip(word(sequence.wrapping_add(PLACE + 8)));
    // What cannot be read may be any.
    place.is_none_or(|(start, bytes)| instruction.wrapping_sub(start) < bytes)
}

/// A thread that is led aside.
struct Injection<'a> {
    target: &'a Target,
    thread: pid_t,
    /// When it was asked to stand still.
    since: Instant,
    held: HeldThread,
    memory: &'a fs::File,
    cave: Cave,
    /// The thread that makes the calls.
    child: Option<HeldThread>,
}

impl Injection<'_> {
    fn run(mut self, calls: &[SystemCall]) -> Result<Duration, NotMade> {
        let stopped = self.held.registers().map_err(io_error("registers cannot be read"))?;
        let going_on = restart::going_on(&stopped);
        let restored = self.restored(&going_on)?;
        let stub = stub(self.cave.start, calls, &restored);
        self.memory
            .write_all_at(&stub.bytes, self.cave.start.0)
            .map_err(io_error("its code cannot be written"))?;
        let mut aside = going_on;
        (aside.rip, aside.orig_rax) = (stub.entry.0, u64::MAX);
        self.held.set_registers(&aside).map_err(io_error("a thread cannot be led aside"))?;
        // No signal is to be taken on the way: its handler would run, and the call that it was to interrupt begin anew. Not before this: the
        // stub unblocks them.
        let blocked = self.held.set_blocked_signals(u64::MAX);
        blocked.map_err(io_error("the mask of signals cannot be changed"))?;
        // From here on the thread comes back by itself, whatever becomes of this one.
        let deadline = Instant::now() + TO_RETURN;
        self.bring_back(&stub, &stopped, deadline)?;
        let held = self.since.elapsed();
        let result = self.wait_for_child(deadline);
        if !matches!(result, Err(NotMade::Late)) {
            self.memory
                .write_all_at(&vec![0; stub.bytes.len()], self.cave.start.0)
                .map_err(io_error("its code cannot be written"))?;
        }
        result.map(|()| held)
    }

    fn restored(&self, registers: &user_regs_struct) -> Result<Restored, NotMade> {
        let blocked = self.held.blocked_signals().map_err(io_error("the mask of signals cannot be read"))?;
        Ok(Restored {
            instruction: registers.rip,
            rax: registers.rax,
            rcx: registers.rcx,
            rdx: registers.rdx,
            rsi: registers.rsi,
            rdi: registers.rdi,
            r8: registers.r8,
            r10: registers.r10,
            r11: registers.r11,
            blocked,
        })
    }

    /// Lets the thread run until it has left its last call in the stub, and gives it back its registers there: those with which it stood
    /// still in the first place, so the kernel decides as ever whether the call that was interrupted is made again. A signal may have come.
    fn bring_back(
        &mut self,
        stub: &Stub,
        stopped: &user_regs_struct,
        deadline: Instant,
    ) -> Result<(), NotMade> {
        let mut has_left = false;
        loop {
            self.held.resume_to_system_call().map_err(io_error("a thread cannot go on"))?;
            match self.held.wait(deadline) {
                Ok(Stop::Began(id)) => {
                    let mut child = HeldThread::running(id);
                    let stop = child.wait(deadline).map_err(late("a thread cannot be waited for"))?;
                    if !matches!(stop, Stop::Ended(_)) {
                        child.resume().map_err(io_error("a thread cannot go on"))?;
                    }
                    self.child = Some(child);
                }
                Ok(Stop::SystemCall) => {
                    let registers = self.held.registers().map_err(io_error("registers cannot be read"))?;
                    // It is there twice: as it enters the call, and as it leaves it with the result.
                    if registers.rip == stub.left.0 && registers.rax == 0 {
                        // Only a thread that was interrupted makes calls again.
                        self.held.interrupt().map_err(io_error("a thread cannot be held"))?;
                        has_left = true;
                    }
                }
                Ok(Stop::Interrupted | Stop::WholeProcess) if has_left => {
                    let has_signal = has_pending_signal(self.target, self.thread)?;
                    let registers = if has_signal { *stopped } else { restart::of_interrupted(stopped) };
                    self.held.set_registers(&registers).map_err(io_error("a thread cannot be led back"))?;
                    return self.held.let_go().map_err(io_error("a thread cannot be let go"));
                }
                Ok(Stop::Ended(_)) => return Err(NotMade::Ended),
                Ok(_) => {}
                Err(error) => return Err(late("a thread cannot be waited for")(error)),
            }
        }
    }

    fn wait_for_child(&mut self, deadline: Instant) -> Result<(), NotMade> {
        let Some(child) = &mut self.child else {
            return Err(NotMade::Refused(io::Error::other("it may not begin another thread")));
        };
        loop {
            match child.wait(deadline) {
                Ok(Stop::Ended(Some(0))) => return Ok(()),
                Ok(Stop::Ended(Some(error))) => {
                    return Err(NotMade::Refused(io::Error::from_raw_os_error(error)));
                }
                Ok(Stop::Ended(None)) => return Err(NotMade::Ended),
                Ok(_) => child.resume().map_err(io_error("a thread cannot go on"))?,
                Err(error) => return Err(late("a thread cannot be waited for")(error)),
            }
        }
    }
}

fn late(what: &'static str) -> impl Fn(io::Error) -> NotMade {
    move |error| match error.kind() {
        io::ErrorKind::TimedOut => NotMade::Late,
        _ => io_error(what)(error),
    }
}
