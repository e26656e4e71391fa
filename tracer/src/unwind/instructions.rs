//! Rows for code that says nothing about its frames, from its instructions.
//!
//! musl is built without call frame information and without frame pointers. But what compilers and musl's few files of assembly
//! do to the stack pointer is simple: constants are subtracted and added, registers pushed and popped. So the distance to the
//! CFA is followed from the entries of functions, where it is 8, along every path. What cannot be followed (a stack pointer
//! that was computed) stays without rows, and the walk tries the frame pointer there, as it does anywhere without a table.
//!
//! Entries are what symbols, calls, addresses taken and relocations tell. `unwind_rows` compares what is found here with what files
//! say that do have information.

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use tracer_ebpf::unwind::{Cfa, Rule, SavedBp};

/// No more than so many instructions are looked at, each time that one is: a hostile file's code could take as long as it likes. musl
/// takes 2 million, a tenth of a second.
const MAX_INSTRUCTIONS: usize = 32 << 20;

/// The most code that is looked at. Programs linked with musl have some megabytes.
pub const MAX_CODE: usize = 16 << 20;

/// Executable bytes and the svma of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeBytes<'data> {
    /// Where they are, as the file states it.
    pub svma: u64,
    /// The bytes.
    pub bytes: &'data [u8],
}

impl CodeBytes<'_> {
    fn range(&self) -> Range<u64> {
        self.svma..self.svma.saturating_add(self.bytes.len() as u64)
    }
}

/// Code without a gap, and its rows: where each begins and what holds from there.
pub type Described = (Range<u64>, Vec<(u64, Rule)>);

/// Follows the code from its entries; what lies in `covered` (ascending, apart) is left to others.
#[must_use]
pub fn describe(code: &[CodeBytes<'_>], entries: &[u64], covered: &[Range<u64>]) -> Vec<Described> {
    let mut search = EntrySearch::new(code, covered);
    entries.iter().for_each(|&entry| search.add_entry(entry));
    search.scan_covered();
    // Entries, and functions that never return, are found on the way; code that was passed before is followed again.
    loop {
        let known = search.entries.len();
        let followed = search.follow();
        let found = search.find_what_never_returns(&followed);
        if search.budget == 0 || !found && known == search.entries.len() {
            return rows(followed.steps);
        }
    }
}

/// The addresses that code takes relative to itself.
pub(super) fn addresses_taken(bytes: &[u8], svma: u64) -> impl Iterator<Item = u64> {
    Decoder::with_ip(64, bytes, svma, DecoderOptions::NONE)
        .into_iter()
        .filter(|instruction| {
            instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand()
        })
        .map(|instruction| instruction.ip_rel_memory_address())
}

/// Where the caller's frame is, before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameState {
    /// `cfa - sp`, while it is known.
    sp: Option<i64>,
    /// `cfa - bp`, while `bp` holds a frame's address.
    bp: Option<i64>,
    saved: Saved,
}

/// Where the caller's `bp` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    Same,
    /// `*(cfa - offset)`, whatever the register holds.
    At(i64),
    /// The register was set to 0 before it was saved: there is no caller.
    Base,
    /// It was overwritten.
    Lost,
}

impl FrameState {
    const ENTRY: Self = Self { sp: Some(8), bp: None, saved: Saved::Same };

    fn rule(self) -> Option<Rule> {
        let saved = match self.saved {
            Saved::Same => SavedBp::Same,
            Saved::At(offset) => SavedBp::AtCfa(-offset),
            Saved::Base => return Some(Rule::BASE),
            Saved::Lost => return None,
        };
        match (self.sp, self.bp) {
            // A frame pointer as usual: what files say then, too.
            (_, Some(16)) if self.saved == Saved::At(16) => Rule::new(Cfa::Bp(16), saved),
            (Some(sp), _) if sp >= 8 => Rule::new(Cfa::Sp(sp), saved),
            (None, Some(bp)) => Rule::new(Cfa::Bp(bp), saved),
            _ => None,
        }
    }

