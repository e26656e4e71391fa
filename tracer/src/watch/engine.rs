//! What to do, by what was read: pure, so that hours pass in tests as fast as they are computed.
//!
//! Time is that since some moment, on a clock that never jumps; it goes on while the machine sleeps.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    condition::{Condition, Measure, Test},
    processes::Processes,
    reading::Reading,
    subject::{Subject, SubjectId},
};
use crate::{
    analyze::growth::{Point, rate},
    model::{Bytes, Pid},
};

/// What decides about recordings.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Any of these asks for a recording.
    pub conditions: Vec<Condition>,
    /// Recordings at one time.
    pub at_most: usize,
    /// Time between two recordings of one subject.
    pub cool_down: Duration,
    /// Time between readings.
    pub interval: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Record these processes of a subject.
    Record {
        /// Whom.
        id: SubjectId,
        /// By which condition.
        trigger: String,
        /// Its processes that grow.
        pids: Vec<Pid>,
    },
    /// Write the reports of the recording that goes on.
    Write {
        /// Whose.
        id: SubjectId,
        /// Why.
        why: String,
    },
}

/// Readings that are kept of each subject.
const HISTORY: usize = 360;

/// Above this share of the limit the reports are written: the kill may come any moment.
const LAST_MOMENT: f64 = 0.95;

/// Time between two such reports of one recording.
const BETWEEN_WRITES: Duration = Duration::from_secs(5);

/// Everybody who is watched, and what is known of them.
#[derive(Debug)]
pub struct Engine {
    rules: Rules,
    watched: BTreeMap<SubjectId, Watched>,
    /// By name: a container that is started anew is another subject under the same name.
    recorded: BTreeMap<String, Duration>,
    recordings: usize,
}

/// One subject.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Who it is.
    pub subject: Subject,
    /// What was read last.
    pub reading: Reading,
    /// What was read before, oldest first.
    pub history: VecDeque<Sample>,
    /// Of each condition, in their order.
    pub holding: Vec<ConditionState>,
    /// The recording that goes on.
    pub recording: Option<Ongoing>,
    processes: Processes,
}

impl Watched {
    /// How fast its anonymous memory grew over the last ten minutes, in bytes a second; none for fewer than three looks.
    #[must_use]
    pub fn growth(&self, now: Duration) -> Option<f64> {
        const WINDOW: Duration = Duration::from_secs(10 * 60);
        let since = now.saturating_sub(WINDOW);
        slope(self.history.iter().filter(|sample| sample.at >= since))
    }

    /// Its processes that grow; where none does, the largest.
    #[must_use]
    pub fn suspects(&self) -> Vec<Pid> {
        self.processes.suspects()
    }
}

/// A part of a reading, kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// All that counts.
    pub usage: Bytes,
    /// Anonymous memory.
    pub anon: Bytes,
}

/// How far a condition is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConditionState {
    /// Since when its test has held without a break.
    pub since: Option<Duration>,
    /// Whether it has held long enough.
    pub holds: bool,
}

/// A recording that goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ongoing {
    written: Option<Duration>,
    was_full: bool,
}

