//! One hand-written function for every rule of placement.

use proptest::prelude::*;

use super::*;
use crate::plan::{api::Role, catalog::Catalog};

const SVMA: u64 = 0x1000;

fn need(name: &str) -> Need {
    let catalog = Catalog::default();
    let role = catalog.get(catalog.find(name.as_bytes()).unwrap()).unwrap().role;
    let return_probe = matches!(role, Role::Allocate(_));
    Need { signature: role.signature(), return_probe }
}

fn function(code: &[u8]) -> Function<'_> {
    Function { svma: SVMA, code, size: code.len() as u64 }
}

/// Where the probe of the function with this name and code goes, as far as its own straight path tells.
fn place(name: &str, code: &[&[u8]]) -> Result<Candidate, Obstacle> {
    let code = code.concat();
    function(&code).first_cheap(need(name))
}

const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const TEST_RDI_RDI: &[u8] = &[0x48, 0x85, 0xff];
const CMP_RDI_1024: &[u8] = &[0x48, 0x81, 0xff, 0x00, 0x04, 0x00, 0x00];
const LEA_RAX_RDI_23: &[u8] = &[0x48, 0x8d, 0x47, 0x17];
const MOV_RDI_RBX: &[u8] = &[0x48, 0x89, 0xdf];
const MOV_RBX_RDI: &[u8] = &[0x48, 0x89, 0xfb];
const MOV_RSI_RDI: &[u8] = &[0x48, 0x89, 0xfe];
const XOR_EDI_EDI: &[u8] = &[0x31, 0xff];
const MUL_RDX: &[u8] = &[0x48, 0xf7, 0xe2];
const SUB_RSP_24: &[u8] = &[0x48, 0x83, 0xec, 0x18];
const AND_RSP: &[u8] = &[0x48, 0x83, 0xe4, 0xf0];
const PUSH_RBP: &[u8] = &[0x55];
const PUSH_R12: &[u8] = &[0x41, 0x54];
const PUSH_1: &[u8] = &[0x6a, 0x01];
const JE_SHORT: &[u8] = &[0x74, 0x10];
const JE_LONG: &[u8] = &[0x0f, 0x84, 0xbf, 0x00, 0x00, 0x00];
const JMP_LONG: &[u8] = &[0xe9, 0x10, 0x00, 0x00, 0x00];
const CALL: &[u8] = &[0xe8, 0x10, 0x00, 0x00, 0x00];
const CALL_RAX: &[u8] = &[0xff, 0xd0];
const JMP_RAX: &[u8] = &[0xff, 0xe0];
const JRCXZ: &[u8] = &[0xe3, 0x10];
const RET: &[u8] = &[0xc3];
const NOP: &[u8] = &[0x90];
const NOP2: &[u8] = &[0x66, 0x90];
const NOP5: &[u8] = &[0x0f, 0x1f, 0x44, 0x00, 0x00];

#[test]
fn the_first_cheap_instruction_is_taken_whatever_it_is() {
    for cheap in [PUSH_RBP, PUSH_R12, JE_SHORT, JE_LONG, JMP_LONG, CALL, NOP, NOP2] {
        let candidate = place("malloc", &[ENDBR64, cheap, RET]).unwrap();
        assert_eq!((candidate.offset, candidate.cost), (4, Cost::Emulated), "{}", candidate.instruction);
        assert_eq!(candidate.stack_displacement, 0);
    }
}

#[test]
fn harmless_instructions_are_passed() {
    let candidate = place("malloc", &[ENDBR64, LEA_RAX_RDI_23, CMP_RDI_1024, JE_LONG]).unwrap();
    assert_eq!((candidate.offset, candidate.instruction.as_str()), (15, "je 0x10d4"));
    assert_eq!(candidate.signature, need("malloc").signature);
    let free = place("free", &[TEST_RDI_RDI, JE_SHORT, PUSH_RBP]).unwrap();
    assert_eq!(free.offset, 3);
}

