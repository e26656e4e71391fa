//! The CPU time of another process, to the nanosecond; `/proc/PID/stat` has hundredths of a second.

use crate::model::Pid;

/// CPU time of all threads of a process so far, ended ones included; none when it is gone.
#[must_use]
pub fn cpu_ns(pid: Pid) -> Option<u64> {
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
        let before = cpu_ns(own).unwrap();
        let sum: u64 = std::hint::black_box((0..5_000_000_u64).map(std::hint::black_box).sum());
        assert!(sum > 0 && cpu_ns(own).unwrap() > before);
        assert_eq!(cpu_ns(Pid(4 << 20)), None);
    }
}
