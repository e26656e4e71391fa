//! x86_64: which instructions are cheap under a uprobe, and the search for the first of them that is safe.
//!
//! Cheap is what `arch/x86/kernel/uprobes.c` does not single-step: `push_setup_xol_ops` and `branch_setup_xol_ops` emulate
//! `push reg`, `nop`, `jcc`, `jmp` and `call` with a relative target.
//!
//! Never probed is a long nop. From Linux 6.18 on `can_optimize` lets a 5-byte nop be replaced by a call into a page that the kernel
//! maps into the process, and that a forked child has not: each child that comes by dies of SIGSEGV (seen on 6.18.44, 10 of 10; of
//! 2-byte nops none). Later kernels do the like with a 10-byte nop.

pub(in crate::plan) mod gate_site;
mod pass_on;
mod table_call;

use std::ops::RangeInclusive;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};
use tracer_ebpf::probe::{Arg, ResultPlace, Signature};

use crate::plan::placement::{Cost, Obstacle};

pub(in crate::plan) use table_call::{TableCall, does_nothing};

/// The C calling convention's argument registers.
const ARGUMENTS: [Register; Arg::COUNT as usize] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// How far behind the entry a cheap instruction is looked for. Prologues and the argument checks in front of the first
/// branch are shorter.
const SEARCH_BYTES: usize = 128;

/// How much of a function is read in search of computed jumps. The largest allocator function seen (jemalloc's
/// `xallocx`) has 7 KiB.
const FUNCTION_BYTES: usize = 64 << 10;

/// How much is read of a function whose size the symbol does not tell.
const UNSIZED_FUNCTION_BYTES: usize = 4 << 10;

/// The code of a function: the bytes from its first instruction to the end of its segment.
#[derive(Clone, Copy)]
pub(in crate::plan) struct Function<'data> {
    pub(in crate::plan) svma: u64,
    pub(in crate::plan) code: &'data [u8],
    /// As the symbol states it; 0 when it does not.
    pub(in crate::plan) size: u64,
}

/// What a probe needs to find where it is put.
#[derive(Clone, Copy)]
pub(in crate::plan) struct Need {
    pub(in crate::plan) signature: Signature,
    /// A return probe is set at the same place.
    pub(in crate::plan) return_probe: bool,
}

/// An instruction under a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) struct Candidate {
    pub(in crate::plan) offset: u32,
    pub(in crate::plan) instruction: String,
    pub(in crate::plan) cost: Cost,
    pub(in crate::plan) signature: Signature,
    pub(in crate::plan) stack_displacement: u32,
}

