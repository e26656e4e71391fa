//! Many threads at once, and threads that come and go.

use tracer_tests::{Program, trace};

#[test]
fn blocks_freed_by_other_threads() {
    let mut program = Program::new("cross_thread.c").start();
    trace(&mut program).check(&program.expect);
}

#[test]
fn threads_that_start_and_end_in_the_window() {
    let mut program = Program::new("short_threads.c").start();
    trace(&mut program).check(&program.expect);
}

#[test]
fn four_million_pairs_on_eight_threads_are_exact() {
    let mut program = Program::new("churn.c").start();
    let report = trace(&mut program);
    report.check(&program.expect);
    assert!(report.events.allocations >= 4_004_000, "{:?}", report.events);
}
