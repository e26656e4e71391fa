//! What tracing takes of its target's CPU time is measured and said.

use rustix::process::Signal;
use tracer_tests::{Program, Tracer, send_signal};

#[test]
fn a_target_that_does_nothing_but_allocate_is_said_to_be_slowed_and_what_is_cheaper() {
    let mut program = Program::new("busy.c").start();
    let mut recording = Tracer::new().pid(program.pid()).start();
    program.work();
    recording.wait_for_message("of the target's CPU time; cheaper are `--mode growth`, now");
    let finished = recording.interrupt();
    let summary = finished.stdout.join("\n");
    let report = finished.report();
    program.assert_unharmed();
    report.assert_nothing_lost_but(&[]);
    let overhead = &report.overhead;
    let figure = |name: &str| overhead[name].as_f64().unwrap_or_else(|| panic!("{name}: {overhead}"));
    assert!(figure("percent") > 50.0 && figure("percent") <= 100.0, "{overhead}");
    assert!(figure("tracing_ns") < figure("cpu_ns"), "{overhead}");
    assert!(summary.contains("rates are those of the slowed process"), "{summary}");
}

#[test]
fn a_target_that_only_computes_is_not_slowed() {
    let finished = Tracer::new().launch(["awk", "BEGIN { for (i = 0; i < 2e7; i++) sum += i }"]).run();
    let summary = finished.stdout.join("\n");
    let overhead = finished.report().overhead;
    assert!(overhead["percent"].as_f64().is_some_and(|percent| percent < 5.0), "{overhead}");
    assert!(summary.contains("tracing took about") && !summary.contains("slowed"), "{summary}");
}

#[test]
fn a_target_that_dies_while_growth_mode_replaces_probes_leaves_a_report() {
    let mut program = Program::new("busy.c").start();
    program.work();
    let mut recording = Tracer::new().options(["--max-cost", "0%"]).pid(program.pid()).spawn();
    recording.wait_for_message("growth mode, since");
    send_signal(program.pid(), Signal::KILL);
    program.finish();
    let finished = recording.wait();
    assert!(finished.status.success(), "{:?}", finished.stderr);
    assert_eq!(finished.report().window.end.as_deref(), Some("target_exited"));
}
