//! What the kernel's log says of processes that it killed for want of memory: it names the control group of each, which may be gone a moment
//! later, with the counter that it has.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use crate::model::Pid;

/// Somebody whom the kernel killed for want of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The path of its control group, below the root of all of them.
    pub group: PathBuf,
    /// The kernel's name for it.
    pub comm: String,
    /// Which process it was.
    pub pid: Pid,
}

/// The log from some moment on.
#[derive(Debug)]
pub struct KernelLog(File);

impl KernelLog {
    /// From now on.
    ///
    /// # Errors
    /// When it may not be read, or there is none, as in most containers.
    pub fn open() -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// Those who were killed since it was read last.
    pub fn victims(&mut self) -> Vec<Victim> {
        // A record is at most that long, and each is read by itself.
        let mut record = [0; 8192];
        let mut victims = Vec::new();
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return victims,
                Ok(length) => victims.extend(victim(&String::from_utf8_lossy(&record[..length]))),
                // What has not been read was overwritten: it goes on with the oldest that there is.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return victims,
            }
        }
    }
}

/// Of `6,1234,5678,-;oom-kill:constraint=…,task_memcg=/docker/0123,task=node,pid=42,uid=0` (Linux 5.0 and later).
fn victim(record: &str) -> Option<Victim> {
    let (head, message) = record.split_once(';')?;
    // Anybody who may write there can say the same, but not in the kernel's name: facility 0.
    let is_the_kernels = head.split(',').next()?.parse::<u32>().ok()? < 8;
    let fields = message.lines().next()?.strip_prefix("oom-kill:")?;
    let (_, fields) = fields.split_once(",task_memcg=")?;
    let (fields, pid) = fields.rsplit_once(",pid=")?;
    let (group, comm) = fields.split_once(",task=")?;
    let pid = Pid(pid.split(',').next()?.parse().ok()?);
    is_the_kernels.then(|| Victim { group: group.into(), comm: comm.to_owned(), pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_group_of_who_was_killed() {
        let of = |head: &str, group: &str, task: &str| {
            victim(&format!(
                "{head},2041,67213658460,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
                 oom_memcg=/kubepods,task_memcg={group},task={task},pid=13816,uid=0\n SUBSYSTEM=memory\n"
            ))
        };
        let victim =
            |group: &str, comm: &str| Victim { group: group.into(), comm: comm.into(), pid: Pid(13816) };
        assert_eq!(of("6", "/kubepods/pod1/c1", "node"), Some(victim("/kubepods/pod1/c1", "node")));
        assert_eq!(of("6", "/", "a,pid=1,uid"), Some(victim("/", "a,pid=1,uid")), "a name says anything");
        // Said by a process, through /dev/kmsg.
        assert_eq!(of("14", "/kubepods/pod1/c1", "node"), None);
    }

    #[test]
    fn other_records_are_nobodys_death() {
        for record in [
            "6,1,2,-;Memory cgroup out of memory: Killed process 13816 (node) total-vm:1479932kB",
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_NONE",
            "6,1,2,-;oom-kill:constraint=X,task_memcg=/a,task=b,pid=x,uid=0",
            "",
            ";",
        ] {
            assert_eq!(victim(record), None, "{record}");
        }
    }
}
