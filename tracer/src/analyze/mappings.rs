//! The account of mappings: what `mmap`, `munmap`, `mremap` and `brk` did to the address space of each target, and
//! which stack holds what is left.
//!
//! # What is counted
//! - *Bytes* are mapped bytes, rounded up to pages as the kernel does, whether they are resident or not.
//! - An *object* is what one call mapped. It stays one object while any of its bytes is mapped: a partial `munmap`
//!   frees bytes, and one in the middle leaves two ranges of the same object; releasing its last byte frees the
//!   object. Hence `allocated - freed == outstanding`, in bytes and in objects, at every moment.
//! - A range is known by *who mapped it last*: mapping over it releases what was there.
//! - Memory from before the window is known but belongs to no stack, so it never counts as allocated, freed or
//!   outstanding.
//!
//! # What each call does
//! - `mmap` maps its range and releases whatever was mapped there (`MAP_FIXED`; without it the kernel picks a vacant
//!   range and nothing is).
//! - `munmap` releases its range at entry, because another thread can be given the addresses before it returns. A
//!   failure puts back what nobody took since. A call that never returns (its thread was killed) has released.
//! - `mremap` is the `realloc` of this family: what the call took in belongs to a new object of its own stack, as large
//!   as the result. Pages from before the window stay from before the window wherever they are moved, and only the
//!   growth counts. A length of 0 maps the same shared pages a second time; with `MREMAP_DONTUNMAP` the old range stays
//!   mapped (and empty). One that fails leaves all as it was, but for one case
//!   (`Remap::destination_that_held_its_source`).
//! - `brk` maps or releases between the old and the new program break. While the old one is not known nothing is
//!   counted; every result tells the new one.
//!
//! Read a target's mappings *after* its window has opened: events from between are then replayed over a state that
//! contains them, which ends in the same state. In the other order a change in between would be in neither: the first
//! `brk` of the window would count all that the heap grew since the reading. (Of an `mremap` in between the old range is
//! not there any more, so all of the new one counts.)

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use tracer_ebpf::{
    event::{MappingCall, MappingEvent},
    mapping_call::flag,
    process::ProcessIndex,
    stack::StackId,
};

use crate::{
    model::{Address, AddressRange, Extents, Kind, PAGE_BYTES},
    target::{Backing, Mapping},
};

/// The end of the largest address space of a process on x86_64 (five-level page tables).
const ADDRESSES_END: u64 = 1 << 56;

/// Ranges one process can have at most, a bound on the tracer's own memory (about 100 bytes a range). Far above what
/// the kernel allows by default (65530, `vm.max_map_count`), since it merges neighbours that different stacks mapped.
const MAX_EXTENTS: usize = 1 << 20;

/// Calls in flight that one process can have at most. More can only be calls that will never return.
const MAX_PENDING: usize = 4096;

/// What a process had mapped before the window.
#[derive(Clone, Debug, Default)]
pub struct InitialMappings {
    pub mappings: Vec<(AddressRange, Backing)>,
    /// Where its `brk` heap ends.
    pub program_break: Option<Address>,
}

impl InitialMappings {
    /// Those of a process that has these mapped. Where an empty heap begins is not among them.
    #[must_use]
    pub fn of(mappings: &[Mapping]) -> Self {
        let heap = mappings.iter().filter(|mapping| mapping.name == "[heap]");
        Self {
            mappings: mappings.iter().map(|mapping| (mapping.range(), mapping.backing())).collect(),
            program_break: heap.map(|mapping| mapping.end).max(),
        }
    }
}

/// Who shares one row of totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Index of the traced process.
    pub process: ProcessIndex,
    /// The number of the stack that made the call, [`StackId::NONE`] where it is not known.
    pub stack: StackId,
    /// `mapping`, `allocator` or `file`.
    pub kind: Kind,
    /// The system call's name.
    pub api: &'static str,
}

/// What one stack mapped and released within the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Mapped.
    pub allocated_bytes: u64,
    /// Calls that mapped something.
    pub allocated_objects: u64,
    /// Mapped and released.
    pub freed_bytes: u64,
    /// Objects whose last byte was released.
    pub freed_objects: u64,
}