impl Function<'_> {
    fn decoder(&self, limit: usize) -> Decoder<'_> {
        let code = &self.code[..self.code.len().min(limit)];
        Decoder::with_ip(64, code, self.svma, DecoderOptions::NONE)
    }

    fn offset_of(&self, instruction: &Instruction) -> u32 {
        instruction.ip().wrapping_sub(self.svma) as u32
    }

    fn bytes_of(&self, instruction: &Instruction) -> &[u8] {
        let start = self.offset_of(instruction) as usize;
        &self.code[start..start + instruction.len()]
    }

    fn cost_of(&self, instruction: &Instruction) -> Cost {
        match self.bytes_of(instruction) {
            [0x50..=0x57] | [0x41, 0x50..=0x57] => Cost::Emulated, // push
            [0x90] | [0x66, 0x90] => Cost::Emulated,               // nop
            [0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, ..] => Cost::Emulated, // jcc
            [0xeb, _] | [0xe9 | 0xe8, ..] => Cost::Emulated,       // jmp, call
            _ => Cost::SingleStepped,
        }
    }

    /// How many bytes belong to the function, as far as they are read.
    fn extent(&self) -> usize {
        let extent = match usize::try_from(self.size).unwrap_or(usize::MAX) {
            0 => UNSIZED_FUNCTION_BYTES,
            size => size.min(FUNCTION_BYTES),
        };
        extent.min(self.code.len())
    }

    /// The first instruction; none when it cannot be decoded.
    fn first(&self) -> Option<Instruction> {
        self.decoder(SEARCH_BYTES).iter().next().filter(|first| !first.is_invalid())
    }

    /// Whether the first instruction must not be probed.
    pub(in crate::plan) fn begins_with_long_nop(&self) -> bool {
        self.first().is_some_and(|first| is_long_nop(&first))
    }

    /// The probe at the function's first instruction.
    pub(in crate::plan) fn entry(&self, need: Need) -> Option<Candidate> {
        self.first().map(|first| self.candidate(&first, &Path::new(need.signature)))
    }

    /// The first cheap instruction that every call passes with its arguments in registers. What else can enter the
    /// function in front of it is for [`Function::entered_within`] and [`long_branches`] to find.
    ///
    /// Of a function that begins with a long nop, and has no such instruction, it is the one behind the nop.
    pub(in crate::plan) fn first_cheap(&self, need: Need) -> Result<Candidate, Obstacle> {
        let mut path = Path::new(need.signature);
        let mut behind_nop = None;
        let begins_with_long_nop = self.begins_with_long_nop();
        let mut info = InstructionInfoFactory::new();
        for instruction in self.decoder(SEARCH_BYTES).iter() {
            if let Err(obstacle) = self.check(&instruction) {
                return behind_nop.ok_or(obstacle);
            }
            if self.cost_of(&instruction) != Cost::SingleStepped {
                return Ok(self.candidate(&instruction, &path));
            }
            if begins_with_long_nop && behind_nop.is_none() && !is_long_nop(&instruction) {
                behind_nop = Some(self.candidate(&instruction, &path));
            }
            if let Err(obstacle) = path.pass(&instruction, need, &mut info) {
                return behind_nop.ok_or(obstacle);
            }
        }
        behind_nop.ok_or(Obstacle::NoneNear)
    }

    fn candidate(&self, instruction: &Instruction, path: &Path) -> Candidate {
        Candidate {
            offset: self.offset_of(instruction),
            instruction: text(instruction),
            cost: self.cost_of(instruction),
            signature: path.signature,
            stack_displacement: path.stack_displacement,
        }
    }

    /// Whether an instruction could be decoded.
    fn check(&self, instruction: &Instruction) -> Result<(), Obstacle> {
        if !instruction.is_invalid() {
            return Ok(());
        }
        let offset = self.offset_of(instruction);
        let cut_short = offset as usize + MAX_INSTRUCTION_BYTES > SEARCH_BYTES;
        Err(if cut_short { Obstacle::NoneNear } else { Obstacle::NotDecodable { offset } })
    }

    /// What the function's own code can enter within the window (addresses): a short branch to it, or a computed jump
    /// whose targets nobody knows.
    ///
    /// Read in a straight line from the entry, as compilers lay code out (their jump tables are elsewhere). A short
    /// branch reaches back 128 bytes, so the bytes behind the function are read that far too; too much is harmless.
    /// No compiler leads a short branch from the function in front of this one into the middle of it: that needs a
    /// symbol there, and those are looked at.
    pub(in crate::plan) fn entered_within(&self, window: &RangeInclusive<u64>) -> Option<Obstacle> {
        let reach = (window.end().saturating_sub(self.svma) as usize).saturating_add(1 + 128 + 2);
        let extent = self.extent();
        for instruction in self.decoder(extent.max(reach)).iter() {
            let offset = self.offset_of(&instruction);
            if instruction.is_invalid() {
                let behind = offset as usize + MAX_INSTRUCTION_BYTES > extent;
                return (!behind).then_some(Obstacle::NotDecodable { offset });
            }
            if is_near_branch(&instruction) && window.contains(&instruction.near_branch_target()) {
                let target = instruction.near_branch_target() - self.svma;
                return Some(Obstacle::EnteredAt { offset: target as u32 });
            }
            if (offset as usize) < extent && is_jump_by_table(&instruction) {
                return Some(Obstacle::ComputedJump { offset });
            }
        }
        None
    }
}

/// A jump, as far as it can be told where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum Jump {
    /// To this address.
    To(u64),
    /// To the address in the word at this address.
    Through(u64),
    /// To an address from a register or a table.
    Unknown,
}

/// A function's instructions, one after the other.
pub(in crate::plan) struct Sweep {
    /// Where instructions start, ascending.
    starts: Vec<u64>,
    /// The instructions that return.
    pub(in crate::plan) returns: Vec<u64>,
    /// Where it jumps.
    pub(in crate::plan) jumps: Vec<Jump>,
}

impl Sweep {
    /// Whether an instruction starts at this address.
    pub(in crate::plan) fn starts_at(&self, svma: u64) -> bool {
        self.starts.binary_search(&svma).is_ok()
    }
}

