//! What every stack held over the window, in bounded memory: one grid of times for all of them, which gets coarser the
//! longer the window is.

use std::collections::BTreeMap;

use tracer_ebpf::stack::StackId;

use super::growth::Point;
use super::mappings::Holder;
use crate::model::Bytes;

/// Whose sizes they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A stack of the malloc family, by number; its outstanding bytes.
    Native(StackId),
    /// A holder of mappings; their resident bytes.
    Mapping(Holder),
}

impl Source {
    /// The number of the stack.
    #[must_use]
    pub const fn stack(self) -> StackId {
        match self {
            Self::Native(number) => number,
            Self::Mapping(holder) => holder.stack,
        }
    }
}

/// The sizes of all sources at evenly spaced times. The last one may come early.
#[derive(Clone, Debug)]
pub struct History {
    spacing_ns: u64,
    times: Vec<u64>,
    /// As long as `times` or shorter, by zeros at the end.
    sizes: BTreeMap<Source, Vec<u64>>,
    /// How many blocks from before the window had been freed at each time; as long as `times`, or empty where nobody counted.
    older_frees: Vec<u64>,
}

impl History {
    /// The most times that are kept, 512 bytes for each source: after a day they are half an hour apart, or less.
    pub const CAPACITY: usize = 64;

    /// A history that begins with times `spacing_ns` apart.
    #[must_use]
    pub const fn new(spacing_ns: u64) -> Self {
        Self { spacing_ns, times: Vec::new(), sizes: BTreeMap::new(), older_frees: Vec::new() }
    }

    /// Whether it is time for the next sizes.
    #[must_use]
    pub fn is_due(&self, t_ns: u64) -> bool {
        self.times.last().is_none_or(|last| t_ns >= last.saturating_add(self.spacing_ns))
    }

    /// Adds the sizes of all sources that hold something at a time later than all before it.
    pub fn push(&mut self, t_ns: u64, sizes: impl IntoIterator<Item = (Source, Bytes)>) {
        if self.times.len() == Self::CAPACITY {
            self.thin();
        }
        for (source, Bytes(bytes)) in sizes {
            let row = self.sizes.entry(source).or_default();
            row.resize(self.times.len(), 0);
            row.push(bytes);
        }
        self.times.push(t_ns);
    }

    /// Adds to the time that was pushed last how many blocks from before the window have been freed until then.
    pub fn note_older_frees(&mut self, freed: u64) {
        if self.older_frees.len() + 1 == self.times.len() {
            self.older_frees.push(freed);
        }
    }

    /// How many blocks from before the window were freed if it went on as in the quarter of the time that had fewest of them: what
    /// a queue does all the time, and a collector of garbage now and then. `None` where that was not counted often enough.
    #[must_use]
    pub fn evenly_freed_older_blocks(&self) -> Option<u64> {
        const FEWEST_TIMES: usize = 8;
        if self.older_frees.len() < FEWEST_TIMES || self.older_frees.len() != self.times.len() {
            return None;
        }
        let end_ns = *self.times.last()?;
        let freed_until = |quarter: u64| {
            let passed = self.times.partition_point(|&t_ns| t_ns <= end_ns / 4 * quarter);
            passed.checked_sub(1).map_or(0, |last| self.older_frees[last])
        };
        let quarters = (1..=3).map(freed_until).chain(self.older_frees.last().copied());
        let mut before = 0;
        let fewest = quarters.map(|freed| freed.saturating_sub(std::mem::replace(&mut before, freed))).min();
        fewest.map(|fewest| fewest.saturating_mul(4))
    }

