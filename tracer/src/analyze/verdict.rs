//! What a recording as a whole says, in one sentence: a pure function of its figures.
//!
//! A *leak* comes first, if it is at least a tenth of what grew. Else the largest part of the growth decides. Figures
//! are estimates where the parts of resident memory are; the sentence names the part, not a cause that nobody saw.

use std::collections::BTreeMap;
use std::time::Duration;

use tracer_ebpf::counter::Counter;

use super::causes::{go_in_step, place_name};
use super::growth::{self, Point};
use super::managed::Runtime;
use super::retention;
use crate::model::{
    AllocatorMemory, Bytes, Cause, Events, Kind, Memory, Part, StackReport, Verdict, VerdictSummary,
};
use crate::plan::python;

/// What a verdict rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// How long the window was.
    pub window: Duration,
    /// How much of it the targets could use, as far as others left them a CPU.
    pub had: Duration,
    /// Where the resident memory went, if that is known.
    pub memory: Option<&'a Memory>,
    /// Every stack.
    pub stacks: &'a [StackReport],
    /// Who is to blame for what they hold.
    pub causes: &'a [Cause],
    /// Mean bytes between sampled allocations; 0 when every one was kept.
    pub sample_bytes: u64,
    /// How many blocks were freed that had been allocated before the window.
    pub freed_older_blocks: u64,
    /// How many it would have been at the pace of the quarter of the window that had fewest: what is freed all the time.
    pub evenly_freed_older_blocks: u64,
    /// By how much shared memory grew that has the form of files: `memfd`, `/dev/shm`.
    pub shared_memory: u64,
    /// What kinds `native` and `mapping` held over the window.
    pub outstanding: &'a [Point],
    /// The runtime whose heap there is.
    pub runtime: Option<Runtime>,
    /// The allocator, as people call it.
    pub allocator: Option<&'a str>,
    /// The name of the program.
    pub program: &'a str,
    /// Whether the objects of Python were followed, so that those of its heap are blocks with stacks.
    pub python_objects: bool,
}

/// Resident memory that grew less says nothing: every program's size wavers.
const NOISE: u64 = 1 << 20;

/// What leaks less in a process that does not grow may as well be a log or a table that fills.
const SPECK: u64 = 32 << 10;

/// From this part of the growth on, in percent, a leak is what it is about.
const MAIN: u64 = 10;

/// From this part of the growth on, in percent, a leak is mentioned beside something larger.
const WORTH_MENTIONING: u64 = 1;

/// What is said when too much was lost to say anything: where blocks or their frees are not known, what looks like retained memory may
/// be a leak, and a leak may be none.
#[must_use]
pub fn of_lossy(events: &Events) -> Option<VerdictSummary> {
    const MOST_LOST: f64 = 0.05;
    let lost: u64 = events.lost.values().sum();
    let seen = events.allocations + events.frees + events.unmatched_frees;
    let share = lost as f64 / seen.max(lost).max(1) as f64;
    let without_room =
        events.lost.get(Counter::LiveTableFull.name()).is_some_and(|&blocks| blocks > lost / 2);
    let remedy = if without_room { ": no room for so many live blocks (--max-live, --sample)" } else { "" };
    (share > MOST_LOST).then(|| VerdictSummary {
        summary: format!(
            "no verdict: {:.0} % of the events could not be accounted for{remedy}",
            100.0 * share
        ),
        leaking: None,
        growth_bytes_per_second: None,
    })
}

/// The verdict.
#[must_use]
pub fn of(facts: &Facts) -> VerdictSummary {
    let growth = Growth::of(facts);
    let (leaks, may_be_turnover) = without_queues(facts, &growth);
    let is_main = |leaks: &Places| growth.is_noise() || leaks.settled() >= growth.percent(MAIN);
    let (garbage, leaks) = if growth.is_noise() || !is_main(&leaks) {
        leaks.divided(|cause| may_be_garbage(facts, cause))
    } else {
        (Places::these(Vec::new()), leaks)
    };
    let is_main = is_main(&leaks);
    let is_speck = growth.is_noise() && leaks.settled() < SPECK;
    let (summary, leaking) = match leaks.largest() {
        Some(leak) if is_speck => {
            let (held, name) = (held_now(&growth, leak), leak.sentence());
            (format!("{held} more in {name}: too little to tell a leak; record longer"), None)
        }
        Some(leak) if is_main && may_be_turnover => {
            let rate = per_minute(leak.rate(facts.window.as_secs_f64()));
            let sentence = format!(
                "{} allocates {rate}, while as many older blocks are freed: record for longer than a block lives",
                leak.sentence()
            );
            (sentence, None)
        }
        Some(leak) if is_main => (leak_sentence(facts, &growth, leak, &leaks), Some(true)),
        leak => {
            let (sentence, leaking) = without_main_leak(facts, &growth);
            let is_told = !may_be_turnover && leaks.settled() >= growth.percent(WORTH_MENTIONING);
            match leak.filter(|_| is_told) {
                Some(leak) if leaks.settled() < SPECK => {
                    let (held, name) = (held_now(&growth, leak), leak.sentence());
                    let sentence =
                        format!("{sentence}; besides, {held} more in {name}: too little to tell a leak");
                    (sentence, leaking.filter(|&leaking| leaking))
                }
                Some(leak) => {
                    let rate = per_minute(leak.rate(facts.window.as_secs_f64()));
                    let leak_or_grow = if leak.first_touch { "grow" } else { "leak" };
                    (format!("{sentence}; besides, {rate} {leak_or_grow} in {}", leak.sentence()), Some(true))
                }
                None => beside_garbage(&growth, &garbage, (sentence, leaking)),
            }
        }
    };
    let (summary, leaking) = unless_starved(facts.had, facts.window, (summary, leaking));
    VerdictSummary { summary, leaking, growth_bytes_per_second: growth::rate(facts.outstanding) }
}

/// What happens in moments takes seconds where a program hardly gets a CPU: what fills and empties seems to grow all the time, and what
/// leaks to have stopped. So much that the program had is too little to tell.
fn unless_starved(
    had: Duration,
    window: Duration,
    (sentence, leaking): (String, Option<bool>),
) -> (String, Option<bool>) {
    const ENOUGH: Duration = Duration::from_secs(2);
    let had_little = had < ENOUGH.min(window / 3);
    match leaking.filter(|_| had_little) {
        Some(_) => {
            let waited = window.saturating_sub(had);
            let sentence = format!(
                "no verdict, since it waited for a CPU for {:.1} of {:.1} s: record longer, or when less else runs; it looked like: {sentence}",
                waited.as_secs_f64(),
                window.as_secs_f64()
            );
            (sentence, None)
        }
        None => (sentence, leaking),
    }
}

/// Whether a collector may still free what a cause left: what it allocated besides was freed, most of it. What has survived the
/// collections of what is young stays until everything is collected, which may take longer than the window.
fn may_be_garbage(facts: &Facts, cause: &Cause) -> bool {
    /// So many were freed for each that is left.
    const FREED: u64 = 4;
    let collects = facts.runtime.is_some_and(Runtime::collects_garbage);
    collects && cause.freed_objects / FREED >= cause.outstanding_objects.max(1)
}

