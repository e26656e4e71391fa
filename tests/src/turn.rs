//! Whose turn it is to record: tests run at once, in one process or several.

use std::fs::File;

use crate::program::build_dir;

/// Held by a recording until nothing of it is left.
///
/// One that follows children, or traces many processes, has its probes in everybody who maps the same files, the targets of other tests included: these would
/// be slow, and their code not what it should be. So it records alone.
#[derive(Debug)]
pub struct Turn {
    /// Unlocked when it is closed.
    _locked: File,
}

impl Turn {
    /// Waits until nobody else records. Recordings that are begun with [`Tracer::in_turn`](crate::Tracer::in_turn) do not wait for this.
    #[track_caller]
    #[must_use]
    pub fn alone() -> Self {
        Self::take(true)
    }

    /// Waits until nobody else records, or nobody who must be alone.
    #[track_caller]
    pub(crate) fn take(alone: bool) -> Self {
        let file = File::create(build_dir().join("turn")).expect("the target directory is writable");
        let locked = if alone { file.lock() } else { file.lock_shared() };
        locked.expect("the file system has locks");
        Self { _locked: file }
    }
}
