//! What the service itself takes.

use std::fs;

use crate::{
    model::{Bytes, Pid},
    target::CpuTimes,
    watch::subject::resident,
};

/// CPU time in seconds, and resident memory, without those of recordings, which are processes of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    pub cpu_seconds: f64,
    pub resident: Bytes,
    /// Files, sockets and pipes that it has open.
    pub descriptors: u64,
}

/// So far.
pub(super) fn cost() -> Cost {
    let own = Pid(std::process::id());
    Cost {
        cpu_seconds: CpuTimes::of(own).map_or(0.0, |times| times.own_ns as f64 / 1e9),
        resident: resident(own).map_or(Bytes(0), |(all, _)| all),
        // The directory that is read is open, too.
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count().saturating_sub(1) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_something() {
        let cost = cost();
        assert!(cost.cpu_seconds > 0.0 && cost.resident.0 > 0 && cost.descriptors > 2, "{cost:?}");
    }
}
