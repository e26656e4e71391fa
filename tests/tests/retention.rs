//! Freed memory that allocators keep: whose it is, and what can be given back.

use tracer_tests::{AllocatorMemory, Program, Report, Running, Tracer};

const MIB: u64 = 1 << 20;

/// Records a program until it has worked.
#[track_caller]
fn record(program: &mut Running) -> Report {
    let recording = Tracer::new().pid(program.pid()).start();
    program.go();
    program.wait_for_line("worked");
    let report = recording.interrupt().report();
    report.check(&program.expect);
    report
}

/// What the allocator keeps whose file's name begins so.
#[track_caller]
fn kept<'a>(report: &'a Report, file: &str) -> &'a AllocatorMemory {
    let allocators = report.memory.iter().flat_map(|memory| &memory.allocators);
    let found = allocators.into_iter().find(|allocator| allocator.file.starts_with(file));
    found.unwrap_or_else(|| panic!("{file} is in {:#?}", report.memory))
}

/// Eight rounds of 8 MiB were freed.
#[track_caller]
fn assert_keeps(report: &Report) {
    let keeper = kept(report, "keeper");
    let grown = keeper.kept_after_bytes - keeper.kept_before_bytes;
    assert!((60 * MIB..=68 * MIB).contains(&grown), "{:#?}", report.memory);
    assert_eq!(keeper.name, None, "nobody knows it");
    let summary = &report.verdict.as_ref().expect("there is a verdict").summary;
    assert!(summary.contains("freed memory kept by the allocator in keeper"), "{summary}");
}

#[test]
fn an_allocator_that_nobody_knows_keeps_what_was_freed() {
    let mut program = Program::new("keeper.c").start();
    assert_keeps(&record(&mut program));
    program.assert_unharmed();
}

#[test]
fn what_it_mapped_before_the_window_is_known_by_the_blocks_in_it() {
    let mut program = Program::new("keeper.c").argument("before").start();
    assert_keeps(&record(&mut program));
    program.assert_unharmed();
}

#[test]
fn what_a_trim_would_give_back() {
    let mut program = Program::new("trim.c").start();
    let report = record(&mut program);
    program.go();
    let trimmed: u64 = program.wait_for_line_after("trimmed ").parse().expect("it is a number");
    let glibc = kept(&report, "libc.so");
    let told = glibc.trimmable_bytes.expect("glibc's arenas can be read");
    assert!(trimmed > 32 * MIB && told.abs_diff(trimmed) * 20 <= trimmed, "{told}, and it was {trimmed}");
    assert!(told <= glibc.kept_after_bytes, "{glibc:#?}");
    let summary = &report.verdict.as_ref().expect("there is a verdict").summary;
    assert!(summary.contains("malloc_trim(0) would give back"), "{summary}");
    program.assert_unharmed();
}
