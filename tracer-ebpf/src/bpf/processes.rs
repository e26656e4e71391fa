//! Which process runs, and whether it is recorded.

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_ns_current_pid_tgid},
};
use tracer_ebpf::process::{ProcessIndex, ProcessState, ProcessWindow};

use super::maps::{PROCESS_INDEX, PROCESSES, pid_namespace};

/// The current process, if its window is open.
#[inline(always)]
pub fn current_process() -> Option<(ProcessIndex, &'static ProcessState)> {
    let index = current_index()?;
    Some((index, open_process(index)?))
}

/// The index of the current process, if it is traced.
#[inline(always)]
pub fn current_index() -> Option<ProcessIndex> {
    let tgid = current_tgid()?;
    // SAFETY: the entry of a process is written before it runs, and changed by none but itself.
    let index = *unsafe { PROCESS_INDEX.get(tgid) }?;
    Some(ProcessIndex::new(index as u16))
}

/// The number of the current process where user space knows it; none when it is not there.
#[inline(always)]
pub fn current_tgid() -> Option<u32> {
    let Some((device, inode)) = pid_namespace() else {
        return Some((bpf_get_current_pid_tgid() >> 32) as u32);
    };
    let mut numbers = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the helper writes to `numbers` alone, and is told its size.
    let status = unsafe {
        bpf_get_ns_current_pid_tgid(device, inode, &raw mut numbers, size_of::<bpf_pidns_info>() as u32)
    };
    if status == 0 { Some(numbers.tgid) } else { None }
}

/// The state of a process whose window is open.
#[inline(always)]
pub fn open_process(index: ProcessIndex) -> Option<&'static ProcessState> {
    let process = PROCESSES.get(index.into())?;
    (process.window.load() == ProcessWindow::Open as u64).then_some(process)
}
