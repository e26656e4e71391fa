//! One recording, from opening the targets to the profile: the stages in their order.
//!
//! Probes go in, the window opens, events are drained until something ends it, the window closes, probes come out, and what
//! the kernel counted is read at rest.

mod address_space;
mod allocators;
mod children;
mod clock;
mod code;
mod cost_limit;
mod debug_files;
mod detours;
mod findings;
mod found;
mod growth;
mod hotspot;
mod observer;
mod oom;
mod overhead;
mod process;
mod pythons;
mod requests;
mod resident_memory;
mod retire;
mod sampling;
mod session;
mod trial;

use std::{
    fs::File,
    future::{pending, poll_fn},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use anyhow::{Context as _, Error, Result};
use tokio::{
    io::unix::AsyncFd,
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::UnboundedReceiver,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};

pub use self::{
    cost_limit::CostLimit,
    findings::Findings,
    observer::Observer,
    process::plan_of,
    requests::Request,
    trial::{GROWTH, SAMPLED},
};
use self::{oom::OomKills, requests::Requests, resident_memory::When, session::Session};
use crate::{
    model::{Bytes, End, Mode, Pid, Profile},
    plan::Declarations,
    readable, signals,
    symbolize::{Debuginfod, Wish},
    target::{
        Subject, Target,
        choice::Choice,
        launch::{Launched, Preload},
    },
};

/// What to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What to trace.
    pub subject: Subject,
    /// How long; until Ctrl-C or the end of the targets if not given.
    pub duration: Option<Duration>,
    /// Only blocks at least this old at the end count as outstanding.
    pub min_age: Duration,
    /// Only requests of at least this many bytes are tracked.
    pub min_size: Option<Bytes>,
    /// Only requests of at most this many bytes are tracked.
    pub max_size: Option<Bytes>,
    /// Mean bytes between sampled allocations; 0 tracks every one.
    pub sample: Bytes,
    /// The library that is loaded into a command to sample its allocations; the one that came with tracer if not given.
    pub sampler: Option<PathBuf>,
    /// Whether to trace the children of the targets, too.
    pub follow: bool,
    /// Whether frames stay that only say how a language runtime works.
    pub native_frames: bool,
    /// Room in the live table; sized for the targets if not given.
    pub max_live: Option<u64>,
    /// Time between snapshots of the timeline.
    pub interval: Duration,
    /// Allocators that only the user knows.
    pub declarations: Declarations,
    /// What to look at.
    pub mode: Mode,
    /// The most that probes may take; where they take more, what makes the memory grow is recorded instead. Of processes that run already.
    pub max_cost: Option<CostLimit>,
    /// The most CPU time that this process and its probes may take; more ends the recording.
    pub max_cpu: Option<Duration>,
    /// Open a new window so long after the first one.
    pub mark_after: Option<Duration>,
    /// Where the output of a launched command goes; to the tracer's own if not given.
    pub command_output: Option<PathBuf>,
    /// Whether servers are to be asked for debug files.
    pub debuginfod: Wish,
}

impl Default for Config {
    /// Nobody is traced, by the default of every option.
    fn default() -> Self {
        Self {
            subject: Subject::Processes(Vec::new()),
            duration: None,
            min_age: Duration::ZERO,
            min_size: None,
            max_size: None,
            sample: Bytes(0),
            sampler: None,
            follow: false,
            native_frames: false,
            max_live: None,
            interval: Duration::from_secs(1),
            declarations: Declarations::default(),
            mode: Mode::Allocations,
            max_cost: None,
            max_cpu: None,
            mark_after: None,
            command_output: None,
            debuginfod: Wish::default(),
        }
    }
}

/// What came of a recording.
#[derive(Debug)]
pub struct Recorded {
    /// What was found out.
    pub profile: Profile,
    /// The launched command, which may still be running.
    pub command: Option<Launched>,
    /// Why it ended before it should have.
    pub failure: Option<Error>,
}

