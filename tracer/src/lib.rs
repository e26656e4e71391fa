//! Finds native memory leaks in a running, unmodified process.
//!
//! The modules are the stages of the pipeline, in the order in which the data passes them; a stage knows only the
//! stages before it and the [`model`]. [`record`] sends a recording through them.

pub mod manual;
pub mod model;

pub mod target;

pub mod plan;

pub mod unwind;

pub mod attach;

pub mod drain;

pub mod symbolize;

pub mod memory;

pub mod analyze;

pub mod report;

pub mod cli;
pub mod doctor;
pub mod record;
pub mod tui;

mod kernel;
mod readable;
mod signals;
