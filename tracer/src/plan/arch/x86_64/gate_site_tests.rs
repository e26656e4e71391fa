//! One hand-written function for every rule of the site; then functions that are changed and called.

use std::{
    arch::global_asm,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use object::{Object, ObjectSegment, ObjectSymbol};

use super::*;

const SVMA: u64 = 0x1000;

const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const MOV_EAX_5: &[u8] = &[0xb8, 5, 0, 0, 0];
const MOV_RIP_RAX: &[u8] = &[0x48, 0x8b, 0x05, 0x00, 0x10, 0, 0];
const TEST_RDI_RDI: &[u8] = &[0x48, 0x85, 0xff];
const TEST_RSI_RSI: &[u8] = &[0x48, 0x85, 0xf6];
const TEST_RBX_RBX: &[u8] = &[0x48, 0x85, 0xdb];
const MOV_RDI_RBX: &[u8] = &[0x48, 0x89, 0xfb]; // GNU as: mov %rdi,%rbx
const MOV_RDI_RAX: &[u8] = &[0x48, 0x89, 0xf8];
const MUL_RSI: &[u8] = &[0x48, 0xf7, 0xe6];
const PUSH_RBX: &[u8] = &[0x53];
const PUSH_RSP: &[u8] = &[0x54];
const PUSH_R12: &[u8] = &[0x41, 0x54];
const SUB_RSP_24: &[u8] = &[0x48, 0x83, 0xec, 0x18];
const SUB_RSP_NEGATIVE: &[u8] = &[0x48, 0x83, 0xec, 0x80];
const JE: &[u8] = &[0x74, 0x20];
const JS: &[u8] = &[0x78, 0x20];
const JL: &[u8] = &[0x7c, 0x20];
const JO: &[u8] = &[0x70, 0x20];
const JLE: &[u8] = &[0x7e, 0x20];
const JE_LONG: &[u8] = &[0x0f, 0x84, 0, 1, 0, 0];
const JMP_LONG: &[u8] = &[0xe9, 0, 1, 0, 0];
const RET: &[u8] = &[0xc3];

/// With `nop`s behind it, where the branches go.
fn code(instructions: &[&[u8]]) -> Vec<u8> {
    let mut code = instructions.concat();
    code.resize(code.len() + 128, 0x90);
    code
}

fn site_of(gated: GateFunction, code: &[u8]) -> Result<GateSite, NoSite> {
    find(Function { svma: SVMA, code, size: code.len() as u64 }, gated, &[SVMA], Some(0x5000))
}

fn site(name: &str, instructions: &[&[u8]]) -> Result<GateSite, NoSite> {
    site_of(GateFunction::named(name).unwrap(), &code(instructions))
}

fn offset(name: &str, instructions: &[&[u8]]) -> Option<u32> {
    site(name, instructions).map(|site| site.offset).ok()
}

#[test]
fn the_first_instruction_of_five_bytes_is_the_site() {
    let site = site("malloc", &[ENDBR64, PUSH_R12, PUSH_RBX, SUB_RSP_24, MOV_RIP_RAX, MOV_EAX_5]).unwrap();
    assert_eq!((site.offset, site.length, site.displacement), (11, 7, 40));
    assert_eq!(site.instruction, "mov 0x1000(%rip),%rax");
    assert_eq!(site.closed(), SVMA + 1..=SVMA + 17);
    let starts = site.closed().filter(|&svma| site.has_instruction_at(svma)).map(|svma| svma - SVMA);
    assert_eq!(starts.collect::<Vec<_>>(), [4, 6, 7, 11]);
    for first in [MOV_EAX_5, JE_LONG, JMP_LONG, MOV_RIP_RAX] {
        assert_eq!(offset("malloc", &[first]), Some(0));
    }
}

#[test]
fn it_is_known_who_calls_nobody() {
    let calls_out = |instructions: &[&[u8]]| {
        let mut code = instructions.concat();
        code.extend(RET);
        super::calls_out(SVMA, |svma| code.get(svma.checked_sub(SVMA)? as usize..))
    };
    let (syscall, call_rax, call_slot): (&[u8], &[u8], &[u8]) =
        (&[0x0f, 0x05], &[0xff, 0xd0], &[0xff, 0x15, 0, 0, 0, 0]);
    assert!(calls_out(&[syscall]) && calls_out(&[call_rax]) && calls_out(&[MOV_EAX_5, call_slot]));
    assert!(!calls_out(&[MOV_EAX_5]) && !calls_out(&[]));
    // By a branch, by a call, and by neither; a stub of the linkage table; a table of a `switch`; a loop.
    assert!(calls_out(&[&[0x74, 1], RET, syscall]));
    assert!(calls_out(&[&[0xe8, 1, 0, 0, 0], RET, syscall]));
    assert!(!calls_out(&[RET, syscall]));
    assert!(calls_out(&[&[0xe8, 1, 0, 0, 0], RET, ENDBR64, &[0xff, 0x25, 0, 0, 0, 0]]));
    assert!(!calls_out(&[&[0xff, 0xe0]]));
    assert!(!calls_out(&[&[0xeb, 0xfe]]));
}

#[test]
fn the_jump_is_as_long_as_the_instruction() {
    let site = site("malloc", &[PUSH_RBX, MOV_RIP_RAX]).unwrap();
    let at = 0x7f00_0000_0000 + SVMA + 1;
    assert_eq!(site.jump(0x7f00_0000_0000, at + 5 + 0x1234).unwrap(), [0xe9, 0x34, 0x12, 0, 0, 0x90, 0x90]);
    assert_eq!(site.jump(0x7f00_0000_0000, at + 4).unwrap(), [0xe9, 0xff, 0xff, 0xff, 0xff, 0x90, 0x90]);
    assert!(site.jump(0x7f00_0000_0000, at + 5 + (1 << 31)).is_err());
    assert!(site.jump(0x7f00_0000_0000, at + 4 + (1 << 31)).is_ok());
}

#[test]
fn the_detour_undoes_the_last_first() {
    let site = site("malloc", &[PUSH_R12, PUSH_RBX, SUB_RSP_24, MOV_EAX_5]).unwrap();
    let undo = [0x48, 0x8d, 0x64, 0x24, 0x18, 0x5b, 0x41, 0x5c];
    let detour = site.detour(0x9000, 0x10_0000).unwrap();
    assert_eq!(detour[..8], undo);
    assert_eq!(detour[8..], [0xe9, 0xf3, 0x6f, 0x0f, 0]);
}

#[test]
fn what_is_not_copied_whole_is_no_site() {
    for leaver in [
        &[0xe8, 0, 0, 0, 0][..],   // call
        &[0xff, 0x15, 0, 0, 0, 0], // call *(%rip)
        &[0xff, 0x25, 0, 0, 0, 0], // jmp *(%rip)
        &[0xff, 0xe0],             // jmp *%rax
        &[0xe3, 0x10],             // jrcxz
        &[0xe2, 0x10],             // loop
        &[0x0f, 0x05],             // syscall
        &[0xc7, 0xf8, 0, 0, 0, 0], // xbegin
        &[0xeb, 0x10],             // jmp, short
        &[0xcc],
        RET,
    ] {
        let no = site("malloc", &[ENDBR64, leaver, MOV_EAX_5]).unwrap_err();
        assert!(matches!(no, NoSite::LeavesBefore { offset: 4, .. }), "{no}");
    }
    assert_eq!(site("malloc", &[&[0x06]]).unwrap_err(), NoSite::NotDecodable { offset: 0 });
    assert_eq!(site("malloc", &[&[0x90; 200], MOV_EAX_5]).unwrap_err(), NoSite::NoneNear);
    let short = [0x90, 0x90, 0xc3];
    assert!(site_of(GateFunction::Malloc, &short).is_err());
}

#[test]
fn what_cannot_be_undone_ends_the_search() {
    for (name, instruction) in [
        ("malloc", &[0x31, 0xff][..]),         // xor %edi,%edi
        ("malloc", &[0x40, 0xb7, 1]),          // mov $1,%dil
        ("calloc", &[0x89, 0xfe]),             // mov %edi,%esi
        ("posix_memalign", MUL_RSI),           // writes rdx
        ("malloc", MOV_RDI_RBX),               // rbx is the caller's
        ("malloc", &[0x48, 0x89, 0x07]),       // mov %rax,(%rdi)
        ("malloc", &[0x48, 0x83, 0xe4, 0xf0]), // and $-16,%rsp
        ("malloc", &[0x48, 0x89, 0xe5]),       // mov %rsp,%rbp
        ("malloc", &[0x6a, 1]),                // push $1
        ("malloc", &[0x66, 0x53]),             // push %bx
        ("malloc", &[0xff, 0x37]),             // push (%rdi)
        ("malloc", &[0x58]),                   // pop %rax
        ("malloc", &[0x8e, 0xe0]),             // mov %eax,%fs
        ("malloc", &[0xfd]),                   // std
        ("malloc", &[0x48, 0xf7, 0xf1]),       // div %rcx
        ("malloc", &[0xf3, 0x48, 0xab]),       // rep stos
        ("malloc", &[0x0f, 0xa2]),             // cpuid
        ("malloc", &[0x48, 0x87, 0x07]),       // xchg %rax,(%rdi)
        ("malloc", PUSH_RSP),
        ("malloc", SUB_RSP_NEGATIVE),
    ] {
        let no = site(name, &[ENDBR64, instruction, MOV_EAX_5]).unwrap_err();
        assert!(matches!(no, NoSite::NotUndoable { offset: 4, .. }), "{name} {instruction:x?} {no}");
    }
    assert_eq!(offset("malloc", &[&[0x89, 0xfe], MOV_EAX_5]), Some(2), "malloc has one argument");
    assert_eq!(offset("malloc", &[PUSH_RBX, MOV_RDI_RBX, MOV_EAX_5]), Some(4), "rbx is on the stack");
    assert_eq!(offset("malloc", &[&[0x55, 0x48, 0x89, 0xe5], MOV_EAX_5]), Some(4), "a frame pointer");
    assert_eq!(
        offset("calloc", &[MOV_RDI_RAX, MUL_RSI, &[0x0f, 0x90, 0xc0], MOV_EAX_5]),
        Some(9),
        "seto %al"
    );
}

#[test]
fn only_calls_without_a_block_may_branch_away() {
    for (name, branch) in [
        ("malloc", &[TEST_RDI_RDI, JS][..]),
        ("malloc", &[TEST_RDI_RDI, JL]),
        ("malloc", &[TEST_RDI_RDI, PUSH_RBX, JS]),
        ("malloc", &[PUSH_RBX, MOV_RDI_RBX, TEST_RBX_RBX, JS]),
        ("realloc", &[TEST_RSI_RSI, JS]),
        ("calloc", &[MOV_RDI_RAX, MUL_RSI, JO]),
        ("calloc", &[MOV_RDI_RAX, MUL_RSI, &[0x48, 0x85, 0xc0], JS]),
        ("calloc", &[&[0x48, 0x89, 0xf0], &[0x48, 0xf7, 0xe7], JO]),
        ("calloc", &[MOV_RDI_RAX, &[0x48, 0x0f, 0xaf, 0xc6], JO]),
        ("free", &[TEST_RDI_RDI, JE]),
    ] {
        let instructions = [branch, &[MOV_EAX_5]].concat();
        assert_eq!(offset(name, &instructions), Some(branch.concat().len() as u32), "{name} {branch:x?}");
    }
    for (name, branch) in [
        ("malloc", &[JS][..]),
        ("malloc", &[TEST_RDI_RDI, JE]),
        ("malloc", &[TEST_RDI_RDI, JLE]),
        ("malloc", &[TEST_RDI_RDI, JO]),
        ("malloc", &[TEST_RSI_RSI, JS]),
        ("malloc", &[&[0x85, 0xff], JS]), // test %edi,%edi
        ("malloc", &[TEST_RDI_RDI, SUB_RSP_24, JS]),
        ("malloc", &[PUSH_RBX, MOV_RDI_RBX, &[0xff, 0xc3], TEST_RBX_RBX, JS]), // inc %ebx
        ("calloc", &[TEST_RDI_RDI, JS]),
        ("calloc", &[MUL_RSI, JO]),
        ("calloc", &[MOV_RDI_RAX, &[0x48, 0xf7, 0xe7], JO]), // the square
        ("calloc", &[MOV_RDI_RAX, MUL_RSI, &[0x48, 0x85, 0xd2], JS]),
        ("malloc", &[MOV_RDI_RAX, MUL_RSI, JO]),
        ("realloc", &[TEST_RSI_RSI, JE]),
        ("realloc", &[TEST_RDI_RDI, JE]),
        ("realloc", &[TEST_RDI_RDI, JS]),
        ("free", &[TEST_RDI_RDI, JS]),
    ] {
        let no = site(name, &[branch, &[MOV_EAX_5]].concat()).unwrap_err();
        assert!(matches!(no, NoSite::LeavesBefore { .. }), "{name} {branch:x?} {no}");
    }
}

/// `test %rdi,%rdi; je; mov $5,%eax; ret`, and this at the branch's target.
fn branches_to(gated: GateFunction, target: &[u8]) -> Result<GateSite, NoSite> {
    let mut code = code(&[TEST_RDI_RDI, JE, MOV_EAX_5, RET]);
    code[0x25..0x25 + target.len()].copy_from_slice(target);
    site_of(gated, &code)
}

#[test]
fn realloc_of_null_may_go_to_malloc() {
    // mov %rsi,%rdi; jmp 0x5000, call 0x5000
    for (opcode, distance, is_site) in [(0xe9, 0x3fd3, true), (0xe8, 0x3fd3, true), (0xe9, 0x3fd4, false)] {
        let [low, high, ..] = i32::to_le_bytes(distance);
        let to_malloc = [0x48, 0x89, 0xf7, opcode, low, high, 0, 0];
        assert_eq!(branches_to(GateFunction::Realloc, &to_malloc).is_ok(), is_site);
        assert!(branches_to(GateFunction::Malloc, &to_malloc).is_err());
    }
    assert!(branches_to(GateFunction::Realloc, &[0xc3]).is_err());
}

#[test]
fn what_fails_may_branch_away() {
    let errno = |number| [&[0x64, 0xc7, 0x00, number, 0, 0, 0][..], &[0x31, 0xc0], RET].concat();
    let result = |number| [&[0xb8, number, 0, 0, 0][..], RET].concat();
    use GateFunction::{AlignedAlloc, Malloc, PosixMemalign};
    for gated in [AlignedAlloc, Malloc] {
        assert!(branches_to(gated, &errno(22)).is_ok());
        assert!(branches_to(gated, &errno(12)).is_ok());
        assert!(branches_to(gated, &errno(0)).is_err());
        assert!(branches_to(gated, &result(22)).is_err());
        assert!(branches_to(gated, &[&errno(12)[..7], RET].concat()).is_err(), "not NULL");
        let called = [&errno(12)[..7], &[0xe8, 0, 0, 0, 0], &errno(12)].concat();
        assert!(branches_to(gated, &called).is_err());
    }
    assert!(branches_to(PosixMemalign, &result(22)).is_ok());
    assert!(branches_to(PosixMemalign, &result(0)).is_err());
    assert!(
        branches_to(PosixMemalign, &[&result(22)[..5], &[0xff, 0xc0], RET].concat()).is_err(),
        "inc %eax"
    );
}

#[test]
fn nothing_leads_in_between() {
    let back = |to: u8| code(&[ENDBR64, MOV_EAX_5, RET, &[0xeb, to.wrapping_sub(12)]]);
    for inside in 1..9 {
        let no = site_of(GateFunction::Malloc, &back(inside)).unwrap_err();
        assert_eq!(no, NoSite::Entered(Obstacle::EnteredAt { offset: inside.into() }));
    }
    for outside in [0, 9] {
        assert!(site_of(GateFunction::Malloc, &back(outside)).is_ok());
    }
    let code = code(&[ENDBR64, MOV_EAX_5, RET]);
    let with_symbol = |svma| {
        let function = Function { svma: SVMA, code: &code, size: code.len() as u64 };
        find(function, GateFunction::Malloc, &[svma], None)
    };
    assert_eq!(with_symbol(SVMA + 8), Err(NoSite::Symbol { offset: 8 }));
    assert!(with_symbol(SVMA).is_ok() && with_symbol(SVMA + 9).is_ok());
}

#[test]
fn a_computed_jump_may_lead_anywhere_but_not_when_the_frame_has_ended() {
    let jmp_rax: &[u8] = &[0xff, 0xe0];
    let no = site("malloc", &[MOV_EAX_5, jmp_rax]).unwrap_err();
    assert_eq!(no, NoSite::Entered(Obstacle::ComputedJump { offset: 5 }));
    for end in [&[0x5b][..], &[0x48, 0x83, 0xc4, 0x18]] {
        assert!(site("malloc", &[MOV_EAX_5, end, jmp_rax]).is_ok());
        assert!(site("malloc", &[MOV_EAX_5, end, &[0x90], jmp_rax]).is_err());
    }
}

/// Any bytes: what is found is the end of a row of instructions, and can be copied.
#[test]
fn any_bytes_are_read() {
    let mut random = Random(1);
    let mut sites = 0;
    for _ in 0..200_000 {
        let mut code: Vec<u8> = (0..64).map(|_| random.next() as u8).collect();
        code[0] = if random.next().is_multiple_of(2) { 0x53 } else { 0x48 };
        for gated in [GateFunction::Malloc, GateFunction::Realloc, GateFunction::PosixMemalign] {
            let Ok(site) = site_of(gated, &code) else { continue };
            sites += 1;
            let starts: Vec<_> = Decoder::with_ip(64, &site.entry_code, 0, DecoderOptions::NONE)
                .into_iter()
                .map(|one| one.ip())
                .collect();
            assert_eq!(starts.last(), Some(&site.offset.into()));
            assert!(site.length >= 5 && site.detour(SVMA, 0x2000).is_ok());
        }
    }
    assert!(sites > 1000, "{sites}");
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// What sizes and pointers are at their edges, too.
    fn argument(&mut self) -> u64 {
        let any = self.next();
        match any % 8 {
            0 => 0,
            1 => any % 4096,
            2 => any | 1 << 63,
            3 => u64::MAX - any % 64,
            4 => 1 << (any >> 8 & 63),
            _ => self.next() >> (any >> 8 & 63),
        }
    }
}

// Functions with prologues as compilers make them. What they return depends on their arguments and on nothing else. Each
// is copied with its data to other memory.
global_asm!(
    ".pushsection .text.gate_site_tests,\"ax\",@progbits",
    ".globl gate_test_start, gate_test_end, gate_test_call",
    ".p2align 4",
    "gate_test_start:",
    // 0: glibc 2.36's malloc
    "10: push r12; push rbp; push rbx; mov rbx, rdi; sub rsp, 16; cmp byte ptr [rip + 90f], 0; je 12f",
    "11: mov rax, 77; jmp 13f",
    "12: imul rax, rbx, 31",
    "13: mov [rsp], rax; mov rbp, rdi; mov r12, 3; add rax, rbp; add rsp, 16; pop rbx; pop rbp; pop r12; ret",
    // 1: a frame pointer, a short branch that has to be made long
    "20: endbr64; push rbp; mov rbp, rsp; push r15; test rdi, rdi; .byte 0x78, 21f - (. + 1)",
    "mov eax, 0x1234567; xor rax, rdi; mov r15, rax; pop r15; pop rbp; ret",
    "21: mov rax, -1; pop r15; pop rbp; ret",
    // 2: glibc's calloc; flags live at the site
    "30: push r13; mov rax, rdi; push r12; push rbp; push rbx; sub rsp, 24; mul rsi; mov rbx, rax; seto al",
    "test rbx, rbx; .byte 0x0f, 0x88; .long 31f - (. + 4)",
    "movzx eax, al; lea rax, [rax + rbx]; jmp 32f",
    "31: mov rax, 9",
    "32: mov r13, rax; mov [rsp + 8], rax; add rsp, 24; pop rbx; pop rbp; pop r12; pop r13; ret",
    // 3: free, behind the branch of NULL
    "40: test rdi, rdi; .byte 0x74, 41f - (. + 1); push rbp; lea rsi, [rdi - 16]; push rbx; sub rsp, 24",
    "mov rbx, [rip + 91f]; lea rax, [rbx + rsi]; mov rbp, rax; add rsp, 24; pop rbx; pop rbp; ret",
    "41: mov eax, 3; ret",
    // 4: realloc, NULL goes to malloc (0)
    "50: push r14; test rdi, rdi; .byte 0x74, 51f - (. + 1); mov r14, 0x55; lea rax, [rdi + rsi*4]; add rax, r14; pop r14; ret",
    "51: mov rdi, rsi; pop r14; .byte 0xe9; .long 10b - (. + 4)",
    // 5: musl's malloc
    "60: .byte 0xe9; .long 61f - (. + 4); nop; nop",
    "61: lea rax, [rdi + rdi*2 + 1]; ret",
    // 6: three arguments, an address
    "70: push rbx; mov rcx, rsi; mov rbx, rdx; sub rcx, rdi; lea rax, [rip + 91f]; mov rax, [rax]; add rax, rcx; sub rax, rbx; pop rbx; ret",
    // 7: the branch is the site
    "80: cmp rdi, rsi; .byte 0x0f, 0x87; .long 81f - (. + 4); lea rax, [rdi + rdx]; ret",
    "81: lea rax, [rsi + rdx*2]; ret",
    ".p2align 3",
    "90: .quad 0",
    "91: .quad 0x123456789",
    // where the functions are
    "gate_test_end:",
    ".long 10b - gate_test_start, 20b - gate_test_start, 30b - gate_test_start, 40b - gate_test_start",
    ".long 50b - gate_test_start, 60b - gate_test_start, 70b - gate_test_start, 80b - gate_test_start",
    // rdi: function, rsi: its arguments, rdx: where to leave the registers that are not the callee's
    "gate_test_call:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15; push rdx",
    "mov rax, rdi; mov rdi, [rsi]; mov rdx, [rsi + 16]; mov rsi, [rsi + 8]",
    "mov rbx, 0x1b; mov rbp, 0x1bb; mov r12, 0x112; mov r13, 0x113; mov r14, 0x114; mov r15, rsp",
    "call rax",
    "mov rcx, rsp; mov rsp, r15; pop rdx",
    "mov [rdx], rbx; mov [rdx + 8], rbp; mov [rdx + 16], r12; mov [rdx + 24], r13; mov [rdx + 32], r14",
    "sub r15, rcx; mov [rdx + 40], r15",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx; ret",
    ".popsection",
);

unsafe extern "C" {
    static gate_test_start: u8;
    static gate_test_end: u8;
    fn gate_test_call(function: u64, arguments: &[u64; 3], kept: &mut [u64; 6]) -> u64;
}

const KEPT: [u64; 6] = [0x1b, 0x1bb, 0x112, 0x113, 0x114, 0];

/// Memory that is never given back, for code.
fn code_pages(hint: u64, pages: usize) -> u64 {
    // SAFETY: an anonymous mapping replaces none.
    let memory = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(hint as usize),
            pages << 12,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(memory, libc::MAP_FAILED);
    memory as u64
}

fn write(at: u64, code: &[u8]) {
    // SAFETY: the tests write into what `code_pages` returned, and no thread executes there yet.
    unsafe { ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len()) };
}