    /// What is known after an instruction that goes on.
    fn after(mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Self {
        use Mnemonic::{Add, And, Lea, Leave, Mov, Pop, Push, Sub, Xor};
        let immediate = instruction.try_immediate(1).ok().map(u64::cast_signed);
        let is = |index, register| {
            instruction.op_kind(index) == OpKind::Register && instruction.op_register(index) == register
        };
        match instruction.mnemonic() {
            Push => {
                self.sp = self.sp.map(|sp| sp + 8);
                if is(0, Register::RBP) && self.saved == Saved::Same {
                    self.saved = self.sp.map_or(Saved::Lost, Saved::At);
                }
            }
            Pop if is(0, Register::RBP) => self.pop_bp(),
            Pop if !is(0, Register::RSP) => self.sp = self.sp.map(|sp| sp - 8),
            Sub if is(0, Register::RSP) => {
                self.sp = self.sp.zip(immediate).map(|(sp, size)| sp.saturating_add(size));
            }
            Add if is(0, Register::RSP) => {
                self.sp = self.sp.zip(immediate).map(|(sp, size)| sp.saturating_sub(size));
            }
            Lea if is(0, Register::RSP) => self.sp = self.address(instruction),
            Lea if is(0, Register::RBP) => self.set_bp(self.address(instruction)),
            Mov if is(0, Register::RBP) && is(1, Register::RSP) => self.set_bp(self.sp),
            Mov if is(0, Register::RSP) && is(1, Register::RBP) => self.sp = self.bp,
            Mov if is(1, Register::RBP) && instruction.op0_kind() == OpKind::Memory => {
                if self.saved == Saved::Same && self.bp.is_none() {
                    self.saved = self.address(instruction).map_or(Saved::Same, Saved::At);
                }
            }
            Leave => {
                self.sp = self.bp;
                self.pop_bp();
            }
            Xor if is(0, Register::EBP) && is(1, Register::EBP)
                || is(0, Register::RBP) && is(1, Register::RBP) =>
            {
                self.bp = None;
                self.saved = if self.saved == Saved::Same { Saved::Base } else { self.saved };
            }
            And if is(0, Register::RSP) => self.sp = None,
            _ => self.overwrite(instruction, info),
        }
        self
    }

    /// `bp` is taken from where the stack pointer is.
    fn pop_bp(&mut self) {
        if let Saved::At(offset) = self.saved
            && self.sp == Some(offset)
        {
            self.saved = Saved::Same;
        }
        self.bp = None;
        self.sp = self.sp.map(|sp| sp - 8);
    }

    fn set_bp(&mut self, bp: Option<i64>) {
        self.bp = bp;
        self.lose_same();
    }

    fn lose_same(&mut self) {
        if self.saved == Saved::Same {
            self.saved = Saved::Lost;
        }
    }

    /// `cfa -` the address of a memory operand relative to `sp` or `bp`.
    fn address(&self, instruction: &Instruction) -> Option<i64> {
        let base = match instruction.memory_base() {
            Register::RSP => self.sp?,
            Register::RBP => self.bp?,
            _ => return None,
        };
        let displacement = instruction.memory_displacement64().cast_signed();
        (instruction.memory_index() == Register::None).then(|| base.saturating_sub(displacement))
    }

    /// Any other instruction: what it writes is no longer known.
    fn overwrite(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        // A call's own push is undone by the return.
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            return;
        }
        let moved = i64::from(instruction.stack_pointer_increment());
        for used in info.info(instruction).used_registers() {
            let writes = matches!(
                used.access(),
                OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
            );
            match used.register().full_register() {
                Register::RSP if writes && moved != 0 => self.sp = self.sp.map(|sp| sp - moved),
                Register::RSP if writes => self.sp = None,
                Register::RBP if writes => {
                    self.bp = None;
                    self.lose_same();
                }
                _ => {}
            }
        }
    }
}

struct EntrySearch<'a> {
    code: &'a [CodeBytes<'a>],
    covered: &'a [Range<u64>],
    /// What is known of each byte, from `base` on.
    bytes: Vec<Byte>,
    base: u64,
    entries: BTreeSet<u64>,
    budget: usize,
}

/// What is known of the instruction that begins at a byte.
#[derive(Clone, Copy, Default)]
struct Byte {
    /// It is code that nobody else describes.
    is_open: bool,
    is_entry: bool,
    /// It is an entry from where no path leads to a return.
    never_returns: bool,
}

/// An instruction that was come by.
#[derive(Clone, Copy)]
struct Step {
    range: (u64, u64),
    /// What holds before it; none for the return from a signal handler.
    state: Option<FrameState>,
    flow: Flow,
}

