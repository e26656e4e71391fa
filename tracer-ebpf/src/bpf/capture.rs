//! From registers to the number of a stack: walks it, looks its hash up, and hands its frames to user space once.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{
    event::EventKind,
    process::ProcessIndex,
    slots::{set_and_way, slot_number},
    stack::{MAX_WORDS, StackHash, StackHeader, StackId},
    stop::Stop,
    thread::CAPTURE_SETS,
    unwind::Frame,
};

use super::{
    count::cpu,
    maps::{CAPTURE_OWNERS, CAPTURES, EVENTS, PROCESSES, STACKS, TOTALS, hash_seed, stack_sets},
    unwind::{EnclosingCall, walk},
};

/// In place of the number of a capture: all of them are taken.
const NO_CAPTURE: u32 = u32::MAX;

/// Claims a capture for this run of the program.
///
/// A global function, like all that choose one of several slots: what the verifier knows of their results is "some number",
/// where it would follow the rest of the program once for each slot.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_capture() -> u32 {
    let set = cpu() & (CAPTURE_SETS - 1);
    let claimed = CAPTURE_OWNERS.get(set).and_then(|owners| owners.claim(1));
    claimed.map_or(NO_CAPTURE, |way| slot_number(set, way))
}

#[inline(always)]
fn release_capture(number: u32) {
    let (set, way) = set_and_way(number);
    if let Some(owners) = CAPTURE_OWNERS.get(set) {
        owners.release(way);
    }
}

/// What a stack is made of, and where it begins. It holds no references, so that global functions can take it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CaptureRequest {
    /// The innermost frame.
    pub frame: Frame,
    /// The return address of the allocator call that the thread is in; 0 when it is in none.
    pub returns_to: u64,
    /// The process' place in the tables.
    pub process: ProcessIndex,
    /// The function that was called.
    pub api: u16,
}

/// The number of a stack. [`StackId::NO_ROOM`] when it could not be kept.
#[inline(always)]
pub fn stack(request: &CaptureRequest) -> StackId {
    StackId::new(capture_stack(request))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn capture_stack(request: *const CaptureRequest) -> u32 {
    if request.is_null() {
        return StackId::NO_ROOM.number();
    }
    // SAFETY: the only caller passes a request; the verifier sees to its size.
    let request = unsafe { &*request };
    let capture = claim_capture();
    if capture == NO_CAPTURE {
        return StackId::NO_ROOM.number();
    }
    let number = number(request, capture).unwrap_or(StackId::NO_ROOM);
    release_capture(capture);
    number.number()
}

/// Whether a walk from this frame passes the call, as far as can be seen: `true` when the walk does not get to the thread's base.
#[inline(always)]
pub fn stack_passes_call(frame: &Frame, process: ProcessIndex, call: &EnclosingCall) -> bool {
    walk_passes(frame, process.into(), call) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_passes(frame: *const Frame, process: u32, call: *const EnclosingCall) -> u32 {
    if frame.is_null() || call.is_null() {
        return 1;
    }
    // SAFETY: the only caller passes a frame and a call; the verifier sees to their sizes.
    let (frame, call) = unsafe { (&*frame, &*call) };
    let Some(process) = PROCESSES.get(process) else { return 1 };
    let capture = claim_capture();
    if capture == NO_CAPTURE {
        return 1;
    }
    let walk = walk(frame, process, call, StackHash::new(0), capture);
    let passes = walk.is_none_or(|walk| walk.passed == call.sp || walk.stop != Stop::Base as u32);
    release_capture(capture);
    passes.into()
}

#[inline(always)]
fn number(request: &CaptureRequest, capture: u32) -> Option<StackId> {
    let &CaptureRequest { ref frame, returns_to, process: index, api } = request;
    let process = PROCESSES.get(index.into())?;
    let hash = StackHash::new(hash_seed()).mix(u64::from(index) << 16 | u64::from(api));
    let call = EnclosingCall { returns_to, awaited: process.trampoline.load(), sp: 0 };
    let walk = walk(frame, process, &call, hash, capture)?;
    let stack = StackId::new(place(walk.hash.finish()));
    if stack == StackId::NO_ROOM {
        return None;
    }
    let totals = TOTALS.get(stack.number())?;
    if totals.delivered.load() == 0 {
        let taken = CAPTURES.get_ptr_mut(capture)?;
        // In place: programs have little stack.
        // SAFETY: `taken` points at an element of CAPTURES that this run has claimed.
        let header = unsafe { &mut (*taken).header };
        header.event = EventKind::Stack as u8;
        header.stop = walk.stop as u8;
        header.process = index;
        header.api = api;
        header.words = walk.words as u16;
        header.stack = stack;
        header.tid = bpf_get_current_pid_tgid() as u32;
        header.code_changes = walk.code.changes;
        header.generation = walk.code.generation;
        header.last_is_unknown = walk.code.last_is_unknown;
        header.padding = 0;
        // A stack that does not get through is tried again when it next allocates.
        if deliver(capture, walk.words) != 0 {
            totals.delivered.store(1);
        }
    }
    Some(stack)
}

/// The number of the stack with this hash, which gets one if there is room; [`StackId::NO_ROOM`] otherwise. There are three sets to choose from,
/// so that they fill evenly, and a stack is looked for in all of them before it is new: some may have been full when it came.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn place(hash: u64) -> u32 {
    let [first, second, third] = [12, 36, 49].map(|shift| (hash >> shift) as u32 & (stack_sets() - 1));
    find(first, hash)
        .or_else(|| find(second, hash))
        .or_else(|| find(third, hash))
        .or_else(|| claim(first, hash))
        .or_else(|| claim(second, hash))
        .or_else(|| claim(third, hash))
        .unwrap_or(StackId::NO_ROOM.number())
}

#[inline(always)]
fn find(set: u32, hash: u64) -> Option<u32> {
    let way = STACKS.get(set)?.find(hash)?;
    Some(slot_number(set, way))
}

/// Another thread may have claimed a place for the same stack meanwhile.
#[inline(always)]
fn claim(set: u32, hash: u64) -> Option<u32> {
    let way = STACKS.get(set)?.find_or_claim(hash)?;
    Some(slot_number(set, way))
}

/// Hands the frames of a capture to user space; 0 when there is no room.
///
/// A global function: before Linux 6.8 the verifier forgets the bound of a number that the compiler keeps on the stack and reads
/// again, and refuses the length. Here it stays in a register.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn deliver(capture: u32, words: u32) -> u32 {
    let Some(capture) = CAPTURES.get_ptr_mut(capture) else { return 0 };
    let words = (words as usize).min(MAX_WORDS);
    let length = size_of::<StackHeader>() + words * size_of::<u64>();
    // SAFETY: the header and the first `words` words are within `capture`.
    let bytes = unsafe { core::slice::from_raw_parts(capture.cast::<u8>().cast_const(), length) };
    EVENTS.output::<[u8]>(bytes, 0).is_ok().into()
}
