//! Following: the children of traced processes, and the programs that they execute, get a place among the traced processes before
//! their first instruction.
//!
//! Each program image is a process of its own here, with an index of its own: a process that executes another program ends, and the
//! new one begins, under the same pid.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, generated::bpf_probe_read_kernel},
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use tracer_ebpf::{
    counter::Counter,
    event::{EventKind, ProcessChange, ProcessEvent},
    process::{CodeList, Comm, MAX_PROCESSES, Origin, ProcessIndex, ProcessState, ProcessWindow},
};

use super::{
    count::count,
    maps::{EVENTS, PROCESS_COUNT, PROCESS_INDEX, PROCESSES, live_threads, shares_probes, task_pid},
    processes::{current_index, current_tgid},
};

/// Flags of clone(2).
const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;

/// The current process, whether its window has opened or not: what it makes meanwhile has its window opened with its own.
#[inline(always)]
fn current() -> Option<(ProcessIndex, &'static ProcessState)> {
    let index = current_index()?;
    Some((index, PROCESSES.get(index.into())?))
}

/// The current process has made a task.
#[inline(always)]
pub fn forked(ctx: &RawTracePointContext) -> Option<()> {
    let (task, clone_flags): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    if clone_flags & CLONE_THREAD != 0 {
        return None;
    }
    let (index, parent) = current()?;
    let tgid = read_kernel_word(task.wrapping_add(task_pid()))?;
    if clone_flags & CLONE_VM != 0 {
        // It works in its parent's memory until it executes a program.
        return enter(tgid, index);
    }
    let child = begin(Origin { index, executed: false }, parent, tgid)?;
    debug!(ctx, "process {} was forked: number {}, of number {}", tgid, child.number(), index.number());
    tell(ProcessChange::Forked, child, index)
}

/// The current process has executed a program.
#[inline(always)]
pub fn executed(ctx: &RawTracePointContext) -> Option<()> {
    let (index, process) = current()?;
    let tgid = current_tgid()?;
    debug!(ctx, "process {} executed a program: it was number {}", tgid, index.number());
    let began = begin(Origin { index, executed: true }, process, tgid);
    // A child that worked in its parent's memory leaves it as it is.
    if process.tgid.load() == u64::from(tgid) {
        process.window.store(ProcessWindow::Exec as u64);
    }
    tell(ProcessChange::Executed, began?, index)
}

/// A thread of the current process exits. Whether it is the last one matters only where probes are everybody's.
#[inline(always)]
pub fn exited(task: u64) -> Option<()> {
    if !shares_probes() {
        return None;
    }
    let (index, process) = current()?;
    let [signal, live] = live_threads();
    let signal = read_kernel(task.wrapping_add(signal))?;
    if read_kernel_word(signal.wrapping_add(live))? != 0 {
        return None;
    }
    let tgid = current_tgid()?;
    // From here on the pid can be given to another process.
    let _ = PROCESS_INDEX.remove(tgid);
    if process.tgid.load() != u64::from(tgid) {
        return None;
    }
    process.window.store(ProcessWindow::Exited as u64);
    tell(ProcessChange::Exited, index, index)
}

/// Gives a process the next index; its window is open if that of its origin is. Counts it when there is none left; then it is traced no more.
#[inline(always)]
fn begin(from: Origin, origin: &ProcessState, tgid: u32) -> Option<ProcessIndex> {
    let Some((index, process)) = next_index().and_then(|index| Some((index, PROCESSES.get(index.into())?)))
    else {
        count(Counter::ProcessNotFollowed);
        let _ = PROCESS_INDEX.remove(tgid);
        return None;
    };
    let comm = current_comm();
    process.comm[0].store(comm[0]);
    process.comm[1].store(comm[1]);
    process.from.store(from.to_bits());
    process.opened_ns.store(origin.opened_ns.load());
    process.reports_blocks.store(if from.executed { 0 } else { origin.reports_blocks.load() });
    process.trampoline.store(origin.trampoline.load());
    process.fault_period.store(origin.fault_period.load());
    // A child that was forked has its parent's code.
    let changes = if from.executed { 0 } else { origin.code_changes.load() };
    process.code_changes_seen.store(if from.executed { 0 } else { origin.code_changes_seen.load() });
    process.code_changes.store(changes);
    process.v8.store(if from.executed { 0 } else { origin.v8.load() });
    process.hotspot.store(if from.executed { 0 } else { origin.hotspot.load() });
    for (word, origin) in process.python.iter().zip(&origin.python) {
        word.store(if from.executed { 0 } else { origin.load() });
    }
    process.code.store(if from.executed { CodeList::default().to_bits() } else { origin.code.load() });
    // Without an entry nothing comes from it, so user space must not take it for one that is traced.
    enter(tgid, index)?;
    process.window.store(origin.window.load());
    process.tgid.store(tgid.into());
    Some(index)
}

/// From now on the process has this index. Counts it when there is no room.
#[inline(always)]
fn enter(tgid: u32, index: ProcessIndex) -> Option<()> {
    let entered = PROCESS_INDEX.insert(tgid, u32::from(index), 0).ok();
    if entered.is_none() {
        count(Counter::ProcessNotFollowed);
    }
    entered
}

/// An index that nobody has.
#[inline(always)]
fn next_index() -> Option<ProcessIndex> {
    // Others may take one at the same time, but not as often.
    const TRIES: usize = 32;
    let taken = PROCESS_COUNT.get(0)?;
    for _ in 0..TRIES {
        let index = taken.load();
        if index >= u64::from(MAX_PROCESSES) {
            return None;
        }
        if taken.compare_exchange(index, index + 1) == index {
            return Some(ProcessIndex::new(index as u16));
        }
    }
    None
}

#[inline(always)]
fn tell(change: ProcessChange, process: ProcessIndex, from: ProcessIndex) -> Option<()> {
    let event =
        ProcessEvent { event: EventKind::Process as u8, change: change as u8, process, from, padding: 0 };
    // Without room in the ring buffer the state of the process says so, a moment later.
    EVENTS.output::<ProcessEvent>(event, 0).ok()
}

#[inline(always)]
fn current_comm() -> Comm {
    let Ok(comm) = bpf_get_current_comm() else { return Comm::default() };
    let [a, b, c, d, e, f, g, h, rest @ ..] = comm;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes(rest)]
}

/// Reads a 32-bit number of the kernel's.
#[inline(always)]
fn read_kernel_word(address: u64) -> Option<u32> {
    Some(read_kernel(address)? as u32)
}

/// Reads eight bytes of the kernel's memory.
#[inline(always)]
fn read_kernel(address: u64) -> Option<u64> {
    let mut word = 0_u64;
    // SAFETY: the destination is one word long; the helper refuses what is no readable kernel memory.
    let status = unsafe {
        bpf_probe_read_kernel((&raw mut word).cast(), size_of::<u64>() as u32, address as *const _)
    };
    if status == 0 { Some(word) } else { None }
}
