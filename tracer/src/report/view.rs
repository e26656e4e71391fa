//! What all pictures share: which stacks are drawn, how heavy they are, and what their frames are called.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::ops::Deref;
use std::sync::Arc;

use super::human::printable;
use super::{Options, QuickMap, WeightUnit};
use crate::model::{Frame, Kind, Pid, Process, Profile, StackReport};

/// The stacks to draw, heaviest first; all hold something, but those that hold blocks may have no bytes: a mapping that was
/// never touched.
pub(super) struct View<'a> {
    pub stacks: Vec<&'a StackReport>,
    pub weight: WeightUnit,
    /// Sum of the weights.
    pub total: u64,
}

impl<'a> View<'a> {
    pub fn new(profile: &'a Profile, options: &Options) -> Self {
        let weight = options.weight;
        let holds = |stack: &StackReport| stack.weight_bytes > 0 || stack.outstanding_objects > 0;
        let drawn = |stack: &&StackReport| options.includes(stack.kind) && holds(stack);
        let mut stacks: Vec<_> = profile.stacks.iter().filter(drawn).collect();
        // Stable: what is equally heavy keeps the profile's order.
        stacks.sort_by_key(|stack| std::cmp::Reverse(weight.of(stack)));
        let total = sum(stacks.iter().copied(), |stack| weight.of(stack));
        Self { stacks, weight, total }
    }

    /// What the stacks weigh in bytes, whatever they are drawn by.
    pub fn bytes(&self) -> u64 {
        sum(self.stacks.iter().copied(), |stack| stack.weight_bytes)
    }

    /// Blocks and mappings of the stacks.
    pub fn objects(&self) -> u64 {
        sum(self.stacks.iter().copied(), |stack| stack.outstanding_objects)
    }
}

/// The stacks to draw, those that read the same as one, heaviest first.
pub(crate) fn drawn_stacks(profile: &Profile, options: &Options) -> Vec<StackReport> {
    let view = View::new(profile, options);
    alike_as_one(&view.stacks, view.weight).iter().map(|stack| StackReport::clone(stack)).collect()
}

/// A stack of a profile, or the sum of several. There may be many of them, most of the first kind: it is no larger than that.
pub(super) enum Merged<'a> {
    One(&'a StackReport),
    Sum(Box<StackReport>),
}

impl Merged<'_> {
    fn add(&mut self, stack: &StackReport) {
        match self {
            Merged::One(one) => {
                let mut sum = Box::new(one.clone());
                add(&mut sum, stack);
                *self = Merged::Sum(sum);
            }
            Merged::Sum(sum) => add(sum, stack),
        }
    }
}

impl Deref for Merged<'_> {
    type Target = StackReport;

    fn deref(&self) -> &StackReport {
        match self {
            Merged::One(one) => one,
            Merged::Sum(sum) => sum,
        }
    }
}

/// Stacks that read the same as one, heaviest first, as they come in: a compiler of a language runtime compiles a function again as it
/// gets hot, so one leak has many stacks whose addresses alone differ.
pub(super) fn alike_as_one<'a>(stacks: &[&'a StackReport], weight: WeightUnit) -> Vec<Merged<'a>> {
    let mut merged: Vec<Merged<'a>> = Vec::new();
    let mut places: QuickMap<VisibleStack<'_>, usize> = QuickMap::default();
    let mut reader = VisibleNames::default();
    for stack in stacks {
        match places.entry(reader.reading(stack)) {
            Entry::Occupied(place) => merged[*place.get()].add(stack),
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(Merged::One(stack));
            }
        }
    }
    merged.sort_by_key(|stack| std::cmp::Reverse(weight.of(stack)));
    merged
}

/// All that a reader sees of a stack beside figures.
type VisibleStack<'a> = (Option<Pid>, Option<u32>, Kind, &'a str, Option<&'a str>, Vec<u32>);

/// Numbers what a reader sees of frames.
#[derive(Default)]
struct VisibleNames<'a> {
    by_text: QuickMap<(Cow<'a, str>, Option<u32>), u32>,
    /// Stacks share their frames: one is read once.
    by_frame: QuickMap<*const Frame, u32>,
}

