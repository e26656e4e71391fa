//! Each rule by example, and all of them together against a naive model: a page table with one owner a page.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tracer_ebpf::{process::ProcessIndex, stack::StackId};

use super::*;
use crate::memory::python_child::Target;
use crate::target::parse_maps;

const ANONYMOUS: u64 = 0x22;
const FILE: u64 = 0x2;
const FIXED: u64 = 0x10;
const MAYMOVE: u64 = 1;
const MREMAP_FIXED: u64 = 2;
const DONTUNMAP: u64 = 4;
const ENOMEM: i64 = -12;
const EFAULT: i64 = -14;

fn bytes(pages: u64) -> u64 {
    pages * PAGE_BYTES
}

fn pages(start: u64, end: u64) -> AddressRange {
    AddressRange { start: Address(bytes(start)), end: Address(bytes(end)) }
}

fn entry(call: MappingCall, args: [u64; 6]) -> MappingEvent {
    MappingEvent { event: 2, call: call as u8, tid: 1, stack: StackId::NONE, args, ..MappingEvent::default() }
}

fn exit(call: MappingCall, args: [u64; 6], result: i64, stack: u32) -> MappingEvent {
    MappingEvent {
        at_exit: 1,
        result,
        stack: StackId::new(stack),
        time_ns: u64::from(stack),
        ..entry(call, args)
    }
}

/// The account of one process, spoken to in pages. Each successful call's stack is named by the test.
#[derive(Default)]
struct Story {
    account: MappingAccount,
    in_allocator: u8,
}

impl Story {
    fn begin(before: &[(u64, u64)]) -> Self {
        let mut story = Self::default();
        let mappings = before.iter().map(|&(start, end)| (pages(start, end), Backing::Anonymous)).collect();
        story.account.add_process(ProcessIndex::default(), InitialMappings { mappings, program_break: None });
        story
    }

    fn apply(&mut self, event: MappingEvent) {
        self.account.apply(&MappingEvent { in_allocator: self.in_allocator, ..event });
    }

    fn mmap_with(&mut self, stack: u32, start: u64, length: u64, flags: u64) {
        let args = [0, bytes(length), 3, flags, 0, 0];
        self.apply(exit(MappingCall::Mmap, args, bytes(start) as i64, stack));
    }

    fn mmap(&mut self, stack: u32, start: u64, length: u64) {
        self.mmap_with(stack, start, length, ANONYMOUS);
    }

    fn munmap(&mut self, start: u64, length: u64) {
        let args = [bytes(start), bytes(length), 0, 0, 0, 0];
        self.apply(entry(MappingCall::Munmap, args));
        self.apply(exit(MappingCall::Munmap, args, 0, 0));
    }

    fn mremap(&mut self, stack: u32, old: (u64, u64), new: (u64, u64), flags: u64) {
        let args = [bytes(old.0), bytes(old.1), bytes(new.1), flags, bytes(new.0), 0];
        self.apply(entry(MappingCall::Mremap, args));
        self.apply(exit(MappingCall::Mremap, args, bytes(new.0) as i64, stack));
    }

    fn brk(&mut self, stack: u32, wanted: u64, result: u64) {
        self.apply(exit(MappingCall::Brk, [wanted, 0, 0, 0, 0, 0], result as i64, stack));
    }

    /// Start page, end page, stack.
    fn live(&self) -> Vec<(u64, u64, u32)> {
        let page = |address: Address| address.0 / PAGE_BYTES;
        self.account
            .live()
            .map(|live| (page(live.range.start), page(live.range.end), live.holder.stack.number()))
            .collect()
    }

    /// The stack's allocated and freed pages, then its allocated and freed objects.
    fn totals(&self, stack: u32) -> [u64; 4] {
        let of_stack = self.account.totals().filter(|(holder, _)| holder.stack.number() == stack);
        of_stack.fold([0; 4], |[a, b, c, d], (_, totals)| {
            let Totals { allocated_bytes, freed_bytes, allocated_objects, freed_objects } = totals;
            [
                a + allocated_bytes / PAGE_BYTES,
                b + freed_bytes / PAGE_BYTES,
                c + allocated_objects,
                d + freed_objects,
            ]
        })
    }
}

#[test]
fn a_mapping_is_outstanding_until_its_last_page_is_unmapped() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 10);
    story.munmap(13, 2);
    assert_eq!(story.live(), [(10, 13, 1), (15, 20, 1)]);
    assert_eq!(story.totals(1), [10, 2, 1, 0]);
    story.munmap(10, 3);
    story.munmap(18, 2);
    assert_eq!(story.live(), [(15, 18, 1)]);
    assert_eq!(story.totals(1), [10, 7, 1, 0]);
    story.munmap(15, 3);
    assert_eq!(story.live(), []);
    assert_eq!(story.totals(1), [10, 10, 1, 1]);
    let calls = Calls { allocations: 1, frees: 1, ..Calls::default() };
    assert_eq!(story.account.calls(), calls);
}

