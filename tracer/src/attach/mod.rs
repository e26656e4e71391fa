//! Puts the BPF programs into the kernel and the probes into the target.
//!
//! Everything attached here hangs on a file descriptor of this process, so the kernel takes it away when the process ends,
//! however it ends, if it does not end in the middle of it: `unkillable`.

mod gaps;
mod grace;
pub mod hits;
mod kernel_types;
mod processes;
mod programs;
mod runtimes;
mod shared;
mod sys;
mod tables;
pub mod tracefs;
mod tracepoint;
mod unkillable;
mod unwind_tables;
pub mod uprobes;

use std::{
    cell::Cell,
    collections::BTreeMap,
    ffi::CStr,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use tracer_ebpf::{
    counter::Counter,
    probe::Cookie,
    process::{CodeList, ProcessIndex},
    sampling::Sampling,
    unwind::Mapping,
    usdt::Argument,
};

use self::{
    hits::ProbedPlaces,
    programs::Programs,
    tracepoint::Tracepoints,
    uprobes::{At, ProbeLink, ProbeSites, UprobeLinks},
};
pub use self::{
    kernel_types::preempts_tracepoints,
    sys::may_call_bpf,
    tables::{SharedTables, Sizes},
    unwind_tables::{UnwindSizes, UnwindTables},
};
use crate::{kernel, model::Pid, plan::Cost};

/// What the programs are loaded with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Sizes of the tables.
    pub sizes: Sizes,
    /// Sizes of the arrays for unwind tables.
    pub unwind: UnwindSizes,
    /// The smallest request that is tracked, in bytes.
    pub min_size: u64,
    /// The largest request that is tracked, in bytes.
    pub max_size: u64,
    /// Which of them are kept.
    pub sampling: Sampling,
    /// Whether the children of traced processes are traced, too.
    pub follow: bool,
    /// How many processes will be traced from the start that can have their probes in common.
    pub alike: usize,
    /// Whether programs on tracepoints have understudies, for what the kernel leaves them out of.
    pub understudies: bool,
}

impl Settings {
    /// With tables as small as can be, to try what the kernel takes.
    #[must_use]
    pub fn least() -> Self {
        Self {
            sizes: Sizes::with_room_for(1, 1),
            unwind: UnwindSizes::with_room_for(0, 0),
            min_size: 0,
            max_size: u64::MAX,
            sampling: Sampling::with_mean(0),
            follow: false,
            alike: 1,
            understudies: kernel_types::preempts_tracepoints(),
        }
    }
}

/// The programs in the kernel, and what they are attached to.
pub struct Capture {
    ebpf: Ebpf,
    messages: Option<EbpfLogger<&'static dyn log::Log>>,
    tables: Arc<SharedTables>,
    unwind: UnwindTables,
    hotspots: runtimes::HotSpotLayouts,
    programs: Programs,
    links: UprobeLinks,
    follows: bool,
    has_understudies: bool,
    /// Whether probes are everybody's; see [`processes`].
    shares_probes: bool,
    windows_are_open: Cell<bool>,
    /// Links: what is dropped is detached.
    probes: Vec<ProbeLink>,
    tracepoints: Tracepoints,
    /// They see the whole machine, and cost the kernel nothing to take away.
    raw_tracepoints: Vec<OwnedFd>,
    places: ProbedPlaces,
}

/// Where a probe goes.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Offset of the probed instruction in its file.
    pub offset: u64,
    /// What the probe tells the program.
    pub cookie: u64,
    /// Offset of the word that the kernel counts up while the probe is there.
    pub semaphore: Option<u64>,
    /// What happens there.
    pub event: ProbedEvent,
    /// What a hit costs.
    pub cost: Cost,
}

impl Site {
    /// Whether it is the entry of a function that gives a block and takes none.
    fn only_allocates(&self) -> bool {
        matches!(self.event, ProbedEvent::Allocate | ProbedEvent::AllocateToExits)
            && Cookie::from_bits(self.cookie).signature.old.is_none()
    }
}

