//! What all pictures share: which stacks are drawn, how heavy they are, and what their frames are called.

use std::borrow::Cow;

use super::human::printable;
use super::{Options, Weight};
use crate::model::{Frame, Pid, Profile, StackReport};

/// The stacks to draw, heaviest first; all have a weight.
pub(super) struct View<'a> {
    pub stacks: Vec<&'a StackReport>,
    pub weight: Weight,
    /// Sum of the weights.
    pub total: u64,
}

impl<'a> View<'a> {
    pub fn new(profile: &'a Profile, options: &Options) -> Self {
        let weight = options.weight;
        let drawn = |stack: &&StackReport| options.includes(stack.kind) && weight.of(stack) > 0;
        let mut stacks: Vec<_> = profile.stacks.iter().filter(drawn).collect();
        // Stable: what is equally heavy keeps the profile's order.
        stacks.sort_by_key(|stack| std::cmp::Reverse(weight.of(stack)));
        let total = sum(&stacks, |stack| weight.of(stack));
        Self { stacks, weight, total }
    }

    /// What the stacks weigh in bytes, whatever they are drawn by.
    pub fn bytes(&self) -> u64 {
        sum(&self.stacks, |stack| stack.weight_bytes)
    }

    /// Blocks and mappings of the stacks.
    pub fn objects(&self) -> u64 {
        sum(&self.stacks, |stack| stack.outstanding_objects)
    }
}

/// Saturates: a profile read from a file may hold any number.
pub(super) fn sum(stacks: &[&StackReport], figure: impl Fn(&StackReport) -> u64) -> u64 {
    stacks.iter().fold(0, |sum, stack| sum.saturating_add(figure(stack)))
}

/// A box of a flame graph: what it says and what it stands for.
pub(super) struct Label<'a> {
    pub text: Cow<'a, str>,
    pub role: Role<'a>,
}

/// What a box stands for.
#[derive(Clone, Copy)]
pub(super) enum Role<'a> {
    /// A whole process.
    Process,
    /// The reason why callers are missing.
    Stop,
    /// A function.
    Frame(&'a Frame),
    /// The allocator function that was called.
    Api,
}

/// The boxes of a stack, outermost first: the process when there are several, why callers are missing if any are,
/// the frames, the api.
pub(super) fn labels<'a>(profile: &'a Profile, stack: &'a StackReport) -> impl Iterator<Item = Label<'a>> {
    let several = profile.processes.len() > 1;
    let process =
        several.then(|| Label { text: process_name(profile, stack.pid).into(), role: Role::Process });
    let stop = stop_name(stack).map(|name| Label { text: format!("[{name}]").into(), role: Role::Stop });
    let frames =
        stack.frames.iter().rev().map(|frame| Label { text: frame_label(frame), role: Role::Frame(frame) });
    let api = Label { text: api_name(stack), role: Role::Api };
    process.into_iter().chain(stop).chain(frames).chain([api])
}

/// `comm (pid)` of the process that a stack belongs to.
pub(super) fn process_name(profile: &Profile, pid: Option<Pid>) -> String {
    let pid = pid.unwrap_or(profile.target.pid);
    let known = profile.processes.iter().chain([&profile.target]).find(|process| process.pid == pid);
    format!("{} ({pid})", known.map_or("?".into(), |process| printable(&process.comm)))
}

/// Why the outermost callers are missing; `None` when the stack is complete.
pub(super) fn stop_name(stack: &StackReport) -> Option<Cow<'_, str>> {
    (!stack.complete).then(|| stack.stop.as_deref().map_or("incomplete".into(), printable))
}

/// What to call a frame, safe to print, never empty.
pub(super) fn frame_label(frame: &Frame) -> Cow<'_, str> {
    let label = match &frame.function {
        Some(function) => printable(function),
        None => Cow::Owned(printable(&frame.label()).into_owned()),
    };
    if label.trim().is_empty() { "[unnamed]".into() } else { label }
}

/// What to call the api. No number is its last word: the count that follows it in a line would be mistaken for another.
pub(super) fn api_name(stack: &StackReport) -> Cow<'_, str> {
    let api = printable(stack.api.trim());
    match api.rsplit_once(char::is_whitespace) {
        Some((head, tail)) if tail.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("{head}_{tail}").into()
        }
        _ if api.is_empty() => "[unnamed]".into(),
        _ => api,
    }
}
