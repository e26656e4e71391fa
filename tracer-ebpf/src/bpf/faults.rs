//! Page faults that make memory resident, in growth mode: streamed as the mapping family is, one of many when they are many.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use tracer_ebpf::{
    event::{MappingCall, MappingEvent},
    stack::mapping_api,
    unwind::Frame,
};

use super::{
    arch::{self, UserRegisters},
    capture::{self, CaptureRequest},
    mappings,
    processes::current_process,
};

/// A page fault at an address.
#[inline(always)]
pub fn fault(address: u64, error_code: u64) -> Option<()> {
    if !arch::is_first_touch(address, error_code) {
        return None;
    }
    let (index, process) = current_process()?;
    let period = process.fault_period.load();
    // SAFETY: the helper only makes a number.
    if period == 0 || u64::from(unsafe { bpf_get_prandom_u32() }) & (period - 1) != 0 {
        return None;
    }
    let regs = UserRegisters::at_system_call();
    let frame = Frame::first(regs.for_walk());
    let api = mapping_api(MappingCall::PageFault);
    let stack = capture::stack(&CaptureRequest { frame, returns_to: 0, process: index, api });
    mappings::submit(MappingEvent {
        call: MappingCall::PageFault as u8,
        at_exit: 1,
        process: index,
        stack,
        args: [address, period, 0, 0, 0, 0],
        ..mappings::now()
    })
}
