//! The CPU time of another process.

use std::fs;

use crate::model::Pid;

/// CPU time of a process so far, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Of all its threads, those included that have ended: what the scheduler counts.
    pub own_ns: u64,
    /// Of the children that it waited for, and of theirs; to a hundredth of a second.
    pub children_ns: u64,
    /// Time in user mode and in the kernel, as clock ticks found the process, its children included: only their ratio means
    /// something.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

impl CpuTimes {
    /// Those of a process; none when it is gone. One that has exited has them until somebody waits for it.
    #[must_use]
    pub fn of(pid: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { own_ns: cpu_ns(pid)?, ..Self::ticks(&stat)? })
    }

    /// What `/proc/PID/stat` says, see proc(5).
    fn ticks(stat: &str) -> Option<Self> {
        /// `USER_HZ` is 100 on every machine.
        const TICK_NS: u64 = 10_000_000;
        // The name before the brackets may have brackets and spaces itself.
        let (_, fields) = stat.rsplit_once(')')?;
        // The state is the third field, `utime` the 14th.
        let mut times = fields.split_ascii_whitespace().skip(11).map(str::parse);
        let mut next = || times.next()?.ok();
        let (user, system): (u64, u64) = (next()?, next()?);
        let (children_user, children_system): (u64, u64) = (next()?, next()?);
        Some(Self {
            own_ns: 0,
            children_ns: (children_user + children_system) * TICK_NS,
            user: user + children_user,
            system: system + children_system,
        })
    }
}

/// CPU time of all threads of a process so far, ended ones included; none when it is gone.
fn cpu_ns(pid: Pid) -> Option<u64> {
    /// `CPUCLOCK_SCHED` of the kernel: what its scheduler counts, of a whole process.
    const SCHED: libc::clockid_t = 2;
    // `MAKE_PROCESS_CPUCLOCK`, as clock_getcpuclockid(3) does it.
    let clock = (!libc::clockid_t::try_from(pid.0).ok()? << 3) | SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time` alone.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(u64::try_from(time.tv_sec).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_nobody_has_none() {
        let own = Pid(std::process::id());
        let before = CpuTimes::of(own).unwrap();
        let sum: u64 = std::hint::black_box((0..5_000_000_u64).map(std::hint::black_box).sum());
        assert!(sum > 0 && CpuTimes::of(own).unwrap().own_ns > before.own_ns);
        assert_eq!(CpuTimes::of(Pid(4 << 20)), None);
    }

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) S 1) R 1 2 3 4 -1 4194304 10 20 30 40 500 600 70 80 20 0 1 0 9 10";
        let times = CpuTimes::ticks(stat).unwrap();
        assert_eq!(times, CpuTimes { own_ns: 0, children_ns: 1_500_000_000, user: 570, system: 680 });
        assert_eq!(CpuTimes::ticks("7 (a) S 1"), None);
    }
}