impl Totals {
    /// Bytes that are still mapped.
    #[must_use]
    pub const fn outstanding_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.freed_bytes)
    }

    /// Objects of which at least a byte is still mapped.
    #[must_use]
    pub const fn outstanding_objects(&self) -> u64 {
        self.allocated_objects.saturating_sub(self.freed_objects)
    }
}

/// A range that was mapped in the window and still is. An object with a hole in it has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveRange {
    /// Where it is.
    pub range: AddressRange,
    /// Who holds it.
    pub holder: Holder,
    /// When it was mapped: monotonic clock, nanoseconds.
    pub born_ns: u64,
}

/// Calls by outcome, for mappings that count as allocations: kind `mapping`. What an allocator maps for itself is part
/// of the allocator call it serves and counted there; files are not allocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Calls that mapped something.
    pub allocations: u64,
    /// Objects whose last byte was released.
    pub frees: u64,
    /// `munmap` calls that released nothing but anonymous memory from before the window.
    pub unmatched_frees: u64,
    /// Calls to map, extend or move anonymous memory that failed.
    pub failed_allocations: u64,
}

/// Events that could not be accounted for, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// The event makes no sense: an unknown call, or a success that the kernel cannot have reported.
    pub malformed: u64,
    /// The process has more ranges than the account holds.
    pub table_full: u64,
}

/// Whose pages they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageOwner {
    BeforeWindow(Backing),
    Object(Object),
}

impl PageOwner {
    fn backing(self) -> Backing {
        match self {
            Self::BeforeWindow(backing) => backing,
            Self::Object(Object { holder: Holder { kind: Kind::File, .. }, .. }) => Backing::File,
            Self::Object(_) => Backing::Anonymous,
        }
    }
}

/// What one call mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Object {
    number: u64,
    holder: Holder,
    born_ns: u64,
}

/// The sums, and how much of each object is left.
#[derive(Clone, Debug, Default)]
struct Ledger {
    totals: BTreeMap<Holder, Totals>,
    /// Object number → bytes still mapped; never 0.
    left: HashMap<u64, u64>,
    objects: u64,
}

impl Ledger {
    fn new_object(&mut self, holder: Holder, born_ns: u64) -> Object {
        self.objects += 1;
        Object { number: self.objects, holder, born_ns }
    }

    // Sums saturate: a target that maps and unmaps 128 TiB over and over gets to 2^64 bytes.
    fn allocate(&mut self, object: Object, bytes: u64) {
        let totals = self.totals.entry(object.holder).or_default();
        totals.allocated_bytes = totals.allocated_bytes.saturating_add(bytes);
        totals.allocated_objects += 1;
        self.left.insert(object.number, bytes);
    }

    fn release(&mut self, object: Object, bytes: u64) {
        let totals = self.totals.entry(object.holder).or_default();
        totals.freed_bytes = totals.freed_bytes.saturating_add(bytes);
        let left = self.left.entry(object.number).or_default();
        *left = left.saturating_sub(bytes);
        if *left == 0 {
            self.left.remove(&object.number);
            totals.freed_objects += 1;
        }
    }

    fn undo_release(&mut self, object: Object, bytes: u64) {
        let totals = self.totals.entry(object.holder).or_default();
        totals.freed_bytes = totals.freed_bytes.saturating_sub(bytes);
        let left = self.left.entry(object.number).or_insert_with(|| {
            totals.freed_objects = totals.freed_objects.saturating_sub(1);
            0
        });
        *left += bytes;
    }
}

/// A call between its entry and its exit, with what it released.
#[derive(Clone, Debug)]
struct Pending {
    call: u8,
    args: [u64; 6],
    time_ns: u64,
    released: Vec<(AddressRange, PageOwner)>,
    /// The part of `released` that a failure brings back: what no later call has mapped or released.
    restorable: Extents<PageOwner>,
    /// Whether it counted as an unmatched free.
    unmatched: bool,
}

impl Pending {
    fn of(event: &MappingEvent, released: Vec<(AddressRange, PageOwner)>) -> Self {
        let mut restorable = Extents::default();
        for &(range, owner) in &released {
            restorable.put(range, owner);
        }
        let MappingEvent { call, args, time_ns, .. } = *event;
        Self { call, args, time_ns, released, restorable, unmatched: false }
    }
}

/// The address space of one process.
#[derive(Clone, Debug, Default)]
struct Space {
    extents: Extents<PageOwner>,
    program_break: Option<u64>,
    /// By thread.
    pending: HashMap<u32, Pending>,
}

