//! The mapping family: system calls that change mappings, streamed to user space.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
};
use tracer_ebpf::{
    counter::Counter,
    event::{EventKind, MappingCall, MappingEvent},
    mapping_call::Stretch,
    process::ProcessIndex,
    stack::{StackId, mapping_api},
    unwind::Frame,
};

use super::{
    arch::{self, UserRegisters},
    capture::{self, CaptureRequest},
    count::count,
    maps::EVENTS,
    processes::current_process,
    threads, understudy, unwind,
};

/// Entry of a system call.
#[inline(always)]
pub fn enter(ctx: &impl EbpfContext) -> Option<()> {
    let regs = UserRegisters::at_system_call();
    let call = arch::mapping_call(regs.system_call())?;
    if !understudy::is_due(ctx) {
        return None;
    }
    let arguments = regs.system_call_arguments();
    let (released, maps_code) = (call.released(arguments), call.maps_code(arguments));
    if released[0].length | released[1].length == 0 && !maps_code {
        return None;
    }
    let (index, process) = current_process()?;
    // Before the code is there, and again when it is: whoever reads the mappings between two equal counts has read those of that count.
    if maps_code {
        process.code_changes.add(1);
    }
    forget_code(index, released);
    match call {
        MappingCall::Munmap | MappingCall::Mremap => send(index, call, regs, At::Entry),
        _ => None,
    }
}

#[inline(always)]
fn forget_code(process: ProcessIndex, released: [Stretch; 2]) {
    let [named, moved_over] = released;
    unwind::forget_code(process, named.start, named.length);
    unwind::forget_code(process, moved_over.start, moved_over.length);
}

/// Exit of a system call.
#[inline(always)]
pub fn exit(ctx: &impl EbpfContext) -> Option<()> {
    let regs = UserRegisters::at_system_call();
    let call = arch::mapping_call(regs.system_call())?;
    if !understudy::is_due(ctx) {
        return None;
    }
    let (index, process) = current_process()?;
    // User space may have looked after the entry, before the memory was gone.
    let arguments = regs.system_call_arguments();
    forget_code(index, call.released(arguments));
    if call.maps_code(arguments) {
        process.code_changes.add(1);
    }
    let allocator_call = threads::current().filter(|record| record.encloses(regs, index, process));
    let returns_to = allocator_call.map(|record| record.get().return_address);
    send(index, call, regs, At::Exit { returns_to })
}

enum At {
    Entry,
    /// The return address of the allocator call that the system call was made in.
    Exit {
        returns_to: Option<u64>,
    },
}

#[inline(always)]
fn send(index: ProcessIndex, call: MappingCall, regs: UserRegisters, at: At) -> Option<()> {
    let (at_exit, returns_to) = match at {
        At::Entry => (false, None),
        At::Exit { returns_to } => (true, returns_to),
    };
    let result = if at_exit { regs.result() as i64 } else { 0 };
    let gives_memory = at_exit && result > 0 && call as u8 != MappingCall::Munmap as u8;
    let stack = if gives_memory {
        let frame = Frame::first(regs.for_walk());
        let returns_to = returns_to.unwrap_or(0);
        capture::stack(&CaptureRequest { frame, returns_to, process: index, api: mapping_api(call) })
    } else {
        StackId::NONE
    };
    submit(MappingEvent {
        call: call as u8,
        at_exit: at_exit.into(),
        in_allocator: returns_to.is_some().into(),
        process: index,
        stack,
        args: regs.system_call_arguments(),
        result,
        ..now()
    })
}

/// An event of the current thread at this moment, of which nothing else is known.
#[inline(always)]
pub fn now() -> MappingEvent {
    MappingEvent {
        event: EventKind::Mapping as u8,
        call: 0,
        at_exit: 0,
        in_allocator: 0,
        process: ProcessIndex::default(),
        padding: 0,
        tid: bpf_get_current_pid_tgid() as u32,
        stack: StackId::NONE,
        // SAFETY: the helper only reads the clock.
        time_ns: unsafe { bpf_ktime_get_ns() },
        args: [0; 6],
        result: 0,
    }
}

/// Hands an event to user space. Counts it when there is no room.
#[inline(always)]
pub fn submit(event: MappingEvent) -> Option<()> {
    let Some(mut entry) = EVENTS.reserve::<MappingEvent>(0) else {
        count(Counter::MappingEventDropped);
        return None;
    };
    entry.write(event);
    entry.submit(0);
    Some(())
}