/// What is said besides of what may be garbage, which keeps anybody from an acquittal.
fn beside_garbage(
    growth: &Growth,
    garbage: &Places<'_>,
    (sentence, leaking): (String, Option<bool>),
) -> (String, Option<bool>) {
    let least = growth.percent(WORTH_MENTIONING).max(SPECK);
    match garbage.largest().filter(|_| garbage.footprint >= least) {
        Some(cause) => {
            let (held, name) = (held_now(growth, cause), cause.sentence());
            let sentence = format!(
                "{sentence}; besides, {held} more in {name}: a leak, or garbage that is not collected yet; record longer"
            );
            (sentence, leaking.filter(|&leaking| leaking))
        }
        None => (sentence, leaking),
    }
}

/// What is said where no leak is what it is about: an acquittal only with the evidence for one.
fn without_main_leak(facts: &Facts, growth: &Growth) -> (String, Option<bool>) {
    let (sentence, leaking) = if growth.is_noise() { no_growth(facts) } else { largest_part(facts, growth) };
    let mut undecided = Places::of(facts, |verdict| matches!(verdict, Verdict::Growing | Verdict::Unknown));
    if leaking != Some(false) {
        return (beside_undecided(growth, sentence, undecided.largest()), leaking);
    }
    undecided.footprint =
        undecided.places.iter().map(|cause| possible_leak(facts, cause)).fold(0, u64::saturating_add);
    if growth.is_noise() {
        return match undecided.largest() {
            Some(largest) if undecided.footprint > NOISE / 100 * UNDECIDED => {
                let (sentence, leaking) = undecided_sentence(facts, growth, largest);
                let kept = retention::level(facts.memory).map(|kept| format!("; besides, {kept}"));
                (sentence + &kept.unwrap_or_default(), leaking)
            }
            // A leak that is smaller than what every program's size wavers is still one.
            Some(_) => (sentence, None),
            None if facts.sample_bytes > 0 => (sentence, None),
            None => (sentence, leaking),
        };
    }
    let all = growth.all();
    match undecided.largest() {
        Some(largest) if undecided.footprint > all / 100 * UNDECIDED => {
            undecided_sentence(facts, growth, largest)
        }
        _ if facts.sample_bytes > all / FEWEST_SAMPLES => (too_few_samples(), None),
        _ => (sentence, leaking),
    }
}

/// What is said of something else that grew, with a cause of a large part of which it is not known whether it leaks.
fn beside_undecided(growth: &Growth, sentence: String, undecided: Option<&Cause>) -> String {
    let is_large = |cause: &&Cause| footprint_of(cause) >= growth.percent(MAIN);
    match undecided.filter(is_large).map(|cause| (cause, cause.sentence())) {
        Some((cause, name)) if growth.held < growth.all() / 2 && !sentence.contains(&name) => {
            let (held, share) = (held_now(growth, cause), growth.share(footprint_of(cause)));
            format!("{sentence}; besides, it is not known whether {held} in {name}{share} leak")
        }
        _ => sentence,
    }
}

/// At most so much of what a cause holds has leaked. Of a leak everything stays: when a cause has come down, to half of what it held
/// before, what it held then is more than had leaked until then, and as much came in the same time since.
fn possible_leak(facts: &Facts, cause: &Cause) -> u64 {
    /// Fewer points tell too little of the time.
    const FEWEST_POINTS: usize = 12;
    /// So many samples are missed of a leak once in a thousand times.
    const MISSED: f64 = 7.0;

    let (history, footprint) = (&cause.history_bytes, footprint_of(cause));
    if history.len() < FEWEST_POINTS {
        return footprint;
    }
    let last = history.len() - 1;
    // What began to leak late is not told by what was held before.
    let lately = (last * 2 / 3)..=last;
    let had_come_down =
        |at: &usize| history[..*at].iter().max().is_some_and(|&most| most > 0 && most / 2 >= history[*at]);
    let most = lately.filter(had_come_down).map(|at| history[at] as f64 * last as f64 / at as f64);
    let Some(most) = most.min_by(f64::total_cmp) else { return footprint };
    let part = (most + MISSED * facts.sample_bytes as f64) / cause.weight_bytes.max(1) as f64;
    (footprint as f64 * part.min(1.0)) as u64
}

/// What of a leak has leaked for certain: at most twice what it held when three quarters of its time had passed, which leaves room for as
/// much in proportion since. What came besides in the last quarter may be on its way.
fn settled_footprint(cause: &Cause) -> u64 {
    let (history, footprint) = (&cause.history_bytes, footprint_of(cause));
    let begin = history.iter().position(|&bytes| bytes > 0).unwrap_or(history.len());
    let Some(last) = history.len().checked_sub(1).filter(|last| *last > begin) else { return footprint };
    let most = history[begin + (last - begin) * 3 / 4].saturating_mul(2);
    let part = most as f64 / cause.weight_bytes.max(1) as f64;
    (footprint as f64 * part.min(1.0)) as u64
}

fn too_few_samples() -> String {
    "too few samples for a verdict; record longer, or sample more".to_owned()
}

/// Nothing is acquitted while it is not known of so much of the growth whether it leaks, in percent.
const UNDECIDED: u64 = 5;

/// Of a leak as large as the growth so many samples would be there; with a quarter of them it can be missed once in a thousand times.
const FEWEST_SAMPLES: u64 = 32;

fn no_growth(facts: &Facts) -> (String, Option<bool>) {
    let sentence = match retention::level(facts.memory) {
        Some(kept) => format!("no growth in this window; {kept}"),
        None => "no growth in this window; record longer or under load".to_owned(),
    };
    (sentence, (facts.window >= growth::SHORTEST).then_some(false))
}

/// What is said of a cause of which it is not known whether it leaks.
fn undecided_sentence(facts: &Facts, growth: &Growth, cause: &Cause) -> (String, Option<bool>) {
    let (name, share) = (cause.sentence(), growth.share(footprint_of(cause)));
    let why = match cause.verdict {
        Verdict::Growing => {
            let rate = per_minute(cause.rate(facts.window.as_secs_f64()));
            return (
                format!("growing {rate} in {name}{share}: not enough to call it a leak; record longer"),
                None,
            );
        }
        _ if facts.window < growth::SHORTEST => "too short a window to tell a leak",
        _ if cause.objects_of_new_processes > cause.outstanding_objects / 2 => {
            "in processes that have lived too short to tell a leak: let each live for ten seconds"
        }
        _ if came_late(cause) => "all of it came at the end of this window, too late to tell a leak",
        _ => "too few blocks to tell a leak",
    };
    let sentence = format!("{} more in {name}{share}: {why}; record longer", held_now(growth, cause));
    (sentence, None)
}

/// Whether a cause held nothing until its history was too short to be judged.
fn came_late(cause: &Cause) -> bool {
    let held = cause.history_bytes.iter().skip_while(|bytes| **bytes == 0).count();
    held < growth::FEWEST_POINTS && held < cause.history_bytes.len()
}

/// What a cause holds more than before, at most: it may have taken the place of older blocks that were freed.
fn held_now(growth: &Growth, cause: &Cause) -> Bytes {
    Bytes(if growth.held > 0 { cause.weight_bytes.min(growth.held) } else { cause.weight_bytes })
}

/// What grew, and by how much.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    /// Blocks and mappings, with what an allocator needs besides to hold them.
    held: u64,
    managed: u64,
    /// What allocators have beyond that.
    retained: u64,
    files: u64,
    stacks: u64,
    unexplained: u64,
    /// Of the whole resident set; `None` when it is not known.
    resident: Option<u64>,
    /// Whether blocks that are older than the window are known.
    is_measured: bool,
}

