//! Where the gate's jump goes in an allocator function, and the code that goes with it.
//!
//! The jump replaces one instruction, the *site*, as other threads may be anywhere in the function: all places where they can
//! stand stay the starts of instructions. The site is not always the first instruction, since a jump needs five bytes, so a
//! call has come through a piece of the function's prologue when it jumps. Two pieces of code make good for it:
//!
//! ```text
//! function:   prologue          detour: undo the prologue        entry copy: the prologue
//!             jmp detour                jmp sampler's function               the site's instruction
//!             rest                                                           jmp rest
//! ```
//!
//! The sampler's function so begins with the registers and the stack of a call, and calls the entry copy as if that were
//! the function. The prologue has run twice by then: between entry and site stands only what can be undone and done again.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::RangeInclusive,
};

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, ConditionCode, Decoder, DecoderOptions, FlowControl,
    Instruction, InstructionBlock, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess, OpKind,
    Register,
};

use super::{
    ARGUMENTS, Function, MAX_INSTRUCTION_BYTES, SEARCH_BYTES, is_jump_by_table, is_near_branch, text,
};
use crate::plan::placement::Obstacle;

/// `jmp rel32`.
const JUMP_BYTES: usize = 5;

/// Compilers probe the stack page by page for more.
const MAX_FRAME_BYTES: u64 = 4096;

/// How many instructions a call that nobody needs to see may need to fail, or to get to `malloc`: glibc's realloc undoes a
/// prologue of seven.
const MAX_STEPS_AWAY: usize = 16;

/// An allocator function, by its arguments and by when it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum GateFunction {
    /// `f(size)`: malloc, valloc, pvalloc.
    Malloc,
    /// `f(count, size)`
    Calloc,
    /// `f(old, size)`
    Realloc,
    /// `f(old)`
    Free,
    /// `f(alignment, size)`: aligned_alloc, memalign.
    AlignedAlloc,
    /// `f(result, alignment, size)`
    PosixMemalign,
}

impl GateFunction {
    /// The function with this name in C.
    pub(in crate::plan) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "malloc" | "valloc" | "pvalloc" => Self::Malloc,
            "calloc" => Self::Calloc,
            "realloc" => Self::Realloc,
            "free" => Self::Free,
            "aligned_alloc" | "memalign" => Self::AlignedAlloc,
            "posix_memalign" => Self::PosixMemalign,
            _ => return None,
        })
    }

    fn arguments(self) -> &'static [Register] {
        &ARGUMENTS[..match self {
            Self::Malloc | Self::Free => 1,
            Self::Calloc | Self::Realloc | Self::AlignedAlloc => 2,
            Self::PosixMemalign => 3,
        }]
    }

    /// The argument with which the function fails when it is negative, that is more than `PTRDIFF_MAX`.
    ///
    /// None of calloc: of no objects each may be as large as it likes.
    fn size(self) -> Option<Register> {
        match self {
            Self::Malloc => Some(Register::RDI),
            Self::Realloc | Self::AlignedAlloc => Some(Register::RSI),
            Self::PosixMemalign => Some(Register::RDX),
            Self::Calloc | Self::Free => None,
        }
    }
}

