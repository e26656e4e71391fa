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
        let (parent, limit) =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
                .into_iter()
                .find(|(parent, _)| Path::new(parent).join("cgroup.procs").exists())
                .expect("control groups are mounted");
        let group = make(Path::new(parent));
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

/// A new group in this one.
#[track_caller]
fn make(parent: &Path) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let group = parent.join(format!("tracer-tests-{}-{number}", std::process::id()));
    fs::create_dir(&group).expect("a control group can be made");
    group
}

/// A control group whose processes can be frozen. Removed when dropped; nobody may be in it any more.
#[derive(Debug)]
pub struct Freezer {
    group: PathBuf,
    /// The file, and what it says when they are frozen and when not.
    state: (&'static str, [&'static str; 2]),
}

impl Freezer {
    /// One of each kind that is here.
    #[track_caller]
    #[must_use]
    pub fn of_each_kind() -> Vec<Self> {
        const FIRST: (&str, [&str; 2]) = ("freezer.state", ["FROZEN", "THAWED"]);
        const SECOND: (&str, [&str; 2]) = ("cgroup.freeze", ["1", "0"]);
        let mounts = [
            ("/sys/fs/cgroup/freezer", FIRST),
            ("/sys/fs/cgroup/unified", SECOND),
            ("/sys/fs/cgroup", SECOND),
        ];
        let is_there = |(mount, _): &(&str, _)| Path::new(mount).join("cgroup.procs").exists();
        let groups = mounts.into_iter().filter(is_there);
        let freezers: Vec<_> =
            groups.map(|(mount, state)| Self { group: make(Path::new(mount)), state }).collect();
        assert!(!freezers.is_empty(), "control groups are mounted");
        freezers
    }

    /// Takes a process in.
    #[track_caller]
    pub fn take_in(&self, pid: u32) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
    }

    /// Freezes all that are in it, and waits until they are.
    #[track_caller]
    pub fn freeze(&self) {
        let (file, [frozen, _]) = self.state;
        fs::write(self.group.join(file), frozen).expect("they can be frozen");
        let is_frozen = || match file {
            "freezer.state" => {
                fs::read_to_string(self.group.join(file)).is_ok_and(|state| state.trim() == frozen)
            }
            _ => fs::read_to_string(self.group.join("cgroup.events"))
                .is_ok_and(|events| events.contains("frozen 1")),
        };
        process::wait_until("they are frozen", || is_frozen().then_some(()));
    }

    /// Lets them go on.
    #[track_caller]
    pub fn thaw(&self) {
        let (file, [_, thawed]) = self.state;
        fs::write(self.group.join(file), thawed).expect("they can be thawed");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let (file, [_, thawed]) = self.state;
        let _ = fs::write(self.group.join(file), thawed);
        let _ = process::within_patience(|| fs::remove_dir(&self.group).ok());
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Whoever was in it may be on his way out.
        let _ = process::within_patience(|| fs::remove_dir(&self.0).ok());
    }
}
