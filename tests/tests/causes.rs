//! Who is to blame, in programs of which that is known.

use std::process::Command;

use tempfile::TempDir;
use tracer_tests::{Cause, Program, Report, Tracer, compile};

/// Records a scenario (`programs/scenario.c`) until it says that it has done enough.
#[track_caller]
fn recorded(arguments: &[&str], options: &[&str]) -> Report {
    let program =
        arguments.iter().fold(Program::new("scenario.c"), |program, argument| program.argument(*argument));
    let mut program = program.start();
    let recording = Tracer::new().options(options).pid(program.pid()).start();
    program.go();
    program.wait_for_line("worked");
    let report = recording.interrupt().report();
    program.go();
    program.wait_until_done();
    program.assert_unharmed();
    report
}

/// The cause of all that leaks.
#[track_caller]
fn only_leak(report: &Report) -> &Cause {
    let leaks: Vec<_> = report.causes.iter().filter(|cause| cause.verdict == "leaking").collect();
    let [leak] = leaks[..] else { panic!("one cause: {:#?}", report.causes) };
    let verdict = report.verdict.as_ref().expect("there is a verdict");
    assert_eq!(verdict.leaking, Some(true), "{verdict:?}");
    assert!(verdict.summary.contains(&leak.place), "{verdict:?}");
    leak
}

#[test]
fn who_leaks_through_a_wrapper_that_no_table_knows_is_to_blame() {
    let report = recorded(&["wrapper"], &[]);
    let leak = only_leak(&report);
    assert!(leak.place.ends_with(": remember"), "{leak:?}");
    assert_eq!(leak.by, ["procure"], "{leak:?}");
}

#[test]
fn hundreds_of_stacks_have_one_cause() {
    let report = recorded(&["ways"], &[]);
    let leak = only_leak(&report);
    assert!(leak.place.ends_with(": make_object"), "{leak:?}");
    assert_eq!(leak.stacks, 3 * 256, "{leak:?}");
    let held = report.totals.outstanding_bytes;
    assert!(leak.weight_bytes * 100 >= held * 99, "{} of {held}", leak.weight_bytes);
}

#[test]
fn large_blocks_that_are_rare_are_never_acquitted() {
    for options in [&[][..], &["--sample", "64KiB"]] {
        let report = recorded(&["big_rare"], options);
        let verdict = report.verdict.as_ref().expect("there is a verdict");
        assert_ne!(verdict.leaking, Some(false), "{options:?}: {verdict:?}");
        assert!(report.causes[0].place.ends_with(": leaked"), "{options:?}: {:#?}", report.causes);
        assert!(verdict.summary.contains(": leaked`"), "{options:?}: {verdict:?}");
    }
}

#[test]
fn a_stripped_function_has_one_place_in_every_run() {
    let built = compile("scenario_library.c", &["-shared".into(), "-fPIC".into()]);
    let directory = TempDir::new().expect("a temporary directory");
    let library = directory.path().join("libkept.so");
    let strip = Command::new("strip").arg("-o").arg(&library).arg(&built).status();
    assert!(strip.expect("strip can be run").success());
    let table = Command::new("nm").arg(&built).output().expect("nm can be run");
    let table = String::from_utf8(table.stdout).expect("it prints text");
    let line = table.lines().find(|line| line.ends_with(" t own")).expect("the function is in the table");
    let begin = line.split(' ').next().expect("a line has words").trim_start_matches('0');
    for _ in 0..2 {
        let report = recorded(&["library", library.to_str().expect("paths of tests are UTF-8")], &[]);
        let leak = only_leak(&report);
        assert_eq!(leak.place, format!("libkept.so+0x{begin}"), "{leak:?}");
        assert_eq!((leak.below.as_deref(), leak.stacks), (Some("library_open"), 2), "{leak:?}");
    }
}
