//! Frames whose CFA is in a register that other functions preserve.
//!
//! The dynamic linker's code for the first call of a function (`_dl_runtime_resolve`) keeps its CFA in `rbx`, which the walk does
//! not know. But while such code calls a function of its own file, that one has saved the register at a fixed place of its frame,
//! and its CFA is the stack pointer that its caller will have: so there `cfa = *(sp + saved) + offset`. This is said of the bytes of
//! the call behind the first, where nothing but callers is looked up.
//!
//! Where the function that is called has not saved the register yet, or has restored it, it is only when a signal interrupts it that
//! somebody walks from there: these rows become "unsupported", since the place may hold anything.

use std::collections::HashMap;
use std::ops::Range;

use gimli::{CfaRule, Register, RegisterRule, UnwindTableRow, X86_64};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use tracer_ebpf::unwind::{Cfa, Rule, SavedBp};

use super::cfi::{self, Sink};
use super::elf::Section;
use super::instructions::CodeBytes;

/// The registers that functions give back as they were, but for those that the walk knows.
const PRESERVED: [Register; 5] = [X86_64::RBX, X86_64::R12, X86_64::R13, X86_64::R14, X86_64::R15];

/// The most instructions that are looked at: a hostile file may say of all its code that it is such a frame. The dynamic linker has a
/// few hundred that are.
const MAX_INSTRUCTIONS: usize = 1 << 16;

/// The most calls that are followed, and the most stretches of a function where a register is not saved. The dynamic linker has 9 calls.
const MAX_CALLS: usize = 64;
const MAX_NOT_SAVED: usize = 8;

/// A row that says `cfa = register + offset` of one of these registers.
#[derive(Clone, Debug)]
pub(super) struct RegisterCfa {
    code: Range<u64>,
    register: Register,
    offset: i64,
    saved_bp: SavedBp,
}

impl RegisterCfa {
    /// The row, if it is one.
    pub fn of(row: &UnwindTableRow<usize>) -> Option<Self> {
        let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return None };
        let saved_bp = match row.register(X86_64::RBP) {
            None | Some(RegisterRule::SameValue) => SavedBp::Same,
            Some(RegisterRule::Offset(offset)) => SavedBp::AtCfa(offset),
            Some(_) => return None,
        };
        let is_held = PRESERVED.contains(&register)
            && row.register(X86_64::RA) == Some(RegisterRule::Offset(-8))
            && row.register(X86_64::RSP).is_none();
        let code = row.start_address()..row.end_address();
        is_held.then_some(Self { code, register, offset, saved_bp })
    }
}

/// What follows from these rows: stretches of code and their rules. `code` is that of the file, `section` says its frames.
pub(super) fn rows(
    held: &[RegisterCfa],
    section: &Section<'_>,
    code: &[CodeBytes<'_>],
) -> Vec<(Range<u64>, Rule)> {
    let mut reader = CallDecoder { code, budget: MAX_INSTRUCTIONS };
    let calls = held.iter().flat_map(|held| {
        let calls = reader.calls(held.code.clone());
        calls.into_iter().map(move |call| (held, call))
    });
    let calls: Vec<_> = calls.take(MAX_CALLS).collect();
    if calls.is_empty() {
        return Vec::new();
    }
    let mut callees = Callees::of(&calls);
    cfi::read(section, &mut callees);
    let mut rows = Vec::new();
    for (held, call) in calls {
        let callee = &callees.rows[&call.target];
        let Some(saved) = Saved::by(callee, held.register, &mut reader) else { continue };
        let cfa = Cfa::AtSp { at: saved.at, plus: held.offset };
        let Some(rule) = Rule::new(cfa, held.saved_bp) else { continue };
        rows.push((call.behind_first, rule));
        rows.extend(saved.not_in.into_iter().map(|code| (code, Rule::UNSUPPORTED)));
    }
    rows
}

/// A call of a function whose address it states.
struct Call {
    behind_first: Range<u64>,
    target: u64,
}

/// Decodes instructions until it has seen too many.
struct CallDecoder<'a> {
    code: &'a [CodeBytes<'a>],
    budget: usize,
}

impl CallDecoder<'_> {
    fn instructions(&mut self, range: Range<u64>) -> Vec<Instruction> {
        let at = |code: &&CodeBytes<'_>| {
            range.start.checked_sub(code.svma).is_some_and(|at| at < code.bytes.len() as u64)
        };
        let Some(code) = self.code.iter().find(at) else { return Vec::new() };
        let bytes = &code.bytes[(range.start - code.svma) as usize..];
        let length = range.end.saturating_sub(range.start).min(bytes.len() as u64) as usize;
        let decoder = Decoder::with_ip(64, &bytes[..length], range.start, DecoderOptions::NONE);
        let instructions: Vec<_> = decoder.into_iter().take(self.budget).collect();
        self.budget -= instructions.len();
        instructions
    }

    fn calls(&mut self, range: Range<u64>) -> Vec<Call> {
        let instructions = self.instructions(range).into_iter();
        let calls = instructions.filter(|instruction| instruction.is_call_near());
        let call = |call: Instruction| Call {
            behind_first: call.ip() + 1..call.next_ip(),
            target: call.near_branch_target(),
        };
        calls.map(call).collect()
    }

    /// Whether code calls nothing, and leaves its function by a return alone.
    fn stays_in(&mut self, range: Range<u64>, function: &Range<u64>) -> bool {
        let stays = |instruction: &Instruction| match instruction.flow_control() {
            FlowControl::Next | FlowControl::Return => true,
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                function.contains(&instruction.near_branch_target())
            }
            _ => false,
        };
        self.budget > 0 && self.instructions(range).iter().all(stays)
    }
}

