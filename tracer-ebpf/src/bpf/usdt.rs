//! Blocks that the process itself samples and reports by USDT probes: the third source of blocks beside returns and exits. What it does
//! not tell is not seen: there is no call to follow, and nothing that is left out.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_ktime_get_ns, generated::bpf_get_attach_cookie},
    programs::ProbeContext,
};
use tracer_ebpf::{
    counter::Counter,
    live::{Block, BlockKey},
    process::ProcessState,
    sampling::Weight,
    unwind::Frame,
    usdt::{Argument, Location, UsdtCookie},
};

use super::{
    arch::{self, UserRegisters},
    capture::{self, CaptureRequest},
    count::count,
    live,
    maps::{USDT_ARGUMENTS, sampling, shares_probes, size_is_tracked},
    processes::{current_index, open_process},
    threads,
};

/// `otel_memory:alloc(ptr, size, weight)`.
#[inline(always)]
pub fn alloc(ctx: &ProbeContext) -> Option<()> {
    let (cookie, process, regs) = told(ctx)?;
    if process.reports_blocks.load() == 0 {
        process.reports_blocks.store(1);
    }
    let (Some(address), Some(size), Some(weight)) =
        (argument(&cookie, 0, regs), argument(&cookie, 1, regs), argument(&cookie, 2, regs))
    else {
        count(Counter::UnreadableResult);
        return None;
    };
    if !size_is_tracked(size) {
        count(Counter::Filtered);
        return None;
    }
    let Some(key) = BlockKey::new(cookie.process, address) else {
        count(Counter::UnreadableResult);
        return None;
    };
    // The call in which it first reports a block may have been seen by a probe of the function, too.
    if shares_probes()
        && let Some(seen) = live::take(key)
    {
        live::freed(&seen);
    }
    let frame = Frame::first(regs.for_walk());
    let request = CaptureRequest { frame, returns_to: 0, process: cookie.process, api: cookie.api };
    let stack = capture::stack(&request);
    // SAFETY: the helper only reads the clock.
    let born_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(process.opened_ns.load());
    let block = Block { size, born_ns, stack, objects: chosen_objects(size, weight), ..Block::default() };
    if live::insert(key, block) {
        live::allocated_of_sample(&block);
    }
    Some(())
}

/// How many objects a block stands for, unless its size says the same: then its process samples as it was told to, and the
/// block has room in the live table.
#[inline(always)]
fn chosen_objects(size: u64, weight: u64) -> u64 {
    let as_told =
        !sampling().keeps_every_one() && Weight::of(size.max(1), live::objects(size)).bytes == weight;
    if as_told { 0 } else { Weight::objects_of(size, weight) }
}

/// `otel_memory:free(ptr)`.
#[inline(always)]
pub fn free(ctx: &ProbeContext) -> Option<()> {
    let (cookie, _, regs) = told(ctx)?;
    let key = argument(&cookie, 0, regs).and_then(|address| BlockKey::new(cookie.process, address))?;
    match live::take(key) {
        Some(block) => live::freed_of_sample(&block),
        // It was allocated before the window.
        None => count(Counter::UnmatchedFree),
    }
    Some(())
}

/// Whose probe this is, if its window is open and it is not inside of a call that is followed: that one accounts the block.
#[inline(always)]
fn told(ctx: &ProbeContext) -> Option<(UsdtCookie, &'static ProcessState, UserRegisters)> {
    // SAFETY: the helper reads the cookie of the probe whose context this is.
    let mut cookie = UsdtCookie::from_bits(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    if shares_probes() {
        cookie.process = current_index()?;
    }
    let process = open_process(cookie.process)?;
    let regs = UserRegisters::at_probe(ctx.regs);
    if let Some(record) = threads::current()
        && record.encloses(regs, cookie.process, process)
    {
        count(Counter::Nested);
        return None;
    }
    Some((cookie, process, regs))
}

/// The value of an argument; none when it cannot be read.
#[inline(always)]
fn argument(cookie: &UsdtCookie, number: usize, regs: UserRegisters) -> Option<u64> {
    let argument: Argument = USDT_ARGUMENTS.get(cookie.arguments.into())?.get(number)?;
    let raw = match argument.location {
        Location::Constant(value) => value as u64,
        Location::Register(register) => regs.by_place(register),
        Location::Memory { base, index, scale, displacement } => {
            let index = index.map_or(0, |index| regs.by_place(index) << (scale & 3));
            let address = regs.by_place(base).wrapping_add(index).wrapping_add(displacement as i64 as u64);
            arch::read_word(address)?
        }
    };
    Some(argument.value(raw))
}
