//! The account of growth mode: which stack made which page resident, by the page faults that touched it first.
//!
//! A page belongs to the stack of its last fault: a second one means that the page had gone in between (`MADV_DONTNEED`,
//! swapped out). It is released when its address is unmapped or mapped anew, and goes along where `mremap` moves it. Of many
//! faults one in `period` is seen, at random, and stands for all of them: every figure is multiplied by it.

use std::collections::BTreeMap;

use tracer_ebpf::{
    event::{MappingCall, MappingEvent},
    process::ProcessIndex,
    stack::StackId,
};

use crate::{
    analyze::mappings::Totals,
    model::{Address, AddressRange, Extents, PAGE_BYTES},
};

/// Ranges of pages that one process can have, some 100 bytes each. Neighbours touched by one stack are one range.
const MAX_EXTENTS: usize = 1 << 19;

/// Pages that are touched one after the other count as touched at one time, so that they are one range: 134 ms.
const TIME_BITS: u32 = 27;

/// Who touched a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The number of the stack.
    pub stack: StackId,
    /// How many pages this one stands for.
    pub period: u64,
    /// When: monotonic clock, nanoseconds, rounded.
    pub at_ns: u64,
}

/// The pages that were touched in the window and not released.
#[derive(Clone, Debug, Default)]
pub struct TouchedPages {
    spaces: BTreeMap<ProcessIndex, Space>,
    totals: BTreeMap<(ProcessIndex, StackId), Totals>,
    faults: u64,
    table_full: u64,
}

#[derive(Clone, Debug, Default)]
struct Space {
    pages: Extents<Touch>,
    program_break: Option<u64>,
}

impl TouchedPages {
    /// Where the heap of a process ended before the window.
    pub fn add_process(&mut self, process: ProcessIndex, program_break: Option<Address>) {
        self.spaces.entry(process).or_default().program_break = program_break.map(|Address(end)| end);
    }

    /// Accounts one event. Of a fault, `range` is what it made resident: a page, or a huge one.
    pub fn apply(&mut self, event: &MappingEvent, range: Option<AddressRange>) {
        let Ok(call) = MappingCall::try_from(event.call) else { return };
        let [first, second, third, ..] = event.args;
        let result = u64::try_from(event.result).ok();
        match (call, event.at_exit != 0, result) {
            (MappingCall::PageFault, ..) => self.touch(event, range),
            (MappingCall::Munmap, false, _) => self.release_sized(event.process, first, second),
            (MappingCall::Mmap, true, Some(at)) => self.release_sized(event.process, at, second),
            (MappingCall::Mremap, true, Some(to)) => {
                self.move_pages(event.process, (first, second), (to, third))
            }
            (MappingCall::Brk, true, Some(end)) => self.set_break(event.process, end),
            _ => {}
        }
    }

    fn touch(&mut self, event: &MappingEvent, range: Option<AddressRange>) {
        self.faults += 1;
        let Some(range) = range else { return };
        let [_, period, ..] = event.args;
        let at_ns = event.time_ns >> TIME_BITS << TIME_BITS;
        let touch = Touch { stack: event.stack, period: period.max(1), at_ns };
        let space = self.spaces.entry(event.process).or_default();
        if space.pages.len() >= MAX_EXTENTS {
            self.table_full += 1;
            return;
        }
        let replaced = space.pages.put(range, touch);
        self.free(event.process, replaced);
        let totals = self.totals.entry((event.process, touch.stack)).or_default();
        totals.allocated_bytes = totals.allocated_bytes.saturating_add(scaled(range, touch));
        totals.allocated_objects = totals.allocated_objects.saturating_add(scaled(range, touch) / PAGE_BYTES);
    }

    fn release_sized(&mut self, process: ProcessIndex, start: u64, length: u64) {
        let Some(range) = pages(start, length) else { return };
        self.release(process, range);
    }

    fn release(&mut self, process: ProcessIndex, range: AddressRange) {
        let Some(space) = self.spaces.get_mut(&process) else { return };
        let released = space.pages.take(range);
        self.free(process, released);
    }

    fn free(&mut self, process: ProcessIndex, released: Vec<(AddressRange, Touch)>) {
        for (range, touch) in released {
            let totals = self.totals.entry((process, touch.stack)).or_default();
            totals.freed_bytes = totals.freed_bytes.saturating_add(scaled(range, touch));
            totals.freed_objects = totals.freed_objects.saturating_add(scaled(range, touch) / PAGE_BYTES);
        }
    }

    fn move_pages(&mut self, process: ProcessIndex, from: (u64, u64), to: (u64, u64)) {
        let (Some(old), Some(new)) = (pages(from.0, from.1), pages(to.0, to.1)) else { return };
        if old.start == new.start {
            return self.release(process, AddressRange { start: new.end, end: old.end });
        }
        self.release(process, new);
        let Some(space) = self.spaces.get_mut(&process) else { return };
        let mut cut = Vec::new();
        for (range, touch) in space.pages.take(old) {
            let moved = range.start.0 - old.start.0;
            match AddressRange::sized(new.start.0.wrapping_add(moved), range.bytes())
                .and_then(|range| range.intersection(new))
            {
                Some(kept) => {
                    space.pages.put(kept, touch);
                    let rest = Address(range.start.0 + kept.bytes());
                    cut.push((AddressRange { start: rest, end: range.end }, touch));
                }
                None => cut.push((range, touch)),
            }
        }
        cut.retain(|(range, _)| !range.is_empty());
        self.free(process, cut);
    }

