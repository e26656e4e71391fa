//! Starts programs with known leaks, traces them and reads the reports.
//!
//! A test reads as the steps it takes:
//!
//! ```no_run
//! use tracer_tests::{Program, trace};
//!
//! let mut program = Program::new("malloc_family.c").start();
//! let report = trace(&mut program); // record while the program does its work
//! report.check(&program.expect);    // what it said that it would leak, exactly
//! ```
//!
//! Everything here panics with a sentence that says what was expected: a failed step is a failed test. Whatever a test
//! started is ended when its value is dropped.

pub mod bpf;
mod browser;
mod cgroup;
mod chance;
pub mod http;
mod leaking;
mod leftovers;
mod lines;
mod process;
mod program;
mod report;
mod runtimes;
mod sampler;
mod server;
mod stated;
mod terminal;
mod tool;
mod tracer;
mod turn;

pub use browser::Browser;
pub use cgroup::{Freezer, MemoryGroup};
pub use chance::{Chance, faults, gate_rounds};
pub use leaking::Leaking;
pub use leftovers::{assert_text_is_pristine, gate_stubs, modified_text};
pub use lines::Lines;
pub use process::{is_running, process_state, read_memory, send_signal, wait_for_exit, wait_until};
pub use program::{Amount, Expect, Leak, Program, Running, compile, programs_dir, rust_allocator};
pub use report::{AllocatorMemory, Cause, Frame, Report, Stack};
pub use runtimes::{
    go, is_thorough, java, java_of, javas, node_addon, nodes, python, pythons, stacks_wanted, version,
};
pub use sampler::{Listener, sampler};
pub use server::Server;
pub use stated::{Functions, Moving, Pairs, Place};
pub use terminal::Terminal;
pub use tool::{run_tool, text};
pub use tracer::{Finished, Recording, Tracer, tracer_binary};
pub use turn::Turn;

/// Records `program` while it does its work, and ends the recording as a user does, with Ctrl-C.
#[track_caller]
pub fn trace(program: &mut Running) -> Report {
    trace_with(program, Tracer::new())
}

/// As [`trace`], with options of its own.
#[track_caller]
pub fn trace_with(program: &mut Running, tracer: Tracer) -> Report {
    let recording = tracer.pid(program.pid()).start();
    program.work();
    recording.interrupt().report()
}
