//! What grew between two recordings: `tracer diff BASE NEW`.
//!
//! Stacks match by what their frames are called, not by addresses: the recordings may be of different runs, and of
//! different builds.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use serde::Serialize;

use super::human::{Change, Span, counted, moment, printable};
use super::stack_lines::{Paint, stack_lines};
use super::view::{BoxNames, Role, api_name, boxes, target_name};
use super::words::plus_minus;
use super::{Format, Options, QuickMap, WeightUnit, svg};
use crate::model::{Bytes, Frame, Kind, Process, Profile, StackReport, Window};

/// The name and version of the diff's JSON.
pub const SCHEMA: &str = "tracer.diff/1";

/// A comparison cannot be written in this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a comparison cannot be written as {0}; it can as svg, folded and json")]
pub struct UnknownToDiff(Format);

/// Says in which formats a comparison cannot be written.
pub fn check(format: Format) -> Result<(), UnknownToDiff> {
    match format {
        Format::Svg | Format::Folded | Format::Json => Ok(()),
        Format::JsonGz | Format::Pprof | Format::Speedscope | Format::HeapProfile | Format::Html => {
            Err(UnknownToDiff(format))
        }
    }
}

/// Two recordings, stack by stack.
pub struct Diff<'a> {
    base: &'a Profile,
    new: &'a Profile,
    weight: WeightUnit,
    /// What boxes are called, by their numbers.
    names: Vec<Cow<'a, str>>,
    /// Those that grew most come first, then those that did not change, then those that shrank, most last.
    pub stacks: Vec<StackDiff<'a>>,
}

/// A stack in two recordings.
pub struct StackDiff<'a> {
    /// The stack in the newer recording, or in the base when it is only there.
    pub stack: &'a StackReport,
    /// What it held in the base.
    pub before: Amount,
    /// What it held in the newer one.
    pub after: Amount,
    /// Standard error of the change in bytes; 0 when both recordings tracked every allocation.
    pub standard_error: f64,
    /// Numbers of the names of its boxes, outermost first.
    path: Vec<u32>,
}

/// What stacks hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Weight in bytes.
    pub bytes: u64,
    /// Outstanding objects.
    pub objects: u64,
}

impl Amount {
    fn add(&mut self, other: Amount) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.objects = self.objects.saturating_add(other.objects);
    }
}

impl StackDiff<'_> {
    /// By how much it grew.
    #[must_use]
    pub fn change(&self, weight: WeightUnit) -> i64 {
        Change::between(weight.of_amount(self.before), weight.of_amount(self.after)).0
    }

    /// Whether samples are too few to tell that it changed at all: chance alone changes more than this once in 370 times.
    #[must_use]
    pub fn is_noise(&self) -> bool {
        (self.change(WeightUnit::Bytes).unsigned_abs() as f64) < STANDARD_ERRORS * self.standard_error
    }
}

/// A change of fewer standard errors than this is taken for chance.
const STANDARD_ERRORS: f64 = 3.0;

impl<'a> Diff<'a> {
    /// Compares two recordings.
    #[must_use]
    pub fn new(base: &'a Profile, new: &'a Profile, options: &Options) -> Self {
        let mut names = BoxNames::new(new);
        let mut stacks: Vec<StackDiff<'a>> = Vec::new();
        let mut known: QuickMap<(Kind, Vec<u32>), usize> = QuickMap::default();
        for (profile, is_new) in [(new, true), (base, false)] {
            for stack in profile.stacks.iter().filter(|stack| options.includes(stack.kind)) {
                let amount = Amount { bytes: stack.weight_bytes, objects: stack.outstanding_objects };
                // Pids differ between runs.
                let boxes = boxes(profile, stack).filter(|role| !matches!(role, Role::Process(_)));
                let path: Vec<u32> = boxes.map(|role| names.number(role)).collect();
                let entry = known.entry((stack.kind, path)).or_insert_with_key(|(_, path)| {
                    let none = Amount::default();
                    let path = path.clone();
                    stacks.push(StackDiff { stack, before: none, after: none, standard_error: 0.0, path });
                    stacks.len() - 1
                });
                let entry = &mut stacks[*entry];
                if is_new {
                    entry.after.add(amount)
                } else {
                    entry.before.add(amount)
                }
                let error = stack.standard_error_bytes.unwrap_or(0);
                entry.standard_error = entry.standard_error.hypot(error as f64);
            }
        }
        let nothing = Amount::default();
        stacks.retain(|stack| stack.before != nothing || stack.after != nothing);
        stacks.sort_by_key(|stack| std::cmp::Reverse(stack.change(options.weight)));
        Self { base, new, weight: options.weight, names: names.texts().collect(), stacks }
    }

