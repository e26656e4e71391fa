//! The ends of a target's life, and its children.

use std::os::unix::process::ExitStatusExt;

use tracer_tests::{Program, Tracer, trace};

#[test]
fn children_are_not_mixed_in() {
    let mut program = Program::new("fork.c").start();
    let report = trace(&mut program);
    report.check(&program.expect);
    assert!(report.called_by("leak_in_child").is_empty(), "{:#?}", report.outlines());
    program.assert_unharmed();
}

#[test]
fn exit_of_the_target_ends_the_window_with_what_was_outstanding() {
    let mut program = Program::new("leave.c").argument("exit").start();
    let recording = Tracer::new().pid(program.pid()).start();
    program.go();
    let report = recording.wait().report();
    assert_eq!(report.window.end.as_deref(), Some("target_exited"));
    report.check(&program.expect);
    assert!(program.finish().success());
}

#[test]
fn a_crash_of_the_target_ends_the_window_with_what_was_outstanding() {
    let mut program = Program::new("leave.c").argument("crash").start();
    let recording = Tracer::new().pid(program.pid()).start();
    program.go();
    let report = recording.wait().report();
    assert_eq!(report.window.end.as_deref(), Some("target_exited"));
    report.check(&program.expect);
    assert_eq!(program.finish().signal(), Some(9));
}

#[test]
fn exec_of_the_target_ends_the_window_with_what_was_outstanding() {
    let mut program = Program::new("leave.c").argument("exec").start();
    let recording = Tracer::new().pid(program.pid()).start();
    program.go();
    let report = recording.wait().report();
    assert_eq!(report.window.end.as_deref(), Some("target_exec"));
    report.check(&program.expect);
    // The new program has started with the old one's pipes, and is unharmed.
    program.work();
    program.assert_unharmed();
}
