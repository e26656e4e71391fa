//! Reports of a window that goes on (SIGUSR1), and new windows (SIGUSR2, `--mark-after`).

use rustix::process::Signal;
use tracer_tests::{Program, Recording, Report, Tracer};

fn snapshot(recording: &mut Recording, number: u32) -> Report {
    recording.signal(Signal::USR1);
    recording.wait_for_message(&format!("snapshot {number}, "));
    Report::parse(&recording.file(&format!("report.{number}.json")))
}

fn mark(recording: &mut Recording) {
    recording.signal(Signal::USR2);
    recording.wait_for_message("marked");
}

#[test]
fn a_snapshot_tells_what_the_window_holds_and_the_recording_goes_on() {
    for source in ["malloc_family.c", "mappings.c"] {
        let mut program = Program::new(source).start();
        let mut recording = Tracer::new().pid(program.pid()).start();
        snapshot(&mut recording, 1).assert_exact();
        program.work();
        let so_far = snapshot(&mut recording, 2);
        so_far.check(&program.expect);
        assert!(so_far.window.end.is_none() && so_far.window.duration_ns > 0);
        let finished = recording.interrupt();
        let report = finished.report();
        report.check(&program.expect);
        assert!(report.window.end.is_some() && report.window.duration_ns > so_far.window.duration_ns);
        // The second did not overwrite the first.
        assert!(Report::parse(&finished.file("report.1.json")).totals.allocated_objects == 0);
        program.assert_unharmed();
    }
}

/// Stacks are read one after the other; each agrees with itself.
#[track_caller]
fn assert_each_stack_is_plausible(report: &Report) {
    const MOST_AT_ONCE: u64 = 2 * 64 + 2;
    let plausible = report.stacks.iter().all(|stack| stack.outstanding_objects <= MOST_AT_ONCE);
    assert!(plausible, "{:#?}", report.outlines());
}

#[test]
fn snapshots_of_a_busy_process_add_up_and_lose_nothing() {
    let mut program = Program::new("marked_churn.c").start();
    let mut recording = Tracer::new().pid(program.pid()).start();
    program.go();
    program.wait_for_line("churning");
    let mut allocated = 0;
    for number in 1..=5 {
        let so_far = snapshot(&mut recording, number);
        so_far.assert_exact();
        assert!(so_far.totals.allocated_objects > 0, "{:#?}", so_far.totals);
        assert!(so_far.totals.allocated_objects >= allocated, "{allocated}: {:#?}", so_far.totals);
        assert_each_stack_is_plausible(&so_far);
        let named = so_far
            .passing("churn")
            .iter()
            .filter(|stack| stack.counts())
            .map(|stack| stack.allocated_objects)
            .sum::<u64>();
        assert_eq!(named, so_far.totals.allocated_objects, "{:#?}", so_far.outlines());
        allocated = so_far.totals.allocated_objects;
    }
    program.work();
    recording.interrupt().report().check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn from_a_mark_on_only_what_is_new_counts() {
    let mut program = Program::new("marked.c").start();
    let mut recording = Tracer::new().pid(program.pid()).start();
    program.go();
    program.wait_for_line("marked?");
    let before = snapshot(&mut recording, 1);
    assert!(before.totals.outstanding_objects == 13 && !before.called_by("make_old").is_empty());
    mark(&mut recording);
    assert_eq!(snapshot(&mut recording, 2).totals.allocated_objects, 0);
    program.work();
    let report = recording.interrupt().report();
    report.check(&program.expect);
    assert!(report.called_by("make_old").is_empty(), "{:#?}", report.outlines());
    program.assert_unharmed();
}

#[test]
fn a_time_can_be_set_for_the_mark() {
    let mut program = Program::new("marked.c").start();
    let mut recording = Tracer::new().pid(program.pid()).options(["--mark-after", "5s"]).start();
    program.go();
    program.wait_for_line("marked?");
    recording.wait_for_message("marked");
    program.work();
    recording.interrupt().report().check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn marks_within_running_calls_keep_the_account_exact() {
    let mut program = Program::new("marked_churn.c").start();
    let mut recording = Tracer::new().pid(program.pid()).start();
    program.go();
    program.wait_for_line("churning");
    let mut number = 0;
    for _ in 0..10 {
        mark(&mut recording);
        number += 1;
        let so_far = snapshot(&mut recording, number);
        so_far.assert_exact();
        assert_each_stack_is_plausible(&so_far);
    }
    program.work();
    let report = recording.interrupt().report();
    report.check(&program.expect);
    assert!(report.events.unmatched_frees <= 2 * 64, "what was held at the mark: {:?}", report.events);
    program.assert_unharmed();
}

#[test]
fn standard_output_is_left_out_of_snapshots() {
    let program = Program::new("malloc_family.c").start();
    let mut recording =
        Tracer::new().without_report().options(["-o", "-", "--format", "json"]).pid(program.pid()).start();
    recording.signal(Signal::USR1);
    recording.wait_for_message("name one with -o");
    let finished = recording.interrupt();
    assert!(Report::parse(&finished.stdout.join("\n")).window.end.is_some());
}
