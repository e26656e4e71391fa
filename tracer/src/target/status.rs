//! The few fields of `/proc/PID/stat` and `/proc/PID/status` that say what a process is.

/// From `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub comm: String,
    pub state: char,
    pub is_kernel_thread: bool,
    /// A thread of a process that executes code of the kernel alone: of io_uring, or of vhost.
    pub is_worker: bool,
    /// Clock ticks since boot.
    pub start_time: u64,
}

impl Stat {
    /// `None` when the text has another form than the kernel's.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        // The name may hold anything, parentheses and newlines included; nothing after it does.
        let open = text.iter().position(|&byte| byte == b'(')?;
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();

        // Numbered as in proc(5): what follows the name begins with field 3.
        let state = fields.next()?.chars().next()?;
        let flags: u64 = fields.nth(9 - 4)?.parse().ok()?;
        let start_time = fields.nth(22 - 10)?.parse().ok()?;
        /// `PF_KTHREAD` of the kernel's `include/linux/sched.h`.
        const KERNEL_THREAD: u64 = 0x0020_0000;
        /// `PF_IO_WORKER` and `PF_USER_WORKER`.
        const WORKER: u64 = 0x10 | 0x4000;
        let (is_kernel_thread, is_worker) = (flags & KERNEL_THREAD != 0, flags & WORKER != 0);
        Some(Self { comm, state, is_kernel_thread, is_worker, start_time })
    }
}

/// From `/proc/PID/status`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The process that a thread belongs to; a process belongs to itself.
    pub tgid: Option<u32>,
    /// The pid in each pid namespace, from the reader's inwards.
    pub namespace_pids: Vec<u32>,
}

impl Status {
    pub(super) fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let value = |key| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        Self {
            tgid: value("Tgid:").trim().parse().ok(),
            namespace_pids: value("NSpid:").split_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let line = b"42 (a) S 1 (b\n)) T 1 42 42 0 -1 2129984 1 2 3 4 5 6 7 8 20 0 1 0 1234 99 0";
        let expected = Stat {
            comm: "a) S 1 (b\n)".into(),
            state: 'T',
            is_kernel_thread: 2_129_984 & 0x0020_0000 != 0,
            is_worker: false,
            start_time: 1234,
        };
        assert_eq!(Stat::parse(line), Some(expected));
        for cut in 0..line.len() {
            let _ = Stat::parse(&line[..cut]);
        }
    }

    #[test]
    fn pids_are_listed_from_the_outside_inwards() {
        let status = Status::parse(b"Name:\tx\nTgid:\t77\nNgid:\t0\nNSpid:\t77\t5\t1\nNSpgid:\t1\n");
        assert_eq!(status, Status { tgid: Some(77), namespace_pids: vec![77, 5, 1] });
        assert_eq!(Status::parse(b""), Status::default());
    }
}
