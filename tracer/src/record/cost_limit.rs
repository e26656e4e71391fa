//! How much CPU time tracing may take: of its targets, whose probes are tried for a moment, and of the whole machine.

use std::{fmt, str::FromStr, time::Duration};

use crate::model::{Bytes, Overhead};

/// How long probes are tried, where targets can work meanwhile.
pub const TRIAL: Duration = Duration::from_millis(100);

/// A target that waits most of the time is not slowed by a large part of the little that it does, so it counts as one that uses this part of a
/// CPU, or of what it may use and others leave it of one. Growth mode in its place would blame who touches memory first, which is not always
/// who keeps it.
const LEAST_USE: f64 = 0.5;

/// A finer sample takes more memory for its blocks than it says more.
const FINEST_SAMPLE: u64 = 4 << 10;
/// Of a coarser one two minutes see too little: a leak of 16 MiB a minute in 4 blocks.
const COARSEST_SAMPLE: u64 = 8 << 20;

/// What the probes took while every allocation was followed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrialCost {
    /// All that they took.
    pub overhead: Overhead,
    /// Of that, to walk stacks.
    pub walks_ns: u64,
    /// How many allocations there were, and of how much.
    pub allocations: u64,
    /// See [`TrialCost::allocations`].
    pub allocated: Bytes,
}

impl TrialCost {
    /// What it would have been where the target worked for no more than the usual part of this time, in which it could work. To put probes in
    /// and out holds a target up, and what it has missed it does in the trial.
    #[must_use]
    pub fn as_usual(self, usual_use: f64, time: Duration) -> Self {
        let Overhead { cpu_ns, tracing_ns, .. } = self.overhead;
        let usual_ns = usual_use * time.as_nanos() as f64;
        let part = (usual_ns / cpu_ns.saturating_sub(tracing_ns).max(1) as f64).min(1.0);
        let of = |number: u64| (number as f64 * part) as u64;
        Self {
            overhead: Overhead::new(cpu_ns as f64 * part, tracing_ns as f64 * part),
            walks_ns: of(self.walks_ns),
            allocations: of(self.allocations),
            allocated: Bytes(of(self.allocated.0)),
        }
    }

    /// What the hits of the probes alone took, in percent.
    #[must_use]
    pub fn percent_without_walks(&self) -> f64 {
        let hits_ns = self.overhead.tracing_ns.saturating_sub(self.walks_ns);
        Overhead::new(self.overhead.cpu_ns as f64, hits_ns as f64).percent
    }
}

/// The part of some CPU time that tracing may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostLimit {
    per_mille: u16,
}

impl Default for CostLimit {
    fn default() -> Self {
        Self { per_mille: 50 }
    }
}

impl CostLimit {
    /// So many thousandths.
    #[must_use]
    pub const fn of_per_mille(per_mille: u16) -> Self {
        Self { per_mille }
    }

    /// So much of a time.
    #[must_use]
    pub fn of(self, time: Duration) -> Duration {
        time * u32::from(self.per_mille) / 1000
    }

    /// Whether it is less than what tracing took of the CPU time of targets that may use so many CPUs, and could work for that long. Time in
    /// which they waited for a CPU is none in which they had nothing to do.
    #[must_use]
    pub fn is_exceeded(self, overhead: Overhead, cpus: f64, time: Duration) -> bool {
        overhead.tracing_ns as f64 > self.allowed_ns(overhead, cpus, time)
    }

    /// What ends a recording that had passed its trial: half as much again. A moment says no more than roughly what the rest takes, and a
    /// recording that is cut short is worth less than the difference.
    #[must_use]
    pub const fn tolerated(self) -> Self {
        Self { per_mille: self.per_mille + self.per_mille / 2 }
    }

    /// What tracing may take of that CPU time, in nanoseconds.
    fn allowed_ns(self, overhead: Overhead, cpus: f64, time: Duration) -> f64 {
        let least_ns = LEAST_USE * cpus.min(1.0) * time.as_nanos() as f64;
        let used_ns = (overhead.cpu_ns as f64).max(least_ns);
        used_ns * f64::from(self.per_mille) / 1000.0
    }

    /// The mean between sampled bytes by which the same calls would have taken half of what the hits of the probes leave, since the target
    /// may do more later; none where these leave nothing.
    #[must_use]
    pub fn sample(self, cost: &TrialCost, cpus: f64, time: Duration) -> Option<Bytes> {
        let left_ns = self.allowed_ns(cost.overhead, cpus, time)
            - cost.overhead.tracing_ns.saturating_sub(cost.walks_ns) as f64;
        if left_ns <= 0.0 {
            return None;
        }
        // One in `mean` bytes is walked for, at the most, instead of each allocation.
        let walk_ns = cost.walks_ns as f64 / cost.allocations.max(1) as f64;
        let mean = cost.allocated.0 as f64 * walk_ns / (left_ns / 2.0);
        Some(Bytes((mean as u64).clamp(FINEST_SAMPLE, COARSEST_SAMPLE).next_power_of_two()))
    }
}

impl fmt::Display for CostLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.per_mille) / 10.0)
    }
}

