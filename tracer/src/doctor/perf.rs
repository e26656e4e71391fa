//! Asks the kernel whether this process may make uprobes.

use std::io;

/// Tries to make an uprobe in a file that does not exist: the kernel looks at the rights first, so what it says about the
/// file means that the rights are there.
///
/// No capability tells: CAP_PERFMON used to be enough; with the fix of CVE-2025-38466, which stable kernels have too, only
/// CAP_SYS_ADMIN is.
///
/// # Errors
/// Why the kernel makes none, a missing right (`EACCES`) among others.
pub(super) fn may_make_uprobes(event_type: u32) -> io::Result<()> {
    const FD_CLOEXEC: libc::c_ulong = 1 << 3;
    const OWN_PROCESS: libc::pid_t = 0;
    // struct perf_event_attr: type and size, then among zeros config1, the path.
    let mut attributes = [0_u64; 16];
    attributes[0] = u64::from(event_type) | (size_of_val(&attributes) as u64) << 32;
    attributes[7] = c"/proc/self/no-such-file".as_ptr() as u64;
    // SAFETY: the kernel reads the attributes, of the size that they state, and the path, which is a constant. It makes no
    // descriptor, since there is no such file.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), OWN_PROCESS, -1, -1, FD_CLOEXEC)
    };
    debug_assert_eq!(fd, -1);
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::NotFound => Ok(()),
        error => Err(error),
    }
}
