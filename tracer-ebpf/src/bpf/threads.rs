//! The outermost allocator call of each thread.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{
    counter::Counter,
    probe::{Cookie, ReturnProbe},
    process::{ProcessIndex, ProcessState},
    slots::{set_and_way, slot_number},
    thread::{InFlight, record_set},
    unwind::Frame,
};

use super::{
    arch::{self, UserRegisters, WORD},
    capture,
    count::count,
    maps::{RECORD_OWNERS, RECORDS},
    unwind::EnclosingCall,
};

/// The current thread's record: nobody else touches it until it is released.
pub struct Record {
    number: u32,
    record: &'static mut InFlight,
}

#[inline(always)]
fn record(number: u32) -> Option<Record> {
    let pointer = RECORDS.get_ptr_mut(number)?;
    // SAFETY: the slot belongs to the current thread, which runs this program and nothing else.
    Some(Record { number, record: unsafe { &mut *pointer } })
}

/// In place of the number of a record: there is none.
const NO_RECORD: u32 = u32::MAX;

/// The current thread's record, if it is inside an allocator call.
#[inline(always)]
pub fn current() -> Option<Record> {
    record(find_record())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_record() -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let set = record_set(thread);
    let found = RECORD_OWNERS.get(set).and_then(|owners| owners.find(thread));
    found.map_or(NO_RECORD, |way| slot_number(set, way))
}

/// A record for the current thread, which has none. Counts it when there is no room.
#[inline(always)]
pub fn claim() -> Option<Record> {
    record(claim_record())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_record() -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let set = record_set(thread);
    let Some(way) = RECORD_OWNERS.get(set).and_then(|owners| owners.claim(thread)) else {
        count(Counter::NoThreadRecord);
        return NO_RECORD;
    };
    slot_number(set, way)
}

impl Record {
    /// What it says.
    #[inline(always)]
    pub fn get(&self) -> &InFlight {
        self.record
    }

    /// What it says, to be changed.
    #[inline(always)]
    pub fn get_mut(&mut self) -> &mut InFlight {
        self.record
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
    pub fn encloses(&self, regs: UserRegisters, index: ProcessIndex, process: &ProcessState) -> bool {
        let call = *self.get();
        let awaited = match Cookie::from_bits(call.cookie).return_probe {
            ReturnProbe::Trampoline => process.trampoline.load(),
            ReturnProbe::Exits | ReturnProbe::SomeExits => call.return_address,
        };
        if regs.sp() > call.sp || arch::read_word(call.sp) != Some(awaited) {
            return false;
        }
        if regs.sp() == call.sp {
            return true;
        }
        // Without a whole walk the word has to do.
        let call = EnclosingCall { returns_to: call.return_address, awaited, sp: call.sp.wrapping_add(WORD) };
        capture::stack_passes_call(&Frame::first(regs.for_walk()), index, &call)
    }

    /// Whether a call of the same function from the same place is recorded, which was left by an exception: its return address
    /// is as it was, so that [`Record::encloses`] takes it for running.
    #[inline(always)]
    pub fn is_repeated_by(&self, cookie: Cookie, regs: UserRegisters) -> bool {
        let call = self.get();
        !matches!(cookie.return_probe, ReturnProbe::Trampoline)
            && call.cookie == cookie.to_bits()
            && call.sp == regs.sp()
    }

    /// Gives the record back.
    #[inline(always)]
    pub fn release(&self) {
        let (set, way) = set_and_way(self.number);
        if let Some(owners) = RECORD_OWNERS.get(set) {
            owners.release(way);
        }
    }
}