#[test]
fn one_munmap_releases_across_ranges_gaps_and_unknown_memory() {
    let mut story = Story::begin(&[(14, 16)]);
    story.mmap(1, 10, 2);
    story.mmap(2, 12, 2);
    story.mmap(3, 18, 4);
    story.munmap(11, 8);
    assert_eq!(story.live(), [(10, 11, 1), (19, 22, 3)]);
    assert_eq!(story.account.calls().unmatched_frees, 0);
}

#[test]
fn a_munmap_of_memory_from_before_the_window_is_an_unmatched_free() {
    let mut story = Story::begin(&[(10, 20)]);
    story.munmap(10, 5);
    assert_eq!(story.account.calls().unmatched_frees, 1);
    story.munmap(10, 5); // a gap by now
    story.munmap(30, 5); // never mapped
    assert_eq!(story.account.calls().unmatched_frees, 1);
    story.in_allocator = 1;
    story.munmap(15, 5);
    assert_eq!(story.account.calls().unmatched_frees, 1);
}

#[test]
fn mapping_over_a_range_releases_it() {
    let mut story = Story::begin(&[(30, 40)]);
    story.mmap(1, 10, 10);
    story.mmap_with(2, 12, 3, ANONYMOUS | FIXED);
    assert_eq!(story.live(), [(10, 12, 1), (12, 15, 2), (15, 20, 1)]);
    assert_eq!(story.totals(1), [10, 3, 1, 0]);
    story.mmap_with(3, 8, 14, ANONYMOUS | FIXED);
    assert_eq!(story.live(), [(8, 22, 3)]);
    assert_eq!(story.totals(1), [10, 10, 1, 1]);
    assert_eq!(story.totals(2), [3, 3, 1, 1]);
}

#[test]
fn a_failed_mmap_releases_nothing() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 10);
    // MAP_FIXED_NOREPLACE over a mapping: EEXIST.
    let args = [bytes(10), bytes(5), 3, ANONYMOUS | 0x10_0000, 0, 0];
    story.apply(exit(MappingCall::Mmap, args, -17, 2));
    assert_eq!(story.live(), [(10, 20, 1)]);
    assert_eq!(story.account.calls().failed_allocations, 1);
}

#[test]
fn lengths_are_rounded_up_to_pages() {
    let mut story = Story::begin(&[]);
    let args = [0, bytes(2) + 1, 3, ANONYMOUS, 0, 0];
    story.apply(exit(MappingCall::Mmap, args, bytes(10) as i64, 1));
    assert_eq!(story.live(), [(10, 13, 1)]);
    let args = [bytes(10), 1, 0, 0, 0, 0];
    story.apply(entry(MappingCall::Munmap, args));
    assert_eq!(story.live(), [(11, 13, 1)]);
}

#[test]
fn huge_pages_are_rounded_up_to_their_size() {
    let mut story = Story::begin(&[]);
    story.mmap_with(1, 512, 1, ANONYMOUS | flag::MAP_HUGETLB);
    assert_eq!(story.live(), [(512, 1024, 1)]);
    let gibibyte = 30 << flag::MAP_HUGE_SHIFT;
    story.mmap_with(2, 1 << 18, 1, ANONYMOUS | flag::MAP_HUGETLB | gibibyte);
    assert_eq!(story.live()[1], (1 << 18, 1 << 19, 2));
}

#[test]
fn kinds_tell_files_and_allocators_from_mappings() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 1);
    story.mmap_with(2, 20, 1, FILE);
    story.in_allocator = 1;
    story.mmap(3, 30, 1);
    let kinds: Vec<_> = story.account.live().map(|live| live.holder.kind).collect();
    assert_eq!(kinds, [Kind::Mapping, Kind::File, Kind::Allocator]);
    assert_eq!(story.account.calls().allocations, 1);
}

#[test]
fn munmap_releases_at_entry_and_a_failure_puts_it_back() {
    let mut story = Story::begin(&[(20, 22)]);
    story.mmap(1, 10, 10);
    let args = [bytes(12), bytes(20), 0, 0, 0, 0];
    story.apply(entry(MappingCall::Munmap, args));
    assert_eq!(story.live(), [(10, 12, 1)]);
    story.apply(exit(MappingCall::Munmap, args, ENOMEM, 0));
    assert_eq!(story.live(), [(10, 20, 1)]);
    assert_eq!(story.totals(1), [10, 0, 1, 0]);
    // Freed as a whole and put back: the object lives again.
    let args = [bytes(10), bytes(10), 0, 0, 0, 0];
    story.apply(entry(MappingCall::Munmap, args));
    assert_eq!(story.totals(1), [10, 10, 1, 1]);
    story.apply(exit(MappingCall::Munmap, args, ENOMEM, 0));
    assert_eq!(story.totals(1), [10, 0, 1, 0]);
    // And what was there from before the window is known again.
    story.munmap(20, 2);
    assert_eq!(story.account.calls().unmatched_frees, 1);
}

#[test]
fn a_failed_munmap_of_unknown_memory_is_no_free() {
    let mut story = Story::begin(&[(10, 20)]);
    let args = [bytes(12), bytes(2), 0, 0, 0, 0];
    story.apply(entry(MappingCall::Munmap, args));
    story.apply(exit(MappingCall::Munmap, args, ENOMEM, 0));
    assert_eq!(story.account.calls().unmatched_frees, 0);
}