impl<'a> VisibleNames<'a> {
    fn reading(&mut self, stack: &'a StackReport) -> VisibleStack<'a> {
        let frames = stack.frames.iter().map(|frame| self.number(frame)).collect();
        (stack.pid, stack.process, stack.kind, &stack.api, stack.stop.as_deref(), frames)
    }

    fn number(&mut self, frame: &'a Arc<Frame>) -> u32 {
        *self.by_frame.entry(Arc::as_ptr(frame)).or_insert_with(|| {
            let next = number(self.by_text.len());
            *self.by_text.entry((frame_label(frame), frame.line)).or_insert(next)
        })
    }
}

fn add(sum: &mut StackReport, stack: &StackReport) {
    let figures = [
        (&mut sum.weight_bytes, stack.weight_bytes),
        (&mut sum.outstanding_bytes, stack.outstanding_bytes),
        (&mut sum.outstanding_objects, stack.outstanding_objects),
        (&mut sum.allocated_bytes, stack.allocated_bytes),
        (&mut sum.allocated_objects, stack.allocated_objects),
        (&mut sum.freed_bytes, stack.freed_bytes),
        (&mut sum.freed_objects, stack.freed_objects),
    ];
    for (figure, more) in figures {
        *figure = figure.saturating_add(more);
    }
    // What is not known of one is not known of all.
    sum.resident_bytes = sum.resident_bytes.zip(stack.resident_bytes).map(|(a, b)| a.saturating_add(b));
    sum.growth_bytes_per_second =
        sum.growth_bytes_per_second.zip(stack.growth_bytes_per_second).map(|(a, b)| a + b);
    if sum.history_bytes.len() == stack.history_bytes.len() {
        let more = sum.history_bytes.iter_mut().zip(&stack.history_bytes);
        more.for_each(|(size, more)| *size = size.saturating_add(*more));
    } else {
        sum.history_bytes.clear();
    }
    sum.oldest_age_ns = sum.oldest_age_ns.max(stack.oldest_age_ns);
    sum.standard_error_bytes = standard_error([&*sum, stack].into_iter());
    // Of several it cannot be told; where one holds nothing to speak of, it is that of the other.
    if stack.weight_bytes > sum.weight_bytes / 100 {
        sum.median_age_ns = None;
    }
}

/// The standard error of what stacks hold together; none when all is exact.
pub(super) fn standard_error<'a>(stacks: impl Iterator<Item = &'a StackReport>) -> Option<u64> {
    let errors = stacks.filter_map(|stack| stack.standard_error_bytes);
    errors.map(|error| error as f64).reduce(f64::hypot).map(|error| error.round() as u64)
}

/// Saturates: a profile read from a file may hold any number.
pub(super) fn sum<'a>(
    stacks: impl IntoIterator<Item = &'a StackReport>,
    figure: impl Fn(&StackReport) -> u64,
) -> u64 {
    stacks.into_iter().fold(0, |sum, stack| sum.saturating_add(figure(stack)))
}

/// What a box of a flame graph stands for.
#[derive(Clone, Copy)]
pub(super) enum Role<'a> {
    /// A whole process.
    Process(&'a StackReport),
    /// The reason why callers are missing.
    Stop(&'a StackReport),
    /// A function.
    Frame(&'a Arc<Frame>),
    /// The allocator function that was called.
    Api(&'a StackReport),
}

impl<'a> Role<'a> {
    /// What the box says.
    pub fn text(self, profile: &Profile) -> Cow<'a, str> {
        match self {
            Role::Process(stack) => process_name(profile, stack).into(),
            Role::Stop(stack) => format!("[{}]", stop_name(stack).unwrap_or_default()).into(),
            Role::Frame(frame) => frame_label(frame),
            Role::Api(stack) => api_name(stack),
        }
    }
}

/// The boxes of a stack, outermost first: the process when there are several, why callers are missing if any are,
/// the frames, the api.
pub(super) fn boxes<'a>(
    profile: &Profile,
    stack: &'a StackReport,
) -> impl Iterator<Item = Role<'a>> + use<'a> {
    let process = (profile.processes.len() > 1).then_some(Role::Process(stack));
    let stop = (!stack.complete).then_some(Role::Stop(stack));
    let frames = stack.frames.iter().rev().map(Role::Frame);
    process.into_iter().chain(stop).chain(frames).chain([Role::Api(stack)])
}

/// The names of boxes, numbered. Boxes that say the same have one number.
pub(super) struct BoxNames<'a> {
    profile: &'a Profile,
    by_text: QuickMap<Cow<'a, str>, u32>,
    /// Stacks share their frames: the name of one is made once.
    by_frame: QuickMap<*const Frame, u32>,
    /// What they stand for; of several things, the first.
    pub roles: Vec<Role<'a>>,
}

