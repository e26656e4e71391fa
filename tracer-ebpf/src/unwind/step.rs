//! From a frame to its caller.

use super::rule::{Rule, kind, saved};
use crate::stop::Stop;

/// The memory of the thread that is walked.
pub trait Memory {
    /// The 8 bytes at `address`, or `None` when they cannot be read. Any address may be asked for.
    fn read(&self, address: u64) -> Option<u64>;
}

/// The registers that a walk needs, by their x86_64 names without the `r`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, in code that has one; any other value elsewhere.
    pub bp: u64,
}

/// How the walk came to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// It is the frame that the walk began with.
    Start,
    /// A signal interrupted it.
    Signal,
    /// The table of its callee.
    Table,
    /// The frame pointer of its callee.
    FramePointer,
}

/// A frame of the stack: the registers as they are while it runs (the first), or as they will be when its callee
/// returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Its registers.
    pub registers: Registers,
    /// How the walk found it.
    pub via: Via,
}

impl Frame {
    /// The frame that a walk begins with: the registers of a stopped thread.
    #[must_use]
    #[inline(always)]
    pub const fn first(registers: Registers) -> Self {
        Self { registers, via: Via::Start }
    }

    /// The address by which to look up the frame's function, table and line. A return address may be the first of the
    /// *next* function (after a call that never returns), so callers are looked up one byte before it.
    #[must_use]
    #[inline(always)]
    pub const fn lookup_address(&self) -> u64 {
        match self.via {
            Via::Start | Via::Signal => self.registers.ip,
            Via::Table | Via::FramePointer => self.registers.ip.wrapping_sub(1),
        }
    }

    /// What user space gets to know of the frame: an address of which the byte before lies in the frame's function.
    #[must_use]
    #[inline(always)]
    pub const fn address_after(&self) -> u64 {
        match self.via {
            Via::Signal => self.registers.ip.wrapping_add(1),
            Via::Start | Via::Table | Via::FramePointer => self.registers.ip,
        }
    }

    /// Why the walk ends when its `ip` is in no executable mapping; the frame is then no frame, and is dropped. If it
    /// was a frame pointer that led here, then that register was none.
    #[must_use]
    #[inline(always)]
    pub const fn not_code(&self) -> Stop {
        match self.via {
            Via::FramePointer => Stop::FramePointerLost,
            Via::Start | Via::Signal | Via::Table => Stop::NotCode,
        }
    }
}

/// The caller of `frame`, whose code has the given rule.
///
/// # Errors
/// Why there is no further frame; [`Stop::Base`] when there is no caller. A frame's stack pointer is always above its
/// callee's, so a walk ends, whatever the memory says; only signal frames (handlers run on their own stack) and
/// [`Rule::SWITCHED`] may lead to another stack, which is why whoever walks also bounds the number of frames.
#[inline(always)]
pub fn step(rule: Rule, frame: Frame, memory: &impl Memory) -> Result<Frame, Stop> {
    let Registers { ip, sp, bp } = frame.registers;
    let offset = rule.offset();
    let cfa = match rule.cfa_kind() {
        kind::SP => add(sp, offset),
        kind::BP => add(bp, offset),
        kind::PLT => add(sp, if (ip & 15) as i64 >= offset { 16 } else { 8 }),
        kind::AT_SP => add(read(memory, add(sp, offset))?, rule.plus()),
        kind::AT_BP => add(read(memory, add(bp, offset))?, rule.plus()),
        kind::SIGNAL => return step_signal(add(sp, offset), memory),
        kind::NO_TABLE => return step_frame_pointer(frame, memory),
        kind::SWITCHED => return leave_stack(bp, memory),
        kind::BASE => return Err(Stop::Base),
        _ => return Err(Stop::UnsupportedRule),
    };
    if cfa <= sp {
        return Err(Stop::NoProgress);
    }
    let bp = match rule.bp_kind() {
        saved::SAME => bp,
        saved::AT_CFA => read(memory, add(cfa, rule.saved()))?,
        saved::AT_BP => read(memory, add(bp, rule.saved()))?,
        _ => return Err(Stop::UnsupportedRule),
    };
    let ip = read(memory, add(cfa, -8))?;
    caller(Registers { ip, sp: cfa, bp }, Via::Table)
}

/// The caller of `frame` if its code keeps a frame pointer: `(ip, sp, bp) = (*(bp + 8), bp + 16, *bp)`.
///
/// # Errors
/// Why there is no further frame. A frame pointer of 0 is the thread's base only at the end of a chain of frame
/// pointers: anywhere else it may be the 0 that code without frame pointers happens to hold in that register.
#[inline(always)]
pub fn step_frame_pointer(frame: Frame, memory: &impl Memory) -> Result<Frame, Stop> {
    let Registers { sp, bp, .. } = frame.registers;
    let chained = matches!(frame.via, Via::FramePointer);
    if bp == 0 && chained {
        return Err(Stop::Base);
    }
    if bp < sp {
        return Err(if chained { Stop::NoProgress } else { Stop::FramePointerLost });
    }
    if bp & 7 != 0 {
        return Err(Stop::FramePointerLost);
    }
    let (Some(caller_bp), Some(ip)) = (memory.read(bp), memory.read(add(bp, 8))) else {
        return Err(Stop::FramePointerLost);
    };
    let cfa = add(bp, 16);
    if cfa <= sp {
        return Err(Stop::NoProgress);
    }
    caller(Registers { ip, sp: cfa, bp: caller_bp }, Via::FramePointer)
}

