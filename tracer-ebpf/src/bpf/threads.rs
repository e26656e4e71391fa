//! The outermost allocator call of each thread.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{
    counter::Counter,
    probe::{Cookie, WayOut},
    process::ProcessState,
    slots::WAYS,
    stack::stack_number,
    thread::{InFlight, RECORD_SETS},
    unwind::Frame,
};

use super::{
    arch::{self, UserRegisters, WORD},
    capture,
    count::count,
    maps::{RECORD_OWNERS, RECORDS},
    unwind::Below,
};

/// The current thread's record: nobody else touches it until it is released.
pub struct Record {
    set: u32,
    way: u32,
    record: &'static mut InFlight,
}

/// Threads of one process have neighbouring numbers, so their low bits spread them over the sets as evenly as can be.
#[inline(always)]
fn set_of(thread: u64) -> u32 {
    thread as u32 & (RECORD_SETS - 1)
}

#[inline(always)]
fn record(set: u32, way: u32) -> Option<Record> {
    let pointer = RECORDS.get_ptr_mut(stack_number(set, way & (WAYS as u32 - 1)))?;
    // SAFETY: the slot belongs to the current thread, which runs this program and nothing else.
    Some(Record { set, way, record: unsafe { &mut *pointer } })
}

/// The current thread's record, if it is inside an allocator call.
#[inline(always)]
pub fn current() -> Option<Record> {
    let thread = bpf_get_current_pid_tgid();
    let set = set_of(thread);
    let way = RECORD_OWNERS.get(set)?.find(thread)?;
    record(set, way)
}

/// A record for the current thread, which has none. Counts it when there is no room.
#[inline(always)]
pub fn claim() -> Option<Record> {
    let thread = bpf_get_current_pid_tgid();
    let set = set_of(thread);
    let Some(way) = RECORD_OWNERS.get(set)?.claim(thread) else {
        count(Counter::NoThreadRecord);
        return None;
    };
    record(set, way)
}

impl Record {
    /// What it says.
    #[inline(always)]
    pub fn get(&self) -> &InFlight {
        self.record
    }

    /// Says something else.
    #[inline(always)]
    pub fn set(&mut self, in_flight: InFlight) {
        *self.record = in_flight;
    }

    /// Whether the recorded call is still running, so that what is called now is called by it.
    ///
    /// While a call with a return probe runs, the word at its stack pointer is the address of the kernel's trampoline. A call that was
    /// left by an exception or `longjmp` is below the stack pointer by now, or the word has been overwritten, or it stands in a part of
    /// a frame that was never written: then no walk up the stack comes to it. Some allocators jump from one entry to
    /// another (`realloc` to `malloc`): same stack pointer, and still the trampoline.
    ///
    /// A call whose exits are probed keeps its return address, so that stands in for the trampoline.
    #[inline(always)]
    pub fn encloses(&self, regs: UserRegisters, process: &ProcessState) -> bool {
        let call = *self.get();
        let awaited = match Cookie::from_bits(call.cookie).way_out {
            WayOut::Trampoline => process.trampoline.load(),
            WayOut::Exits | WayOut::SomeExits => call.return_address,
        };
        if regs.sp() > call.sp || arch::read_word(call.sp) != Some(awaited) {
            return false;
        }
        if regs.sp() == call.sp {
            return true;
        }
        // Without a whole walk the word has to do.
        let below = Below { returns_to: call.return_address, awaited, sp: call.sp.wrapping_add(WORD) };
        capture::passes(Frame::first(regs.for_walk()), process, below).unwrap_or(true)
    }

    /// Whether a call of the same function from the same place is recorded, which was left by an exception: its return address
    /// is as it was, so that [`Record::encloses`] takes it for running.
    #[inline(always)]
    pub fn is_repeated_by(&self, cookie: Cookie, regs: UserRegisters) -> bool {
        let call = self.get();
        !matches!(cookie.way_out, WayOut::Trampoline)
            && call.cookie == cookie.to_bits()
            && call.sp == regs.sp()
    }

    /// Gives the record back.
    #[inline(always)]
    pub fn release(self) {
        if let Some(owners) = RECORD_OWNERS.get(self.set) {
            owners.release(self.way);
        }
    }
}
