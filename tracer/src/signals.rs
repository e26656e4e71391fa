//! What tokio does not do about signals.

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

/// Whether this process was started with SIGHUP ignored, as `nohup` does.
pub fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (libc::SIGHUP - 1) & 1 == 1
}
