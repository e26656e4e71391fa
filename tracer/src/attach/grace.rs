//! Waits until no BPF program runs that had begun before.
//!
//! The kernel promises this to whoever replaces a map in a map: "when we return to it, [user space] knows that all
//! programs that could be running use the new map value" (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c). So a map of
//! one map is made, and its map replaced by itself.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use super::uprobe_multi::bpf;

const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_UPDATE_ELEM: c_int = 2;
const ARRAY: u32 = 2;
const ARRAY_OF_MAPS: u32 = 12;

/// `union bpf_attr` for `BPF_MAP_CREATE`, up to the map inside.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: RawFd,
}

/// `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Returns when every program that ran at the call has ended.
///
/// # Errors
/// When the kernel refuses.
pub fn wait() -> io::Result<()> {
    let inner = create(ARRAY, 0)?;
    let outer = create(ARRAY_OF_MAPS, inner.as_raw_fd())?;
    let (key, value) = (0_u32, inner.as_raw_fd());
    let update = MapUpdate {
        map: outer.as_raw_fd(),
        key: &raw const key as u64,
        value: &raw const value as u64,
        ..MapUpdate::default()
    };
    // SAFETY: the kernel reads the attributes, the key and the value, which outlive the call.
    let status = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const update, size_of::<MapUpdate>())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a map of one element of 4 bytes.
fn create(map_type: u32, inner_map: RawFd) -> io::Result<OwnedFd> {
    let attributes =
        MapCreate { map_type, key_size: 4, value_size: 4, max_entries: 1, inner_map, ..MapCreate::default() };
    // SAFETY: the attributes are those of the command, and point at nothing.
    unsafe { bpf(BPF_MAP_CREATE, &attributes) }
}
