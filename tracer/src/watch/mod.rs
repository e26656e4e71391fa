//! The service: looks at the memory of containers, services and processes, and records those that a condition holds for.
//!
//! [`subject`] finds who there is, [`reading`] what the kernel says of their memory, [`engine`] decides, [`recorder`] records in a
//! process of its own, [`store`] keeps the reports, [`serve`] says by HTTP what there is. While no condition holds there is no probe and no
//! BPF program.

mod budget;
pub mod condition;
mod container;
mod digest;
mod engine;
#[cfg(test)]
mod fixtures;
mod hook;
mod kernel_log;
mod oom_kills;
mod processes;
mod push;
mod query;
mod query_answers;
mod reading;
mod recorder;
mod scanner;
pub mod serve;
mod store;
pub mod subject;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, anyhow};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Interval, interval, sleep, timeout},
};

use self::{
    budget::Budget,
    condition::Condition,
    engine::{Decision, Rules, Watched},
    hook::Hook,
    kernel_log::{KernelLog, Victim},
    oom_kills::OomKills,
    push::{Pace, Push, PushedProfile},
    query::PendingProfile,
    recorder::{Order, Recording, RecordingUpdate, Took},
    scanner::Scanner,
    serve::{Listen, Server},
    store::{Ending, Entry, State, Store},
    subject::{Selection, SubjectId},
    view::{EventTotals, View, bounded},
};
pub use self::{push::PushTarget, recorder::Method, store::Retention};
use crate::{
    model::{Bytes, Pid},
    record::CostLimit,
    report::{Format, human::printable},
    target::Target,
};

/// What the service does.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whom it watches.
    pub selection: Selection,
    /// When it records.
    pub conditions: Vec<Condition>,
    /// How long.
    pub record: Duration,
    /// How many at a time.
    pub at_most: usize,
    /// Time between two recordings of one subject.
    pub cool_down: Duration,
    /// Time between readings.
    pub interval: Duration,
    /// Mean bytes between sampled allocations; 0 for every one.
    pub sample: Bytes,
    /// What a recording looks at, and how.
    pub mode: Method,
    /// What all recordings together may take of the machine's CPU time.
    pub cpu_budget: CostLimit,
    /// What is run after each recording, by the shell.
    pub command: Option<String>,
    /// Where the profiles are sent.
    pub push: Vec<PushTarget>,
    /// Where the reports go.
    pub directory: PathBuf,
    /// How many of them are kept.
    pub retention: Retention,
    /// Where it answers HTTP requests.
    pub listen: Listen,
    /// The file with the token that requests must give.
    pub token_file: Option<PathBuf>,
}

impl Default for Config {
    /// Nobody is watched, by the default of every option.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            selection: Selection::default(),
            conditions: vec![DEFAULT_CONDITION.parse().expect("it is one")],
            record: Duration::from_secs(2 * 60),
            at_most: 1,
            cool_down: Duration::from_secs(15 * 60),
            interval: Duration::from_secs(10),
            sample: Bytes(0),
            mode: Method::Auto(CostLimit::default()),
            cpu_budget: CostLimit::of_per_mille(20),
            command: None,
            push: Vec::new(),
            directory: "/var/lib/tracer".into(),
            retention: Retention { count: 200, age: DAY * 30, bytes: 2 << 30 },
            listen: Listen::Tcp((Ipv4Addr::LOCALHOST, DEFAULT_PORT).into()),
            token_file: None,
        }
    }
}

/// Where it listens, on loopback. Nobody else has it in Prometheus' list of default ports.
const DEFAULT_PORT: u16 = 9497;

/// When to record, where nothing else is said.
pub const DEFAULT_CONDITION: &str = "usage > 80% for 5m";

impl Config {
    fn rules(&self) -> Rules {
        Rules {
            conditions: self.conditions.clone(),
            at_most: self.at_most,
            cool_down: self.cool_down,
            interval: self.interval,
        }
    }

    /// CPU time that recordings may take in an hour.
    fn cpu_time_an_hour(&self) -> Duration {
        let cpus = aya::util::online_cpus().map_or(1, |cpus| cpus.len());
        self.cpu_budget.of(budget::PERIOD * u32::try_from(cpus).unwrap_or(1))
    }
}