#[test]
fn an_argument_that_is_overwritten_keeps_the_probe_at_the_entry() {
    for clobber in [MOV_RDI_RBX, XOR_EDI_EDI] {
        let obstacle = place("malloc", &[clobber, PUSH_RBP]).unwrap_err();
        assert!(matches!(obstacle, Obstacle::ArgumentLost { arg, .. } if arg == Arg::new(0)), "{obstacle}");
    }
    // The first argument of aligned_alloc is the alignment, which nobody asks for.
    assert_eq!(place("aligned_alloc", &[XOR_EDI_EDI, PUSH_RBP]).unwrap().offset, 2);
    // glibc's reallocarray: the product is in rdx:rax, the third argument is gone.
    let obstacle = place("reallocarray", &[MUL_RDX, JE_SHORT]).unwrap_err();
    assert!(matches!(obstacle, Obstacle::ArgumentLost { arg, .. } if arg == Arg::new(2)), "{obstacle}");
}

#[test]
fn an_argument_is_followed_to_another_argument_register() {
    // mimalloc's malloc: mov %rdi,%rsi; mov %rbx,%rdi; ja
    let candidate = place("malloc", &[MOV_RSI_RDI, MOV_RDI_RBX, JE_SHORT]).unwrap();
    assert_eq!(candidate.signature, Signature { size: Some(Arg::new(1)), ..need("malloc").signature });
    // ... but a copy of what is no longer the argument is no copy of it.
    assert!(place("malloc", &[MOV_RDI_RBX, MOV_RSI_RDI, JE_SHORT]).is_err());
    // The place of a result can only be told in the first register.
    assert!(place("posix_memalign", &[MOV_RSI_RDI, MOV_RDI_RBX, JE_SHORT]).is_err());
}

#[test]
fn a_return_probe_stays_where_the_stack_pointer_has_not_moved() {
    for mover in [SUB_RSP_24, AND_RSP, PUSH_1] {
        let obstacle = place("malloc", &[mover, CALL]).unwrap_err();
        assert!(matches!(obstacle, Obstacle::StackMoved { .. }), "{obstacle}");
    }
}

#[test]
fn an_entry_probe_may_follow_a_stack_pointer_that_moved_by_a_known_distance() {
    let displacement = |code: &[&[u8]]| place("free", code).map(|candidate| candidate.stack_displacement);
    assert_eq!(displacement(&[SUB_RSP_24, CALL]), Ok(24));
    assert_eq!(displacement(&[PUSH_1, SUB_RSP_24, CALL]), Ok(32));
    assert!(matches!(displacement(&[AND_RSP, CALL]), Err(Obstacle::StackMoved { .. })));
}

#[test]
fn what_leaves_the_straight_path_without_being_emulated_ends_the_search() {
    for leaver in [CALL_RAX, JMP_RAX, JRCXZ, RET, &[0xcc], &[0x0f, 0x05]] {
        let obstacle = place("malloc", &[ENDBR64, leaver, PUSH_RBP]).unwrap_err();
        assert!(matches!(obstacle, Obstacle::LeavesBefore { .. }), "{obstacle}");
    }
}

/// Nops of 5, 9 and 10 bytes, as assemblers write them.
const LONG_NOPS: [&[u8]; 3] =
    [NOP5, &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]];

#[test]
fn a_long_nop_is_never_a_place() {
    for nop in LONG_NOPS {
        let behind = nop.len() as u32;
        let cheap = place("malloc", &[ENDBR64, nop, PUSH_RBP]).unwrap();
        assert_eq!((cheap.offset, cheap.cost), (4 + behind, Cost::Emulated));
        let first = place("malloc", &[nop, PUSH_RBP]).unwrap();
        assert_eq!((first.offset, first.cost), (behind, Cost::Emulated));
        // Without a cheap instruction the one behind the nop is as good as the entry, wherever the search ends.
        for end in [MOV_RDI_RBX, CALL_RAX, SUB_RSP_24, &[0x06], &LEA_RAX_RDI_23.repeat(64)] {
            let stepped = place("malloc", &[nop, nop, CMP_RDI_1024, end]).unwrap();
            assert_eq!((stepped.offset, stepped.cost), (2 * behind, Cost::SingleStepped));
        }
        assert!(place("malloc", &[nop]).is_err());
        assert!(function(&[nop, RET].concat()).begins_with_long_nop());
    }
    assert!(!function(&[0x66, 0x90]).begins_with_long_nop(), "a nop of two bytes is emulated");
    assert!(!function(ENDBR64).begins_with_long_nop());
}

