//! What there is to be seen of the service at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{
    container::Identity,
    engine::{ConditionState, Engine, Watched},
    reading::Reading,
    recorder::Took,
    store::Entry,
};
use crate::{
    model::Bytes,
    report::human::{printable, shorten},
};

/// The service at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Everybody who is watched.
    pub subjects: Vec<SubjectView>,
    /// What is recorded for.
    pub conditions: Vec<String>,
    /// Every recording that is kept, oldest first.
    pub recordings: Vec<Entry>,
    /// Where they are.
    pub directory: PathBuf,
    /// What happened since the start.
    pub tally: EventTotals,
    /// Processes that the kernel killed for want of memory, by subject, of some that are gone, too.
    pub oom_kills: BTreeMap<String, u64>,
    /// Recordings that go on, those that somebody waits for included.
    pub ongoing: usize,
    /// How many there may be.
    pub at_most: usize,
    /// What they may take.
    pub cpu_time: CpuTime,
}

/// CPU time that recordings may take, of their own and of their targets.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    /// Now.
    pub left: Duration,
    /// In an hour.
    pub an_hour: Duration,
    /// Whether a recording does not begin, since there is too little.
    pub is_waited_for: bool,
}

/// A subject at one moment.
#[derive(Clone, Debug)]
pub struct SubjectView {
    /// What it is called, and nobody else: what can be asked for.
    pub name: String,
    /// Who it is.
    pub identity: Identity,
    /// What was read last.
    pub reading: Reading,
    /// How fast its anonymous memory grows, in bytes a second; none while that is too little to tell.
    pub growth: Option<f64>,
    /// How long ago, and how much it used, oldest first.
    pub course: Vec<(Duration, Bytes)>,
    /// How far each condition is.
    pub holding: Vec<ConditionState>,
    /// Whether it is being recorded.
    pub is_recorded: bool,
}

/// What happened since the start.
#[derive(Clone, Debug)]
pub struct EventTotals {
    /// When that was.
    pub started: SystemTime,
    /// Looks at everybody.
    pub looks: u64,
    /// Time that they took.
    pub looking: Duration,
    /// Recordings that have ended, by trigger and outcome.
    pub recordings: BTreeMap<(String, Outcome), u64>,
    /// Events that recordings lost.
    pub lost: u64,
    /// CPU time of the recordings that have ended.
    pub took: Took,
}

/// How a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// With reports.
    Done,
    /// Without.
    Failed,
    /// Before its end, with what had been written until then; or nobody waited for it any more.
    Interrupted,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::Interrupted];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What asked for a recording when nobody's memory did.
pub const REQUEST: &str = "request";

impl EventTotals {
    /// Triggers that are told apart: each is a text from the configuration, which may be read again for ever.
    const MOST_TRIGGERS: usize = 64;

    /// Nothing yet.
    #[must_use]
    pub const fn begun(started: SystemTime) -> Self {
        Self {
            started,
            looks: 0,
            looking: Duration::ZERO,
            recordings: BTreeMap::new(),
            lost: 0,
            took: Took { own: Duration::ZERO, probes: Duration::ZERO },
        }
    }

    /// Counts a recording.
    pub fn count(&mut self, trigger: &str, outcome: Outcome) {
        let triggers: BTreeSet<&str> = self.recordings.keys().map(|(trigger, _)| trigger.as_str()).collect();
        let is_new = !triggers.contains(trigger);
        let trigger = if is_new && triggers.len() >= Self::MOST_TRIGGERS { "other" } else { trigger };
        *self.recordings.entry((trigger.to_owned(), outcome)).or_default() += 1;
    }
}

/// Points of a course: more are not to be seen.
const POINTS: usize = 60;

/// The longest name. Those of Kubernetes have 253 letters at most, each of three.
const LONGEST_NAME: usize = 200;

/// Everybody who is watched.
#[must_use]
pub fn subjects(engine: &Engine, now: Duration) -> Vec<SubjectView> {
    let watched: Vec<&Watched> = engine.watched().collect();
    let names = names(watched.iter().map(|watched| watched.subject.identity.name.as_str()));
    let seen = |(name, watched): (String, &Watched)| SubjectView {
        name,
        identity: watched.subject.identity.clone(),
        reading: watched.reading,
        growth: watched.growth(now),
        course: course(watched, now),
        holding: watched.holding.clone(),
        is_recorded: watched.recording.is_some(),
    };
    // Of one that has gone before anything was read of it nothing can be said.
    let was_read = |(_, watched): &(String, &Watched)| !watched.history.is_empty();
    names.into_iter().zip(watched).filter(was_read).map(seen).collect()
}

fn course(watched: &Watched, now: Duration) -> Vec<(Duration, Bytes)> {
    let every = watched.history.len().div_ceil(POINTS).max(1);
    // The newest is always among them.
    let samples = watched.history.iter().rev().step_by(every);
    let mut course: Vec<_> = samples.map(|sample| (now.saturating_sub(sample.at), sample.usage)).collect();
    course.reverse();
    course
}

/// A name of bounded length that can be shown anywhere.
#[must_use]
pub fn bounded(name: &str) -> String {
    shorten(&printable(name), LONGEST_NAME).into_owned()
}

/// A name for each, and none twice: a container that is started anew is there beside the old one for a moment.
pub fn names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let free = |name: &str| {
        let name = bounded(name);
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let mut all = std::iter::once(name.clone()).chain(numbered);
        let free = all.find(|name| taken.insert(name.clone()));
        free.unwrap_or(name)
    };
    names.map(free).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_called_like_another() {
        let long = "x".repeat(1000);
        let named = names(["web", "db", "web", "web (2)", "web", &long, "a\nb"].into_iter());
        assert_eq!(named[..5], ["web", "db", "web (2)", "web (2) (2)", "web (3)"]);
        assert_eq!((named[5].chars().count(), named[6].as_str()), (LONGEST_NAME, "a\\nb"));
    }

    #[test]
    fn triggers_are_bounded() {
        let mut tally = EventTotals::begun(SystemTime::UNIX_EPOCH);
        for number in 0..1000 {
            tally.count(&format!("rss > {number}B"), Outcome::Done);
        }
        assert_eq!(tally.recordings.len(), EventTotals::MOST_TRIGGERS + 1);
        assert_eq!(
            tally.recordings[&("other".into(), Outcome::Done)],
            1000 - EventTotals::MOST_TRIGGERS as u64
        );
    }
}
