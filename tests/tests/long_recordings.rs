//! What keeps a recording of days in bounds.

use rustix::process::Signal;
use tracer_tests::{Program, Tracer, trace};

#[test]
fn stacks_that_hold_nothing_make_room_for_new_ones() {
    let mut program = Program::new("many_stacks.c").start();
    let report = trace(&mut program);
    report.assert_exact();
    report.check_leaks(&program.expect);
    // The way that leaves a block is the last of more than there is room for, and has all of its callers.
    let leak = report.stacks.iter().find(|stack| stack.counts()).expect("there are stacks");
    assert!(leak.called_by("at_the_end") && leak.passes("right") && leak.complete, "{}", leak.outline());
    let causes: Vec<_> = report.events.incomplete_stacks.keys().collect();
    assert_eq!(causes, ["retired"], "{:?}", report.events);
    assert_eq!((report.totals.allocated_objects, report.totals.freed_objects), (200_001, 200_000));
    program.assert_unharmed();
}

#[test]
fn stacks_make_room_after_a_mark_too() {
    let mut program = Program::new("many_stacks.c").start();
    let mut recording = Tracer::new().pid(program.pid()).start();
    program.go();
    // More than a quarter of the table is taken by now; behind the mark come as many stacks as it has room for.
    program.wait_for_line("retiring");
    recording.signal(Signal::USR2);
    recording.wait_for_message("marked");
    program.wait_until_done();
    let report = recording.interrupt().report();
    report.assert_exact();
    report.check_leaks(&program.expect);
    let causes: Vec<_> = report.events.incomplete_stacks.keys().collect();
    assert_eq!(causes, ["retired"], "{:?}", report.events);
    program.assert_unharmed();
}
