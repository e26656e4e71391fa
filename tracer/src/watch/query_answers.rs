//! Answers to those who ask by HTTP: the view, and recordings on demand.
//!
//! Such a recording is one like the others, within the same limit, but its profile goes to who asked for it and is not kept: who asks every
//! minute would push out what was recorded when it mattered. Nor does it change when conditions hold, or begin a cool-down.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    Ongoing, Service, now,
    query::{PendingProfile, ProfileRequest, Query, Refusal},
    recorder::{Order, Recording, Took},
    say,
    store::{State, UNFINISHED},
    subject::SubjectId,
    traceable,
    view::{self, CpuTime, Outcome, REQUEST, View, bounded},
};
use crate::target::Target;

impl Service {
    pub(super) fn answer(&mut self, query: Query) {
        match query {
            // Who went away does not want it any more.
            Query::View(answer) => _ = answer.send(self.view()),
            Query::Profile(demand) => self.record_on_demand(demand),
        }
    }

    /// Made once for all who ask between two looks.
    fn view(&mut self) -> Arc<View> {
        if let Some(view) = &self.view {
            return Arc::clone(view);
        }
        let view = Arc::new(View {
            subjects: view::subjects(&self.scanner.engine, now()),
            conditions: self.config.conditions.iter().map(ToString::to_string).collect(),
            recordings: self.store.entries().to_vec(),
            directory: self.config.directory.clone(),
            tally: self.tally.clone(),
            oom_kills: self.oom_kills.all(
                self.scanner
                    .engine
                    .watched()
                    .map(|watched| bounded(&watched.subject.identity.name))
                    .collect(),
            ),
            ongoing: self.ongoing.len(),
            cpu_time: CpuTime {
                left: self.budget.left(),
                an_hour: self.budget.size(),
                is_waited_for: self.waits_for_budget,
            },
            at_most: self.config.at_most,
        });
        self.view = Some(Arc::clone(&view));
        view
    }

    fn record_on_demand(&mut self, ProfileRequest { subject, time, answer }: ProfileRequest) {
        match self.begin_on_demand(&subject, time) {
            Ok(begun) => self.wait_with(begun, answer),
            Err(refusal) => _ = answer.send(Err(refusal)),
        }
    }

    fn begin_on_demand(&mut self, subject: &str, time: Duration) -> Result<ProfileRecording, Refusal> {
        let engine = &self.scanner.engine;
        let names = view::names(engine.watched().map(|watched| watched.subject.identity.name.as_str()));
        let (_, watched) = names
            .iter()
            .zip(engine.watched())
            .find(|(name, _)| *name == subject)
            .ok_or(Refusal::NoSuchSubject)?;
        if watched.recording.is_some() {
            return Err(Refusal::AlreadyRecorded);
        }
        if self.ongoing.len() >= self.config.at_most {
            return Err(Refusal::TooMany(self.config.at_most));
        }
        let targets = traceable(subject, &watched.suspects());
        if targets.is_empty() {
            return Err(Refusal::Failed("none of its processes can be traced".into()));
        }
        let id = watched.subject.id.clone();
        let wait = Duration::from_secs(self.budget.wait().as_secs().max(1));
        let promised = self.promise().ok_or(Refusal::NoCpuTime(wait))?;
        self.demands += 1;
        let name = format!("request {}", self.demands);
        let file = self.config.directory.join(format!("{UNFINISHED}request-{}.pb.gz", self.demands));
        let order = Order {
            name: name.clone(),
            pids: targets.iter().map(Target::pid).collect(),
            time,
            sample: self.config.sample,
            mode: self.config.mode,
            max_cpu: promised,
            outputs: vec![file.clone()],
        };
        let recording = Recording::begin(&order, self.teller.clone())
            .inspect_err(|_| self.budget.settle(promised, Duration::ZERO))
            .map_err(|error| Refusal::Failed(format!("{error:#}")))?;
        say(&format!("{name}: recording {subject}, since somebody asks for a profile"));
        Ok(ProfileRecording { name, id, recording, file, promised })
    }

    fn wait_with(&mut self, begun: ProfileRecording, answer: oneshot::Sender<Result<Vec<u8>, Refusal>>) {
        let ProfileRecording { name, id, recording, file, promised } = begun;
        self.scanner.engine.began(&id);
        let asked = Some(PendingProfile { file, answer });
        let took = Took::default();
        let ongoing = Ongoing { id, recording, oom_kills: 0, note: None, promised, took, asked };
        self.ongoing.insert(name, ongoing);
        self.view = None;
    }

    /// A recording that somebody waits for has ended.
    pub(super) fn give(&mut self, name: &str, id: &SubjectId, asked: PendingProfile, error: Option<String>) {
        self.scanner.engine.let_go(id);
        let read = fs::read(&asked.file);
        remove(&asked.file);
        let (outcome, answer) = match (read, error) {
            (Ok(profile), _) => (Outcome::Done, Ok(profile)),
            (Err(_), Some(error)) => (Outcome::Failed, Err(Refusal::Failed(error))),
            (Err(error), None) => {
                (Outcome::Failed, Err(Refusal::Failed(format!("it left no profile: {error}"))))
            }
        };
        if let Err(refusal) = &answer {
            log::debug!("{name}: {refusal}");
        }
        let outcome = if asked.answer.send(answer).is_ok() { outcome } else { Outcome::Interrupted };
        say(&format!("{name}: {}", outcome.name()));
        self.tally.count(REQUEST, outcome);
    }
}

/// A recording on demand that has begun.
struct ProfileRecording {
    name: String,
    id: SubjectId,
    recording: Recording,
    file: PathBuf,
    promised: Duration,
}

fn remove(file: &Path) {
    if let Err(error) = fs::remove_file(file) {
        log::debug!("cannot remove {}: {error}", file.display());
    }
}

impl From<State> for Outcome {
    fn from(state: State) -> Self {
        match state {
            State::Done => Self::Done,
            State::Recording | State::Interrupted => Self::Interrupted,
            State::Failed => Self::Failed,
        }
    }
}
