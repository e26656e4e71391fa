//! How much CPU time recordings may take of the whole machine: a budget that fills up within an hour. Pure: time comes from who asks.
//!
//! A recording is promised a part of what is there before it begins. What it does not use comes back, and what it uses beyond that, to name
//! functions and to write reports, is owed.

use std::time::Duration;

/// Time in which an empty budget fills up.
pub const PERIOD: Duration = Duration::from_secs(60 * 60);

/// The part of a full budget that a recording needs to begin: by less it would be over before it has seen anything.
const LEAST: f64 = 0.1;

/// In seconds of CPU time.
#[derive(Debug)]
pub struct Budget {
    full: f64,
    /// Below 0: owed.
    left: f64,
    /// Of what is left, to recordings that go on.
    promised: f64,
    /// When it was filled up last.
    filled: Duration,
}

impl Budget {
    /// A full one.
    #[must_use]
    pub const fn full(full: Duration, now: Duration) -> Self {
        let full = full.as_secs_f64();
        Self { full, left: full, promised: 0.0, filled: now }
    }

    /// Has another size from now on. What was used of it stays used.
    pub fn resize(&mut self, full: Duration) {
        self.left += full.as_secs_f64() - self.full;
        self.full = full.as_secs_f64();
    }

    /// What a recording may use that begins now, where so many may begin, this one included; none while there is too little.
    pub fn promise(&mut self, now: Duration, recordings: usize) -> Option<Duration> {
        self.fill(now);
        let (free, least) = (self.left - self.promised, self.full * LEAST);
        if free < least || free <= 0.0 {
            return None;
        }
        let part = (free / recordings.max(1) as f64).max(least);
        self.promised += part;
        Some(Duration::from_secs_f64(part))
    }

    /// A recording that was promised so much has ended, and has used so much.
    pub fn settle(&mut self, promised: Duration, used: Duration) {
        self.promised = (self.promised - promised.as_secs_f64()).max(0.0);
        self.use_up(used);
    }

    /// So much was used.
    pub fn use_up(&mut self, used: Duration) {
        self.left -= used.as_secs_f64();
    }

    /// How long it takes until a recording may begin, if those that go on use what they were promised.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let missing = self.full * LEAST - (self.left - self.promised);
        PERIOD.mul_f64((missing / self.full.max(1e-9)).clamp(0.0, MOST_PERIODS))
    }

    /// CPU time that recordings may use now, those included that go on.
    #[must_use]
    pub fn left(&self) -> Duration {
        Duration::from_secs_f64(self.left.max(0.0))
    }

    /// CPU time that recordings may use in an hour.
    #[must_use]
    pub fn size(&self) -> Duration {
        Duration::from_secs_f64(self.full)
    }

    fn fill(&mut self, now: Duration) {
        let time = now.saturating_sub(self.filled).as_secs_f64();
        self.left = (self.left + self.full * time / PERIOD.as_secs_f64()).min(self.full);
        self.filled = now;
    }
}

/// A budget of nothing never fills up.
const MOST_PERIODS: f64 = 1000.0;

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn budget() -> Budget {
        Budget::full(s(100), s(5))
    }

    #[test]
    fn what_is_not_used_comes_back_and_what_is_used_takes_an_hour() {
        let mut budget = budget();
        assert_eq!(budget.promise(s(5), 1), Some(s(100)));
        assert_eq!(budget.promise(s(5), 1), None, "it is promised");
        budget.settle(s(100), s(40));
        assert_eq!((budget.left(), budget.size()), (s(60), s(100)));
        assert_eq!(budget.promise(s(5 + 360), 1), Some(s(70)));
        budget.settle(s(70), Duration::ZERO);
        // It is not saved up.
        assert_eq!(budget.promise(s(100_000), 1), Some(s(100)));
    }

    #[test]
    fn those_that_may_begin_share_it() {
        let mut budget = budget();
        let parts: Vec<_> = (1..=4).rev().map(|left| budget.promise(s(5), left)).collect();
        assert_eq!(parts, [Some(s(25)); 4]);
        // Many small parts would show nothing: the last ones wait.
        let mut budget = self::budget();
        let parts: Vec<_> = (1..=64).rev().filter_map(|left| budget.promise(s(5), left)).collect();
        assert!(parts.len() <= 10 && parts.iter().all(|part| *part >= s(10)), "{parts:?}");
    }

    #[test]
    fn too_little_is_waited_for_and_debts_are_paid() {
        let mut budget = budget();
        budget.use_up(s(100 + 20));
        assert_eq!((budget.promise(s(5), 1), budget.left()), (None, Duration::ZERO));
        // 20 owed, and a tenth to begin with, of 100 an hour.
        assert_eq!(budget.wait(), s(30 * 36));
        assert_eq!(budget.promise(s(5 + 30 * 36 - 1), 1), None);
        assert!(budget.promise(s(5 + 30 * 36 + 1), 1).is_some());
    }

    #[test]
    fn another_size_forgets_nothing() {
        let mut budget = budget();
        budget.use_up(s(90));
        budget.resize(s(1000));
        assert_eq!(budget.left(), s(910));
        budget.resize(s(50));
        assert_eq!((budget.left(), budget.promise(s(5), 1)), (Duration::ZERO, None));
        budget.resize(Duration::ZERO);
        assert_eq!(budget.promise(s(1_000_000), 1), None);
        assert!(budget.wait() <= PERIOD * 1000);
    }

    #[test]
    fn a_day_of_recordings_takes_no_more_than_a_day_has() {
        let mut budget = budget();
        let (mut used, mut now) = (Duration::ZERO, s(5));
        while now < s(24 * 3600) {
            now += s(10);
            if let Some(part) = budget.promise(now, 1) {
                // Each takes a little more than it may.
                let took = part + s(2);
                budget.settle(part, took);
                used += took;
            }
        }
        assert!(used > s(23 * 100) && used < s(26 * 100), "{used:?}");
    }
}