#[test]
fn a_branch_that_the_kernel_refuses_to_probe_is_no_place() {
    // 66 e8: an operand-size prefix before a call; uprobes.c answers ENOTSUPP
    let obstacle = place("malloc", &[&[0x66, 0xe8, 0, 0, 0, 0], PUSH_RBP]).unwrap_err();
    assert!(matches!(obstacle, Obstacle::LeavesBefore { .. }), "{obstacle}");
}

#[test]
fn code_that_is_cut_short_or_no_code_keeps_the_probe_at_the_entry() {
    assert_eq!(place("malloc", &[ENDBR64, &[0x48, 0x8d]]), Err(Obstacle::NotDecodable { offset: 4 }));
    assert_eq!(place("malloc", &[ENDBR64, &[0x06]]), Err(Obstacle::NotDecodable { offset: 4 }));
    assert_eq!(place("malloc", &[ENDBR64]), Err(Obstacle::NoneNear));
    assert_eq!(place("malloc", &[&LEA_RAX_RDI_23.repeat(64), PUSH_RBP]), Err(Obstacle::NoneNear));
    assert_eq!(function(&[]).entry(need("malloc")), None);
    assert_eq!(function(&[0x06]).entry(need("malloc")), None);
}

#[test]
fn the_entry_says_what_it_costs() {
    let entry = |code: &[u8]| function(code).entry(need("malloc")).unwrap().cost;
    assert_eq!(entry(ENDBR64), Cost::SingleStepped);
    assert_eq!(entry(TEST_RDI_RDI), Cost::SingleStepped);
    assert_eq!(entry(JMP_LONG), Cost::Emulated);
}

/// The window of a probe that moved from 0x1000 to the jump at 0x1003.
fn entered(code: &[&[u8]]) -> Option<Obstacle> {
    let code = code.concat();
    function(&code).entered_within(&(SVMA + 1..=SVMA + 3))
}

#[test]
fn a_branch_into_the_gap_is_seen() {
    assert_eq!(entered(&[TEST_RDI_RDI, JE_SHORT, RET]), None);
    // A loop back to the candidate: 5: jmp 3
    assert_eq!(entered(&[TEST_RDI_RDI, JE_SHORT, &[0xeb, 0xfc]]), Some(Obstacle::EnteredAt { offset: 3 }));
    // A loop back to the entry passes the probe as a call does... and is none of the window's business.
    assert_eq!(entered(&[TEST_RDI_RDI, JE_SHORT, &[0xeb, 0xf9]]), None);
    // From behind the function's end, where its cold part may lie.
    let code = [TEST_RDI_RDI, JE_SHORT, RET, NOP, &[0xeb, 0xfa]].concat();
    let short = Function { size: 6, ..function(&code) };
    assert_eq!(short.entered_within(&(SVMA + 1..=SVMA + 3)), Some(Obstacle::EnteredAt { offset: 3 }));
}

#[test]
fn a_computed_jump_keeps_the_probe_at_the_entry() {
    assert_eq!(entered(&[TEST_RDI_RDI, JE_SHORT, JMP_RAX]), Some(Obstacle::ComputedJump { offset: 5 }));
    // jmp *0x10(,%rax,8)
    let by_table = &[0xff, 0x24, 0xc5, 0x10, 0, 0, 0];
    assert_eq!(entered(&[TEST_RDI_RDI, JE_SHORT, by_table]), Some(Obstacle::ComputedJump { offset: 5 }));
    // jmp *0x10(%rip): a call in last place through the global offset table
    assert_eq!(entered(&[TEST_RDI_RDI, JE_SHORT, &[0xff, 0x25, 0x10, 0, 0, 0]]), None);
}

