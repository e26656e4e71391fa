//! Gives the places of stacks that hold nothing to other stacks, so that a recording can last for days: a program that is
//! compiled as it runs, or that recurses, has ever new stacks, and the table has room for a number of them.
//!
//! A stack is *withdrawn* first: its place gets a key that no stack has, so no program finds it any more, and nobody takes
//! it. A program that found it before may be about to count an allocation for it; programs run as RCU readers, so after a
//! grace period there is none of those. What has nothing outstanding then is over for good: its totals are added to those
//! of the retired stacks, and its place is free. What got something meanwhile keeps its number, and is looked at again
//! later. If its frames come again before, they get a second number, which reports put together.

use std::collections::HashSet;

use tracer_ebpf::stack::{StackId, StackTotals};

use crate::attach::SharedTables;

/// Time between sweeps: what did not allocate from one to the next is at rest.
const SPACING_NS: u64 = 500_000_000;

/// Which stacks are at rest, and which are withdrawn.
#[derive(Debug, Default)]
pub struct Retirement {
    next_ns: u64,
    /// Allocations of each stack at the last sweep.
    seen: Vec<u64>,
    withdrawn: HashSet<StackId>,
}

impl Retirement {
    /// Whether the table is filling up, and the last sweep some time ago.
    pub fn is_due(&mut self, tables: &SharedTables, now_ns: u64) -> bool {
        if now_ns < self.next_ns {
            return false;
        }
        self.next_ns = now_ns + SPACING_NS;
        // Places come in sets, some of which are full long before the table is.
        tables.known_stacks() >= tables.totals().len() / 4
    }

    /// The counts have been set to 0: what they were says no more what is at rest. What is withdrawn stays so.
    pub fn forget_counts(&mut self) {
        self.seen.clear();
    }

    /// Withdraws the stacks that have nothing outstanding and did not allocate since the last sweep; all that are withdrawn.
    pub fn withdraw(&mut self, tables: &SharedTables, holding: &HashSet<StackId>) -> &HashSet<StackId> {
        let totals = tables.totals();
        let is_first = self.seen.is_empty();
        self.seen.resize(totals.len(), 0);
        for ((stack, totals), seen) in tables.stacks().zip(&mut self.seen) {
            let allocated = totals.allocated().objects;
            let at_rest = std::mem::replace(seen, allocated) == allocated && !is_first;
            if at_rest && holds_nothing(totals) && !holding.contains(&stack) && tables.withdraw(stack) {
                self.withdrawn.insert(stack);
            }
        }
        &self.withdrawn
    }

    /// Gives up the places of those that still have nothing, and tells which. Every program that ran when they were
    /// withdrawn must have ended, and what it said must be in the account of mappings.
    pub fn vacate(&mut self, tables: &SharedTables, holding: &HashSet<StackId>) -> HashSet<StackId> {
        let totals = tables.totals();
        let gone: HashSet<StackId> = self
            .withdrawn
            .extract_if(|stack| {
                totals.get(stack.place()).is_some_and(holds_nothing) && !holding.contains(stack)
            })
            .collect();
        for &stack in &gone {
            tables.vacate(stack);
            if let Some(seen) = self.seen.get_mut(stack.place()) {
                *seen = 0;
            }
        }
        gone
    }
}

fn holds_nothing(totals: &StackTotals) -> bool {
    // Freed first: a block that is freed between the two reads must not make up for another.
    let freed = totals.freed();
    freed == totals.allocated()
}
