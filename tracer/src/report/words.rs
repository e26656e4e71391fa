//! The words of reports: what figures, parts, verdicts and settings are called.

use super::Format;
use super::human::{Span, counted, printable};
use crate::model::{Bytes, End, Kind, Part, PartSize, Settings, StackReport, Verdict, Window};

/// ` ± 3.1 MiB` of an estimate: two standard errors, which the truth exceeds once in twenty times.
pub(super) fn plus_minus(standard_error: Option<u64>) -> String {
    standard_error.map_or_else(String::new, |error| format!(" ± {}", Bytes(error.saturating_mul(2))))
}

/// `a sample of one per 512.0 KiB`
pub(super) fn sample(settings: &Settings) -> String {
    format!("a sample of one per {}", Bytes(settings.sample_bytes))
}

/// What is to be known when both are drawn.
pub(super) const NATIVE_IN_ALLOCATOR: &str =
    "counted twice: native blocks lie in the memory that the allocator took from the kernel";

/// Every setting of the recording.
pub(super) fn in_force(settings: &Settings) -> String {
    let size = |size: Option<Bytes>| size.map_or("none".to_owned(), |size| size.to_string());
    let sample = match settings.sample_bytes {
        0 => "every allocation tracked".to_owned(),
        _ => sample(settings),
    };
    format!(
        "settings: {sample}; minimal age {}; minimal size {}; maximal size {}; room for {}",
        Span(settings.min_age_ns),
        size(settings.min_size),
        size(settings.max_size),
        counted(settings.max_live, "live block")
    )
}

/// `43.9 MiB in 702 blocks`; of a mapping, how much of the mapped bytes is memory.
pub(super) fn figures(stack: &StackReport) -> String {
    match stack.kind {
        Kind::Native => {
            let error = plus_minus(stack.standard_error_bytes);
            format!("{}{error} in {}", Bytes(stack.weight_bytes), counted(stack.outstanding_objects, "block"))
        }
        _ if stack.resident_bytes.is_none() && stack.outstanding_bytes > 0 => format!(
            "{} mapped in {}, not known how much of it is resident",
            Bytes(stack.outstanding_bytes),
            counted(stack.outstanding_objects, "mapping")
        ),
        _ => format!(
            "{} resident of {} in {}",
            Bytes(stack.weight_bytes),
            Bytes(stack.outstanding_bytes),
            counted(stack.outstanding_objects, "mapping")
        ),
    }
}

pub(super) fn growth(part: &PartSize) -> i64 {
    part.after_bytes.saturating_sub(part.before_bytes)
}

pub(super) const fn ending(window: &Window) -> &'static str {
    match window.end {
        None => "a snapshot; the recording went on",
        Some(End::Duration) => "recorded for the time asked for",
        Some(End::Interrupted) => "ended by Ctrl-C",
        Some(End::TargetExited) => "ended when the process exited",
        Some(End::OomKilled) => "ended when the kernel killed the process for want of memory",
        Some(End::TargetExec) => "ended when the process executed another program (--follow goes on in that)",
        Some(End::Failed) => "ended early, since tracer could not go on",
    }
}

pub(super) fn part_label(part: &PartSize) -> String {
    let name = part_name(part.part);
    match &part.runtime {
        Some(runtime) => format!("{name} ({})", printable(runtime)),
        None => name.to_owned(),
    }
}

pub(crate) const fn part_name(part: Part) -> &'static str {
    match part {
        Part::Native => "native (malloc)",
        Part::Mapping => "mappings",
        Part::Managed => "managed heap",
        Part::Allocator => "allocator retained",
        Part::File => "files",
        Part::Stack => "thread stacks",
        Part::Unexplained => "unexplained",
    }
}

/// How `--include` calls a kind, and what it means.
pub(super) const fn kind_meaning(kind: Kind) -> &'static str {
    match kind {
        Kind::Native => "native memory",
        Kind::Mapping => "anonymous mappings",
        Kind::Allocator => "memory that the allocator took from the kernel for itself",
        Kind::Managed => "the language runtime's own heap",
        Kind::File => "mapped files",
    }
}

/// `None` for the verdict that says nothing.
pub(crate) const fn verdict_name(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Leaking => Some("leaking"),
        Verdict::Growing => Some("growing"),
        Verdict::Steady => Some("steady"),
        Verdict::OneOff => Some("allocated once"),
        Verdict::Unknown => None,
    }
}

pub(super) const fn format_name(format: Format) -> &'static str {
    match format {
        Format::Svg => "Flame graph",
        Format::Folded => "Folded stacks",
        Format::Json | Format::JsonGz => "JSON",
        Format::Pprof => "pprof",
        Format::Speedscope => "speedscope",
        Format::HeapProfile => "DevTools",
        Format::Html => "HTML",
    }
}