    /// Leaves out every second time, and what held nothing at any of the others.
    fn thin(&mut self) {
        fn every_second(values: &mut Vec<u64>) {
            let mut index = 0;
            values.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        every_second(&mut self.times);
        every_second(&mut self.older_frees);
        self.sizes.values_mut().for_each(every_second);
        self.sizes.retain(|_, row| row.iter().any(|&bytes| bytes > 0));
        self.spacing_ns = self.spacing_ns.saturating_mul(2);
    }

    /// Forgets sources.
    pub fn forget(&mut self, gone: impl Fn(Source) -> bool) {
        self.sizes.retain(|&source, _| !gone(source));
    }

    /// What a source held, oldest first.
    #[must_use]
    pub fn of(&self, source: Source) -> Vec<Point> {
        let row = self.sizes.get(&source).map_or(&[][..], Vec::as_slice);
        let sizes = row.iter().copied().chain(std::iter::repeat(0));
        self.times.iter().zip(sizes).map(|(&t_ns, bytes)| Point { t_ns, bytes: Bytes(bytes) }).collect()
    }

    /// What these sources held together.
    #[must_use]
    pub fn sum_of(&self, sources: impl Iterator<Item = Source>) -> Vec<Point> {
        let mut points = self.times.iter().map(|&t_ns| Point { t_ns, bytes: Bytes(0) }).collect::<Vec<_>>();
        for row in sources.filter_map(|source| self.sizes.get(&source)) {
            for (point, bytes) in points.iter_mut().zip(row) {
                point.bytes.0 = point.bytes.0.saturating_add(*bytes);
            }
        }
        points
    }

    /// What all sources together held that count.
    #[must_use]
    pub fn total(&self, counts: impl Fn(Source) -> bool) -> Vec<Point> {
        self.sum_of(self.sizes.keys().copied().filter(|&source| counts(source)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Source = Source::Native(StackId::new(1));
    const B: Source = Source::Native(StackId::new(2));

    fn points(history: &History, source: Source) -> Vec<(u64, u64)> {
        history.of(source).iter().map(|point| (point.t_ns, point.bytes.0)).collect()
    }

    #[test]
    fn a_source_holds_nothing_where_it_is_not_mentioned() {
        let mut history = History::new(10);
        history.push(10, [(A, Bytes(1))]);
        history.push(20, [(A, Bytes(2)), (B, Bytes(5))]);
        history.push(30, [(B, Bytes(6))]);
        assert_eq!(points(&history, A), [(10, 1), (20, 2), (30, 0)]);
        assert_eq!(points(&history, B), [(10, 0), (20, 5), (30, 6)]);
        let total: Vec<_> = history.total(|_| true).iter().map(|point| point.bytes.0).collect();
        assert_eq!(total, [1, 7, 6]);
        assert_eq!(history.total(|source| source == A)[1].bytes, Bytes(2));
        assert!(!history.is_due(39) && history.is_due(40));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut history = History::new(1);
        history.push(0, []);
        history.push(1, [(A, Bytes(1))]);
        (2..200).for_each(|t_ns| {
            if history.is_due(t_ns) {
                history.push(t_ns, [(B, Bytes(t_ns))]);
            }
        });
        assert!(!history.sizes.contains_key(&A) && history.sizes.contains_key(&B));
    }

    #[test]
    fn what_frees_older_blocks_all_the_time_is_told_from_what_does_now_and_then() {
        let evenly = |freed: fn(u64) -> u64| {
            let mut history = History::new(1);
            for t_ns in 0..1000 {
                if history.is_due(t_ns) {
                    history.push(t_ns, [(A, Bytes(1))]);
                    history.note_older_frees(freed(t_ns));
                }
            }
            history.evenly_freed_older_blocks().unwrap()
        };
        let queue = evenly(|t_ns| 3 * t_ns);
        assert!((2800..3000).contains(&queue), "{queue}");
        assert_eq!(evenly(|t_ns| if t_ns < 400 { 0 } else { 5000 }), 0, "one collection");
        assert_eq!(evenly(|t_ns| (10 * t_ns).min(4000)), 0, "what was on its way is gone soon");
        assert_eq!(History::new(1).evenly_freed_older_blocks(), None);
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_even(count in 1..5000_u64) {
            let mut history = History::new(1);
            for t_ns in 0..count {
                if history.is_due(t_ns) {
                    history.push(t_ns, [(A, Bytes(t_ns * 7))]);
                }
            }
            let points = points(&history, A);
            prop_assert!(points.len() <= History::CAPACITY);
            prop_assert!(points.len() as u64 >= count.min(History::CAPACITY as u64 / 2));
            prop_assert!(points.iter().all(|&(t_ns, bytes)| bytes == 7 * t_ns));
            let gaps: Vec<_> = points.windows(2).map(|two| two[1].0 - two[0].0).collect();
            prop_assert!(gaps.windows(2).all(|two| two[0] == two[1]), "{:?}", gaps);
        }
    }
}
