//! Code that a program copies many times at run time, without a frame pointer: CPython's, with `-X perf`, through which it calls each
//! Python function, so that every function has an address of its own.
//!
//! The bytes say all that there is to know of the frame, so what is found is right whoever wrote them.

use std::ops::Range;

/// `sub $8, %rsp; call *%rcx; add $8, %rsp; ret`
const CODE: [u8; 11] = [0x48, 0x83, 0xec, 0x08, 0xff, 0xd1, 0x48, 0x83, 0xc4, 0x08, 0xc3];

/// How far the CFA is above the stack pointer, from each of these bytes of a copy on.
pub(super) const ROWS: [(u64, i64); 3] = [(0, 8), (4, 16), (10, 8)];

/// What stands before it in programs built for control-flow protection.
const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];

/// So many bytes tell whether code can be such copies.
pub const TRAMPOLINE_HEAD: usize = ENDBR64.len() + CODE.len();

/// Whether code that begins so can be such copies.
#[must_use]
pub fn begins_with_trampoline(head: &[u8]) -> bool {
    head.strip_prefix(ENDBR64).unwrap_or(head).starts_with(&CODE)
}

/// Where the copies are.
pub(super) fn copies(code: &[u8]) -> Vec<Range<u64>> {
    let mut copies = Vec::new();
    let mut at = 0;
    while let Some(rest) = code.get(at..).filter(|rest| !rest.is_empty()) {
        let is_copy = rest.starts_with(&CODE);
        if is_copy {
            copies.push(at as u64..(at + CODE.len()) as u64);
        }
        at += if is_copy { CODE.len() } else { 1 };
    }
    copies
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::unwind::{Cfa, Rule, SavedBp};

    use super::super::Table;
    use super::*;

    #[test]
    fn each_copy_has_its_rows_and_nothing_else_has() {
        // As CPython 3.12 and 3.13 lay them out, the latter with a gap.
        let code = [&CODE[..], &[0], &CODE, &[0; 5], &CODE, &CODE[..10]].concat();
        assert!(begins_with_trampoline(&code) && begins_with_trampoline(&[ENDBR64, &code].concat()));
        assert!(!begins_with_trampoline(&code[1..]));
        let table = Table::of_trampolines(&code).expect("there are copies");
        let rule = |cfa| Rule::new(Cfa::Sp(cfa), SavedBp::Same).expect("fits");
        for start in [0, 12, 28] {
            for (at, cfa) in [(0, 8), (3, 8), (4, 16), (5, 16), (9, 16), (10, 8)] {
                assert_eq!(table.lookup(start + at), rule(cfa), "{start} + {at}");
            }
            assert_eq!(table.lookup(start + 11), Rule::NO_TABLE);
        }
        assert_eq!(table.lookup(44), Rule::NO_TABLE, "cut short");
        assert_eq!(Table::of_trampolines(&code[1..11]), None);
    }
}
