//! What both sides know of a traced process.

use crate::atomic::Word;

/// How many processes one recording can trace.
pub const MAX_PROCESSES: u32 = 1024;

/// The state of a traced process.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ProcessState {
    /// A [`Gate`].
    pub gate: Word,
    /// The address of the kernel's return trampoline in this process, which user space finds among its mappings (`[uprobes]`) once
    /// the kernel has made it; 0 until then.
    pub trampoline: Word,
    /// Monotonic time at which its window opened.
    pub opened_ns: Word,
    /// Zero.
    pub padding: u64,
}

/// Whether a process' events are accounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Gate {
    /// Its window has not opened, or is over.
    Closed = 0,
    /// Its window is open.
    Open = 1,
    /// It replaced its program: what its probes see now is another program.
    Exec = 2,
}
