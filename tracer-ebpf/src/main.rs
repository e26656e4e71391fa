//! The BPF programs: thin entry points; the logic is in the modules of `bpf`.
//!
//! Uprobes on the allocator functions account the malloc family in the kernel, in tables that user space maps. System-call
//! tracepoints stream changes of mappings through the ring buffer. Nothing crosses to user space for an allocation but its stack,
//! once.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "aya's attributes make public functions of their own beside the documented ones"
)]

mod bpf;

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    macros::{raw_tracepoint, tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext},
};

use crate::bpf::{calls, children, exec, faults, mappings, private_stack, understudy, usdt};

/// Entry of a function that gives a block (and may release one: `realloc`).
#[uprobe]
pub fn allocate(ctx: ProbeContext) -> u32 {
    private_stack::decline(&ctx);
    calls::enter(&ctx);
    0
}

/// Its return, at the same place.
#[uretprobe]
pub fn allocated(ctx: RetProbeContext) -> u32 {
    private_stack::decline(&ctx);
    calls::leave(&ctx);
    0
}

/// [`allocate`] and [`allocated`] in one, for probes that are in other processes, too: 1 at the entry says that the return is of no
/// interest.
// Without aya's attribute, which makes a program that returns 0 whatever the function says.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn call(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    private_stack::decline_in_session(&ctx);
    if calls::is_return(&ctx) {
        calls::leave(&RetProbeContext::new(ctx.as_ptr()));
        return 0;
    }
    calls::enter(&ctx).is_none().into()
}

/// An instruction that returns from a function which must not have a return probe.
#[uprobe]
pub fn exited(ctx: ProbeContext) -> u32 {
    private_stack::decline(&ctx);
    calls::exit(&ctx);
    0
}

/// Entry of a function that only releases a block.
#[uprobe]
pub fn release(ctx: ProbeContext) -> u32 {
    private_stack::decline(&ctx);
    calls::release(&ctx);
    0
}

/// A process says that it allocated a block, which it sampled.
#[uprobe]
pub fn usdt_alloc(ctx: ProbeContext) -> u32 {
    private_stack::decline(&ctx);
    usdt::alloc(&ctx);
    0
}

/// A process says that it releases a block that it sampled.
#[uprobe]
pub fn usdt_free(ctx: ProbeContext) -> u32 {
    private_stack::decline(&ctx);
    usdt::free(&ctx);
    0
}

/// Entry of `munmap` and `mremap`: what they release is gone from here on.
#[tracepoint]
pub fn mapping_enter(ctx: TracePointContext) -> u32 {
    mappings::enter(&ctx);
    0
}

/// Exit of `mmap`, `munmap`, `mremap` and `brk`.
#[tracepoint]
pub fn mapping_exit(ctx: TracePointContext) -> u32 {
    mappings::exit(&ctx);
    0
}

/// As [`mapping_enter`], for machines where the tracepoints of single system calls are out of reach: sees every call.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn any_syscall_enter(ctx: RawTracePointContext) -> i32 {
    mappings::enter(&ctx);
    0
}

/// As [`mapping_exit`], for every system call.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn any_syscall_exit(ctx: RawTracePointContext) -> i32 {
    mappings::exit(&ctx);
    0
}

/// A page fault, in the program or in the kernel on its behalf (`read` into memory that was never touched).
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn page_fault(ctx: RawTracePointContext) -> i32 {
    faults::fault(ctx.arg(0), ctx.arg(2));
    0
}

/// A process replaces its program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    if understudy::is_due(&ctx) {
        exec::executed(&ctx);
    }
    0
}

/// A process or thread has been made, and has not run yet.
#[raw_tracepoint(tracepoint = "task_newtask")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    if understudy::is_due(&ctx) {
        children::forked(&ctx);
    }
    0
}

/// A thread exits.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    if understudy::is_due(&ctx) {
        calls::thread_exits();
        children::exited(ctx.arg(0));
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
