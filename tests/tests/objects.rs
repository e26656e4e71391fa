//! `--objects python`: blocks that CPython's object allocator serves from its pools.

use std::{path::Path, process::Command};

use tracer_tests::{Program, Running, Tracer, programs_dir, trace_with};

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

/// Debian's `python3` has the allocator's code in its callers; a `libpython` has it once.
#[test]
fn an_interpreter_is_followed_or_refused() {
    let python = Path::new("/usr/bin/python3");
    let mut command = Command::new(python);
    command.arg(programs_dir().join("python/scenario.py")).arg("objects");
    let program = Running::start(command);
    let finished = tracer().pid(program.pid()).options(["--duration", "200ms"]).run();
    if !finished.status.success() {
        finished.assert_failed(1, &["compiled into its callers", "PYTHONMALLOC=malloc"]);
    }
}

#[test]
fn without_python_it_is_one_clear_line() {
    let program = Program::new("leave.c").start();
    tracer().pid(program.pid()).run().assert_failed(1, &["has no object allocator of Python"]);
}