impl FromStr for CostLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percent = text.trim().strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
        match percent {
            Some(percent) if (0.0..=100.0).contains(&percent) => {
                Ok(Self { per_mille: (percent * 10.0).round() as u16 })
            }
            _ => Err("it is a part of the CPU time such as 5%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_said_as_it_is_written() {
        for text in ["5%", "2.5%", "0%", "100%"] {
            assert_eq!(text.parse::<CostLimit>().unwrap().to_string(), text);
        }
        assert_eq!("5 %".parse(), Ok(CostLimit::default()));
        assert_eq!(CostLimit::of_per_mille(25).of(Duration::from_secs(3600)), Duration::from_secs(90));
        for text in ["5", "", "%", "-1%", "101%", "NaN%", "five%"] {
            assert!(text.parse::<CostLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_sample_is_as_coarse_as_walks_are_dear() {
        let limit = CostLimit::default();
        // 400 allocations of 1 KiB, with a walk of 6 µs each.
        let cost = |hits_ms: f64, cpu_ms: f64| TrialCost {
            overhead: Overhead::new(cpu_ms * 1e6, (hits_ms + 2.4) * 1e6),
            walks_ns: 2_400_000,
            allocations: 400,
            allocated: Bytes(400 << 10),
        };
        // 0.2 ms are left of 2.5 ms, and half of that walks 16 stacks: one in 24 KiB.
        assert_eq!(limit.sample(&cost(2.3, 9.0), 1.0, TRIAL), Some(Bytes(32 << 10)));
        assert_eq!(limit.sample(&cost(2.6, 9.0), 1.0, TRIAL), None, "the hits alone are too much");
        let finest = Some(Bytes(FINEST_SAMPLE));
        assert_eq!(limit.sample(&cost(2.3, 100.0), 1.0, TRIAL), finest, "who does more may lose more");
        let busy = TrialCost { allocated: Bytes(1 << 40), ..cost(2.3, 9.0) };
        assert_eq!(limit.sample(&busy, 1.0, TRIAL), Some(Bytes(COARSEST_SAMPLE)));
        let idle = TrialCost { walks_ns: 0, allocations: 0, allocated: Bytes(0), ..cost(0.0, 0.0) };
        assert_eq!(CostLimit::of_per_mille(1000).sample(&idle, 1.0, TRIAL), finest);
        assert_eq!(cost(0.9, 9.0).percent_without_walks(), 10.0);
    }

    #[test]
    fn what_was_missed_while_probes_went_in_is_not_what_a_target_does() {
        let overhead = |cpu_ms: f64, tracing_ms: f64| Overhead::new(cpu_ms * 1e6, tracing_ms * 1e6);
        let trial = TrialCost {
            overhead: overhead(35.0, 5.0),
            walks_ns: 2_400_000,
            allocations: 400,
            allocated: Bytes(400 << 10),
        };
        let usual = trial.as_usual(0.15, TRIAL);
        assert_eq!((usual.overhead, usual.walks_ns), (overhead(17.5, 2.5), 1_200_000));
        assert_eq!((usual.allocations, usual.allocated), (200, Bytes(200 << 10)));
        assert_eq!(trial.as_usual(0.5, TRIAL), trial, "it may do less at times");
    }

    #[test]
    fn what_probes_take_is_compared_with_what_the_target_uses() {
        let is_exceeded_of = |cpus: f64, cpu_ms: f64, tracing_ms: f64, limit: &str| {
            let overhead = Overhead::new(cpu_ms * 1e6, tracing_ms * 1e6);
            limit.parse::<CostLimit>().unwrap().is_exceeded(overhead, cpus, TRIAL)
        };
        let is_exceeded = |cpu_ms, tracing_ms, limit| is_exceeded_of(1.0, cpu_ms, tracing_ms, limit);
        assert!(!is_exceeded(100.0, 4.9, "5%") && is_exceeded(100.0, 5.1, "5%"));
        // Four threads are four times as much.
        assert!(!is_exceeded(400.0, 19.0, "5%") && is_exceeded(400.0, 21.0, "5%"));
        // Half of what an idle target does is nothing that it would miss.
        assert!(!is_exceeded(4.8, 2.4, "5%") && is_exceeded(4.8, 2.6, "5%"));
        assert!(!is_exceeded(60.0, 2.9, "5%") && is_exceeded(60.0, 3.1, "5%"));
        // Who may use a tenth of a CPU misses a tenth of that.
        assert!(!is_exceeded_of(0.1, 4.8, 0.24, "5%") && is_exceeded_of(0.1, 4.8, 0.26, "5%"));
        assert!(!is_exceeded_of(8.0, 4.8, 2.4, "5%") && is_exceeded_of(8.0, 4.8, 2.6, "5%"));
        assert_eq!(CostLimit::default().tolerated().to_string(), "7.5%");
        assert!(is_exceeded(100.0, 0.1, "0%") && !is_exceeded(100.0, 0.0, "0%"));
        // Who got 4 ms and waited for the rest had nothing that it could have missed more of.
        let starved = Overhead::new(4e6, 2.4e6);
        assert!(!CostLimit::default().is_exceeded(starved, 1.0, TRIAL), "as one that waits for work");
        assert!(CostLimit::default().is_exceeded(starved, 1.0, Duration::from_millis(4)));
        assert!(!is_exceeded(100.0, 100.0, "100%"));
    }
}
