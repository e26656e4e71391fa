//! Keeps programs on tracepoints from being preempted.
//!
//! Until Linux 6.19 the kernel runs them with preemption off. From 7.0 (raw tracepoints) and 7.2 (those of single system calls) on a thread can
//! be preempted in one, and until it goes on the kernel leaves that program out for every other thread on that CPU. Such
//! kernels have functions by which a program turns preemption off itself. Others may not even have calls of them in a
//! program, so what is here calls helpers that do nothing, and the loader puts those functions in their place.

use aya_ebpf::helpers::{bpf_get_numa_node_id, bpf_jiffies64};

/// Calls a function that is not to be preempted.
#[inline(always)]
pub fn off<T>(function: impl FnOnce() -> T) -> T {
    // SAFETY: both helpers only give a number.
    unsafe { bpf_get_numa_node_id() };
    let result = function();
    // SAFETY: as above.
    unsafe { bpf_jiffies64() };
    result
}
