//! Which of a process' open files would take the closing of a copy for their own. The thread that makes the calls begins with copies of
//! the first 64 descriptors, which it closes ([`own_descriptors`](super::inject::stub::own_descriptors)). Most files tell that apart by
//! the table of descriptors; these do by the process.

use std::{sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::target::Target;

/// So many the kernel copies, however few it is asked for (`NR_OPEN_DEFAULT`).
const COPIED: u32 = 64;

/// Refuses a process that would lose something by it.
pub(super) fn check(target: &Target) -> Result<()> {
    let mounts = target.read("mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    for number in 0..COPIED {
        let Ok(about) = target.read(&format!("fdinfo/{number}")) else { continue };
        let about = String::from_utf8_lossy(&about);
        let kind = match file_system(&about, &mounts) {
            Some(kind) => Kind::named(kind),
            None => Kind::of(target, number)
                .with_context(|| format!("the server of the file of descriptor {number} does not answer"))?,
        };
        ensure!(
            kind != Kind::Queue,
            "descriptor {number} is a POSIX message queue, whose notification (mq_notify) would be lost"
        );
        ensure!(
            kind != Kind::OfServer || !is_locked(&about),
            "descriptor {number} is a file of a network that the process has locked, and the lock would be lost"
        );
    }
    Ok(())
}

/// What a file is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `mq_notify` ends when the process closes any descriptor of it.
    Queue,
    /// The server knows whose lock it is by the process.
    OfServer,
    Other,
}

impl Kind {
    fn named(file_system: &str) -> Self {
        match file_system {
            "mqueue" => Self::Queue,
            "cifs" | "smb3" | "9p" => Self::OfServer,
            _ => Self::Other,
        }
    }

    /// Of what is mounted nowhere where it could be seen, such as what `mq_open` opens. None if a server is asked that does not answer.
    fn of(target: &Target, descriptor: u32) -> Option<Self> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let file = format!("/proc/{}/fd/{descriptor}", target.pid());
        let (say, hear) = mpsc::channel();
        thread::spawn(move || {
            let kind = rustix::fs::statfs(file).map_or(Self::Other, |found| match found.f_type as u32 {
                0x1980_0202 => Self::Queue,
                // CIFS, SMB 2 and 3, 9p.
                0xff53_4d42 | 0xfe53_4d42 | 0x0102_1997 => Self::OfServer,
                _ => Self::Other,
            });
            // Nobody may listen any more.
            let _ = say.send(kind);
        });
        hear.recv_timeout(PATIENCE).ok()
    }
}

fn is_locked(about: &str) -> bool {
    about.lines().any(|line| line.starts_with("lock:") && line.contains(" POSIX "))
}

/// Of a descriptor, by its `fdinfo`.
fn file_system<'a>(about: &str, mounts: &'a str) -> Option<&'a str> {
    let mount = about.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount))?;
    line.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_told_by_whoever_keeps_them() {
        let mounts = "22 1 0:5 / /data rw,nosuid shared:4 - cifs //server/data rw\n23 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let about = |mount: u32, lock: &str| {
            format!(
                "pos:\t0\nflags:\t0100002\nmnt_id:\t{mount}\nino:\t7\nlock:\t1: {lock} 77 00:05:7 0 EOF\n"
            )
        };
        let kinds = [22, 23, 24].map(|mount| file_system(&about(mount, ""), mounts));
        assert_eq!(kinds, [Some("cifs"), Some("ext4"), None]);
        assert_eq!(["cifs", "mqueue", "ext4"].map(Kind::named), [Kind::OfServer, Kind::Queue, Kind::Other]);
        assert!(is_locked(&about(22, "POSIX  ADVISORY  WRITE")));
        assert!(!is_locked(&about(22, "FLOCK  ADVISORY  WRITE")));
    }
}
