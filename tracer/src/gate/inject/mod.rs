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
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use libc::{pid_t, user_regs_struct};

use self::{
    cave::{ALIGNMENT, Cave},
    ptrace::{HeldThread, Stop, WORD},
    stub::{HEADER, Left, MARK_DONE, MARK_UNUSED, Restored, Stub, SystemCall, is_unused, stub},
};
use crate::{
    model::{Address, AddressRange},
    target::{MappedObject, Target, cgroup},
};

/// So long is tried to find a thread that can be led aside.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The same, for what would stay as it is if none were found: an open gate.
pub const PATIENCE_TO_CLOSE: Duration = Duration::from_secs(10);
/// So long a thread has to stand still: it needs a CPU for that.
const TO_STOP: Duration = Duration::from_millis(100);
/// So long a thread that was led aside has to come back: it waits for a CPU, and for whoever else maps memory.
const TO_RETURN: Duration = Duration::from_secs(5);

/// So long a thread is waited for that can be held without its noticing.
const TO_FIND_BEST: Duration = Duration::from_millis(500);

/// Why a thread cannot be led aside now; another moment or another thread may do.
type NotNow = &'static str;

const THREADS_END: &str = "threads end as they are looked at";

/// Why the calls were not made.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    /// The process has ended meanwhile, or executes another program.
    #[error("it has ended, or executes another program")]
    Ended,
    /// Where the code was to go is something else by now.
    #[error("it has unloaded or changed a file's code meanwhile")]
    Changed,
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
    #[error("none of its threads could be led aside for {} s: {why}", patience.as_secs())]
    NoThread {
        /// How long was tried.
        patience: Duration,
        /// What was in the way, the last time.
        why: &'static str,
    },
    /// There is no room for the code that makes the calls.
    #[error("there is no room of {bytes} bytes behind the code of its program, its loader or its C library")]
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
/// Each says whether something was done: [`NotMade::Refused`], [`NotMade::Late`] and [`NotMade::Io`] may follow some of the calls, all
/// others none.
pub fn make_calls(
    target: &Target,
    objects: &[MappedObject],
    calls: &[SystemCall],
    replaced: AddressRange,
    patience: Duration,
) -> Result<Duration, NotMade> {
    let memory = target.open_memory().map_err(io_error("its memory cannot be opened"))?;
    let bytes = longest(calls).bytes.len();
    let cave = cave::largest(cave::all(target, objects, &memory), replaced);
    let cave = cave.filter(|cave| cave.bytes >= bytes as u64).ok_or(NotMade::NoRoom { bytes })?;
    let began = Instant::now();
    let mut why = "it has no thread that runs or sleeps";
    loop {
        // In a group of the second version a thread could be led aside, but would not come back.
        if cgroup::is_frozen(target.pid()) {
            return Err(NotMade::Frozen);
        }
        // As many as can be tried soon.
        for Thread { id, .. } in threads(target)?.into_iter().take(16) {
            // Now, since others were tried meanwhile.
            let does = what_it_does(target, id).ok();
            if does.is_none_or(|does| does == Does::Other) && began.elapsed() < TO_FIND_BEST {
                continue;
            }
            let attempt = || match hold(target, id, &memory)? {
                Ok((held, stopped)) => {
                    let injection =
                        Injection { target, thread: id, held, memory: &memory, cave, child: None };
                    injection.run(calls, &stopped).map(Ok)
                }
                Err(not_now) => Ok(Err(not_now)),
            };
            match in_thread(attempt)? {
                Ok(held) => return Ok(held),
                Err(not_now) => why = not_now,
            }
        }
        if began.elapsed() > patience {
            return Err(NotMade::NoThread { patience, why });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Does something in a thread of its own: the kernel lets go of all that it holds when that ends, threads that do not stand still yet,
/// too. Those that do wait for it, so it goes first.
fn in_thread<T: Send>(what: impl FnOnce() -> Result<T, NotMade> + Send) -> Result<T, NotMade> {
    let first = || {
        ptrace::go_first();
        what()
    };
    thread::scope(|scope| scope.spawn(first).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Whether such calls can be made even after some tracers were killed in the middle, each of which takes room.
///
/// # Errors
/// When there is not enough.
pub fn check_room(
    target: &Target,
    objects: &[MappedObject],
    calls: &[SystemCall],
    replaced: AddressRange,
) -> Result<(), NotMade> {
    /// The tracer that opens, the one that closes, and two in between.
    const TRACERS: u64 = 4;
    let memory = target.open_memory().map_err(io_error("its memory cannot be opened"))?;
    let longest = longest(calls);
    let tracers = cave::stubs(&cave::all(target, objects, &memory), replaced, &longest);
    let bytes = longest.bytes.len() + (TRACERS - 1) as usize * longest.kept as usize;
    if tracers < TRACERS { Err(NotMade::NoRoom { bytes }) } else { Ok(()) }
}

/// The longest code for these calls.
fn longest(calls: &[SystemCall]) -> Stub {
    stub(Address(1 << 46), calls, &Restored::longest())
}

/// Has the code that a tracer has left which was killed make no calls any more, and waits until those that it has begun are made. Whoever
/// calls [`make_calls`] does this before he looks at what is mapped.
///
/// # Errors
/// When a thread may still be in it.
pub fn clear(target: &Target, objects: &[MappedObject]) -> Result<(), NotMade> {
    let memory = target.open_memory().map_err(io_error("its memory cannot be opened"))?;
    for cave in cave::all(target, objects, &memory).into_iter().filter(|cave| cave.is_used) {
        let mut header = [0; HEADER];
        memory.read_exact_at(&mut header, cave.start.0).map_err(io_error("its code cannot be read"))?;
        let write = |what: &(dyn Fn(&HeldThread) -> io::Result<()> + Sync)| {
            write(target, &memory, cave.start, &header, what)
        };
        if is_unused(&header) {
            let bytes = usize::try_from(cave.bytes).unwrap_or(0);
            write(&|held| take_away(held, cave.start, bytes))?;
            continue;
        }
        let Some(left) = Left::parse(&header) else { continue };
        let (at, jump) = left.defused;
        let mut word = [0; WORD];
        memory.read_exact_at(&mut word, cave.start.0 + at).map_err(io_error("its code cannot be read"))?;
        word[..jump.len()].copy_from_slice(&jump);
        write(&|held| held.write(Address(cave.start.0 + at), &word))?;
        wait_until_left(target, cave)?;
        let kept = left.kept.next_multiple_of(ALIGNMENT);
        let calls = vec![0; usize::try_from(cave.bytes.saturating_sub(kept)).unwrap_or(0)];
        write(&|held| {
            held.write(Address(cave.start.0 + kept), &calls)?;
            held.write(cave.start, MARK_DONE)
        })?;
    }
    Ok(())
}

/// Writes while one of the process' threads stands still, where these bytes are.
fn write(
    target: &Target,
    memory: &fs::File,
    at: Address,
    bytes: &[u8],
    what: &(dyn Fn(&HeldThread) -> io::Result<()> + Sync),
) -> Result<(), NotMade> {
    let deadline = Instant::now() + TO_RETURN;
    while Instant::now() < deadline {
        for Thread { id, .. } in threads(target)? {
            let written = in_thread(|| {
                while_it_stands(target, id, |held, _| {
                    check_bytes(memory, at, bytes)?;
                    what(held).map_err(io_error("its code cannot be written"))
                })
            })?;
            if written.is_some() {
                return Ok(());
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(NotMade::Late)
}

/// Whether the process still executes the program whose memory was opened, and has these bytes there; while one of its threads stands
/// still, since only then what that writes goes there.
fn check_bytes(memory: &fs::File, at: Address, bytes: &[u8]) -> Result<(), NotMade> {
    let mut found = vec![0; bytes.len()];
    memory.read_exact_at(&mut found, at.0).map_err(|_| NotMade::Ended)?;
    if found == bytes { Ok(()) } else { Err(NotMade::Changed) }
}

/// Writes a stub. Whoever is killed meanwhile leaves one of which is known that nobody executes it.
fn put(held: &HeldThread, at: Address, stub: &Stub) -> io::Result<()> {
    let (mark, rest) = stub.bytes.split_at(MARK_UNUSED.len());
    let second = Address(at.0 + WORD as u64);
    held.write(second, &MARK_UNUSED[WORD..])?;
    held.write(at, &MARK_UNUSED[..WORD])?;
    held.write(Address(at.0 + mark.len() as u64), rest)?;
    held.write(second, &mark[WORD..])
}

/// Takes away a stub that nobody executes any more.
fn take_away(held: &HeldThread, at: Address, bytes: usize) -> io::Result<()> {
    let mark = MARK_UNUSED.len();
    held.write(at, MARK_UNUSED)?;
    held.write(Address(at.0 + mark as u64), &vec![0; bytes - mark])?;
    held.write(at, &vec![0; mark])
}

/// Waits until no thread is in the code that a tracer has left. One that was seen elsewhere may come back to it, from the handler of a
/// signal, but begins no thread there any more.
fn wait_until_left(target: &Target, cave: Cave) -> Result<(), NotMade> {
    /// A list of threads that is read while some end may lack others.
    const LISTS: u32 = 3;
    let deadline = Instant::now() + TO_RETURN;
    let mut elsewhere = BTreeSet::new();
    let mut lists = 0;
    while lists < LISTS {
        let all = threads(target)?.into_iter().map(|thread| thread.id);
        let unknown: Vec<pid_t> = all.filter(|thread| !elsewhere.contains(thread)).collect();
        lists = if unknown.is_empty() { lists + 1 } else { 0 };
        for thread in unknown {
            let place = |_: &HeldThread, stopped: &user_regs_struct| Ok(stopped.rip);
            let stands = in_thread(|| while_it_stands(target, thread, place))?;
            if stands.is_some_and(|place| !cave.has(place)) {
                elsewhere.insert(thread);
            }
        }
        if Instant::now() > deadline {
            return Err(NotMade::Late);
        }
    }
    Ok(())
}

/// Has a thread stand still for a moment, wherever it is. None when it does not in time.
fn while_it_stands<T>(
    target: &Target,
    thread: pid_t,
    what: impl FnOnce(&HeldThread, &user_regs_struct) -> Result<T, NotMade>,
) -> Result<Option<T>, NotMade> {
    let Ok(mut held) = seize(target, thread)? else { return Ok(None) };
    match held.wait(Instant::now() + TO_STOP) {
        Ok(Stop::Ended(_)) => Ok(None),
        Ok(stop) => {
            let stopped = held.registers().map_err(io_error("registers cannot be read"))?;
            let done = what(&held, &stopped);
            if stop == Stop::Interrupted {
                lead_back(target, thread, &held, &stopped)?;
            }
            done.map(Some)
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(io_error("a thread cannot be waited for")(error)),
    }
}

/// A thread that was asked to stand still is to go on as if it had not been. A signal that comes decides by itself what becomes of the
/// call in which it was interrupted.
fn lead_back(
    target: &Target,
    thread: pid_t,
    held: &HeldThread,
    stopped: &user_regs_struct,
) -> Result<(), NotMade> {
    let registers = match Signals::of(target, thread)?.coming() {
        0 => restart::of_interrupted(stopped),
        _ => *stopped,
    };
    held.set_registers(&registers).map_err(io_error("a thread cannot be led back"))
}

/// A thread that executes the program's code.
struct Thread {
    does: Does,
    id: pid_t,
}

/// What a thread does, those first that are likely to stand still without noticing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Does {
    /// It sleeps in a call that is made again.
    Sleep,
    Run,
    Other,
}

/// Its threads that execute its code, in the order in which they are tried.
fn threads(target: &Target) -> Result<Vec<Thread>, NotMade> {
    let pid = target.pid();
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| NotMade::Ended)?.flatten();
    let mut threads: Vec<Thread> = entries
        .filter_map(|entry| {
            let id: pid_t = entry.file_name().to_str()?.parse().ok()?;
            // To be interrupted would end what such a one does for the program.
            if target.is_worker(id) {
                return None;
            }
            Some(Thread { does: what_it_does(target, id).ok()?, id })
        })
        .collect();
    if threads.is_empty() && target.has_exited() {
        return Err(NotMade::Ended);
    }
    threads.sort_unstable_by_key(|thread| (thread.does, thread.id));
    Ok(threads)
}

/// By `/proc/PID/syscall`: `running`, or the call's number and arguments, the stack's place and the instruction's.
fn what_it_does(target: &Target, thread: pid_t) -> io::Result<Does> {
    let call = fs::read_to_string(format!("/proc/{}/task/{thread}/syscall", target.pid()))?;
    let mut words = call.split_whitespace();
    let Some(Ok(number)) = words.next().map(str::parse) else { return Ok(Does::Run) };
    let mut argument = || {
        let digits = words.next()?.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    };
    let arguments = std::array::from_fn(|_| argument().unwrap_or(0));
    Ok(if restart::can_be_interrupted(number, arguments) { Does::Sleep } else { Does::Other })
}

/// Takes hold of a thread, and asks it to stand still.
fn seize(target: &Target, thread: pid_t) -> Result<Result<HeldThread, NotNow>, NotMade> {
    match HeldThread::seize(thread) {
        Ok(held) => {
            held.interrupt().map_err(io_error("a thread cannot be held"))?;
            Ok(Ok(held))
        }
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => not_seized(target, thread).map(Err),
        Err(_) => Ok(Err(THREADS_END)),
    }
}

/// Has a thread stand still where it can be led aside, and the registers with which it did. Nothing else changes for it, nor for the
/// threads that it begins.
fn hold(
    target: &Target,
    thread: pid_t,
    memory: &fs::File,
) -> Result<Result<(HeldThread, user_regs_struct), NotNow>, NotMade> {
    let deadline = Instant::now() + TO_STOP;
    let held = loop {
        let mut held = match seize(target, thread)? {
            Ok(held) => held,
            Err(not_now) => return Ok(Err(not_now)),
        };
        if let Some(not_now) = stand_still(&mut held, Instant::now() + TO_STOP)? {
            return Ok(Err(not_now));
        }
        if Signals::of(target, thread)?.coming() == 0 {
            break held;
        }
        // It may be what the program wants a call interrupted by, and whoever is killed while he hands it on takes it along. So the
        // thread is let go, and asked again as soon as it has taken it: it has a CPU then.
        drop(held);
        let since = Instant::now();
        loop {
            if Instant::now() > deadline {
                return Ok(Err("a signal is about to come"));
            }
            match Signals::of(target, thread) {
                Err(_) => return Ok(Err(THREADS_END)),
                Ok(signals) if signals.coming() == 0 => break,
                Ok(_) => ptrace::pause_since(since),
            }
        }
    };
    let stopped = held.registers().map_err(io_error("registers cannot be read"))?;
    if !is_in_64_bit_code(&stopped, memory) {
        return Ok(Err("a thread executes 32-bit code"));
    }
    // Whoever is killed from here on lets it go on so.
    held.set_registers(&restart::of_interrupted(&stopped))
        .map_err(io_error("registers cannot be written"))?;
    if stopped.orig_rax.cast_signed() < 0 && is_in_restartable_sequence(&held, memory, stopped.rip) {
        return Ok(Err("a thread is in the middle of a restartable sequence"));
    }
    Ok(Ok((held, stopped)))
}

/// Whether this is 64-bit code, and so is what has made the system call in which the thread was interrupted: a process may have both.
fn is_in_64_bit_code(registers: &user_regs_struct, memory: &fs::File) -> bool {
    /// The selectors of Linux, and of Linux as a paravirtual guest of Xen.
    const CODE: [u64; 2] = [0x33, 0xe033];
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let mut called_by = [0; 2];
    let is_syscall = |at: u64| memory.read_exact_at(&mut called_by, at).is_ok_and(|()| called_by == SYSCALL);
    CODE.contains(&registers.cs) && restart::made_again_by(registers).is_none_or(is_syscall)
}

/// Whether a filter decides which system calls a thread may make: each has its own. None when the thread has ended.
fn is_filtered(target: &Target, thread: pid_t) -> Option<bool> {
    let status = target.read(&format!("task/{thread}/status")).ok()?;
    Some(field(&status, "Seccomp:").is_some_and(|mode| mode != 0))
}

/// Waits until the thread stands still. If it does not, why not. A signal that came before it was asked to it takes first.
fn stand_still(held: &mut HeldThread, deadline: Instant) -> Result<Option<NotNow>, NotMade> {
    while Instant::now() < deadline {
        match held.wait(deadline) {
            Ok(Stop::Interrupted) => return Ok(None),
            Ok(Stop::WholeProcess) => return Err(NotMade::Stopped),
            Ok(Stop::Ended(_)) => return Ok(Some(THREADS_END)),
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

/// Why the kernel did not let a thread be seized.
fn not_seized(target: &Target, thread: pid_t) -> Result<NotNow, NotMade> {
    let Ok(status) = target.read(&format!("task/{thread}/status")) else { return Ok(THREADS_END) };
    let tracer = field(&status, "TracerPid:").filter(|&tracer| tracer != 0);
    // A thread of this process that has tried before is not gone yet: it can be joined before the kernel has taken back what it held.
    let is_other = |tracer: &u64| {
        let exists = |path: String| fs::exists(path).unwrap_or(false);
        exists(format!("/proc/{tracer}")) && !exists(format!("/proc/self/task/{tracer}"))
    };
    match tracer.filter(is_other) {
        Some(_) => Err(NotMade::Traced),
        None => Ok("the kernel does not let tracer trace it (Yama's ptrace_scope, AppArmor, SELinux)"),
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

/// The signals of a thread, one bit each.
struct Signals {
    /// Those that have come, and are not taken yet.
    pending: u64,
    /// Those that it blocks at this moment: some calls block others than the program does.
    blocked: u64,
    /// Those for which the program has a handler. The kernel keeps the others, too, as long as the thread is traced.
    caught: u64,
}

impl Signals {
    fn of(target: &Target, thread: pid_t) -> Result<Self, NotMade> {
        let status =
            target.read(&format!("task/{thread}/status")).map_err(io_error("its status cannot be read"))?;
        let signals = |name| {
            text_of(&status, name).and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
        };
        Ok(Self {
            pending: signals("SigPnd:") | signals("ShdPnd:"),
            blocked: signals("SigBlk:"),
            caught: signals("SigCgt:"),
        })
    }

    /// Those whose handlers are called as soon as the thread goes on.
    const fn coming(&self) -> u64 {
        self.pending & self.caught & !self.blocked
    }
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
    held: HeldThread,
    memory: &'a fs::File,
    cave: Cave,
    /// The thread that makes the calls.
    child: Option<HeldThread>,
}

impl Injection<'_> {
    /// `stopped` are the registers with which it stood still.
    fn run(mut self, calls: &[SystemCall], stopped: &user_regs_struct) -> Result<Duration, NotMade> {
        let signals = Signals::of(self.target, self.thread)?;
        let led_aside = self.lead_aside(calls, stopped, &signals);
        if led_aside.is_err() {
            lead_back(self.target, self.thread, &self.held, stopped)?;
        }
        let stub = led_aside?;
        // From here on the thread comes back by itself, whatever becomes of this one.
        let deadline = Instant::now() + TO_RETURN;
        self.bring_back(&stub, stopped, signals.blocked, deadline)?;
        let held = self.held.since().elapsed();
        self.wait_for_child(&stub, deadline)?;
        Ok(held)
    }

    /// If that fails, the thread goes on where it was, if it is led back there.
    fn lead_aside(
        &self,
        calls: &[SystemCall],
        stopped: &user_regs_struct,
        signals: &Signals,
    ) -> Result<Stub, NotMade> {
        // Who handles its system calls itself does so by the handler of a signal.
        let may_dispatch = signals.caught & 1 << (libc::SIGSYS - 1) != 0;
        if self.held.dispatches_system_calls().unwrap_or(may_dispatch) {
            return Err(NotMade::Dispatched);
        }
        self.prepare()?;
        let going_on = restart::going_on(stopped);
        let restored = self.restored(&going_on)?;
        let stub = stub(self.cave.start, calls, &restored);
        check_bytes(self.memory, self.cave.start, &vec![0; stub.bytes.len()])?;
        put(&self.held, self.cave.start, &stub).map_err(io_error("its code cannot be written"))?;
        let mut aside = going_on;
        (aside.rip, aside.orig_rax) = (stub.entry.0, u64::MAX);
        self.held.set_registers(&aside).map_err(io_error("a thread cannot be led aside"))?;
        // No signal is to be taken on the way: its handler would run, and the call that it was to interrupt begin anew. Not before this: the
        // stub unblocks them.
        let blocked = self.held.set_blocked_signals(u64::MAX);
        blocked.map_err(io_error("the mask of signals cannot be changed"))?;
        Ok(stub)
    }

    /// From now on the thread that it begins is held, too, with the same options.
    fn prepare(&self) -> Result<(), NotMade> {
        let is_filtered = is_filtered(self.target, self.thread).ok_or(NotMade::Ended)?;
        let suspend = if is_filtered { libc::PTRACE_O_SUSPEND_SECCOMP } else { 0 };
        let options =
            libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_TRACESYSGOOD | suspend;
        self.held.set_options(options).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) if is_filtered => NotMade::Filtered,
            _ => io_error("a thread cannot be led aside")(error),
        })
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
    /// still in the first place, so the kernel decides as ever whether the call that was interrupted is made again. A signal may have come
    /// meanwhile: one of those that were `blocked` then does not interrupt the call.
    fn bring_back(
        &mut self,
        stub: &Stub,
        stopped: &user_regs_struct,
        blocked: u64,
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
                    let registers = match Signals::of(self.target, self.thread)?.coming() {
                        0 => restart::of_interrupted(stopped),
                        coming if coming & !blocked == 0 => restart::going_on(stopped),
                        _ => *stopped,
                    };
                    self.held.set_registers(&registers).map_err(io_error("a thread cannot be led back"))?;
                    return self.held.let_go().map_err(io_error("a thread cannot be let go"));
                }
                // It does not end by itself there: its process does, or executes another program, and waits for the other thread, too.
                Ok(Stop::Ending | Stop::Ended(_)) => return Err(NotMade::Ended),
                Ok(_) => {}
                Err(error) => return Err(late("a thread cannot be waited for")(error)),
            }
        }
    }

    /// Until it has made the calls. Then nobody is in the code any more, and it is taken away.
    fn wait_for_child(&mut self, stub: &Stub, deadline: Instant) -> Result<(), NotMade> {
        let (at, bytes) = (self.cave.start, stub.bytes.len());
        let Some(child) = &mut self.child else {
            let header = &stub.bytes[..HEADER];
            write(self.target, self.memory, at, header, &|held| take_away(held, at, bytes))?;
            return Err(NotMade::Refused(io::Error::other("it may not begin another thread")));
        };
        loop {
            match child.wait(deadline) {
                Ok(Stop::Ended(Some(0))) => return Ok(()),
                Ok(Stop::Ended(Some(error))) => {
                    return Err(NotMade::Refused(io::Error::from_raw_os_error(error)));
                }
                Ok(Stop::Ended(None)) => return Err(NotMade::Ended),
                Ok(stop) => {
                    if stop == Stop::Ending {
                        take_away(child, at, bytes).map_err(io_error("its code cannot be written"))?;
                    }
                    child.resume().map_err(io_error("a thread cannot go on"))?;
                }
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