/// Records until the time is over, the targets end, or Ctrl-C; then gives what was found. A launched command may go on.
/// Besides signals, `keys` can ask something of it.
///
/// # Errors
/// One line that says what is in the way and what to do: a process that cannot be traced, a missing capability, a kernel
/// that is too old.
pub async fn record(
    config: &Config,
    keys: UnboundedReceiver<Request>,
    observer: &mut dyn Observer,
) -> Result<Recorded> {
    let debuginfod = Debuginfod::wanted(&config.debuginfod)?.map(Arc::new);
    let mut interrupts = Interrupts::new()?;
    let requests = Requests::listen(keys)?;
    let mut launched = launch(config)?;
    let targets = match (&launched, &config.subject) {
        (Some(launched), _) => vec![launched.pid()],
        (None, Subject::Processes(pids)) => pids.clone(),
        (None, Subject::Chosen(choice)) => traceable(choice)?,
        (None, Subject::Command(_)) => Vec::new(),
    };
    let mut oom_kills = OomKills::before(&targets);
    let (mut session, mut exits) = attach(config, &targets)?;
    match &mut launched {
        Some(launched) => session.start(launched)?,
        None if config.max_cost.is_some() => {}
        None => session.check_allocators()?,
    }
    let mut asked = PendingRequests {
        requests,
        observer: &mut *observer,
        debug_files: debuginfod.clone(),
        snapshot: false,
        mark: false,
    };
    let mut watching = Watching { config, interrupts: &mut interrupts };
    let mut ended = None;
    if let Some(limit) = config.max_cost {
        ended = watching.choose(limit, &targets, &mut session, &mut asked, &mut exits).await?;
    }
    let announcement = session.announcement();
    asked.observer.begin(&announcement)?;

    asked.requests.mark_after(config.mark_after);
    let watched = match ended {
        Some(end) => Ok(end),
        None => watching.watch(config.duration, &mut session, &mut asked, &mut exits).await,
    };
    // What was recorded until then is worth as much as before.
    let (end, failure) = watched.map_or_else(|error| (End::Failed, Some(error)), |end| (end, None));
    let end = oom_kills.judge(end);
    if let Some(name) = session.who_lost_gate() {
        asked.observer.say(&format!(
            "somebody has closed the gate of {name}, so the recording ends: what was freed since then is not known"
        ));
    }
    session.close_window(end);
    observer.finish();
    signals::let_signals_kill();
    log::info!("removing the probes");
    let mut findings = session.finish()?;
    if let Some(debuginfod) = &debuginfod {
        debug_files::name(&mut findings, debuginfod, observer);
    }
    let profile = findings.profile();
    if config.max_cpu.is_some() {
        let took_ns = profile.overhead.map_or(0, |overhead| overhead.tracing_ns);
        observer.say(&format!("{PROBES_TOOK}{:.3} s", took_ns as f64 / 1e9));
    }
    if end == End::Interrupted
        && let Some(launched) = &launched
    {
        // A terminal's Ctrl-C reached the command too; a supervisor's SIGTERM did not.
        interrupts.pass_on(launched);
    }
    Ok(Recorded { profile, command: launched, failure })
}

/// Puts the probes in, and opens the window.
fn attach(config: &Config, targets: &[Pid]) -> Result<(Session, Exits)> {
    let mut session = Session::attach(config, targets)?;
    let exits = Exits::watch(session.exit_descriptors()?)?;
    session.open_window()?;
    Ok((session, exits))
}

/// The chosen processes that can be traced. Of many, some may not be able to, or have gone.
fn traceable(choice: &Choice) -> Result<Vec<Pid>> {
    let mut refused = Vec::new();
    let mut pids = choice.pids()?;
    pids.retain(|&pid| Target::open(pid).map_err(|error| refused.push(error)).is_ok());
    let mut refused = refused.into_iter();
    if pids.is_empty() {
        return Err(refused.next().context("no process was chosen")?.into());
    }
    refused.for_each(|error| log::warn!("left out: {error}"));
    Ok(pids)
}

fn launch(config: &Config) -> Result<Option<Launched>> {
    let Subject::Command(command) = &config.subject else { return Ok(None) };
    let output = config.command_output.as_ref().map(|path| {
        File::create(path).with_context(|| format!("cannot write the command's output to {}", path.display()))
    });
    let preload = preload(config)?;
    let (program, arguments) = (&command.program, &command.arguments);
    Ok(Some(Launched::spawn(program, arguments, command.as_root, output.transpose()?, preload.as_ref())?))
}