#[test]
fn long_branches_are_found_wherever_they_are() {
    let mut code = vec![0x90; 64];
    code[10..15].copy_from_slice(&[0xe8, 0xf1, 0xff, 0xff, 0xff]); // call to 0
    code[20..26].copy_from_slice(&[0x0f, 0x85, 0x0a, 0, 0, 0]); // jne to 36
    code[40..45].copy_from_slice(&[0xe9, 0xf8, 0xff, 0xff, 0xff]); // jmp to 37
    let targets = |windows: &[RangeInclusive<u64>]| {
        let mut found = Vec::new();
        long_branches(&code, SVMA, windows, &mut found);
        found
    };
    assert_eq!(targets(&[SVMA + 30..=SVMA + 36, SVMA + 38..=SVMA + 40]), [SVMA + 36]);
    assert_eq!(targets(&[SVMA + 36..=SVMA + 37]), [SVMA + 36, SVMA + 37]);
    assert_eq!(targets(&[SVMA..=SVMA]), [SVMA]);
    assert_eq!(targets(&[SVMA + 1..=SVMA + 3]), [0_u64; 0]);
    assert_eq!(targets(&[]), [0_u64; 0]);
}

#[test]
fn a_block_that_is_only_passed_on_is_recognised() {
    // A function at this place releases its argument with this number.
    let passed_on = |releaser: Target, arg: u8, code: &[&[u8]]| {
        let releases = |target| (target == releaser).then_some(((), Arg::new(arg)));
        function(&code.concat()).passes_block_on(need("free").signature, releases).is_some()
    };
    let at = |offset: u64| Target::Address(SVMA + offset);
    assert!(passed_on(at(25), 0, &[ENDBR64, JMP_LONG]));
    assert!(passed_on(at(30), 0, &[TEST_RDI_RDI, JE_SHORT, SUB_RSP_24, CALL]));
    assert!(passed_on(at(27), 1, &[MOV_RSI_RDI, MOV_RDI_RBX, JMP_LONG]));
    assert!(passed_on(Target::Slot(SVMA + 22), 0, &[&[0xff, 0x25, 0x10, 0, 0, 0]]));
    // Something else is called in between, which leaves rbx as it is.
    let kept = [MOV_RBX_RDI, CALL, MOV_RDI_RBX, JMP_LONG];
    assert!(passed_on(at(32), 0, &kept));
    // On both sides of a branch.
    let both: [&[u8]; 5] = [CMP_RDI_1024, &[0x74, 0x05], JMP_LONG, &[0xeb, 0xf9], RET];
    assert!(passed_on(at(30), 0, &both));
    // Not when some blocks go another way, or nowhere, or the block is lost.
    assert!(!passed_on(at(30), 0, &[CMP_RDI_1024, &[0x74, 0x05], JMP_LONG, RET]));
    assert!(!passed_on(at(30), 0, &[CMP_RDI_1024, JE_SHORT, JMP_LONG]));
    assert!(!passed_on(at(30), 0, &[TEST_RDI_RDI, LEA_RAX_RDI_23, JE_SHORT, JMP_LONG]));
    assert!(!passed_on(at(23), 0, &[XOR_EDI_EDI, JMP_LONG]));
    assert!(!passed_on(at(29), 0, &[CALL, MOV_RDI_RBX, JMP_LONG]));
    assert!(!passed_on(at(27), 0, &[MOV_RSI_RDI, MOV_RDI_RBX, JMP_LONG]));
    assert!(!passed_on(at(0), 0, &[RET]));
    assert!(!passed_on(at(100), 0, &[&[0xeb, 0xfe]]), "it never ends");
}

proptest! {
    #[test]
    fn any_bytes_are_survived_and_no_rule_is_broken(code in prop::collection::vec(any::<u8>(), 0..256)) {
        let function = function(&code);
        let need = need("calloc");
        function.passes_block_on(need.signature, |target| Some((target, Arg::new(0))));
        function.linkage_slot();
        function.entered_within(&(SVMA + 1..=SVMA + 8));
        if let Ok(candidate) = function.first_cheap(need) {
            prop_assert_eq!(candidate.stack_displacement, 0);
            prop_assert!(candidate.cost != Cost::SingleStepped || function.begins_with_long_nop());
            prop_assert!(candidate.offset > 0 || !function.begins_with_long_nop());
            prop_assert!((candidate.offset as usize) < code.len());
        }
    }
}
