//! The mapping family: system calls that change mappings, streamed to user space.

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_get_ns_current_pid_tgid},
};
use tracer_ebpf::{
    counter::Counter,
    event::{EventKind, MappingCall, MappingEvent, NO_STACK},
    process::ProcessState,
    stack::mapping_api,
    unwind::Frame,
};

use super::{
    arch::{self, UserRegisters},
    calls::open_process,
    capture::{self, Maker},
    count::count,
    maps::{EVENTS, PROCESS_INDEX, pid_namespace},
    threads, unwind,
};

/// The current process, if its window is open.
#[inline(always)]
fn current_process() -> Option<(u16, &'static ProcessState)> {
    let index = current_index()?;
    Some((index as u16, open_process(index)?))
}

/// The number of the current process, if it is traced.
#[inline(always)]
pub fn current_index() -> Option<u32> {
    let tgid = current_tgid()?;
    // SAFETY: entries are written before the window opens and stay.
    unsafe { PROCESS_INDEX.get(tgid) }.copied()
}

/// The number of the current process where user space knows it; none when it is not there.
#[inline(always)]
fn current_tgid() -> Option<u32> {
    let Some((device, inode)) = pid_namespace() else {
        return Some((bpf_get_current_pid_tgid() >> 32) as u32);
    };
    let mut numbers = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the helper writes to `numbers` alone, and is told its size.
    let status = unsafe {
        bpf_get_ns_current_pid_tgid(device, inode, &raw mut numbers, size_of::<bpf_pidns_info>() as u32)
    };
    if status == 0 { Some(numbers.tgid) } else { None }
}

/// Entry of a system call.
#[inline(always)]
pub fn enter() -> Option<()> {
    let regs = UserRegisters::at_system_call();
    let call = arch::mapping_call(regs.system_call())?;
    // The others release nothing, or nothing that is known before they return.
    if !matches!(call, MappingCall::Munmap | MappingCall::Mremap) {
        return None;
    }
    let (index, process) = current_process()?;
    let [start, length, ..] = regs.system_call_arguments();
    unwind::forget_code(process, start, length);
    send(index, process, call, regs, At::Entry)
}

/// Exit of a system call.
#[inline(always)]
pub fn exit() -> Option<()> {
    let regs = UserRegisters::at_system_call();
    let call = arch::mapping_call(regs.system_call())?;
    let (index, process) = current_process()?;
    let allocator_call = threads::current().filter(|record| record.encloses(regs, process));
    let returns_to = allocator_call.map(|record| record.get().return_address);
    send(index, process, call, regs, At::Exit { returns_to })
}

enum At {
    Entry,
    /// The return address of the allocator call that the system call was made in.
    Exit {
        returns_to: Option<u64>,
    },
}

#[inline(always)]
fn send(index: u16, process: &ProcessState, call: MappingCall, regs: UserRegisters, at: At) -> Option<()> {
    let (at_exit, returns_to) = match at {
        At::Entry => (false, None),
        At::Exit { returns_to } => (true, returns_to),
    };
    let result = if at_exit { regs.result() as i64 } else { 0 };
    let gives_memory = at_exit && result > 0 && call as u8 != MappingCall::Munmap as u8;
    let stack = if gives_memory {
        let frame = Frame::first(regs.for_walk());
        capture::stack(Maker {
            index,
            process,
            api: mapping_api(call),
            frame,
            returns_to: returns_to.unwrap_or(0),
        })
    } else {
        NO_STACK
    };
    let Some(mut entry) = EVENTS.reserve::<MappingEvent>(0) else {
        count(Counter::MappingEventDropped);
        return None;
    };
    entry.write(MappingEvent {
        event: EventKind::Mapping as u8,
        call: call as u8,
        at_exit: at_exit.into(),
        in_allocator: returns_to.is_some().into(),
        process: index,
        padding: 0,
        tid: bpf_get_current_pid_tgid() as u32,
        stack,
        // SAFETY: the helper only reads the clock.
        time_ns: unsafe { bpf_ktime_get_ns() },
        args: regs.system_call_arguments(),
        result,
    });
    entry.submit(0);
    Some(())
}
