//! A map from disjoint address ranges to what they hold: the address space of a process, as far as it is known.

use std::collections::BTreeMap;

use super::{Address, AddressRange};

/// Disjoint, non-empty ranges in ascending order, each with a value. Neighbours that touch and hold equal values are
/// one extent, so cutting and putting back leaves no seams.
#[derive(Clone, Debug)]
pub struct Extents<T> {
    by_start: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for Extents<T> {
    fn default() -> Self {
        Self { by_start: BTreeMap::new() }
    }
}

impl<T: Copy + PartialEq> Extents<T> {
    /// Every extent, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (AddressRange, T)> + '_ {
        self.by_start.iter().map(|(&start, &(end, value))| (range(start, end), value))
    }

    /// How many extents there are.
    pub(crate) fn len(&self) -> usize {
        self.by_start.len()
    }

    /// What the given range holds, cut to it.
    pub fn within(&self, wanted: AddressRange) -> Vec<(AddressRange, T)> {
        let AddressRange { start: Address(start), end: Address(end) } = wanted;
        let before = self.by_start.range(..start).next_back();
        let inside = self.by_start.range(start..end.max(start));
        before
            .into_iter()
            .chain(inside)
            .filter_map(|(&at, &(until, value))| Some((range(at, until).intersection(wanted)?, value)))
            .collect()
    }

    /// Empties the given range, and returns what it held, cut to it.
    pub fn take(&mut self, wanted: AddressRange) -> Vec<(AddressRange, T)> {
        if wanted.is_empty() {
            return Vec::new();
        }
        self.cut(wanted.start.0);
        self.cut(wanted.end.0);
        self.by_start
            .extract_if(wanted.start.0..wanted.end.0, |_, _| true)
            .map(|(start, (end, value))| (range(start, end), value))
            .collect()
    }

    /// Fills the given range, and returns what it held.
    pub fn put(&mut self, wanted: AddressRange, value: T) -> Vec<(AddressRange, T)> {
        let held = self.take(wanted);
        if wanted.is_empty() {
            return held;
        }
        let AddressRange { start: Address(mut start), end: Address(mut end) } = wanted;
        if let Some((&at, &(until, neighbour))) = self.by_start.range(..start).next_back()
            && until == start
            && neighbour == value
        {
            start = at;
        }
        if let Some(&(until, neighbour)) = self.by_start.get(&end)
            && neighbour == value
        {
            self.by_start.remove(&end);
            end = until;
        }
        self.by_start.insert(start, (end, value));
        held
    }

    /// Makes `at` a boundary.
    fn cut(&mut self, at: u64) {
        let Some((_, (end, value))) = self.by_start.range_mut(..at).next_back() else { return };
        if *end > at {
            let tail = (std::mem::replace(end, at), *value);
            self.by_start.insert(at, tail);
        }
    }
}

const fn range(start: u64, end: u64) -> AddressRange {
    AddressRange { start: Address(start), end: Address(end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(extents: &Extents<char>) -> Vec<(u64, u64, char)> {
        extents.iter().map(|(range, value)| (range.start.0, range.end.0, value)).collect()
    }

    #[test]
    fn filling_the_middle_cuts_and_putting_back_heals() {
        let mut extents = Extents::default();
        extents.put(range(0, 9), 'a');
        assert_eq!(extents.put(range(3, 6), 'b'), [(range(3, 6), 'a')]);
        assert_eq!(held(&extents), [(0, 3, 'a'), (3, 6, 'b'), (6, 9, 'a')]);
        extents.put(range(3, 6), 'a');
        assert_eq!(held(&extents), [(0, 9, 'a')]);
    }

    #[test]
    fn taking_spans_extents_and_gaps() {
        let mut extents = Extents::default();
        extents.put(range(0, 4), 'a');
        extents.put(range(6, 9), 'b');
        assert_eq!(extents.within(range(2, 7)), [(range(2, 4), 'a'), (range(6, 7), 'b')]);
        assert_eq!(extents.take(range(2, 7)), [(range(2, 4), 'a'), (range(6, 7), 'b')]);
        assert_eq!(held(&extents), [(0, 2, 'a'), (7, 9, 'b')]);
    }

    #[test]
    fn an_empty_range_holds_nothing() {
        let mut extents = Extents::default();
        extents.put(range(0, 4), 'a');
        assert!(extents.put(range(2, 2), 'b').is_empty());
        assert!(extents.take(range(2, 2)).is_empty());
        assert!(extents.within(range(3, 1)).is_empty());
        assert_eq!(held(&extents), [(0, 4, 'a')]);
    }
}
