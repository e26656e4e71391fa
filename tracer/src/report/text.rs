//! The summary on the terminal: what is outstanding, by stack, largest first; then what a reader must know to trust
//! it, and where the reports are.

use std::fmt::Write as _;
use std::io;

use super::cause_lines;
use super::destination::{Destination, OutputPlace};
use super::human::{Change, Count, Span, counted, moment, per_minute, printable, share};
use super::processes::process_lines;
use super::stack_lines::{Paint, stack_lines};
use super::view::{Merged, View, alike_as_one, api_name, process_name, standard_error, sum, target_name};
use super::words::{
    NATIVE_IN_ALLOCATOR, ending, figures, format_name, growth, in_force, kind_meaning, part_label,
    plus_minus, sample, verdict_name,
};
use super::{Options, Report, WeightUnit};
use crate::model::{
    Bytes, Kind, Memory, Mode, Overhead, Part, PartSize, Profile, StackReport, Stop, Verdict, loss,
};

/// The text summary.
#[derive(Debug, Default)]
pub struct Text<'a> {
    /// The reports that were written, to say where they are.
    pub written: &'a [&'a Destination],
}

impl Report for Text<'_> {
    fn write(&self, profile: &Profile, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let page = Page::new(profile, options);
        let sections = [
            page.headline(),
            page.memory(),
            page.causes(),
            page.by_process(),
            page.stacks(),
            page.not_shown(),
            page.losses(),
            page.not_probed(),
            page.incomplete_stacks(),
            page.files(self.written),
        ];
        let sections: Vec<String> = sections.into_iter().filter(|section| !section.is_empty()).collect();
        writeln!(out, "{}", sections.join("\n\n"))
    }
}

/// What the summary says beside figures, for other reports: without colour.
pub(super) struct Facts {
    /// What was outstanding, of whom.
    pub headline: String,
    /// When, and how much went by.
    pub facts: Vec<String>,
    /// What to know before trusting the figures.
    pub trust: Vec<String>,
}

impl Facts {
    pub fn new(profile: &Profile, options: &Options) -> Self {
        let options = Options { color: false, ..options.clone() };
        let page = Page::new(profile, &options);
        let facts = [Some(page.when()), Some(page.activity()), page.settings(), page.tracing()];
        let trust = [
            page.losses(),
            page.not_probed(),
            page.incomplete_stacks(),
            page.not_shown(),
            in_force(&profile.settings),
        ];
        Self {
            headline: page.outstanding().lines().next().unwrap_or_default().to_owned(),
            facts: facts.into_iter().flatten().collect(),
            trust: trust.into_iter().filter(|text| !text.is_empty()).collect(),
        }
    }
}

/// As far from the margin as frames.
const INDENT: usize = 9;

/// A summary being written; each method makes one section, empty when there is nothing to say.
struct Page<'a> {
    profile: &'a Profile,
    options: &'a Options,
    view: View<'a>,
    /// The stacks of the view, those that read the same as one.
    stacks: Vec<Merged<'a>>,
    paint: Paint,
}

impl<'a> Page<'a> {
    fn new(profile: &'a Profile, options: &'a Options) -> Self {
        let view = View::new(profile, options);
        let mut stacks = alike_as_one(&view.stacks, view.weight);
        stacks.retain(|stack| view.weight.of(stack) > 0);
        Self { profile, options, view, stacks, paint: Paint::new(options) }
    }

    /// What was outstanding, of whom and when.
    fn headline(&self) -> String {
        let profile = self.profile;
        let mut lines = vec![self.outstanding()];
        if let Some(verdict) = &profile.verdict {
            lines.push(self.paint.bold(&printable(&verdict.summary)));
        }
        lines.push(self.paint.dim(&self.when()));
        lines.push(self.paint.dim(&self.activity()));
        lines.extend(self.settings().map(|settings| self.paint.dim(&settings)));
        let is_much = self.profile.overhead.is_some_and(Overhead::is_much);
        lines.extend(self.tracing().map(|tracing| if is_much { tracing } else { self.paint.dim(&tracing) }));
        lines.join("\n")
    }

