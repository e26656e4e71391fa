//! From registers to the number of a stack: walks it, looks its hash up, and hands its frames to user space once.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_loop};
use core::ffi::c_void;
use tracer_ebpf::{
    event::EventKind,
    slots::WAYS,
    stack::{Capture, MAX_FRAMES, NO_ROOM, StackHash, StackHeader, stack_number},
    stop::Stop,
    thread::CAPTURE_SETS,
};

use super::{
    arch::{self, UserRegisters},
    count::cpu,
    maps::{CAPTURE_OWNERS, CAPTURES, EVENTS, STACKS, TOTALS, hash_seed, stack_sets},
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
    fn capture(&self) -> Option<*mut Capture> {
        CAPTURES.get_ptr_mut(stack_number(self.set, self.way & (WAYS as u32 - 1)))
    }

    #[inline(always)]
    fn release(self) {
        if let Some(owners) = CAPTURE_OWNERS.get(self.set) {
            owners.release(self.way);
        }
    }
}

/// The number of the stack that has these registers. [`NO_ROOM`] when it could not be kept.
#[inline(always)]
pub fn stack(regs: UserRegisters, process: u16, api: u16) -> u32 {
    let Some(claimed) = Claimed::claim() else { return NO_ROOM };
    let number = claimed.capture().and_then(|capture| number(regs, process, api, capture)).unwrap_or(NO_ROOM);
    claimed.release();
    number
}

#[inline(always)]
fn number(regs: UserRegisters, process: u16, api: u16, capture: *mut Capture) -> Option<u32> {
    let walk = walk(regs, process, api, capture);
    let hash = walk.hash.finish();
    let set = (hash >> 16) as u32 & (stack_sets() - 1);
    let way = STACKS.get(set)?.find_or_claim(hash)?;
    let number = stack_number(set, way);
    let totals = TOTALS.get(number)?;
    if totals.delivered.load() == 0 {
        let header = StackHeader {
            event: EventKind::Stack as u8,
            stop: walk.stop,
            process,
            api,
            depth: walk.depth as u16,
            stack: number,
            tid: bpf_get_current_pid_tgid() as u32,
        };
        // SAFETY: `capture` points at an element of CAPTURES that this run has claimed.
        unsafe { (*capture).header = header };
        // A stack that does not get through is tried again when it next allocates.
        if deliver(capture, walk.depth) {
            totals.delivered.store(1);
        }
    }
    Some(number)
}

#[inline(always)]
fn deliver(capture: *const Capture, depth: u32) -> bool {
    let depth = (depth as usize).min(MAX_FRAMES);
    let length = size_of::<StackHeader>() + depth * size_of::<u64>();
    // SAFETY: the header and the first `depth` frames are within `capture`.
    let bytes = unsafe { core::slice::from_raw_parts(capture.cast::<u8>(), length) };
    EVENTS.output::<[u8]>(bytes, 0).is_ok()
}

/// A walk up the stack.
struct Walk {
    ip: u64,
    sp: u64,
    bp: u64,
    hash: StackHash,
    capture: *mut Capture,
    depth: u32,
    stop: u8,
}

#[inline(always)]
fn walk(regs: UserRegisters, process: u16, api: u16, capture: *mut Capture) -> Walk {
    let mut walk = Walk {
        ip: regs.ip(),
        sp: regs.sp(),
        bp: regs.bp(),
        hash: StackHash::new(hash_seed()).mix(u64::from(process) << 16 | u64::from(api)),
        capture,
        depth: 0,
        stop: Stop::TooDeep as u8,
    };
    // SAFETY: the callback has the signature that the helper asks for, and `walk` outlives the call.
    unsafe {
        bpf_loop(MAX_FRAMES as u32, walk_frame as *mut c_void, (&raw mut walk).cast(), 0);
    }
    walk.hash = walk.hash.mix(u64::from(walk.stop));
    walk
}

/// Records one frame and moves to its caller; 1 ends the walk.
extern "C" fn walk_frame(index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: `bpf_loop` passes the pointer it was given.
    let walk = unsafe { &mut *walk };
    let index = index as usize;
    if index >= MAX_FRAMES {
        return 1;
    }
    // SAFETY: the index is within the frames of a capture that this run has claimed.
    unsafe { (&raw mut (*walk.capture).frames).cast::<u64>().add(index).write(walk.ip) };
    walk.hash = walk.hash.mix(walk.ip);
    walk.depth = index as u32 + 1;
    match step_frame_pointer(walk) {
        Ok(()) => 0,
        Err(stop) => {
            walk.stop = stop as u8;
            1
        }
    }
}

/// `(ip, sp, bp) = (*(bp + 8), bp + 16, *bp)`
#[inline(always)]
fn step_frame_pointer(walk: &mut Walk) -> Result<(), Stop> {
    if walk.bp == 0 {
        return Err(Stop::Base);
    }
    if walk.bp < walk.sp {
        return Err(Stop::FramePointerLost);
    }
    let Some([bp, ip]) = arch::read_words::<2>(walk.bp) else { return Err(Stop::FramePointerLost) };
    if ip == 0 {
        return Err(Stop::Base);
    }
    walk.sp = walk.bp.wrapping_add(16);
    walk.bp = bp;
    walk.ip = ip;
    Ok(())
}
