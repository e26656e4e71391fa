//! What tracing takes of its target's CPU time is measured and said.

use rustix::process::Signal;
use tracer_tests::{Program, Running, Tracer, send_signal};

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

/// What tracing takes of a program's CPU time, of half a CPU at least, in percent: by what `--max-cost` goes, however little a busy machine
/// leaves for the program.
fn percent_of(program: &Running, options: &[&str]) -> f64 {
    let finished = Tracer::new().options(options).options(["--duration", "2s"]).pid(program.pid()).run();
    let report = finished.report();
    let figure = |name: &str| report.overhead[name].as_f64().unwrap_or_else(|| panic!("{}", report.overhead));
    100.0 * figure("tracing_ns") / figure("cpu_ns").max(report.window.duration_ns as f64 / 2.0)
}

#[test]
fn where_walks_take_too_much_there_is_a_sample_and_where_probes_do_growth_mode() {
    let mut program = Program::new("deep.c").start();
    program.work();
    let (every, sampled) = (percent_of(&program, &[]), percent_of(&program, &["--sample", "8MiB"]));
    println!("{every:.2} % and {sampled:.2} %");
    assert!(every > 2.0 * sampled, "a walk takes more than a probe: {every} and {sampled} %");
    for (limit, sentence) in
        [((every * sampled).sqrt(), "sampled, since"), (sampled / 10.0, "growth mode, since")]
    {
        let mut recording =
            Tracer::new().options(["--max-cost", &format!("{limit:.1}%")]).pid(program.pid()).spawn();
        recording.wait_for_message(sentence);
        recording.wait_for_message("recording ");
        let report = recording.interrupt().report();
        let sample_bytes = report.settings["sample_bytes"].as_u64().expect("it is said");
        let is_sampled = sentence.starts_with("sampled");
        assert_eq!(report.settings["mode"], if is_sampled { "allocations" } else { "growth" });
        assert_eq!(sample_bytes > 0, is_sampled, "{sample_bytes}");
        report.assert_nothing_lost_but(&[]);
    }
    program.assert_unharmed();
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
