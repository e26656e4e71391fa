//! Attaches a program to a tracepoint by its number, so that no mounted tracefs is needed.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// `struct perf_event_attr` as far as a tracepoint needs it (`PERF_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// Runs `program` at tracepoint number `id`, for every process and on every CPU, until the result is dropped.
///
/// # Errors
/// When the kernel refuses: no permission (`CAP_PERFMON`), or no such tracepoint.
pub fn attach(id: u64, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = PerfEventAttr {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<PerfEventAttr>() as u32,
        config: id,
        ..PerfEventAttr::default()
    };
    const ANY_PROCESS: libc::pid_t = -1;
    const NO_GROUP: libc::c_int = -1;
    // A program on a tracepoint runs on every CPU, whichever one its event names.
    const FIRST_CPU: libc::c_int = 0;
    // SAFETY: the kernel reads `size` bytes of `attr` and nothing else.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            ANY_PROCESS,
            FIRST_CPU,
            NO_GROUP,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given us this descriptor.
    let event = unsafe { OwnedFd::from_raw_fd(fd) };
    control(&event, PERF_EVENT_IOC_SET_BPF, program.as_raw_fd())?;
    control(&event, PERF_EVENT_IOC_ENABLE, 0)?;
    Ok(event)
}

fn control(event: &OwnedFd, request: libc::c_ulong, argument: RawFd) -> io::Result<()> {
    // SAFETY: both requests take a number, not a pointer.
    let status = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