#[test]
fn what_was_mapped_since_is_not_put_back() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 10);
    let args = [bytes(10), bytes(10), 0, 0, 0, 0];
    story.apply(entry(MappingCall::Munmap, args));
    story.apply(MappingEvent {
        tid: 2,
        ..exit(MappingCall::Mmap, [bytes(12), bytes(3), 3, ANONYMOUS | FIXED, 0, 0], bytes(12) as i64, 2)
    });
    let other = [bytes(13), bytes(1), 0, 0, 0, 0];
    story.apply(MappingEvent { tid: 2, ..entry(MappingCall::Munmap, other) });
    story.apply(MappingEvent { tid: 2, ..exit(MappingCall::Munmap, other, 0, 0) });
    story.apply(exit(MappingCall::Munmap, args, ENOMEM, 0));
    assert_eq!(story.live(), [(10, 12, 1), (12, 13, 2), (14, 15, 2), (15, 20, 1)]);
    assert_eq!(story.totals(1), [10, 3, 1, 0]);
}

#[test]
fn a_call_that_never_returns_has_released() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 10);
    story.apply(entry(MappingCall::Munmap, [bytes(10), bytes(4), 0, 0, 0, 0]));
    // The thread was killed; another one with its number fails at something else.
    let args = [bytes(14), bytes(2), 0, 0, 0, 0];
    story.apply(exit(MappingCall::Munmap, args, ENOMEM, 0));
    assert_eq!(story.live(), [(14, 20, 1)]);
}

#[test]
fn an_exit_without_its_entry_releases() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 10);
    story.apply(exit(MappingCall::Munmap, [bytes(10), bytes(4), 0, 0, 0, 0], 0, 0));
    assert_eq!(story.live(), [(14, 20, 1)]);
    let args = [bytes(14), bytes(6), bytes(8), MAYMOVE, 0, 0];
    story.apply(exit(MappingCall::Mremap, args, bytes(50) as i64, 2));
    assert_eq!(story.live(), [(50, 58, 2)]);
}

#[test]
fn requests_that_the_kernel_refuses_release_nothing() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 10);
    for (start, length) in [(bytes(10) + 1, bytes(1)), (bytes(10), 0), (bytes(10), u64::MAX), (u64::MAX, 1)] {
        story.apply(entry(MappingCall::Munmap, [start, length, 0, 0, 0, 0]));
        assert_eq!(story.live(), [(10, 20, 1)], "{start:#x} {length:#x}");
    }
}

#[test]
fn mremap_makes_a_new_object_wherever_the_block_goes() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 4);
    story.mremap(2, (10, 4), (10, 8), MAYMOVE); // grown in place
    assert_eq!(story.live(), [(10, 18, 2)]);
    assert_eq!(story.totals(1), [4, 4, 1, 1]);
    story.mremap(3, (10, 8), (50, 16), MAYMOVE); // moved
    assert_eq!(story.live(), [(50, 66, 3)]);
    story.mremap(4, (50, 16), (50, 2), 0); // shrunk
    assert_eq!(story.live(), [(50, 52, 4)]);
    assert_eq!(story.totals(3), [16, 16, 1, 1]);
    assert_eq!(story.totals(4), [2, 0, 1, 0]);
}

#[test]
fn mremap_of_a_part_leaves_the_rest_with_its_object() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 10);
    story.mremap(2, (12, 3), (50, 5), MAYMOVE);
    assert_eq!(story.live(), [(10, 12, 1), (15, 20, 1), (50, 55, 2)]);
    assert_eq!(story.totals(1), [10, 3, 1, 0]);
}

#[test]
fn a_failed_mremap_leaves_everything_as_it_was() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 4);
    let args = [bytes(10), bytes(4), bytes(8), 0, 0, 0];
    story.apply(entry(MappingCall::Mremap, args));
    assert_eq!(story.live(), []);
    story.apply(exit(MappingCall::Mremap, args, ENOMEM, 2));
    assert_eq!(story.live(), [(10, 14, 1)]);
    assert_eq!(story.account.calls().failed_allocations, 1);
}

#[test]
fn a_duplicate_over_what_it_duplicates_fails_when_that_is_released() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 4);
    let args = [bytes(11), 0, bytes(2), MAYMOVE | MREMAP_FIXED, bytes(11), 0];
    story.apply(entry(MappingCall::Mremap, args));
    story.apply(exit(MappingCall::Mremap, args, EFAULT, 2));
    assert_eq!(story.live(), [(10, 11, 1), (13, 14, 1)]);
    // Where nothing is mapped the kernel says so before it releases anything.
    let args = [bytes(11), 0, bytes(4), MAYMOVE | MREMAP_FIXED, bytes(11), 0];
    story.apply(entry(MappingCall::Mremap, args));
    story.apply(exit(MappingCall::Mremap, args, EFAULT, 2));
    assert_eq!(story.live(), [(10, 11, 1), (13, 14, 1)]);
}

