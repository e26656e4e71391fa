//! Reports, the text summary, and the options that shape them.

use std::fs;

use tracer_tests::{Expect, Finished, Leak, Program, Report, Running, Tracer};

/// Traces a program that leaks `leaked` blocks of 48 bytes.
#[track_caller]
fn trace_blocks(leaked: u64, tracer: Tracer) -> (Finished, Expect) {
    let mut program = blocks(leaked);
    let recording = tracer.pid(program.pid()).start();
    program.work();
    (recording.interrupt(), program.expect.clone())
}

fn blocks(leaked: u64) -> Running {
    Program::new("live_blocks.c").argument("5000").argument(leaked.to_string()).start()
}

/// The sum of the counts of folded stacks.
#[track_caller]
fn folded_sum(folded: &str) -> u64 {
    let counts = folded.lines().map(|line| line.rsplit_once(' ').expect("a stack and its count").1);
    counts.map(|count| count.parse::<u64>().expect("counts are numbers")).sum()
}

#[test]
fn the_summary_says_what_leaks_and_where_the_reports_are() {
    let (finished, _) = trace_blocks(4096, Tracer::new());
    let report = finished.report();
    let summary = finished.stdout.join("\n");
    for part in ["make_blocks", "192.0 KiB", "report.json", &report.target.pid.to_string()] {
        assert!(summary.contains(part), "the summary says {part:?}:\n{summary}");
    }
    assert!(summary.contains("4096") || summary.contains("4,096"), "it says how many objects:\n{summary}");
    assert!(!summary.contains('\u{1b}'), "no colours where nobody sees them:\n{summary}");
}

#[test]
fn several_reports_of_one_recording_agree() {
    let mut program = Program::new("malloc_family.c").start();
    let tracer = Tracer::new().options(["-o", "graph.svg", "-o", "stacks.folded"]);
    let recording = tracer.pid(program.pid()).start();
    program.work();
    let finished = recording.interrupt();
    let report = finished.report();
    report.check(&program.expect);

    let folded = finished.file("stacks.folded");
    assert_eq!(folded_sum(&folded), report.totals.weight_bytes, "{folded}");
    assert!(folded.lines().any(|line| line.contains("main;leak_calloc")), "root first, leaf last: {folded}");

    let graph = finished.file("graph.svg");
    assert!(graph.contains("<svg") && graph.trim_end().ends_with("</svg>"), "{}", &graph[..200]);
    for part in ["leak_calloc", "leak_posix_memalign", &program.pid().to_string()] {
        assert!(graph.contains(part), "the flame graph shows {part:?}");
    }
}

#[test]
fn without_an_output_a_flame_graph_is_left_under_the_programs_name() {
    let mut program = blocks(10);
    let recording = Tracer::new().without_report().pid(program.pid()).start();
    program.work();
    let finished = recording.interrupt();
    assert!(finished.status.success(), "{finished:#?}");
    let comm = fs::read_to_string(format!("/proc/{}/comm", program.pid())).expect("the target is alive");
    let name = format!("tracer-{}-{}.svg", comm.trim(), program.pid());
    assert!(finished.file(&name).contains("make_blocks"));
    assert!(finished.stdout.join("\n").contains(&name), "the summary says where it is: {finished:#?}");
}

#[test]
fn a_report_on_standard_output_is_all_there_is_on_it() {
    let tracer = Tracer::new().without_report().options(["-o", "-", "--format", "json"]);
    let (finished, expect) = trace_blocks(7, tracer);
    assert!(finished.status.success(), "{finished:#?}");
    Report::parse(&finished.stdout.join("\n")).check(&expect);

    let tracer = Tracer::new().without_report().options(["-o", "-", "--format", "folded"]);
    let (finished, _) = trace_blocks(7, tracer);
    assert!(finished.status.success(), "{finished:#?}");
    assert_eq!(folded_sum(&finished.stdout.join("\n")), 7 * 48);
}

#[test]
fn an_empty_result_says_so_and_is_a_report() {
    let (finished, expect) = trace_blocks(0, Tracer::new().options(["-o", "graph.svg"]));
    finished.report().check(&expect);
    let summary = finished.stdout.join("\n").to_lowercase();
    assert!(summary.contains("nothing") || summary.contains("no "), "{summary}");
}

#[test]
fn a_given_duration_ends_the_recording() {
    let program = Program::new("busy.c").start();
    let report = Tracer::new().pid(program.pid()).options(["--duration", "700ms"]).run().report();
    assert_eq!(report.window.end.as_deref(), Some("duration"));
    // On a busy machine it may be over a little later, but not by a unit of time.
    assert!((700_000_000..42_000_000_000).contains(&report.window.duration_ns), "{:?}", report.window);
}

#[test]
fn an_interrupt_ends_the_recording() {
    let program = Program::new("busy.c").start();
    let report = Tracer::new().pid(program.pid()).options(["-d", "1h"]).start().interrupt().report();
    assert_eq!(report.window.end.as_deref(), Some("interrupted"));
}

#[test]
fn fail_on_is_an_exit_status_of_its_own() {
    let (finished, expect) = trace_blocks(100, Tracer::new().options(["--fail-on", "4800"]));
    assert_eq!(finished.status.code(), Some(3), "{finished:#?}");
    finished.report_despite_status().check(&expect);
    let (finished, expect) = trace_blocks(100, Tracer::new().options(["--fail-on", "4801"]));
    finished.report().check(&expect);
}

#[test]
fn only_requests_in_the_given_range_are_counted() {
    let mut program = Program::new("malloc_family.c").start();
    let recording =
        Tracer::new().options(["--min-size", "600", "--max-size", "1001"]).pid(program.pid()).start();
    program.work();
    let report = recording.interrupt().report();
    report.assert_exact();
    let inside = |leak: &&Leak| (600..=1001).contains(&(leak.bytes / leak.objects));
    let expected: u64 = program.expect.leaks.iter().filter(inside).map(|leak| leak.bytes).sum();
    assert_eq!(report.totals.outstanding_bytes, expected, "{:#?}", report.outlines());
}

#[test]
fn young_blocks_can_be_left_out() {
    let (finished, _) = trace_blocks(100, Tracer::new().options(["--min-age", "1h"]));
    let totals = finished.report().totals;
    assert_eq!((totals.outstanding_objects, totals.allocated_objects), (0, 5000), "{totals:?}");
}

#[test]
fn the_summary_is_as_long_as_asked_for() {
    let mut program = Program::new("malloc_family.c").start();
    let recording = Tracer::new().options(["--top", "2"]).pid(program.pid()).start();
    program.work();
    let finished = recording.interrupt();
    finished.report().check(&program.expect);
    let summary = finished.stdout.join("\n");
    assert!(summary.contains("leak_grown_in_kernel") && summary.contains("leak_large"), "{summary}");
    assert!(!summary.contains("leak_pvalloc"), "{summary}");
}

#[test]
fn doctor_says_what_the_kernel_offers() {
    let finished = Tracer::command(["doctor"]).run();
    assert!(finished.status.success(), "{finished:#?}");
    let lines = finished.stdout.join("\n").to_lowercase();
    for part in ["programs", "jit", "uprobe", "tracepoint", "cap_bpf", "--follow", "ptrace", "lockdown"] {
        assert!(lines.contains(part), "doctor speaks of {part:?}:\n{lines}");
    }
}
