//! How many descriptors tracer may have.
//!
//! The limit that processes start with is low for the sake of `select(2)`, which is not used here: every traced process takes four
//! descriptors, every file with code a few.

use std::{io, sync::OnceLock};

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What tracer was started with.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Its directory in /proc, its root directory, and two that become readable when it exits.
const OF_A_PROCESS: u64 = 4;

/// Lets this process have as many as it may.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // This is the first that is heard of it.
    let _ = GIVEN.set(limit);
    // Without it, small targets still work.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Gives the process that is about to become a command the limit that tracer was started with. Makes system calls only.
///
/// # Errors
/// When the kernel refuses.
pub fn restore_limit() -> io::Result<()> {
    GIVEN.get().map_or(Ok(()), |given| Ok(setrlimit(Resource::Nofile, *given)?))
}

/// Sees to it that so many processes can be traced.
///
/// # Errors
/// When this process may not have as many descriptors as that takes.
pub fn make_room_for(processes: usize) -> Result<()> {
    const OTHERS: u64 = 256;
    let limit = getrlimit(Resource::Nofile);
    let of_processes = OF_A_PROCESS * processes as u64;
    let wanted = of_processes + OTHERS;
    let suffices = |needed: u64| limit.current.is_none_or(|current| current >= needed);
    if suffices(wanted) {
        return Ok(());
    }
    // With CAP_SYS_RESOURCE also what this process could not have so far.
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    if raised.is_err() && !suffices(of_processes) {
        bail!(
            "{processes} processes need {wanted} open files, and tracer may open {}: raise the limit (ulimit -n {wanted})",
            limit.current.unwrap_or(0)
        );
    }
    Ok(())
}
