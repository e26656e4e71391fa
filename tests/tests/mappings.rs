//! Anonymous mappings: ranges, residency, and what is not the program's own.

use tracer_tests::{Program, trace};

const TEBIBYTE: u64 = 1 << 40;

#[test]
fn every_way_to_map_change_and_unmap() {
    let mut program = Program::new("mappings.c").start();
    let report = trace(&mut program);
    report.check(&program.expect);
    for stack in report.stacks.iter().filter(|stack| stack.kind == "mapping" && stack.outstanding_bytes > 0) {
        assert_eq!(stack.resident_bytes, Some(stack.weight_bytes), "{}", stack.outline());
    }
    assert!(
        report.called_by("map_file").iter().all(|stack| stack.kind == "file"),
        "{:#?}",
        report.outlines()
    );
    program.assert_unharmed();
}

#[test]
fn a_reservation_of_a_tebibyte_weighs_nothing() {
    let mut program = Program::new("mappings.c").start();
    let report = trace(&mut program);
    let [reserved] = report.called_by("map_reserved")[..] else { panic!("{:#?}", report.outlines()) };
    assert_eq!((reserved.outstanding_bytes, reserved.weight_bytes), (TEBIBYTE, 0));
    assert!(report.totals.weight_bytes < 1 << 24, "{:?}", report.totals);
}

#[test]
fn what_malloc_maps_for_itself_is_the_allocators() {
    let mut program = Program::new("malloc_family.c").start();
    let report = trace(&mut program);
    let mappings: Vec<_> = report.stacks.iter().filter(|stack| stack.kind == "mapping").collect();
    assert!(mappings.is_empty(), "{:#?}", report.outlines());
    let by_allocator: u64 = report
        .stacks
        .iter()
        .filter(|stack| stack.kind == "allocator")
        .map(|stack| stack.outstanding_bytes)
        .sum();
    // leak_large and leak_grown_in_kernel hold 600,000 and 900,000 bytes in mappings of malloc's own.
    assert!(by_allocator >= 1_500_000, "{:#?}", report.outlines());
}