impl Function<'_> {
    /// Decodes the function from its first byte to its last; none when that does not come out even.
    pub(in crate::plan) fn sweep(&self) -> Option<Sweep> {
        let size = usize::try_from(self.size).ok().filter(|size| (1..=FUNCTION_BYTES).contains(size))?;
        let mut sweep = Sweep { starts: Vec::new(), returns: Vec::new(), jumps: Vec::new() };
        let mut end = self.svma;
        for instruction in
            Decoder::with_ip(64, self.code.get(..size)?, self.svma, DecoderOptions::NONE).iter()
        {
            if instruction.is_invalid() {
                return None;
            }
            sweep.starts.push(instruction.ip());
            end = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Return if instruction.code() == Code::Retnq => {
                    sweep.returns.push(instruction.ip());
                }
                FlowControl::Return => return None,
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    sweep.jumps.push(target(&instruction).map_or(Jump::Unknown, |target| match target {
                        Target::Address(svma) => Jump::To(svma),
                        Target::Slot(slot) => Jump::Through(slot),
                    }));
                }
                FlowControl::IndirectBranch => sweep.jumps.push(match target(&instruction) {
                    Some(Target::Slot(slot)) => Jump::Through(slot),
                    _ => Jump::Unknown,
                }),
                _ => {}
            }
        }
        (end == self.svma + self.size).then_some(sweep)
    }
}

/// Where a jump or call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum Target {
    /// To this address.
    Address(u64),
    /// To the address that the loader writes into the word at this address.
    Slot(u64),
}

impl Function<'_> {
    /// The function that every call of this one calls first.
    pub(in crate::plan) fn calls_first(&self) -> Option<Target> {
        for instruction in self.decoder(self.extent().min(SEARCH_BYTES)).iter() {
            match instruction.flow_control() {
                FlowControl::Next if !instruction.is_invalid() => {}
                FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Call
                | FlowControl::IndirectCall => return target(&instruction),
                _ => return None,
            }
        }
        None
    }

    /// The functions that it calls, as far as they can be told.
    pub(in crate::plan) fn called(&self) -> Vec<Target> {
        let calls = self.decoder(self.extent()).into_iter();
        calls
            .filter(|call| matches!(call.flow_control(), FlowControl::Call))
            .filter_map(|call| target(&call))
            .collect()
    }

    /// The slot that a stub of the procedure linkage table jumps through.
    pub(in crate::plan) fn linkage_slot(&self) -> Option<u64> {
        let jump = self.decoder(SEARCH_BYTES).iter().find(|first| first.mnemonic() != Mnemonic::Endbr64)?;
        match (jump.flow_control(), target(&jump)?) {
            (FlowControl::IndirectBranch, Target::Slot(slot)) => Some(slot),
            _ => None,
        }
    }
}

fn target(instruction: &Instruction) -> Option<Target> {
    if is_near_branch(instruction) {
        Some(Target::Address(instruction.near_branch_target()))
    } else if instruction.is_ip_rel_memory_operand() {
        Some(Target::Slot(instruction.ip_rel_memory_address()))
    } else {
        None
    }
}

/// No x86 instruction is longer.
const MAX_INSTRUCTION_BYTES: usize = 15;

/// Every direct branch or call with a 32-bit distance that leads into one of the windows, which are sorted and apart.
///
/// Looks at every byte, not every instruction: what is not an instruction may be found too, which only makes the plan more
/// careful, but no real one is missed, in whichever function, cold part or hand-written assembly it may be.
pub(in crate::plan) fn long_branches(
    code: &[u8],
    svma: u64,
    windows: &[RangeInclusive<u64>],
    found: &mut Vec<u64>,
) {
    let (Some(first), Some(last)) = (windows.first(), windows.last()) else { return };
    let (first, span) = (*first.start(), last.end().wrapping_sub(*first.start()));
    for (at, bytes) in code.windows(5).enumerate() {
        let [opcode @ (0xe8 | 0xe9 | 0x80..=0x8f), distance @ ..] = bytes else { continue };
        if matches!(opcode, 0x80..=0x8f) && at.checked_sub(1).is_none_or(|before| code[before] != 0x0f) {
            continue;
        }
        let distance = i32::from_le_bytes([distance[0], distance[1], distance[2], distance[3]]);
        let target = svma.wrapping_add(at as u64 + 5).wrapping_add_signed(distance.into());
        if target.wrapping_sub(first) <= span {
            let window = windows.partition_point(|window| *window.end() < target);
            if windows.get(window).is_some_and(|window| window.contains(&target)) {
                found.push(target);
            }
        }
    }
}

/// What a straight run of instructions has done to the stack and the arguments.
struct Path {
    /// The argument that each argument register still holds.
    holds: [Option<u8>; Arg::COUNT as usize],
    /// Where the needed arguments are now.
    signature: Signature,
    stack_displacement: u32,
    wanted: Signature,
}