impl Engine {
    /// Nobody is watched.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, watched: BTreeMap::new(), recorded: BTreeMap::new(), recordings: 0 }
    }

    /// What decides from now on. What holds has to hold anew.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        for watched in self.watched.values_mut() {
            watched.holding = vec![ConditionState::default(); self.rules.conditions.len()];
        }
    }

    /// The rules.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Everybody who is watched.
    pub fn watched(&self) -> impl Iterator<Item = &Watched> {
        self.watched.values()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &SubjectId) -> Option<&Watched> {
        self.watched.get(id)
    }

    /// Who there is now. Who has gone is forgotten, unless it is being recorded.
    pub fn meet(&mut self, subjects: Vec<Subject>) {
        let gone = |watched: &Watched| !subjects.iter().any(|subject| subject.id == watched.subject.id);
        self.watched.retain(|_, watched| watched.recording.is_some() || !gone(watched));
        for subject in subjects {
            let conditions = self.rules.conditions.len();
            let watched = self.watched.entry(subject.id.clone()).or_insert_with(|| Watched {
                subject: subject.clone(),
                reading: Reading::default(),
                history: VecDeque::new(),
                holding: vec![ConditionState::default(); conditions],
                recording: None,
                processes: Processes::default(),
            });
            watched.subject = subject;
        }
    }

    /// Notes what was read of a subject, and what its processes have where that was read, too.
    pub fn note(&mut self, now: Duration, id: &SubjectId, reading: Reading, sizes: Option<&[(Pid, Bytes)]>) {
        let Some(watched) = self.watched.get_mut(id) else { return };
        let last = watched.history.back().map(|sample| sample.at);
        // Nobody looked meanwhile, so nobody can say that it has held.
        if last.is_some_and(|last| now.saturating_sub(last) > self.rules.interval * 4) {
            watched.holding.fill(ConditionState::default());
        }
        watched.reading = reading;
        if let Some(sizes) = sizes {
            watched.processes.note(now, sizes);
        }
        let is_due = last.is_none_or(|last| now.saturating_sub(last) >= self.rules.interval / 2);
        if is_due {
            let sample = Sample { at: now, usage: reading.usage_bytes, anon: reading.parts.anon };
            watched.history.push_back(sample);
            if watched.history.len() > HISTORY {
                watched.history.pop_front();
            }
            for (condition, holding) in self.rules.conditions.iter().zip(&mut watched.holding) {
                *holding = watched_holding(
                    condition,
                    *holding,
                    now,
                    &reading,
                    &watched.history,
                    self.rules.interval,
                );
            }
        }
    }

    /// What is to be done now, those that are most short of memory first.
    pub fn decide(&mut self, now: Duration) -> Vec<Decision> {
        let mut wanting: Vec<&Watched> = self
            .watched
            .values()
            .filter(|watched| {
                watched.recording.is_none() && watched.holding.iter().any(|holding| holding.holds)
            })
            .filter(|watched| self.is_cool(now, watched))
            .collect();
        wanting.sort_by(|a, b| b.reading.limit.share().total_cmp(&a.reading.limit.share()));
        let free = self.rules.at_most.saturating_sub(self.recordings);
        let record = |watched: &Watched| {
            let mut conditions = self.rules.conditions.iter().zip(&watched.holding);
            let trigger = conditions.find(|(_, holding)| holding.holds)?.0.to_string();
            let pids = watched.suspects();
            let id = watched.subject.id.clone();
            (!pids.is_empty()).then_some(Decision::Record { id, trigger, pids })
        };
        wanting.into_iter().filter_map(record).take(free).collect()
    }

    fn is_cool(&self, now: Duration, watched: &Watched) -> bool {
        let last = self.recorded.get(&watched.subject.identity.name);
        last.is_none_or(|&last| now.saturating_sub(last) >= self.rules.cool_down)
    }

    /// Whether the reports of a recording should be written now, for what was just read; `before` is what was read before it.
    pub fn write(&mut self, now: Duration, id: &SubjectId, before: &Reading) -> Option<Decision> {
        let watched = self.watched.get_mut(id)?;
        let reading = watched.reading;
        let ongoing = watched.recording.as_mut()?;
        let is_full = reading.limit.share() > LAST_MOMENT;
        let filled = is_full && !ongoing.was_full;
        ongoing.was_full = is_full;
        let stepped = (reading.events.named().into_iter())
            .zip(before.events.named())
            .filter(|((_, now), (_, before))| now > before)
            .map(|((name, _), _)| name)
            .next_back();
        let is_soon = ongoing.written.is_some_and(|written| now.saturating_sub(written) < BETWEEN_WRITES);
        let why = if filled {
            format!("usage > {:.0}%", LAST_MOMENT * 100.0)
        } else {
            format!("memory.events: {}", stepped?)
        };
        if is_soon && !filled {
            return None;
        }
        ongoing.written = Some(now);
        Some(Decision::Write { id: id.clone(), why })
    }

    /// A recording of this subject has begun.
    pub fn began(&mut self, id: &SubjectId) {
        if let Some(watched) = self.watched.get_mut(id) {
            watched.recording = Some(Ongoing::default());
            self.recordings += 1;
        }
    }

    /// One that somebody waited for has ended. It is as if it had not been: conditions go on to hold, and there is no cool-down.
    pub fn let_go(&mut self, id: &SubjectId) {
        if let Some(watched) = self.watched.get_mut(id)
            && watched.recording.take().is_some()
        {
            self.recordings -= 1;
        }
    }

    /// It has ended.
    pub fn ended(&mut self, now: Duration, id: &SubjectId) {
        let Some(watched) = self.watched.get_mut(id) else { return };
        if watched.recording.take().is_some() {
            self.recordings -= 1;
            self.recorded.insert(watched.subject.identity.name.clone(), now);
            watched.holding.fill(ConditionState::default());
        }
        self.recorded.retain(|_, &mut last| now.saturating_sub(last) < self.rules.cool_down);
    }
}