/// The sampler to load into the command, where a sample is wanted. Without it the functions are probed.
fn preload(config: &Config) -> Result<Option<Preload>> {
    if config.sample == Bytes(0) {
        return Ok(None);
    }
    match Preload::find(config.sampler.as_deref(), config.sample) {
        Ok(preload) => Ok(Some(preload)),
        Err(error) if config.sampler.is_some() => Err(error.into()),
        Err(error) => {
            log::warn!("the command does not sample itself, its functions are probed: {error}");
            Ok(None)
        }
    }
}

/// Looks after a recording while its window is open.
struct Watching<'a> {
    config: &'a Config,
    interrupts: &'a mut Interrupts,
}

impl Watching<'_> {
    /// Takes events and snapshots until something ends the window.
    async fn watch(
        &mut self,
        duration: Option<Duration>,
        session: &mut Session,
        asked: &mut PendingRequests<'_>,
        exits: &mut Exits,
    ) -> Result<End> {
        let Self { config, interrupts } = self;
        let started = Instant::now();
        let deadline = duration.map(|duration| started + duration);
        let mut snapshots = interval_at(started + config.interval, config.interval);
        snapshots.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut looks = interval_at(started + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            select! {
                biased;
                () = interrupts.next() => return Ok(End::Interrupted),
                () = at(deadline) => return Ok(End::Duration),
                // A program may be executed and over before anybody looks.
                () = exits.all(), if !config.follow => {
                    let executed = session.target_has_executed();
                    return Ok(if executed { End::TargetExec } else { End::TargetExited });
                }
                request = asked.requests.next() => match request {
                    Request::Snapshot => asked.snapshot = true,
                    Request::Mark => asked.mark = true,
                    Request::End => return Ok(End::Interrupted),
                },
                ready = session.events_ready() => ready?,
                _ = snapshots.tick() => {
                    session.snapshot(When::Affordable);
                    if session.who_lost_gate().is_some() {
                        return Ok(End::Interrupted);
                    }
                }
                _ = looks.tick() => {
                    session.follow_stale_code();
                    session.note_sizes(When::Affordable);
                    session.retire_stacks();
                    session.look_at_overhead();
                    session.find_trampolines();
                    if asked.observer.wants_status() {
                        asked.observer.show(&session.status());
                    }
                    if let Some(why) = costs_too_much(config, session, started.elapsed()) {
                        asked.observer.say(&format!("ended early, since {why}"));
                        return Ok(End::Interrupted);
                    }
                    if ends_with_its_room(config, started.elapsed()) && session.is_out_of_room() {
                        asked.observer.say(OUT_OF_ROOM);
                        return Ok(End::Interrupted);
                    }
                }
            }
            session.take_events();
            asked.answer(session)?;
            if session.target_has_executed() {
                return Ok(End::TargetExec);
            }
            if session.everyone_is_gone() {
                return Ok(End::TargetExited);
            }
        }
    }
}

/// How a line begins that says what CPU time of the targets the probes took: for who keeps within [`Config::max_cpu`].
pub const PROBES_TOOK: &str = "probes took CPU time: ";

const OUT_OF_ROOM: &str =
    "ended early, since there is no room for more live blocks: --max-live N makes more, --sample takes less";

/// A window that is whole tells more than a longer one of which blocks are missing. Nobody waits for the end of one that has none, who chose
/// the room has chosen what is lost, and a mark makes room.
fn ends_with_its_room(config: &Config, time: Duration) -> bool {
    let awaits_mark = config.mark_after.is_some_and(|mark| time < mark);
    config.duration.is_some() && config.max_live.is_none() && !awaits_mark
}

/// How long it takes until what probes took is what they take: at first targets make up for what they missed while the probes went in.
const SETTLED: Duration = Duration::from_secs(5);