/// Why a function has no site.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSite {
    /// Too short a function, or only short instructions.
    #[error(
        "no instruction of {JUMP_BYTES} bytes or more within {SEARCH_BYTES} bytes of the function's start"
    )]
    NoneNear,
    /// A call passes other instructions than those behind the entry, or none.
    #[error("`{by}` at +{offset:#x} comes before an instruction of {JUMP_BYTES} bytes")]
    LeavesBefore {
        /// From the start of the function.
        offset: u32,
        /// The instruction that branches, returns or traps.
        by: String,
    },
    /// An argument is lost, memory is written, or the stack pointer moves in another way.
    #[error("what `{by}` at +{offset:#x} does cannot be undone")]
    NotUndoable {
        /// From the start of the function.
        offset: u32,
        /// The instruction.
        by: String,
    },
    /// Code of the function may go in behind its entry, where the site is or in front of it.
    #[error("{0}")]
    Entered(Obstacle),
    /// Calls of that symbol would run into the jump.
    #[error("another symbol begins at +{offset:#x}")]
    Symbol {
        /// From the start of the function.
        offset: u32,
    },
    /// A compiler that sees both, callers and function, may keep values in registers that the function does not use (`gcc -fipa-ra`). It
    /// does not see what a function calls elsewhere, and so takes all registers of the calling convention for used.
    #[error(
        "it calls nothing outside of its file, so its callers there may rely on any register that it does not use"
    )]
    CallsNobody,
    /// No code, or code in another form.
    #[error("no instruction could be decoded at +{offset:#x}")]
    NotDecodable {
        /// From the start of the function.
        offset: u32,
    },
    /// The prologue or the site's instruction means something else elsewhere.
    #[error(transparent)]
    Bound(#[from] OutOfReach),
}

/// Code cannot be where it shall be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("code at {at:#x} does not reach what it needs: {reason}")]
pub struct OutOfReach {
    at: u64,
    reason: String,
}

/// The instruction of a function that the gate's jump replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateSite {
    /// Of the function, in its file.
    pub svma: u64,
    /// From the start of the function.
    pub offset: u32,
    /// Bytes of the instruction, of which the jump needs five.
    pub length: u32,
    /// As GNU as writes it.
    pub instruction: String,
    /// By how many bytes the stack has grown since the entry.
    pub displacement: u32,
    /// From the entry to the end of the site.
    entry_code: Vec<u8>,
    /// First done first.
    pushed: Vec<Pushed>,
}

/// What an instruction put on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pushed {
    Register(Register),
    /// So many bytes that nothing has been written to yet.
    Room(i32),
}

/// The first instruction that the gate's jump can replace.
///
/// `symbols` are the addresses that others call, in any order. `malloc` is where `malloc` of the same file is: there the
/// blocks are seen that `realloc(NULL, size)` asks it for.
///
/// What other functions do is not looked at: see [`GateSite::closed`].
pub(in crate::plan) fn find(
    function: Function<'_>,
    gated: GateFunction,
    symbols: &[u64],
    malloc: Option<u64>,
) -> Result<GateSite, NoSite> {
    let extent = function.extent();
    let mut prologue = Prologue::new(gated, malloc);
    let mut info = InstructionInfoFactory::new();
    for instruction in function.decoder(SEARCH_BYTES.min(extent)).iter() {
        let offset = function.offset_of(&instruction);
        if instruction.is_invalid() {
            let cut_short = offset as usize + MAX_INSTRUCTION_BYTES > SEARCH_BYTES;
            return Err(if cut_short { NoSite::NoneNear } else { NoSite::NotDecodable { offset } });
        }
        if can_be_replaced(&instruction) {
            let site = prologue.end_at(function, &instruction);
            site.check_entered(function, symbols)?;
            site.entry_copy(0, function.svma)?;
            return Ok(site);
        }
        prologue.pass(function, &instruction, &mut info)?;
    }
    Err(NoSite::NoneNear)
}

/// Whether an instruction has room for the jump and can be executed elsewhere. A call can not: it would return there.
fn can_be_replaced(instruction: &Instruction) -> bool {
    instruction.len() >= JUMP_BYTES
        && match instruction.flow_control() {
            FlowControl::Next => true,
            FlowControl::UnconditionalBranch => is_near_branch(instruction),
            FlowControl::ConditionalBranch => instruction.is_jcc_short_or_near(),
            _ => false,
        }
}

impl GateSite {
    /// The addresses that nothing but the code in front of them may lead to: from behind the entry to the end of the site.
    pub(in crate::plan) fn closed(&self) -> RangeInclusive<u64> {
        self.svma + 1..=self.svma + self.entry_code.len() as u64 - 1
    }

