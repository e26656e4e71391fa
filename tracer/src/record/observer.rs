//! Observers of a recording.

use anyhow::Result;

use super::Findings;
use crate::report::status::Status;

/// Is told what happens, and gets the findings so far when they are asked for. Called between events, which the kernel
/// keeps for a moment only: what takes time belongs on another thread.
pub trait Observer {
    /// The window is open; one line about it.
    ///
    /// # Errors
    /// When what is to be shown cannot be.
    fn begin(&mut self, line: &str) -> Result<()>;

    /// One line about what happened.
    fn say(&mut self, line: &str);

    /// Whether anybody sees how it stands: to say that costs a look at every stack.
    fn wants_status(&self) -> bool {
        true
    }

    /// How it stands; several times a second.
    fn show(&mut self, status: &Status<'_>);

    /// What is being waited for after the window, in a few words; none when it is over.
    fn wait_for(&mut self, _what: Option<&str>) {}

    /// Whether the next findings can be taken: those before are dealt with.
    fn is_ready(&self) -> bool;

    /// Whether it wants to see the findings so far.
    fn wants_findings(&self) -> bool {
        false
    }

    /// What it wanted to see.
    fn look(&mut self, findings: Findings) {
        drop(findings);
    }

    /// A snapshot was asked for: the reports of these findings are to be written.
    fn snapshot(&mut self, findings: Findings);

    /// The window was marked: what was seen before counts no more.
    fn marked(&mut self) {}

    /// The window is over, and the terminal is left as it was found. What was begun is brought to its end when this is dropped.
    fn finish(&mut self);
}