fn call(function: u64, arguments: &[u64; 3]) -> u64 {
    let mut kept = [0; 6];
    // SAFETY: the functions compute with their arguments, and the registers are looked at after it.
    let result = unsafe { gate_test_call(function, arguments, &mut kept) };
    assert_eq!(kept, KEPT, "of the function at {function:#x}");
    result
}

/// Spoils every register that is not an argument or the caller's, counts, then calls the entry copy (or jumps to it).
fn sampler(entry_copy: u64, at: u64, counter: &AtomicU64, calls: bool) -> Vec<u8> {
    let counter = ptr::from_ref(counter) as u64;
    let mut code = [&[0x48, 0xb8][..], &counter.to_le_bytes(), &[0xf0, 0x48, 0xff, 0x00]].concat(); // lock incq (%rax)
    code.extend([0x48, 0x31, 0xc0, 0x48, 0xff, 0xc8]); // xor %rax,%rax; dec %rax
    code.extend([0x49, 0x89, 0xc0, 0x49, 0x89, 0xc1, 0x49, 0x89, 0xc2, 0x49, 0x89, 0xc3, 0x48, 0x89, 0xc1]); // r8 to r11, rcx
    if calls {
        code.extend([0x48, 0x83, 0xec, 0x08]);
    }
    let distance = entry_copy.wrapping_sub(at + code.len() as u64 + 5) as i32;
    code.push(if calls { 0xe8 } else { 0xe9 });
    code.extend(distance.to_le_bytes());
    if calls {
        code.extend([0x48, 0x83, 0xc4, 0x08, 0xc3]);
    }
    code
}

