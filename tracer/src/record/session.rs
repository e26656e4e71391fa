//! A recording under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use tracer_ebpf::{
    counter::Counter,
    event::{MappingCall, MappingEvent},
    live::STACK_BITS,
    process::MAX_PROCESSES,
    stack::{RETIRED, StackTotals, mapping_call},
    stop::Stop,
};

use super::{
    Config, allocators,
    budget::Budget,
    children::{Children, Family},
    code::CodeFiles,
    findings::Findings,
    memory::{self, Readings, ResidentMemory, When},
    process::{TracedProcess, Trampoline, planner},
    retire::{self, Retirement},
    sampling::Sampler,
    touched::Touched,
};
use crate::{
    analyze::{
        history::{History, Source},
        managed::ManagedHolders,
        mappings::MappingAccount,
        outcome::{Counted, KnownStack},
        residency,
    },
    attach::{Capture, Settings, Sizes},
    drain::{Drain, Event, NewStack},
    model::{
        Bytes, End, Events, Kind, Memory, Mode, Pid, Profile, Settings as InForce, TimelinePoint, Window,
    },
    plan::{ApiId, Planner},
    report::status::Status,
    symbolize::{Names, Worker},
    target::{Target, launch::Launched},
};

/// Room for distinct stacks. 72 bytes each.
const MAX_STACKS: u32 = 1 << 17;
const _: () = assert!(MAX_STACKS <= 1 << STACK_BITS);

/// Snapshots kept; when there are more, every second one goes.
const MAX_TIMELINE: usize = 2000;

/// Between the first sizes of every stack, of which a verdict takes a dozen: a little less than the time between looks, so that
/// each look is due.
const HISTORY_SPACING_NS: u64 = 180_000_000;

/// Processes whose return trampoline is looked for at one time: their mappings are read for it. A child has what its parent has.
const LOOKS_FOR_TRAMPOLINES: usize = 16;

/// A recording under way.
pub struct Session {
    config: Config,
    planner: Planner,
    processes: Vec<TracedProcess>,
    /// By index.
    descriptions: BTreeMap<u16, crate::model::Process>,
    max_live: u64,
    sampler: Sampler,
    budget: Option<Budget>,
    capture: Capture,
    drain: Drain,
    worker: Option<Worker>,
    names: Names,
    code: CodeFiles,
    children: Children,
    stacks: BTreeMap<u32, NewStack>,
    mappings: MappingAccount,
    /// In growth mode.
    touched: Option<Touched>,
    managed: ManagedHolders,
    resident: ResidentMemory,
    stale_code: BTreeSet<u16>,
    /// Numbers of stacks whose last frame is in code that was not known when they were made.
    unnamed: Vec<u32>,
    trampolines_made: BTreeSet<u16>,
    mapping_events: u64,
    /// Runs of programs that were missed, and events that could not be read, before the window.
    missed_before: u64,
    malformed_before: u64,
    window: OpenWindow,
    history: History,
    timeline: Vec<TimelinePoint>,
    rate: Rate,
    retirement: Retirement,
}

/// When the window opened, and what was then.
#[derive(Default)]
struct OpenWindow {
    started_at: String,
    opened_ns: u64,
    closed_ns: u64,
    rss_before: Option<Bytes>,
    rss_after: Option<Bytes>,
    end: Option<End>,
}

