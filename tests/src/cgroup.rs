//! Control groups, of the first kind and the second.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::process;

/// A control group with a limit of memory. Removed when dropped; nobody may be in it any more.
#[derive(Debug)]
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Makes one in which there are so many bytes, page cache and the kernel's own included.
    #[track_caller]
    #[must_use]
    pub fn with_limit(bytes: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (parent, limit) =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
                .into_iter()
                .find(|(parent, _)| Path::new(parent).join("cgroup.procs").exists())
                .expect("control groups are mounted");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let group = Path::new(parent).join(format!("tracer-tests-{}-{number}", std::process::id()));
        fs::create_dir(&group).expect("a control group can be made");
        fs::write(group.join(limit), bytes.to_string()).expect("there is a controller of memory");
        Self(group)
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// What a program is started through to be in it.
    #[must_use]
    pub fn wrapper(&self) -> [String; 3] {
        let enter = format!("echo $$ > {} && exec \"$0\" \"$@\"", self.0.join("cgroup.procs").display());
        ["sh".into(), "-c".into(), enter]
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Whoever was in it may be on his way out.
        let _ = process::within_patience(|| fs::remove_dir(&self.0).ok());
    }
}
