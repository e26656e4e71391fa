//! `--objects python`: blocks that CPython's object allocator serves from its pools.

use std::{fs, path::Path, process::Command};

use tracer_tests::{Program, Running, Tracer, programs_dir, read_memory, run_tool, text, trace_with};

fn tracer() -> Tracer {
    Tracer::new().options(["--objects", "python"])
}

#[test]
fn blocks_of_a_pool_count_once() {
    let mut program = Program::new("pymalloc.c").start();
    trace_with(&mut program, tracer()).check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn without_symbols_the_table_leads_to_them() {
    let program = Program::new("pymalloc.c").flag("-s").flag("-Wl,--export-dynamic");
    let mut program = program.start();
    let report = trace_with(&mut program, tracer());
    report.assert_exact();
    let totals = report.totals;
    assert_eq!((totals.outstanding_objects, totals.outstanding_bytes), (3050, 3000 * 120 + 50 * 4000));
    assert_eq!((totals.freed_objects, totals.freed_bytes), (4000, 2000 * 1100));
    program.assert_unharmed();
}

#[test]
fn unasked_they_are_not_seen() {
    let mut program = Program::new("pymalloc.c").start();
    let report = trace_with(&mut program, Tracer::new());
    assert_eq!(report.totals.outstanding_objects, 50, "those that are passed on to malloc");
}

/// The allocator's table in the program, as long as it has symbols: an address for the context, and four functions.
fn table(executable: &Path, pid: u32) -> Vec<u8> {
    let symbols = run_tool("nm", &[text(executable)]);
    let symbol = symbols.lines().find(|line| line.ends_with(" objects")).expect("the table has a name");
    let offset = u64::from_str_radix(symbol.split(' ').next().expect("it has an address"), 16);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let first = maps.lines().find(|line| line.ends_with(text(executable))).expect("it has itself mapped");
    let start = u64::from_str_radix(first.split('-').next().expect("it begins somewhere"), 16);
    let address = start.expect("a number") + offset.expect("a number");
    read_memory(pid, address, 40).expect("the table is there")
}

#[test]
fn functions_that_are_in_their_callers_are_seen_and_the_table_is_as_before() {
    let program = Program::new("pymalloc.c").flag("-DINLINED").flag("-Wl,--export-dynamic");
    let executable = program.build().canonicalize().expect("it was just built");
    let mut program = program.start_as(&executable);
    let before = table(&executable, program.pid());
    let recording = tracer().pid(program.pid()).start();
    assert_ne!(table(&executable, program.pid()), before, "its calls are sent another way");
    program.work();
    recording.interrupt().report().check(&program.expect);
    assert_eq!(table(&executable, program.pid()), before);
    program.assert_unharmed();
}

/// Whoever is killed leaves a table that does no harm, and that the next one takes back.
#[test]
fn what_a_killed_tracer_left_is_taken_back() {
    let program = Program::new("pymalloc.c").flag("-DINLINED").flag("-Wl,--export-dynamic");
    let executable = program.build().canonicalize().expect("it was just built");
    let mut program = program.start_as(&executable);
    let before = table(&executable, program.pid());
    tracer().pid(program.pid()).start().kill();
    assert_ne!(table(&executable, program.pid()), before);
    trace_with(&mut program, tracer()).check(&program.expect);
    assert_eq!(table(&executable, program.pid()), before);
    program.assert_unharmed();
}

#[test]
fn a_launched_interpreter_goes_the_other_way_from_its_start() {
    let keeps = "import os\ndef keep(): return [object() for _ in range(20_000)]\nkept = keep()\nos._exit(0)";
    let report = tracer().launch(["/usr/bin/python3", "-c", keeps]).run().report();
    let kept = report.stacks.iter().filter(|stack| stack.frames.iter().any(|frame| frame.is("keep")));
    let objects: u64 = kept.map(|stack| stack.outstanding_objects).sum();
    assert!(objects.abs_diff(20_000) < 20, "{:#?}", report.outlines());
}

/// Debian's `python3` has the allocator's code in its callers; a `libpython` has it once. Every block is seen all the same.
#[test]
fn every_object_of_an_interpreter_is_seen() {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(programs_dir().join("python/blocks.py"));
    let mut program = Running::start(command);
    let recording = tracer().pid(program.pid()).start();
    program.go();
    let more: i64 = program.wait_for_line_after("more ").parse().expect("a number");
    program.wait_until_done();
    let report = recording.interrupt().report();
    report.assert_exact();
    let kept: Vec<_> =
        report.stacks.iter().filter(|stack| stack.frames.iter().any(|frame| frame.is("keep"))).collect();
    let objects: u64 = kept.iter().map(|stack| stack.outstanding_objects).sum();
    assert!(objects.abs_diff(20_000) < 20, "{:#?}", report.outlines());
    let (mut came, mut went) = (0, 0);
    for stack in report.stacks.iter().filter(|stack| stack.api.starts_with("_PyObject_")) {
        came += stack.allocated_objects;
        went += stack.freed_objects;
    }
    // The one or other comes between the counts and the window's ends.
    let net = i64::try_from(came - went).expect("fewer than that");
    assert!(
        more >= 20_000 && more.abs_diff(net) < 20,
        "{more} more by the interpreter's count, {net} by the report's"
    );
    program.assert_unharmed();
}

#[test]
fn without_python_it_is_one_clear_line() {
    let program = Program::new("leave.c").start();
    tracer().pid(program.pid()).run().assert_failed(1, &["has no object allocator of Python"]);
}
