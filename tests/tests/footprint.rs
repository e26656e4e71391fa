//! What the tracer itself costs: memory for many live blocks.

use std::fs;

use tracer_tests::{Program, Tracer};

const MEBIBYTE: u64 = 1 << 20;

/// A line of `/proc/PID/status`, in bytes.
fn status_bytes(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is running");
    let value = status.lines().find_map(|text| text.strip_prefix(line)).expect("the line is there");
    value.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number") * 1024
}

#[test]
fn a_million_live_blocks_are_exact_and_cost_the_tracer_little() {
    const LIVE: u64 = 1_000_000;
    let live = LIVE.to_string();
    let mut program = Program::new("live_blocks.c").argument(&live).argument(&live).start();
    let recording = Tracer::new().pid(program.pid()).start();
    let before = status_bytes(recording.pid(), "RssAnon:");
    program.work();
    let grown = status_bytes(recording.pid(), "RssAnon:").saturating_sub(before);
    // The table is the kernel's and only mapped here. Reading it may take a copy for a moment, not for good.
    assert!(grown < 64 * MEBIBYTE, "the tracer grew by {grown} bytes");
    let report = recording.interrupt().report();
    report.check(&program.expect);
}
