//! The malloc family: entry and return of allocator functions.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_attach_cookie, bpf_get_func_ip, bpf_get_prandom_u32},
    },
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    counter::Counter,
    live::{Block, BlockKey},
    probe::{Arg, Cookie, ResultPlace, ReturnProbe, Signature},
    process::ProcessState,
    sampling::OBJECT,
    size::saturating_product,
    thread::{Fate, InFlight},
    unwind::{Frame, Registers, Via},
};

use super::{
    arch::{self, UserRegisters, WORD},
    capture::{self, CaptureRequest},
    count::{count, count_many},
    live,
    maps::{PROCESSES, sampling, shares_probes, size_is_tracked},
    processes::{current_index, open_process},
    threads::{self, Record},
};

/// The cookie of the probe. Where a probe is everybody's, the current process belongs in it; none when that is not traced.
#[inline(always)]
fn cookie<C: EbpfContext>(ctx: &C) -> Option<Cookie> {
    // SAFETY: the helper reads the cookie of the probe whose context this is.
    let cookie = Cookie::from_bits(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    if !shares_probes() {
        return Some(cookie);
    }
    Some(Cookie { process: current_index()?, ..cookie })
}

/// Whether a probe that is at entry and return sees a return: at the entry the kernel stands where the probe is.
#[inline(always)]
pub fn is_return(ctx: &ProbeContext) -> bool {
    // SAFETY: the helper reads the context of the probe, and gives the place of the probe.
    let probed = unsafe { bpf_get_func_ip(ctx.as_ptr()) };
    UserRegisters::at_probe(ctx.regs).ip() != probed
}

/// Whether the process reports its blocks itself. A probe that is everybody's is in its code, too.
#[inline(always)]
fn reports_blocks(process: &ProcessState) -> bool {
    shares_probes() && process.reports_blocks.load() != 0
}

/// Releases what a call releases, if it was accounted before the process told of its blocks.
#[inline(always)]
fn forget_old(cookie: Cookie, regs: UserRegisters) -> Option<()> {
    let key = BlockKey::new(cookie.process, regs.argument(cookie.signature.old?))?;
    live::freed(&live::take(key)?);
    Some(())
}

/// Entry of an allocating function: remembers the call, and releases what it releases.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) -> Option<()> {
    let cookie = cookie(ctx)?;
    let process = open_process(cookie.process)?;
    let regs = UserRegisters::at_probe(ctx.regs);
    if reports_blocks(process) {
        forget_old(cookie, regs);
        return None;
    }

    let mut record = match threads::current() {
        Some(record)
            if !record.is_repeated_by(cookie, regs) && record.encloses(regs, cookie.process, process) =>
        {
            count(Counter::Nested);
            return None;
        }
        Some(stale) => {
            if belongs_to(stale.get(), process) {
                abandon(stale.get());
            }
            stale
        }
        None => threads::claim()?,
    };
    // In place: programs have little stack.
    let call = record.get_mut();
    call.sp = regs.sp();
    call.return_address = arch::read_word(regs.sp()).unwrap_or(0);
    call.cookie = cookie.to_bits();
    call.opened_ns = process.opened_ns.load();
    call.arguments = regs.arguments();
    let Signature { size, count: elements, old, .. } = cookie.signature;
    let size = size.map_or(0, |arg| call.argument(arg));
    let size = elements.map_or(size, |arg| saturating_product(size, call.argument(arg)));
    call.size = size;
    call.fate = fate(size) as u32;
    // Released now: another thread can get the address before this call returns.
    let old_key = old.and_then(|arg| BlockKey::new(cookie.process, call.argument(arg)));
    call.old_key = old_key.map_or(0, BlockKey::to_bits);
    call.old_unknown = 0;
    if let Some(key) = old_key
        && !live::take_to(key, &mut call.old)
    {
        call.old_key = 0;
        call.old_unknown = 1;
    }
    Some(())
}

/// What becomes of a block.
///
/// Also of one that is left out the call is remembered until it returns: what it calls must not be taken for another allocation.
#[inline(always)]
fn fate(size: u64) -> Fate {
    if !size_is_tracked(size) {
        return Fate::Filtered;
    }
    if sampling().keeps_every_one() {
        return Fate::Kept;
    }
    // SAFETY: the helper only makes a number.
    let random = unsafe { bpf_get_prandom_u32() };
    if is_kept(size, random) != 0 { Fate::Kept } else { Fate::Unsampled }
}

/// Whether a block goes into the sample.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_kept(size: u64, random: u32) -> u32 {
    sampling().keeps(size, random).into()
}

/// Whether a call was entered in the window that is open now. What it released is unknown to any other.
#[inline(always)]
fn belongs_to(call: &InFlight, process: &ProcessState) -> bool {
    call.opened_ns == process.opened_ns.load()
}

/// A call never returned. What it was to release is gone from the table, so it counts as released.
#[inline(always)]
fn abandon(call: &InFlight) {
    // Every return is seen, so it did not give a block.
    if matches!(Cookie::from_bits(call.cookie).return_probe, ReturnProbe::Exits) {
        fail(call);
        return;
    }
    count(Counter::NeverReturned);
    if call.old_key != 0 {
        live::freed(&call.old);
    }
}

