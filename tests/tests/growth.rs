//! Growth mode: what made memory resident, page by page, without a probe.

use std::process::Command;

use tracer_tests::{Program, Report, Stack, Tracer, compile, trace_with};

const PAGE: u64 = 4096;

fn growth() -> Tracer {
    Tracer::new().options(["--mode", "growth"])
}

/// Pages that the stacks through a function made resident by this call and that still are.
fn pages(report: &Report, api: &str, function: &str) -> u64 {
    let stacks =
        report.stacks.iter().filter(|stack| stack.counts() && stack.api == api && stack.passes(function));
    stacks.map(|stack| stack.weight_bytes).sum::<u64>() / PAGE
}

fn sum(report: &Report, function: &str, of: fn(&Stack) -> u64) -> u64 {
    report.stacks.iter().filter(|stack| stack.passes(function)).map(of).sum::<u64>() / PAGE
}

#[test]
fn every_page_counts_once_under_who_touched_or_mapped_it() {
    let mut program = Program::new("growth.c").start();
    let report = trace_with(&mut program, growth());
    report.assert_exact();
    assert_eq!(report.settings["mode"], "growth");

    assert_eq!(pages(&report, "page_fault", "grow_old"), 300);
    assert_eq!(pages(&report, "page_fault", "grow_by_read"), 40);
    assert_eq!(pages(&report, "page_fault", "touch_again"), 16);
    // The program's own mapping counts under who mapped it, and only there.
    assert_eq!(pages(&report, "mmap", "grow_own"), 50);
    assert_eq!(pages(&report, "page_fault", "grow_own"), 0);
    // 500 blocks of 4096 bytes with their headers, but for what was left of the heap's last page.
    let heap = pages(&report, "page_fault", "grow_heap");
    assert!((499..=502).contains(&heap), "{heap}");
    assert_eq!(pages(&report, "brk", "grow_heap"), 0, "what the allocator took is not counted again");

    // What is not resident any more weighs nothing; what was unmapped is freed.
    assert_eq!(pages(&report, "page_fault", "drop"), 0);
    assert_eq!(sum(&report, "drop", |stack| stack.outstanding_bytes), 64);
    assert_eq!(sum(&report, "give_back", |stack| stack.freed_bytes), 32);
    assert_eq!(sum(&report, "touch_again", |stack| stack.freed_bytes), 32);
    assert_eq!(pages(&report, "page_fault", "only_read"), 0, "the zero page is nobody's memory");
    program.assert_unharmed();
}

#[test]
fn a_target_without_malloc() {
    let pause = compile("pause.S", &["-static".into(), "-nostdlib".into()]);
    let mut child = Command::new(&pause).spawn().expect("it can be run");
    growth().pid(child.id()).start().interrupt().report().assert_exact();
    child.kill().and_then(|()| child.wait()).expect("it runs");
}

#[test]
fn what_is_about_allocations_is_refused() {
    for option in [["--min-size", "4096"], ["--symbol-prefix", "my_"], ["--sample", "1MiB"]] {
        let finished = growth().options(option).pid(1).run();
        assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
        let message = finished.stderr.join("\n");
        assert!(message.contains(option[0]) && message.contains("growth"), "{message}");
    }
}
