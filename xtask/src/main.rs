//! Sets up, runs, tests, checks and measures tracer.

pub mod bpf_toolchain;

fn main() {}
