//! A probed target computes what it would compute untraced: registers, flags, memory, `errno`, signals.

use std::sync::{Mutex, PoisonError};

use tracer_tests::{Program, Running, Tracer};

/// With `--follow` the probes in a shared library are in every process that has it: not while another test looks whether its target's
/// code is as it was.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Has it do its work while it is traced, and says whether it found everything as before.
#[track_caller]
fn work(program: &mut Running, as_ever: &str, times: usize) {
    for _ in 0..times {
        program.go();
        program.wait_for_line(as_ever);
    }
}

#[test]
fn every_round_has_the_same_checksum_while_tracers_come_and_go() {
    const AS_EVER: &str = "two rounds";
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut program = Program::new("same_results.c").start();
    work(&mut program, AS_EVER, 1);
    for options in [&[][..], &["--follow"], &["--sample", "4096"], &["--mode", "growth"], &[]] {
        let recording = Tracer::new().options(options).pid(program.pid()).start();
        work(&mut program, AS_EVER, 1);
        let report = recording.interrupt().report();
        report.assert_nothing_lost_but(&[]);
        assert!(report.events.allocations > 0, "{options:?}: {:?}", report.events);
    }
    work(&mut program, AS_EVER, 1);
    program.assert_unharmed();
}

/// The functions of `registers.c`, by the role that their names begin with.
const FUNCTIONS: &[&str] = &[
    "allocate_push",
    "allocate_endbr_push",
    "allocate_nop",
    "allocate_nop2",
    "allocate_nop5",
    "allocate_test_je",
    "allocate_jmp",
    "allocate_jmp_far",
    "allocate_call",
    "allocate_copied",
    "allocate_nop6",
    "allocate_by_ip",
    "allocate_ip",
    "allocate_sub",
    "allocate_flags",
    "allocate_pushed_flags",
    "allocate_vector",
    "allocate_entered",
    "allocate_red_zone",
    "release_push",
    "release_behind_sub",
    "release_test_je",
    "release_red_zone",
    "release_nothing",
    "throw_at_returns",
];
const CONDITIONS: &[&str] =
    &["o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"];

fn functions() -> Vec<String> {
    let on =
        |condition: &&str| [format!("allocate_if_{condition}"), format!("allocate_called_if_{condition}")];
    let conditional = CONDITIONS.iter().flat_map(on);
    FUNCTIONS.iter().map(|&name| name.to_owned()).chain(conditional).collect()
}

fn declaration(function: &str) -> String {
    let role = match function.split('_').next() {
        Some("allocate") => "malloc",
        Some("throw") => "new",
        _ => "free",
    };
    format!("{role}={function}")
}

#[test]
fn registers_and_flags_are_as_untraced_wherever_a_probe_is() {
    const AS_EVER: &str = "as before";
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let executable = Program::new("registers.c").build();
    let functions = functions();
    let declared: Vec<_> = functions.iter().map(|function| declaration(function)).collect();
    let allocator = format!("{}:{}", executable.display(), declared.join(","));
    let mut program = Program::new("registers.c").start();
    work(&mut program, AS_EVER, 1);
    for more in [&[][..], &["--follow"]] {
        let tracer = Tracer::new().options(["--allocator", &allocator]).options(more.iter().copied());
        let recording = tracer.pid(program.pid()).start();
        work(&mut program, AS_EVER, 2);
        let report = recording.interrupt().report();
        // Every probe was hit: the functions' results are taken for blocks.
        let is_seen = |function: &&String| report.stacks.iter().any(|stack| stack.api == **function);
        let allocating = functions.iter().filter(|function| !function.starts_with("release"));
        let unseen: Vec<_> = allocating.filter(|function| !is_seen(function)).collect();
        assert!(unseen.is_empty(), "{unseen:?} of {:#?}", report.outlines());
        assert!(report.events.unmatched_frees + report.totals.freed_objects > 0, "{:?}", report.events);
    }
    work(&mut program, AS_EVER, 1);
    program.assert_unharmed();
}