    /// The whole amounts.
    #[must_use]
    pub fn totals(&self) -> (Amount, Amount) {
        self.stacks.iter().fold(Default::default(), |(mut before, mut after): (Amount, Amount), stack| {
            before.add(stack.before);
            after.add(stack.after);
            (before, after)
        })
    }

    /// Writes it in one of the formats that it has: flame graph, folded stacks with two columns, JSON.
    pub fn write(&self, format: Format, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        match format {
            Format::Svg => {
                let (_, after) = self.totals();
                let lines = match options.weight.of_amount(after) {
                    0 => Vec::new(),
                    _ => self.folded(options.weight, svg::SEMICOLON),
                };
                svg::write_diff(self.title(), self.subtitle(), &lines, options, out)
            }
            Format::Folded => {
                self.folded(options.weight, ":").iter().try_for_each(|line| writeln!(out, "{line}"))
            }
            Format::Json => self.write_json(out),
            other => Err(io::Error::other(UnknownToDiff(other))),
        }
    }

    /// Lines of `outermost;..;innermost before after`.
    pub(super) fn folded(&self, weight: WeightUnit, semicolon: &str) -> Vec<String> {
        let names: Vec<String> = self.names.iter().map(|name| name.replace(';', semicolon)).collect();
        let line = |stack: &StackDiff<'_>| {
            let path: Vec<&str> = stack.path.iter().map(|&name| names[name as usize].as_str()).collect();
            format!("{} {} {}", path.join(";"), weight.of_amount(stack.before), weight.of_amount(stack.after))
        };
        let drawn =
            |stack: &&StackDiff<'_>| weight.of_amount(stack.before).max(weight.of_amount(stack.after)) > 0;
        self.stacks.iter().filter(drawn).map(line).collect()
    }

    /// `node: +33.3 MiB outstanding (46.9 MiB → 80.2 MiB)`
    pub(super) fn title(&self) -> String {
        let (before, after) = self.totals();
        let error = self.stacks.iter().fold(0.0, |error: f64, stack| error.hypot(stack.standard_error));
        format!(
            "{}: {}{} outstanding ({} → {})",
            printable(&self.new.target.comm),
            Change::between(before.bytes, after.bytes),
            error_of(error),
            Bytes(before.bytes),
            Bytes(after.bytes)
        )
    }

    pub(super) fn subtitle(&self) -> String {
        format!("from {} to {}", recording(self.base), recording(self.new))
    }

    /// Writes the summary for the terminal.
    pub fn write_text(&self, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let paint = Paint::new(options);
        writeln!(out, "{}", paint.bold(&self.title()))?;
        writeln!(out, "{}", paint.dim(&format!("base: {}", recording(self.base))))?;
        writeln!(out, "{}", paint.dim(&format!("new:  {}", recording(self.new))))?;
        let change = |stack: &StackDiff<'_>| stack.change(self.weight);
        let told = |stack: &&StackDiff<'_>| !stack.is_noise();
        let grew = self.stacks.iter().take_while(|stack| change(stack) > 0).filter(told);
        let shrank = self.stacks.iter().rev().take_while(|stack| change(stack) < 0).filter(told);
        let noise = self.stacks.iter().filter(|stack| change(stack) != 0 && stack.is_noise());
        for stack in grew.clone().take(options.top) {
            writeln!(out, "\n{}", self.stack(stack, options))?;
        }
        let lines = [
            ("grew less", sum(grew.skip(options.top), self.weight)),
            ("shrank", sum(shrank, self.weight)),
            ("changed by less than the error of the sample (3 standard errors)", sum(noise, self.weight)),
        ];
        for (what, (number, change)) in lines.into_iter().filter(|(_, (number, _))| *number > 0) {
            let change = amount(change, self.weight);
            writeln!(out, "\n{change:>12}  in {} that {what}", counted(number, "stack"))?;
        }
        if self.stacks.iter().all(|stack| change(stack) == 0) {
            writeln!(out, "\nNo stack holds more or less than it did.")?;
        }
        Ok(())
    }

    /// One stack: its change, then its frames.
    fn stack(&self, stack: &StackDiff<'_>, options: &Options) -> String {
        let paint = Paint::new(options);
        let change = format!("{:>12}", amount(stack.change(self.weight), self.weight));
        let was = if stack.before == Amount::default() {
            "new: ".to_owned()
        } else {
            format!("{} → ", Bytes(stack.before.bytes))
        };
        let error = match self.weight {
            WeightUnit::Bytes => error_of(stack.standard_error),
            WeightUnit::Objects => String::new(),
        };
        let mut text = format!(
            "{}{error}  {was}{} in {} by {}",
            paint.strong(&change),
            Bytes(stack.after.bytes),
            counted(stack.after.objects, "block"),
            paint.bold(&api_name(stack.stack)),
        );
        for line in stack_lines(stack.stack, options) {
            text.push('\n');
            text += &line;
        }
        text
    }

    fn write_json(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let (before, after) = self.totals();
        let stack = |stack: &StackDiff<'a>| StackJson {
            kind: stack.stack.kind,
            api: &stack.stack.api,
            before: stack.before,
            after: stack.after,
            change_bytes: stack.change(WeightUnit::Bytes),
            change_objects: stack.change(WeightUnit::Objects),
            standard_error_bytes: known_error(stack.standard_error),
            is_noise: stack.is_noise(),
            frames: &stack.stack.frames,
        };
        let json = Json {
            schema: SCHEMA,
            base: RecordingJson { target: &self.base.target, window: &self.base.window, total: before },
            new: RecordingJson { target: &self.new.target, window: &self.new.window, total: after },
            stacks: self.stacks.iter().map(stack).collect(),
        };
        serde_json::to_writer_pretty(&mut *out, &json)?;
        out.write_all(b"\n")
    }
}

