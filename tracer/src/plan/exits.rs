//! Where a function returns to its caller: for functions that must not have a return probe, since an exception could not
//! pass it.
//!
//! A function returns by a `ret` of its own, or of one that it jumps to in its last place. At each of them the stack
//! pointer is where it was at the entry and the result is in its register, and nothing on the stack has been touched. What is
//! found is read off instructions that are certainly such: the unwind information says where functions begin and end (also
//! of those without a symbol), each is decoded from its first byte to its last, and every branch must agree.
//!
//! A way out that cannot be followed (a jump to an address from memory) does no harm: the call that takes it counts as one that
//! never returned.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::arch::x86_64::{Function, Jump, Sweep};
use super::object::{ElfObject, SlotTarget};
use crate::unwind::function_ranges;

/// No operator new that was seen has a fourth as many.
const MAX_FUNCTIONS: usize = 64;
const MAX_EXITS: usize = 128;

/// An instruction that returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exit {
    /// Its address, as the ELF file states it.
    pub svma: u64,
    /// Its place in the file.
    pub file_offset: u64,
}

/// How a function is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exits {
    /// By ascending address, at least one.
    pub known: Vec<Exit>,
    /// Jumps whose target is not known.
    pub unknown: usize,
}

/// Finds the exits of functions of one file.
pub(super) struct ExitFinder<'object, 'data> {
    object: &'object ElfObject<'data>,
    /// Where functions are, sorted and apart.
    functions: Vec<Range<u64>>,
}

impl<'object, 'data> ExitFinder<'object, 'data> {
    pub(super) fn new(object: &'object ElfObject<'data>) -> Self {
        Self { object, functions: function_ranges(object.data()) }
    }

    /// The exits of the function at this address; why they cannot be told otherwise.
    pub(super) fn of(&self, svma: u64) -> Result<Exits, String> {
        let mut waiting = vec![svma];
        let mut sweeps: BTreeMap<u64, Sweep> = BTreeMap::new();
        let mut returns = BTreeSet::new();
        let mut unknown = 0;
        while let Some(target) = waiting.pop() {
            let function = self
                .function(target)
                .ok_or_else(|| format!("nothing says where the function at {target:#x} ends"))?;
            let sweep = match sweeps.entry(function.start) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let sweep = self.sweep(&function)?;
                    returns.extend(&sweep.returns);
                    for jump in &sweep.jumps {
                        match self.leads_to(*jump, &function) {
                            Some(target) => waiting.push(target),
                            None => unknown += 1,
                        }
                    }
                    place.insert(sweep)
                }
            };
            if !sweep.starts_at(target) {
                return Err(format!("a jump leads into the instruction at {target:#x}"));
            }
            if sweeps.len() > MAX_FUNCTIONS || returns.len() > MAX_EXITS {
                return Err("it can return from too many places".to_owned());
            }
        }
        let exit = |svma| Some(Exit { svma, file_offset: self.object.file_offset(svma)? });
        let known: Vec<Exit> = returns.into_iter().filter_map(exit).collect();
        if known.is_empty() { Err("it does not return".to_owned()) } else { Ok(Exits { known, unknown }) }
    }

    fn function(&self, svma: u64) -> Option<Range<u64>> {
        let at = self.functions.partition_point(|function| function.end <= svma);
        self.functions.get(at).filter(|function| function.contains(&svma)).cloned()
    }

    fn sweep(&self, function: &Range<u64>) -> Result<Sweep, String> {
        let wrong = || format!("the function at {:#x} could not be decoded", function.start);
        let code = self.object.code_at(function.start).ok_or_else(wrong)?;
        let size = function.end - function.start;
        Function { svma: function.start, code, size }.sweep().ok_or_else(wrong)
    }

    /// The address that a jump leads to; none when it is not known.
    fn leads_to(&self, jump: Jump, from: &Range<u64>) -> Option<u64> {
        let slot = match jump {
            Jump::To(svma) if from.contains(&svma) => return Some(svma),
            Jump::To(svma) => {
                let code = self.object.code_at(svma)?;
                match (Function { svma, code, size: 0 }).linkage_slot() {
                    Some(slot) => slot,
                    None => return Some(svma),
                }
            }
            Jump::Through(slot) => slot,
            Jump::Unknown => return None,
        };
        match self.object.slot_target(slot)? {
            SlotTarget::Here(svma) => Some(svma),
            SlotTarget::Elsewhere => None,
        }
    }
}