/// What a probe sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbedEvent {
    /// Entry and return of a function that gives a block.
    Allocate,
    /// Entry of a function that gives a block, whose exits are probed.
    AllocateToExits,
    /// An instruction that returns.
    Exit,
    /// Entry of a function that only releases a block.
    Release,
    /// The process says that it allocated a block.
    UsdtAlloc,
    /// The process says that it releases a block.
    UsdtFree,
}

/// A program that runs at some of the probes.
type UprobeProgram = (&'static str, At, &'static [ProbedEvent]);

/// The programs of probes, in the order in which they are attached. The process may run meanwhile, so releases come first: a release whose
/// allocation was not seen is no harm, but an allocation whose release is not seen would stand as outstanding for ever. Returns come
/// before entries: a return without its entry is ignored, an entry without its return would be held against the thread.
const UPROBES: &[UprobeProgram] = &[
    ("release", At::Entry, &[ProbedEvent::Release]),
    ("usdt_free", At::Entry, &[ProbedEvent::UsdtFree]),
    ("allocated", At::Return, &[ProbedEvent::Allocate]),
    ("exited", At::Entry, &[ProbedEvent::Exit]),
    ("allocate", At::Entry, &[ProbedEvent::Allocate, ProbedEvent::AllocateToExits]),
    ("usdt_alloc", At::Entry, &[ProbedEvent::UsdtAlloc]),
];

/// Those of probes that are in other processes, too, which take no notice of returns: the program says so at the entry. The others
/// stand where no return probe may be, so the kernel must not even be able to make one there.
const SESSION_UPROBES: &[UprobeProgram] = &[
    ("release", At::Entry, &[ProbedEvent::Release]),
    ("usdt_free", At::Entry, &[ProbedEvent::UsdtFree]),
    ("exited", At::Entry, &[ProbedEvent::Exit]),
    ("call", At::Both, &[ProbedEvent::Allocate]),
    ("allocate", At::Entry, &[ProbedEvent::AllocateToExits]),
    ("usdt_alloc", At::Entry, &[ProbedEvent::UsdtAlloc]),
];

/// The tracepoints of the system calls that change mappings, and the program for each.
const SYSTEM_CALLS: [(&str, &str); 6] = [
    ("sys_enter_munmap", "mapping_enter"),
    ("sys_enter_mremap", "mapping_enter"),
    ("sys_exit_mmap", "mapping_exit"),
    ("sys_exit_munmap", "mapping_exit"),
    ("sys_exit_mremap", "mapping_exit"),
    ("sys_exit_brk", "mapping_exit"),
];