/// Time between looks at who is being recorded: the kernel's kill may be near.
const CLOSE_LOOK: Duration = Duration::from_millis(500);

/// Time that recordings have to write their reports when the service ends.
const FAREWELL: Duration = Duration::from_secs(30);

/// Time that the command of the last recordings has then.
const FAREWELL_OF_COMMAND: Duration = Duration::from_secs(5);

/// Watches until SIGTERM or Ctrl-C. `reload` is asked for another configuration at SIGHUP.
///
/// # Errors
/// When the directory cannot be used, or nobody can listen there.
pub async fn run(config: Config, reload: impl Fn() -> Result<Config>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut server = Server::start(&config.listen, config.token_file.as_deref()).await?;
    let mut service = Service::new(config)?;
    let mut looks = Looks::every(service.config.interval);
    let mut close_looks = Looks::every(CLOSE_LOOK);
    say(&format!("watching {}", service.scanner.of_what()));
    if let Some(place) = server.place() {
        say(&format!("serving at {place}"));
    }
    loop {
        select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hang_up.recv() => {
                let reloaded = reload().and_then(|config| {
                    server.reload(config.token_file.as_deref())?;
                    Ok(config)
                });
                match reloaded {
                    Ok(config) => service.reconfigure(config),
                    Err(error) => log::error!("the configuration stays as it was: {error:#}"),
                }
                looks = Looks::every(service.config.interval);
            }
            Some((name, news)) = service.news.recv() => service.hear(&name, news),
            () = looks.due() => looks.take(|| service.look()),
            () = close_looks.due(), if !service.ongoing.is_empty() => close_looks.take(|| service.look_closely()),
            Some(query) = server.query() => service.answer(query),
        }
    }
    drop(server);
    service.say_farewell().await;
    Ok(())
}

/// When to look.
struct Looks(Interval);

impl Looks {
    fn every(time: Duration) -> Self {
        Self(interval(time))
    }

    async fn due(&mut self) {
        self.0.tick().await;
    }

    fn take(&mut self, look: impl FnOnce()) {
        let began = Instant::now();
        look();
        self.took(began.elapsed());
    }

    /// For as long as a look took everybody else has their turn: where it takes longer than the time between two, as on a machine that hardly
    /// gives the service a CPU, one would always be due, and nobody who asks would be heard.
    fn took(&mut self, time: Duration) {
        self.0.reset_after(self.0.period().saturating_sub(time).max(time));
    }
}

/// What would be watched, as text. Nothing is changed.
///
/// # Errors
/// When the directory cannot be used.
pub fn check(config: &Config) -> Result<String> {
    store::check(&config.directory)?;
    serve::check(&config.listen, config.token_file.as_deref())?;
    let mut scanner = Scanner::new(config.selection.clone(), config.rules());
    scanner.look(now());
    let mut lines = vec![scanner.of_what()];
    lines.extend(config.conditions.iter().map(|condition| format!("records when {condition}")));
    lines.push(format!(
        "recordings may take {} of the machine's CPU time: {:.0} s an hour",
        config.cpu_budget,
        config.cpu_time_an_hour().as_secs_f64()
    ));
    if let Err(error) = KernelLog::open() {
        lines.push(format!("the kernel's log cannot be read ({error}): kills in groups that are removed at once are not counted"));
    }
    lines.push(format!("reports go to {}", config.directory.display()));
    lines.extend(config.push.iter().map(|destination| format!("profiles are sent to {destination}")));
    lines.push(format!("listens at {}", config.listen));
    let seen = scanner.lines();
    lines.push(match seen.len() {
        0 => "nobody is there to be watched now".into(),
        number => format!("watches {number} now:"),
    });
    lines.extend(seen.iter().map(|line| format!("  {}", printable(line))));
    Ok(lines.join("\n") + "\n")
}

/// The service.
struct Service {
    config: Config,
    scanner: Scanner,
    store: Store,
    hook: Option<Hook>,
    push: Push,
    ongoing: BTreeMap<String, Ongoing>,
    oom_kills: OomKills,
    /// Where it may be read.
    kernel_log: Option<KernelLog>,
    budget: Budget,
    /// Somebody should be recorded, and there is no CPU time for it.
    waits_for_budget: bool,
    news: UnboundedReceiver<(String, RecordingUpdate)>,
    teller: UnboundedSender<(String, RecordingUpdate)>,
    tally: EventTotals,
    /// Recordings on demand so far.
    demands: u64,
    /// What was shown last, until something changes.
    view: Option<Arc<View>>,
}