impl Space {
    /// Releases a range, and returns what was there.
    fn release(&mut self, range: AddressRange, ledger: &mut Ledger) -> Vec<(AddressRange, PageOwner)> {
        for pending in self.pending.values_mut() {
            pending.restorable.take(range);
        }
        let released = self.extents.take(range);
        for &(part, owner) in &released {
            if let PageOwner::Object(object) = owner {
                ledger.release(object, part.bytes());
            }
        }
        released
    }

    /// Remembers a call in flight, in place of whatever its thread did before.
    fn begin(&mut self, tid: u32, pending: Pending) {
        if self.pending.len() >= MAX_PENDING
            && let Some((&oldest, _)) = self.pending.iter().min_by_key(|(_, pending)| pending.time_ns)
        {
            self.pending.remove(&oldest);
        }
        self.pending.insert(tid, pending);
    }

    /// The call in flight that this exit ends. `None` when its entry was not seen: it came before the window.
    fn finish(&mut self, event: &MappingEvent) -> Option<Pending> {
        let pending = self.pending.remove(&event.tid)?;
        (pending.call == event.call && pending.args == event.args).then_some(pending)
    }

    /// Undoes a release.
    fn restore(&mut self, pending: &Pending, ledger: &mut Ledger) {
        for (range, owner) in pending.restorable.iter() {
            self.extents.put(range, owner);
            if let PageOwner::Object(object) = owner {
                ledger.undo_release(object, range.bytes());
            }
        }
    }
}

/// The account of every traced process. See the module's description for its rules.
#[derive(Clone, Debug, Default)]
pub struct MappingAccount {
    spaces: BTreeMap<ProcessIndex, Space>,
    ledger: Ledger,
    unmatched_frees: u64,
    failed_allocations: u64,
    losses: Losses,
}

impl MappingAccount {
    /// An account without processes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the account of a process with what it has mapped. Without this a process begins with nothing known, and
    /// the memory it had counts for nothing all the same.
    pub fn add_process(&mut self, process: ProcessIndex, initial: InitialMappings) {
        let space = self.spaces.entry(process).or_default();
        for (range, backing) in initial.mappings {
            space.extents.put(range, PageOwner::BeforeWindow(backing));
        }
        space.program_break = initial.program_break.and_then(|Address(end)| page_align(end));
    }

    /// Begins the account of a process that was forked: it has a copy of everything that its parent had mapped, and made none of it.
    pub fn fork(&mut self, parent: ProcessIndex, child: ProcessIndex) {
        let Some(Space { extents, program_break, .. }) = self.spaces.get(&parent) else { return };
        let mut space = Space { program_break: *program_break, ..Space::default() };
        for (range, owner) in extents.iter() {
            space.extents.put(range, PageOwner::BeforeWindow(owner.backing()));
        }
        self.spaces.insert(child, space);
    }

    /// Accounts one event. Events are applied in the order in which the ring buffer delivers them.
    pub fn apply(&mut self, event: &MappingEvent) {
        let Ok(call) = MappingCall::try_from(event.call) else {
            self.losses.malformed += 1;
            return;
        };
        let accounted = match (call, event.at_exit != 0) {
            (MappingCall::Mmap, true) => self.mmap(event),
            (MappingCall::Munmap, false) => self.munmap_entry(event),
            (MappingCall::Munmap, true) => self.munmap_exit(event),
            (MappingCall::Mremap, false) => self.mremap_entry(event),
            (MappingCall::Mremap, true) => self.mremap_exit(event),
            (MappingCall::Brk, true) => self.brk(event),
            (MappingCall::Mmap | MappingCall::Brk, false) | (MappingCall::PageFault, _) => Some(()),
        };
        if accounted.is_none() {
            self.losses.malformed += 1;
        }
    }