/// Where the next instruction is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Call(u64),
    Branch(u64),
    Jump(u64),
    /// To somewhere: another function, or a case of a `switch`.
    Computed,
    Return,
    End,
}

impl Flow {
    fn of(instruction: &Instruction) -> Self {
        let target = instruction.near_branch_target();
        match instruction.flow_control() {
            FlowControl::Call => Self::Call(target),
            FlowControl::ConditionalBranch => Self::Branch(target),
            FlowControl::UnconditionalBranch => Self::Jump(target),
            FlowControl::IndirectBranch => Self::Computed,
            FlowControl::Return => Self::Return,
            FlowControl::Exception => Self::End,
            _ if instruction.mnemonic() == Mnemonic::Hlt => Self::End,
            _ => Self::Next,
        }
    }
}

/// The instructions that were come by.
struct Followed {
    steps: Vec<Step>,
    /// The step that begins at a byte, counted from 1; 0 for none.
    at: Vec<u32>,
}

impl<'a> EntrySearch<'a> {
    fn new(code: &'a [CodeBytes<'a>], covered: &'a [Range<u64>]) -> Self {
        let base = code.iter().map(|code| code.svma).min().unwrap_or(0);
        let mut bytes = Vec::new();
        let mut mark = |range: Range<u64>, is_open| {
            let (start, end) =
                (range.start.saturating_sub(base) as usize, range.end.saturating_sub(base) as usize);
            if end - start <= MAX_CODE && end <= MAX_CODE {
                bytes.resize(bytes.len().max(end), Byte::default());
                bytes[start..end].iter_mut().for_each(|byte: &mut Byte| byte.is_open = is_open);
            }
        };
        code.iter().for_each(|code| mark(code.range(), true));
        covered.iter().for_each(|range| mark(range.clone(), false));
        Self { code, covered, bytes, base, entries: BTreeSet::new(), budget: MAX_INSTRUCTIONS }
    }

    fn index(&self, svma: u64) -> usize {
        usize::try_from(svma.wrapping_sub(self.base)).unwrap_or(usize::MAX)
    }

    fn byte(&self, svma: u64) -> Byte {
        self.bytes.get(self.index(svma)).copied().unwrap_or_default()
    }

    fn add_entry(&mut self, svma: u64) {
        let index = self.index(svma);
        if let Some(byte) = self.bytes.get_mut(index).filter(|byte| byte.is_open) {
            byte.is_entry = true;
            self.entries.insert(svma);
        }
    }

    fn bytes_at(&self, svma: u64) -> Option<&'a [u8]> {
        let code = self.code.iter().find(|code| code.range().contains(&svma))?;
        code.bytes.get(usize::try_from(svma - code.svma).ok()?..)
    }

    /// Calls and addresses in code that others describe lead to entries, too.
    fn scan_covered(&mut self) {
        for range in self.covered {
            let Some(bytes) = self.bytes_at(range.start) else { continue };
            let length = bytes.len().min((range.end - range.start) as usize);
            for instruction in Decoder::with_ip(64, &bytes[..length], range.start, DecoderOptions::NONE) {
                if self.budget == 0 {
                    return;
                }
                self.budget -= 1;
                if let Flow::Jump(target) = Flow::of(&instruction) {
                    self.add_entry(target);
                }
                self.note_entries(&instruction);
            }
        }
    }

    /// Where an instruction calls, or takes the address of code.
    fn note_entries(&mut self, instruction: &Instruction) {
        if let Flow::Call(target) = Flow::of(instruction) {
            self.add_entry(target);
        } else if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
            self.add_entry(instruction.ip_rel_memory_address());
        }
    }

    fn follow(&mut self) -> Followed {
        let mut followed = Followed { steps: Vec::new(), at: vec![0; self.bytes.len()] };
        let mut info = InstructionInfoFactory::new();
        for entry in self.entries.clone() {
            if let Some(length) = self.bytes_at(entry).and_then(returns_from_signal) {
                // The return address of a handler is the first byte of it, and is looked up one before.
                let range = (entry.saturating_sub(1), entry + length);
                self.add(&mut followed, entry, Step { range, state: None, flow: Flow::End });
            } else {
                self.follow_from(entry, &mut followed, &mut info);
            }
        }
        followed
    }

    fn add(&self, followed: &mut Followed, svma: u64, step: Step) {
        followed.steps.push(step);
        if let Some(at) = followed.at.get_mut(self.index(svma)) {
            *at = followed.steps.len() as u32;
        }
    }

    fn step<'f>(&self, followed: &'f Followed, svma: u64) -> Option<(usize, &'f Step)> {
        let number = (*followed.at.get(self.index(svma))? as usize).checked_sub(1)?;
        Some((number, &followed.steps[number]))
    }

    /// Follows every path from an entry to where it ends or comes to code that was followed.
    fn follow_from(&mut self, entry: u64, followed: &mut Followed, info: &mut InstructionInfoFactory) {
        let mut open = vec![(entry, FrameState::ENTRY)];
        while let Some((mut at, mut state)) = open.pop() {
            while let Some(bytes) = self.bytes_at(at) {
                let byte = self.byte(at);
                // Another function begins here: whoever ran into it did so behind a call that never returns.
                let runs_into = at != entry && byte.is_entry && state != FrameState::ENTRY;
                if runs_into || !byte.is_open || self.budget == 0 || self.step(followed, at).is_some() {
                    break;
                }
                self.budget -= 1;
                let instruction = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
                if instruction.is_invalid() {
                    break;
                }
                let flow = Flow::of(&instruction);
                let step = Step { range: (at, instruction.next_ip()), state: Some(state), flow };
                self.add(followed, at, step);
                self.note_entries(&instruction);
                state = state.after(&instruction, info);
                at = match flow {
                    Flow::Return | Flow::End => break,
                    // Another function. Where the frame is still there, the cases of a `switch` follow, as compilers lay them out.
                    Flow::Computed if state.sp == Some(8) => break,
                    Flow::Call(target) if self.byte(target).never_returns => break,
                    Flow::Jump(target) => target,
                    Flow::Branch(target) => {
                        open.push((target, state));
                        instruction.next_ip()
                    }
                    Flow::Next | Flow::Call(_) | Flow::Computed => instruction.next_ip(),
                };
            }
        }
    }

    /// `abort`, `exit`, and what ends with a call of them: what stands behind such a call is other code. Says whether more was found.
    fn find_what_never_returns(&mut self, followed: &Followed) -> bool {
        let mut seen = vec![0; followed.steps.len()];
        let mut found = false;
        for (round, entry) in self.entries.clone().into_iter().enumerate() {
            if !self.byte(entry).never_returns
                && !self.may_return(entry, followed, &mut seen, round as u32 + 1)
            {
                let index = self.index(entry);
                self.bytes[index].never_returns = true;
                found = true;
            }
        }
        found
    }

    /// `seen` says of each step in which round it was come by.
    fn may_return(&mut self, entry: u64, followed: &Followed, seen: &mut [u32], round: u32) -> bool {
        let mut open = vec![entry];
        while let Some(mut at) = open.pop() {
            loop {
                // What was not followed may do anything.
                let Some((number, step)) = self.step(followed, at) else { return true };
                if std::mem::replace(&mut seen[number], round) == round {
                    break;
                }
                self.budget = self.budget.saturating_sub(1);
                if self.budget == 0 {
                    return true;
                }
                at = match step.flow {
                    Flow::Return | Flow::Computed => return true,
                    Flow::End => break,
                    Flow::Call(target) if self.byte(target).never_returns => break,
                    Flow::Jump(target) => target,
                    Flow::Branch(target) => {
                        open.push(target);
                        step.range.1
                    }
                    Flow::Next | Flow::Call(_) => step.range.1,
                };
            }
        }
        false
    }
}

