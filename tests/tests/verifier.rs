//! The verifier takes the programs with much to spare: kernels differ in what they look at.

use tracer_tests::{Program, Tracer, bpf::verified_instructions};

/// What the verifier looks at before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u64 = 1_000_000;

#[test]
fn no_program_uses_a_tenth_of_the_verifiers_limit() {
    for options in [&[][..], &["-vv"], &["--follow", "-vv"], &["--sample", "4096"], &["--mode", "growth"]] {
        let program = Program::new("busy.c").start();
        let recording = Tracer::new().options(options).pid(program.pid()).start();
        let verified = verified_instructions(recording.pid());
        assert!(verified.len() >= 4, "{options:?}: {verified:?}");
        assert!(verified.iter().all(|&instructions| instructions < LIMIT / 10), "{options:?}: {verified:?}");
        recording.interrupt().report().assert_nothing_lost_but(&[]);
    }
}

#[test]
fn nor_does_one_that_is_told_of_blocks() {
    let program = Program::new("told.c").start();
    let recording = Tracer::new().options(["--sample", "4096"]).pid(program.pid()).start();
    let verified = verified_instructions(recording.pid());
    assert!(verified.len() >= 4 && verified.iter().all(|&used| used < LIMIT / 10), "{verified:?}");
    recording.interrupt().report().assert_nothing_lost_but(&[]);
}
