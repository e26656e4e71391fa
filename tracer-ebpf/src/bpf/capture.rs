//! From registers to the number of a stack: walks it, looks its hash up, and hands its frames to user space once.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{
    event::EventKind,
    process::ProcessState,
    slots::WAYS,
    stack::{Capture, MAX_FRAMES, NO_ROOM, StackHash, StackHeader, stack_number},
    stop::Stop,
    thread::CAPTURE_SETS,
    unwind::Frame,
};

use super::{
    count::cpu,
    maps::{CAPTURE_OWNERS, CAPTURES, EVENTS, STACKS, TOTALS, hash_seed, stack_sets},
    unwind::{Below, walk},
};

/// A capture that belongs to this run of the program.
struct Claimed {
    set: u32,
    way: u32,
}

impl Claimed {
    #[inline(always)]
    fn claim() -> Option<Self> {
        let set = cpu() & (CAPTURE_SETS - 1);
        let way = CAPTURE_OWNERS.get(set)?.claim(1)?;
        Some(Self { set, way })
    }

    #[inline(always)]
    fn number(&self) -> u32 {
        stack_number(self.set, self.way & (WAYS as u32 - 1))
    }

    #[inline(always)]
    fn release(self) {
        if let Some(owners) = CAPTURE_OWNERS.get(self.set) {
            owners.release(self.way);
        }
    }
}

/// Who makes a stack, and where it begins.
#[derive(Clone, Copy)]
pub struct Maker<'a> {
    /// The process' place in the tables.
    pub index: u16,
    /// Its state.
    pub process: &'a ProcessState,
    /// The function that was called.
    pub api: u16,
    /// The innermost frame.
    pub frame: Frame,
    /// The return address of the allocator call that the thread is in; 0 when it is in none.
    pub returns_to: u64,
}

/// The number of a stack. [`NO_ROOM`] when it could not be kept.
#[inline(always)]
pub fn stack(maker: Maker<'_>) -> u32 {
    let Some(claimed) = Claimed::claim() else { return NO_ROOM };
    let number = number(maker, claimed.number()).unwrap_or(NO_ROOM);
    claimed.release();
    number
}

/// Whether a walk from this frame passes the call; none when the walk does not get to the thread's base.
#[inline(always)]
pub fn passes(frame: Frame, process: &ProcessState, call: Below) -> Option<bool> {
    let claimed = Claimed::claim()?;
    let walk = walk(frame, process, call, StackHash::new(0), claimed.number());
    claimed.release();
    let passed = walk.passed == call.sp;
    if passed || walk.stop == Stop::Base as u32 { Some(passed) } else { None }
}

#[inline(always)]
fn number(maker: Maker<'_>, capture: u32) -> Option<u32> {
    let Maker { index, process, api, frame, returns_to } = maker;
    let hash = StackHash::new(hash_seed()).mix(u64::from(index) << 16 | u64::from(api));
    let call = Below { returns_to, awaited: process.trampoline.load(), sp: 0 };
    let walk = walk(frame, process, call, hash, capture);
    let hash = walk.hash.finish();
    let number = place(hash)?;
    let totals = TOTALS.get(number)?;
    if totals.delivered.load() == 0 {
        let header = StackHeader {
            event: EventKind::Stack as u8,
            stop: walk.stop as u8,
            process: index,
            api,
            depth: walk.depth as u16,
            stack: number,
            tid: bpf_get_current_pid_tgid() as u32,
        };
        let capture = CAPTURES.get_ptr_mut(capture)?;
        // SAFETY: `capture` points at an element of CAPTURES that this run has claimed.
        unsafe { (*capture).header = header };
        // A stack that does not get through is tried again when it next allocates.
        if deliver(capture, walk.depth) {
            totals.delivered.store(1);
        }
    }
    Some(number)
}

/// The number of the stack with this hash, which gets one if there is room. There are three sets to choose from, so that they
/// fill evenly, and a stack is looked for in all of them before it is new: some may have been full when it came.
#[inline(always)]
fn place(hash: u64) -> Option<u32> {
    let [first, second, third] = [12, 36, 49].map(|shift| (hash >> shift) as u32 & (stack_sets() - 1));
    find(first, hash)
        .or_else(|| find(second, hash))
        .or_else(|| find(third, hash))
        .or_else(|| claim(first, hash))
        .or_else(|| claim(second, hash))
        .or_else(|| claim(third, hash))
}

#[inline(always)]
fn find(set: u32, hash: u64) -> Option<u32> {
    let way = STACKS.get(set)?.find(hash)?;
    Some(stack_number(set, way))
}

/// Another thread may have claimed a place for the same stack meanwhile.
#[inline(always)]
fn claim(set: u32, hash: u64) -> Option<u32> {
    let way = STACKS.get(set)?.find_or_claim(hash)?;
    Some(stack_number(set, way))
}

#[inline(always)]
fn deliver(capture: *const Capture, depth: u32) -> bool {
    let depth = (depth as usize).min(MAX_FRAMES);
    let length = size_of::<StackHeader>() + depth * size_of::<u64>();
    // SAFETY: the header and the first `depth` frames are within `capture`.
    let bytes = unsafe { core::slice::from_raw_parts(capture.cast::<u8>(), length) };
    EVENTS.output::<[u8]>(bytes, 0).is_ok()
}
