//! Who has which stretch of an array: room is taken from the first gap that is large enough, and given back.

use std::{collections::BTreeMap, ops::Range};

/// The gaps of an array.
#[derive(Clone, Debug)]
pub(super) struct Gaps {
    /// End of each gap, by its start. No two touch.
    gaps: BTreeMap<u32, u32>,
}

impl Gaps {
    /// An array of so many elements, of which nobody has any.
    pub(super) fn new(length: u32) -> Self {
        Self { gaps: BTreeMap::from([(0, length)]) }
    }

    /// Takes so many elements; `None` when no gap is large enough.
    pub(super) fn take(&mut self, length: usize) -> Option<Range<u32>> {
        let length = u32::try_from(length).ok()?;
        let (&start, &end) = self.gaps.iter().find(|(start, end)| *end - *start >= length)?;
        let taken = start..start + length;
        self.gaps.remove(&start);
        if taken.end < end {
            self.gaps.insert(taken.end, end);
        }
        Some(taken)
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&mut self, taken: Range<u32>) {
        let Range { mut start, mut end } = taken;
        if start == end {
            return;
        }
        if let Some(after) = self.gaps.remove(&end) {
            end = after;
        }
        if let Some((&before, &touches)) = self.gaps.range(..start).next_back()
            && touches == start
        {
            start = before;
        }
        self.gaps.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_given_back_is_one_gap_again() {
        let mut room = Gaps::new(30);
        let [a, b, c] = [10, 10, 10].map(|length| room.take(length).expect("room"));
        assert_eq!(room.take(1), None);
        room.give_back(b.clone());
        assert_eq!(room.take(11), None);
        room.give_back(a);
        room.give_back(c);
        assert_eq!(room.take(30), Some(0..30));
        assert_eq!((room.take(0), room.take(usize::MAX)), (None, None));
    }

    proptest! {
        /// Against the naive model: an array of owners.
        #[test]
        fn nobody_gets_what_another_has(calls in prop::collection::vec((any::<bool>(), 1_usize..40), 0..200)) {
            let mut room = Gaps::new(256);
            let mut owned = [false; 256];
            let mut taken: Vec<Range<u32>> = Vec::new();
            for (give, length) in calls {
                if give && !taken.is_empty() {
                    let range = taken.swap_remove(length % taken.len());
                    range.clone().for_each(|index| owned[index as usize] = false);
                    room.give_back(range);
                } else if let Some(range) = room.take(length) {
                    prop_assert_eq!(range.len(), length);
                    for index in range.clone() {
                        prop_assert!(!std::mem::replace(&mut owned[index as usize], true));
                    }
                    taken.push(range);
                } else {
                    let longest = owned.split(|owned| *owned).map(<[bool]>::len).max();
                    prop_assert!(longest < Some(length), "there was room for {length}");
                }
            }
            let gaps: u32 = room.gaps.iter().map(|(start, end)| end - start).sum();
            prop_assert_eq!(gaps as usize, owned.iter().filter(|owned| !**owned).count());
        }
    }
}
