//! `tracer -- COMMAND`: the command is traced from its first instruction, and is as if it had been started alone.

use std::ffi::OsString;

use tempfile::TempDir;
use tracer_tests::{Expect, Program, Tracer, wait_until};

#[test]
fn a_launched_command_is_traced_to_its_end() {
    let program = Program::new("leave.c").build();
    let mut recording = Tracer::new().launch([program]).start();
    recording.send_line("go");
    let finished = recording.wait();
    let report = finished.report();
    assert_eq!(report.window.end.as_deref(), Some("target_exited"));
    report.assert_exact();
    // Libraries are mapped after the command was started: their tables must be there by then, too.
    assert!(report.events.incomplete_stacks.is_empty(), "{:?}", report.events);
    let expect = Expect::in_output(&finished.stdout).expect("its output is passed on");
    report.check_leaks(&expect);
}

#[test]
fn reports_of_a_command_that_goes_on_are_written_before_it_ends() {
    let program = Program::new("leave.c").build();
    let place = TempDir::new().expect("a temporary directory");
    let report = place.path().join("report.json");
    let tracer = Tracer::new().options(["-d", "200ms"]).output(&report);
    let mut recording = tracer.launch([program]).start();
    wait_until("the report is there while the command waits for its line", || report.exists().then_some(()));
    recording.send_line("go");
    let finished = recording.wait();
    assert_eq!(finished.report_despite_status().window.end.as_deref(), Some("duration"));
}

#[test]
fn its_first_allocation_is_seen() {
    // `true` allocates next to nothing, all of it before main.
    let report = Tracer::new().launch(["true"]).run().report();
    report.assert_exact();
    assert!(report.events.allocations > 0, "{:?}", report.events);
}

/// tracer needs more descriptors than programs start with, and takes what it may.
#[test]
fn it_has_the_limit_of_descriptors_that_tracer_was_given() {
    let tracer = Tracer::new().through(["prlimit", "--nofile=600:2000"]);
    let finished = tracer.launch(["sh", "-c", "ulimit -Sn; ulimit -Hn"]).run();
    assert!(finished.stdout.windows(2).any(|lines| lines == ["600", "2000"]), "{finished:#?}");
}

#[test]
fn its_exit_status_is_passed_on() {
    let finished = Tracer::new().launch(["sh", "-c", "exit 7"]).run();
    assert_eq!(finished.status.code(), Some(7), "{finished:#?}");
    finished.report_despite_status().assert_exact();
}

#[test]
fn a_command_that_is_not_there() {
    let command: [OsString; 1] = ["/no/such/command".into()];
    Tracer::new().launch(command).run().assert_failed(127, &["/no/such/command"]);
}