impl<'a> BoxNames<'a> {
    pub fn new(profile: &'a Profile) -> Self {
        Self { profile, by_text: QuickMap::default(), by_frame: QuickMap::default(), roles: Vec::new() }
    }

    pub fn number(&mut self, role: Role<'a>) -> u32 {
        let Role::Frame(frame) = role else { return self.number_of_text(role) };
        match self.by_frame.get(&Arc::as_ptr(frame)) {
            Some(&number) => number,
            None => {
                let number = self.number_of_text(role);
                self.by_frame.insert(Arc::as_ptr(frame), number);
                number
            }
        }
    }

    fn number_of_text(&mut self, role: Role<'a>) -> u32 {
        let roles = &mut self.roles;
        *self.by_text.entry(role.text(self.profile)).or_insert_with(|| {
            roles.push(role);
            number(roles.len() - 1)
        })
    }

    /// The texts by their numbers.
    pub fn texts(&self) -> impl Iterator<Item = Cow<'a, str>> {
        self.roles.iter().map(|role| role.text(self.profile))
    }
}

/// Numbers of names and nodes: a profile with more of them does not fit in memory.
pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 4 billion")
}

/// `comm (pid)` of the first process.
pub(super) fn target_name(profile: &Profile) -> String {
    name_of(&profile.target)
}

/// `comm (pid)` of the process that a stack belongs to.
pub(super) fn process_name(profile: &Profile, stack: &StackReport) -> String {
    let pid = stack.pid.unwrap_or(profile.target.pid);
    let known = stack.process.and_then(|place| profile.processes.get(place as usize));
    let known = known
        .or_else(|| profile.processes.iter().chain([&profile.target]).find(|process| process.pid == pid));
    known.map_or_else(|| format!("? ({pid})"), name_of)
}

/// `comm (pid)`
pub(super) fn name_of(process: &Process) -> String {
    format!("{} ({})", printable(&process.comm), process.pid)
}

/// Why the outermost callers are missing; `None` when the stack is complete.
pub(crate) fn stop_name(stack: &StackReport) -> Option<Cow<'_, str>> {
    (!stack.complete).then(|| stack.stop.as_deref().map_or("incomplete".into(), printable))
}

/// What to call a frame, safe to print, never empty.
pub(crate) fn frame_label(frame: &Frame) -> Cow<'_, str> {
    let label = match &frame.function {
        Some(function) => printable(function),
        None => Cow::Owned(printable(&frame.label()).into_owned()),
    };
    if label.trim().is_empty() { "[unnamed]".into() } else { label }
}

/// What to call the api. No number is its last word: the count that follows it in a line would be mistaken for another.
pub(crate) fn api_name(stack: &StackReport) -> Cow<'_, str> {
    let api = printable(stack.api.trim());
    match api.rsplit_once(char::is_whitespace) {
        Some((head, tail)) if tail.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("{head}_{tail}").into()
        }
        _ if api.is_empty() => "[unnamed]".into(),
        _ => api,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures::{frame, stack};

    #[test]
    fn stacks_whose_addresses_alone_differ_are_one_and_nothing_is_lost() {
        let at =
            |ip| stack("malloc", 100, 3, vec![frame(ip, "leak", "addon.node"), frame(ip + 1, "[anon]", "")]);
        let (first, again) = (at(0x10), at(0x20));
        let other = stack("calloc", 50, 7, first.frames.iter().map(|frame| Frame::clone(frame)).collect());
        let merged = alike_as_one(&[&other, &first, &again], WeightUnit::Bytes);
        let figures: Vec<_> =
            merged.iter().map(|stack| (&*stack.api, stack.weight_bytes, stack.outstanding_objects)).collect();
        assert_eq!(figures, [("malloc", 600, 6), ("calloc", 350, 7)]);
    }
}
