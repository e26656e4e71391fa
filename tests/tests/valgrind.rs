//! A second opinion: valgrind counts every allocation of the same programs, by simulating them. Both must come to the same figures.

use std::{path::Path, process::Command};

use tempfile::TempDir;
use tracer_tests::{Program, Stack, Tracer, programs_dir, sampler};

/// What a program did with its heap, and what it has at its end.
#[derive(Debug, PartialEq, Eq)]
struct Heap {
    allocations: u64,
    frees: u64,
    allocated_bytes: u64,
    outstanding_bytes: u64,
    outstanding_blocks: u64,
}

/// As valgrind's summary has it: `total heap usage: 221 allocs, 70 frees, 861,259 bytes allocated`, and `in use at exit: …`.
fn by_valgrind(command: &[&str]) -> Heap {
    by_valgrind_with(command, "")
}

/// As [`by_valgrind`], with a library that is loaded first.
fn by_valgrind_with(command: &[&str], preload: &str) -> Heap {
    let directory = TempDir::new().expect("a temporary directory");
    let log = directory.path().join("log");
    // By default it has libraries free at the end what they need till then.
    let options = ["--run-libc-freeres=no", "--run-cxx-freeres=no", &format!("--log-file={}", log.display())];
    let output = Command::new("valgrind").env("LD_PRELOAD", preload).args(options).args(command).output();
    let output = output.expect("valgrind is installed");
    assert!(output.status.success(), "{command:?}: {output:?}");
    let log = std::fs::read_to_string(log).expect("valgrind writes its log");
    let numbers_after = |title: &str| -> Vec<u64> {
        let line = log.lines().find_map(|line| line.split_once(title)).unwrap_or_else(|| panic!("{log}")).1;
        line.replace(',', "").split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let [allocations, frees, allocated_bytes] = numbers_after("total heap usage:")[..] else {
        panic!("{log}")
    };
    let [outstanding_bytes, outstanding_blocks] = numbers_after("in use at exit:")[..] else {
        panic!("{log}")
    };
    Heap { allocations, frees, allocated_bytes, outstanding_bytes, outstanding_blocks }
}

fn by_tracer(command: &[&str]) -> Heap {
    let finished = Tracer::new().launch(command).run();
    let report = finished.report();
    report.assert_exact();
    let sum = |figure: fn(&Stack) -> u64| {
        report.stacks.iter().filter(|stack| stack.kind == "native").map(figure).sum()
    };
    Heap {
        allocations: sum(|stack| stack.allocated_objects),
        frees: sum(|stack| stack.freed_objects),
        allocated_bytes: sum(|stack| stack.allocated_bytes),
        outstanding_bytes: sum(|stack| stack.outstanding_bytes),
        outstanding_blocks: sum(|stack| stack.outstanding_objects),
    }
}

#[track_caller]
fn agree_on(command: &[&str]) {
    let valgrind = by_valgrind(command);
    assert!(valgrind.allocations > 100, "{command:?} has something to count: {valgrind:?}");
    assert_eq!(by_tracer(command), valgrind, "{command:?}");
}

#[test]
fn on_a_listing() {
    let sources = programs_dir();
    agree_on(&["ls", "-lR", path(&sources)]);
}

#[test]
fn on_a_compressor() {
    let source = programs_dir().join("protocol.h");
    agree_on(&["xz", "--keep", "--stdout", path(&source)]);
}

#[test]
fn on_an_archiver() {
    let sources = programs_dir();
    agree_on(&["tar", "--create", "--file", "/dev/null", path(&sources)]);
}

#[test]
fn on_a_disassembler() {
    let program = Program::new("mappings.c").build();
    agree_on(&["objdump", "--disassemble", path(&program)]);
}

/// The library counts what the program asks for, as valgrind does; and valgrind the same with it as without it.
#[test]
fn on_what_the_sampler_sees() {
    let source = programs_dir().join("protocol.h");
    let command = ["xz", "--keep", "--stdout", path(&source)];
    let valgrind = by_valgrind(&command);
    assert_eq!(by_valgrind_with(&command, path(sampler())), valgrind);
    // One sample a byte: a block of 16 bytes is left out once in nine million times.
    let tracer = Tracer::new().options(["--sample", "1", "--sampler", path(sampler())]).launch(command);
    let report = tracer.run().report();
    report.assert_nothing_lost_but(&[]);
    let native = report.stacks.iter().filter(|stack| stack.kind == "native");
    let (bytes, left) = native
        .fold((0, 0), |(bytes, left), stack| (bytes + stack.allocated_bytes, left + stack.outstanding_bytes));
    let is_near = |a: u64, b: u64| (a as f64 - b as f64).abs() < 0.001 * b as f64 + 64.0;
    assert!(is_near(bytes, valgrind.allocated_bytes), "{bytes} {valgrind:?}");
    assert!(is_near(left, valgrind.outstanding_bytes), "{left} {valgrind:?}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of plain letters")
}
