//! Every function of the malloc family, and what calls of it can do besides returning.

use tracer_tests::{Program, Running, Tracer, compile, trace, trace_with};

#[test]
fn every_function_of_the_family() {
    let mut program = Program::new("malloc_family.c").start();
    trace(&mut program).check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn without_frame_pointers_the_caller_is_still_known() {
    let mut program = Program::new("malloc_family.c").flag("-fomit-frame-pointer").start();
    trace(&mut program).check(&program.expect);
}

/// The program with an allocator of its own whose functions call each other.
fn nested() -> Program {
    let allocator = compile("own_allocator.c", &["-shared".into(), "-fPIC".into(), "-fno-builtin".into()]);
    Program::new("nested.c").flag(allocator.display().to_string())
}

#[test]
fn the_outermost_call_counts_and_one_that_never_returned_blinds_nobody() {
    let mut program = nested().start();
    let report = trace(&mut program);
    // Calls that never returned are said to be lost: what they got is not known.
    report.assert_nothing_lost_but(&["never_returned"]);
    report.check_account(&program.expect);
    assert!((1..=51).contains(&report.events.lost["never_returned"]), "{:?}", report.events);
    program.assert_unharmed();
}

#[test]
fn threads_that_end_inside_an_allocator_leave_their_room_to_others() {
    let mut program = Program::new("dying_threads.c").start();
    let report = trace_with(&mut program, Tracer::new().options(["--symbol-prefix", "dying_"]));
    report.assert_exact();
    report.check_leaks(&program.expect);
    program.assert_unharmed();
}

#[test]
fn a_call_that_never_returned_does_not_hide_one_deeper_in_the_stack() {
    let mut program = nested().argument("deep").start();
    trace(&mut program).check_account(&program.expect);
}

#[test]
fn an_operator_new_that_cannot_be_probed_is_told() {
    let flags = ["-shared", "-fPIC", "-fno-builtin", "-DOPAQUE_OPERATOR"];
    let allocator = compile("own_allocator.c", &flags.map(str::to_owned));
    let program = Program::new("nested.c").flag(allocator.display().to_string()).start();
    let finished = Tracer::new().pid(program.pid()).start().interrupt();
    let report = finished.report();
    let [missing] = &report.not_probed[..] else { panic!("{:?}", report.not_probed) };
    assert_eq!(missing.function, "operator new");
    assert!(
        missing.module.starts_with("own_allocator") && missing.why.contains("does not return"),
        "{missing:?}"
    );
    let told = |lines: &[String]| lines.iter().any(|line| line.contains("calls of operator new"));
    assert!(told(&finished.stderr) && told(&finished.stdout), "{finished:#?}");
}

#[test]
fn operator_new_leaking_and_throwing() {
    check_operator_new(Program::new("cxx_new.cpp").start());
}

#[test]
fn operator_new_beside_malloc_in_a_static_program() {
    let mut program = Program::new("cxx_new.cpp").flag("-static").start();
    let leaks = &mut program.expect.leaks;
    // Those that do not throw are probed themselves there: 3 of 140 bytes.
    (leaks[0].bytes, leaks[0].objects) = (leaks[0].bytes - 3 * 140, leaks[0].objects - 3);
    leaks[0].weight = Some(leaks[0].bytes);
    // So are the aligned ones.
    leaks.retain(|leak| leak.api == "malloc");
    check_operator_new(program);
}

fn check_operator_new(mut program: Running) {
    let report = trace(&mut program);
    report.check_leaks(&program.expect);
    report.assert_exact();
    let failed = program.expect.failed.expect("the program knows");
    assert_eq!(report.events.failed_allocations, failed);
    program.assert_unharmed();
}