/// `node (1234), 1m02s from 2026-11-22 13:05:12 UTC`
fn recording(profile: &Profile) -> String {
    let window = &profile.window;
    let start = moment(&window.started_at);
    format!("{}, {} from {}", target_name(profile), Span(window.duration_ns), printable(&start))
}

fn amount(change: i64, weight: WeightUnit) -> String {
    match weight {
        WeightUnit::Bytes => Change(change).to_string(),
        WeightUnit::Objects => {
            let sign = if change < 0 { '-' } else { '+' };
            format!("{sign}{}", counted(change.unsigned_abs(), "block"))
        }
    }
}

fn known_error(standard_error: f64) -> Option<u64> {
    (standard_error > 0.0).then(|| standard_error.round() as u64)
}

fn error_of(standard_error: f64) -> String {
    plus_minus(known_error(standard_error))
}

/// How many stacks, and their change.
fn sum<'a, 'b: 'a>(stacks: impl Iterator<Item = &'a StackDiff<'b>>, weight: WeightUnit) -> (u64, i64) {
    stacks.fold((0, 0), |(number, sum), stack| (number + 1, i64::saturating_add(sum, stack.change(weight))))
}

#[derive(Serialize)]
struct Json<'a> {
    schema: &'static str,
    base: RecordingJson<'a>,
    new: RecordingJson<'a>,
    stacks: Vec<StackJson<'a>>,
}

#[derive(Serialize)]
struct RecordingJson<'a> {
    target: &'a Process,
    window: &'a Window,
    total: Amount,
}