#[test]
fn changed_functions_do_what_they_did() {
    use GateFunction::{Calloc, Free, Malloc, PosixMemalign, Realloc};
    let gated = [Malloc, Malloc, Calloc, Free, Realloc, Malloc, PosixMemalign, PosixMemalign];
    let sites = [11, 15, 25, 15, 7, 0, 10, 3];
    // SAFETY: the symbols are the ends of the assembly above, and the list of 8 behind it.
    let (blob, starts) = unsafe {
        let start = &raw const gate_test_start;
        let end = &raw const gate_test_end;
        let length = end as usize - start as usize;
        (std::slice::from_raw_parts(start, length), ptr::read_unaligned(end.cast::<[u32; 8]>()))
    };
    let original = code_pages(0, 2);
    write(original, blob);
    let mut random = Random(7);
    for (number, start) in starts.into_iter().enumerate() {
        for calls in [false, true] {
            // The file's addresses begin at 0x1000, as the bias has to be seen.
            let svma = SVMA + u64::from(start);
            let code = &blob[start as usize..];
            let size = starts.get(number + 1).map_or(code.len() - 16, |next| (next - start) as usize);
            let function = Function { svma, code, size: size as u64 };
            let site = find(function, gated[number], &[], Some(SVMA)).unwrap();
            assert_eq!(site.offset, sites[number], "{number} {site:?}");

            let changed = code_pages(0, 2);
            let far = code_pages(changed.wrapping_sub(1 << 30), 1);
            assert!(changed.abs_diff(far) < 1 << 31);
            let bias = changed - SVMA;
            let counter: &'static AtomicU64 = Box::leak(Box::default());
            let (detour, copy, sampled) = (far, far + 0x100, far + 0x200);
            write(changed, blob);
            write(detour, &site.detour(detour, sampled).unwrap());
            write(copy, &site.entry_copy(bias, copy).unwrap());
            write(sampled, &sampler(copy, sampled, counter, calls));
            write(bias + site.svma + u64::from(site.offset), &site.jump(bias, detour).unwrap());
            let mut unseen = 0;
            const CALLS: u64 = 50_000;
            for _ in 0..CALLS {
                let arguments = [random.argument(), random.argument(), random.argument()];
                let before = counter.load(Ordering::Relaxed);
                let expected = call(original + u64::from(start), &arguments);
                assert_eq!(call(changed + u64::from(start), &arguments), expected, "{number} {arguments:x?}");
                if counter.load(Ordering::Relaxed) == before {
                    unseen += 1;
                    // Negative sizes, and NULL.
                    let may = match number {
                        1 => arguments[0] >> 63 == 1,
                        3 | 4 => arguments[0] == 0,
                        _ => false,
                    };
                    assert!(may, "{number} {arguments:x?}");
                }
            }
            assert_eq!(counter.load(Ordering::Relaxed) + unseen, CALLS);
            assert_eq!(unseen != 0, matches!(number, 1 | 3 | 4));
        }
    }
}

