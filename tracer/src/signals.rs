//! The one thing about signals that tokio does not do.

/// Gives Ctrl-C its default effect back: from now on it ends this process at once. The kernel takes the probes away with it.
pub fn let_interrupt_kill() {
    // SAFETY: the default action is no handler, so no code of ours runs in a signal's context.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_DFL);
    }
}