    /// What was mapped in the window and still is, by process and address.
    pub fn live(&self) -> impl Iterator<Item = LiveRange> + '_ {
        self.spaces.values().flat_map(|space| space.extents.iter()).filter_map(|(range, owner)| match owner {
            PageOwner::Object(Object { holder, born_ns, .. }) => Some(LiveRange { range, holder, born_ns }),
            PageOwner::BeforeWindow(_) => None,
        })
    }

    /// The sums of the window, by who holds them; those that hold nothing any more included.
    pub fn totals(&self) -> impl Iterator<Item = (Holder, Totals)> + '_ {
        self.ledger.totals.iter().map(|(&holder, &totals)| (holder, totals))
    }

    /// The stacks that hold something, or may again when a call in flight fails.
    #[must_use]
    pub fn holding_stacks(&self) -> HashSet<StackId> {
        let owners = self.spaces.values().flat_map(|space| {
            let in_flight = space.pending.values().flat_map(|pending| &pending.released);
            space.extents.iter().map(|(_, owner)| owner).chain(in_flight.map(|&(_, owner)| owner))
        });
        owners
            .filter_map(|owner| match owner {
                PageOwner::Object(object) => Some(object.holder.stack),
                PageOwner::BeforeWindow(_) => None,
            })
            .collect()
    }

    /// Counts what was of stacks that hold nothing as another stack's, with the kind that `judged` says.
    pub fn retire(&mut self, stacks: &HashSet<StackId>, into: StackId, judged: impl Fn(Holder) -> Holder) {
        let retired: Vec<_> =
            self.ledger.totals.extract_if(.., |holder, _| stacks.contains(&holder.stack)).collect();
        for (holder, totals) in retired {
            let holder = Holder { stack: into, ..judged(holder) };
            let sum = self.ledger.totals.entry(holder).or_default();
            sum.allocated_bytes = sum.allocated_bytes.saturating_add(totals.allocated_bytes);
            sum.allocated_objects += totals.allocated_objects;
            sum.freed_bytes = sum.freed_bytes.saturating_add(totals.freed_bytes);
            sum.freed_objects += totals.freed_objects;
        }
    }

    /// How many calls there were.
    #[must_use]
    pub fn calls(&self) -> Calls {
        let mut calls = Calls {
            unmatched_frees: self.unmatched_frees,
            failed_allocations: self.failed_allocations,
            ..Calls::default()
        };
        // The account itself calls nothing `managed`: such were mappings of stacks that are retired.
        let counts = |holder: &Holder| matches!(holder.kind, Kind::Mapping | Kind::Managed);
        for (_, totals) in self.totals().filter(|(holder, _)| counts(holder)) {
            calls.allocations += totals.allocated_objects;
            calls.frees += totals.freed_objects;
        }
        calls
    }

    /// What could not be accounted for.
    #[must_use]
    pub const fn losses(&self) -> Losses {
        self.losses
    }

    fn mmap(&mut self, event: &MappingEvent) -> Option<()> {
        let backing =
            if event.args[3] & flag::MAP_ANONYMOUS == 0 { Backing::File } else { Backing::Anonymous };
        if event.result < 0 {
            self.count_failure(event, backing);
            return Some(());
        }
        let range = result_range(event, mmap_length(event)?)?;
        let object = self.new_object(event, MappingCall::Mmap, backing);
        self.map(object, &[(range, PageOwner::Object(object))]);
        Some(())
    }

    fn munmap_entry(&mut self, event: &MappingEvent) -> Option<()> {
        let [start, length, ..] = event.args;
        // Otherwise it is going to fail with EINVAL.
        if let Some(range) = page_range(start, length) {
            let space = self.spaces.entry(event.process).or_default();
            let mut pending = Pending::of(event, space.release(range, &mut self.ledger));
            pending.unmatched = is_unmatched(event, &pending.released);
            self.unmatched_frees += u64::from(pending.unmatched);
            space.begin(event.tid, pending);
        }
        Some(())
    }

    fn munmap_exit(&mut self, event: &MappingEvent) -> Option<()> {
        let space = self.spaces.entry(event.process).or_default();
        match (space.finish(event), event.result) {
            (Some(_), 0) => {}
            (Some(pending), _) => {
                space.restore(&pending, &mut self.ledger);
                self.unmatched_frees -= u64::from(pending.unmatched);
            }
            (None, 0) => {
                let [start, length, ..] = event.args;
                let released = space.release(page_range(start, length)?, &mut self.ledger);
                self.unmatched_frees += u64::from(is_unmatched(event, &released));
            }
            (None, _) => {}
        }
        Some(())
    }

    fn mremap_entry(&mut self, event: &MappingEvent) -> Option<()> {
        let request = Remap::of(event);
        if let Some(vacated) = request.vacated() {
            let space = self.spaces.entry(event.process).or_default();
            let released = space.release(vacated, &mut self.ledger);
            space.begin(event.tid, Pending::of(event, released));
        }
        Some(())
    }

    fn mremap_exit(&mut self, event: &MappingEvent) -> Option<()> {
        let request = Remap::of(event);
        let space = self.spaces.entry(event.process).or_default();
        let pending = space.finish(event);
        if event.result < 0 {
            if let Some(pending) = pending {
                space.restore(&pending, &mut self.ledger);
            }
            if let Some(destination) = request.destination_that_held_its_source()
                && event.result == -i64::from(libc::EFAULT)
                && !space.extents.within(request.old()?).is_empty()
            {
                space.release(destination, &mut self.ledger);
            }
            self.count_failure(event, Backing::Anonymous);
            return Some(());
        }
        let source = match (pending, request.vacated()) {
            (Some(pending), _) => pending.released,
            (None, Some(vacated)) => space.release(vacated, &mut self.ledger),
            (None, None) => space.extents.within(request.old()?),
        };
        let result = result_range(event, request.new_length)?;
        let backing = source.first().map_or(Backing::Anonymous, |(_, owner)| owner.backing());
        let object = self.new_object(event, MappingCall::Mremap, backing);
        self.map(object, &request.owners(&source, result, object)?);
        Some(())
    }

    fn brk(&mut self, event: &MappingEvent) -> Option<()> {
        let (wanted, end) = (event.args[0], u64::try_from(event.result).ok()?);
        let new = page_align(end)?;
        let space = self.spaces.entry(event.process).or_default();
        let old = space.program_break.replace(new);
        if end != wanted {
            // A question (`brk(0)`) or a failure: the break is where it was.
            let failed = wanted > end && event.in_allocator == 0;
            self.failed_allocations += u64::from(failed);
        } else if let Some(old) = old {
            let [grown, shrunk] = [(old, new), (new, old)]
                .map(|(start, end)| AddressRange { start: Address(start), end: Address(end) });
            space.release(shrunk, &mut self.ledger);
            let object = self.new_object(event, MappingCall::Brk, Backing::Anonymous);
            self.map(object, &[(grown, PageOwner::Object(object))]);
        }
        Some(())
    }

    fn new_object(&mut self, event: &MappingEvent, call: MappingCall, backing: Backing) -> Object {
        let kind = match backing {
            _ if event.in_allocator != 0 => Kind::Allocator,
            Backing::File => Kind::File,
            Backing::Anonymous => Kind::Mapping,
        };
        let holder = Holder { process: event.process, stack: event.stack, kind, api: call.name() };
        self.ledger.new_object(holder, event.time_ns)
    }

    /// Enters who owns what a call mapped, over whatever was there: the object, or what was moved there from before
    /// the window.
    fn map(&mut self, object: Object, parts: &[(AddressRange, PageOwner)]) {
        let space = self.spaces.entry(object.holder.process).or_default();
        for &(part, _) in parts {
            space.release(part, &mut self.ledger);
        }
        if space.extents.len() >= MAX_EXTENTS {
            self.losses.table_full += 1;
            return;
        }
        let mut bytes = 0;
        for &(part, owner) in parts {
            space.extents.put(part, owner);
            if owner == PageOwner::Object(object) {
                bytes += part.bytes();
            }
        }
        if bytes > 0 {
            self.ledger.allocate(object, bytes);
        }
    }

    fn count_failure(&mut self, event: &MappingEvent, backing: Backing) {
        let counts = backing == Backing::Anonymous && event.in_allocator == 0;
        self.failed_allocations += u64::from(counts);
    }
}

