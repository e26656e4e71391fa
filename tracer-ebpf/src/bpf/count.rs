//! Counting, with copies of the counters so that CPUs do not share cache lines.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use tracer_ebpf::counter::{Counter, STRIPES};

use super::maps::COUNTERS;

/// The CPU this runs on now; a preempted program may go on on another.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: the helper has no effect.
    unsafe { bpf_get_smp_processor_id() }
}

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    count_many(counter, 1);
}

/// Adds to a counter. Which copy does not matter for the sum, so being preempted here is harmless.
#[inline(always)]
pub fn count_many(counter: Counter, number: u64) {
    if let Some(stripe) = COUNTERS.get(cpu() & (STRIPES - 1)) {
        stripe.add(counter, number);
    }
}