    fn outstanding(&self) -> String {
        if self.view.total == 0 { self.nothing() } else { self.amount() }
    }

    fn when(&self) -> String {
        let window = &self.profile.window;
        let start = moment(&window.started_at);
        format!("{} from {}; {}", Span(window.duration_ns), printable(&start), ending(window))
    }

    /// `node (1234)`, or all of them.
    fn processes(&self) -> String {
        match &self.profile.processes[..] {
            [] | [_] => target_name(self.profile),
            several => format!("{} processes", several.len()),
        }
    }

    fn amount(&self) -> String {
        let (bytes, objects) = (self.view.bytes(), self.view.objects());
        let error = plus_minus(standard_error(self.view.stacks.iter().copied()));
        let amount = match self.profile.settings.mode {
            Mode::Allocations => {
                format!("{}{error} outstanding in {}", Bytes(bytes), counted(objects, "block"))
            }
            Mode::Growth => format!("{} became resident", Bytes(bytes)),
        };
        let stacks = counted(self.stacks.len() as u64, "stack");
        format!("{}: {}, from {stacks}", self.paint.bold(&self.processes()), self.paint.bold(&amount))
    }

    fn nothing(&self) -> String {
        let events = &self.profile.events;
        let processes = self.paint.bold(&self.processes());
        if self.profile.settings.mode == Mode::Growth {
            return format!("{processes}: nothing that became resident in this window still is");
        }
        if events.allocations == 0
            && events.frees == 0
            && events.unmatched_frees == 0
            && events.lost_total() == 0
        {
            return format!(
                "{processes}: no allocator call in this window\n\
                 The process did nothing that allocates. Record for longer (-d), or while it is under load."
            );
        }
        format!("{processes}: nothing allocated in this window is still outstanding")
    }

    /// How much went by, so that a reader knows that tracing worked.
    fn activity(&self) -> String {
        let (events, totals) = (&self.profile.events, &self.profile.totals);
        let mut text = format!(
            "seen: {} of {}, {}",
            counted(events.allocations, "allocation"),
            Bytes(totals.allocated_bytes),
            counted(events.frees, "free"),
        );
        if events.unmatched_frees > 0 {
            _ = write!(text, ", and {} of older blocks", counted(events.unmatched_frees, "free"));
        }
        if events.failed_allocations > 0 {
            _ = write!(text, "; {} failed", counted(events.failed_allocations, "call"));
        }
        text
    }

    /// The settings that make numbers mean something else than usual.
    fn settings(&self) -> Option<String> {
        let settings = &self.profile.settings;
        let mut limits = Vec::new();
        if settings.min_age_ns > 0 {
            limits.push(format!("only blocks at least {} old", Span(settings.min_age_ns)));
        }
        limits.extend(settings.min_size.map(|size| format!("only requests of at least {size}")));
        limits.extend(settings.max_size.map(|size| format!("only requests of at most {size}")));
        if settings.sample_bytes > 0 {
            limits.push(format!("estimated from {} (±: two standard errors)", sample(settings)));
        }
        if settings.mode == Mode::Growth {
            limits.push(
                "the stacks touched memory first or mapped it; which code should have freed it is not known"
                    .to_owned(),
            );
        }
        (!limits.is_empty()).then(|| format!("counted: {}", limits.join("; ")))
    }

    /// What tracing took, and where that is much, what it made of rates.
    fn tracing(&self) -> Option<String> {
        let overhead = self.profile.overhead?;
        let whose = if self.profile.processes.len() > 1 { "targets'" } else { "target's" };
        if !overhead.is_much() {
            return Some(format!("tracing took about {:.1} % of the {whose} CPU time", overhead.percent));
        }
        // Who waits most of the time does so with tracing or without.
        let of_a_cpu = 100.0 * overhead.cpu_ns as f64 / (self.profile.window.duration_ns as f64).max(1.0);
        if of_a_cpu < 10.0 {
            return Some(format!(
                "tracing took about {:.0} % of the {whose} CPU time, which was {of_a_cpu:.1} % of a CPU",
                overhead.percent
            ));
        }
        let times = overhead.times_as_fast();
        let rate = self.growth_per_second().filter(|&rate| rate > 0.0).map_or_else(String::new, |rate| {
            format!(": {} instead of {}", per_minute(rate * times), per_minute(rate))
        });
        let times = if times < 10.0 { format!("{times:.1}") } else { format!("{times:.0}") };
        Some(format!(
            "tracing took about {:.0} % of the {whose} CPU time: rates are those of the slowed process, without it up to \
             about {times} times as high{rate}",
            overhead.percent
        ))
    }