impl Growth {
    fn of(facts: &Facts) -> Self {
        let counted = facts.stacks.iter().filter(|stack| stack.kind.counts_by_default());
        let overhead: u64 = counted.clone().map(|stack| footprint(stack) - stack.weight_bytes).sum();
        let Some(memory) = facts.memory.filter(|memory| !memory.parts.is_empty()) else {
            return Self { held: counted.map(footprint).sum(), ..Self::default() };
        };
        let parts: BTreeMap<Part, i64> = memory
            .parts
            .iter()
            .map(|part| (part.part, part.after_bytes.saturating_sub(part.before_bytes)))
            .collect();
        let grown = |part| parts.get(&part).map_or(0, |&bytes| u64::try_from(bytes).unwrap_or(0));
        let is_measured = memory.parts.iter().any(|part| part.part == Part::Allocator && !part.estimated);
        // Then what blocks need besides is part of `native`.
        let overhead = if is_measured { 0 } else { overhead.min(grown(Part::Allocator)) };
        // Objects that are followed are held, though they are in the runtime's heap.
        let objects = counted.filter(|stack| facts.python_objects && python::is_of_objects(&stack.api));
        let objects = objects.map(footprint).sum::<u64>().min(grown(Part::Managed));
        let whole = parts.values().fold(0, |sum: i64, &bytes| sum.saturating_add(bytes));
        Self {
            held: grown(Part::Native) + grown(Part::Mapping) + overhead + objects,
            managed: grown(Part::Managed) - objects,
            retained: grown(Part::Allocator) - overhead,
            files: grown(Part::File),
            stacks: grown(Part::Stack),
            unexplained: grown(Part::Unexplained),
            resident: Some(u64::try_from(whole).unwrap_or(0)),
            is_measured,
        }
    }

    /// Everything that grew. What shrank besides does not make it less.
    const fn all(&self) -> u64 {
        self.held + self.managed + self.retained + self.files + self.stacks + self.unexplained
    }

    fn percent(&self, percent: u64) -> u64 {
        self.all() / 100 * percent
    }

    fn is_noise(&self) -> bool {
        self.resident.unwrap_or_else(|| self.all()) < NOISE
    }

    /// `(93 % of the growth)`.
    fn share(&self, bytes: u64) -> String {
        match self.all() {
            0 => String::new(),
            all => format!(" ({} % of the growth)", (u128::from(bytes) * 100 / u128::from(all)).min(100)),
        }
    }
}

/// What a stack makes resident.
fn footprint(stack: &StackReport) -> u64 {
    footprint_of_blocks(stack.kind, stack.weight_bytes, stack.outstanding_objects)
}

/// What blocks make resident: glibc's chunks are at least 32 bytes, with a header of 8, and rounded up to 16.
fn footprint_of_blocks(kind: Kind, bytes: u64, blocks: u64) -> u64 {
    const SMALLEST: u64 = 32;
    const OVERHEAD: u64 = 16;

    match kind {
        Kind::Native => {
            bytes.saturating_add(blocks.saturating_mul(OVERHEAD)).max(blocks.saturating_mul(SMALLEST))
        }
        _ => bytes,
    }
}

/// What the blocks of a cause make resident.
fn footprint_of(cause: &Cause) -> u64 {
    footprint_of_blocks(cause.kind, cause.weight_bytes, cause.outstanding_objects)
}

/// The causes that have a certain verdict, largest first.
#[derive(Debug)]
struct Places<'a> {
    footprint: u64,
    objects: u64,
    places: Vec<&'a Cause>,
}

impl<'a> Places<'a> {
    fn of(facts: &Facts<'a>, counts: impl Fn(Verdict) -> bool) -> Self {
        let counted = |cause: &&Cause| counts(cause.verdict) && cause.weight_bytes > 0;
        let mut places: Vec<_> = facts.causes.iter().filter(counted).collect();
        places.sort_by_key(|cause| std::cmp::Reverse(footprint_of(cause)));
        Self::these(places)
    }

    fn these(places: Vec<&'a Cause>) -> Self {
        Self {
            footprint: places.iter().map(|cause| footprint_of(cause)).fold(0, u64::saturating_add),
            objects: places.iter().map(|cause| cause.outstanding_objects).fold(0, u64::saturating_add),
            places,
        }
    }

    /// What of them is more than a burst at the end.
    fn settled(&self) -> u64 {
        self.places.iter().map(|cause| settled_footprint(cause)).fold(0, u64::saturating_add)
    }

    /// Those of which something holds, and the others.
    fn divided(&self, holds: impl Fn(&Cause) -> bool) -> (Self, Self) {
        let (these, others) = self.places.iter().copied().partition(|&cause| holds(cause));
        (Self::these(these), Self::these(others))
    }

    fn largest(&self) -> Option<&'a Cause> {
        self.places.first().copied()
    }
}

fn leak_sentence(facts: &Facts, growth: &Growth, leak: &Cause, leaks: &Places) -> String {
    let seconds = facts.window.as_secs_f64();
    let rate = per_minute(leak.rate(seconds));
    let share = growth.share(footprint_of(leak));
    // Who touches memory first is not always who keeps it.
    let leaking = if leak.first_touch { "growing" } else { "leaking" };
    let mut sentence = format!("{leaking} {rate} in {}{}{share}", leak.sentence(), in_stacks(leak));
    if let [_, others @ ..] = &leaks.places[..]
        && !others.is_empty()
    {
        let rate: f64 = others.iter().map(|cause| cause.rate(seconds)).sum();
        let places = if others.len() == 1 { "place" } else { "places" };
        sentence += &format!(", and {} in {} more {places}", per_minute(rate), others.len());
        if let Some(other) = others.iter().find(|other| go_in_step(leak, other)) {
            sentence += &format!(" (in step with it: `{}`)", other.place);
        }
    }
    if leak.first_touch {
        sentence += "; who keeps it is not known";
    }
    sentence
}

/// `, in 37 stacks of 5 processes`, where that is more than one.
fn in_stacks(cause: &Cause) -> String {
    match (cause.stacks, cause.processes) {
        (0 | 1, _) => String::new(),
        (stacks, 0 | 1) => format!(", in {stacks} stacks"),
        (stacks, processes) => format!(", in {stacks} stacks of {processes} processes"),
    }
}

/// What looks like a leak, and whether it may be turnover: a queue, or a cache, in which new blocks take the place of those from before
/// the window. Neither what is held, if that is measured, nor the whole process grew by half of it, and half as many older blocks were
/// freed, all the time: a collector of garbage frees many at once, and what was on its way when the window opened is gone soon.
///
/// What is more than twice as many blocks is no such queue, nor what is in processes that came during the window. Where there is some, it is what leaks, whatever else there is.
fn without_queues<'a>(facts: &Facts<'a>, growth: &Growth) -> (Places<'a>, bool) {
    let all = Places::of(facts, |verdict| verdict == Verdict::Leaking);
    let replaced = facts.evenly_freed_older_blocks;
    let may_be_queue = |cause: &Cause| {
        let half = cause.outstanding_objects / 2;
        half <= replaced && cause.objects_of_new_processes <= half
    };
    let (queues, others) = all.divided(may_be_queue);
    let grown = if growth.is_measured { Some(growth.held) } else { growth.resident };
    let is_turnover = replaced >= queues.objects / 2
        && grown.is_some_and(|grown| grown.saturating_sub(others.footprint) < queues.footprint / 2);
    match (is_turnover, others.places.is_empty()) {
        (true, false) => (others, false),
        (is_turnover, _) => (all, is_turnover),
    }
}