    /// Whether one of the instructions from the entry to the site begins at this address.
    pub(in crate::plan) fn has_instruction_at(&self, svma: u64) -> bool {
        let code = Decoder::with_ip(64, &self.entry_code, self.svma, DecoderOptions::NONE);
        code.into_iter().any(|instruction| instruction.ip() == svma)
    }

    fn check_entered(&self, function: Function<'_>, symbols: &[u64]) -> Result<(), NoSite> {
        let closed = self.closed();
        if let Some(symbol) = symbols.iter().find(|&symbol| closed.contains(symbol)) {
            return Err(NoSite::Symbol { offset: (symbol - self.svma) as u32 });
        }
        entered_within(function, &closed)
    }

    /// What the site's bytes become: a jump, padded to the length of the instruction. `bias` is what is to be added to
    /// the addresses of the file.
    pub fn jump(&self, bias: u64, to: u64) -> Result<Vec<u8>, OutOfReach> {
        let at = self.start(bias).wrapping_add(self.offset.into());
        let distance = to.wrapping_sub(at.wrapping_add(JUMP_BYTES as u64)).cast_signed();
        let distance = i32::try_from(distance)
            .map_err(|_| OutOfReach { at, reason: format!("{to:#x} is more than 2 GiB away") })?;
        let mut code = vec![0xe9];
        code.extend(distance.to_le_bytes());
        code.resize(self.length as usize, NOP);
        Ok(code)
    }

    /// The code that the site's jump leads to: it undoes the prologue and jumps to the sampler's `function`.
    pub fn detour(&self, at: u64, function: u64) -> Result<Vec<u8>, OutOfReach> {
        let mut instructions = Vec::new();
        for pushed in self.pushed.iter().rev() {
            instructions.push(match *pushed {
                Pushed::Register(register) => Instruction::with1(Code::Pop_r64, register),
                Pushed::Room(bytes) => Instruction::with2(
                    Code::Lea_r64_m,
                    Register::RSP,
                    MemoryOperand::with_base_displ(Register::RSP, bytes.into()),
                ),
            });
        }
        instructions.push(jump_to(function));
        instructions
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .and_then(|code| encode(&code, at))
            .map_err(|error| OutOfReach { at, reason: error.to_string() })
    }

    /// What the sampler calls for the function: the prologue and the site's instruction, then a jump to what follows.
    pub fn entry_copy(&self, bias: u64, at: u64) -> Result<Vec<u8>, OutOfReach> {
        let start = self.start(bias);
        let mut code: Vec<_> =
            Decoder::with_ip(64, &self.entry_code, start, DecoderOptions::NONE).into_iter().collect();
        jump_to(start.wrapping_add(self.entry_code.len() as u64))
            .and_then(|back| {
                code.push(back);
                encode(&code, at)
            })
            .map_err(|error| OutOfReach { at, reason: error.to_string() })
    }

    /// The address of the instruction that is replaced, as the file states it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.svma + u64::from(self.offset)
    }

    fn start(&self, bias: u64) -> u64 {
        bias.wrapping_add(self.svma)
    }
}

/// What of the function's own code can go into the closed addresses: as [`Function::entered_within`], but a jump through a
/// register right behind the end of the frame is a call in the last place, not a `switch` (glibc's hooks, up to 2.33).
fn entered_within(function: Function<'_>, closed: &RangeInclusive<u64>) -> Result<(), NoSite> {
    let extent = function.extent();
    let reach = (closed.end().saturating_sub(function.svma) as usize).saturating_add(1 + 128 + 2);
    let mut ends_frame = false;
    for instruction in function.decoder(extent.max(reach)).iter() {
        let offset = function.offset_of(&instruction);
        if instruction.is_invalid() {
            let behind = offset as usize + MAX_INSTRUCTION_BYTES > extent;
            return if behind { Ok(()) } else { Err(NoSite::NotDecodable { offset }) };
        }
        if is_near_branch(&instruction) && closed.contains(&instruction.near_branch_target()) {
            let target = instruction.near_branch_target() - function.svma;
            return Err(NoSite::Entered(Obstacle::EnteredAt { offset: target as u32 }));
        }
        if (offset as usize) < extent && is_jump_by_table(&instruction) && !ends_frame {
            return Err(NoSite::Entered(Obstacle::ComputedJump { offset }));
        }
        ends_frame = instruction.code() == Code::Pop_r64
            || instruction.mnemonic() == Mnemonic::Add && instruction.op0_register() == Register::RSP;
    }
    Ok(())
}