/// A recording that goes on.
struct Ongoing {
    id: SubjectId,
    recording: Recording,
    /// Counted before it.
    oom_kills: u64,
    note: Option<String>,
    /// CPU time that it may take, and what it and its probes took.
    promised: Duration,
    took: Took,
    /// Who waits for its profile.
    asked: Option<PendingProfile>,
}

impl Service {
    fn new(config: Config) -> Result<Self> {
        let (teller, news) = unbounded_channel();
        let store = Store::open(&config.directory, config.retention)?;
        let mut budget = Budget::full(config.cpu_time_an_hour(), now());
        budget.use_up(store.cpu_time_since(SystemTime::now(), budget::PERIOD));
        let mut push = Push::new(store.directory().join("spool"), Pace::default());
        push.set(&config.push);
        Ok(Self {
            scanner: Scanner::new(config.selection.clone(), config.rules()),
            store,
            push,
            hook: config.command.as_deref().map(|command| Hook::new(command, hook::LIMIT)),
            ongoing: BTreeMap::new(),
            oom_kills: OomKills::default(),
            kernel_log: KernelLog::open()
                .inspect_err(|error| log::info!("the kernel's log cannot be read: {error}"))
                .ok(),
            budget,
            waits_for_budget: false,
            news,
            teller,
            tally: EventTotals::begun(SystemTime::now()),
            demands: 0,
            view: None,
            config,
        })
    }

    /// Goes on by another configuration; the directory stays.
    fn reconfigure(&mut self, config: Config) {
        if config.directory != self.config.directory {
            log::warn!(
                "reports go on to {}: another --dir takes a new start",
                self.config.directory.display()
            );
        }
        if config.listen != self.config.listen {
            log::warn!("it goes on to listen at {}: another --listen takes a new start", self.config.listen);
        }
        self.scanner.set(config.selection.clone(), config.rules());
        self.store.set_retention(config.retention);
        self.budget.resize(config.cpu_time_an_hour());
        if self.hook.as_ref().map(Hook::command) != config.command.as_deref() {
            // Those that wait are run by the one that was.
            self.hook = config.command.as_deref().map(|command| Hook::new(command, hook::LIMIT));
        }
        self.push.set(&config.push);
        let Config { directory, listen, .. } = self.config.clone();
        self.config = Config { directory, listen, ..config };
        self.view = None;
        say("the configuration has been read again");
    }

    fn look(&mut self) {
        let began = Instant::now();
        self.scanner.look(now());
        self.count_oom_kills();
        self.tally.looks += 1;
        self.tally.looking += began.elapsed();
        self.view = None;
        let mut waits = false;
        for decision in self.scanner.engine.decide(now()) {
            let Decision::Record { id, trigger, pids } = decision else { continue };
            match self.promise() {
                Some(promised) => self.record(&id, &trigger, &pids, promised),
                None => waits = true,
            }
        }
        if waits && !self.waits_for_budget {
            let wait = Duration::from_secs(self.budget.wait().as_secs().max(1));
            let wait = humantime::format_duration(wait);
            log::warn!(
                "there is no CPU time for another recording (--cpu-budget {}): it waits for {wait}",
                self.config.cpu_budget
            );
        }
        self.waits_for_budget = waits;
    }

    /// Counts whom the kernel has killed since the last look, of those, too, who have no process any more or are gone.
    fn count_oom_kills(&mut self) {
        let Self { scanner, oom_kills, kernel_log, .. } = self;
        let now = now();
        for Victim { group, comm, pid } in kernel_log.iter_mut().flat_map(KernelLog::victims) {
            if let Some((group, subject)) = scanner.whose(&group) {
                oom_kills.logged(now, &group, &subject);
            }
            // Processes that are watched by themselves, besides.
            for Watched { subject, .. } in scanner.engine.watched() {
                let is_it = match &subject.id {
                    SubjectId::Group(_) => false,
                    SubjectId::Name(name) => *name == comm,
                    SubjectId::Process(process, _) => *process == pid,
                };
                if is_it {
                    oom_kills.count(now, &subject.identity.name);
                }
            }
        }
        let mut present = BTreeSet::new();
        for Watched { subject, reading, history, .. } in scanner.engine.watched() {
            present.insert(bounded(&subject.identity.name));
            if let (SubjectId::Group(group), false) = (&subject.id, history.is_empty()) {
                oom_kills.read(now, group, &subject.identity.name, reading.events.oom_kill);
            }
        }
        for (group, subject) in oom_kills.left(|group| scanner.is_watched(group)) {
            match scanner.oom_kills(&group) {
                Some(kills) => oom_kills.read(now, &group, &subject, kills),
                None => oom_kills.gone(&group),
            }
        }
        oom_kills.forget(now, &present);
    }