/// What the largest part of the growth says, and whether that is a leak.
fn largest_part(facts: &Facts, growth: &Growth) -> (String, Option<bool>) {
    let largest = growth.held.max(growth.managed).max(growth.retained).max(growth.files);
    let largest = largest.max(growth.stacks).max(growth.unexplained);
    let share = growth.share(largest);
    let bytes = Bytes(largest);
    if largest == growth.held {
        let (sentence, leaking) = held_sentence(facts, growth);
        // What the program keeps on purpose is not what can be done something about.
        match retained_sentence(facts, growth) {
            retained
                if leaking == Some(false) && retained.1 == leaking && growth.retained > growth.held / 2 =>
            {
                retained
            }
            _ => (sentence, leaking),
        }
    } else if largest == growth.managed {
        (format!("{}{share}", managed_sentence(facts)), None)
    } else if largest == growth.retained {
        retained_sentence(facts, growth)
    } else if largest == growth.files && facts.shared_memory > growth.files / 2 {
        let bytes = Bytes(facts.shared_memory);
        (format!("shared memory (memfd, /dev/shm) grew by {bytes}{share}; --include file draws it"), None)
    } else if largest == growth.files {
        let sentence =
            "not a leak: mapped files were read; the kernel takes that memory back when it needs it";
        (format!("{sentence}{share}"), Some(false))
    } else if largest == growth.stacks {
        (format!("the stacks of threads grew by {bytes}: more threads, or deeper calls{share}"), None)
    } else {
        (format!("resident memory grew by {bytes} that no mapping shows{share}"), None)
    }
}

fn held_sentence(facts: &Facts, growth: &Growth) -> (String, Option<bool>) {
    let verdicts = [Verdict::Growing, Verdict::Unknown, Verdict::OneOff, Verdict::Steady];
    let places = verdicts.map(|verdict| Places::of(facts, |other| other == verdict));
    let known: u64 = places.iter().map(|places| places.footprint).sum();
    let largest = places.iter().max_by_key(|places| places.footprint).filter(|_| known >= growth.held / 2);
    let Some(place) = largest.and_then(Places::largest) else {
        let undecided = Places::of(facts, |verdict| matches!(verdict, Verdict::Growing | Verdict::Unknown));
        if facts.sample_bytes > growth.held / FEWEST_SAMPLES {
            // What a sample has not seen may well be of this window.
            return match undecided.largest().filter(|cause| footprint_of(cause) >= growth.percent(MAIN)) {
                Some(cause) => undecided_sentence(facts, growth, cause),
                None => (too_few_samples(), None),
            };
        }
        let sentence =
            "memory that was allocated before this window is now being touched; start recording earlier";
        return (format!("{sentence}{}", growth.share(growth.held)), None);
    };
    let (name, share, size) =
        (place.sentence(), growth.share(footprint_of(place)), Bytes(place.weight_bytes));
    match place.verdict {
        Verdict::Growing | Verdict::Leaking | Verdict::Unknown => undecided_sentence(facts, growth, place),
        Verdict::Steady if place.first_touch => {
            (format!("not a leak: {name} goes as fast as it comes, and is {size} now{share}"), Some(false))
        }
        Verdict::OneOff if place.first_touch => (
            format!("not a leak: {name} came to {size}, and to no more, as a cache does that is full{share}"),
            Some(false),
        ),
        Verdict::Steady => (
            format!("not a leak: {name} frees as much as it allocates, and holds {size} now{share}"),
            Some(false),
        ),
        Verdict::OneOff => (
            format!("not a leak: {name} allocated {size} and stopped, as a cache does that is full{share}"),
            Some(false),
        ),
    }
}

fn managed_sentence(facts: &Facts) -> String {
    let sentence = match facts.runtime {
        Some(Runtime::CPython) if facts.python_objects => {
            "the Python heap is what grows, by more than the objects of this window: its pools are not all in use"
        }
        Some(Runtime::V8) => "the JavaScript heap is what grows: take a heap snapshot",
        Some(Runtime::HotSpot) => {
            "the Java heap is what grows: take a heap dump (jcmd PID GC.heap_dump FILE)"
        }
        Some(Runtime::CPython) => {
            let asked = who_asked_for_arenas(facts).map_or_else(String::new, |asked| format!(" {asked};"));
            return format!(
                "the Python heap is what grows:{asked} --objects python names who allocates (tracemalloc does not see C extensions)"
            );
        }
        Some(Runtime::Go) => "the Go heap is what grows: take a heap profile with pprof",
        Some(Runtime::Ruby) => "the Ruby heap is what grows: dump it with ObjectSpace.dump_all",
        Some(Runtime::Mono) => "the Mono heap is what grows: start it with mono --profile=log:heapshot",
        Some(Runtime::Php) => {
            "the PHP heap is what grows: compare memory_get_usage() between requests, and dump it with meminfo"
        }
        Some(Runtime::Beam) => {
            "the Erlang heap (BEAM's carriers) is what grows: look at it with recon (recon_alloc:memory(usage), recon:bin_leak(10))"
        }
        Some(Runtime::DotNet) => "the .NET heap is what grows: take a dump with dotnet-gcdump",
        None => "the heap of the language runtime is what grows: look at it with the runtime's own tools",
    };
    sentence.to_owned()
}

/// Who asked for most of the arenas of Python's heap that are new. The interpreter maps one when somebody wants an object and there is no
/// room, so they are a sample of what stays, if a small one.
fn who_asked_for_arenas(facts: &Facts) -> Option<String> {
    const FEWEST: u64 = 4;

    let is_new = |stack: &&StackReport| stack.kind == Kind::Managed && stack.outstanding_objects > 0;
    let mut asked: BTreeMap<String, u64> = BTreeMap::new();
    for stack in facts.stacks.iter().filter(is_new) {
        *asked.entry(place_name(&stack.frames)).or_default() += stack.outstanding_objects;
    }
    let all: u64 = asked.values().sum();
    let (place, most) = asked.into_iter().max_by_key(|(_, arenas)| *arenas)?;
    (all >= FEWEST && most > all / 2).then(|| format!("`{place}` asked for {most} of its {all} new arenas"))
}

fn retained_sentence(facts: &Facts, growth: &Growth) -> (String, Option<bool>) {
    let share = growth.share(growth.retained);
    let freed: u64 = facts.stacks.iter().map(|stack| stack.freed_bytes).sum();
    let keeper = retention::keeper(facts.memory, growth.retained);
    let allocator = keeper.map(AllocatorMemory::sentence);
    let allocator = allocator.unwrap_or_else(|| facts.allocator.unwrap_or("the allocator").to_owned());
    if freed < growth.retained / LEAST_FREED && facts.freed_older_blocks == 0 {
        // Too little was freed that could have been kept.
        let sentence = format!(
            "memory that {allocator} gave out before this window is now being touched; start recording earlier"
        );
        return (format!("{sentence}{share}"), None);
    }
    let advice = match (keeper, facts.allocator) {
        (Some(keeper), _) => retention::advice(keeper, facts.program),
        (None, Some("glibc")) => "; try MALLOC_ARENA_MAX=2, malloc_trim or jemalloc".to_owned(),
        (None, Some("jemalloc")) => "; try a smaller dirty_decay_ms".to_owned(),
        (None, Some("tcmalloc")) => "; try a larger TCMALLOC_RELEASE_RATE".to_owned(),
        (None, _) => String::new(),
    };
    (format!("not a leak: freed memory kept by {allocator}{advice}{share}"), Some(false))
}