    /// What resident memory grew by in a second; none in a window that is too short to tell.
    fn growth_per_second(&self) -> Option<f64> {
        let memory = self.profile.memory.as_ref()?;
        let change = Change::between(memory.rss_before_bytes?, memory.rss_after_bytes?);
        let seconds = self.profile.window.duration_ns as f64 / 1e9;
        (seconds >= 1.0).then(|| change.0 as f64 / seconds)
    }

    /// Where the resident memory went.
    fn memory(&self) -> String {
        let Some(Memory { rss_before_bytes: Some(before), rss_after_bytes: Some(after), parts, .. }) =
            &self.profile.memory
        else {
            return String::new();
        };
        let change = Change::between(*before, *after);
        let mut text = format!(
            "{} {} → {}, {change}",
            self.paint.bold("Resident memory"),
            Bytes(*before),
            Bytes(*after)
        );
        if let Some(rate) = self.growth_per_second() {
            _ = write!(text, " ({})", per_minute(rate));
        }
        let mut parts: Vec<&PartSize> = parts.iter().filter(|part| growth(part) != 0).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(growth(part).unsigned_abs()));
        let labels = parts.iter().map(|part| part_label(part).chars().count());
        let width = labels.max().unwrap_or(0).max(20);
        // What shrank besides does not make it less.
        let grown: u64 = parts.iter().filter_map(|part| u64::try_from(growth(part)).ok()).sum();
        for part in parts {
            let growth = growth(part);
            let share = match u64::try_from(growth) {
                Ok(growth) if change.0 > 0 => share(growth, grown),
                _ => String::new(),
            };
            _ = write!(
                text,
                "\n  {:<width$} {:>12}  {share:>8}",
                part_label(part),
                Change(growth).to_string()
            );
            let leaks = self.profile.verdict.as_ref().is_some_and(|verdict| verdict.leaking == Some(true));
            if leaks && part.part == Part::Native && growth > 0 {
                text += "  leaking: see the stacks below";
            } else if let Some(note) = &part.note {
                let estimate = if part.estimated { "estimate: " } else { "" };
                _ = write!(text, "  {}", self.paint.dim(&format!("{estimate}{}", printable(note))));
            }
            text.truncate(text.trim_end().len());
        }
        text
    }

    /// Who is to blame, where the stacks below do not say it themselves.
    fn causes(&self) -> String {
        let whole = cause_lines::whole(self.profile);
        let causes = cause_lines::shown_causes(self.profile);
        if causes.is_empty() {
            return String::new();
        }
        let mut text = self.paint.bold("Causes");
        for cause in causes.into_iter().take(self.options.top.max(1)) {
            let figures = cause_lines::figures(cause, whole);
            let is_leak = cause.verdict == Verdict::Leaking;
            let figures = if is_leak { self.paint.strong(&figures) } else { figures };
            _ = write!(text, "\n{figures}");
            for line in cause_lines::place(cause, self.options.width.max(80) - INDENT) {
                _ = write!(text, "\n{:INDENT$}{line}", "");
            }
        }
        text
    }

    /// What each process holds, when there are several.
    fn by_process(&self) -> String {
        if self.profile.processes.len() < 2 {
            return String::new();
        }
        let lines = process_lines(self.profile, &self.view, self.options.top);
        format!("{}\n{}", self.paint.bold("By process"), lines.join("\n"))
    }

    fn stacks(&self) -> String {
        let shown = self.stacks.iter().take(self.options.top);
        let mut blocks: Vec<String> = shown.map(|stack| self.stack(stack)).collect();
        let rest = &self.stacks[blocks.len()..];
        if !rest.is_empty() {
            let weight = sum(rest.iter().map(|stack| &**stack), |stack| self.view.weight.of(stack));
            let amount = match self.view.weight {
                WeightUnit::Bytes => Bytes(weight).to_string(),
                WeightUnit::Objects => counted(weight, "block"),
            };
            blocks.push(format!(
                "{:>7}  {amount} from {} (--top shows more)",
                share(weight, self.view.total),
                counted(rest.len() as u64, "more stack")
            ));
        }
        blocks.join("\n\n")
    }

    /// One stack: a line of figures, then its frames.
    fn stack(&self, stack: &StackReport) -> String {
        let weight = self.view.weight.of(stack);
        let share = format!("{:>7}", share(weight, self.view.total));
        let is_large = weight >= self.view.total / 10;
        let mut text = format!(
            "{}  {} by {}",
            if is_large { self.paint.strong(&share) } else { share },
            self.paint.bold(&figures(stack)),
            self.paint.bold(&api_name(stack))
        );
        if self.profile.processes.len() > 1 {
            _ = write!(text, " in {}", process_name(self.profile, stack));
        }
        if let Some(age) = stack.oldest_age_ns {
            _ = write!(text, ", oldest {}", Span(age));
        }
        if let Some(age) = stack.median_age_ns.filter(|_| stack.outstanding_objects > 1) {
            _ = write!(text, ", median {}", Span(age));
        }
        if let Some(verdict) = stack.verdict.and_then(verdict_name) {
            _ = write!(text, ", {}", self.paint.strong(verdict));
        }
        // What rounds to nothing need not be said.
        if let Some(rate) = stack.growth_bytes_per_second.filter(|rate| (rate * 60.0).abs() >= 1.0) {
            _ = write!(text, " {}", per_minute(rate));
        }
        for line in stack_lines(stack, self.options) {
            _ = write!(text, "\n{line}");
        }
        text
    }

    /// What there is beside it: kinds that nobody asked for, and address space with no memory behind it.
    fn not_shown(&self) -> String {
        let mut hidden: std::collections::BTreeMap<Kind, u64> = std::collections::BTreeMap::new();
        let mut reserved = 0_u64;
        for stack in &self.profile.stacks {
            if !self.options.includes(stack.kind) {
                let bytes = hidden.entry(stack.kind).or_default();
                *bytes = bytes.saturating_add(stack.weight_bytes);
            } else if stack.kind == Kind::Mapping {
                reserved =
                    reserved.saturating_add(stack.outstanding_bytes.saturating_sub(stack.weight_bytes));
            }
        }
        let mut lines: Vec<String> = hidden
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(kind, bytes)| {
                let (name, meaning) = (kind.name(), kind_meaning(kind));
                format!("not shown: {} of {meaning} (--include {name})", Bytes(bytes))
            })
            .collect();
        if self.options.includes(Kind::Allocator) {
            lines.push(NATIVE_IN_ALLOCATOR.to_owned());
        }
        if reserved > 0 {
            lines.push(format!(
                "not counted: {} that is mapped, but has no memory behind it",
                Bytes(reserved)
            ));
        }
        self.paint.dim(&lines.join("\n"))
    }

    /// What could not be accounted for, and what to do about it.
    fn losses(&self) -> String {
        let events = &self.profile.events;
        let lost = events.lost_total();
        if lost == 0 {
            return String::new();
        }
        let all = events.allocations.saturating_add(events.frees).saturating_add(events.unmatched_frees);
        let mut text = format!(
            "{} {} could not be accounted for ({} of all); the figures above may be off by them.",
            self.paint.warn("Lost:"),
            counted(lost, "event"),
            share(lost, all.max(lost))
        );
        for (cause, &number) in events.lost.iter().filter(|(_, number)| **number > 0) {
            let meaning =
                loss::meaning(cause).map_or_else(|| printable(cause).replace('_', " "), str::to_owned);
            _ = write!(text, "\n{:>12}  {meaning}", Count(number));
        }
        text
    }

    /// The allocator functions whose calls nobody saw, a line for each file that has some.
    fn not_probed(&self) -> String {
        let mut by_module: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
        for missing in &self.profile.not_probed {
            by_module.entry(&missing.module).or_default().push(&missing.function);
        }
        let lines: Vec<String> = by_module
            .into_iter()
            .map(|(module, mut functions)| {
                functions.dedup();
                printable(&format!("not seen: calls of {} in {module}", functions.join(", "))).into_owned()
            })
            .collect();
        self.paint.dim(&lines.join("\n"))
    }

    /// Why callers are missing.
    fn incomplete_stacks(&self) -> String {
        let events = &self.profile.events;
        let incomplete = events.incomplete_total();
        if incomplete == 0 {
            return String::new();
        }
        let mut text = format!(
            "{} {} ({}) without all of their callers; what they hold is counted.",
            self.paint.warn("Incomplete stacks:"),
            counted(incomplete, "allocation"),
            share(incomplete, events.allocations.max(incomplete))
        );
        for (cause, &number) in events.incomplete_stacks.iter().filter(|(_, number)| **number > 0) {
            let stop = Stop::ALL.iter().find(|stop| stop.name() == cause);
            let meaning =
                stop.map_or_else(|| printable(cause).replace('_', " "), |stop| stop.description().into());
            _ = write!(text, "\n{:>12}  {meaning}", Count(number));
        }
        text
    }

    fn files(&self, written: &[&Destination]) -> String {
        let lines = written.iter().filter_map(|destination| match &destination.place {
            OutputPlace::Path(path) => {
                let path = path.display().to_string();
                Some(format!("{:<14}{}", format_name(destination.format), self.paint.bold(&printable(&path))))
            }
            OutputPlace::Stdout => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::report::{Format, fixtures};

    fn render(profile: &Profile, options: &Options) -> String {
        let place = |name: &str| OutputPlace::Path(PathBuf::from(name));
        let svg = Destination { format: Format::Svg, place: place("tracer-node-1234.svg") };
        let json = Destination { format: Format::Json, place: place("out/leak.json") };
        let mut out = Vec::new();
        Text { written: &[&svg, &json] }.write(profile, options, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn golden() {
        for (name, profile) in fixtures::all() {
            insta::assert_snapshot!(format!("text_{name}"), render(&profile, &Options::default()));
        }
    }

    #[test]
    fn a_target_that_waits_most_of_the_time_is_not_called_slow() {
        let said = |cpu_share: f64, tracing_share: f64| {
            let mut profile = fixtures::node();
            let cpu_ns = profile.window.duration_ns as f64 * cpu_share;
            profile.overhead = Some(Overhead::new(cpu_ns, cpu_ns * tracing_share));
            let text = render(&profile, &Options::default());
            text.lines().find(|line| line.starts_with("tracing took")).map(str::to_owned).unwrap()
        };
        assert_eq!(said(0.5, 0.05), "tracing took about 5.0 % of the target's CPU time");
        assert!(said(0.5, 0.75).contains("without it up to about 4.0 times as high"));
        assert_eq!(
            said(0.02, 0.75),
            "tracing took about 75 % of the target's CPU time, which was 2.0 % of a CPU"
        );
    }

    #[test]
    fn options_are_honoured() {
        let options = Options {
            include: [Kind::Managed].into(),
            weight: WeightUnit::Objects,
            top: 2,
            frames: 5,
            width: 60,
            color: true,
            ..Options::default()
        };
        insta::assert_snapshot!("text_with_options", render(&fixtures::node(), &options));
    }

    #[test]
    fn lines_fit_and_hold_no_control_characters() {
        for (name, profile) in fixtures::all() {
            for width in [0, 40, 80, 200] {
                let text = render(&profile, &Options { width, ..Options::default() });
                assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{name}");
                let frames = text.lines().filter(|line| line.starts_with("         "));
                assert!(
                    frames.clone().all(|line| line.chars().count() <= width.max(80)),
                    "{name} {width}:\n{text}"
                );
            }
        }
    }

    #[test]
    fn causes_without_a_loss_are_not_mentioned() {
        let text = render(&fixtures::node(), &Options::default());
        assert!(!text.contains("Lost") && !text.contains("Incomplete"), "{text}");
        let text = render(&fixtures::lossy(), &Options::default());
        assert!(text.contains("--max-live") && !text.contains("address"), "{text}");
    }
}