impl Capture {
    /// Makes the maps; nothing is attached yet.
    ///
    /// # Errors
    /// When the kernel does not take them: too old, locked down, or no permission.
    pub fn load(settings: &Settings) -> Result<Self> {
        kernel::check(&kernel::release())?;
        kernel::check_lockdown(kernel::lockdown().as_deref())?;
        let sizes = settings.sizes;
        let seed = u64::from_ne_bytes(random_bytes()?);
        let namespace = pid_namespace();
        // The programs are loaded without the messages that nobody would see.
        let log_level = log::max_level() as u8;
        let links = UprobeLinks::of_this_kernel();
        log::info!("uprobes are attached by {links:?}");
        let (shares_probes, task) = processes::sharing(settings, links, namespace)?;
        let thread_base = kernel_types::thread_base().unwrap_or_else(|| {
            log::warn!(
                "the kernel does not say where threads have their own memory: Python functions have no names"
            );
            0
        });
        let (follows, shares) = (u32::from(settings.follow), u32::from(shares_probes));
        let has_understudies = u32::from(settings.understudies);
        let marks = if settings.understudies { MOST_MARKS } else { 1 };
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries("DONE", marks)
            .map_max_entries("LIVE", sizes.live_buckets)
            .map_max_entries("SPILL", sizes.spilled_blocks)
            .map_max_entries("STACKS", sizes.stack_sets)
            .map_max_entries("TOTALS", sizes.stacks())
            .map_max_entries("UNWIND_PAGES", settings.unwind.page_chunks)
            .map_max_entries("UNWIND_ROWS", settings.unwind.row_chunks)
            .override_global("LIVE_BUCKETS", &sizes.live_buckets, true)
            .override_global("STACK_SETS", &sizes.stack_sets, true)
            .override_global("HASH_SEED", &seed, true)
            .override_global("MIN_SIZE", &settings.min_size, true)
            .override_global("MAX_SIZE", &settings.max_size, true)
            .override_global("SAMPLE_RATE", &settings.sampling.rate, true)
            .override_global("SAMPLE_CERTAIN_SIZE", &settings.sampling.certain_size, true)
            .override_global("PID_NAMESPACE_DEVICE", &namespace.0, true)
            .override_global("PID_NAMESPACE_INODE", &namespace.1, true)
            .override_global("FOLLOWS", &follows, true)
            .override_global("HAS_UNDERSTUDIES", &has_understudies, true)
            .override_global("SHARES_PROBES", &shares, true)
            .override_global("TASK_PID", &task.pid, true)
            .override_global("TASK_SIGNAL", &task.signal, true)
            .override_global("TASK_THREAD_BASE", &thread_base, true)
            .override_global("SIGNAL_LIVE", &task.live, true)
            .override_global("AYA_LOG_LEVEL", &log_level, false);
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer-bpf"));
        let mut ebpf = loader.load(object).context("the kernel rejects the BPF maps")?;
        let programs = Programs::new(object, &ebpf, links)?;
        let messages = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| log::debug!("the BPF programs have no messages: {error}"))
            .ok();
        let tables = Arc::new(SharedTables::map(&ebpf, sizes)?);
        let unwind = UnwindTables::map(&ebpf, settings.unwind)?;
        let hotspots = runtimes::HotSpotLayouts::map(&ebpf)?;
        Ok(Self {
            ebpf,
            messages,
            tables,
            unwind,
            hotspots,
            programs,
            links,
            follows: settings.follow,
            has_understudies: settings.understudies,
            shares_probes,
            windows_are_open: Cell::new(false),
            probes: Vec::new(),
            tracepoints: Tracepoints::default(),
            raw_tracepoints: Vec::new(),
            places: ProbedPlaces::default(),
        })
    }

    /// The tables that the programs fill.
    #[must_use]
    pub fn tables(&self) -> &Arc<SharedTables> {
        &self.tables
    }

    /// Forgets everything that was counted. The windows must be closed; then what [`Capture::open_windows`] opens has nothing of what was
    /// before.
    ///
    /// # Errors
    /// When the kernel refuses, or somebody else holds the tables to read them.
    pub fn clear(&mut self) -> Result<()> {
        // A call that returns from now on belongs to no window.
        self.tables.processes().iter().for_each(|state| state.opened_ns.store(0));
        grace::wait().context("cannot wait for the BPF programs")?;
        let tables = Arc::get_mut(&mut self.tables).context("the tables are being read")?;
        tables.clear()
    }

    /// Waits until every program that runs now has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait_for_programs(&self) -> io::Result<()> {
        grace::wait()
    }

    /// Passes on what the programs have to say to people.
    pub fn log_messages(&mut self) {
        if let Some(messages) = &mut self.messages {
            messages.flush();
        }
    }

    /// The stream of events; can be taken once.
    ///
    /// # Errors
    /// When it has been taken.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>> {
        let map = self.ebpf.take_map("EVENTS").context("the events have been taken already")?;
        Ok(RingBuf::try_from(map)?)
    }

    /// The unwind tables, to add to.
    pub fn unwind_tables(&mut self) -> &mut UnwindTables {
        &mut self.unwind
    }

    /// How often the code of a process has changed, as far as the programs saw.
    #[must_use]
    pub fn code_changes(&self, process: ProcessIndex) -> u64 {
        self.tables.processes().get(usize::from(process)).map_or(0, |state| state.code_changes.load())
    }

    /// The list of the executable mappings of a process.
    #[must_use]
    pub fn code_list(&self, process: ProcessIndex) -> CodeList {
        let state = self.tables.processes().get(usize::from(process));
        state.map_or_else(CodeList::default, |state| CodeList::from_bits(state.code.load()))
    }

    /// Whether this mapping is in the list of a process just as it is.
    #[must_use]
    pub fn is_listed(&self, process: ProcessIndex, mapping: &Mapping) -> bool {
        let state = self.tables.processes().get(usize::from(process));
        state.is_some_and(|state| self.unwind.is_listed(state, mapping))
    }

    /// Makes these, sorted by address, the executable mappings of a process; see [`UnwindTables::set_code`].
    pub fn set_code(
        &mut self,
        process: ProcessIndex,
        code: &[Mapping],
        before: CodeList,
        dropped_tables: bool,
    ) -> Option<CodeList> {
        let state = self.tables.processes().get(usize::from(process))?;
        self.unwind.set_code(process, state, code, before, dropped_tables)
    }

    /// Tells the programs that the list is complete as of so many changes.
    pub fn set_code_changes_seen(&self, process: ProcessIndex, changes: u64) {
        if let Some(state) = self.tables.processes().get(usize::from(process)) {
            state.code_changes_seen.store(changes);
        }
    }

    /// Attaches the probes of one file, which this process can open by that path, to one process; to all of them where probes are
    /// shared.
    ///
    /// # Errors
    /// When the kernel refuses: the file or process is gone, or there is no permission.
    pub fn attach_probes(&mut self, file: &Path, sites: &[Site], pid: Pid) -> Result<()> {
        let scope = (!self.shares_probes).then_some(pid);
        for site in sites {
            match site.event {
                ProbedEvent::Allocate | ProbedEvent::AllocateToExits => {
                    self.places.add_allocating(site.cost);
                }
                ProbedEvent::Release => self.places.add_releasing(site.cost),
                ProbedEvent::Exit | ProbedEvent::UsdtAlloc | ProbedEvent::UsdtFree => {}
            }
        }
        // Of the functions that give a block those that release one as well come first, as releases do.
        let mut sites: Vec<_> = sites.iter().collect();
        sites.sort_by_key(|site| site.only_allocates());
        for &(name, at, events) in self.uprobe_programs() {
            let sites = sites.iter().filter(|site| events.contains(&site.event));
            let places: ProbeSites = sites.map(|site| (site.offset, site.cookie, site.semaphore)).collect();
            if !places.is_empty() {
                let program = self.programs.get(name)?;
                self.probes.extend(self.links.attach(program, file, &places, at, scope)?);
            }
        }
        Ok(())
    }

    /// The place of the arguments of a USDT probe, for its cookie.
    ///
    /// # Errors
    /// When there are too many different ones.
    pub fn place_of_arguments(&self, arguments: &[Argument]) -> Result<u16> {
        self.tables
            .place_of_arguments(arguments)
            .context("there are too many USDT probes with different arguments")
    }

    fn uprobe_programs(&self) -> &'static [UprobeProgram] {
        if self.shares_probes && self.links == UprobeLinks::Sessions { SESSION_UPROBES } else { UPROBES }
    }

    /// Begins to load the programs that every allocator's probes need, while there is something else to do.
    pub fn load_probes_ahead(&mut self) {
        let programs = self.uprobe_programs();
        let is_needed = |event| matches!(event, ProbedEvent::Allocate | ProbedEvent::Release);
        let needed = programs.iter().filter(|(_, _, events)| events.iter().copied().any(is_needed));
        self.programs.load_ahead(needed.map(|&(name, ..)| name).collect());
    }

    /// Loads every program, to see whether the kernel takes them.
    ///
    /// # Errors
    /// When it does not.
    pub fn load_all_programs(&mut self) -> Result<()> {
        self.programs.load_all()
    }

    /// Attaches to the system calls that change mappings, to `exec`, and to the exit of threads.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_system_calls(&mut self) -> Result<()> {
        self.attach_raw_tracepoint("process_exec", c"sched_process_exec")?;
        self.attach_raw_tracepoint("process_exit", c"sched_process_exit")?;
        if let Err(error) = self.attach_single_system_calls() {
            log::warn!(
                "every system call of the machine is examined, not only those that change mappings: {error:#}"
            );
            self.attach_raw_tracepoint("any_syscall_enter", c"sys_enter")?;
            self.attach_raw_tracepoint("any_syscall_exit", c"sys_exit")?;
        }
        Ok(())
    }

    fn attach_single_system_calls(&mut self) -> Result<()> {
        let tracefs = tracefs::Tracefs::open()?;
        let mut tracepoints = Tracepoints::with_room_for(2 * SYSTEM_CALLS.len() as u32);
        for (tracepoint, name) in SYSTEM_CALLS {
            let id = tracefs.tracepoint_id("syscalls", tracepoint)?;
            let refused = || format!("cannot attach to tracepoint {tracepoint}");
            tracepoints.attach(id, self.programs.get(name)?, 0).with_context(refused)?;
            if self.has_understudies {
                tracepoints.attach(id, self.programs.understudy(name)?, UNDERSTUDY).with_context(refused)?;
            }
        }
        self.tracepoints = tracepoints;
        Ok(())
    }

    /// Attaches to page faults, for growth mode.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_page_faults(&mut self) -> Result<()> {
        for tracepoint in [c"page_fault_user", c"page_fault_kernel"] {
            // Without an understudy: page faults are many, and each stands for others.
            let link = open_raw_tracepoint(tracepoint, self.programs.get("page_fault")?, 0)?;
            self.raw_tracepoints.push(link);
        }
        Ok(())
    }

    fn attach_raw_tracepoint(&mut self, program: &'static str, tracepoint: &CStr) -> Result<()> {
        let link = open_raw_tracepoint(tracepoint, self.programs.get(program)?, 0)?;
        self.raw_tracepoints.push(link);
        if self.has_understudies {
            let link = open_raw_tracepoint(tracepoint, self.programs.understudy(program)?, UNDERSTUDY)?;
            self.raw_tracepoints.push(link);
        }
        Ok(())
    }

    /// Takes every probe away, in parallel, since the kernel waits for each until no CPU can be in it. When it returns, no
    /// program counts any more, and the tables are at rest: those that are left hang on raw tracepoints, and find every window closed.
    pub fn detach(&mut self) {
        /// Threads for it at the most: each sleeps in the kernel.
        const MOST: usize = 64;

        // As with tracepoints, an understudy goes before its program.
        while self.raw_tracepoints.pop().is_some() {}
        let tracepoints = std::mem::take(&mut self.tracepoints);
        let links = self.probes.len();
        let probes = Mutex::new(std::mem::take(&mut self.probes));
        let next = || probes.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let let_go = || {
            while let Some(probe) = next() {
                drop(probe);
            }
        };
        thread::scope(|scope| {
            // One mutex of the kernel lets one tracepoint go at a time. Without a thread they go here and now.
            let _ = thread::Builder::new().spawn_scoped(scope, move || drop(tracepoints));
            // Where no more threads are to be had, those that there are do it all, this one among them.
            let mut helpers =
                (1..links.min(MOST)).map(|_| thread::Builder::new().spawn_scoped(scope, let_go));
            _ = helpers.any(|helper| helper.is_err());
            let_go();
        });
    }

    /// Runs that the kernel has left out so far.
    #[must_use]
    pub fn missed_runs(&self) -> MissedRuns {
        let missed = |program| hits::statistic(program, "recursion_misses:").unwrap_or(0);
        let count = |counter| self.tables.count(counter);
        MissedRuns {
            of_programs: self.programs.loaded().map(|(name, program)| (name, missed(program))).collect(),
            made_up_for: count(Counter::DoneByUnderstudy).saturating_sub(count(Counter::LeftToUnderstudy)),
        }
    }
}

