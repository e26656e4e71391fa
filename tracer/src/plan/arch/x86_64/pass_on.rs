//! Which function gets the block that another one is asked to release.
//!
//! Every way through the code is followed, with what each register holds: the block, or anything else. A way may call
//! other functions in between (jemalloc's `operator delete` works out an alignment), which keep what the calling
//! convention says. Where the block goes to memory it is lost sight of.

use std::collections::BTreeSet;

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use tracer_ebpf::probe::{Arg, Signature};

use super::{ARGUMENTS, Code, Function, Target, is_near_branch, target};

/// More instructions are not looked at.
const MAX_STEPS: usize = 256;

/// A set of general-purpose registers, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Registers(u16);

impl Registers {
    fn of(registers: impl IntoIterator<Item = Register>) -> Self {
        let mut set = Self(0);
        registers.into_iter().for_each(|register| set.put(register, true));
        set
    }

    fn has(self, register: Register) -> bool {
        register.is_gpr() && self.0 & 1 << register.full_register().number() != 0
    }

    fn put(&mut self, register: Register, is_in: bool) {
        if register.is_gpr() {
            let bit = 1 << register.full_register().number();
            self.0 = if is_in { self.0 | bit } else { self.0 & !bit };
        }
    }

    /// Those that a called function leaves as they are.
    fn after_a_call(self) -> Self {
        use Register::{R12, R13, R14, R15, RBP, RBX};
        Self(self.0 & Self::of([RBX, RBP, R12, R13, R14, R15]).0)
    }
}

/// A way through the code: where it is, and which registers hold the block there.
type Way = (u64, Registers);

impl Function<'_> {
    /// The function that gets every block which this one is asked to release, but NULL, on every way. `releases` tells what
    /// the function at a place is, when it releases a block, and as which argument.
    pub(in crate::plan) fn passes_block_on<F: Copy + PartialEq>(
        &self,
        signature: Signature,
        releases: impl Fn(Target) -> Option<(F, Arg)>,
    ) -> Option<F> {
        let block = ARGUMENTS[usize::from(signature.old?.number())];
        let mut ways: Vec<Way> = vec![(self.svma, Registers::of([block]))];
        let mut followed = BTreeSet::new();
        let mut info = InstructionInfoFactory::new();
        let mut found = None;
        while let Some((mut at, mut holds)) = ways.pop() {
            let mut tested_for_null = false;
            while followed.insert((at, holds)) {
                if followed.len() > MAX_STEPS {
                    return None;
                }
                let instruction = self.instruction_at(at)?;
                let given = |to: Option<Target>| {
                    let (function, arg) = releases(to?)?;
                    holds.has(ARGUMENTS[usize::from(arg.number())]).then_some(function)
                };
                let flow = instruction.flow_control();
                let passed_on = match flow {
                    FlowControl::Next => None,
                    _ => given(target(&instruction)),
                };
                if let Some(function) = passed_on {
                    if found.is_some_and(|found| found != function) {
                        return None;
                    }
                    found = Some(function);
                    if flow != FlowControl::ConditionalBranch {
                        break;
                    }
                }
                let null = tested_for_null.then(|| instruction.mnemonic());
                tested_for_null = false;
                at = match flow {
                    FlowControl::Next => {
                        tested_for_null = tests_for_zero(&instruction, holds);
                        holds = after(&instruction, holds, &mut info);
                        instruction.next_ip()
                    }
                    FlowControl::ConditionalBranch => {
                        if passed_on.is_none() && null != Some(Mnemonic::Je) {
                            ways.push((self.inner_target(&instruction)?, holds));
                        }
                        if null == Some(Mnemonic::Jne) {
                            break;
                        }
                        instruction.next_ip()
                    }
                    FlowControl::UnconditionalBranch => self.inner_target(&instruction)?,
                    FlowControl::Call | FlowControl::IndirectCall => {
                        holds = holds.after_a_call();
                        instruction.next_ip()
                    }
                    _ => return None,
                };
            }
        }
        found
    }

    fn instruction_at(&self, svma: u64) -> Option<Instruction> {
        let offset = usize::try_from(svma.checked_sub(self.svma)?).ok()?;
        let code = self.code.get(offset..self.extent())?;
        let first = Function { svma, code, size: 0 }.decoder(code.len()).iter().next()?;
        (!first.is_invalid()).then_some(first)
    }

    /// Where a branch within the function leads.
    fn inner_target(&self, branch: &Instruction) -> Option<u64> {
        let inside = |to: &u64| to.checked_sub(self.svma).is_some_and(|offset| offset < self.extent() as u64);
        is_near_branch(branch).then(|| branch.near_branch_target()).filter(inside)
    }
}

/// The registers that hold the block after an instruction.
fn after(instruction: &Instruction, holds: Registers, info: &mut InstructionInfoFactory) -> Registers {
    let copies = matches!(instruction.code(), Code::Mov_rm64_r64 | Code::Mov_r64_rm64)
        && instruction.op1_kind() == OpKind::Register
        && holds.has(instruction.op1_register());
    let mut after = holds;
    for used in info.info(instruction).used_registers() {
        if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
            after.put(used.register(), false);
        }
    }
    if copies && instruction.op0_kind() == OpKind::Register {
        after.put(instruction.op0_register(), true);
    }
    after
}

/// `test reg, reg` of a register that holds the block.
fn tests_for_zero(instruction: &Instruction, holds: Registers) -> bool {
    instruction.code() == Code::Test_rm64_r64
        && instruction.op0_register() == instruction.op1_register()
        && holds.has(instruction.op0_register())
}