impl Session {
    /// Opens the targets, loads the programs and puts every probe in.
    pub fn attach(config: &Config, targets: &[Pid]) -> Result<Self> {
        if targets.len() > MAX_PROCESSES as usize {
            bail!("{} processes are too many: {MAX_PROCESSES} at most can be traced at once", targets.len());
        }
        let mut processes: Vec<_> =
            targets.iter().map(|&pid| TracedProcess::open(pid)).collect::<Result<_>>()?;
        let sampler = Sampler::new(config.sample, config.max_overhead.is_some());
        let max_live = config.max_live.unwrap_or_else(|| sampler.room_for(resident(&processes)));
        let mut code = CodeFiles::new();
        for process in &processes {
            code.read(&process.target);
        }
        let mut capture = Capture::load(&Settings {
            unwind: code.sizes(),
            sizes: Sizes::with_room_for(max_live, MAX_STACKS),
            min_size: config.min_size.map_or(0, |size| size.0),
            max_size: config.max_size.map_or(u64::MAX, |size| size.0),
            sampling: sampler.sampling(),
            sample_level: sampler.level(),
            follow: config.follow,
        })?;
        for process in &mut processes {
            process.index = capture.add_process(process.target.pid())?;
        }
        let children = Children::join(&mut capture, &mut processes, &mut code)?;
        let planner = planner(&config.declarations, config.mode);
        let worker = Worker::start()?;
        let mut mappings = MappingAccount::new();
        for process in &mut processes {
            worker.add_process(process.index, process.target.pid());
            if let Err(error) = process.attach(&mut capture, &planner) {
                // A child may come to its end at any time.
                if targets.contains(&process.target.pid()) || !process.target.has_exited() {
                    return Err(error);
                }
            }
            if !config.subject.is_command() && process.target.is_stopped().unwrap_or(false) {
                log::warn!(
                    "{} is stopped; it allocates nothing until it goes on (kill -CONT {})",
                    process.name(),
                    process.target.pid()
                );
            }
        }
        for process in &processes {
            worker.add_code(code.install(process.index, &process.target, &mut capture));
        }
        capture.attach_system_calls()?;
        // After the probes: see the mapping account.
        for process in &processes {
            match process.initial_mappings() {
                Err(error) if targets.contains(&process.target.pid()) => return Err(error),
                initial => mappings.add_process(process.index, initial.unwrap_or_default()),
            }
        }
        let touched = match config.mode {
            Mode::Allocations => None,
            Mode::Growth => Some(Touched::attach(&processes, &mut capture)?),
        };
        let budget =
            config.max_overhead.map(|max| Budget::new(max, sampler.level(), &mut capture)).transpose()?;
        let drain = Drain::new(capture.take_events()?)?;
        Ok(Self {
            config: config.clone(),
            planner,
            descriptions: processes
                .iter()
                .map(|process| (process.index, process.target.describe()))
                .collect(),
            processes,
            max_live,
            sampler,
            budget,
            capture,
            drain,
            names: worker.names().clone(),
            worker: Some(worker),
            code,
            children,
            stacks: BTreeMap::new(),
            mappings,
            touched,
            managed: ManagedHolders::default(),
            resident: ResidentMemory::default(),
            stale_code: BTreeSet::new(),
            unnamed: Vec::new(),
            trampolines_made: BTreeSet::new(),
            mapping_events: 0,
            missed_before: 0,
            malformed_before: 0,
            window: OpenWindow::default(),
            history: History::new(HISTORY_SPACING_NS),
            timeline: Vec::new(),
            rate: Rate::default(),
            retirement: Retirement::default(),
        })
    }