impl Path {
    fn new(wanted: Signature) -> Self {
        let holds = [0, 1, 2, 3, 4, 5].map(Some);
        Self { holds, signature: wanted, stack_displacement: 0, wanted }
    }

    /// Goes on behind an instruction, if the probe may.
    fn pass(
        &mut self,
        instruction: &Instruction,
        need: Need,
        info: &mut InstructionInfoFactory,
    ) -> Result<(), Obstacle> {
        if instruction.flow_control() != FlowControl::Next {
            return Err(Obstacle::LeavesBefore { by: text(instruction) });
        }
        self.step(instruction, info)?;
        if need.return_probe && self.stack_displacement != 0 {
            return Err(Obstacle::StackMoved { by: text(instruction) });
        }
        Ok(())
    }

    fn step(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Result<(), Obstacle> {
        let used = info.info(instruction);
        let writes = |access| {
            matches!(
                access,
                OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
            )
        };
        let copied = copied_argument(instruction).and_then(|register| self.holds[register]);
        let mut moves_stack = false;
        for register in used.used_registers().iter().filter(|used| writes(used.access())) {
            let register = register.register().full_register();
            moves_stack |= register == Register::RSP;
            if let Some(argument) = argument_number(register) {
                self.holds[argument] = copied;
            }
        }
        self.signature =
            self.locate().map_err(|arg| Obstacle::ArgumentLost { arg, by: text(instruction) })?;
        if moves_stack {
            self.stack_displacement = stack_growth(instruction)
                .and_then(|growth| self.stack_displacement.checked_add_signed(growth))
                .ok_or_else(|| Obstacle::StackMoved { by: text(instruction) })?;
        }
        Ok(())
    }

    /// The wanted signature with the registers that hold the arguments now; the argument that none holds otherwise.
    fn locate(&self) -> Result<Signature, Arg> {
        let find = |wanted: Option<Arg>| {
            let Some(wanted) = wanted else { return Ok(None) };
            let holds = |register: u8| self.holds[usize::from(register)] == Some(wanted.number());
            std::iter::once(wanted.number())
                .chain(0..Arg::COUNT)
                .find(|&register| holds(register))
                .map(|register| Some(Arg::new(register)))
                .ok_or(wanted)
        };
        // The contract has no other register for the place of the result.
        if self.wanted.result == ResultPlace::PointedAtByArg0 && self.holds[0] != Some(0) {
            return Err(Arg::new(0));
        }
        Ok(Signature {
            size: find(self.wanted.size)?,
            count: find(self.wanted.count)?,
            old: find(self.wanted.old)?,
            result: self.wanted.result,
        })
    }
}

/// A nop of five bytes or more; see the head of this file.
fn is_long_nop(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Nop && instruction.len() >= 5
}

fn text(instruction: &Instruction) -> String {
    let mut formatter = GasFormatter::new();
    let options = formatter.options_mut();
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

fn argument_number(register: Register) -> Option<usize> {
    ARGUMENTS.iter().position(|&argument| argument == register)
}

/// The argument register that a `mov` copies whole to another register.
fn copied_argument(instruction: &Instruction) -> Option<usize> {
    matches!(instruction.code(), Code::Mov_rm64_r64 | Code::Mov_r64_rm64)
        .then_some(instruction)
        .filter(|mov| mov.op0_kind() == OpKind::Register && mov.op1_kind() == OpKind::Register)
        .and_then(|mov| argument_number(mov.op1_register()))
}

/// By how many bytes an instruction that writes the stack pointer makes the stack grow, when that can be read off it.
fn stack_growth(instruction: &Instruction) -> Option<i32> {
    let by_immediate = |sign: i64| {
        (instruction.op0_register() == Register::RSP)
            .then(|| instruction.try_immediate(1).ok())
            .flatten()
            .and_then(|bytes| i32::try_from(sign.checked_mul(bytes as i64)?).ok())
    };
    match instruction.mnemonic() {
        Mnemonic::Sub => by_immediate(1),
        Mnemonic::Add => by_immediate(-1),
        Mnemonic::Push | Mnemonic::Pushfq => instruction.stack_pointer_increment().checked_neg(),
        _ => None,
    }
}

fn is_near_branch(instruction: &Instruction) -> bool {
    matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

/// Whether a jump takes its target from a register or a table. A jump through a single word of memory (the global
/// offset table, a table of functions) is a call in the last place of the function.
fn is_jump_by_table(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::IndirectBranch
        && (instruction.op0_kind() == OpKind::Register || instruction.memory_index() != Register::None)
}

#[cfg(test)]
#[path = "x86_64_tests.rs"]
mod tests;
