//! The words of the domain as types: what a recording says, before anything decides how it is shown.
//!
//! A [`Profile`] is the whole result of a recording. The JSON report (`tracer.report/2`) is all of it, with the frames of its
//! stacks in a table; every other report is a view of it.

mod cause;
mod extents;
pub mod loss;
mod profile;
mod units;

pub use cause::Cause;
pub use extents::Extents;
pub use profile::{
    AllocatorMemory, End, Events, Frame, Kind, Memory, Mode, NotProbed, Overhead, Part, PartSize, Process,
    ProcessEnd, Profile, SCHEMA, Settings, StackReport, TimelinePoint, Totals, Verdict, VerdictSummary,
    Window,
};
pub use tracer_ebpf::stop::Stop;
pub use units::{Address, AddressRange, Bytes, PAGE_BYTES, Pid};