fn watched_holding(
    condition: &Condition,
    before: ConditionState,
    now: Duration,
    reading: &Reading,
    history: &VecDeque<Sample>,
    interval: Duration,
) -> ConditionState {
    if let Test::GrowthAbove(limit) = condition.test {
        let is_seen = history.front().is_some_and(|first| first.at + condition.time <= now + interval);
        let since = now.saturating_sub(condition.time);
        let holds = is_seen && grows(history, since, now, limit);
        return ConditionState { since: holds.then_some(since), holds };
    }
    if !is_above(condition.test, reading) {
        return ConditionState::default();
    }
    let since = before.since.unwrap_or(now);
    ConditionState { since: Some(since), holds: now.saturating_sub(since) >= condition.time }
}

fn is_above(test: Test, reading: &Reading) -> bool {
    match test {
        Test::Above(measure, limit) => size(measure, reading) > limit,
        // What counts against the limit may be more than the subject's own.
        Test::ShareAbove(Measure::Usage, share) => reading.limit.share() > share,
        Test::ShareAbove(measure, share) => {
            size(measure, reading).0 as f64 / reading.limit.bytes.0.max(1) as f64 > share
        }
        Test::PressureAbove(share) => reading.pressure.is_some_and(|pressure| pressure.some > share),
        Test::GrowthAbove(_) => false,
    }
}

const fn size(measure: Measure, reading: &Reading) -> Bytes {
    match measure {
        Measure::Usage => reading.usage_bytes,
        Measure::WorkingSet => reading.working_set_bytes,
        Measure::Anonymous => reading.parts.anon,
        Measure::Resident => reading.rss_bytes,
    }
}

/// Whether anonymous memory grows by more a second, and does so in either half of the time: a jump in the middle is no growth.
fn grows(history: &VecDeque<Sample>, since: Duration, until: Duration, limit: f64) -> bool {
    let middle = (since + until) / 2;
    let between = |from, to| slope(history.iter().filter(move |sample| sample.at >= from && sample.at <= to));
    let is_above = |slope: Option<f64>, limit| slope.is_some_and(|slope| slope > limit);
    is_above(between(since, until), limit)
        && is_above(between(since, middle), limit / 2.0)
        && is_above(between(middle, until), limit / 2.0)
}