/// Runs of programs that the kernel left out, because it was running that program, or another one, on that CPU.
#[derive(Clone, Debug, Default)]
pub struct MissedRuns {
    /// Of each program.
    pub of_programs: BTreeMap<&'static str, u64>,
    /// How many of all understudies made up for.
    made_up_for: u64,
}

impl MissedRuns {
    /// Those that came after others.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        for (name, runs) in &mut self.of_programs {
            *runs -= before.of_programs.get(name).unwrap_or(&0);
        }
        self.of_programs.retain(|_, runs| *runs > 0);
        self.made_up_for = self.made_up_for.saturating_sub(before.made_up_for);
        self
    }

    /// How many events nobody saw.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.of_programs.values().sum::<u64>().saturating_sub(self.made_up_for)
    }
}

/// What an understudy is attached with.
const UNDERSTUDY: u64 = 1;
/// Threads between a program and its understudy, at the most; and those that died there.
const MOST_MARKS: u32 = 16_384;

fn open_raw_tracepoint(tracepoint: &CStr, program: BorrowedFd<'_>, cookie: u64) -> Result<OwnedFd> {
    sys::open_raw_tracepoint(tracepoint, program, cookie)
        .with_context(|| format!("cannot attach to tracepoint {}", tracepoint.to_string_lossy()))
}