/// The functions of the C library that this test runs with, found as the planner finds them.
#[test]
fn this_machines_c_library_works_through_entry_copies() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let Some(line) = maps.lines().find(|line| line.contains("/libc.so.6") || line.contains("/ld-musl"))
    else {
        return; // a static program
    };
    let path = &line[line.find('/').unwrap()..];
    let bias = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let data = std::fs::read(path).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let symbols: Vec<_> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.is_definition())
        .collect();
    let addresses: Vec<u64> = symbols.iter().map(ObjectSymbol::address).collect();
    let address =
        |name: &str| symbols.iter().find(|symbol| symbol.name() == Ok(name)).map(ObjectSymbol::address);
    let copy = |name: &str| {
        let symbol = symbols.iter().find(|symbol| symbol.name() == Ok(name)).unwrap();
        let (base, code) = file
            .segments()
            .map(|segment| (segment.address(), segment.data().unwrap()))
            .find(|(base, code)| (*base..base + code.len() as u64).contains(&symbol.address()))
            .unwrap();
        let code = &code[(symbol.address() - base) as usize..];
        let function = Function { svma: symbol.address(), code, size: symbol.size() };
        let site = find(function, GateFunction::named(name).unwrap(), &addresses, address("malloc"))
            .unwrap_or_else(|no| panic!("{name} of {path}: {no}"));
        let at = code_pages(bias.wrapping_sub(1 << 28), 1);
        write(at, &site.entry_copy(bias, at).unwrap());
        at
    };
    let (malloc, realloc, free) = (copy("malloc"), copy("realloc"), copy("free"));
    // musl's calloc calls malloc.
    let calloc = path.contains("libc.so.6").then(|| copy("calloc"));
    let mut random = Random(3);
    let mut blocks: Vec<(u64, u64, u8)> = Vec::new();
    for round in 0..100_000 {
        let size = 1 + random.next() % if round % 64 == 0 { 300_000 } else { 600 };
        let mark = random.next() as u8;
        let block = match random.next() % 4 {
            0 if !blocks.is_empty() => {
                let (old, old_size, mark) = blocks.swap_remove(random.next() as usize % blocks.len());
                let block = call(realloc, &[old, size, 0]);
                check(block, old_size.min(size), mark);
                block
            }
            1 if calloc.is_some() => {
                let block = call(calloc.unwrap(), &[1, size, 0]);
                check(block, size, 0);
                block
            }
            _ => call(malloc, &[size, 0, 0]),
        };
        // SAFETY: the block has that size, by what is tested here.
        unsafe { ptr::write_bytes(block as *mut u8, mark, size as usize) };
        blocks.push((block, size, mark));
        if blocks.len() > 200 {
            let (block, size, mark) = blocks.swap_remove(random.next() as usize % blocks.len());
            check(block, size, mark);
            call(free, &[block, 0, 0]);
        }
    }
    for (block, ..) in blocks {
        call(free, &[block, 0, 0]);
    }
    assert_eq!(call(malloc, &[1 << 63, 0, 0]), 0);
    call(free, &[0, 0, 0]);
}

fn check(block: u64, size: u64, mark: u8) {
    assert_ne!(block, 0);
    // SAFETY: the block has that size, and has been written to.
    let bytes = unsafe { std::slice::from_raw_parts(block as *const u8, size as usize) };
    assert!(bytes.iter().all(|&byte| byte == mark));
}