/// The current thread exits, and a call that it is in with it. A block that it made was never handed to the program, so nothing is
/// lost; what it was to release is gone. The record is another's from here on.
#[inline(always)]
pub fn thread_exits() -> Option<()> {
    let record = threads::current()?;
    let call = record.get();
    let process = PROCESSES.get(Cookie::from_bits(call.cookie).process.into());
    if process.is_some_and(|process| belongs_to(call, process)) && call.old_key != 0 {
        live::freed(&call.old);
    }
    record.release();
    Some(())
}

/// Return of an allocating function: accounts the block.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) -> Option<()> {
    let cookie = cookie(ctx)?;
    let regs = UserRegisters::at_probe(ctx.regs);
    let record = threads::current()?;
    let call = record.get();
    // Calls inside the outermost one return here too.
    if call.cookie != cookie.to_bits() || regs.sp() != call.sp.wrapping_add(WORD) {
        return None;
    }
    // The address in `ip` is the one that the allocator function returns to.
    end(&record, cookie, regs.for_walk(), regs)
}

/// An instruction that returns from an allocating function without a return probe, or from another that it may end in.
#[inline(always)]
pub fn exit(ctx: &ProbeContext) -> Option<()> {
    let regs = UserRegisters::at_probe(ctx.regs);
    let record = threads::current()?;
    let call = record.get();
    let cookie = Cookie::from_bits(call.cookie);
    if matches!(cookie.return_probe, ReturnProbe::Trampoline)
        || regs.sp() != call.sp
        || arch::read_word(call.sp) != Some(call.return_address)
    {
        return None;
    }
    let caller = Registers { ip: call.return_address, sp: call.sp.wrapping_add(WORD), bp: regs.bp() };
    end(&record, cookie, caller, regs)
}

/// The recorded call has ended, and its caller goes on with these registers.
#[inline(always)]
fn end(record: &Record, cookie: Cookie, caller: Registers, regs: UserRegisters) -> Option<()> {
    let call = record.get();
    let process = PROCESSES.get(cookie.process.into())?;
    if !belongs_to(call, process) {
        record.release();
        return None;
    }
    match new_block(call, cookie.signature.result, regs) {
        NewBlock::At(address) => {
            release_old_block(call);
            if call.fate == Fate::Kept as u32 {
                account(cookie, process, call, address, caller);
            } else if call.fate == Fate::Unsampled as u32 {
                count(Counter::Unsampled);
            } else {
                count(Counter::Filtered);
            }
        }
        NewBlock::Failed => fail(call),
        NewBlock::Unreadable => {
            release_old_block(call);
            count(Counter::UnreadableResult);
        }
    }
    record.release();
    Some(())
}

enum NewBlock {
    At(u64),
    Failed,
    Unreadable,
}

#[inline(always)]
fn new_block(call: &InFlight, place: ResultPlace, regs: UserRegisters) -> NewBlock {
    let result = regs.result();
    match place {
        ResultPlace::Register if result == 0 => NewBlock::Failed,
        ResultPlace::Register => NewBlock::At(result),
        ResultPlace::PointedAtByArg0 if result as u32 != 0 => NewBlock::Failed,
        ResultPlace::PointedAtByArg0 => {
            arch::read_word(call.argument(Arg::new(0))).map_or(NewBlock::Unreadable, NewBlock::At)
        }
    }
}

/// The call released the old block.
#[inline(always)]
fn release_old_block(call: &InFlight) {
    if call.old_key != 0 {
        live::freed(&call.old);
    } else if call.old_unknown != 0 {
        count(Counter::UnmatchedFree);
    }
}

/// The call gave no block. `realloc(p, 0)` has freed `p` then; any other failure leaves it as it was.
#[inline(always)]
fn fail(call: &InFlight) {
    let had_old = call.old_key != 0 || call.old_unknown != 0;
    if had_old && call.size == 0 {
        release_old_block(call);
        return;
    }
    count(Counter::Failed);
    if let Some(key) = BlockKey::from_bits(call.old_key) {
        live::insert(key, call.old);
    }
}

/// Puts the new block in the table, under its stack.
#[inline(always)]
fn account(cookie: Cookie, process: &ProcessState, call: &InFlight, address: u64, caller: Registers) {
    let Some(key) = BlockKey::new(cookie.process, address) else {
        count(Counter::UnreadableResult);
        return;
    };
    let frame = Frame { registers: caller, via: Via::Table };
    let request = CaptureRequest { frame, returns_to: 0, process: cookie.process, api: cookie.api };
    let stack = capture::stack(&request);
    // SAFETY: the helper only reads the clock.
    let born_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(process.opened_ns.load());
    let block = Block { size: call.size, born_ns, stack, ..Block::default() };
    if !sampling().keeps_every_one() {
        count_many(Counter::Sampled, OBJECT);
    }
    if live::insert(key, block) {
        live::allocated(&block);
    }
}

/// Entry of a function that only releases a block.
#[inline(always)]
pub fn release(ctx: &ProbeContext) -> Option<()> {
    let cookie = cookie(ctx)?;
    let process = open_process(cookie.process)?;
    let regs = UserRegisters::at_probe(ctx.regs);
    let key = BlockKey::new(cookie.process, regs.argument(cookie.signature.old?))?;
    if let Some(record) = threads::current()
        && record.encloses(regs, cookie.process, process)
    {
        count(Counter::Nested);
        return None;
    }
    match live::take(key) {
        Some(block) => live::freed(&block),
        // What it did not sample.
        None if reports_blocks(process) => {}
        None => count(Counter::UnmatchedFree),
    }
    Some(())
}
