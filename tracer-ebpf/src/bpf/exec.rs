//! A traced process that replaces its program: its window is over before the new program's first instruction.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::RawTracePointContext};
use tracer_ebpf::{event::EventKind, process::ProcessWindow, stack::StackHeader};

use super::{
    children,
    maps::{EVENTS, PROCESSES, follows},
    processes::current_index,
};

/// A process has executed a program. User space sees that at its next look, and at once by the ring buffer.
#[inline(always)]
pub fn executed(ctx: &RawTracePointContext) -> Option<()> {
    if follows() {
        return children::executed(ctx);
    }
    // The window may be closed for a mark: it must not open again.
    let index = current_index()?;
    let process = PROCESSES.get(index.into())?;
    process.window.store(ProcessWindow::Exec as u64);
    let event = StackHeader {
        event: EventKind::Exec as u8,
        process: index,
        tid: bpf_get_current_pid_tgid() as u32,
        ..StackHeader::default()
    };
    // Without room in the ring buffer the window tells, a moment later.
    let _ = EVENTS.output::<StackHeader>(event, 0);
    Some(())
}