/// The functions that are called.
struct Callees {
    /// By where they begin.
    rows: HashMap<u64, Vec<CalleeRow>>,
    /// The one that is being read.
    current: u64,
}

/// Where a function has saved each of the [`PRESERVED`] registers.
struct CalleeRow {
    code: Range<u64>,
    saved: [Option<RegisterRule<usize>>; PRESERVED.len()],
}

impl Callees {
    fn of(calls: &[(&RegisterCfa, Call)]) -> Self {
        Self { rows: calls.iter().map(|(_, call)| (call.target, Vec::new())).collect(), current: 0 }
    }
}

impl Sink for Callees {
    fn function(&mut self, code: Range<u64>) -> bool {
        self.current = code.start;
        // The first description holds.
        self.rows.get(&code.start).is_some_and(Vec::is_empty)
    }

    fn stated(&mut self, row: &UnwindTableRow<usize>) {
        let saved = PRESERVED.map(|register| row.register(register));
        let code = row.start_address()..row.end_address();
        self.rows.entry(self.current).or_default().push(CalleeRow { code, saved });
    }

    fn row(&mut self, _start: u64, _rule: Rule) {}

    fn broken(&mut self) {}
}

/// Where a function saves a register, whenever it calls another one.
struct Saved {
    /// Relative to its CFA.
    at: i64,
    /// Where it has not.
    not_in: Vec<Range<u64>>,
}

impl Saved {
    fn by(function: &[CalleeRow], register: Register, reader: &mut CallDecoder<'_>) -> Option<Self> {
        let code = function.first()?.code.start..function.last()?.code.end;
        let index = PRESERVED.iter().position(|preserved| *preserved == register)?;
        let mut saved = Self { at: 0, not_in: Vec::new() };
        for row in function {
            match row.saved[index] {
                None | Some(RegisterRule::SameValue) => saved.not_in.push(row.code.clone()),
                Some(RegisterRule::Offset(at)) if saved.at == 0 || saved.at == at => saved.at = at,
                Some(_) => return None,
            }
        }
        let is_safe = saved.not_in.len() <= MAX_NOT_SAVED
            && saved.not_in.iter().all(|range| reader.stays_in(range.clone(), &code));
        (saved.at != 0 && is_safe).then_some(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(code: Range<u64>, rbx: Option<i64>) -> CalleeRow {
        let mut saved = [const { None }; PRESERVED.len()];
        saved[0] = rbx.map(RegisterRule::Offset);
        CalleeRow { code, saved }
    }

    /// Where a function of these bytes, at 0x10, saves `rbx` that says so of its rows.
    fn saved(bytes: &[u8], rows: &[CalleeRow]) -> Option<(i64, Vec<Range<u64>>)> {
        let code = [CodeBytes { svma: 0x10, bytes }];
        let mut reader = CallDecoder { code: &code, budget: 100 };
        Saved::by(rows, X86_64::RBX, &mut reader).map(|saved| (saved.at, saved.not_in))
    }

    #[test]
    fn a_register_is_where_a_function_saved_it_before_all_its_calls() {
        // push %rbx; call; pop %rbx; ret
        let code = [0x53, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3];
        let rows = || [row(0x10..0x11, None), row(0x11..0x17, Some(-16)), row(0x17..0x18, None)];
        assert_eq!(saved(&code, &rows()), Some((-16, vec![0x10..0x11, 0x17..0x18])));
        assert_eq!(saved(&[0x53], &rows()[..1]), None, "it saves none");
        let twice = [row(0x10..0x11, None), row(0x11..0x14, Some(-16)), row(0x14..0x18, Some(-24))];
        assert_eq!(saved(&code, &twice), None, "in two places");
    }

    #[test]
    fn a_function_that_calls_or_goes_on_elsewhere_before_is_not_trusted() {
        let rows = || [row(0x10..0x15, None), row(0x15..0x17, Some(-16))];
        for (what, code) in [
            ("call", [0xe8, 0, 0, 0, 0, 0x53, 0xc3]),
            ("jump away", [0xe9, 0, 0, 0, 1, 0x53, 0xc3]),
            ("jump to somewhere", [0xff, 0xe0, 0x90, 0x90, 0x90, 0x53, 0xc3]),
        ] {
            assert_eq!(saved(&code, &rows()), None, "{what}");
        }
        assert!(saved(&[0xe9, 0, 0, 0, 0, 0x53, 0xc3], &rows()).is_some(), "a jump inside");
    }

    #[test]
    fn the_first_byte_of_a_call_is_not_where_a_caller_is_looked_up() {
        let code = [CodeBytes { svma: 0x10, bytes: &[0x90, 0xe8, 0x0a, 0, 0, 0, 0x90] }];
        let calls = CallDecoder { code: &code, budget: 100 }.calls(0x10..0x17);
        assert_eq!(calls.len(), 1);
        assert_eq!((calls[0].behind_first.clone(), calls[0].target), (0x12..0x16, 0x20));
        assert!(
            CallDecoder { code: &code, budget: 1 }.calls(0x10..0x17).is_empty(),
            "no more than the budget"
        );
    }
}
