//! What the service itself takes.

use std::fs;

use rustix::param::clock_ticks_per_second;

use crate::{
    model::{Bytes, Pid},
    watch::subject::resident,
};

/// CPU time in seconds, and resident memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// Of the service.
    pub cpu_seconds: f64,
    /// Of the recordings that have ended, which are processes of their own.
    pub recordings_cpu_seconds: f64,
    /// Of the service.
    pub resident: Bytes,
    /// Files, sockets and pipes that it has open.
    pub descriptors: u64,
}

/// So far.
pub(super) fn cost() -> Cost {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let (own, children) = cpu_ticks(&stat).unwrap_or_default();
    let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second().max(1) as f64;
    Cost {
        cpu_seconds: seconds(own),
        recordings_cpu_seconds: seconds(children),
        resident: resident(Pid(std::process::id())).map_or(Bytes(0), |(all, _)| all),
        // The directory that is read is open, too.
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count().saturating_sub(1) as u64),
    }
}

/// Fields 14 to 17 of proc(5): own and children's, in user space and in the kernel.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    // What follows the name, which may have anything in it, begins with field 3.
    let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(14 - 3);
    let mut ticks = fields.map(|field| field.parse::<u64>().ok());
    let mut next = || ticks.next().flatten();
    Some((next()? + next()?, next()? + next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 200 0 0 11 22 33 44 20 0 1 0 12345 1 2";
        assert_eq!(cpu_ticks(stat), Some((33, 77)));
        assert_eq!(cpu_ticks(""), None);
        let cost = cost();
        assert!(cost.resident.0 > 0 && cost.descriptors > 2);
    }
}