/// Whether a function may come to code that is not in its file: by a pointer, by the linkage table, or in the kernel.
pub(in crate::plan) fn calls_out<'data>(function: u64, code_at: impl Fn(u64) -> Option<&'data [u8]>) -> bool {
    /// Allocators are some thousand instructions away from the kernel, over all branches.
    const MOST_INSTRUCTIONS: usize = 100_000;
    let mut seen = BTreeSet::new();
    let mut starts = VecDeque::from([function]);
    while let Some(start) = starts.pop_front() {
        let code = code_at(start).unwrap_or_default();
        for instruction in Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter() {
            if instruction.is_invalid() || !seen.insert(instruction.ip()) {
                break;
            }
            if instruction.mnemonic() == Mnemonic::Syscall {
                return true;
            }
            if is_near_branch(&instruction) {
                starts.push_back(instruction.near_branch_target());
            }
            match instruction.flow_control() {
                FlowControl::IndirectCall => return true,
                FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => return true,
                FlowControl::Next | FlowControl::Call | FlowControl::ConditionalBranch => {}
                _ => break,
            }
        }
        if seen.len() > MOST_INSTRUCTIONS {
            return false;
        }
    }
    false
}

/// Never executed: it stands behind the jump.
const NOP: u8 = 0x90;

fn jump_to(address: u64) -> Result<Instruction, iced_x86::IcedError> {
    Instruction::with_branch(Code::Jmp_rel32_64, address)
}

fn encode(code: &[Instruction], at: u64) -> Result<Vec<u8>, iced_x86::IcedError> {
    let block = InstructionBlock::new(code, at);
    Ok(BlockEncoder::encode(64, block, BlockEncoderOptions::NONE)?.code_buffer)
}

/// What a register holds, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Argument(Register),
    /// Of calloc's arguments.
    Product,
}

/// What the flags tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flags {
    /// Whether it is zero or negative.
    Of(Value),
    /// Whether the product has more than 64 bits.
    Overflow,
}

/// What the instructions from the entry on have done.
struct Prologue {
    gated: GateFunction,
    malloc: Option<u64>,
    pushed: Vec<Pushed>,
    displacement: u32,
    /// By number of the register.
    holds: [Option<Value>; 16],
    flags: Option<Flags>,
}

impl Prologue {
    fn new(gated: GateFunction, malloc: Option<u64>) -> Self {
        let mut holds = [None; 16];
        for &argument in gated.arguments() {
            holds[argument.number()] = Some(Value::Argument(argument));
        }
        Self { gated, malloc, pushed: Vec::new(), displacement: 0, holds, flags: None }
    }

    fn end_at(&self, function: Function<'_>, site: &Instruction) -> GateSite {
        let offset = function.offset_of(site);
        GateSite {
            svma: function.svma,
            offset,
            length: site.len() as u32,
            instruction: text(site),
            displacement: self.displacement,
            entry_code: function.code[..offset as usize + site.len()].to_vec(),
            pushed: self.pushed.clone(),
        }
    }

    /// Goes on behind an instruction, if every call that matters does, and if it can be undone.
    fn pass(
        &mut self,
        function: Function<'_>,
        instruction: &Instruction,
        info: &mut InstructionInfoFactory,
    ) -> Result<(), NoSite> {
        let offset = function.offset_of(instruction);
        match instruction.flow_control() {
            FlowControl::Next if self.push(instruction) => {}
            FlowControl::Next if self.may_run_twice(instruction, info) => {}
            FlowControl::Next => return Err(NoSite::NotUndoable { offset, by: text(instruction) }),
            _ if self.may_branch(function, instruction) => {}
            _ => return Err(NoSite::LeavesBefore { offset, by: text(instruction) }),
        }
        self.follow(instruction, info);
        Ok(())
    }