/// The length of `mov $15, %eax; syscall` (`rt_sigreturn`), if that is what stands there.
fn returns_from_signal(bytes: &[u8]) -> Option<u64> {
    const LONG: &[u8] = &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
    const SHORT: &[u8] = &[0xb8, 15, 0, 0, 0, 0x0f, 0x05];
    [LONG, SHORT].iter().find(|code| bytes.starts_with(code)).map(|code| code.len() as u64)
}

fn rows(mut steps: Vec<Step>) -> Vec<Described> {
    // `sp` at the return from a handler is that of the `ucontext`, which has the interrupted one 160 bytes on.
    let signal = Rule::signal(160).unwrap_or(Rule::NO_TABLE);
    steps.sort_unstable_by_key(|step| step.range);
    let mut described: Vec<Described> = Vec::new();
    for Step { range: (start, end), state, .. } in steps {
        let rule = state.map_or(signal, |state| state.rule().unwrap_or(Rule::NO_TABLE));
        match described.last_mut() {
            Some((range, rows)) if range.end == start => {
                range.end = end;
                if rows.last().is_none_or(|last| last.1 != rule) {
                    rows.push((start, rule));
                }
            }
            // Two decodings of the same bytes; the first counts.
            Some((range, _)) if range.end > start => {}
            _ => described.push((start..end, vec![(start, rule)])),
        }
    }
    described
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x1000;

    fn described(bytes: &[u8], entries: &[u64]) -> Vec<Described> {
        describe(&[CodeBytes { svma: START, bytes }], entries, &[])
    }

    fn sp(offset: i64) -> Rule {
        Rule::new(Cfa::Sp(offset), SavedBp::Same).expect("fits")
    }

    fn saved(cfa: Cfa) -> Rule {
        Rule::new(cfa, SavedBp::AtCfa(-16)).expect("fits")
    }

    #[test]
    fn pushes_and_subtractions_are_followed_to_the_return() {
        // push rbx; sub rsp, 32; call +0; add rsp, 32; pop rbx; ret
        let code = [0x53, 0x48, 0x83, 0xec, 32, 0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 32, 0x5b, 0xc3];
        let rows = [
            (START, sp(8)),
            (START + 1, sp(16)),
            (START + 5, sp(48)),
            (START + 14, sp(16)),
            (START + 15, sp(8)),
        ];
        // The call is of what follows it; it is followed as a function, too, but not twice.
        let covered = START + 10..START + 11;
        let found = describe(&[CodeBytes { svma: START, bytes: &code }], &[START], &[covered]);
        assert_eq!(found.first(), Some(&(START..START + 10, rows[..3].to_vec())));
    }

    #[test]
    fn a_frame_pointer_finds_the_frame_again() {
        // push rbp; mov rbp, rsp; and rsp, -64; leave; ret
        let code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xc0, 0xc9, 0xc3];
        let rows = vec![
            (START, sp(8)),
            (START + 1, saved(Cfa::Sp(16))),
            (START + 4, saved(Cfa::Bp(16))),
            (START + 9, sp(8)),
        ];
        assert_eq!(described(&code, &[START]), [(START..START + 10, rows)]);
    }

    #[test]
    fn a_stack_pointer_that_is_computed_is_not_followed() {
        // sub rsp, rax; ret
        let code = [0x48, 0x29, 0xc4, 0xc3];
        let rows = vec![(START, sp(8)), (START + 3, Rule::NO_TABLE)];
        assert_eq!(described(&code, &[START]), [(START..START + 4, rows)]);
    }

    #[test]
    fn what_stands_behind_a_call_that_never_returns_is_not_run_into() {
        // push rax; call abort; nop     abort: push rax; hlt
        let code = [0x50, 0xe8, 1, 0, 0, 0, 0x90, 0x50, 0xf4];
        let abort = START + 7;
        let found = described(&code, &[START, abort]);
        let first = (START..START + 6, vec![(START, sp(8)), (START + 1, sp(16))]);
        let second = (abort..abort + 2, vec![(abort, sp(8)), (abort + 1, sp(16))]);
        assert_eq!(found, [first, second]);
    }

    #[test]
    fn a_thread_begins_where_the_frame_pointer_is_made_zero() {
        // xor ebp, ebp; pop rdi; call rsi
        let code = [0x31, 0xed, 0x5f, 0xff, 0xd6];
        let rows = vec![(START, sp(8)), (START + 2, Rule::BASE)];
        assert_eq!(described(&code, &[START]), [(START..START + 5, rows)]);
    }

    #[test]
    fn the_return_from_a_signal_handler_reaches_one_byte_before_it() {
        // nop; mov rax, 15; syscall
        let code = [0x90, 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
        let signal = Rule::signal(160).expect("fits");
        assert_eq!(described(&code, &[START + 1]), [(START..START + 10, vec![(START, signal)])]);
    }
}
