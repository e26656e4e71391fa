//! Finds native memory leaks in a running, unmodified process.
//!
//! The modules are the stages of the pipeline, in the order in which the data passes them: a stage knows the stages before
//! it and the [`model`], and `cargo xtask lint` sees to that. `record` sends a recording through them; `commands` does what
//! the command line asks for. Public is what tests, examples and programs that read recordings need:
//!
//! ```no_run
//! let profile = tracer::report::saved::open("recording.json.gz".as_ref())?;
//! let heaviest = profile.stacks.iter().max_by_key(|stack| stack.weight_bytes);
//! for frame in heaviest.iter().flat_map(|stack| &stack.frames) {
//!     println!("{:?}", frame.function);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod model;

mod descriptors;
mod https;
mod kernel;
mod readable;
mod signals;

pub mod target;

pub mod unwind;

pub mod plan;

pub mod attach;

mod runtime;

mod drain;

mod symbolize;

mod memory;

mod analyze;

pub mod report;

mod record;

pub mod gate;

mod doctor;

mod watch;

mod cli;

mod tui;

mod commands;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;

pub use commands::run;