#[test]
fn the_old_place_of_a_moving_block_can_be_mapped_before_it_arrives() {
    let mut story = Story::begin(&[(10, 12)]);
    story.mmap(1, 12, 2);
    let args = [bytes(10), bytes(4), bytes(6), MAYMOVE, 0, 0];
    story.apply(entry(MappingCall::Mremap, args));
    story.apply(MappingEvent {
        tid: 2,
        ..exit(MappingCall::Mmap, [0, bytes(4), 3, ANONYMOUS, 0, 0], bytes(10) as i64, 2)
    });
    story.apply(exit(MappingCall::Mremap, args, bytes(50) as i64, 3));
    assert_eq!(story.live(), [(10, 14, 2), (52, 56, 3)]);
}

#[test]
fn of_memory_from_before_the_window_only_the_growth_counts() {
    let mut story = Story::begin(&[(10, 20)]);
    story.mremap(1, (10, 10), (50, 11), MAYMOVE);
    assert_eq!(story.live(), [(60, 61, 1)]);
    assert_eq!(story.totals(1), [1, 0, 1, 0]);
    story.mremap(2, (50, 10), (50, 5), 0);
    assert_eq!(story.live(), [(60, 61, 1)]);
    assert_eq!(story.account.calls().allocations, 1);
    // The shrunk block is still known to be from before.
    story.munmap(50, 5);
    assert_eq!(story.account.calls().unmatched_frees, 1);
}

#[test]
fn mremap_fixed_releases_what_it_lands_on() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 4);
    story.mmap(2, 30, 10);
    story.mremap(3, (10, 4), (32, 4), MAYMOVE | MREMAP_FIXED);
    assert_eq!(story.live(), [(30, 32, 2), (32, 36, 3), (36, 40, 2)]);
    assert_eq!(story.totals(2), [10, 4, 1, 0]);
}

#[test]
fn mremap_of_length_zero_maps_shared_pages_twice() {
    let mut story = Story::begin(&[]);
    story.mmap_with(1, 10, 4, FILE | 1);
    story.mremap(2, (10, 0), (30, 4), MAYMOVE);
    assert_eq!(story.live(), [(10, 14, 1), (30, 34, 2)]);
    assert!(story.account.live().all(|live| live.holder.kind == Kind::File));
}

#[test]
fn mremap_dontunmap_keeps_the_old_range() {
    let mut story = Story::begin(&[]);
    story.mmap(1, 10, 4);
    story.mremap(2, (10, 4), (30, 4), MAYMOVE | DONTUNMAP);
    assert_eq!(story.live(), [(10, 14, 1), (30, 34, 2)]);
    assert_eq!(story.totals(1), [4, 0, 1, 0]);
}

#[test]
fn brk_counts_from_the_known_break() {
    let mut story = Story::default();
    let initial = InitialMappings { mappings: Vec::new(), program_break: Some(Address(bytes(100))) };
    story.account.add_process(ProcessIndex::default(), initial);
    story.brk(1, bytes(104) - 5, bytes(104) - 5); // not at a page
    story.brk(2, bytes(108), bytes(108));
    assert_eq!(story.live(), [(100, 104, 1), (104, 108, 2)]);
    story.brk(3, 0, bytes(108)); // a question
    story.brk(3, bytes(900), bytes(108)); // a failure
    assert_eq!(story.account.calls().failed_allocations, 1);
    story.brk(3, bytes(102), bytes(102));
    assert_eq!(story.live(), [(100, 102, 1)]);
    assert_eq!(story.totals(2), [4, 4, 1, 1]);
    assert_eq!(story.totals(3), [0; 4]);
}

#[test]
fn calls_between_opening_and_reading_are_replayed_to_the_state_that_was_read() {
    let mut story = Story::default();
    // The window opened, the break went from 100 to 104 and 108, 10 to 14 was mapped, and then the mappings were read.
    let mappings = vec![(pages(10, 14), Backing::Anonymous), (pages(90, 108), Backing::Anonymous)];
    let initial = InitialMappings { mappings, program_break: Some(Address(bytes(108))) };
    story.account.add_process(ProcessIndex::default(), initial);
    story.brk(1, bytes(104), bytes(104));
    story.brk(2, bytes(108), bytes(108));
    story.mmap(3, 10, 4);
    assert_eq!(story.live(), [(10, 14, 3), (104, 108, 2)], "and nothing of before the window");
    story.brk(4, bytes(109), bytes(109));
    assert_eq!(story.totals(4), [1, 0, 1, 0]);
}

#[test]
fn an_unknown_break_is_learnt_from_the_first_result() {
    let mut story = Story::begin(&[]);
    story.brk(1, bytes(100), bytes(100));
    assert_eq!(story.live(), []);
    story.brk(2, bytes(101), bytes(101));
    assert_eq!(story.live(), [(100, 101, 2)]);
}

