//! How much CPU time tracing may take: of its targets, whose probes are tried for a moment, and of the whole machine.

use std::{fmt, str::FromStr, time::Duration};

use crate::model::Overhead;

/// How long probes are tried.
pub const TRIAL: Duration = Duration::from_millis(100);

/// A target that waits most of the time is not slowed by a large part of the little that it does, so it counts as one that uses this part of a
/// CPU. Growth mode in its place would blame who touches memory first, which is not always who keeps it.
const LEAST_USE: f64 = 0.2;

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

    /// Whether it is less than what tracing took of the targets' CPU time in a time that was so long.
    #[must_use]
    pub fn is_exceeded(self, overhead: Overhead, time: Duration) -> bool {
        let used_ns = (overhead.cpu_ns as f64).max(LEAST_USE * time.as_nanos() as f64);
        overhead.tracing_ns as f64 > used_ns * f64::from(self.per_mille) / 1000.0
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
    fn what_probes_take_is_compared_with_what_the_target_uses() {
        let is_exceeded = |cpu_ms: f64, tracing_ms: f64, limit: &str| {
            let overhead = Overhead::new(cpu_ms * 1e6, tracing_ms * 1e6);
            limit.parse::<CostLimit>().unwrap().is_exceeded(overhead, TRIAL)
        };
        assert!(!is_exceeded(100.0, 4.9, "5%") && is_exceeded(100.0, 5.1, "5%"));
        // Four threads are four times as much.
        assert!(!is_exceeded(400.0, 19.0, "5%") && is_exceeded(400.0, 21.0, "5%"));
        // Half of what an idle target does is nothing that it would miss.
        assert!(!is_exceeded(1.8, 0.9, "5%") && is_exceeded(1.8, 1.1, "5%"));
        assert!(!is_exceeded(25.0, 1.2, "5%") && is_exceeded(25.0, 1.3, "5%"));
        assert!(is_exceeded(100.0, 0.1, "0%") && !is_exceeded(100.0, 0.0, "0%"));
        assert!(!is_exceeded(100.0, 100.0, "100%"));
    }
}