/// The Theil–Sen slope of anonymous memory. What is many is thinned out: the work grows with the square.
fn slope<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Option<f64> {
    const MOST: usize = 60;
    let every = samples.clone().count().div_ceil(MOST).max(1);
    let point = |sample: &Sample| Point { t_ns: sample.at.as_nanos() as u64, bytes: sample.anon };
    let points: Vec<Point> = samples.step_by(every).map(point).collect();
    if points.len() < 3 { None } else { rate(&points) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{
        container::Identity,
        reading::{Limit, LimitOwner, MemoryEvents, Parts, Pressure},
    };

    const MIB: u64 = 1 << 20;
    const INTERVAL: u64 = 10;

    fn rules(conditions: &[&str]) -> Rules {
        Rules {
            conditions: conditions.iter().map(|text| text.parse().unwrap()).collect(),
            at_most: 1,
            cool_down: Duration::from_secs(900),
            interval: Duration::from_secs(INTERVAL),
        }
    }

    fn id(name: &str) -> SubjectId {
        SubjectId::Name(name.into())
    }

    fn subject(name: &str) -> Subject {
        let identity = Identity { name: name.into(), ..Identity::default() };
        Subject { id: id(name), identity, pids: vec![Pid(7)] }
    }

    /// Of a limit of 200 MiB.
    fn used(mib: u64) -> Reading {
        let usage = Bytes(mib * MIB);
        Reading {
            usage_bytes: usage,
            limit: Limit { bytes: Bytes(200 * MIB), used_bytes: usage, whose: LimitOwner::Own },
            parts: Parts { anon: usage, ..Parts::default() },
            ..Reading::default()
        }
    }

    fn engine(conditions: &[&str]) -> Engine {
        let mut engine = Engine::new(rules(conditions));
        engine.meet(vec![subject("web")]);
        engine
    }

    /// Lets the time pass in steps, and gives the times at which a recording would begin; each lasts two minutes.
    fn starts(engine: &mut Engine, steps: impl IntoIterator<Item = (u64, Reading)>) -> Vec<u64> {
        let mut starts = Vec::new();
        let mut until = None;
        for (second, reading) in steps {
            let now = Duration::from_secs(second);
            if until.is_some_and(|until| second >= until) {
                engine.ended(now, &id("web"));
                until = None;
            }
            engine.note(now, &id("web"), reading, Some(&[(Pid(7), reading.usage_bytes)]));
            for decision in engine.decide(now) {
                assert!(matches!(&decision, Decision::Record { pids, .. } if *pids == [Pid(7)]));
                engine.began(&id("web"));
                until = Some(second + 120);
                starts.push(second);
            }
        }
        starts
    }

    fn each_interval(seconds: u64, reading: impl Fn(u64) -> Reading) -> Vec<(u64, Reading)> {
        (0..seconds).step_by(INTERVAL as usize).map(|second| (second, reading(second))).collect()
    }

    #[test]
    fn usage_must_hold_for_its_time_without_a_break() {
        let mut engine = engine(&["usage > 80% for 5m"]);
        let course = each_interval(1200, |second| used(if second == 290 { 150 } else { 170 }));
        assert_eq!(starts(&mut engine, course), [600]);
    }

    #[test]
    fn nothing_is_recorded_below_it() {
        let mut engine = engine(&["usage > 80% for 5m", "usage > 1GiB"]);
        assert_eq!(starts(&mut engine, each_interval(7200, |_| used(160))), [0; 0]);
    }

    #[test]
    fn one_that_goes_on_is_recorded_again_after_its_cool_down() {
        let mut engine = engine(&["usage > 80%"]);
        assert_eq!(starts(&mut engine, each_interval(3000, |_| used(170))), [0, 1020, 2040]);
    }

    #[test]
    fn growth_is_measured_over_its_window_and_a_jump_is_none() {
        let leak = |second: u64| used(20 + second / 5); // 12 MiB a minute
        assert_eq!(starts(&mut engine(&["growth > 10MiB/min for 10m"]), each_interval(800, leak)), [590]);
        assert_eq!(starts(&mut engine(&["growth > 15MiB/min for 10m"]), each_interval(800, leak)), [0; 0]);
        let jump = |second: u64| used(if second < 300 { 20 } else { 190 });
        assert_eq!(starts(&mut engine(&["growth > 10MiB/min for 10m"]), each_interval(1800, jump)), [0; 0]);
        let sawtooth = |second: u64| used(20 + (second % 120));
        assert_eq!(
            starts(&mut engine(&["growth > 10MiB/min for 10m"]), each_interval(1800, sawtooth)),
            [0; 0]
        );
    }

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let mut engine = engine(&["usage > 80% for 5m"]);
        // The machine slept for an hour.
        let course = [(0, used(170)), (10, used(170)), (3610, used(170)), (3620, used(170))];
        assert_eq!(starts(&mut engine, course), [0; 0]);
        let after =
            each_interval(400, |_| used(170)).into_iter().map(|(second, reading)| (3630 + second, reading));
        assert_eq!(starts(&mut engine, after), [3910]);
    }

    #[test]
    fn pressure_and_shares_of_other_measures_are_compared() {
        let waits = |some| Reading { pressure: Some(Pressure { some, ..Pressure::default() }), ..used(10) };
        assert_eq!(starts(&mut engine(&["pressure > 10% for 1m"]), each_interval(200, |_| waits(0.2))), [60]);
        assert_eq!(
            starts(&mut engine(&["pressure > 10% for 1m"]), each_interval(200, |_| used(199))),
            [0; 0]
        );
        let cached = Reading { working_set_bytes: Bytes(20 * MIB), ..used(190) };
        assert_eq!(starts(&mut engine(&["working_set > 50%"]), each_interval(100, |_| cached)), [0; 0]);
        assert_eq!(starts(&mut engine(&["anon > 100MiB"]), each_interval(30, |_| cached)), [0]);
    }

    #[test]
    fn the_fullest_is_recorded_first_and_no_more_than_allowed_at_a_time() {
        let mut engine = Engine::new(rules(&["usage > 80%"]));
        engine.meet(vec![subject("a"), subject("b")]);
        let now = Duration::ZERO;
        for (name, mib) in [("a", 170), ("b", 190)] {
            engine.note(now, &id(name), used(mib), Some(&[(Pid(7), Bytes(mib))]));
        }
        let whom = |decisions: Vec<Decision>| -> Vec<SubjectId> {
            let id = |decision| match decision {
                Decision::Record { id, .. } | Decision::Write { id, .. } => id,
            };
            decisions.into_iter().map(id).collect()
        };
        assert_eq!(whom(engine.decide(now)), [id("b")]);
        engine.began(&id("b"));
        assert_eq!(whom(engine.decide(now)), []);
        // It is being recorded, so it stays although it has gone.
        engine.meet(vec![subject("a")]);
        assert_eq!(engine.watched().count(), 2);
        engine.ended(now, &id("b"));
        assert_eq!(whom(engine.decide(now)), [id("a")]);
        engine.meet(vec![subject("a")]);
        assert_eq!(engine.watched().count(), 1);
    }

    #[test]
    fn who_was_recorded_on_demand_is_recorded_when_a_condition_holds() {
        let mut engine = engine(&["usage > 80% for 1m"]);
        for second in [0, 10, 20, 30] {
            engine.note(Duration::from_secs(second), &id("web"), used(170), Some(&[(Pid(7), Bytes(1))]));
        }
        engine.began(&id("web"));
        for second in [40, 50, 60] {
            engine.note(Duration::from_secs(second), &id("web"), used(170), None);
        }
        assert_eq!(engine.decide(Duration::from_secs(60)), [], "it is being recorded");
        engine.let_go(&id("web"));
        assert_eq!(engine.decide(Duration::from_secs(60)).len(), 1);
    }

    #[test]
    fn reports_are_written_at_the_last_moment_and_at_each_event() {
        let mut engine = engine(&["usage > 80%"]);
        let mut before = Reading::default();
        let mut write = |engine: &mut Engine, second, reading| {
            let now = Duration::from_secs(second);
            engine.note(now, &id("web"), reading, None);
            let decision = engine.write(now, &id("web"), &before);
            before = reading;
            decision.map(|decision| match decision {
                Decision::Write { why, .. } => why,
                Decision::Record { .. } => panic!("it is recorded already"),
            })
        };
        let events = |mib, max, oom_kill| Reading {
            events: MemoryEvents { max, oom_kill, ..MemoryEvents::default() },
            ..used(mib)
        };
        assert_eq!(write(&mut engine, 0, used(195)), None, "nothing is being recorded");
        engine.began(&id("web"));
        assert_eq!(write(&mut engine, 1, used(180)), None);
        assert_eq!(write(&mut engine, 2, used(191)).as_deref(), Some("usage > 95%"));
        assert_eq!(write(&mut engine, 3, used(195)), None);
        assert_eq!(write(&mut engine, 8, events(199, 1, 0)).as_deref(), Some("memory.events: max"));
        assert_eq!(write(&mut engine, 9, events(199, 2, 0)), None, "it has just been written");
        assert_eq!(write(&mut engine, 20, events(50, 3, 1)).as_deref(), Some("memory.events: oom_kill"));
        assert_eq!(write(&mut engine, 21, events(192, 3, 1)).as_deref(), Some("usage > 95%"));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut engine = engine(&["usage > 80%"]);
        // A day, in which pids come and go.
        for step in 0..8640_u32 {
            let now = Duration::from_secs(u64::from(step) * INTERVAL);
            let sizes = [(Pid(step + 1), Bytes(1)), (Pid(step + 2), Bytes(1))];
            engine.note(now, &id("web"), used(100), Some(&sizes));
        }
        let watched = engine.get(&id("web")).unwrap();
        assert_eq!((watched.history.len(), watched.processes.suspects().len()), (HISTORY, 2));
    }

    #[test]
    fn a_day_of_subjects_that_come_and_go_leaves_nothing_behind() {
        const SUBJECTS: u64 = 50;
        let mut engine =
            Engine::new(Rules { at_most: 2, ..rules(&["usage > 80%", "growth > 1MiB/min for 10m"]) });
        let mut ongoing: Vec<(u64, SubjectId)> = Vec::new();
        let mut recorded = 0;
        // At each look one goes and another comes, and all are short of memory.
        for look in 0..86_400 / INTERVAL {
            let now = Duration::from_secs(look * INTERVAL);
            let ends = ongoing.partition_point(|(until, _)| *until <= look);
            ongoing.drain(..ends).for_each(|(_, id)| engine.ended(now, &id));
            engine.meet((look..look + SUBJECTS).map(|number| subject(&format!("pod-{number}"))).collect());
            for number in look..look + SUBJECTS {
                let sizes = [(Pid(number as u32), Bytes(number))];
                engine.note(now, &id(&format!("pod-{number}")), used(170), Some(&sizes));
            }
            for decision in engine.decide(now) {
                let Decision::Record { id, .. } = decision else { panic!("nothing is being recorded") };
                engine.began(&id);
                ongoing.push((look + 12, id));
                recorded += 1;
            }
        }
        assert!(recorded > 1000, "{recorded}");
        assert!(engine.watched().count() as u64 <= SUBJECTS + 2);
        assert!(engine.watched().all(|watched| watched.history.len() <= SUBJECTS as usize));
        // Those whose cool-down goes on.
        assert!(engine.recorded.len() <= 2 * 90 / 12 + 2, "{}", engine.recorded.len());
        assert_eq!(engine.recordings, ongoing.len());
    }
}
