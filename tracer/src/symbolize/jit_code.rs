//! Code that a runtime says it has made: where it is, and what is known of it.

use std::collections::BTreeMap;

/// Ranges of code. Of two that overlap the later one is right: memory of collected code is reused.
#[derive(Debug)]
pub(super) struct JitCode<T>(BTreeMap<u64, (u64, T)>);

impl<T> Default for JitCode<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> JitCode<T> {
    /// What is known of the code that holds `address`, and where it begins.
    pub(super) fn find(&self, address: u64) -> Option<(u64, &T)> {
        let (&start, (end, code)) = self.0.range(..=address).next_back()?;
        (address < *end).then_some((start, code))
    }

    /// Adds code from `start` up to `end`; what was there is gone.
    pub(super) fn add(&mut self, start: u64, end: u64, code: T) {
        // Ranges here never overlap, so those in the way are the last ones that begin before `end`.
        while let Some((&other, _)) = self.0.range(..end).next_back().filter(|(_, (e, _))| *e > start) {
            self.0.remove(&other);
        }
        self.0.insert(start, (end, code));
    }

    /// Takes out the code that begins at `start`, with its end.
    pub(super) fn take(&mut self, start: u64) -> Option<(u64, T)> {
        self.0.remove(&start)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_code_replaces_that_whose_memory_it_reuses() {
        let mut code = JitCode::default();
        let ranges = [(0x1000, "first"), (0x1100, "second"), (0x1200, "third")];
        ranges.iter().for_each(|&(start, name)| code.add(start, start + 0x100, name));
        code.add(0x10f0, 0x1210, "over all three");
        let name = |address| code.find(address).map(|(_, name)| *name);
        assert_eq!([0x10f0, 0x120f].map(name), [Some("over all three"); 2]);
        assert_eq!(name(0x1210), None);
        assert_eq!(name(0x1000), None, "the rest of a function that is partly gone is not its code");
    }
}