/// The caller of code that has left its stack, but not its frame pointer.
#[inline(always)]
fn leave_stack(bp: u64, memory: &impl Memory) -> Result<Frame, Stop> {
    let (Some(caller_bp), Some(ip)) = (memory.read(bp), memory.read(add(bp, 8))) else {
        return Err(Stop::FramePointerLost);
    };
    caller(Registers { ip, sp: add(bp, 16), bp: caller_bp }, Via::FramePointer)
}

/// The function that a signal interrupted; the kernel saved its registers in a `ucontext`, `sp` at `sp_at`, in the
/// order bp bx dx ax cx sp ip.
#[inline(always)]
fn step_signal(sp_at: u64, memory: &impl Memory) -> Result<Frame, Stop> {
    let sp = read(memory, sp_at)?;
    let ip = read(memory, add(sp_at, 8))?;
    let bp = read(memory, add(sp_at, -40))?;
    caller(Registers { ip, sp, bp }, Via::Signal)
}

/// No function is at 0: a return address of 0 was put there to end the stack.
#[inline(always)]
const fn caller(registers: Registers, via: Via) -> Result<Frame, Stop> {
    if registers.ip == 0 { Err(Stop::Base) } else { Ok(Frame { registers, via }) }
}

#[inline(always)]
fn read(memory: &impl Memory, address: u64) -> Result<u64, Stop> {
    memory.read(address).ok_or(Stop::UnreadableMemory)
}

/// Addresses wrap around, as they do in the processor; what comes out is compared and read with care.
#[inline(always)]
const fn add(address: u64, offset: i64) -> u64 {
    address.wrapping_add_signed(offset)
}

#[cfg(test)]
mod tests {
    use super::super::{Cfa, SavedBp};
    use super::*;

