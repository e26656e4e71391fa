//! What tokio does not do about signals.

use std::sync::atomic::{AtomicBool, Ordering};

/// Gives Ctrl-C and a supervisor's signals their default effect back: from now on they end this process at once. The kernel takes
/// the probes away with it.
pub fn let_signals_kill() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the default action is no handler, so no code of ours runs in a signal's context.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Whoever starts tracer may ignore SIGCHLD, which is inherited: then the kernel says of no child how it has ended.
pub fn let_children_be_waited_for() {
    // SAFETY: the default action is no handler.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Set by Ctrl-C and a supervisor's signals while somebody is [`Interruptible`].
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// While it lives, Ctrl-C and a supervisor's signals end what is being done, not the process; afterwards they end the process.
#[derive(Debug)]
pub struct Interruptible(());

impl Interruptible {
    /// From now on.
    pub fn begin() -> Self {
        INTERRUPTED.store(false, Ordering::Relaxed);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let handler = note_interrupt as extern "C" fn(libc::c_int);
            // SAFETY: the handler only stores to an atomic, which is safe in a signal's context.
            unsafe {
                libc::signal(signal, handler as libc::sighandler_t);
            }
        }
        Self(())
    }

    /// Whether a signal has come.
    pub fn was_interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        let_signals_kill();
    }
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does.
pub fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (libc::SIGHUP - 1) & 1 == 1
}
