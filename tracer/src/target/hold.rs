//! Holds a process still for a moment, by ptrace(2), so that none of its threads sees something half done.

use std::{
    collections::BTreeMap,
    fs, io, thread,
    time::{Duration, Instant},
};

use libc::{c_int, c_uint, pid_t};

use crate::model::Pid;

/// So long a thread may take to stop. Only one that waits for a disk or the like takes more than a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// Does something while no thread of a process runs.
///
/// # Errors
/// When the process is gone, is held by another debugger, or does not stop; then nothing was done.
pub fn while_held(pid: Pid, act: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    // The kernel lets go of all that a thread holds when that thread ends, whatever happened.
    let held = thread::scope(|scope| {
        let holding = scope.spawn(|| {
            let mut held = Held::default();
            held.stop_all(pid)?;
            act()
        });
        holding.join()
    });
    held.unwrap_or_else(|_| Err(io::Error::other("the thread that holds it panicked")))
}

/// The threads that are held, each with the signal that it was about to take; none while it has not stopped yet.
#[derive(Default)]
struct Held(BTreeMap<pid_t, Option<c_int>>);

impl Held {
    /// Stops all threads, those included that come meanwhile.
    fn stop_all(&mut self, pid: Pid) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut is_new = false;
            for thread in threads(pid)? {
                if !self.0.contains_key(&thread) && seize(thread)? {
                    is_new = true;
                    self.0.insert(thread, None);
                }
            }
            if !is_new {
                return Ok(());
            }
            while !self.all_have_stopped()? {
                if Instant::now() > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                thread::sleep(Duration::from_micros(50));
            }
        }
    }

    fn all_have_stopped(&mut self) -> io::Result<bool> {
        let mut ended = Vec::new();
        for (&thread, signal) in self.0.iter_mut().filter(|(_, signal)| signal.is_none()) {
            match stopped_by(thread)? {
                Stop::NotYet => {}
                Stop::Ended => ended.push(thread),
                Stop::By(taken) => *signal = Some(taken),
            }
        }
        self.0.retain(|thread, _| !ended.contains(thread));
        Ok(self.0.values().all(Option::is_some))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for (&thread, signal) in &self.0 {
            // One that has not stopped is let go by the end of this thread.
            let _ = request(libc::PTRACE_DETACH, thread, signal.unwrap_or(0));
        }
    }
}

fn threads(pid: Pid) -> io::Result<Vec<pid_t>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Whether the thread will stop; it may be gone.
fn seize(thread: pid_t) -> io::Result<bool> {
    let seized = request(libc::PTRACE_SEIZE, thread, 0);
    match seized.and_then(|()| request(libc::PTRACE_INTERRUPT, thread, 0)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

enum Stop {
    NotYet,
    Ended,
    /// By a signal that it was about to take, if it was one (0: none).
    By(c_int),
}

fn stopped_by(thread: pid_t) -> io::Result<Stop> {
    let mut status = 0;
    // SAFETY: the kernel writes to `status` alone.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::WNOHANG) };
    match waited {
        0 => Ok(Stop::NotYet),
        // The end of the child of this process that a thread was is its own to collect, which `waitpid` has done.
        waited if waited == thread && libc::WIFSTOPPED(status) => {
            let by_request = status >> 16 == libc::PTRACE_EVENT_STOP;
            Ok(Stop::By(if by_request { 0 } else { libc::WSTOPSIG(status) }))
        }
        waited if waited == thread => Ok(Stop::Ended),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Stop::Ended),
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Stop::NotYet),
            error => Err(error),
        },
    }
}

fn request(request: c_uint, thread: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: the requests used here take numbers alone, and what they change is the held process'.
    let result = unsafe { libc::ptrace(request, thread, 0_usize, signal as usize) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_stands_still_and_goes_on() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid(child.id());
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
        };
        let mut held = None;
        while_held(pid, || {
            held = Some(state());
            Ok(())
        })
        .unwrap();
        assert_eq!(held, Some('t'));
        while state() == 't' {
            thread::yield_now();
        }
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(while_held(pid, || Ok(())).is_err(), "it is gone");
    }
}