    /// A stack whose lowest word is at [`STACK`].
    struct Words<'a>(&'a [u64]);

    const STACK: u64 = 0x7ffe_0000_1000;

    impl Memory for Words<'_> {
        fn read(&self, address: u64) -> Option<u64> {
            let offset = address.checked_sub(STACK)?;
            let word = usize::try_from(offset / 8).ok()?;
            if offset % 8 == 0 { self.0.get(word).copied() } else { None }
        }
    }

    fn at(word: u64) -> u64 {
        STACK + 8 * word
    }

    fn frame(ip: u64, sp: u64, bp: u64, via: Via) -> Frame {
        Frame { registers: Registers { ip, sp, bp }, via }
    }

    fn rule(cfa: Cfa, bp: SavedBp) -> Rule {
        Rule::new(cfa, bp).expect("fits")
    }

    #[test]
    fn sp_relative_frames_keep_or_restore_bp() {
        let memory = Words(&[0, 0xbb, 0x1111, 0]);
        let start = Frame::first(Registers { ip: 1, sp: at(0), bp: 7 });
        assert_eq!(
            step(rule(Cfa::Sp(24), SavedBp::Same), start, &memory),
            Ok(frame(0x1111, at(3), 7, Via::Table))
        );
        assert_eq!(
            step(rule(Cfa::Sp(24), SavedBp::AtCfa(-16)), start, &memory),
            Ok(frame(0x1111, at(3), 0xbb, Via::Table))
        );
    }

    #[test]
    fn bp_relative_and_realigned_frames() {
        let memory = Words(&[0, at(5), 0xbb, 0x2222, 0x1111, 0]);
        let start = Frame::first(Registers { ip: 1, sp: at(0), bp: at(2) });
        assert_eq!(
            step(rule(Cfa::Bp(16), SavedBp::AtCfa(-16)), start, &memory),
            Ok(frame(0x2222, at(4), 0xbb, Via::Table))
        );
        assert_eq!(
            step(rule(Cfa::AtBp { at: -8, plus: 0 }, SavedBp::AtBp(0)), start, &memory),
            Ok(frame(0x1111, at(5), 0xbb, Via::Table))
        );
        assert_eq!(
            step(rule(Cfa::AtSp { at: 8, plus: -8 }, SavedBp::Same), start, &memory),
            Ok(frame(0x2222, at(4), at(2), Via::Table))
        );
    }

    #[test]
    fn a_plt_entry_has_pushed_a_word_from_its_11th_byte_on() {
        let memory = Words(&[0x1111, 0x2222]);
        let plt = rule(Cfa::Plt { pushed: 11 }, SavedBp::Same);
        for (ip, caller) in [(0x4010, 0x1111), (0x401a, 0x1111), (0x401b, 0x2222), (0x401f, 0x2222)] {
            let stepped = step(plt, Frame::first(Registers { ip, sp: at(0), bp: 0 }), &memory);
            assert_eq!(stepped.map(|frame| frame.registers.ip), Ok(caller), "{ip:#x}");
        }
    }

    #[test]
    fn a_signal_frame_leads_to_an_exact_address_on_any_stack() {
        let mut words = [0; 24];
        words[15] = 0xbb; // rbp at 120
        words[20] = at(2); // rsp at 160, below the handler's stack
        words[21] = 0x5555; // rip at 168
        let restore = frame(0x4001, at(0), 0, Via::Table);
        let stepped = step(Rule::signal(160).expect("fits"), restore, &Words(&words)).expect("a frame");
        assert_eq!(stepped, frame(0x5555, at(2), 0xbb, Via::Signal));
        assert_eq!(stepped.lookup_address(), 0x5555);
        assert_eq!(restore.lookup_address(), 0x4000);
    }

    #[test]
    fn tables_end_a_walk_with_their_reason() {
        let memory = Words(&[0, 0, 0x1111]);
        let start = Frame::first(Registers { ip: 1, sp: at(0), bp: 0 });
        let ended = |rule| step(rule, start, &memory).expect_err("no caller");
        assert_eq!(ended(Rule::BASE), Stop::Base);
        assert_eq!(ended(Rule::UNSUPPORTED), Stop::UnsupportedRule);
        assert_eq!(ended(Rule::from_bits(u64::MAX)), Stop::UnsupportedRule);
        assert_eq!(ended(rule(Cfa::Sp(8), SavedBp::Same)), Stop::Base, "a return address of 0");
        assert_eq!(ended(rule(Cfa::Sp(0), SavedBp::Same)), Stop::NoProgress);
        assert_eq!(ended(rule(Cfa::Sp(-8), SavedBp::Same)), Stop::NoProgress);
        assert_eq!(ended(rule(Cfa::Bp(16), SavedBp::Same)), Stop::NoProgress, "bp is below the stack");
        assert_eq!(ended(rule(Cfa::Sp(64), SavedBp::Same)), Stop::UnreadableMemory);
        assert_eq!(ended(rule(Cfa::Sp(24), SavedBp::AtCfa(8))), Stop::UnreadableMemory);
        assert_eq!(ended(rule(Cfa::AtSp { at: -8, plus: 0 }, SavedBp::Same)), Stop::UnreadableMemory);
        assert_eq!(ended(Rule::NO_TABLE), Stop::FramePointerLost);
    }

    #[test]
    fn addresses_that_wrap_around_do_not_progress() {
        let memory = Words(&[0]);
        let top = Frame::first(Registers { ip: 1, sp: u64::MAX - 7, bp: u64::MAX - 7 });
        assert_eq!(step(rule(Cfa::Sp(64), SavedBp::Same), top, &memory), Err(Stop::NoProgress));
        assert_eq!(step_frame_pointer(top, &memory), Err(Stop::FramePointerLost));
    }

    #[test]
    fn a_chain_of_frame_pointers_is_followed_to_its_base() {
        let memory = Words(&[0, at(3), 0x1111, 0, 0x2222]);
        let mut walked = Frame::first(Registers { ip: 1, sp: at(0), bp: at(1) });
        walked = step_frame_pointer(walked, &memory).expect("the first caller");
        assert_eq!(walked, frame(0x1111, at(3), at(3), Via::FramePointer));
        walked = step_frame_pointer(walked, &memory).expect("the second caller");
        assert_eq!(walked, frame(0x2222, at(5), 0, Via::FramePointer));
        assert_eq!(step_frame_pointer(walked, &memory), Err(Stop::Base));
    }

    #[test]
    fn a_switched_stack_is_left_by_the_frame_pointer_wherever_that_leads() {
        let memory = Words(&[at(2), 0x1111, 0, 0]);
        let switched = |bp| step(Rule::SWITCHED, frame(1, at(3), bp, Via::Table), &memory);
        assert_eq!(switched(at(0)), Ok(frame(0x1111, at(2), at(2), Via::FramePointer)), "down the memory");
        assert_eq!(switched(0), Err(Stop::FramePointerLost));
        assert_eq!(switched(at(2)), Err(Stop::Base), "a return address of 0");
    }

    #[test]
    fn a_broken_chain_of_frame_pointers_says_how_it_broke() {
        let memory = Words(&[at(0), 0x1111, 0, 0]);
        let ended = |bp, via| step_frame_pointer(frame(1, at(1), bp, via), &memory).expect_err("no caller");
        assert_eq!(ended(0, Via::Table), Stop::FramePointerLost, "0 is no base without a chain");
        assert_eq!(ended(0, Via::FramePointer), Stop::Base);
        assert_eq!(ended(at(0), Via::FramePointer), Stop::NoProgress, "a cycle");
        assert_eq!(ended(at(0), Via::Table), Stop::FramePointerLost);
        assert_eq!(ended(at(1) + 4, Via::FramePointer), Stop::FramePointerLost, "misaligned");
        assert_eq!(ended(at(100), Via::FramePointer), Stop::FramePointerLost, "unreadable");
        assert_eq!(ended(at(2), Via::FramePointer), Stop::Base, "a return address of 0");
    }
}
