//! Which processes of a subject grow.

use std::{collections::BTreeMap, time::Duration};

use crate::model::{Bytes, Pid};

/// How far back growth is looked at.
const MEMORY: Duration = Duration::from_secs(15 * 60);

/// The most processes that one recording traces.
const MOST: usize = 8;

/// The anonymous memory of processes, over time.
#[derive(Clone, Debug, Default)]
pub struct Processes(BTreeMap<Pid, MemoryCourse>);

/// What one process had when it was first seen, half the memory ago, and now.
#[derive(Clone, Debug)]
struct MemoryCourse {
    first: (Duration, Bytes),
    middle: (Duration, Bytes),
    last: Bytes,
}

impl Processes {
    /// Notes what they have now. Who is not among them has gone.
    pub fn note(&mut self, now: Duration, sizes: &[(Pid, Bytes)]) {
        self.0.retain(|pid, _| sizes.iter().any(|(still, _)| still == pid));
        for &(pid, bytes) in sizes {
            let start = (now, bytes);
            let course =
                self.0.entry(pid).or_insert(MemoryCourse { first: start, middle: start, last: bytes });
            course.last = bytes;
            // What was long ago says little of what grows now.
            if now.saturating_sub(course.middle.0) > MEMORY / 2 {
                course.first = course.middle;
                course.middle = start;
            }
        }
    }

    /// Those that grow, most first; where none does, the largest. Who has a small part of it all is left out.
    #[must_use]
    pub fn suspects(&self) -> Vec<Pid> {
        let grown = |course: &MemoryCourse| course.last.0.saturating_sub(course.first.1.0);
        let by_growth = self.share(grown);
        if by_growth.is_empty() { self.share(|course| course.last.0) } else { by_growth }
    }

    /// Those with a good part of the sum.
    fn share(&self, of: impl Fn(&MemoryCourse) -> u64) -> Vec<Pid> {
        let mut shares: Vec<(u64, Pid)> = self.0.iter().map(|(&pid, course)| (of(course), pid)).collect();
        let sum: u64 = shares.iter().map(|(share, _)| share).sum();
        shares.retain(|(share, _)| *share > sum / 20);
        shares.sort_by_key(|&(share, pid)| (std::cmp::Reverse(share), pid));
        shares.into_iter().take(MOST).map(|(_, pid)| pid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(times: &[&[(u32, u64)]]) -> Vec<u32> {
        let mut processes = Processes::default();
        for (minute, sizes) in (0..).zip(times) {
            let sizes: Vec<_> = sizes.iter().map(|&(pid, bytes)| (Pid(pid), Bytes(bytes))).collect();
            processes.note(Duration::from_secs(60 * minute), &sizes);
        }
        processes.suspects().into_iter().map(|pid| pid.0).collect()
    }

    #[test]
    fn those_that_grow_are_chosen_and_else_the_largest() {
        assert_eq!(noted(&[&[(1, 1000), (2, 10), (3, 10)], &[(1, 1000), (2, 60), (3, 110)]]), [3, 2]);
        assert_eq!(noted(&[&[(1, 1000), (2, 10)], &[(1, 900), (2, 10)]]), [1]);
        assert_eq!(noted(&[&[(1, 10)], &[]]), [0; 0]);
        assert_eq!(noted(&[]), [0; 0]);
    }

    #[test]
    fn what_grew_long_ago_is_forgotten() {
        let course: Vec<Vec<(u32, u64)>> = (0..60)
            .map(|minute| vec![(1, if minute < 5 { minute * 1000 } else { 5000 }), (2, minute * 10)])
            .collect();
        let course: Vec<&[(u32, u64)]> = course.iter().map(Vec::as_slice).collect();
        assert_eq!(noted(&course[..10]), [1]);
        assert_eq!(noted(&course), [2]);
    }

    #[test]
    fn a_recording_traces_a_few_of_many() {
        let many: Vec<(u32, u64)> = (1..=19).map(|pid| (pid, 100)).collect();
        assert_eq!(noted(&[&many]).len(), MOST);
    }
}
