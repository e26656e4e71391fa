//! A recording under way.

mod accounts;
mod events;
mod naming;
mod outcome;
mod progress;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use tracer_ebpf::{
    process::{MAX_PROCESSES, ProcessIndex},
    stack::STACK_BITS,
};

use self::{
    accounts::Accounts,
    events::{StaleCode, Trampolines},
    naming::Naming,
    progress::Progress,
};
use super::{
    Config, allocators,
    children::Children,
    clock::now_ns,
    code::CodeFiles,
    detours::Taker,
    growth::Touched,
    overhead::{Meter, UsualUse},
    process::{TracedProcess, planner},
    resident_memory::When,
    retire::Retirement,
    sampling::Sampler,
};
use crate::{
    attach::{Capture, MissedRuns, Settings, Sizes, preempts_tracepoints},
    descriptors,
    drain::Drain,
    memory::residency,
    model::{Bytes, End, Mode, Pid, TimelinePoint},
    plan::Planner,
    symbolize::Worker,
    target::{Target, ThreadTimes, cgroup, launch::Launched},
};

/// Room for distinct stacks. 72 bytes each.
const MAX_STACKS: u32 = 1 << 17;
const _: () = assert!(MAX_STACKS <= 1 << STACK_BITS);

/// Blocks of which the process chose the weight, at the most.
const MOST_CHOSEN: u64 = 1 << 20;

/// A recording under way.
pub struct Session {
    config: Config,
    /// None in growth mode, which has no probes.
    planner: Option<Planner>,
    processes: Vec<TracedProcess>,
    descriptions: BTreeMap<ProcessIndex, crate::model::Process>,
    max_live: u64,
    sampler: Sampler,
    meter: Meter,
    /// The part of the time that the targets worked before they had probes, as far as others left them a CPU, where that is known.
    usual_use: Option<f64>,
    /// The CPUs that each of them may use at least, up to one.
    cpus: f64,
    told_of_cheaper_ways: bool,
    capture: Capture,
    drain: Drain,
    naming: Naming,
    code: CodeFiles,
    stale_code: StaleCode,
    trampolines: Trampolines,
    children: Children,
    accounts: Accounts,
    window: OpenWindow,
    progress: Progress,
    retirement: Retirement,
}

/// Says what each part of attaching took, to whoever asks for it (`-v`).
struct Parts(Instant);

impl Parts {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn done(&mut self, part: &str) {
        log::info!("{part} took {:.0?}", self.0.elapsed());
        self.0 = Instant::now();
    }
}

/// When the window opened, and what was then.
#[derive(Default)]
struct OpenWindow {
    /// Runs of programs that were missed, and events that could not be read, before it.
    missed_before: MissedRuns,
    /// The runs that were missed until it closed.
    missed_after: Option<MissedRuns>,
    malformed_before: u64,
    started_at: String,
    opened_ns: u64,
    closed_ns: u64,
    rss_before: Option<Bytes>,
    rss_after: Option<Bytes>,
    /// What the threads of the targets had by then, and how much of the window they had once it is closed.
    threads: ThreadTimes,
    had_ns: Option<u64>,
    end: Option<End>,
}