/// What an `mremap` asks for, rounded as the kernel rounds.
struct Remap {
    old_start: u64,
    old_length: u64,
    new_length: u64,
    /// Where it is to be moved, if the caller says that.
    new_start: Option<u64>,
    keeps_old: bool,
}

impl Remap {
    fn of(event: &MappingEvent) -> Self {
        let [old_start, old_length, new_length, flags, new_start, _] = event.args;
        Self {
            old_start,
            new_start: (flags & flag::MREMAP_FIXED != 0).then_some(new_start),
            // The kernel's PAGE_ALIGN wraps to 0, which asks for a second mapping of shared pages.
            old_length: page_align(old_length).unwrap_or(0),
            new_length: page_align(new_length).unwrap_or(0),
            keeps_old: flags & flag::MREMAP_DONTUNMAP != 0,
        }
    }

    /// The range it reads: what it moves or resizes, or the page whose mapping it duplicates.
    fn old(&self) -> Option<AddressRange> {
        page_range(self.old_start, self.old_length.max(1))
    }

    /// Where the page whose mapping it duplicates lies within its destination: the kernel first releases that, and then finds nothing to
    /// duplicate (`EFAULT`).
    fn destination_that_held_its_source(&self) -> Option<AddressRange> {
        let destination = page_range(self.new_start?, self.new_length)?;
        (self.old_length == 0 && destination.intersection(self.old()?).is_some()).then_some(destination)
    }

