//! Processes as the tests look at them: state, memory, end.

use std::{
    fs,
    os::unix::fs::FileExt,
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take. Only what has failed takes so long: a slow machine that does something else besides must not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Polls until `probe` finds something; panics when it finds nothing for too long.
#[track_caller]
pub fn wait_until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within_patience(probe).unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
}

/// Polls until `probe` finds something; `None` when it finds nothing for too long.
pub(crate) fn within_patience<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = probe();
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a child to exit; panics when it does not.
#[track_caller]
pub fn wait_for_exit(child: &mut Child) -> ExitStatus {
    wait_until("the process exits", || child.try_wait().expect("the child can be waited for"))
}

/// The one-letter state of `/proc/PID/stat` (`R`, `S`, `T`, `Z`, …); `None` when there is no such process.
#[must_use]
pub fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any character, parentheses too.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether the process exists and has not exited.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    !matches!(process_state(pid), None | Some('Z' | 'X'))
}

/// Sends a signal to one process.
#[track_caller]
pub fn send_signal(pid: u32, signal: Signal) {
    let raw = i32::try_from(pid).expect("pids are positive");
    let pid = Pid::from_raw(raw).expect("pid 0 is no process");
    kill_process(pid, signal).expect("the process can be signalled");
}

/// Bytes of another process, `None` when they are not mapped or the process is gone.
#[must_use]
pub fn read_memory(pid: u32, address: u64, length: usize) -> Option<Vec<u8>> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = vec![0; length];
    memory.read_exact_at(&mut bytes, address).ok()?;
    Some(bytes)
}
