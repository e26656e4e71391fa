//! No uprobe program of ours runs on a per-CPU private stack.
//!
//! From Linux 6.13 the verifier gives programs of this kind with 64 bytes of stack or more a private stack per CPU, and
//! uprobe programs are preemptible: two of them can then share it, and reports of kernel panics are about that.

use tracer_tests::{
    Program, Tracer,
    bpf::{Instruction, LoadedProgram, PROG_TYPE_KPROBE, ProgramInfo, programs_held_by},
};

/// Whether machine code sets up a private stack, as x86's `emit_priv_frame_ptr` does: `movabs $imm64,%r9` or, where 32 bits with
/// their sign are enough (seen on 7.2), `mov $imm32,%r9`; then `add %gs:offset,%r9`.
fn has_private_stack(jited: &[u8]) -> bool {
    const MOVABS_R9: (&[u8], usize) = (&[0x49, 0xb9], 8);
    const MOV_R9: (&[u8], usize) = (&[0x49, 0xc7, 0xc1], 4);
    const ADD_GS_R9: [u8; 5] = [0x65, 0x4c, 0x03, 0x0c, 0x25];
    let begins = |code: &[u8], (opcode, immediate): (&[u8], usize)| {
        let rest = code.strip_prefix(opcode).and_then(|rest| rest.get(immediate..));
        rest.is_some_and(|rest| rest.starts_with(&ADD_GS_R9))
    };
    (0..jited.len()).any(|at| [MOVABS_R9, MOV_R9].into_iter().any(|form| begins(&jited[at..], form)))
}

/// A program of the same type that has 128 bytes of stack, and nothing that would keep it from a private one.
fn program_with_a_large_stack() -> LoadedProgram {
    let store = Instruction { code: 0x7a, registers: 10, offset: -128, immediate: 0 }; // *(u64 *)(r10 - 128) = 0
    let result = Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 0 }; // r0 = 0
    let exit = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };
    LoadedProgram::load(PROG_TYPE_KPROBE, &[store, result, exit])
        .expect("the kernel takes a program that does nothing")
}

/// The kernel has private stacks since 6.13.
fn kernel_has_private_stacks() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(13))
}

#[test]
fn the_pattern_is_what_this_kernel_writes() {
    let control = program_with_a_large_stack().info().expect("the machine code can be read");
    assert!(!control.jited.is_empty(), "the JIT is on and shows its code");
    let found = has_private_stack(&control.jited);
    assert_eq!(found, kernel_has_private_stacks(), "{:02x?}", control.jited);
}

#[test]
fn uprobe_programs_stay_on_the_threads_own_stack() {
    check_programs(Tracer::new());
}

#[test]
fn those_that_follow_children_do_too() {
    check_programs(Tracer::new().options(["--follow"]));
}

fn check_programs(tracer: Tracer) {
    let program = Program::new("busy.c").start();
    let recording = tracer.pid(program.pid()).start();
    let held = programs_held_by(recording.pid());
    let info = |id| LoadedProgram::by_id(id).and_then(|program| program.info()).expect("it is loaded");
    let uprobes: Vec<ProgramInfo> =
        held.into_iter().map(info).filter(|program| program.kind == PROG_TYPE_KPROBE).collect();
    assert!(uprobes.len() >= 2, "the tracer has entry and return programs: {uprobes:?}");
    for program in &uprobes {
        assert!(!program.jited.is_empty(), "{} has machine code", program.name);
        assert!(!has_private_stack(&program.jited), "{} has a private stack", program.name);
    }
    recording.interrupt().report().assert_exact();
}
