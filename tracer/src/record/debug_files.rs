//! Debug files are fetched when the recording is over: the user sees how far it is, and may do without.

use super::{Findings, observer::Observer};
use crate::{
    model::Bytes,
    signals::Interruptible,
    symbolize::{Debuginfod, Progress, Watcher},
};

/// Names what was found by the debug files that servers have.
pub fn name(findings: &mut Findings, debuginfod: &Debuginfod, observer: &mut dyn Observer) {
    let mut waiting = Waiting { debuginfod, observer, interruptible: Interruptible::begin() };
    let came = findings.name_by_debug_files(debuginfod, &mut waiting);
    waiting.observer.wait_for(None);
    if came.wanted > 0 {
        waiting
            .observer
            .say(&format!("debug files: {} of {} that are not installed were had", came.had, came.wanted));
    }
    came.warn();
}

struct Waiting<'a> {
    debuginfod: &'a Debuginfod,
    observer: &'a mut dyn Observer,
    interruptible: Interruptible,
}

impl Watcher for Waiting<'_> {
    fn begin(&mut self, servers: &[String], files: usize) {
        self.observer.say(&self.debuginfod.announcement(servers, files));
    }

    fn progress(&mut self, progress: Progress<'_>) {
        let Progress { module, bytes, of } = progress;
        let of = of.map_or_else(String::new, |of| format!(" of {}", Bytes(of)));
        self.observer.wait_for(Some(&format!("debug file of {module}: {}{of}", Bytes(bytes))));
    }

    fn is_tired(&self) -> bool {
        self.interruptible.was_interrupted()
    }
}