/// Whether the tracepoints of single system calls can be attached to.
///
/// # Errors
/// Why not.
pub fn check_tracepoints() -> Result<()> {
    let tracefs = tracefs::Tracefs::open()?;
    for (name, _) in SYSTEM_CALLS {
        let id = tracefs.tracepoint_id("syscalls", name)?;
        tracepoint::open(id).with_context(|| format!("cannot attach to tracepoint {name}"))?;
    }
    Ok(())
}

/// Whether children can be followed.
///
/// # Errors
/// Why not.
pub fn check_following() -> Result<()> {
    processes::task_offsets(pid_namespace()).map(drop)
}

/// Device and inode of the pid namespace in which this process sees others; 0 for that of the machine, which needs no translation.
fn pid_namespace() -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    /// `PROC_PID_INIT_INO` of the kernel.
    const OF_THE_MACHINE: u64 = 0xeff_ffffc;
    match std::fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != OF_THE_MACHINE => (namespace.dev(), namespace.ino()),
        _ => (0, 0),
    }
}

fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{mem::offset_of, ptr};

    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    use tracer_ebpf::event::{EventKind, MappingEvent};

    use super::*;

    const CALLS: u64 = 500;

    /// Maps and unmaps memory, `CALLS` times.
    fn map_and_unmap() {
        for _ in 0..CALLS {
            // SAFETY: the kernel finds a place, and nobody uses it.
            unsafe {
                let flags = MapFlags::PRIVATE;
                let place = mmap_anonymous(ptr::null_mut(), 4096, ProtFlags::READ, flags).expect("it maps");
                munmap(place, 4096).expect("it unmaps");
            }
        }
    }

    /// How many events of this thread there are.
    fn events_of_this_thread(events: &mut RingBuf<MapData>) -> u64 {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let mut count = 0;
        while let Some(event) = events.next() {
            let is_mapping = event[0] == EventKind::Mapping as u8;
            let of = offset_of!(MappingEvent, tid);
            count += u64::from(is_mapping && event[of..of + 4] == tid.to_ne_bytes());
        }
        count
    }

    /// As root.
    #[test]
    fn an_understudy_does_what_its_program_was_left_out_of_and_nothing_else() {
        let settings = Settings { understudies: true, ..Settings::least() };
        let mut capture = Capture::load(&settings).expect("it loads");
        capture.add_process(Pid(std::process::id())).expect("there is room");
        let mut events = capture.take_events().expect("there are events");
        capture.open_windows(1);
        capture.attach_raw_tracepoint("any_syscall_exit", c"sys_exit").expect("it attaches");
        map_and_unmap();
        assert_eq!(events_of_this_thread(&mut events), 2 * CALLS);
        // Others may be between a program and its understudy when they are attached.
        let made_up_for = capture.missed_runs().made_up_for;
        assert!(made_up_for < CALLS, "{made_up_for}");

        drop(capture.raw_tracepoints.remove(0));
        map_and_unmap();
        assert_eq!(events_of_this_thread(&mut events), 2 * CALLS);
        assert!(capture.missed_runs().made_up_for >= made_up_for + 2 * CALLS);
        assert_eq!(capture.tables.count(Counter::LeftToUnderstudy), 0);
    }
}