    /// The range that is no longer mapped, or mapped anew as (a part of) the result. `None` when the old one stays.
    fn vacated(&self) -> Option<AddressRange> {
        if self.keeps_old || self.old_length == 0 { None } else { self.old() }
    }

    /// Whose the parts of the result are: an image of what the window knows, and the growth, are the new object's; an
    /// image of what was there before the window stays so. Where nothing was mapped nothing arrives and nothing is
    /// released: from Linux 6.17 the kernel moves ranges with gaps.
    fn owners(
        &self,
        source: &[(AddressRange, PageOwner)],
        result: AddressRange,
        object: Object,
    ) -> Option<Vec<(AddressRange, PageOwner)>> {
        let moved = self.old_length.min(self.new_length);
        let growth = AddressRange { start: Address(result.start.0.checked_add(moved)?), end: result.end };
        let image = |&(part, owner): &(AddressRange, PageOwner)| {
            let offset = part.start.0.checked_sub(self.old_start)?;
            let image = AddressRange::sized(result.start.0.checked_add(offset)?, part.bytes())?;
            let owner = match owner {
                PageOwner::BeforeWindow(_) => owner,
                PageOwner::Object(_) => PageOwner::Object(object),
            };
            Some((image.intersection(result)?, owner))
        };
        let images = source.iter().filter(|_| self.old_length > 0).filter_map(image);
        Some(
            images
                .chain([(growth, PageOwner::Object(object))])
                .filter(|(part, _)| !part.is_empty())
                .collect(),
        )
    }
}

/// Whether a release met nothing but anonymous memory from before the window. Within an allocator it is the allocator's
/// own affair.
fn is_unmatched(event: &MappingEvent, released: &[(AddressRange, PageOwner)]) -> bool {
    let unknown =
        |(_, owner): &(AddressRange, PageOwner)| *owner == PageOwner::BeforeWindow(Backing::Anonymous);
    event.in_allocator == 0
        && released.iter().any(unknown)
        && !released.iter().any(|(_, owner)| matches!(owner, PageOwner::Object(_)))
}

/// Rounds up to a page; `None` past the end of the address space.
fn page_align(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE_BYTES)
}

/// The pages of a request; `None` for one that the kernel refuses: not at a page, empty, or past the end.
fn page_range(start: u64, length: u64) -> Option<AddressRange> {
    let range = AddressRange::sized(start, page_align(length)?)?;
    let possible = start.is_multiple_of(PAGE_BYTES) && !range.is_empty() && range.end.0 <= ADDRESSES_END;
    possible.then_some(range)
}

/// Where a successful call mapped `length` bytes; `None` for a result that cannot be.
fn result_range(event: &MappingEvent, length: u64) -> Option<AddressRange> {
    page_range(u64::try_from(event.result).ok()?, length)
}

/// How many bytes an `mmap` maps: whole pages, or whole huge pages of the size its flags say.
fn mmap_length(event: &MappingEvent) -> Option<u64> {
    let [_, length, _, flags, ..] = event.args;
    let huge = flag::MAP_HUGETLB | flag::MAP_ANONYMOUS;
    if flags & huge != huge {
        return page_align(length);
    }
    // 0 stands for the machine's default, which is 2 MiB unless it was changed when the machine was started.
    let shift = match flags >> flag::MAP_HUGE_SHIFT & flag::MAP_HUGE_MASK {
        0 => 21,
        shift => shift,
    };
    length.checked_next_multiple_of(1 << shift)
}
