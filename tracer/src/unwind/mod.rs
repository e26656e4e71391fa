//! Unwind tables: what an ELF file says about its stack frames, in the form that the walk in BPF reads.
//!
//! [`Table::from_elf`] turns a file's `.eh_frame` into sorted rows and the few distinct rules that they use. The rows of
//! all files go into global arrays in the kernel, where rules are numbered once for all ([`Rules`]). The walk
//! itself is [`tracer_ebpf::unwind`]; [`CodeMap`] runs it on the host, over the same tables.
//!
//! The files are the target's, so nothing in them is trusted: parsing is bounded in time and memory by the file's size,
//! and what makes no sense becomes a row that says so.

mod cfa_in_register;
mod cfi;
mod disk;
mod elf;
mod instructions;
mod rules;
mod table;
mod trampolines;
mod walk;

pub use cfi::{function_ranges, unwinds_through};
pub use disk::{Cache, CacheError, CacheLimits, Origin};
pub use elf::CodeSegments;
pub use instructions::{CodeBytes, Described, describe};
pub use rules::Rules;
pub use table::{Table, TableError, TableStats};
pub use trampolines::{TRAMPOLINE_HEAD, begins_with_trampoline};
pub use walk::{CodeMap, MAX_FRAMES, OverlappingMappings, Walk};