#[test]
fn processes_do_not_mix() {
    let mut account = MappingAccount::new();
    let args = [0, bytes(1), 3, ANONYMOUS, 0, 0];
    let parent = exit(MappingCall::Mmap, args, bytes(10) as i64, 1);
    account.apply(&parent);
    account.apply(&MappingEvent { process: ProcessIndex::new(1), ..parent });
    account.apply(&entry(MappingCall::Munmap, [bytes(10), bytes(1), 0, 0, 0, 0]));
    let live: Vec<_> = account.live().map(|live| live.holder.process).collect();
    assert_eq!(live, [ProcessIndex::new(1)]);
}

#[test]
fn initial_mappings_come_from_proc_maps() {
    let text = b"00400000-00401000 r-xp 00000000 08:01 12 /usr/bin/cat\n\
        01000000-01021000 rw-p 00000000 00:00 0 [heap]\n\
        7f0000000000-7f0000001000 rw-s 00000000 00:01 1025 /dev/zero (deleted)\n\
        7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n";
    let initial = InitialMappings::of(&parse_maps(text));
    let backings: Vec<_> = initial.mappings.iter().map(|&(_, backing)| backing).collect();
    use Backing::{Anonymous, File};
    assert_eq!(backings, [File, Anonymous, Anonymous, Anonymous]);
    assert_eq!(initial.program_break, Some(Address(0x0102_1000)));
    assert_eq!(initial.mappings[0].0, pages(0x400, 0x401));
}

#[test]
fn our_own_maps_can_be_taken() {
    let maps = std::fs::read("/proc/self/maps").unwrap();
    let initial = InitialMappings::of(&parse_maps(&maps));
    let here = Address(&raw const maps as u64);
    let around = |&(range, backing): &(AddressRange, Backing)| {
        range.start <= here && here < range.end && backing == Backing::Anonymous
    };
    assert!(initial.mappings.iter().any(around));
    assert!(initial.program_break.is_some());
}

#[test]
fn nonsense_is_counted() {
    let mut story = Story::begin(&[]);
    let mut unknown = entry(MappingCall::Mmap, [0; 6]);
    unknown.call = 77;
    story.apply(unknown);
    story.apply(exit(MappingCall::Mmap, [0, u64::MAX, 3, ANONYMOUS, 0, 0], 4096, 1));
    story.apply(exit(MappingCall::Mmap, [0, 4096, 3, ANONYMOUS, 0, 0], 4095, 1));
    assert_eq!(story.account.losses().malformed, 3);
    assert_eq!(story.live(), []);
}

/// Pages of the model's address space.
const SPACE: u64 = 48;
/// Where its heap begins.
const HEAP: u64 = 40;

/// What a thread is going to do, in pages.
#[derive(Clone, Debug)]
enum Operation {
    Mmap { at: Option<u64>, length: u64 },
    Munmap { start: u64, length: u64 },
    Mremap { old: (u64, u64), new_length: u64, at: Option<u64>, keeps_old: bool, may_move: bool },
    Brk { end: u64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let (page, length) = (0..HEAP, 1..9_u64);
    prop_oneof![
        (prop::option::of(page.clone()), length.clone())
            .prop_map(|(at, length)| Operation::Mmap { at, length }),
        (0..SPACE, length.clone()).prop_map(|(start, length)| Operation::Munmap { start, length }),
        (
            (page.clone(), 0..9_u64),
            length,
            prop::option::of(page),
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.8)
        )
            .prop_map(|(old, new_length, at, keeps_old, may_move)| Operation::Mremap {
                old,
                new_length,
                at,
                keeps_old,
                may_move
            }),
        (HEAP..SPACE).prop_map(|end| Operation::Brk { end }),
    ]
}

impl Operation {
    /// The pages that it is going to read or change, as far as it names them.
    fn touches(&self) -> BTreeSet<u64> {
        let span = |start: u64, length: u64| start..(start + length);
        match *self {
            Self::Mmap { at, length } => at.into_iter().flat_map(|at| span(at, length)).collect(),
            Self::Munmap { start, length } => span(start, length).collect(),
            Self::Mremap { old, new_length, at, .. } => {
                let fixed = at.into_iter().flat_map(|at| span(at, new_length));
                // Growth in place, too.
                span(old.0, old.1.max(new_length).max(1)).chain(fixed).collect()
            }
            Self::Brk { .. } => (HEAP..SPACE).collect(),
        }
    }

    fn call(&self) -> MappingCall {
        match self {
            Self::Mmap { .. } => MappingCall::Mmap,
            Self::Munmap { .. } => MappingCall::Munmap,
            Self::Mremap { .. } => MappingCall::Mremap,
            Self::Brk { .. } => MappingCall::Brk,
        }
    }

    fn args(&self) -> [u64; 6] {
        match *self {
            Self::Mmap { at: Some(at), length } => [bytes(at), bytes(length), 3, ANONYMOUS | FIXED, 0, 0],
            Self::Mmap { at: None, length } => [0, bytes(length), 3, ANONYMOUS, 0, 0],
            Self::Munmap { start, length } => [bytes(start), bytes(length), 0, 0, 0, 0],
            Self::Mremap { old, new_length, at, keeps_old, may_move } => {
                let flags = if may_move { MAYMOVE } else { 0 }
                    | if at.is_some() { MREMAP_FIXED } else { 0 }
                    | if keeps_old { DONTUNMAP } else { 0 };
                [bytes(old.0), bytes(old.1), bytes(new_length), flags, bytes(at.unwrap_or(0)), 0]
            }
            Self::Brk { end } => [bytes(end), 0, 0, 0, 0, 0],
        }
    }
}

