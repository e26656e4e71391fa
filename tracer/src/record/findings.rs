//! What a recording has found so far, apart from the recording: it can be made a profile on another thread, while the recording goes on.
//!
//! What is cheap is copied when the findings are taken: what user space itself keeps. What takes time is left to
//! [`Findings::profile`]: reading the tables that the programs fill, judging each stack, putting them in order.

use std::{
    collections::HashSet,
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use tracer_ebpf::{
    counter::Counter,
    stack::{StackId, StackTotals},
};

use super::sampling::Sampler;
use crate::{
    analyze::{
        causes,
        managed::Runtime,
        outcome::{self, Counted, NativeTotals},
        verdict::{self, Facts},
    },
    attach::SharedTables,
    model::{Events, Memory, NotProbed, Overhead, Process, Profile, SCHEMA, Settings, TimelinePoint, Window},
    symbolize::{DebugFiles, Debuginfod, Names, Watcher},
};

/// What was found so far.
pub struct Findings {
    /// The tables that the programs fill, and may still be filling.
    pub(super) tables: Arc<SharedTables>,
    pub(super) sampler: Sampler,
    /// The names of frames.
    pub(super) names: Names,
    /// Says when every stack that is known has its names.
    pub(super) named: Option<Receiver<()>>,
    /// What user space counted; stacks have no frames yet.
    pub(super) counted: Counted,
    /// Events that user space counted.
    pub(super) events: Events,
    pub(super) not_probed: Vec<NotProbed>,
    pub(super) processes: Vec<Process>,
    pub(super) window: Window,
    pub(super) settings: Settings,
    pub(super) overhead: Option<Overhead>,
    /// How much of the window the targets could use, as far as others left them a CPU.
    pub(super) had_ns: u64,
    pub(super) memory: Memory,
    pub(super) runtime: Option<Runtime>,
    pub(super) allocator: Option<&'static str>,
    /// Whether the objects of Python were followed.
    pub(super) python_objects: bool,
    pub(super) shared_memory: u64,
    pub(super) timeline: Vec<TimelinePoint>,
    /// Debug files that have come from servers before, where frames are to be named by these.
    pub(super) debug_files: Option<Arc<Debuginfod>>,
    /// Whether the tables have been read, and stacks have their frames.
    pub(super) is_read: bool,
}

impl Findings {
    /// The profile of them.
    #[must_use]
    pub fn profile(mut self) -> Profile {
        let started = Instant::now();
        self.read();
        if let Some(debug_files) = self.debug_files.take() {
            debug_files.refine_by_cache(self.counted.stacks.values_mut().map(|stack| &mut stack.frames));
        }
        let Self { tables, counted, mut events, processes, window, memory, .. } = self;
        // While somebody reads, the numbers of stacks stay as they are.
        drop(tables);
        let judged = counted.judged();
        let mut causes = causes::find(&judged, &counted.history, &processes);
        if self.runtime.is_some_and(Runtime::collects_garbage) {
            causes::leave_open_what_may_be_garbage(&mut causes);
        }
        let stacks: Vec<_> = judged.into_iter().map(|judged| judged.stack).collect();
        outcome::count_incomplete(&mut events, &stacks);
        let verdict = verdict::of_lossy(&events).unwrap_or_else(|| {
            verdict::of(&Facts {
                window: Duration::from_nanos(window.duration_ns),
                had: Duration::from_nanos(self.had_ns),
                memory: Some(&memory),
                stacks: &stacks,
                causes: &causes,
                sample_bytes: self.settings.sample_bytes,
                freed_older_blocks: events.unmatched_frees,
                evenly_freed_older_blocks: counted
                    .history
                    .evenly_freed_older_blocks()
                    .unwrap_or(events.unmatched_frees),
                shared_memory: self.shared_memory,
                outstanding: &counted.outstanding(),
                runtime: self.runtime,
                allocator: self.allocator,
                program: &processes[0].comm,
                python_objects: self.python_objects,
            })
        });
        causes::leave_out_small(&mut causes);
        log::debug!("a profile of {} stacks was made in {:?}", stacks.len(), started.elapsed());
        Profile {
            schema: SCHEMA.to_owned(),
            tracer_version: env!("CARGO_PKG_VERSION").to_owned(),
            target: processes[0].clone(),
            processes: if processes.len() > 1 { processes } else { Vec::new() },
            window,
            settings: self.settings,
            overhead: self.overhead,
            events,
            not_probed: self.not_probed,
            totals: outcome::totals(&stacks),
            memory: Some(memory),
            timeline: self.timeline,
            stacks,
            verdict: Some(verdict),
            causes,
        }
    }

    /// The same, with the names of debug files that have come from servers before.
    #[must_use]
    pub fn with_names_of(self, debug_files: Option<&Arc<Debuginfod>>) -> Self {
        Self { debug_files: debug_files.cloned(), ..self }
    }

    /// Names frames by debug files that servers have, of the stacks that hold something. Takes its time.
    pub fn name_by_debug_files(&mut self, debuginfod: &Debuginfod, watcher: &mut dyn Watcher) -> DebugFiles {
        self.read();
        let native = &self.counted.native;
        let holds = |number: &StackId| {
            native.get(number).is_none_or(|totals| totals.allocated_objects > totals.freed_objects)
        };
        let holding: HashSet<StackId> = self.counted.stacks.keys().copied().filter(holds).collect();
        let stacks = self.counted.stacks.iter_mut().filter(|(number, _)| holding.contains(number));
        debuginfod.refine(stacks.map(|(_, stack)| &mut stack.frames), watcher)
    }

    /// Reads the tables, once, and gives stacks their frames.
    fn read(&mut self) {
        if std::mem::replace(&mut self.is_read, true) {
            return;
        }
        let started = Instant::now();
        self.read_tables();
        log::debug!("the tables were read in {:?}", started.elapsed());
        self.count_kernel_events();
        if let Some(named) = self.named.take() {
            // An error says that nobody names any more.
            let _ = named.recv();
        }
        for (&number, stack) in &mut self.counted.stacks {
            stack.frames = self.names.frames(number).unwrap_or_default();
        }
        let unread = self.names.unread().into_iter();
        self.events.unnamed_functions =
            unread.map(|(cause, frames)| (cause.name().to_owned(), frames)).collect();
    }

    /// Reads what the programs counted by stack, and which blocks are live.
    fn read_tables(&mut self) {
        let window_ns = self.window.duration_ns;
        let min_age_ns = self.counted.min_age_ns;
        let sampling = self.sampler.sampling();
        self.counted.held =
            outcome::held_by_stack(self.tables.live_blocks(), |_| window_ns, min_age_ns, sampling);
        let totals = self.tables.stacks();
        // A stack that is on its way to us is one that came after the findings were taken.
        let is_known = |totals: &StackTotals, stack| {
            totals.delivered.load() == 0 || self.counted.stacks.contains_key(&stack)
        };
        let totals = totals.filter(|(stack, totals)| !self.window.is_snapshot() || is_known(totals, *stack));
        let totals = totals.map(|(stack, totals)| (stack, NativeTotals::from(totals)));
        self.counted.native = totals.filter(|(_, totals)| *totals != NativeTotals::default()).collect();
        if self.window.is_snapshot() {
            self.counted.settle_held();
        }
    }

    fn count_kernel_events(&mut self) {
        let Self { tables, sampler, events, .. } = self;
        let native = sampler.calls(tables);
        events.allocations += native.allocations;
        events.frees += native.frees;
        events.unmatched_frees += native.unmatched_frees;
        events.failed_allocations += tables.count(Counter::Failed);
        let losses = Counter::ALL.iter().filter(|counter| counter.loss().is_some());
        events.lost.extend(losses.map(|&counter| (counter.name().to_owned(), tables.count(counter))));
    }
}