    /// CPU time for another recording.
    fn promise(&mut self) -> Option<Duration> {
        let free = self.config.at_most.saturating_sub(self.ongoing.len());
        self.budget.promise(now(), free)
    }

    /// Looks at those that are being recorded, and has their reports written when they are about to be killed.
    fn look_closely(&mut self) {
        for (name, Ongoing { id, recording, asked, .. }) in &self.ongoing {
            if let Some(asked) = asked {
                if asked.answer.is_closed() {
                    recording.kill();
                }
                continue;
            }
            let Some(before) = self.scanner.read(now(), id) else { continue };
            if let Some(Decision::Write { why, .. }) = self.scanner.engine.write(now(), id, &before)
                && recording.write()
            {
                say(&format!("{name}: {why}: its reports are written now"));
            }
        }
    }

    fn record(&mut self, id: &SubjectId, trigger: &str, pids: &[Pid], promised: Duration) {
        let Some(watched) = self.scanner.engine.get(id) else { return };
        let subject = watched.subject.identity.name.clone();
        let (note, oom_kills) = (watched.reading.parts.not_ours(), self.oom_kills.of(&subject));
        let targets = traceable(&subject, pids);
        let processes =
            targets.iter().map(|target| format!("{} ({})", target.comm(), target.pid())).collect();
        self.view = None;
        let name = self.store.begin(&subject, trigger, processes, SystemTime::now());
        self.scanner.engine.began(id);
        let order = Order {
            name: name.clone(),
            pids: targets.iter().map(Target::pid).collect(),
            time: self.config.record,
            sample: self.config.sample,
            mode: self.config.mode,
            max_cpu: promised,
            outputs: self.store.outputs(&name).collect(),
        };
        let begun = match &order.pids[..] {
            [] => Err(anyhow!("none of its processes can be traced")),
            _ => Recording::begin(&order, self.teller.clone()),
        };
        match begun {
            Ok(recording) => {
                say(&format!("{name}: recording {subject}, since {trigger}"));
                let (id, took) = (id.clone(), Took::default());
                let ongoing = Ongoing { id, recording, oom_kills, note, promised, took, asked: None };
                self.ongoing.insert(name, ongoing);
            }
            Err(error) => {
                self.budget.settle(promised, Duration::ZERO);
                let error = Some(format!("{error:#}"));
                self.ended(&name, id, Ending { error, ..Ending::default() });
            }
        }
    }

    fn hear(&mut self, name: &str, news: RecordingUpdate) {
        self.view = None;
        match news {
            RecordingUpdate::Attached => {
                if let Some(ongoing) = self.ongoing.get_mut(name) {
                    say(&format!("{name}: its probes are in"));
                    ongoing.recording.attached();
                }
            }
            RecordingUpdate::Wrote => self.store.wrote(name),
            RecordingUpdate::Noted(note) => {
                say(&format!("{name}: {note}"));
                if let Some(ongoing) = self.ongoing.get_mut(name) {
                    let notes = [ongoing.note.take(), Some(note)];
                    ongoing.note = Some(notes.into_iter().flatten().collect::<Vec<_>>().join("; "));
                }
            }
            RecordingUpdate::Took(took) => {
                if let Some(ongoing) = self.ongoing.get_mut(name) {
                    ongoing.took += took;
                }
            }
            RecordingUpdate::Ended(error) => {
                let Some(Ongoing { id, oom_kills, note, promised, took, asked, .. }) =
                    self.ongoing.remove(name)
                else {
                    return;
                };
                self.budget.settle(promised, took.all());
                self.tally.took += took;
                if let Some(asked) = asked {
                    return self.give(name, &id, asked, error);
                }
                self.scanner.read(now(), &id);
                self.count_oom_kills();
                let subject =
                    self.scanner.engine.get(&id).map(|watched| watched.subject.identity.name.as_str());
                let kills = subject.map_or(0, |subject| self.oom_kills.of(subject));
                let oom_kills = kills.saturating_sub(oom_kills);
                self.ended(name, &id, Ending { error, note, oom_kills, took: took.all() });
            }
        }
    }

