//! The CPU time of another process, and how long it waited for a CPU.

use std::{collections::BTreeMap, fs};

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

/// What the scheduler counts of each thread of some processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadTimes(BTreeMap<u32, ThreadTime>);

/// In nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ThreadTime {
    ran: u64,
    /// Able to run, with every CPU taken by others. The kernel counts it once the wait is over.
    waited: u64,
    /// How often it had nothing to do.
    sleeps: u64,
    /// Whether it runs or waits for a CPU now.
    is_runnable: bool,
}

impl ThreadTimes {
    /// Those of processes; of one that is gone, or where the kernel does not count them (`CONFIG_SCHED_INFO`), there are none.
    #[must_use]
    pub fn of(pids: &[Pid]) -> Self {
        let threads = pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task"))).flatten();
        Self(
            threads
                .filter_map(|thread| {
                    let thread = thread.ok()?;
                    let read = |name| fs::read_to_string(thread.path().join(name)).ok();
                    let time = ThreadTime::parse(&read("schedstat")?, &read("status")?)?;
                    Some((thread.file_name().to_str()?.parse().ok()?, time))
                })
                .collect(),
        )
    }

    /// How long they could do in `span_ns` since then what they do: all of it less what the thread that works most waited for a
    /// CPU, or what all threads together worked, if that is more: those of a busy process wait for each other.
    #[must_use]
    pub fn had_since(&self, before: &Self, span_ns: u64) -> u64 {
        let since = self.0.iter().map(|(thread, now)| {
            let before = before.0.get(thread).copied().unwrap_or_default();
            let ran = now.ran.saturating_sub(before.ran);
            let waited = if now.has_never_slept_since(before) {
                span_ns.saturating_sub(ran)
            } else {
                now.waited.saturating_sub(before.waited)
            };
            (ran, waited)
        });
        let ran: u64 = since.clone().map(|(ran, _)| ran).sum();
        let waited = since.max_by_key(|(ran, waited)| ran + waited).map_or(0, |(_, waited)| waited);
        span_ns.saturating_sub(waited).max(ran)
    }
}

impl ThreadTime {
    /// What `schedstat` and `status` say, both of `/proc/PID/task/TID`.
    fn parse(schedstat: &str, status: &str) -> Option<Self> {
        let mut fields = schedstat.split_ascii_whitespace().map(str::parse);
        let of_status = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
        Some(Self {
            ran: fields.next()?.ok()?,
            waited: fields.next()?.ok()?,
            sleeps: of_status("voluntary_ctxt_switches:")?.parse().ok()?,
            is_runnable: of_status("State:")?.starts_with('R'),
        })
    }

    /// Whether it ran or waited all the time. Of one that waits still the kernel has not counted how long.
    const fn has_never_slept_since(self, before: Self) -> bool {
        self.is_runnable && before.is_runnable && self.sleeps == before.sleeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_time_in_which_it_did_not_wait_for_a_processor() {
        let times = |threads: &[(u32, u64, u64)]| {
            let time = |&(id, ran, waited)| (id, ThreadTime { ran, waited, ..ThreadTime::default() });
            ThreadTimes(threads.iter().map(time).collect())
        };
        let before = times(&[(1, 5, 100), (2, 0, 0)]);
        // One that sleeps had all the time, one that waited the rest; those of a busy process waited for each other.
        assert_eq!(times(&[(1, 6, 101), (2, 0, 0)]).had_since(&before, 100), 99);
        assert_eq!(times(&[(1, 9, 195), (2, 0, 1)]).had_since(&before, 100), 5);
        let workers: Vec<_> = (1..17).map(|id| (id, 12, 188)).collect();
        assert_eq!(times(&workers).had_since(&ThreadTimes::default(), 200), 16 * 12);
        assert_eq!(ThreadTimes::default().had_since(&before, 100), 100);
        let status =
            "Name:\tR\nState:\tR (running)\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t6\n";
        let time = ThreadTime { ran: 17, waited: 23, sleeps: 5, is_runnable: true };
        assert_eq!(ThreadTime::parse("17 23 4\n", status), Some(time));
        assert_eq!(ThreadTime::parse("", status), None);
        assert!(!ThreadTimes::of(&[Pid(std::process::id())]).0.is_empty());
    }

    #[test]
    fn who_waits_for_a_processor_has_no_time_before_the_kernel_has_counted_it() {
        let thread = |ran, waited, sleeps, is_runnable| {
            ThreadTimes([(1, ThreadTime { ran, waited, sleeps, is_runnable })].into())
        };
        let before = thread(50, 300, 7, true);
        assert_eq!(thread(54, 300, 7, true).had_since(&before, 100), 4);
        assert_eq!(thread(50, 300, 7, true).had_since(&before, 100), 0, "it waited all the time");
        assert_eq!(thread(54, 330, 8, true).had_since(&before, 100), 70, "it had nothing to do once");
        assert_eq!(thread(54, 300, 7, false).had_since(&before, 100), 100);
        assert_eq!(
            thread(54, 300, 7, true).had_since(&thread(50, 300, 7, false), 100),
            100,
            "it had just begun"
        );
    }

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
