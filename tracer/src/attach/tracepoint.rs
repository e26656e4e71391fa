//! Attaches programs to tracepoints by their numbers, so that no mounted tracefs is needed.
//!
//! The kernel lets one tracepoint go at a time: it waits for the programs (25 ms) under the mutex of BPF's events, and for the
//! tracepoint itself (another 45 ms) under that of all trace events. The first is waited for, so that no program runs any more. The
//! second need not be: an event that an array of perf events holds, too, is destroyed by a kernel thread when the array is gone.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::sys::{self, PerfEvent};

/// What is attached to tracepoints, until this is dropped.
#[derive(Default)]
pub struct Tracepoints {
    links: Vec<OwnedFd>,
    /// Holds the events beyond their links; without it, dropping a link destroys its event.
    events: Option<OwnedFd>,
}

impl Tracepoints {
    /// Nothing is attached yet; room for so many.
    pub fn with_room_for(count: u32) -> Self {
        const PERF_EVENT_ARRAY: u32 = 4;
        let events = sys::create_map(PERF_EVENT_ARRAY, count, None);
        let waits = |error: &io::Error| log::debug!("letting tracepoints go will take its time: {error}");
        Self { links: Vec::new(), events: events.inspect_err(waits).ok() }
    }

    /// Runs `program` at tracepoint number `id`, for every process and on every CPU, after those that were attached before. It can
    /// ask for its cookie.
    ///
    /// # Errors
    /// When the kernel refuses: no permission (`CAP_PERFMON`; where `perf_event_paranoid` is 3, as on Debian, `CAP_SYS_ADMIN`), or
    /// no such tracepoint.
    pub fn attach(&mut self, id: u64, program: BorrowedFd<'_>, cookie: u64) -> io::Result<()> {
        let event = open(id)?;
        let link = sys::link_perf_event(event.as_fd(), program, cookie)?;
        if let (Some(events), Ok(next)) = (&self.events, u32::try_from(self.links.len())) {
            let held = sys::set_element(events.as_fd(), next, event.as_raw_fd().cast_unsigned());
            held.unwrap_or_else(|error| log::debug!("a tracepoint is let go with its link: {error}"));
        }
        self.links.push(link);
        Ok(())
    }
}

impl Drop for Tracepoints {
    /// The last one goes first, so that an understudy goes before its program.
    fn drop(&mut self) {
        while self.links.pop().is_some() {}
    }
}

/// The perf event of a tracepoint.
///
/// # Errors
/// As [`Tracepoints::attach`].
pub fn open(id: u64) -> io::Result<OwnedFd> {
    /// `PERF_TYPE_TRACEPOINT`
    const TRACEPOINT: u32 = 2;
    let event = PerfEvent { event_type: TRACEPOINT, config: id, ..PerfEvent::default() };
    // SAFETY: an event of this type has no pointer.
    unsafe { event.open(None) }
}