/// Who mapped a page: nobody known, or the call of the given number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PageOwner {
    Before,
    Call(u32),
}

/// The kernel, as simple as it can be said.
struct Kernel {
    page_table: BTreeMap<u64, PageOwner>,
    program_break: u64,
    calls: u32,
    /// Call → pages that it mapped.
    mapped: BTreeMap<u32, u64>,
}

impl Kernel {
    /// The lowest vacant place that nobody is about to touch.
    fn vacancy(&self, length: u64, reserved: &BTreeSet<u64>) -> Option<u64> {
        let vacant = |page| !self.page_table.contains_key(&page) && !reserved.contains(&page);
        (0..HEAP - length).find(|&start| (start..start + length).all(vacant))
    }

    /// Carries out the operation as call `number`: the result, in pages, if it succeeds.
    fn perform(&mut self, operation: &Operation, number: u32, reserved: &BTreeSet<u64>) -> Option<u64> {
        match *operation {
            Operation::Mmap { at, length } => {
                let start = at.or_else(|| self.vacancy(length, reserved))?;
                self.page_table.extend((start..start + length).map(|page| (page, PageOwner::Call(number))));
                self.mapped.insert(number, length);
                Some(start)
            }
            Operation::Munmap { start, length } => {
                self.page_table.retain(|page, _| !(start..start + length).contains(page));
                Some(0)
            }
            Operation::Mremap { old, new_length, at, keeps_old, may_move } => {
                self.remap(old, new_length, at, keeps_old, may_move, number, reserved)
            }
            Operation::Brk { end } => {
                let old = std::mem::replace(&mut self.program_break, end);
                if (old..end).any(|page| self.page_table.contains_key(&page)) {
                    self.program_break = old;
                    return None;
                }
                self.page_table.retain(|page, _| !(end..old).contains(page));
                self.page_table.extend((old..end).map(|page| (page, PageOwner::Call(number))));
                self.mapped.insert(number, end.saturating_sub(old));
                Some(end)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the system call's")]
    fn remap(
        &mut self,
        (start, length): (u64, u64),
        new_length: u64,
        at: Option<u64>,
        keeps_old: bool,
        may_move: bool,
        number: u32,
        reserved: &BTreeSet<u64>,
    ) -> Option<u64> {
        let old = start..start + length;
        let source: Vec<PageOwner> =
            old.clone().map(|page| self.page_table.get(&page).copied()).collect::<Option<_>>()?;
        self.page_table.get(&start)?;
        let lands_on_itself = at.is_some_and(|at| at < old.end && start < at + new_length);
        if (keeps_old && length != new_length)
            || ((at.is_some() || keeps_old || length == 0) && !may_move)
            || lands_on_itself
        {
            return None;
        }
        let growth = old.end..(start + new_length).max(old.end);
        let in_place = at.is_none()
            && !keeps_old
            && length > 0
            && growth.end <= HEAP
            && growth.clone().all(|page| !self.page_table.contains_key(&page) && !reserved.contains(&page));
        let new_start = match at {
            Some(at) => at,
            None if in_place => start,
            None if may_move => self.vacancy(new_length, reserved)?,
            None => return None,
        };
        if !keeps_old {
            self.page_table.retain(|page, _| !old.contains(page));
        }
        let mut mapped = 0;
        for offset in 0..new_length {
            let owner = match source.get(offset as usize) {
                Some(PageOwner::Before) => PageOwner::Before,
                _ => PageOwner::Call(number),
            };
            mapped += u64::from(owner != PageOwner::Before);
            self.page_table.insert(new_start + offset, owner);
        }
        self.mapped.insert(number, mapped);
        Some(new_start)
    }
}

/// Where a thread is in its call.
#[derive(Clone, Debug)]
enum Thread {
    Outside,
    Entered { operation: Operation, fails: bool },
    Performed { operation: Operation, number: u32, result: Option<u64> },
}

impl Thread {
    /// Pages that a well-behaved other thread leaves alone meanwhile.
    fn reserves(&self) -> BTreeSet<u64> {
        match self {
            Self::Outside => BTreeSet::new(),
            Self::Entered { operation, .. } => operation.touches(),
            Self::Performed { operation: Operation::Brk { .. }, .. } => (HEAP..SPACE).collect(),
            // What it failed to change is still its to release.
            Self::Performed { operation, result: None, .. } => operation.touches(),
            Self::Performed { operation, result: Some(start), .. } => {
                let length = match operation {
                    Operation::Mmap { length, .. } => *length,
                    Operation::Mremap { new_length, .. } => *new_length,
                    Operation::Munmap { .. } | Operation::Brk { .. } => 0,
                };
                // The pages that a mremap with MREMAP_DONTUNMAP reads stay mapped, and named by their thread.
                let kept = match operation {
                    Operation::Mremap { old, keeps_old: true, .. } => old.0..old.0 + old.1,
                    _ => 0..0,
                };
                (*start..*start + length).chain(kept).collect()
            }
        }
    }
}

/// Stacks are few, so that several calls share one.
fn stack_of(number: u32) -> u32 {
    number % 3
}

/// Lets a thread take its next step, and the account see it.
fn advance(
    thread: Thread,
    tid: u32,
    others: &BTreeSet<u64>,
    next: &mut impl Iterator<Item = (Operation, bool)>,
    kernel: &mut Kernel,
    account: &mut MappingAccount,
) -> Thread {
    match thread {
        Thread::Outside => {
            let Some((operation, fails)) = next.next() else { return Thread::Outside };
            if !operation.touches().is_disjoint(others) {
                return Thread::Outside;
            }
            if matches!(operation, Operation::Munmap { .. } | Operation::Mremap { .. }) {
                account.apply(&MappingEvent { tid, ..entry(operation.call(), operation.args()) });
            }
            Thread::Entered { operation, fails }
        }
        Thread::Entered { operation, fails } => {
            kernel.calls += 1;
            let number = kernel.calls;
            let result = if fails { None } else { kernel.perform(&operation, number, others) };
            Thread::Performed { operation, number, result }
        }
        Thread::Performed { operation, number, result } => {
            let result = match (&operation, result) {
                (Operation::Brk { .. }, _) => bytes(kernel.program_break) as i64,
                (_, Some(page)) => bytes(page) as i64,
                (_, None) => ENOMEM,
            };
            let event = exit(operation.call(), operation.args(), result, stack_of(number));
            account.apply(&MappingEvent { tid, ..event });
            Thread::Outside
        }
    }
}

/// Per stack: pages mapped, pages left, objects mapped, objects left; as the page table has it.
fn model_totals(kernel: &Kernel) -> BTreeMap<u32, [u64; 4]> {
    let mut totals: BTreeMap<u32, [u64; 4]> = BTreeMap::new();
    for (&number, &mapped) in kernel.mapped.iter().filter(|(_, mapped)| **mapped > 0) {
        let left =
            kernel.page_table.values().filter(|owner| **owner == PageOwner::Call(number)).count() as u64;
        let row = totals.entry(stack_of(number)).or_default();
        for (sum, value) in row.iter_mut().zip([mapped, left, 1, u64::from(left > 0)]) {
            *sum += value;
        }
    }
    totals
}

fn account_totals(account: &MappingAccount) -> BTreeMap<u32, [u64; 4]> {
    let mut sums: BTreeMap<u32, [u64; 4]> = BTreeMap::new();
    for (holder, totals) in account.totals() {
        let row = sums.entry(holder.stack.number()).or_default();
        let values = [
            totals.allocated_bytes / PAGE_BYTES,
            totals.outstanding_bytes() / PAGE_BYTES,
            totals.allocated_objects,
            totals.outstanding_objects(),
        ];
        for (sum, value) in row.iter_mut().zip(values) {
            *sum += value;
        }
    }
    sums
}

fn live_pages(account: &MappingAccount) -> BTreeMap<u64, u32> {
    let pages = |range: AddressRange| range.start.0 / PAGE_BYTES..range.end.0 / PAGE_BYTES;
    account
        .live()
        .flat_map(|live| pages(live.range).map(move |page| (page, live.holder.stack.number())))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Two threads whose calls overlap in time, each leaving alone what the other one is at; addresses that one has
    /// just given up may be handed to the other before its call returns.
    #[test]
    fn agrees_with_a_page_table(
        before in prop::collection::btree_set(0..HEAP, 0..20),
        operations in prop::collection::vec((operation(), prop::bool::weighted(0.15)), 1..40),
        schedule in prop::collection::vec(0..2_usize, 200),
    ) {
        let mut kernel = Kernel {
            page_table: before.iter().map(|&page| (page, PageOwner::Before)).collect(),
            program_break: HEAP,
            calls: 0,
            mapped: BTreeMap::new(),
        };
        let mut account = MappingAccount::new();
        account.add_process(ProcessIndex::default(), InitialMappings {
            mappings: before.iter().map(|&page| (pages(page, page + 1), Backing::Anonymous)).collect(),
            program_break: Some(Address(bytes(HEAP))),
        });
        let mut threads = [Thread::Outside, Thread::Outside];
        let mut next = operations.into_iter();
        // In the end both finish what they are at.
        for at in schedule.into_iter().chain([0, 0, 1, 1]) {
            let others = threads[1 - at].reserves();
            let thread = std::mem::replace(&mut threads[at], Thread::Outside);
            threads[at] = advance(thread, at as u32, &others, &mut next, &mut kernel, &mut account);
            if threads.iter().all(|thread| matches!(thread, Thread::Outside)) {
                let owners = kernel.page_table.iter().filter_map(|(&page, owner)| match owner {
                    PageOwner::Call(number) => Some((page, stack_of(*number))),
                    PageOwner::Before => None,
                });
                prop_assert_eq!(live_pages(&account), owners.collect::<BTreeMap<_, _>>());
                prop_assert_eq!(account_totals(&account), model_totals(&kernel));
            }
        }
        prop_assert_eq!(account.losses(), Losses::default());
    }

    /// Whatever arrives, nothing panics and the sums are those of the ranges.
    #[test]
    fn any_events_keep_the_sums(events in prop::collection::vec(any_event(), 0..60)) {
        let mut account = MappingAccount::new();
        for event in &events {
            account.apply(event);
            let mut live: BTreeMap<Holder, u64> = BTreeMap::new();
            for range in account.live() {
                *live.entry(range.holder).or_default() += range.range.bytes();
            }
            for (holder, totals) in account.totals() {
                prop_assert_eq!(totals.outstanding_bytes(), live.get(&holder).copied().unwrap_or(0));
                prop_assert_eq!(totals.outstanding_objects() == 0, totals.outstanding_bytes() == 0);
            }
        }
    }
}

/// A system call on pages of an arena that only the test uses.
fn real_call() -> impl Strategy<Value = (MappingCall, [u64; 6])> {
    const ARENA: u64 = 1 << 24; // the page at 64 GiB, where the kernel puts nothing by itself
    let page = || (0..48_u64).prop_map(|page| bytes(ARENA + page));
    let length = || prop_oneof![8 => (1..12_u64).prop_map(bytes), 1 => 0..9000_u64];
    let kind = prop::sample::select(vec![ANONYMOUS, ANONYMOUS, 0x21]);
    let fixed = prop::sample::select(vec![FIXED, FIXED, 0x10_0000]);
    let move_flags = prop::sample::select(vec![0, MAYMOVE, MAYMOVE | MREMAP_FIXED, MAYMOVE | DONTUNMAP, 7]);
    let old_length = prop_oneof![6 => length(), 1 => Just(0)];
    prop_oneof![
        3 => (page(), length(), kind, fixed)
            .prop_map(|(at, length, kind, fixed)| (MappingCall::Mmap, [at, length, 3, kind | fixed, u64::MAX, 0])),
        2 => (page(), length()).prop_map(|(at, length)| (MappingCall::Munmap, [at, length, 0, 0, 0, 0])),
        3 => (page(), old_length, length(), move_flags, page(), any::<bool>()).prop_map(
            |(at, old, new, flags, to, same)| {
                (MappingCall::Mremap, [at, old, if same { old } else { new }, flags, to, 0])
            }
        ),
    ]
}

fn page_set(ranges: impl Iterator<Item = AddressRange>) -> BTreeSet<u64> {
    ranges.flat_map(|range| range.start.0 / PAGE_BYTES..range.end.0 / PAGE_BYTES).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// After each call of a real process the account has what its kernel says is mapped.
    #[test]
    fn agrees_with_the_kernel(calls in prop::collection::vec(real_call(), 60)) {
        let arena = AddressRange::sized(1 << 36, bytes(64)).unwrap();
        let mut target = Target::start();
        let mut account = MappingAccount::new();
        account.add_process(ProcessIndex::default(), InitialMappings::default());
        for (index, (call, args)) in calls.into_iter().enumerate() {
            let number = match call {
                MappingCall::Mmap => 9,
                MappingCall::Munmap => 11,
                MappingCall::Mremap => 25,
                MappingCall::Brk => 12,
                MappingCall::PageFault => continue,
            };
            let [a, b, c, d, e, f] = args;
            let result = target.run(&format!("answer = syscall({number}, {a}, {b}, {c}, {d}, {e}, {f})"));
            if matches!(call, MappingCall::Munmap | MappingCall::Mremap) {
                account.apply(&entry(call, args));
            }
            account.apply(&exit(call, args, result, index as u32));

            let maps = std::fs::read(format!("/proc/{}/maps", target.pid())).unwrap();
            let mapped = parse_maps(&maps).into_iter().filter_map(|mapping| mapping.range().intersection(arena));
            let known = account.spaces[&ProcessIndex::default()].extents.within(arena).into_iter().map(|(range, _)| range);
            prop_assert_eq!(
                page_set(known), page_set(mapped),
                "{:?} {:#x?} = {:#x}", call, args, result
            );
        }
        prop_assert_eq!(account.losses(), Losses::default());
    }
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..20_u64).prop_map(bytes),
        1 => any::<u64>(),
        1 => (0..20_u64).prop_map(|below| u64::MAX - below * 2048),
        1 => 0..8_u64,
    ]
}

fn any_event() -> impl Strategy<Value = MappingEvent> {
    let args = [any_number(), any_number(), any_number(), any_number(), any_number(), any_number()];
    (0..6_u8, 0..2_u8, 0..2_u8, 0..3_u32, args, any_number()).prop_map(
        |(call, at_exit, in_allocator, tid, args, result)| MappingEvent {
            event: 2,
            call,
            at_exit,
            in_allocator,
            tid,
            stack: StackId::new(tid),
            args,
            result: result as i64,
            ..MappingEvent::default()
        },
    )
}