impl Session {
    /// Opens the targets, loads the programs and puts every probe in.
    pub fn attach(config: &Config, targets: &[Pid]) -> Result<Self> {
        if targets.len() > MAX_PROCESSES as usize {
            bail!("{} processes are too many: {MAX_PROCESSES} at most can be traced at once", targets.len());
        }
        descriptors::make_room_for(targets.len())?;
        let mut parts = Parts::begin();
        let use_until_probed = UsualUse::from_now(targets);
        let mut processes: Vec<_> =
            targets.iter().map(|&pid| TracedProcess::open(pid)).collect::<Result<_>>()?;
        let sampler = Sampler::new(config.sample);
        let max_live = config.max_live.unwrap_or_else(|| sampler.room_for(resident(&processes)));
        let sizes = Sizes::with_room_for(max_live, MAX_STACKS);
        // Blocks of which the process chose the weight have their place beside the table.
        let spilled_blocks = match config.sample.0 {
            0 => sizes.spilled_blocks,
            _ => sizes.spilled_blocks.max(max_live.min(MOST_CHOSEN) as u32),
        };
        let mut code = CodeFiles::new();
        for process in &processes {
            code.read(&process.target);
        }
        parts.done("reading unwind tables");
        let mut capture = Capture::load(&Settings {
            unwind: code.sizes(),
            sizes: Sizes { spilled_blocks, ..sizes },
            min_size: config.min_size.map_or(0, |size| size.0),
            max_size: config.max_size.map_or(u64::MAX, |size| size.0),
            sampling: sampler.sampling(),
            follow: config.follow,
            alike: processes.len(),
            understudies: preempts_tracepoints(),
        })?;
        parts.done("making the maps");
        let usual_use = use_until_probed.until_now(targets);
        if config.mode == Mode::Allocations {
            capture.load_probes_ahead();
        }
        for process in &mut processes {
            process.index = capture.add_process(process.target.pid())?;
        }
        let children = Children::join(&mut capture, &mut processes, &mut code)?;
        capture.attach_system_calls()?;
        parts.done("attaching to system calls");
        let sample = (config.sample.0 > 0).then_some(config.sample);
        let traces_calls = config.mode == Mode::Allocations;
        let mut planner = traces_calls.then(|| planner(&config.declarations, sample));
        let worker =
            Worker::start(config.native_frames).context("cannot start the thread that finds names")?;
        for process in &mut processes {
            worker.add_target(process.index, &process.target);
            let attached = match &mut planner {
                Some(planner) if config.subject.is_command() => process.attach_held(&mut capture, planner),
                Some(planner) => process.attach(&mut capture, planner),
                None => Ok(()),
            };
            if let Err(error) = attached {
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
        parts.done("planning and attaching probes");
        for process in &processes {
            worker.add_code(code.install(process.index, &process.target, &mut capture));
        }
        parts.done("handing over unwind tables");
        let touched = match config.mode {
            Mode::Allocations => None,
            Mode::Growth => Some(Touched::attach(&processes, &mut capture)?),
        };
        let meter = Meter::new(&capture);
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
            meter,
            usual_use,
            cpus: targets.iter().filter_map(|&pid| cgroup::cpu_quota(pid)).fold(1.0, f64::min),
            told_of_cheaper_ways: false,
            capture,
            drain,
            naming: Naming::by(worker),
            code,
            stale_code: StaleCode::default(),
            trampolines: Trampolines::default(),
            children,
            accounts: Accounts::new(touched),
            window: OpenWindow::default(),
            progress: Progress::since(0),
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
        self.find_all_trampolines();
        // What was missed before is nothing that counts.
        self.window.missed_before = self.capture.missed_runs();
        self.window.malformed_before = self.drain.malformed();
        let Accounts { mappings, resident, .. } = &mut self.accounts;
        self.window.rss_before = resident.rss(&self.processes, When::Now);
        if let Some(first) = resident.read(&self.processes, When::Now) {
            resident.keep(first, &self.processes, mappings, &BTreeMap::new());
        }
        self.window.started_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        self.window.opened_ns = now_ns();
        let pids = self.traced_now().0;
        self.window.threads = ThreadTimes::of(&pids);
        self.window.had_ns = None;
        self.meter.begin(self.window.opened_ns, &self.capture, &pids);
        self.capture.open_windows(self.window.opened_ns);
        self.accounts.read_mappings(&self.processes, &self.capture);
        self.progress = Progress::since(self.window.opened_ns);
        self.progress.history.push(0, []);
        let first = |Bytes(rss_bytes)| TimelinePoint {
            t_ns: 0,
            rss_bytes,
            outstanding_bytes: 0,
            managed_bytes: None,
        };
        self.progress.timeline.extend(self.window.rss_before.map(first));
    }

    /// Lets a launched command run to its entry point, probing each file as it is mapped, and then go on by itself.
    pub fn start(&mut self, launched: &mut Launched) -> Result<()> {
        let Self { processes, capture, planner, code, naming, .. } = self;
        let [process] = &mut processes[..] else { bail!("a command is traced alone") };
        let target = Target::open(launched.pid())?;
        launched.run_to_entry(&target, |object| {
            if let Some(planner) = planner {
                process.attach_new(&object, capture, planner)?;
            }
            code.read_object(object);
            let views = code.install(process.index, &target, capture);
            naming.add_code(views);
            anyhow::Ok(())
        })?;
        if let Some(planner) = planner {
            process.set_mean(planner);
        }
        process.take_detours(Taker::Held)?;
        if launched.is_preloaded() && process.usdt_probes() == 0 {
            log::warn!(
                "{} does not load the sampler (it is linked statically, setuid, or has an allocator of its own): its functions are \
                 probed, which costs more",
                process.name()
            );
        }
        self.check_allocators()?;
        // A command may be gone before its libraries are looked at, if not now.
        self.naming.catch_up();
        Ok(launched.release()?)
    }

    /// Fails when there is nothing to trace, or not what was declared.
    pub fn check_allocators(&self) -> Result<()> {
        allocators::check(self.config.mode, &self.config.subject, &self.processes, &self.config.declarations)
    }

    /// Mean bytes between sampled allocations; 0 when every one is kept.
    pub fn sample(&self) -> Bytes {
        self.config.sample
    }

    /// The part of the time that the targets worked before they had probes, as far as others left them a CPU, where that is known.
    pub fn usual_use(&self) -> Option<f64> {
        self.usual_use
    }

    /// The CPUs that each of the targets may use at least, up to one.
    pub fn cpus(&self) -> f64 {
        self.cpus
    }

    /// Takes the probes out before the end: another session takes the place of this one.
    pub fn take_probes_out(&mut self) {
        self.capture.detach();
        self.take_events();
    }

    /// The line that says that the window is open.
    pub fn announcement(&self) -> String {
        /// More names than that are not read.
        const NAMED: usize = 16;
        let whose = match &self.processes[..] {
            processes if processes.len() > NAMED => format!("{} processes", processes.len()),
            processes => processes.iter().map(TracedProcess::name).collect::<Vec<_>>().join(", "),
        };
        let probes: usize = self.processes.iter().map(TracedProcess::probes).sum();
        let until = match self.config.duration {
            Some(duration) => format!("for {}", humantime::format_duration(duration)),
            None => "until Ctrl-C".to_owned(),
        };
        let usdt_probes: usize = self.processes.iter().map(TracedProcess::usdt_probes).sum();
        let how = match self.config.mode {
            Mode::Allocations if usdt_probes > 0 && probes == 0 => {
                format!("sampled within, {usdt_probes} USDT probes")
            }
            Mode::Allocations if usdt_probes > 0 => {
                format!("sampled within, {usdt_probes} USDT probes, and {probes} allocator functions probed")
            }
            Mode::Allocations => format!("{probes} allocator functions probed"),
            Mode::Growth => "page faults and mappings, no probes".to_owned(),
        };
        format!("recording {whose} {until}: {how}")
    }

    /// Ready when there are events.
    pub async fn events_ready(&mut self) -> io::Result<()> {
        self.drain.ready().await
    }

    /// Whether a target has replaced its program.
    pub fn target_has_executed(&self) -> bool {
        !self.config.follow && self.processes.iter().any(|process| self.capture.is_over(process.index))
    }

    /// Whose gate was closed by somebody else.
    pub fn who_lost_gate(&self) -> Option<String> {
        let mut lost = self.processes.iter().filter(|process| process.has_lost_gate());
        lost.find(|process| !self.capture.is_over(process.index)).map(TracedProcess::name)
    }

    /// From now on events do not count.
    pub fn close_window(&mut self, end: End) {
        // After an exec the memory is another program's.
        let has_memory = end != End::TargetExec;
        // Read at the moment that the counts end with: a program may free what it holds a millisecond later.
        let reading = has_memory.then(|| self.accounts.resident.read(&self.processes, When::Now)).flatten();
        self.capture.close_windows();
        // While probes are taken away, a program can be there without its understudy.
        self.window.missed_after = Some(self.capture.missed_runs());
        self.window.closed_ns = now_ns();
        let (pids, calls) = self.traced_now();
        self.meter.end(&self.capture, &pids, calls);
        self.window.had_ns = Some(self.had_so_far(&pids, self.window.closed_ns));
        self.window.end = Some(end);
        self.take_events();
        if self.accounts.touched.is_some() {
            // Whether a page belongs to a mapping of the program or of its allocator is told by the names of who mapped it.
            self.naming.catch_up();
        }
        if has_memory {
            self.add_to_timeline(When::Now, reading);
            self.note_sizes(When::Now);
        }
    }

    /// How long the targets could work since the window opened, as far as others left them a CPU.
    fn had_so_far(&self, pids: &[Pid], now_ns: u64) -> u64 {
        let span_ns = now_ns.saturating_sub(self.window.opened_ns);
        ThreadTimes::of(pids).had_since(&self.window.threads, span_ns)
    }

    /// Ends the window and opens a new one, with the probes where they are: what was allocated before counts no more. In between no
    /// event counts; nobody may be reading the tables.
    pub fn mark(&mut self) -> Result<()> {
        self.capture.close_windows();
        self.capture.clear()?;
        self.take_events();
        self.accounts.forget_all();
        self.retirement.forget_counts();
        self.begin_window();
        Ok(())
    }
}

/// What the targets have resident.
fn resident(processes: &[TracedProcess]) -> Bytes {
    let sizes = processes.iter().filter_map(|process| residency::rss(process.target.pid()).ok());
    Bytes(sizes.map(|bytes| bytes.0).sum())
}
