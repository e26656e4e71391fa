//! What a process had mapped at one time, and which of these a stack was walked by.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use tracer_ebpf::process::ProcessIndex;

use crate::drain::WalkedCode;
use crate::model::AddressRange;
use crate::runtime::Layouts;
use crate::target::{MappedObject, Mapping};

/// The executable mappings of a process, as they were handed to the walk in the kernel: stacks that were walked by them are named by
/// them, whatever is mapped by the time that a stack is named.
#[derive(Clone, Debug)]
pub struct CodeView {
    pub process: ProcessIndex,
    /// Generation of the list in the kernel.
    pub generation: u16,
    /// How often the code of the process had changed; none if it changed while its mappings were read.
    pub changes: Option<u32>,
    /// The mappings.
    pub code: Vec<Mapping>,
    /// The files that they show, as far as they could be opened.
    pub objects: Vec<Arc<MappedObject>>,
    /// Where things are in the language runtimes that are among them, as far as they are known.
    pub runtimes: Layouts,
}

impl CodeView {
    /// The file that a mapping shows, if it could be opened.
    pub(super) fn object(&self, mapping: &Mapping) -> Option<&MappedObject> {
        let id = mapping.file_id()?;
        self.objects.iter().find(|object| object.id == id).map(|object| &**object)
    }
}

/// Views that stacks may still come for: they arrive in the order in which they were walked, more or less.
const KEPT: usize = 64;

/// The latest views of a process.
#[derive(Clone)]
pub(super) struct Views<M>(VecDeque<View<M>>);

#[derive(Clone)]
struct View<M> {
    generation: u16,
    changes: Option<u32>,
    /// By ascending address.
    regions: Rc<[Region<M>]>,
}

/// A part of the address space, and whose code is there.
#[derive(Clone, Debug)]
pub(super) struct Region<M> {
    range: AddressRange,
    file_offset: u64,
    /// Whose code it is.
    pub(super) module: M,
}

impl<M> Region<M> {
    pub(super) fn new(mapping: &Mapping, module: M) -> Self {
        Self { range: mapping.range(), file_offset: mapping.file_offset, module }
    }

    /// The offset in the mapped file of the byte at `address`.
    pub(super) fn file_offset(&self, address: u64) -> u64 {
        self.file_offset.wrapping_add(address.wrapping_sub(self.range.start.0))
    }
}

impl<M> Default for Views<M> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<M: Clone> Views<M> {
    /// Adds the newest, whose mappings show these regions.
    pub(super) fn push(&mut self, view: &CodeView, regions: Rc<[Region<M>]>) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(View { generation: view.generation, changes: view.changes, regions });
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
        let before = view.regions.partition_point(|region| region.range.end.0 <= address);
        view.regions.get(before).filter(|region| region.range.start.0 <= address).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views() -> Views<&'static str> {
        let mut views = Views::default();
        for (generation, changes, module) in [(0, 0, "first"), (1, 2, "second"), (2, 3, "third")] {
            let range = AddressRange::sized(0x1000, 0x1000).unwrap();
            let mapping = Mapping::made_up(range, "r-xp", module);
            let view = CodeView {
                process: ProcessIndex::default(),
                generation,
                changes: Some(changes),
                code: Vec::new(),
                objects: Vec::new(),
                runtimes: Layouts::default(),
            };
            views.push(&view, [Region::new(&mapping, module)].into());
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
        assert_eq!([0xfff, 0x2000].map(|address| found(address, walked(1, 3), false)), [None; 2]);
        assert_eq!(found(0x1800, walked(9, 0), false), None, "no such view");
        assert_eq!(found(0x1800, walked(0, 2), true), Some("second"));
        assert_eq!(found(0x1800, walked(0, 1), true), None, "code came and went before it was looked at");
    }
}