/// What is kept was freed: in the window at least this part of it.
const LEAST_FREED: u64 = 4;

fn per_minute(bytes_per_second: f64) -> String {
    // A float cast saturates.
    format!("{}/min", Bytes((bytes_per_second * 60.0) as u64))
}

/// The allocator that a process uses, by the libraries whose code it has mapped. One that is linked into the program is
/// not told from the C library's.
#[must_use]
pub fn allocator_of<'a>(mapped_files: impl IntoIterator<Item = &'a str>) -> Option<&'static str> {
    const LIBRARIES: [(&str, &str); 6] = [
        ("libjemalloc", "jemalloc"),
        ("libtcmalloc", "tcmalloc"),
        ("libmimalloc", "mimalloc"),
        ("libc.so", "glibc"),
        ("libc-", "glibc"),
        ("ld-musl", "musl"),
    ];
    let library = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        LIBRARIES.iter().position(|(beginning, _)| file.starts_with(beginning))
    };
    let first = mapped_files.into_iter().filter_map(library).min()?;
    LIBRARIES.get(first).map(|&(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::analyze::outcome::tests::bare;
    use crate::model::{Frame, PartSize};

    const MIB: u64 = 1 << 20;
    const WINDOW: Duration = Duration::from_secs(60);

    /// A cause, and the stack that is all of it.
    #[derive(Clone)]
    struct Made {
        cause: Cause,
        stack: StackReport,
    }

    fn made(function: &str, kind: Kind, verdict: Verdict, weight: u64, rate: f64) -> Made {
        let cause = Cause {
            place: format!("addon.node: {function}"),
            by: Vec::new(),
            below: None,
            called_from: None,
            first_touch: false,
            kind,
            verdict,
            reason: String::new(),
            weight_bytes: weight,
            outstanding_objects: weight / 4096,
            freed_objects: 0,
            objects_of_new_processes: 0,
            standard_error_bytes: None,
            growth_bytes_per_second: Some(rate),
            history_bytes: Vec::new(),
            stacks: 1,
            processes: 1,
        };
        let stack = StackReport {
            kind,
            weight_bytes: weight,
            outstanding_objects: weight / 4096,
            allocated_objects: weight / 4096,
            ..bare()
        };
        Made { cause, stack }
    }

    fn memory(grown: &[(Part, i64)]) -> Memory {
        let part = |&(part, bytes): &(Part, i64)| PartSize {
            part,
            before_bytes: 1000,
            after_bytes: 1000 + bytes,
            runtime: None,
            estimated: part == Part::Allocator,
            note: None,
        };
        Memory { parts: grown.iter().map(part).collect(), ..Memory::default() }
    }

    fn verdict(made: &[Made], grown: &[(Part, u64)]) -> (String, Option<bool>) {
        let grown: Vec<_> = grown.iter().map(|&(part, mebibytes)| (part, (mebibytes * MIB) as i64)).collect();
        verdict_of(made, &memory(&grown), 0)
    }

    fn verdict_of(made: &[Made], memory: &Memory, freed_older_blocks: u64) -> (String, Option<bool>) {
        facts_of(made, memory, freed_older_blocks, 0)
    }

    fn facts_of(
        made: &[Made],
        memory: &Memory,
        freed_older_blocks: u64,
        sample_bytes: u64,
    ) -> (String, Option<bool>) {
        let stacks: Vec<_> = made.iter().map(|made| made.stack.clone()).collect();
        let causes: Vec<_> = made.iter().map(|made| made.cause.clone()).collect();
        let verdict = of(&Facts {
            window: WINDOW,
            had: WINDOW,
            memory: Some(memory),
            stacks: &stacks,
            causes: &causes,
            sample_bytes,
            freed_older_blocks,
            evenly_freed_older_blocks: freed_older_blocks,
            shared_memory: 0,
            outstanding: &[],
            runtime: Some(Runtime::V8),
            allocator: Some("glibc"),
            program: "service",
            python_objects: false,
        });
        (verdict.summary, verdict.leaking)
    }

    #[test]
    fn who_touched_memory_first_is_not_blamed_for_keeping_it() {
        let of = |verdict_of_cause, weight: u64| {
            let mut touched = made("Render", Kind::Native, verdict_of_cause, weight * MIB, 1.5 * MIB as f64);
            touched.cause.first_touch = true;
            verdict(&[touched], &[(Part::Native, 100)])
        };
        let who = "memory first touched by `addon.node: Render`";
        let said = format!("growing 90.0 MiB/min in {who} (90 % of the growth); who keeps it is not known");
        assert_eq!(of(Verdict::Leaking, 90), (said, Some(true)));
        for (verdict, says) in [
            (Verdict::Steady, format!("not a leak: {who} goes as fast as it comes, and is 90.0 MiB now")),
            (Verdict::OneOff, format!("not a leak: {who} came to 90.0 MiB, and to no more")),
            (Verdict::Growing, format!("growing 90.0 MiB/min in {who} (90 % of the growth): not enough")),
        ] {
            let (summary, leaking) = of(verdict, 90);
            assert!(summary.starts_with(&says) && leaking != Some(true), "{summary}");
        }
    }

    #[test]
    fn what_a_sample_has_not_seen_is_not_taken_for_older_memory() {
        let of = |known: u64, sample_bytes| {
            let unknown = made("key", Kind::Native, Verdict::Unknown, known * MIB / 16, 0.0);
            facts_of(&[unknown], &memory(&[(Part::Native, 2 * MIB as i64)]), 0, sample_bytes).0
        };
        assert!(of(8, MIB / 8).starts_with("512.0 KiB more in `addon.node: key`"), "{}", of(8, MIB / 8));
        assert!(of(1, MIB / 8).contains("too few samples"), "{}", of(1, MIB / 8));
        for sample_bytes in [0, MIB / 64] {
            assert!(of(8, sample_bytes).contains("before this window"), "{}", of(8, sample_bytes));
        }
    }

    #[test]
    fn what_is_not_known_is_said_beside_a_heap_that_grows() {
        let of = |mebibytes| {
            let unknown = made("field", Kind::Native, Verdict::Unknown, mebibytes * MIB, 0.0);
            verdict(&[unknown], &[(Part::Managed, 60), (Part::Native, mebibytes)]).0
        };
        let sentence = of(30);
        assert!(sentence.starts_with("the JavaScript heap is what grows"), "{sentence}");
        assert!(
            sentence.ends_with(
                "it is not known whether 30.0 MiB in `addon.node: field` (33 % of the growth) leak"
            ),
            "{sentence}"
        );
        assert!(!of(2).contains("field"));
    }

    #[test]
    fn what_has_come_down_cannot_have_leaked_more_than_it_held_then() {
        // Beside 90 MiB that a function freed and allocated again, of which 8 MiB are of a cause that tells too little.
        let of = |history: &[u64], sample_bytes| {
            let mut small = made("pool", Kind::Native, Verdict::Unknown, 8 * MIB, 0.0);
            small.cause.history_bytes = history.iter().map(|mebibytes| mebibytes * MIB).collect();
            let steady = made("work", Kind::Native, Verdict::Steady, 82 * MIB, 0.0);
            facts_of(&[steady, small], &memory(&[(Part::Native, 90 * MIB as i64)]), 0, sample_bytes).1
        };
        let waves = [0, 6, 9, 1, 5, 8, 2, 7, 9, 1, 4, 8];
        assert_eq!(of(&waves, 0), Some(false));
        // Sampled so sparsely, a leak may not have been seen.
        assert_eq!(of(&waves, MIB), None);
        assert_eq!(of(&[0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8], 0), None, "a leak");
        assert_eq!(of(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 8], 0), None, "large blocks that came late");
        assert_eq!(of(&[0, 3, 9, 4, 9, 4, 9, 5, 9, 6, 7, 8], 0), None, "a leak under waves");
        assert_eq!(of(&[9, 0], 0), None, "hardly looked at");
    }

    fn leak(weight: u64) -> Made {
        made("Session::Open", Kind::Native, Verdict::Leaking, weight, weight as f64 / 60.0)
    }

    #[test]
    fn a_leak_says_how_fast_and_where() {
        let grown = [(Part::Native, 90), (Part::Managed, 7), (Part::Allocator, 3)];
        let (summary, leaking) = verdict(&[leak(90 * MIB)], &grown);
        assert_eq!(summary, "leaking 90.0 MiB/min in `addon.node: Session::Open` (90 % of the growth)");
        assert_eq!(leaking, Some(true));
        let (small, other) = (
            made("log", Kind::Native, Verdict::Leaking, 4 * MIB, 4.0 * MIB as f64 / 60.0),
            made("fill", Kind::Mapping, Verdict::Leaking, 6 * MIB, 0.0),
        );
        let (summary, _) = verdict(&[leak(80 * MIB), small, other], &grown);
        assert_eq!(
            summary,
            "leaking 80.0 MiB/min in `addon.node: Session::Open` (80 % of the growth), and 10.0 MiB/min in 2 more places"
        );
    }

    #[test]
    fn what_leaks_in_step_with_a_leak_is_named() {
        let mut state = made("ZCtx::New", Kind::Native, Verdict::Leaking, 4 * MIB, 0.0);
        state.cause.outstanding_objects = 40 * MIB / 4096 * 2 + 9;
        let other = made("log", Kind::Native, Verdict::Leaking, 5 * MIB, 0.0);
        let (summary, _) = verdict(&[leak(40 * MIB), other, state], &[(Part::Native, 50)]);
        assert!(
            summary.ends_with("and 9.0 MiB/min in 2 more places (in step with it: `addon.node: ZCtx::New`)"),
            "{summary}"
        );
    }

    #[test]
    fn a_leak_names_who_asked_and_by_what() {
        let mut leak = leak(90 * MIB);
        leak.cause.by = vec!["PyUnicode_New".to_owned(), "PyObject_Malloc".to_owned()];
        leak.cause.below = Some("handle".to_owned());
        (leak.cause.stacks, leak.cause.processes) = (37, 5);
        let (summary, _) = verdict(&[leak], &[(Part::Native, 100)]);
        assert_eq!(
            summary,
            "leaking 90.0 MiB/min in `addon.node: Session::Open` below `handle` (by `PyUnicode_New` → `PyObject_Malloc`), in 37 \
             stacks of 5 processes (90 % of the growth)"
        );
    }

    #[test]
    fn a_leak_of_reused_memory_is_a_leak() {
        assert_eq!(verdict(&[leak(MIB)], &[(Part::Native, 0)]).1, Some(true));
    }

    #[test]
    fn a_queue_is_no_leak_where_older_blocks_are_known() {
        let queue = [leak(100 * MIB)];
        let blocks = queue[0].stack.outstanding_objects;
        let mut memory = memory(&[(Part::Native, MIB as i64), (Part::Allocator, 0)]);
        assert_eq!(verdict_of(&queue, &memory, blocks).1, None, "the process did not grow");
        memory.parts[1].after_bytes += 60 * MIB as i64;
        assert_eq!(verdict_of(&queue, &memory, blocks).1, Some(true), "an estimate tells nothing of them");
        memory.parts[1].after_bytes -= 60 * MIB as i64;
        memory.parts[1].estimated = false;
        let (summary, leaking) = verdict_of(&queue, &memory, blocks);
        assert_eq!(
            summary,
            "`addon.node: Session::Open` allocates 100.0 MiB/min, while as many older blocks are freed: record for longer than \
             a block lives"
        );
        assert_eq!(leaking, None);
        // Reused memory, and few large blocks that were freed.
        assert_eq!(verdict_of(&queue, &memory, 0).1, Some(true));
        assert_eq!(verdict_of(&queue, &memory, blocks / 3).1, Some(true));
        memory.parts[0].after_bytes += 60 * MIB as i64;
        assert_eq!(verdict_of(&queue, &memory, blocks).1, Some(true));
    }

    #[test]
    fn a_collector_of_garbage_hides_no_leak() {
        // 100 MiB look like a leak, while nothing grows: 20,000 older blocks were freed, some of them all the time.
        let of = |evenly_freed_older_blocks, causes: &[Made]| {
            let (stacks, causes): (Vec<_>, Vec<_>) =
                causes.iter().cloned().map(|made| (made.stack, made.cause)).unzip();
            let mut memory = memory(&[(Part::Native, 0), (Part::Allocator, 0), (Part::File, 9 * MIB as i64)]);
            memory.parts[1].estimated = false;
            of(&Facts {
                window: WINDOW,
                had: WINDOW,
                memory: Some(&memory),
                stacks: &stacks,
                causes: &causes,
                sample_bytes: 0,
                freed_older_blocks: 20_000,
                evenly_freed_older_blocks,
                shared_memory: 0,
                outstanding: &[],
                runtime: Some(Runtime::V8),
                allocator: Some("glibc"),
                program: "service",
                python_objects: false,
            })
        };
        assert_eq!(of(20_000, &[leak(80 * MIB)]).leaking, None, "a queue");
        assert_eq!(of(400, &[leak(80 * MIB)]).leaking, Some(true), "what was garbage when the window opened");
        let mut of_workers = leak(80 * MIB);
        of_workers.cause.objects_of_new_processes = of_workers.cause.outstanding_objects / 3 * 2;
        assert_eq!(of(20_000, &[of_workers]).leaking, Some(true), "workers that were replaced");
        // Beside a queue, so many small blocks that they can be none.
        let mut tiny = made("Iterator", Kind::Native, Verdict::Leaking, 4 * MIB, 0.0);
        (tiny.cause.outstanding_objects, tiny.stack.outstanding_objects) = (50_000, 50_000);
        let verdict = of(20_000, &[leak(80 * MIB), tiny]);
        assert!(verdict.summary.contains("`addon.node: Iterator`"), "{}", verdict.summary);
        assert_eq!(verdict.leaking, Some(true));
    }

    #[test]
    fn next_to_nothing_is_no_leak_beside_something_else() {
        // A log that fills, while values come.
        let grown = [(Part::Allocator, 2), (Part::Native, 0)];
        let mut freed = made("values", Kind::Native, Verdict::Steady, MIB / 4, 0.0);
        freed.stack.freed_bytes = 80 * MIB;
        let with = |weight| verdict(&[freed.clone(), leak(weight)], &grown);
        let (summary, leaking) = with(SPECK - 4096);
        assert!(summary.ends_with("too little to tell a leak") && leaking.is_none(), "{summary}");
        assert_eq!(with(2 * SPECK).1, Some(true));
        assert_eq!(with(4096).1, Some(false));
    }

    #[test]
    fn a_leak_of_tiny_blocks_is_not_kept_memory() {
        // Blocks of one byte take 32.
        let mut tiny = leak(MIB);
        (tiny.cause.outstanding_objects, tiny.stack.outstanding_objects) = (MIB, MIB);
        tiny.stack.freed_bytes = 1;
        let (summary, leaking) = verdict(&[tiny], &[(Part::Native, 1), (Part::Allocator, 31)]);
        assert!(summary.ends_with("(100 % of the growth)") && leaking == Some(true), "{summary}");
    }

    #[test]
    fn next_to_nothing_is_no_leak_where_nothing_grows() {
        // The log of slow commands of a redis, until it is full.
        let (summary, leaking) = verdict(&[leak(1500)], &[]);
        assert!(
            summary.ends_with(": too little to tell a leak; record longer") && leaking.is_none(),
            "{summary}"
        );
        assert_eq!(verdict(&[leak(SPECK)], &[]).1, Some(true));
    }

    #[test]
    fn a_small_leak_comes_second() {
        let grown = [(Part::Managed, 100), (Part::Native, 5)];
        assert_eq!(
            verdict(&[leak(5 * MIB)], &grown),
            (
                "the JavaScript heap is what grows: take a heap snapshot (95 % of the growth); besides, 5.0 MiB/min leak \
                 in `addon.node: Session::Open`"
                    .to_owned(),
                Some(true)
            )
        );
        let (summary, leaking) = verdict(&[leak(MIB / 2)], &grown);
        assert!(!summary.contains("besides") && leaking.is_none(), "{summary}");
    }

    #[test]
    fn what_the_allocator_keeps_is_no_leak_if_anything_was_freed() {
        let mut freed = made("f", Kind::Native, Verdict::Steady, 10 * MIB, 0.0);
        let grown = [(Part::Allocator, 90), (Part::Native, 10)];
        let (summary, leaking) = verdict(&[freed.clone()], &grown);
        assert!(summary.starts_with("memory that glibc gave out before") && leaking.is_none(), "{summary}");
        freed.stack.freed_bytes = 80 * MIB;
        assert_eq!(
            verdict(&[freed], &grown),
            (
                "not a leak: freed memory kept by glibc; try MALLOC_ARENA_MAX=2, malloc_trim or jemalloc (89 % of the \
                 growth)"
                    .to_owned(),
                Some(false)
            )
        );
    }

    #[test]
    fn what_is_kept_is_that_of_the_allocator_that_holds_it() {
        let keeper = AllocatorMemory {
            name: Some("mimalloc".to_owned()),
            file: "libarrow.so.2100".to_owned(),
            resident_bytes: 90 * MIB,
            kept_before_bytes: 0,
            kept_after_bytes: 90 * MIB,
            trimmable_bytes: None,
            is_whole_file: false,
        };
        let memory = Memory { allocators: vec![keeper], ..memory(&[(Part::Allocator, 90 * MIB as i64)]) };
        let mut freed = made("f", Kind::Native, Verdict::Steady, MIB, 0.0);
        freed.stack.freed_bytes = 80 * MIB;
        let (summary, leaking) = verdict_of(&[freed.clone()], &memory, 0);
        assert!(
            summary.starts_with("not a leak: freed memory kept by the mimalloc in libarrow.so.2100; "),
            "{summary}"
        );
        assert_eq!(leaking, Some(false));
        // Hardly anything was freed, so it is something else that is kept.
        freed.stack.freed_bytes = MIB;
        assert_eq!(verdict_of(&[freed], &memory, 0).1, None);
    }

    #[test]
    fn workers_that_live_too_short_are_not_few_blocks() {
        let mut workers = made("f", Kind::Native, Verdict::Unknown, 40 * MIB, 0.0);
        workers.cause.objects_of_new_processes = workers.cause.outstanding_objects;
        let (summary, leaking) = verdict(&[workers], &[(Part::Native, 40)]);
        assert!(summary.contains("let each live for ten seconds"), "{summary}");
        assert_eq!(leaking, None);
    }

    #[test]
    fn who_hardly_got_a_processor_is_neither_convicted_nor_acquitted() {
        let seconds = Duration::from_secs;
        let of = |had, window, leaking| unless_starved(had, window, ("leaking".to_owned(), leaking));
        for (had, window) in [(2, 10), (10, 10), (3, 600), (1, 3)] {
            assert_eq!(of(seconds(had), seconds(window), Some(true)).1, Some(true), "{had} of {window} s");
        }
        let (sentence, leaking) = of(Duration::from_millis(400), seconds(10), Some(true));
        assert_eq!(
            sentence,
            "no verdict, since it waited for a CPU for 9.6 of 10.0 s: record longer, or when less else runs; it looked like: \
             leaking"
        );
        assert_eq!(leaking, None);
        assert_eq!(of(seconds(1), seconds(600), Some(false)).1, None);
        assert_eq!(of(seconds(1), seconds(600), None), ("leaking".to_owned(), None));
    }

    #[test]
    fn objects_that_are_followed_are_held() {
        let mut leak = leak(30 * MIB);
        leak.stack.api = "_PyObject_Malloc".to_owned();
        let mut memory = memory(&[(Part::Managed, 31 * MIB as i64), (Part::Native, 0), (Part::Allocator, 0)]);
        memory.parts[2].estimated = false;
        let of = |python_objects| {
            let verdict = of(&Facts {
                window: WINDOW,
                had: WINDOW,
                memory: Some(&memory),
                stacks: &[leak.stack.clone()],
                causes: &[leak.cause.clone()],
                sample_bytes: 0,
                // As many as it holds: older objects are freed, too.
                freed_older_blocks: leak.stack.outstanding_objects,
                evenly_freed_older_blocks: leak.stack.outstanding_objects,
                shared_memory: 0,
                outstanding: &[],
                runtime: Some(Runtime::CPython),
                allocator: Some("glibc"),
                program: "service",
                python_objects,
            });
            (verdict.summary, verdict.leaking)
        };
        let (summary, leaking) = of(true);
        assert!(summary.starts_with("leaking 30.0 MiB/min in `addon.node: Session::Open`"), "{summary}");
        assert_eq!(leaking, Some(true));
        assert!(of(false).0.contains("older blocks"));
    }

    #[test]
    fn a_little_that_a_collector_may_still_free_is_no_leak_yet() {
        let mut wrapped = made("Wrap::New", Kind::Native, Verdict::Leaking, 4 * MIB / 10, 100.0);
        wrapped.cause.freed_objects = 20 * wrapped.cause.outstanding_objects;
        let batch = made("batch", Kind::Native, Verdict::Steady, 20 * MIB, 0.0);
        for grown in [&[(Part::Native, 20)][..], &[(Part::Native, 0)]] {
            let (sentence, leaking) = verdict(&[batch.clone(), wrapped.clone()], grown);
            assert_eq!(leaking, None, "{sentence}");
            assert!(
                sentence.contains("Wrap::New`: a leak, or garbage that is not collected yet"),
                "{sentence}"
            );
        }
        let (sentence, leaking) = verdict(&[wrapped.clone()], &[(Part::Native, 1)]);
        assert_eq!(leaking, Some(true), "it is what grew: {sentence}");
        wrapped.cause.freed_objects = 0;
        let (sentence, leaking) = verdict(&[batch, wrapped], &[(Part::Native, 20)]);
        assert_eq!(leaking, Some(true), "nothing of it is ever freed: {sentence}");
    }

    #[test]
    fn a_burst_at_the_end_makes_no_leak_of_a_log() {
        let mut log = made("call", Kind::Native, Verdict::Leaking, 90_000, 700.0);
        log.cause.history_bytes =
            (0..24).map(|at| if at < 20 { 200 * at } else { 22_500 * (at - 19) }).collect();
        let (sentence, leaking) = verdict(&[log.clone()], &[(Part::Native, 0)]);
        assert_eq!(leaking, None, "{sentence}");
        assert!(sentence.contains("too little to tell a leak"), "{sentence}");
        log.cause.history_bytes = (0..24).map(|at| 3900 * at).collect();
        assert_eq!(verdict(&[log.clone()], &[(Part::Native, 0)]).1, Some(true));
        log.cause.history_bytes = (0..24_u64).map(|at| 11_000 * at.saturating_sub(15)).collect();
        assert_eq!(verdict(&[log], &[(Part::Native, 0)]).1, Some(true), "one that begins late is one");
    }

    #[test]
    fn who_asked_for_most_arenas_of_python_is_named() {
        let of = |arenas: &[(&str, u64)]| {
            let stack = |&(module, outstanding_objects): &(&str, u64)| StackReport {
                kind: Kind::Managed,
                outstanding_objects,
                frames: ["libpython3.11.so.1.0: new_arena", "libpython3.11.so.1.0: _PyLong_New", module]
                    .map(|name| name.split_once(": ").unwrap())
                    .map(|(module, function)| {
                        Arc::new(Frame {
                            module: Some(module.to_owned()),
                            function: Some(function.to_owned()),
                            ..Frame::default()
                        })
                    })
                    .to_vec(),
                ..bare()
            };
            let verdict = of(&Facts {
                window: WINDOW,
                had: WINDOW,
                memory: Some(&memory(&[(Part::Managed, 50 * MIB as i64)])),
                stacks: &arenas.iter().map(stack).collect::<Vec<_>>(),
                causes: &[],
                sample_bytes: 0,
                freed_older_blocks: 0,
                evenly_freed_older_blocks: 0,
                shared_memory: 0,
                outstanding: &[],
                runtime: Some(Runtime::CPython),
                allocator: Some("glibc"),
                program: "service",
                python_objects: false,
            });
            (verdict.summary, verdict.leaking)
        };
        let (sentence, leaking) = of(&[("ujson.so: decode", 7), ("other.so: f", 2)]);
        assert!(
            sentence.starts_with(
                "the Python heap is what grows: `ujson.so: decode` asked for 7 of its 9 new arenas; --objects"
            ),
            "{sentence}"
        );
        assert_eq!(leaking, None);
        for little in [&[("ujson.so: decode", 3)][..], &[("a.so: f", 3), ("b.so: g", 3)]] {
            assert!(!of(little).0.contains("asked for"));
        }
    }

    #[test]
    fn what_is_held_is_told_by_its_history() {
        let of = |verdict_of_stack| {
            let (summary, leaking) =
                verdict(&[made("f", Kind::Native, verdict_of_stack, 20 * MIB, 0.0)], &[(Part::Native, 20)]);
            (summary.split('`').next().unwrap().to_owned(), leaking)
        };
        assert_eq!(of(Verdict::Growing), ("growing 20.0 MiB/min in ".to_owned(), None));
        assert_eq!(of(Verdict::Unknown), ("20.0 MiB more in ".to_owned(), None));
        assert_eq!(of(Verdict::Steady), ("not a leak: ".to_owned(), Some(false)));
        assert_eq!(of(Verdict::OneOff), ("not a leak: ".to_owned(), Some(false)));
    }

    #[test]
    fn what_came_at_the_end_is_said_to_be_late_not_to_be_little() {
        let summary_with = |history_bytes: Vec<u64>| {
            let mut late = made("f", Kind::Native, Verdict::Unknown, 20 * MIB, 0.0);
            late.cause.history_bytes = history_bytes;
            verdict(&[late], &[(Part::Native, 20)]).0
        };
        let held = |points: usize| [vec![0; 64 - points], vec![20 * MIB; points]].concat();
        assert!(summary_with(held(11)).contains("came at the end of this window"));
        for early in [held(12), held(64), vec![20 * MIB; 8], Vec::new()] {
            assert!(summary_with(early).contains("too few blocks"));
        }
    }

    #[test]
    fn without_growth_nothing_leaks_if_all_is_told() {
        let of = |verdict_of_cause| {
            let held = made("f", Kind::Native, verdict_of_cause, 900 << 10, 1.0);
            verdict(&[held], &[(Part::Native, 0), (Part::File, 0)])
        };
        let (summary, leaking) = of(Verdict::Steady);
        assert_eq!(summary, "no growth in this window; record longer or under load");
        assert_eq!(leaking, Some(false));
        let (summary, leaking) = of(Verdict::Growing);
        assert!(summary.starts_with("growing 60 B/min in `addon.node: f`") && leaking.is_none(), "{summary}");
        assert_eq!(of(Verdict::Unknown).1, None);
    }

    #[test]
    fn nothing_is_acquitted_beside_what_is_not_told() {
        let told = made("fill", Kind::Native, Verdict::OneOff, 90 * MIB, 0.0);
        let not_told = |weight| made("grow", Kind::Native, Verdict::Unknown, weight, 0.0);
        let grown = [(Part::Native, 100)];
        assert_eq!(verdict(&[told.clone(), not_told(4 * MIB)], &grown).1, Some(false));
        let (summary, leaking) = verdict(&[told, not_told(10 * MIB)], &grown);
        assert!(summary.contains("`addon.node: grow`") && leaking.is_none(), "{summary}");
    }

    #[test]
    fn a_few_samples_acquit_nobody() {
        let steady = [made("f", Kind::Native, Verdict::Steady, 9 * MIB, 0.0)];
        let memory = memory(&[(Part::Native, 10 << 20)]);
        assert_eq!(facts_of(&steady, &memory, 0, 1 << 18).1, Some(false));
        let (summary, leaking) = facts_of(&steady, &memory, 0, 1 << 19);
        assert!(summary.contains("too few samples"), "{summary}");
        assert_eq!(leaking, None);
    }

    #[test]
    fn files_and_old_mappings() {
        let (summary, leaking) = verdict(&[], &[(Part::File, 50)]);
        assert!(summary.contains("mapped files") && leaking == Some(false), "{summary}");
        let (summary, leaking) = verdict(&[], &[(Part::Mapping, 50)]);
        assert!(summary.contains("before this window") && leaking.is_none(), "{summary}");
    }

    #[test]
    fn the_allocator_is_known_by_its_library() {
        let libc = "/usr/lib/libc.so.6";
        assert_eq!(allocator_of([libc, "/opt/libjemalloc.so.2"]), Some("jemalloc"));
        assert_eq!(allocator_of([libc, "[heap]"]), Some("glibc"));
        assert_eq!(allocator_of([]), None);
    }
}
