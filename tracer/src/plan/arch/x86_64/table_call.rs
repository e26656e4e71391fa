//! The call of a function whose address is in a table at a place that does not change.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::{Function, SEARCH_BYTES};

/// Where the address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum TableCall {
    /// In this word.
    Through(u64),
    /// So many bytes behind what this word points to.
    Behind {
        /// The word.
        pointer: u64,
        /// Bytes.
        offset: u64,
    },
}

/// What a register holds.
#[derive(Clone, Copy)]
enum RegisterValue {
    /// What was loaded from there.
    Word(TableCall),
    /// This address.
    Address,
}

impl Function<'_> {
    /// The first call or jump through a table, or the first comparison with what a table has.
    pub(in crate::plan) fn calls_through_table(&self) -> Option<TableCall> {
        self.table_call().map(|(call, _)| call)
    }

    /// Whether the function that the table leads to is compared with one that is known, the code of which follows (`cmp $f,%rax`).
    pub(in crate::plan) fn compares_with_callee(&self) -> bool {
        self.table_call().is_some_and(|(_, is_compared)| is_compared)
    }

    fn table_call(&self) -> Option<(TableCall, bool)> {
        let mut held: HashMap<Register, RegisterValue> = HashMap::new();
        let word = |held: &HashMap<Register, RegisterValue>, register| match held.get(&register) {
            Some(RegisterValue::Word(word)) => Some(*word),
            _ => None,
        };
        for instruction in self.decoder(SEARCH_BYTES.min(self.extent())).iter() {
            if instruction.is_invalid() {
                return None;
            }
            match instruction.mnemonic() {
                Mnemonic::Jmp | Mnemonic::Call => {
                    let through = match instruction.op0_kind() {
                        OpKind::Memory => loaded(&instruction, &held),
                        OpKind::Register => word(&held, instruction.op0_register()),
                        _ => None,
                    };
                    if let Some(call) = through {
                        return Some((call, false));
                    }
                }
                Mnemonic::Cmp if instruction.op0_kind() == OpKind::Register => {
                    let (first, second) = (instruction.op0_register(), instruction.op1_register());
                    let is_address = match instruction.op1_kind() {
                        OpKind::Immediate32to64 => true,
                        OpKind::Register => [first, second]
                            .iter()
                            .any(|register| matches!(held.get(register), Some(RegisterValue::Address))),
                        _ => false,
                    };
                    if let Some(call) =
                        word(&held, first).or_else(|| word(&held, second)).filter(|_| is_address)
                    {
                        return Some((call, true));
                    }
                }
                _ => {}
            }
            learn(&instruction, &mut held);
        }
        None
    }
}

/// Whether the first so many bytes are instructions that do nothing, and no byte more.
pub(in crate::plan) fn does_nothing(code: &[u8], bytes: usize) -> bool {
    let Some(code) = code.get(..bytes) else { return false };
    Decoder::new(64, code, DecoderOptions::NONE)
        .iter()
        .all(|instruction| instruction.mnemonic() == Mnemonic::Nop)
}

/// The word that an instruction reads.
fn loaded(instruction: &Instruction, held: &HashMap<Register, RegisterValue>) -> Option<TableCall> {
    if instruction.is_ip_rel_memory_operand() {
        return Some(TableCall::Through(instruction.ip_rel_memory_address()));
    }
    if instruction.memory_base() == Register::None && instruction.memory_index() == Register::None {
        return Some(TableCall::Through(instruction.memory_displacement64()));
    }
    match held.get(&instruction.memory_base()) {
        Some(RegisterValue::Word(TableCall::Through(pointer)))
            if instruction.memory_index() == Register::None =>
        {
            Some(TableCall::Behind { pointer: *pointer, offset: instruction.memory_displacement64() })
        }
        _ => None,
    }
}

/// What a register holds after an instruction that writes it.
fn learn(instruction: &Instruction, held: &mut HashMap<Register, RegisterValue>) {
    if instruction.op0_kind() != OpKind::Register {
        return;
    }
    let value = match (instruction.mnemonic(), instruction.op1_kind()) {
        (Mnemonic::Mov, OpKind::Memory) => loaded(instruction, held).map(RegisterValue::Word),
        (Mnemonic::Mov, OpKind::Register) => held.get(&instruction.op1_register()).copied(),
        (Mnemonic::Lea, OpKind::Memory) if instruction.is_ip_rel_memory_operand() => {
            Some(RegisterValue::Address)
        }
        (Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push, _) => return,
        _ => None,
    };
    match value {
        Some(value) => held.insert(instruction.op0_register(), value),
        None => held.remove(&instruction.op0_register()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(code: &[u8]) -> Function<'_> {
        Function { svma: 0x1000, code, size: code.len() as u64 }
    }

    #[test]
    fn a_jump_through_a_table_is_found() {
        // mov %rdi,%rsi; test %rdi,%rdi; js +13; mov 0x100(%rip),%rdi; jmp *0x200(%rip)
        let direct = b"\x48\x89\xfe\x48\x85\xff\x78\x0d\x48\x8b\x3d\x00\x01\x00\x00\xff\x25\x00\x02\x00\x00";
        assert_eq!(function(direct).calls_through_table(), Some(TableCall::Through(0x1215)));
        assert!(!function(direct).compares_with_callee());
        // mov 0x100(%rip),%rax; mov 0x310(%rax),%rdi; jmp *0x318(%rax)
        let behind = b"\x48\x8b\x05\x00\x01\x00\x00\x48\x8b\xb8\x10\x03\x00\x00\xff\xa0\x18\x03\x00\x00";
        let expected = TableCall::Behind { pointer: 0x1107, offset: 0x318 };
        assert_eq!(function(behind).calls_through_table(), Some(expected));
    }

    #[test]
    fn code_of_the_callee_is_told_by_the_comparison() {
        // mov 0x100(%rip),%rax; cmp $0x4fb450,%rax; jne
        let inlined = b"\x48\x8b\x05\x00\x01\x00\x00\x48\x3d\x50\xb4\x4f\x00\x0f\x85\x00\x00\x00\x00";
        assert!(function(inlined).compares_with_callee());
        // mov 0x100(%rip),%rax; lea 0x200(%rip),%rdx; cmp %rdx,%rax
        let by_register = b"\x48\x8b\x05\x00\x01\x00\x00\x48\x8d\x15\x00\x02\x00\x00\x48\x39\xd0";
        assert!(function(by_register).compares_with_callee());
        // cmp $0x200,%rdi: a size
        assert!(!function(b"\x48\x81\xff\x00\x02\x00\x00\xc3").compares_with_callee());
    }

    #[test]
    fn filling_between_functions_does_nothing() {
        // nopw 0x0(%rax,%rax,1); xchg %ax,%ax; nop
        let filling = b"\x66\x0f\x1f\x84\x00\x00\x00\x00\x00\x66\x90\x90";
        assert!([9, 11, 12].iter().all(|&bytes| does_nothing(filling, bytes)));
        assert!(does_nothing(&filling[9..], 3) && does_nothing(&filling[11..], 1));
        // A part of one, one with a jump behind it, and nothing.
        assert!(!does_nothing(filling, 8) && !does_nothing(b"\x90\xeb\xfe", 3) && !does_nothing(b"", 1));
    }
}
