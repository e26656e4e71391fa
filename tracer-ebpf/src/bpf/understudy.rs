//! Programs on tracepoints, twice: what the kernel leaves a program out of, its understudy does.
//!
//! While a thread runs a program on a CPU, the kernel leaves that program out for every other thread there. Up to Linux 6.19 no other
//! thread runs meanwhile. Later kernels run programs on tracepoints with preemption on, so a thread can be preempted in one. The same
//! program is then loaded and attached once more, with a cookie: this understudy runs right after it, in the same thread, and sees
//! by a mark whether there is anything left to do. Both are left out of the same event only if two threads are preempted, one in each.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
};
use tracer_ebpf::counter::Counter;

use super::{
    count::count,
    maps::{DONE, has_understudies},
};

/// Whether it is for this program to handle the event. The mark comes first, so that what cannot be marked is left to the understudy.
#[inline(always)]
pub fn is_due(ctx: &impl EbpfContext) -> bool {
    if !has_understudies() {
        return true;
    }
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the helper only reads what this program was attached with.
    let is_understudy = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } != 0;
    if is_understudy {
        let is_done = DONE.remove(thread).is_ok();
        if !is_done {
            count(Counter::DoneByUnderstudy);
        }
        return !is_done;
    }
    let is_marked = DONE.insert(thread, 1, 0).is_ok();
    if !is_marked {
        count(Counter::LeftToUnderstudy);
    }
    is_marked
}
