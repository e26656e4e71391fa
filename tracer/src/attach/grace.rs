//! Waits until no BPF program runs that had begun before.
//!
//! The kernel promises this to whoever replaces a map in a map: "when we return to it, [user space] knows that all
//! programs that could be running use the new map value" (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c). So a map of
//! one map is made, and its map replaced by itself.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use super::sys;

/// Returns when every program that ran at the call has ended.
///
/// # Errors
/// When the kernel refuses.
pub fn wait() -> io::Result<()> {
    const ARRAY: u32 = 2;
    const ARRAY_OF_MAPS: u32 = 12;
    let inner = sys::create_map(ARRAY, 1, None)?;
    let outer = sys::create_map(ARRAY_OF_MAPS, 1, Some(inner.as_fd()))?;
    sys::set_element(outer.as_fd(), 0, inner.as_raw_fd().cast_unsigned())
}
