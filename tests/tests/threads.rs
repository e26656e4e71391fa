//! Many threads at once, and threads that come and go.

use tracer_tests::{Program, Tracer, compile, trace};

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
fn windows_end_between_a_release_and_the_allocation_that_waits_for_it() {
    let mut program = Program::new("one_block.c").flag("-fno-builtin").start();
    program.work();
    for _ in 0..10 {
        let report = Tracer::new().options(["-d", "20ms"]).pid(program.pid()).run().report();
        report.assert_exact();
        assert!(report.events.allocations > 0, "{:?}", report.events);
    }
    program.assert_unharmed();
}

#[test]
fn four_million_pairs_on_eight_threads_are_exact() {
    let mut program = Program::new("churn.c").start();
    let report = trace(&mut program);
    report.check(&program.expect);
    assert!(report.events.allocations >= 4_004_000, "{:?}", report.events);
}

#[test]
fn more_threads_inside_the_allocator_than_there_is_room_for_are_counted() {
    let allocator = compile("own_allocator.c", &["-shared".into(), "-fPIC".into(), "-fno-builtin".into()]);
    let library = allocator.display().to_string();
    let mut program = Program::new("crowd.c").flag("-D_GNU_SOURCE").flag(library).start();
    let report = trace(&mut program);
    report.assert_nothing_lost_but(&["no_thread_record"]);
    assert_eq!(report.events.lost["no_thread_record"], 1, "{:?}", report.events);
    report.check_account(&program.expect);
    program.assert_unharmed();
}