    fn ended(&mut self, name: &str, id: &SubjectId, ending: Ending) {
        self.scanner.engine.ended(now(), id);
        let counted = ending.oom_kills;
        let Some(entry) = self.store.end(name, ending).cloned() else { return };
        if entry.oom_kills > counted {
            self.oom_kills.count(now(), &entry.subject);
        }
        if let Some(hook) = &self.hook {
            hook.recorded(&entry, self.store.directory());
        }
        self.send(id, &entry);
        self.tally.count(&entry.trigger, entry.state.into());
        self.tally.lost += entry.digest.as_ref().map_or(0, |digest| digest.lost);
        let verdict = entry.digest.as_ref().and_then(|digest| digest.verdict.as_deref());
        match (entry.state, &entry.error) {
            (State::Done, None) => say(&format!("{name}: {}", verdict.unwrap_or("recorded"))),
            (_, error) => log::error!("{name}: {}", error.as_deref().unwrap_or("no report was written")),
        }
    }

    /// Sends a recording to where profiles are collected.
    fn send(&self, id: &SubjectId, entry: &Entry) {
        let Some(digest) = &entry.digest else { return };
        let Some(file) = entry.files.iter().find(|file| file.ends_with(Format::Pprof.ending())) else {
            return;
        };
        let identity = self.scanner.engine.get(id).map(|watched| watched.subject.identity.clone());
        let identity = identity.unwrap_or_default();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let labels = [
            ("host", Some(host)),
            ("condition", Some(entry.trigger.clone())),
            ("container_id", identity.container_id),
            ("namespace", identity.namespace),
            ("pod", identity.pod),
            ("pod_uid", identity.pod_uid),
            ("container", identity.container),
        ];
        let labels = labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        let profile = PushedProfile {
            name: entry.name.clone(),
            service: entry.subject.clone(),
            labels,
            from: entry.started,
            until: entry.started + (digest.seconds.ceil() as u64).max(1),
        };
        self.push.send(&profile, &self.store.directory().join(file));
    }

    /// Lets the recordings write what they have.
    async fn say_farewell(&mut self) {
        self.ongoing.values().for_each(|ongoing| ongoing.recording.finish());
        let all = async {
            while !self.ongoing.is_empty() {
                if let Some((name, news)) = self.news.recv().await {
                    self.hear(&name, news);
                }
            }
        };
        if timeout(FAREWELL, all).await.is_err() {
            log::warn!("recordings did not end in time: what they had written before stays");
            self.ongoing.values().for_each(|ongoing| ongoing.recording.kill());
            // The kernel takes a moment to remove their probes.
            sleep(Duration::from_millis(100)).await;
        }
        if let Some(hook) = self.hook.take() {
            hook.finish(FAREWELL_OF_COMMAND).await;
        }
    }
}

/// Those that can be traced: one that cannot would keep the others from being recorded.
fn traceable(subject: &str, pids: &[Pid]) -> Vec<Target> {
    let open = |&pid| Target::open(pid).inspect_err(|error| log::warn!("{subject}: left out: {error}")).ok();
    pids.iter().filter_map(open).collect()
}

/// Time since the machine was started, also while it slept.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Says what goes as it should.
fn say(line: &str) {
    use std::io::Write as _;
    _ = writeln!(std::io::stderr(), "tracer: {}", printable(line));
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn others_have_as_much_time_as_a_look_takes() {
        let mut looks = Looks::every(Duration::from_secs(1));
        looks.due().await;
        for (took_ms, left_ms) in [(100, 900), (800, 800), (60_000, 60_000), (0, 1000)] {
            let took = Duration::from_millis(took_ms);
            advance(took).await;
            looks.took(took);
            let over = Instant::now();
            looks.due().await;
            assert_eq!(over.elapsed(), Duration::from_millis(left_ms), "after {took:?}");
        }
    }
}
