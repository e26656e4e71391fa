//! Walking a stack by unwind tables: from a frame to its caller, and from an address to the rule that says how.
//!
//! The walk is safe generic code over a few small traits ([`Memory`], [`Tables`]), so the very same functions run in
//! BPF at every allocation and on the host in tests. They neither panic nor allocate nor loop: whoever drives them
//! (`bpf_loop`, or a plain loop) owns the loops and their bounds.
//!
//! One frame is walked in four moves:
//! 1. [`Frame::lookup_address`] → the mapping that holds it: [`Search`] over [`Mapping`]s; where there is none, the walk
//!    ends with [`Frame::not_code`];
//! 2. mapping → place in its file's table: [`TableHeader::locate`];
//! 3. place → row → rule: [`Search`] over one page of rows, or [`cache`];
//! 4. rule → the caller's registers: [`step()`].
//!
//! The first frame of a walk that begins at the entry of a function needs no look-up: its rule is [`Rule::ENTRY`].

pub mod cache;
mod chunk;
mod rule;
mod step;
mod table;

pub use chunk::{CACHE_BITS, Chunk, MAX_CODE_MAPPINGS, MAX_RULES, MAX_TABLES};
pub use rule::{Cfa, Rule, SavedBp};
pub use step::{Frame, Memory, Registers, Via, step, step_frame_pointer};
pub use table::{
    MAX_PAGE_PROBES, Mapping, PAGE_BITS, PAGE_SIZE, Row, RowSearch, Search, TableHeader, TablePosition,
    Tables,
};
