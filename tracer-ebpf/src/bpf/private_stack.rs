//! Keeps the uprobe programs on the ordinary kernel stack.
//!
//! From Linux 6.13 the verifier gives a program of this kind whose stack is 64 bytes or more a private stack per CPU
//! (`bpf_enable_priv_stack` in kernel/bpf/verifier.c). Uprobe programs are preemptible: a thread that is preempted in one leaves its data
//! on that stack, and the next thread that runs the program on the same CPU overwrites it. The verifier gives no private
//! stack to a program of which some function has a tail call (`check_max_stack_depth`), so each has one that is never taken. A test
//! looks for the private stack's instructions in the machine code of the loaded programs.

use aya_ebpf::{EbpfContext, maps::ProgramArray};

use super::maps::{NO_PROGRAMS, NO_SESSION_PROGRAMS, live_buckets};

/// To be called first by every uprobe program.
#[inline(always)]
pub fn decline<C: EbpfContext>(ctx: &C) {
    call_none_of(&NO_PROGRAMS, ctx);
}

/// To be called first by every uprobe program that sees entry and return.
#[inline(always)]
pub fn decline_in_session<C: EbpfContext>(ctx: &C) {
    call_none_of(&NO_SESSION_PROGRAMS, ctx);
}

#[inline(always)]
fn call_none_of<C: EbpfContext>(programs: &'static ProgramArray, ctx: &C) {
    // Never true: there is at least one bucket. The kernel only looks for the call before it removes dead code.
    if live_buckets() == 0 {
        // SAFETY: the array of programs is empty, so the call falls through.
        unsafe { programs.tail_call(ctx, 0) }
    }
}