#[derive(Serialize)]
struct StackJson<'a> {
    kind: Kind,
    api: &'a str,
    before: Amount,
    after: Amount,
    change_bytes: i64,
    change_objects: i64,
    /// Of the change, if it is an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    standard_error_bytes: Option<u64>,
    /// Whether the change may be chance.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_noise: bool,
    frames: &'a [Arc<Frame>],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures;

    /// Two recordings of a program: one stack grew, one is gone, one is new, one stayed; addresses and pids differ.
    fn recordings() -> (Profile, Profile) {
        let base = fixtures::node();
        let mut new = fixtures::node();
        new.target.pid.0 += 1;
        new.window.duration_ns *= 2;
        for stack in &mut new.stacks {
            for frame in &mut stack.frames {
                Arc::make_mut(frame).ip.0 += 0x1000;
            }
        }
        let stacks = &mut new.stacks;
        stacks[0].weight_bytes += 64 << 20;
        stacks[0].outstanding_objects += 1_024;
        stacks[2].weight_bytes = 0;
        stacks[2].outstanding_objects = 0;
        let mut fresh = stacks[4].clone();
        fresh.api = "realloc".into();
        fresh.weight_bytes = 2 << 20;
        stacks.push(fresh);
        (base, new)
    }

    fn render(format: Option<Format>, options: &Options) -> String {
        let (base, new) = recordings();
        let diff = Diff::new(&base, &new, options);
        let mut out = Vec::new();
        match format {
            None => diff.write_text(options, &mut out).unwrap(),
            Some(format) => diff.write(format, options, &mut out).unwrap(),
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn golden() {
        let options = Options::default();
        insta::assert_snapshot!("diff_text", render(None, &options));
        insta::assert_snapshot!("diff_folded", render(Some(Format::Folded), &options));
        insta::assert_snapshot!("diff_json", render(Some(Format::Json), &options));
        let few = Options { top: 1, weight: WeightUnit::Objects, ..options };
        insta::assert_snapshot!("diff_text_objects", render(None, &few));
    }

    /// A stack that leaks, and one of which a sample has a few blocks more.
    #[test]
    fn what_samples_cannot_tell_is_no_growth() {
        let base = fixtures::sampled();
        let mut new = base.clone();
        new.stacks[0].weight_bytes *= 2;
        new.stacks[1].weight_bytes += new.stacks[1].standard_error_bytes.unwrap();
        let options = Options::default();
        let diff = Diff::new(&base, &new, &options);
        assert_eq!(diff.stacks.iter().map(StackDiff::is_noise).collect::<Vec<_>>(), [false, true]);
        let mut out = Vec::new();
        diff.write_text(&options, &mut out).unwrap();
        insta::assert_snapshot!("diff_text_sampled", String::from_utf8(out).unwrap());
    }

    #[test]
    fn the_picture_shows_growth() {
        let svg = render(Some(Format::Svg), &Options::default());
        assert!(svg.contains("node: +63.0 MiB outstanding"));
        assert!(svg.contains("malloc (107.9 MiB = "), "as wide as the newer recording");
    }

    #[test]
    fn totals_are_those_of_the_recordings() {
        let (base, new) = recordings();
        for options in [Options::default(), Options { include: [Kind::Managed].into(), ..Options::default() }]
        {
            let diff = Diff::new(&base, &new, &options);
            let weight = |profile: &Profile| {
                let counted = profile.stacks.iter().filter(|stack| options.includes(stack.kind));
                counted.map(|stack| stack.weight_bytes).sum::<u64>()
            };
            let (before, after) = diff.totals();
            assert_eq!((before.bytes, after.bytes), (weight(&base), weight(&new)));
        }
    }

    #[test]
    fn a_recording_does_not_differ_from_itself() {
        for (name, profile) in fixtures::all() {
            let options = Options::default();
            let diff = Diff::new(&profile, &profile, &options);
            assert!(diff.stacks.iter().all(|stack| stack.before == stack.after), "{name}");
            let mut out = Vec::new();
            diff.write_text(&options, &mut out).unwrap();
            assert!(String::from_utf8(out).unwrap().contains("No stack holds more or less"), "{name}");
            for &format in Format::ALL {
                let written = diff.write(format, &options, &mut io::sink());
                assert_eq!(written.is_ok(), check(format).is_ok(), "{name} {format}");
            }
        }
    }
}
