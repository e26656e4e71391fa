//! Attaches a program to a tracepoint by its number, so that no mounted tracefs is needed.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::sys::{PerfEvent, link_perf_event};

/// Runs `program` at tracepoint number `id`, for every process and on every CPU, until the result is dropped.
///
/// # Errors
/// When the kernel refuses: no permission (`CAP_PERFMON`; where `perf_event_paranoid` is 3, as on Debian, `CAP_SYS_ADMIN`), or
/// no such tracepoint.
pub fn attach(id: u64, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    link_perf_event(open(id)?.as_fd(), program, 0)
}

/// The perf event of a tracepoint.
///
/// # Errors
/// As [`attach`].
pub fn open(id: u64) -> io::Result<OwnedFd> {
    /// `PERF_TYPE_TRACEPOINT`
    const TRACEPOINT: u32 = 2;
    let event = PerfEvent { event_type: TRACEPOINT, config: id, ..PerfEvent::default() };
    // SAFETY: an event of this type has no pointer.
    unsafe { event.open(None) }
}