/// Targets may do something else than when the probes were tried, and the whole of it may be too much.
fn costs_too_much(config: &Config, session: &Session, time: Duration) -> Option<String> {
    let overhead = session.overhead();
    if time >= SETTLED
        && let (Some(limit), Some(overhead)) = (config.max_cost, overhead)
        // Threads, which may be many, are looked at only where they matter.
        && limit.tolerated().is_exceeded(overhead, session.cpus(), Duration::ZERO)
        && limit.tolerated().is_exceeded(overhead, session.cpus(), session.time_had())
    {
        return Some(too_much(overhead.percent, limit));
    }
    let probes_ns = overhead.map_or(0, |overhead| overhead.tracing_ns);
    let taken = own_cpu_time() + Duration::from_nanos(probes_ns);
    let is_too_much = config.max_cpu.is_some_and(|limit| taken > limit);
    is_too_much.then(|| {
        let taken = taken.as_secs_f64();
        format!("it has taken {taken:.1} s of CPU time, which is all that it may (--cpu-budget)")
    })
}

/// Of all threads of this process.
fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn too_much(percent: f64, limit: CostLimit) -> String {
    format!("probes took {percent:.0} % of the CPU time, of at most {limit} (--max-cost)")
}

/// What was asked of the recording, until it is done.
struct PendingRequests<'a> {
    requests: Requests,
    observer: &'a mut dyn Observer,
    /// Names what is seen before the end, as far as the cache has it.
    debug_files: Option<Arc<Debuginfod>>,
    snapshot: bool,
    mark: bool,
}

impl PendingRequests<'_> {
    /// Does what can be done now; the rest has to wait until the findings before are dealt with.
    fn answer(&mut self, session: &mut Session) -> Result<()> {
        if session.is_being_read() {
            return Ok(());
        }
        let ready = self.observer.is_ready();
        let started = Instant::now();
        let took = |what| log::debug!("{what} took {:?} of the time for events", started.elapsed());
        if self.snapshot && ready {
            self.snapshot = false;
            session.snapshot(When::Now);
            self.observer.snapshot(session.findings().with_names_of(self.debug_files.as_ref()));
            took("a snapshot");
        } else if self.mark && !self.snapshot {
            self.mark = false;
            session.mark().context("no new window can be opened")?;
            took("a mark");
            self.observer.marked();
            self.observer.say("marked: from now on only new allocations count");
        } else if ready && self.observer.wants_findings() {
            self.observer.look(session.findings().with_names_of(self.debug_files.as_ref()));
            took("a look");
        }
        Ok(())
    }
}

/// Time between looks at the ring buffer and the status line, whatever happens.
const LOOK: Duration = Duration::from_millis(200);

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// What a user or a service manager says to end the recording.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal was closed, or the connection lost; none when that shall not matter.
    hang_up: Option<Signal>,
    got: Option<rustix::process::Signal>,
}

impl Interrupts {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: (!signals::hang_up_is_ignored()).then(|| listen(SignalKind::hangup())).transpose()?,
            got: None,
        })
    }

    async fn next(&mut self) {
        select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => self.got = Some(rustix::process::Signal::TERM),
            () = received(&mut self.hang_up) => self.got = Some(rustix::process::Signal::HUP),
        }
    }

    /// Gives the command the signal that reached the tracer alone.
    fn pass_on(&self, launched: &Launched) {
        if let Some(signal) = self.got {
            launched.signal(signal);
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => pending().await,
    }
}

/// The exits of the targets.
struct Exits(Vec<AsyncFd<OwnedFd>>);

impl Exits {
    fn watch(pidfds: Vec<OwnedFd>) -> io::Result<Self> {
        Ok(Self(pidfds.into_iter().map(readable::watch).collect::<io::Result<_>>()?))
    }

    /// Ready when every target has exited.
    async fn all(&mut self) {
        poll_fn(|context| {
            self.0.retain(|pidfd| pidfd.poll_read_ready(context).is_pending());
            if self.0.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether every target exits now. One that is being killed cannot be attached to some time before it has exited, the longer the
    /// more memory it has.
    async fn all_soon(&mut self) -> bool {
        timeout(Duration::from_secs(2), self.all()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_somebody_waits_for_ends_with_its_room() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let bounded = Config { duration: Some(minute), ..Config::default() };
        assert!(ends_with_its_room(&bounded, second));
        assert!(!ends_with_its_room(&Config::default(), second));
        assert!(!ends_with_its_room(&Config { max_live: Some(1000), ..bounded.clone() }, second));
        let marked = Config { mark_after: Some(10 * second), ..bounded };
        assert!(!ends_with_its_room(&marked, second) && ends_with_its_room(&marked, 11 * second));
    }
}
