//! Whether the kernel killed a target for want of memory.
//!
//! The kernel counts such kills in the control group of who was killed, before it sends the signal. So a group that counts one more when
//! its process is found gone says why. The file is opened before: a container's group is removed right after its end.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    path::Path,
};

use crate::{
    model::{End, Pid},
    target::cgroup::{Hierarchy, Version},
};

/// The groups of the targets, and what they had counted before the window.
#[derive(Debug, Default)]
pub struct OomKills(Vec<Counter>);

#[derive(Debug)]
struct Counter {
    file: File,
    before: u64,
}

impl OomKills {
    /// Looks at the groups of these processes. What cannot be read counts nothing.
    #[must_use]
    pub fn before(pids: &[Pid]) -> Self {
        let Some(hierarchy) = Hierarchy::of_memory() else { return Self::default() };
        let mut groups: Vec<_> = pids.iter().filter_map(|&pid| hierarchy.of_process(pid)).collect();
        groups.sort_unstable();
        groups.dedup();
        Self(groups.iter().filter_map(|group| Counter::open(group, hierarchy.version)).collect())
    }

    /// The end of a recording, which is another one where the kernel killed the target.
    #[must_use]
    pub fn judge(&mut self, end: End) -> End {
        let is_killed = end == End::TargetExited && self.0.iter_mut().any(|counter| counter.has_risen());
        if is_killed { End::OomKilled } else { end }
    }
}

impl Counter {
    fn open(group: &Path, version: Version) -> Option<Self> {
        let name = match version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let mut file = File::open(group.join(name)).ok()?;
        let before = kills(&mut file)?;
        Some(Self { file, before })
    }

    fn has_risen(&mut self) -> bool {
        kills(&mut self.file).is_some_and(|kills| kills > self.before)
    }
}

/// None when the group has gone.
fn kills(file: &mut File) -> Option<u64> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_kill_in_the_window_is_the_end() {
        let group = tempfile::tempdir().unwrap();
        let events = group.path().join("memory.events");
        fs::write(&events, "low 0\nhigh 3\nmax 9\noom 1\noom_kill 1\n").unwrap();
        let mut kills = OomKills(Counter::open(group.path(), Version::V2).into_iter().collect());
        assert_eq!(kills.judge(End::TargetExited), End::TargetExited, "the kill was before");
        fs::write(&events, "low 0\nhigh 3\nmax 19\noom 2\noom_kill 2\n").unwrap();
        assert_eq!(kills.judge(End::Duration), End::Duration, "it was somebody else");
        assert_eq!(kills.judge(End::TargetExited), End::OomKilled);
    }

    #[test]
    fn both_versions_name_it_alike() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
            .unwrap();
        assert_eq!(Counter::open(group.path(), Version::V1).unwrap().before, 4);
    }
}