    /// Notes what a `push` or a `sub` from the stack pointer does; whether it is one.
    fn push(&mut self, instruction: &Instruction) -> bool {
        let (pushed, bytes) = match instruction.code() {
            Code::Push_r64 if instruction.op0_register() != Register::RSP => {
                (Pushed::Register(instruction.op0_register()), 8)
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if instruction.op0_register() == Register::RSP => {
                let bytes = instruction.immediate(1);
                if !(1..=MAX_FRAME_BYTES).contains(&bytes) {
                    return false;
                }
                (Pushed::Room(bytes as i32), bytes as u32)
            }
            _ => return false,
        };
        self.pushed.push(pushed);
        self.displacement += bytes;
        true
    }

    /// Whether an instruction only computes, and only in registers that are not the caller's, or that a `pop` restores.
    fn may_run_twice(&self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> bool {
        let used = info.info(instruction);
        only_computes(instruction)
            && !used.used_memory().iter().any(|memory| is_write(memory.access()))
            && used
                .used_registers()
                .iter()
                .all(|used| !is_write(used.access()) || self.may_write(used.register()))
    }

    fn may_write(&self, register: Register) -> bool {
        let register = register.full_register();
        let is_scratch = ARGUMENTS.contains(&register)
            || matches!(register, Register::RAX | Register::R10 | Register::R11);
        is_scratch && !self.gated.arguments().contains(&register)
            || register.is_gpr64() && self.pushed.contains(&Pushed::Register(register))
    }

    /// Whether a branch is one that only calls take which nobody needs to see: they fail, have nothing to release, or
    /// go to `malloc`.
    fn may_branch(&self, function: Function<'_>, instruction: &Instruction) -> bool {
        if !instruction.is_jcc_short_or_near() {
            return false;
        }
        let target = instruction.near_branch_target();
        if self.fails(function, target) {
            return true;
        }
        let size = self.gated.size().map(Value::Argument);
        match (instruction.condition_code(), self.flags) {
            (ConditionCode::s | ConditionCode::l, Some(Flags::Of(value))) => {
                value == Value::Product || Some(value) == size
            }
            (ConditionCode::o, Some(Flags::Overflow)) => true,
            (ConditionCode::e, Some(Flags::Of(Value::Argument(Register::RDI)))) => match self.gated {
                GateFunction::Free => true,
                GateFunction::Realloc => self.goes_to_malloc(function, target),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether the code there goes straight on to return EINVAL or ENOMEM: in `errno` and with NULL, or from
    /// posix_memalign as its result.
    fn fails(&self, function: Function<'_>, from: u64) -> bool {
        let (mut errno, mut result) = (None, None);
        for instruction in straight_on(function, from) {
            match instruction.code() {
                Code::Retnq => {
                    return match self.gated {
                        GateFunction::Free => false,
                        GateFunction::PosixMemalign => result.is_some_and(is_failure),
                        _ => errno.is_some_and(is_failure) && result == Some(0),
                    };
                }
                Code::Mov_rm32_imm32 if instruction.segment_prefix() == Register::FS => {
                    errno = Some(instruction.immediate32());
                }
                Code::Mov_r32_imm32 if instruction.op0_register() == Register::EAX => {
                    result = Some(instruction.immediate32());
                }
                Code::Xor_r32_rm32 | Code::Xor_rm32_r32
                    if instruction.op0_register() == Register::EAX
                        && instruction.op1_register() == Register::EAX =>
                {
                    result = Some(0);
                }
                _ if instruction.flow_control() != FlowControl::Next => return false,
                _ if instruction.op0_register().full_register() == Register::RAX => result = None,
                _ => {}
            }
        }
        false
    }

    fn goes_to_malloc(&self, function: Function<'_>, from: u64) -> bool {
        straight_on(function, from)
            .find(|instruction| instruction.flow_control() != FlowControl::Next)
            .is_some_and(|leaves| {
                matches!(leaves.flow_control(), FlowControl::UnconditionalBranch | FlowControl::Call)
                    && is_near_branch(&leaves)
                    && Some(leaves.near_branch_target()) == self.malloc
            })
    }

    /// Follows the arguments from register to register, and into the flags.
    fn follow(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        let held = |operand| match instruction.op_kind(operand) {
            OpKind::Register if instruction.op_register(operand).is_gpr64() => {
                self.holds[instruction.op_register(operand).number()]
            }
            _ => None,
        };
        let is_pair = |one, other| match (one, other) {
            (Some(Value::Argument(one)), Some(Value::Argument(other))) => {
                self.gated == GateFunction::Calloc && one != other
            }
            _ => false,
        };
        let result = match instruction.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 => {
                held(1).map(|value| (instruction.op0_register(), value, None))
            }
            Code::Mul_rm64 if is_pair(held(0), self.holds[Register::RAX.number()]) => {
                Some((Register::RAX, Value::Product, Some(Flags::Overflow)))
            }
            Code::Imul_r64_rm64 if is_pair(held(0), held(1)) => {
                Some((instruction.op0_register(), Value::Product, Some(Flags::Overflow)))
            }
            Code::Test_rm64_r64 if instruction.op0_register() == instruction.op1_register() => {
                held(0).map(|value| (instruction.op0_register(), value, Some(Flags::Of(value))))
            }
            _ => None,
        };
        for used in info.info(instruction).used_registers() {
            if is_write(used.access()) && used.register().is_gpr() {
                self.holds[used.register().full_register().number()] = None;
            }
        }
        if instruction.rflags_modified() != 0 {
            self.flags = None;
        }
        if let Some((register, value, flags)) = result {
            self.holds[register.number()] = Some(value);
            self.flags = flags.or(self.flags);
        }
    }
}

/// The instructions from there on, as far as they are near.
fn straight_on(function: Function<'_>, from: u64) -> impl Iterator<Item = Instruction> {
    let start = usize::try_from(from.wrapping_sub(function.svma)).ok();
    let code = start.and_then(|start| function.code.get(start..)).unwrap_or_default();
    Decoder::with_ip(64, code, from, DecoderOptions::NONE)
        .into_iter()
        .take(MAX_STEPS_AWAY)
        .take_while(|instruction| !instruction.is_invalid())
}

fn is_failure(number: u32) -> bool {
    const ENOMEM: u32 = 12;
    const EINVAL: u32 = 22;
    matches!(number, ENOMEM | EINVAL)
}

/// Whether an instruction does nothing but change registers and memory in a way that its operands tell.
fn only_computes(instruction: &Instruction) -> bool {
    use Mnemonic::{
        Adc, Add, And, Bsf, Bsr, Bswap, Bt, Cdq, Cdqe, Cmp, Cqo, Dec, Endbr64, Imul, Inc, Lea, Lzcnt, Mov,
        Movsx, Movsxd, Movzx, Mul, Neg, Nop, Not, Or, Popcnt, Rol, Ror, Sar, Sbb, Shl, Shr, Sub, Test, Tzcnt,
        Xor,
    };
    matches!(
        instruction.mnemonic(),
        Adc | Add
            | And
            | Bsf
            | Bsr
            | Bswap
            | Bt
            | Cdq
            | Cdqe
            | Cmp
            | Cqo
            | Dec
            | Endbr64
            | Imul
            | Inc
            | Lea
            | Lzcnt
            | Mov
            | Movsx
            | Movsxd
            | Movzx
            | Mul
            | Neg
            | Nop
            | Not
            | Or
            | Popcnt
            | Rol
            | Ror
            | Sar
            | Sbb
            | Shl
            | Shr
            | Sub
            | Test
            | Tzcnt
            | Xor
    ) || instruction.condition_code() != ConditionCode::None // setcc, cmovcc
}

fn is_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite)
}

#[cfg(test)]
#[path = "gate_site_tests.rs"]
mod tests;