    /// Descriptors that become readable when the targets exit.
    pub fn exit_descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        self.processes.iter().map(|process| process.target.as_fd().try_clone_to_owned()).collect()
    }

    /// From now on events count.
    pub fn open_window(&mut self) -> Result<()> {
        let is_gone = |process: &&TracedProcess| process.target.has_exited();
        if let Some(gone) = self.processes.iter().find(is_gone)
            && !(self.config.follow && self.processes.iter().any(|process| !is_gone(&process)))
        {
            bail!("{} exited while it was being attached to", gone.name());
        }
        for process in self.processes.iter().filter(is_gone) {
            self.capture.has_exited(process.index);
        }
        self.begin_window();
        Ok(())
    }

    fn begin_window(&mut self) {
        self.find_trampolines();
        self.window.rss_before = memory::rss(&self.processes);
        if let Some(first) = self.resident.read(&self.processes, When::Now) {
            self.resident.keep(first, &self.mappings, &BTreeMap::new());
        }
        self.window.started_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        self.window.opened_ns = now_ns();
        self.capture.open_windows(self.window.opened_ns);
        self.history.push(0, []);
        let first = |Bytes(rss_bytes)| TimelinePoint {
            t_ns: 0,
            rss_bytes,
            outstanding_bytes: 0,
            managed_bytes: None,
        };
        self.timeline.extend(self.window.rss_before.map(first));
        self.rate = Rate { at_ns: self.window.opened_ns, ..Rate::default() };
    }

    /// Lets a launched command run to its entry point, probing each file as it is mapped, and then go on by itself.
    pub fn start(&mut self, launched: &mut Launched) -> Result<()> {
        let Self { processes, capture, planner, code, worker, .. } = self;
        let [process] = &mut processes[..] else { bail!("a command is traced alone") };
        let target = Target::open(launched.pid())?;
        launched.run_to_entry(&target, |object| {
            process.attach_new(&object, capture, planner)?;
            code.read_object(object);
            let views = code.install(process.index, &target, capture);
            if let Some(worker) = worker {
                worker.add_code(views);
            }
            anyhow::Ok(())
        })?;
        self.check_allocators()?;
        // A command may be gone before its libraries are looked at, if not now.
        if let Some(worker) = &self.worker {
            worker.catch_up();
        }
        Ok(launched.release()?)
    }

    /// Fails when there is nothing to trace, or not what was declared.
    pub fn check_allocators(&self) -> Result<()> {
        allocators::check(self.config.mode, &self.config.subject, &self.processes, &self.config.declarations)
    }

    /// The line that says that the window is open.
    pub fn announcement(&self) -> String {
        let names: Vec<_> = self.processes.iter().map(TracedProcess::name).collect();
        let probes: usize = self.processes.iter().map(TracedProcess::probes).sum();
        let until = match self.config.duration {
            Some(duration) => format!("for {}", humantime::format_duration(duration)),
            None => "until Ctrl-C".to_owned(),
        };
        let how = match self.config.mode {
            Mode::Allocations => format!("{probes} allocator functions probed"),
            Mode::Growth => "page faults and mappings, no probes".to_owned(),
        };
        format!("recording {} {until}: {how}", names.join(", "))
    }

    /// Ready when there are events.
    pub async fn events_ready(&mut self) -> io::Result<()> {
        self.drain.ready().await
    }

    /// Takes what the kernel has to say.
    pub fn take_events(&mut self) {
        self.capture.log_messages();
        let Self {
            drain,
            stacks,
            worker,
            mappings,
            touched,
            code,
            capture,
            children,
            stale_code,
            unnamed,
            mapping_events,
            ..
        } = self;
        let mut changed_code = BTreeSet::new();
        drain.take(|event| match event {
            Event::Stack(stack) => {
                // Its last frame can be named when its code is known.
                if stack.walked.last_is_unknown {
                    unnamed.push(stack.number);
                } else if let Some(worker) = worker {
                    worker.name(&stack);
                }
                // A walk that came to code which nobody knows of: it may have been compiled, or become executable, just now.
                if matches!(stack.stop, Stop::NotCode | Stop::FramePointerLost | Stop::TableNotReady) {
                    stale_code.insert(stack.process);
                }
                stacks.insert(stack.number, stack);
            }
            Event::Mapping(event) => {
                *mapping_events += 1;
                mappings.apply(&event);
                if let Some(touched) = touched {
                    touched.take(&event);
                }
                if maps_code(&event) || code.is_released_by(&event) {
                    changed_code.insert(event.process);
                }
            }
            // The gate says so too.
            Event::Exec(_) => {}
            Event::Process(change) => children.announce(change, capture, mappings, worker.as_ref()),
        });
        self.adopt_children();
        if let Some(touched) = &mut self.touched {
            touched.pace(&self.processes, &self.capture);
        }
        for process in changed_code {
            self.follow_code(process);
        }
    }

    /// Looks at children that have come, and no more at processes that have gone.
    fn adopt_children(&mut self) {
        let Self { capture, planner, code, worker: Some(worker), mappings, processes, descriptions, .. } =
            self
        else {
            return;
        };
        let family = Family { capture, planner, code, worker, mappings, processes, descriptions };
        for gone in self.children.update(family) {
            self.stale_code.remove(&gone);
            self.resident.forget(gone, &self.processes);
        }
    }

    /// Whether children are followed, and nobody is left.
    pub fn everyone_is_gone(&self) -> bool {
        self.config.follow && self.children.everyone_is_gone(&self.capture)
    }

    /// Brings unwind tables, lists of code and probes up to what the process has mapped now: a library that was loaded during the
    /// window may bring an allocator.
    fn follow_code(&mut self, index: u16) {
        self.stale_code.remove(&index);
        let Some(process) = self.processes.iter_mut().find(|process| process.index == index) else { return };
        self.code.read(&process.target);
        let views = self.code.install(index, &process.target, &mut self.capture);
        if let Some(worker) = &self.worker {
            worker.add_code(views);
        }
        if let Err(error) = process.attach(&mut self.capture, &self.planner)
            && !process.target.has_exited()
        {
            log::warn!("cannot probe newly loaded code: {error:#}");
        }
        self.name_unnamed(|process| process == index);
    }

    /// Has stacks named that were made in code which was not known then.
    fn name_unnamed(&mut self, of_process: impl Fn(u16) -> bool) {
        let Self { unnamed, stacks, worker: Some(worker), .. } = self else { return };
        unnamed.retain(|number| {
            let Some(stack) = stacks.get(number) else { return false };
            let is_due = of_process(stack.process);
            if is_due {
                worker.name(stack);
            }
            !is_due
        });
    }

    /// Looks again where walks came to unknown code. Not at once: reading mappings takes up to milliseconds, and broken stacks
    /// may come in numbers.
    pub fn follow_stale_code(&mut self) {
        while let Some(&process) = self.stale_code.first() {
            self.follow_code(process);
        }
    }

    /// Keeps tracing within what it may take.
    pub fn keep_to_budget(&mut self) {
        let Self { budget: Some(budget), capture, processes, .. } = self else { return };
        budget.review(now_ns(), capture, processes.iter().map(|process| process.target.pid()));
    }

    /// Tells the programs where probed functions return to, until it is certain.
    fn find_trampolines(&mut self) {
        let unmade = |process: &&TracedProcess| !self.trampolines_made.contains(&process.index);
        let some: Vec<_> = self.processes.iter().filter(unmade).take(LOOKS_FOR_TRAMPOLINES).collect();
        for process in some {
            let (address, made) = match process.trampoline() {
                Some(Trampoline::Made(address)) => (address, true),
                Some(Trampoline::Expected(address)) => (address, false),
                None => continue,
            };
            self.capture.set_trampoline(process.index, address);
            if made {
                self.trampolines_made.insert(process.index);
            }
        }
    }

    /// Gives the places of stacks that hold nothing to others, if the table is filling up.
    pub fn retire_stacks(&mut self) {
        if self.is_being_read() || !self.retirement.is_due(self.capture.tables(), now_ns()) {
            return;
        }
        let holding = self.mappings.holding_stacks();
        let withdrawn = self.retirement.withdraw(self.capture.tables(), &holding);
        if withdrawn.is_empty() || !retire::wait_for_programs() {
            return;
        }
        // Everything that programs have said of them.
        self.take_events();
        let holding = self.mappings.holding_stacks();
        let gone = Arc::new(self.retirement.vacate(self.capture.tables(), &holding));
        self.judge_mappings();
        let Self { mappings, managed, .. } = self;
        mappings.retire(&gone, RETIRED, |holder| managed.judged(holder));
        self.managed.forget(|holder| gone.contains(&holder.stack));
        self.history.forget(|source| gone.contains(&source.stack()));
        self.stacks.retain(|number, _| !gone.contains(number));
        log::debug!("the places of {} stacks are free again", gone.len());
        if let Some(worker) = &self.worker {
            worker.forget(gone);
        }
    }

    /// Whether a target has replaced its program.
    pub fn target_has_executed(&self) -> bool {
        !self.config.follow && self.processes.iter().any(|process| self.capture.is_over(process.index))
    }

    /// Adds a point to the timeline.
    pub fn snapshot(&mut self, when: When) {
        let reading = self.resident.read(&self.processes, when);
        self.add_to_timeline(when, reading);
    }

    /// Adds a point to the timeline, with what was just read of resident memory.
    fn add_to_timeline(&mut self, when: When, reading: Option<Readings>) {
        let t_ns = now_ns().saturating_sub(self.window.opened_ns);
        self.judge_mappings();
        self.look_at_memory(when);
        let by_process = self.native_by_process();
        let was_read = reading.is_some();
        let rss = reading.as_ref().map(Readings::rss).or_else(|| memory::rss(&self.processes));
        if let Some(reading) = reading {
            self.resident.keep(reading, &self.mappings, &by_process);
        }
        let Some(rss) = rss else { return };
        self.window.rss_after = Some(rss);
        self.timeline.push(TimelinePoint {
            t_ns,
            rss_bytes: rss.0,
            outstanding_bytes: by_process.values().sum::<u64>() + self.mapping_weight(),
            managed_bytes: was_read.then(|| self.resident.managed_bytes(&self.managed)).flatten(),
        });
        if self.timeline.len() > MAX_TIMELINE {
            let mut index = 0;
            self.timeline.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// Notes what every stack holds, from time to time.
    pub fn note_sizes(&mut self, when: When) {
        let t_ns = now_ns().saturating_sub(self.window.opened_ns);
        if when == When::Affordable && !self.history.is_due(t_ns) {
            return;
        }
        self.look_at_memory(When::Affordable);
        let mut mapped: BTreeMap<Source, Bytes> = BTreeMap::new();
        for live in self.mappings.live().filter(|live| live.holder.kind == Kind::Mapping) {
            let Bytes(resident) = self.resident.of_range(&live).unwrap_or_default();
            mapped.entry(Source::Mapping(live.holder)).or_default().0 += resident;
        }
        let native = self.capture.tables().totals().iter().zip(0..).filter_map(|(totals, number)| {
            let bytes = totals.outstanding().bytes;
            (bytes > 0).then_some((Source::Native(number), Bytes(bytes)))
        });
        let touched = self.touched.iter().flat_map(Touched::sizes);
        self.history.push(t_ns, native.chain(mapped).chain(touched));
    }

    /// Tells the heaps of runtimes among the mappings, as far as their stacks have names by now.
    fn judge_mappings(&mut self) {
        let Self { managed, mappings, names, .. } = self;
        managed.learn(mappings.totals(), |stack| names.frames(stack));
    }

    /// Reads how much is resident of what was mapped and touched.
    fn look_at_memory(&mut self, when: When) {
        self.resident.look_at_mappings(&self.processes, &self.mappings, when);
        if let Some(touched) = &mut self.touched {
            touched.weigh(&self.processes, &self.mappings, &self.managed, when);
        }
    }

    fn mapping_weight(&self) -> u64 {
        let counted =
            self.mappings.live().filter(|live| self.managed.judged(live.holder).kind.counts_by_default());
        let mapped: u64 = counted.filter_map(|live| self.resident.of_range(&live)).map(|bytes| bytes.0).sum();
        mapped + self.touched.as_ref().map_or(0, Touched::weight)
    }

    /// Outstanding bytes of the malloc family, by process.
    fn native_by_process(&self) -> BTreeMap<u16, u64> {
        let mut sizes = BTreeMap::new();
        for (totals, number) in self.capture.tables().totals().iter().zip(0..) {
            let bytes = totals.outstanding().bytes;
            if bytes > 0 {
                let process = self.stacks.get(&number).map_or(0, |stack| stack.process);
                *sizes.entry(process).or_default() += bytes;
            }
        }
        sizes
    }

    /// Bytes and blocks of the malloc family that are not freed.
    fn native_outstanding(&self) -> (u64, u64) {
        self.capture
            .tables()
            .totals()
            .iter()
            .map(StackTotals::outstanding)
            .fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.whole_objects()))
    }

    /// What the recording looks like right now.
    pub fn status(&mut self) -> Status<'_> {
        self.find_trampolines();
        let now = now_ns();
        let (bytes, objects) = self.native_outstanding();
        let events = self.events_so_far();
        let lost = Counter::ALL.iter().filter(|counter| counter.is_loss());
        let lost = lost.map(|&counter| self.capture.tables().count(counter)).sum();
        let rss = self.window.rss_before.zip(memory::rss(&self.processes));
        Status {
            elapsed: Duration::from_nanos(now.saturating_sub(self.window.opened_ns)),
            events_per_second: self.rate.update(now, events),
            outstanding: Bytes(bytes + self.mapping_weight()),
            objects: objects
                + self
                    .mappings
                    .live()
                    .filter(|live| self.managed.judged(live.holder).kind == Kind::Mapping)
                    .count() as u64,
            rss,
            lost,
            target: &self.descriptions[&0],
        }
    }

    fn events_so_far(&self) -> u64 {
        self.sampler.calls_so_far(self.capture.tables()) + self.mapping_events
    }

    /// From now on events do not count.
    pub fn close_window(&mut self, end: End) {
        // After an exec the memory is another program's.
        let has_memory = end != End::TargetExec;
        // Read at the moment that the counts end with: a program may free what it holds a millisecond later.
        let reading = has_memory.then(|| self.resident.read(&self.processes, When::Now)).flatten();
        self.capture.close_windows();
        self.window.closed_ns = now_ns();
        self.window.end = Some(end);
        self.take_events();
        if let (Some(_), Some(worker)) = (&self.touched, &self.worker) {
            // Whether a page belongs to a mapping of the program or of its allocator is told by the names of who mapped it.
            worker.catch_up();
        }
        if has_memory {
            self.add_to_timeline(When::Now, reading);
            self.note_sizes(When::Now);
        }
    }

    /// Takes the probes out and tells what was found.
    pub fn finish(mut self) -> Result<Profile> {
        self.capture.detach();
        self.take_events();
        self.name_unnamed(|_| true);
        self.worker.take().context("the session has been finished already")?.finish()?;
        Ok(self.findings().profile())
    }

    /// What was found so far. It can be made a profile while the recording goes on.
    pub fn findings(&mut self) -> Findings {
        self.judge_mappings();
        let ended_ns = self.window.end.map_or_else(now_ns, |_| self.window.closed_ns);
        Findings {
            tables: Arc::clone(self.capture.tables()),
            sampler: self.sampler,
            names: self.names.clone(),
            named: self.worker.as_ref().map(Worker::caught_up),
            counted: self.counted(ended_ns),
            events: self.events(),
            processes: self.descriptions.values().cloned().collect(),
            window: Window {
                started_at: self.window.started_at.clone(),
                duration_ns: ended_ns.saturating_sub(self.window.opened_ns),
                end: self.window.end.unwrap_or(End::Interrupted),
                snapshot: self.window.end.is_none(),
            },
            settings: InForce {
                sample_bytes: self
                    .sampler
                    .mean_at(self.budget.as_ref().map_or(self.sampler.level(), Budget::highest_level))
                    .0,
                overhead: self.budget.as_ref().map(|budget| budget.outcome(&self.sampler)),
                min_age_ns: nanos(self.config.min_age),
                min_size: self.config.min_size,
                max_size: self.config.max_size,
                max_live: self.max_live,
                mode: self.config.mode,
            },
            memory: self.memory(),
            runtime: self.resident.runtime(&self.managed),
            allocator: self.resident.allocator(),
            shared_memory: self.resident.shared_growth(),
            timeline: self.timeline.clone(),
        }
    }

    /// Whether somebody is reading the tables to make a profile.
    pub fn is_being_read(&self) -> bool {
        Arc::strong_count(self.capture.tables()) > 1
    }

    /// Ends the window and opens a new one, with the probes where they are: what was allocated before counts no more. In between no
    /// event counts; nobody may be reading the tables.
    pub fn mark(&mut self) -> Result<()> {
        self.capture.close_windows();
        self.capture.clear()?;
        self.take_events();
        self.mappings = MappingAccount::new();
        for process in &self.processes {
            // One that is ending has nothing mapped.
            self.mappings.add_process(process.index, process.initial_mappings().unwrap_or_default());
        }
        if let Some(touched) = &mut self.touched {
            touched.forget(&self.processes, &self.capture);
        }
        self.history = History::new(HISTORY_SPACING_NS);
        self.retirement.forget_counts();
        self.resident = ResidentMemory::default();
        self.timeline.clear();
        self.mapping_events = 0;
        self.missed_before = self.capture.runs_missed_by_kernel();
        self.malformed_before = self.drain.malformed();
        self.begin_window();
        Ok(())
    }

    /// Where the resident memory went.
    fn memory(&self) -> Memory {
        self.resident.split(&self.managed).unwrap_or_else(|| Memory {
            rss_before_bytes: self.window.rss_before.map(|bytes| bytes.0),
            rss_after_bytes: self.window.rss_after.map(|bytes| bytes.0),
            parts: Vec::new(),
        })
    }

    /// Everything that user space knows. What the programs counted comes to it later.
    fn counted(&self, ended_ns: u64) -> Counted {
        let stacks = self.stacks.iter().map(|(&number, stack)| {
            let known = KnownStack {
                process: stack.process,
                api: self.api_name(stack.api),
                stop: stack.stop,
                frames: Vec::new(),
            };
            (number, known)
        });
        Counted {
            pids: self.descriptions.values().map(|process| process.pid).collect::<Vec<Pid>>(),
            stacks: stacks.collect(),
            native: BTreeMap::new(),
            held: BTreeMap::new(),
            mappings: self.mappings.totals().chain(self.touched.iter().flat_map(Touched::totals)).collect(),
            ranges: self
                .mappings
                .live()
                .map(|live| (live, self.resident.of_range(&live)))
                .chain(self.touched.iter().flat_map(Touched::ranges))
                .collect(),
            managed: self.managed.clone(),
            history: self.history.clone(),
            min_age_ns: nanos(self.config.min_age),
            opened_ns: self.window.opened_ns,
            ended_ns,
        }
    }

    fn api_name(&self, api: u16) -> String {
        match mapping_call(api) {
            Some(call) => call.name().to_owned(),
            None => {
                self.planner.catalog.get(ApiId(api)).map_or("unknown", |api| api.display_name()).to_owned()
            }
        }
    }

    /// Events that user space counted.
    fn events(&self) -> Events {
        let calls = self.mappings.calls();
        let losses = self.mappings.losses();
        let missed = self.capture.runs_missed_by_kernel() - self.missed_before;
        let malformed = self.drain.malformed() - self.malformed_before + losses.malformed;
        let lost = [
            ("missed_by_kernel", missed),
            ("malformed_event", malformed),
            ("mapping_table_full", losses.table_full + self.touched.as_ref().map_or(0, Touched::table_full)),
        ];
        let (touched, released) = self.touched.as_ref().map_or((0, 0), Touched::calls);
        Events {
            allocations: calls.allocations + touched,
            frees: calls.frees + released,
            unmatched_frees: calls.unmatched_frees,
            failed_allocations: calls.failed_allocations,
            lost: lost.into_iter().map(|(cause, number)| (cause.to_owned(), number)).collect(),
            incomplete_stacks: BTreeMap::new(),
        }
    }
}

/// Events a second, over the last second or so.
#[derive(Default)]
struct Rate {
    at_ns: u64,
    events: u64,
    per_second: f64,
}

impl Rate {
    fn update(&mut self, now_ns: u64, events: u64) -> f64 {
        let passed = now_ns.saturating_sub(self.at_ns);
        if passed >= 1_000_000_000 || (self.per_second == 0.0 && passed > 100_000_000) {
            self.per_second = events.saturating_sub(self.events) as f64 * 1e9 / passed as f64;
            self.at_ns = now_ns;
            self.events = events;
        }
        self.per_second
    }
}

/// What the targets have resident.
fn resident(processes: &[TracedProcess]) -> Bytes {
    let sizes = processes.iter().filter_map(|process| residency::rss(process.target.pid()).ok());
    Bytes(sizes.map(|bytes| bytes.0).sum())
}

/// Whether an event maps code.
fn maps_code(event: &MappingEvent) -> bool {
    const PROT_EXEC: u64 = 4;
    let [_, _, protection, ..] = event.args;
    event.at_exit == 1
        && event.result >= 0
        && MappingCall::try_from(event.call) == Ok(MappingCall::Mmap)
        && protection & PROT_EXEC != 0
}

/// The monotonic clock.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
