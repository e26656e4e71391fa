//! The command line: `tracer --pid N`.
fn main() {}