    fn set_break(&mut self, process: ProcessIndex, end: u64) {
        let Some(space) = self.spaces.get_mut(&process) else { return };
        let before = space.program_break.replace(end);
        if let Some(before) = before.filter(|&before| before > end) {
            let start = end.next_multiple_of(PAGE_BYTES);
            self.release(
                process,
                AddressRange { start: Address(start), end: Address(before.next_multiple_of(PAGE_BYTES)) },
            );
        }
    }

    /// What was touched and not released, by process and address.
    pub fn live(&self) -> impl Iterator<Item = (ProcessIndex, AddressRange, Touch)> + '_ {
        self.spaces.iter().flat_map(|(&process, space)| {
            space.pages.iter().map(move |(range, touch)| (process, range, touch))
        })
    }

    /// The sums of the window, by process and stack.
    pub fn totals(&self) -> impl Iterator<Item = ((ProcessIndex, StackId), Totals)> + '_ {
        self.totals.iter().map(|(&of, &totals)| (of, totals))
    }

    /// Faults for which there was no room.
    #[must_use]
    pub const fn table_full(&self) -> u64 {
        self.table_full
    }
}

/// The bytes that a range stands for.
#[must_use]
pub const fn scaled(range: AddressRange, touch: Touch) -> u64 {
    range.bytes().saturating_mul(touch.period)
}

fn pages(start: u64, length: u64) -> Option<AddressRange> {
    let end = start.checked_add(length)?.checked_next_multiple_of(PAGE_BYTES)?;
    let range = AddressRange { start: Address(start / PAGE_BYTES * PAGE_BYTES), end: Address(end) };
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_BYTES;

    fn event(call: MappingCall, args: [u64; 3], result: i64) -> MappingEvent {
        let [a, b, c] = args;
        MappingEvent {
            call: call as u8,
            at_exit: 1,
            args: [a, b, c, 0, 0, 0],
            result,
            ..MappingEvent::default()
        }
    }

    fn touch(account: &mut TouchedPages, page: u64, stack: u32, period: u64) {
        let fault = MappingEvent {
            stack: StackId::new(stack),
            ..event(MappingCall::PageFault, [page * PAGE, period, 0], 0)
        };
        account.apply(&fault, AddressRange::sized(page * PAGE, PAGE));
    }

    fn live(account: &TouchedPages) -> Vec<(u64, u64, u32)> {
        let pages = |(_, range, touch): (ProcessIndex, AddressRange, Touch)| {
            (range.start.0 / PAGE, range.end.0 / PAGE, touch.stack.number())
        };
        account.live().map(pages).collect()
    }

    fn assert_balanced(account: &TouchedPages) {
        let live: u64 = account.live().map(|(_, range, touch)| scaled(range, touch)).sum();
        let sum: u64 = account.totals().map(|(_, totals)| totals.outstanding_bytes()).sum();
        assert_eq!(sum, live);
    }

    #[test]
    fn a_page_is_of_the_stack_that_touched_it_last() {
        let mut account = TouchedPages::default();
        for (page, stack) in [(1, 7), (2, 7), (3, 8), (2, 9)] {
            touch(&mut account, page, stack, 4);
        }
        assert_eq!(live(&account), [(1, 2, 7), (2, 3, 9), (3, 4, 8)]);
        let of_seven =
            account.totals().find(|(of, _)| *of == (ProcessIndex::default(), StackId::new(7))).unwrap().1;
        assert_eq!((of_seven.allocated_bytes, of_seven.freed_objects), (8 * PAGE, 4));
        assert_balanced(&account);
    }

    #[test]
    fn pages_go_with_their_addresses() {
        let mut account = TouchedPages::default();
        account.add_process(ProcessIndex::default(), Some(Address(100 * PAGE)));
        (10..20).chain(98..100).for_each(|page| touch(&mut account, page, 1, 1));
        let entry = MappingEvent { at_exit: 0, ..event(MappingCall::Munmap, [10 * PAGE, PAGE + 1, 0], 0) };
        account.apply(&entry, None);
        assert_eq!(live(&account), [(12, 20, 1), (98, 100, 1)]);
        account.apply(&event(MappingCall::Mmap, [0, PAGE, 0], 15 * PAGE as i64), None);
        account.apply(&event(MappingCall::Brk, [0; 3], 99 * PAGE as i64), None);
        assert_eq!(live(&account), [(12, 15, 1), (16, 20, 1), (98, 99, 1)]);
        assert_balanced(&account);
    }

    #[test]
    fn moved_pages_stay_touched_and_what_is_cut_off_does_not() {
        let mut account = TouchedPages::default();
        (10..14).for_each(|page| touch(&mut account, page, 1, 1));
        touch(&mut account, 51, 2, 1);
        account.apply(&event(MappingCall::Mremap, [10 * PAGE, 4 * PAGE, 3 * PAGE], 50 * PAGE as i64), None);
        assert_eq!(live(&account), [(50, 53, 1)]);
        account.apply(&event(MappingCall::Mremap, [50 * PAGE, 3 * PAGE, PAGE], 50 * PAGE as i64), None);
        assert_eq!(live(&account), [(50, 51, 1)]);
        // A failed call changes nothing.
        account.apply(&event(MappingCall::Mremap, [50 * PAGE, PAGE, 9 * PAGE], -12), None);
        assert_eq!(live(&account), [(50, 51, 1)]);
        assert_balanced(&account);
    }
}
