//! Which of a process' open files would take the closing of a copy for their own. The thread that makes the calls begins with copies of
//! the first 64 descriptors, which it closes ([`own_descriptors`](super::inject::stub::own_descriptors)). Most files tell that apart by
//! the table of descriptors; these do by the process.

use anyhow::{Result, ensure};

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
        let kind = file_system(&about, &mounts);
        ensure!(
            !is_queue(target, number, kind),
            "descriptor {number} is a POSIX message queue, whose notification (mq_notify) would be lost"
        );
        ensure!(
            !is_locked_by_server(&about, kind),
            "descriptor {number} is a file of a network that the process has locked, and the lock would be lost"
        );
    }
    Ok(())
}

/// `mq_notify` ends when the process closes any descriptor of the queue.
fn is_queue(target: &Target, descriptor: u32, file_system: Option<&str>) -> bool {
    const QUEUES: u64 = 0x1980_0202;
    // What `mq_open` opens is not mounted anywhere. Of what is, nobody is asked: the answer of a server may take for ever.
    let is_unmounted_queue = || {
        let file = format!("/proc/{}/fd/{descriptor}", target.pid());
        rustix::fs::statfs(file).is_ok_and(|found| found.f_type as u64 == QUEUES)
    };
    file_system.map_or_else(is_unmounted_queue, |kind| kind == "mqueue")
}

/// These servers know whose lock it is by the process.
fn is_locked_by_server(about: &str, file_system: Option<&str>) -> bool {
    let is_lock = |line: &str| line.starts_with("lock:") && line.contains(" POSIX ");
    matches!(file_system, Some("cifs" | "smb3" | "9p")) && about.lines().any(is_lock)
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
        let posix = about(22, "POSIX  ADVISORY  WRITE");
        assert!(is_locked_by_server(&posix, Some("cifs")));
        assert!(!is_locked_by_server(&posix, Some("ext4")));
        assert!(!is_locked_by_server(&about(22, "FLOCK  ADVISORY  WRITE"), Some("cifs")));
    }
}
