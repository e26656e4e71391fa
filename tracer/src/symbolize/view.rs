//! What a process had mapped at one time, and which of these a stack was walked by.

use std::collections::VecDeque;
use std::sync::Arc;

use super::mappings::{AddressSpace, FileId, Mapping, Region};
use crate::drain::WalkedCode;
use crate::target::{self, Object};

/// The executable mappings of a process, as they were handed to the walk in the kernel: stacks that were walked by them are named by
/// them, whatever is mapped by the time that a stack is named.
#[derive(Clone, Debug)]
pub struct CodeView {
    /// Index of the process.
    pub process: u16,
    /// Generation of the list in the kernel.
    pub generation: u16,
    /// How often the code of the process had changed; none if it changed while its mappings were read.
    pub changes: Option<u32>,
    /// The mappings.
    pub code: Vec<target::Mapping>,
    /// The files that they show, as far as they could be opened.
    pub objects: Vec<Arc<Object>>,
}

/// The mapping in this stage's terms.
impl From<&target::Mapping> for Mapping {
    fn from(mapping: &target::Mapping) -> Self {
        let device = (mapping.device.major, mapping.device.minor);
        Self {
            range: mapping.start.0..mapping.end.0,
            file_offset: mapping.file_offset,
            file: (mapping.inode != 0).then_some(FileId { device, inode: mapping.inode }),
            path: mapping.name.clone().into(),
        }
    }
}

/// Views that stacks may still come for: they arrive in the order in which they were walked, more or less.
const KEPT: usize = 64;

/// The latest views of a process.
pub(super) struct Views<M>(VecDeque<View<M>>);

struct View<M> {
    generation: u16,
    changes: Option<u32>,
    space: AddressSpace<M>,
}

impl<M> Default for Views<M> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<M: Clone + PartialEq> Views<M> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the newest.
    pub(super) fn push(&mut self, view: &CodeView, space: AddressSpace<M>) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(View { generation: view.generation, changes: view.changes, space });
    }

    /// What was at `address` when a stack was walked. Of the frame that is in no list, what the next list has there, unless code has
    /// changed between the two.
    pub(super) fn find(&self, address: u64, walked: WalkedCode, is_unknown: bool) -> Option<Region<M>> {
        let mut newest_first = self.0.iter().rev();
        let view = newest_first.find(|view| {
            if is_unknown {
                view.changes == Some(walked.changes)
            } else {
                view.generation == walked.generation
            }
        })?;
        view.space.find(address).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views() -> Views<&'static str> {
        let mut views = Views::default();
        for (generation, changes, module) in [(0, 0, "first"), (1, 2, "second"), (2, 3, "third")] {
            let mapping = Mapping { range: 0x1000..0x2000, file_offset: 0, file: None, path: module.into() };
            let mut space = AddressSpace::default();
            space.map(&mapping, module);
            let view = CodeView {
                process: 0,
                generation,
                changes: Some(changes),
                code: Vec::new(),
                objects: Vec::new(),
            };
            views.push(&view, space);
        }
        views
    }

    #[test]
    fn a_stack_is_named_by_what_it_was_walked_by() {
        let walked = |generation, changes| WalkedCode { changes, generation, last_is_unknown: false };
        let found = |address, walked, is_unknown| {
            views().find(address, walked, is_unknown).map(|region| region.module)
        };
        assert_eq!(found(0x1800, walked(0, 0), false), Some("first"));
        assert_eq!(found(0x1800, walked(1, 3), false), Some("second"));
        assert_eq!(found(0x2000, walked(1, 3), false), None);
        assert_eq!(found(0x1800, walked(9, 0), false), None, "no such view");
        assert_eq!(found(0x1800, walked(0, 2), true), Some("second"));
        assert_eq!(found(0x1800, walked(0, 1), true), None, "code came and went before it was looked at");
    }
}
