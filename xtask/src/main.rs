//! Sets up, runs, tests, checks and measures tracer.
fn main() {}
