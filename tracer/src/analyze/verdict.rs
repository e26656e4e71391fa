//! What a recording as a whole says, in one sentence: a pure function of its figures.
//!
//! A *leak* comes first, if it is at least a tenth of what grew. Else the largest part of the growth decides. Figures
//! are estimates where the parts of resident memory are; the sentence names the part, not a cause that nobody saw.

use std::collections::BTreeMap;
use std::time::Duration;

use super::growth::{self, Point};
use super::managed::Runtime;
use crate::model::{Bytes, Events, Frame, Kind, Memory, Part, StackReport, Verdict, VerdictSummary};

/// What a verdict rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// How long the window was.
    pub window: Duration,
    /// Where the resident memory went, if that is known.
    pub memory: Option<&'a Memory>,
    /// Every stack.
    pub stacks: &'a [StackReport],
    /// How many blocks were freed that had been allocated before the window.
    pub freed_older_blocks: u64,
    /// By how much shared memory grew that has the form of files: `memfd`, `/dev/shm`.
    pub shared_memory: u64,
    /// What kinds `native` and `mapping` held over the window.
    pub outstanding: &'a [Point],
    /// The runtime whose heap there is.
    pub runtime: Option<Runtime>,
    /// The allocator, as people call it.
    pub allocator: Option<&'a str>,
}

/// Resident memory that grew less says nothing: every program's size wavers.
const NOISE: u64 = 1 << 20;

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
    (share > MOST_LOST).then(|| VerdictSummary {
        summary: format!(
            "nothing can be told: {:.0} % of the events could not be accounted for",
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
    let leaks = Places::of(facts, Verdict::Leaking);
    let (summary, leaking) = match leaks.largest() {
        Some(leak) if growth.is_measured && replaces_older_blocks(facts, &growth, &leaks) => {
            let rate = per_minute(leak.rate(facts.window));
            let sentence = format!(
                "`{}` allocates {rate}, while as many older blocks are freed: record for longer than a block lives",
                leak.name
            );
            (sentence, None)
        }
        Some(leak) if growth.is_noise() || leaks.footprint >= growth.percent(MAIN) => {
            (leak_sentence(facts, &growth, leak, &leaks), Some(true))
        }
        _ if growth.is_noise() => (
            "no growth in this window; record longer or under load".to_owned(),
            (facts.window >= growth::SHORTEST).then_some(false),
        ),
        leak => {
            let (sentence, leaking) = largest_part(facts, &growth);
            match leak.filter(|_| leaks.footprint >= growth.percent(WORTH_MENTIONING)) {
                Some(leak) => {
                    let rate = per_minute(leak.rate(facts.window));
                    (format!("{sentence}; besides, {rate} leak in `{}`", leak.name), Some(true))
                }
                None => (sentence, leaking),
            }
        }
    };
    VerdictSummary { summary, leaking, growth_bytes_per_second: growth::rate(facts.outstanding) }
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
        let whole = parts.values().fold(0, |sum: i64, &bytes| sum.saturating_add(bytes));
        Self {
            held: grown(Part::Native) + grown(Part::Mapping) + overhead,
            managed: grown(Part::Managed),
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

/// What a stack makes resident: glibc's chunks are at least 32 bytes, with a header of 8, and rounded up to 16.
fn footprint(stack: &StackReport) -> u64 {
    const SMALLEST: u64 = 32;
    const OVERHEAD: u64 = 16;

    let blocks = stack.outstanding_objects;
    match stack.kind {
        Kind::Native => {
            let bytes = stack.weight_bytes;
            bytes.saturating_add(blocks * OVERHEAD).max(blocks * SMALLEST)
        }
        _ => stack.weight_bytes,
    }
}

/// A function that allocates, and what its stacks hold together.
#[derive(Clone, Debug, Default)]
struct Place {
    name: String,
    /// The innermost function of the program's own, where a language runtime called the place; of the largest stack.
    caller: Option<String>,
    /// What that stack weighs.
    caller_footprint: u64,
    footprint: u64,
    weight: u64,
    bytes_per_second: f64,
    stacks: usize,
}

impl Place {
    /// Growth a second; over the window where its sizes waver too much to show it, and where several stacks may be one that
    /// has been compiled anew: each then grew for a part of the window.
    fn rate(&self, window: Duration) -> f64 {
        if self.bytes_per_second > 0.0 && self.stacks == 1 {
            return self.bytes_per_second;
        }
        self.weight as f64 / window.as_secs_f64().max(1.0)
    }
}

/// The functions whose stacks have a certain verdict, largest first.
#[derive(Debug)]
struct Places {
    footprint: u64,
    objects: u64,
    places: Vec<Place>,
}

impl Places {
    fn of(facts: &Facts, verdict: Verdict) -> Self {
        let counts = |stack: &&StackReport| stack.kind.counts_by_default() && stack.verdict == Some(verdict);
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        let mut objects = 0;
        for stack in facts.stacks.iter().filter(counts) {
            let name = place_name(&stack.frames);
            let place = places.entry(name.clone()).or_insert_with(|| Place { name, ..Place::default() });
            place.footprint += footprint(stack);
            if place.caller.is_none() || footprint(stack) > place.caller_footprint {
                (place.caller, place.caller_footprint) = (runtime_caller(&stack.frames), footprint(stack));
            }
            place.weight += stack.weight_bytes;
            place.stacks += 1;
            objects += stack.outstanding_objects;
            place.bytes_per_second += stack.growth_bytes_per_second.unwrap_or(0.0);
        }
        let mut places: Vec<_> = places.into_values().filter(|place| place.weight > 0).collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.footprint));
        Self { footprint: places.iter().map(|place| place.footprint).sum(), objects, places }
    }

    fn largest(&self) -> Option<&Place> {
        self.places.first()
    }
}

fn leak_sentence(facts: &Facts, growth: &Growth, leak: &Place, leaks: &Places) -> String {
    let rate = per_minute(leak.rate(facts.window));
    let caller = leak.caller.as_ref().map_or_else(String::new, |caller| format!(", called from `{caller}`"));
    let mut sentence = format!("leaking {rate} in `{}`{caller}{}", leak.name, growth.share(leak.footprint));
    if let [_, others @ ..] = &leaks.places[..]
        && !others.is_empty()
    {
        let rate: f64 = others.iter().map(|place| place.rate(facts.window)).sum();
        let places = if others.len() == 1 { "place" } else { "places" };
        sentence += &format!(", and {} in {} more {places}", per_minute(rate), others.len());
    }
    sentence
}

/// Whether what looks like a leak is a queue, or a cache, in which new blocks take the place of those from before the window.
fn replaces_older_blocks(facts: &Facts, growth: &Growth, leaks: &Places) -> bool {
    growth.held < leaks.footprint / 2 && facts.freed_older_blocks >= leaks.objects / 2
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
        (format!("{}{share}", managed_sentence(facts.runtime)), None)
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
    let places = verdicts.map(|verdict| (verdict, Places::of(facts, verdict)));
    let largest = places.iter().max_by_key(|(_, places)| places.footprint);
    let known: u64 = places.iter().map(|(_, places)| places.footprint).sum();
    let largest = largest.filter(|_| known >= growth.held / 2);
    let Some((verdict, place)) = largest.and_then(|(verdict, places)| Some((verdict, places.largest()?)))
    else {
        let sentence =
            "memory that was allocated before this window is now being touched; start recording earlier";
        return (format!("{sentence}{}", growth.share(growth.held)), None);
    };
    let (name, share) = (&place.name, growth.share(place.footprint));
    let size = Bytes(place.weight);
    match verdict {
        Verdict::Growing | Verdict::Leaking => {
            let rate = per_minute(place.rate(facts.window));
            let sentence =
                format!("growing {rate} in `{name}`{share}: not enough to call it a leak; record longer");
            (sentence, None)
        }
        Verdict::Unknown => {
            // It may have taken the place of older blocks that were freed.
            let size = Bytes(place.weight.min(growth.held));
            let sentence =
                format!("{size} more in `{name}`{share}: too short a window to tell a leak; record longer");
            (sentence, None)
        }
        Verdict::Steady => (
            format!("not a leak: `{name}` frees as much as it allocates, and holds {size} now{share}"),
            Some(false),
        ),
        Verdict::OneOff => (
            format!("not a leak: `{name}` allocated {size} and stopped, as a cache does that is full{share}"),
            Some(false),
        ),
    }
}

const fn managed_sentence(runtime: Option<Runtime>) -> &'static str {
    match runtime {
        Some(Runtime::V8) => "the JavaScript heap is what grows: take a heap snapshot",
        Some(Runtime::HotSpot) => {
            "the Java heap is what grows: take a heap dump (jcmd PID GC.heap_dump FILE)"
        }
        Some(Runtime::CPython) => "the Python heap is what grows: look for its objects with tracemalloc",
        Some(Runtime::Go) => "the Go heap is what grows: take a heap profile with pprof",
        Some(Runtime::Ruby) => "the Ruby heap is what grows: dump it with ObjectSpace.dump_all",
        Some(Runtime::DotNet) => "the .NET heap is what grows: take a dump with dotnet-gcdump",
        None => "the heap of the language runtime is what grows: look at it with the runtime's own tools",
    }
}

fn retained_sentence(facts: &Facts, growth: &Growth) -> (String, Option<bool>) {
    let share = growth.share(growth.retained);
    let freed: u64 = facts.stacks.iter().map(|stack| stack.freed_bytes).sum();
    let allocator = facts.allocator.unwrap_or("the allocator");
    if freed == 0 && facts.freed_older_blocks == 0 {
        // Nothing was freed that could have been kept.
        let sentence = format!(
            "memory that {allocator} gave out before this window is now being touched; start recording earlier"
        );
        return (format!("{sentence}{share}"), None);
    }
    let advice = match facts.allocator {
        Some("glibc") => "; try MALLOC_ARENA_MAX=2, malloc_trim or jemalloc",
        Some("jemalloc") => "; try a smaller dirty_decay_ms",
        Some("tcmalloc") => "; try a larger TCMALLOC_RELEASE_RATE",
        _ => "",
    };
    (format!("not a leak: freed memory kept by {allocator}{advice}{share}"), Some(false))
}

fn per_minute(bytes_per_second: f64) -> String {
    // A float cast saturates.
    format!("{}/min", Bytes((bytes_per_second * 60.0) as u64))
}

/// `addon.node: Session::Open`, of the innermost frame that does not allocate for its caller.
pub(crate) fn place_name(frames: &[std::sync::Arc<Frame>]) -> String {
    let own = frames.iter().find(|frame| !allocates_for_its_caller(frame)).or_else(|| frames.first());
    let Some(frame) = own else { return "an unknown place".to_owned() };
    match (&frame.module, &frame.function) {
        (Some(module), Some(function)) => format!("{module}: {}", bare_name(function)),
        _ => frame.label(),
    }
}

/// `handle (service.js:36)`, of the innermost function that is written in a language with a runtime and is not the runtime's own.
fn runtime_caller(frames: &[std::sync::Arc<Frame>]) -> Option<String> {
    let is_the_programs = |frame: &&std::sync::Arc<Frame>| {
        let file = frame.file.as_deref().unwrap_or("node:");
        frame.language.as_deref() == Some("javascript") && !file.starts_with("node:")
    };
    let frame = frames.iter().find(is_the_programs)?;
    let file = frame.file.as_deref().map(|file| file.rsplit('/').next().unwrap_or(file))?;
    let line = frame.line.map_or_else(String::new, |line| format!(":{line}"));
    Some(format!("{} ({file}{line})", frame.label()))
}

/// Code that allocates for its caller: the libraries of a language, and the wrappers that programs put around `malloc`.
fn allocates_for_its_caller(frame: &Frame) -> bool {
    const MODULES: &[&str] = &["libc.so", "libstdc++.so", "libc++.so", "libc++abi.so", "ld-"];
    const FUNCTIONS: &[&str] = &[
        // C++, Rust
        "std::",
        "void std::",
        "__gnu_cxx::",
        "operator new",
        "alloc::",
        "<alloc::",
        "core::",
        "<core::",
        "hashbrown::",
        "__rust",
        // HotSpot, CPython, libuv
        "os::malloc",
        "os::realloc",
        "AllocateHeap",
        "PyMem_",
        "_PyMem_",
        "PyObject_Malloc",
        "_PyObject_Malloc",
        "uv__malloc",
        "uv__calloc",
        "uv__realloc",
        // Redis, GLib, nginx, and what many call theirs
        "zmalloc",
        "zcalloc",
        "zrealloc",
        "ztrymalloc",
        "g_malloc",
        "g_realloc",
        "g_try_malloc",
        "g_slice_alloc",
        "ngx_alloc",
        "ngx_calloc",
        "xmalloc",
        "xcalloc",
        "xrealloc",
        "xstrdup",
    ];
    let begins = |text: &Option<String>, beginnings: &[&str]| {
        text.as_deref().is_some_and(|text| beginnings.iter().any(|beginning| text.starts_with(beginning)))
    };
    begins(&frame.module, MODULES) || begins(&frame.function, FUNCTIONS)
}

/// A function's name without its parameters.
fn bare_name(function: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in function.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            '(' if depth == 0 => {
                let is_name = function[at..].starts_with("(anonymous namespace)")
                    || function[..at].ends_with("operator");
                if !is_name && at > 0 {
                    return &function[..at];
                }
            }
            _ => {}
        }
    }
    function
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
    use crate::model::PartSize;

    const MIB: u64 = 1 << 20;
    const WINDOW: Duration = Duration::from_secs(60);

    fn stack(function: &str, kind: Kind, verdict: Verdict, weight: u64, rate: f64) -> StackReport {
        let frame = |module: &str, function: &str| {
            Arc::new(Frame {
                module: Some(module.to_owned()),
                function: Some(function.to_owned()),
                ..Frame::default()
            })
        };
        StackReport {
            pid: None,
            process: None,
            kind,
            api: "malloc".to_owned(),
            weight_bytes: weight,
            outstanding_bytes: weight,
            outstanding_objects: weight / 4096,
            allocated_bytes: weight,
            allocated_objects: weight / 4096,
            freed_bytes: 0,
            freed_objects: 0,
            resident_bytes: None,
            standard_error_bytes: None,
            oldest_age_ns: None,
            median_age_ns: None,
            growth_bytes_per_second: Some(rate),
            history_bytes: Vec::new(),
            verdict: Some(verdict),
            reason: None,
            complete: true,
            stop: None,
            frames: vec![
                frame("libstdc++.so.6", "operator new(unsigned long)"),
                frame("addon.node", function),
            ],
        }
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
        Memory { rss_before_bytes: None, rss_after_bytes: None, parts: grown.iter().map(part).collect() }
    }

    fn verdict(stacks: &[StackReport], grown: &[(Part, u64)]) -> (String, Option<bool>) {
        let grown: Vec<_> = grown.iter().map(|&(part, mebibytes)| (part, (mebibytes * MIB) as i64)).collect();
        verdict_of(stacks, &memory(&grown), 0)
    }

    fn verdict_of(
        stacks: &[StackReport],
        memory: &Memory,
        freed_older_blocks: u64,
    ) -> (String, Option<bool>) {
        let verdict = of(&Facts {
            window: WINDOW,
            memory: Some(memory),
            stacks,
            freed_older_blocks,
            shared_memory: 0,
            outstanding: &[],
            runtime: Some(Runtime::V8),
            allocator: Some("glibc"),
        });
        (verdict.summary, verdict.leaking)
    }

    fn leak(weight: u64) -> StackReport {
        stack("Session::Open(int)", Kind::Native, Verdict::Leaking, weight, weight as f64 / 60.0)
    }

    #[test]
    fn a_leak_says_how_fast_and_where() {
        let grown = [(Part::Native, 90), (Part::Managed, 7), (Part::Allocator, 3)];
        let (summary, leaking) = verdict(&[leak(90 * MIB)], &grown);
        assert_eq!(summary, "leaking 90.0 MiB/min in `addon.node: Session::Open` (90 % of the growth)");
        assert_eq!(leaking, Some(true));
        let other = stack("fill", Kind::Mapping, Verdict::Leaking, 6 * MIB, 0.0);
        let (summary, _) = verdict(&[leak(80 * MIB), leak(4 * MIB), other], &grown);
        assert_eq!(
            summary,
            "leaking 84.0 MiB/min in `addon.node: Session::Open` (84 % of the growth), and 6.0 MiB/min in 1 more place"
        );
    }

    #[test]
    fn a_leak_of_reused_memory_is_a_leak() {
        assert_eq!(verdict(&[leak(MIB)], &[(Part::Native, 0)]).1, Some(true));
    }

    #[test]
    fn a_queue_is_no_leak_where_older_blocks_are_known() {
        let queue = [leak(100 * MIB)];
        let blocks = queue[0].outstanding_objects;
        let mut memory = memory(&[(Part::Native, MIB as i64), (Part::Allocator, 0)]);
        assert_eq!(verdict_of(&queue, &memory, blocks).1, Some(true), "an estimate tells nothing of them");
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
    fn a_leak_of_tiny_blocks_is_not_kept_memory() {
        // Blocks of one byte take 32.
        let mut tiny = leak(MIB);
        tiny.outstanding_objects = MIB;
        tiny.freed_bytes = 1;
        let (summary, leaking) = verdict(&[tiny], &[(Part::Native, 1), (Part::Allocator, 31)]);
        assert!(summary.ends_with("(100 % of the growth)") && leaking == Some(true), "{summary}");
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
        let mut freed = stack("f", Kind::Native, Verdict::Steady, 10 * MIB, 0.0);
        let grown = [(Part::Allocator, 90), (Part::Native, 10)];
        let (summary, leaking) = verdict(&[freed.clone()], &grown);
        assert!(summary.starts_with("memory that glibc gave out before") && leaking.is_none(), "{summary}");
        freed.freed_bytes = 80 * MIB;
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
    fn what_is_held_is_told_by_its_history() {
        let of = |verdict_of_stack| {
            let (summary, leaking) =
                verdict(&[stack("f", Kind::Native, verdict_of_stack, 20 * MIB, 0.0)], &[(Part::Native, 20)]);
            (summary.split('`').next().unwrap().to_owned(), leaking)
        };
        assert_eq!(of(Verdict::Growing), ("growing 20.0 MiB/min in ".to_owned(), None));
        assert_eq!(of(Verdict::Unknown), ("20.0 MiB more in ".to_owned(), None));
        assert_eq!(of(Verdict::Steady), ("not a leak: ".to_owned(), Some(false)));
        assert_eq!(of(Verdict::OneOff), ("not a leak: ".to_owned(), Some(false)));
    }

    #[test]
    fn without_growth_there_is_nothing_to_say() {
        let steady = stack("f", Kind::Native, Verdict::Growing, 900 << 10, 1.0);
        let (summary, leaking) = verdict(&[steady], &[(Part::Native, 0), (Part::File, 0)]);
        assert_eq!(summary, "no growth in this window; record longer or under load");
        assert_eq!(leaking, Some(false));
    }

    #[test]
    fn files_and_old_mappings() {
        let (summary, leaking) = verdict(&[], &[(Part::File, 50)]);
        assert!(summary.contains("mapped files") && leaking == Some(false), "{summary}");
        let (summary, leaking) = verdict(&[], &[(Part::Mapping, 50)]);
        assert!(summary.contains("before this window") && leaking.is_none(), "{summary}");
    }

    #[test]
    fn a_place_is_named_by_whom_memory_was_allocated_for() {
        let frame = |function: &str| {
            let (module, function) = (Some("redis-server".to_owned()), Some(function.to_owned()));
            Arc::new(Frame { module, function, ..Frame::default() })
        };
        let frames = ["ztrymalloc_usable_internal", "zmalloc", "sdsnewlen", "main"].map(frame);
        assert_eq!(place_name(&frames), "redis-server: sdsnewlen");
        assert_eq!(place_name(&frames[..2]), "redis-server: ztrymalloc_usable_internal");
    }

    #[test]
    fn names_lose_their_parameters() {
        assert_eq!(bare_name("Session::Open(int, char const*) const"), "Session::Open");
        assert_eq!(bare_name("(anonymous namespace)::run(int)"), "(anonymous namespace)::run");
        assert_eq!(bare_name("f<void (*)(int)>::operator()(int)"), "f<void (*)(int)>::operator()");
        assert_eq!(bare_name("plain"), "plain");
        assert_eq!(bare_name("("), "(");
    }

    #[test]
    fn the_allocator_is_known_by_its_library() {
        let libc = "/usr/lib/libc.so.6";
        assert_eq!(allocator_of([libc, "/opt/libjemalloc.so.2"]), Some("jemalloc"));
        assert_eq!(allocator_of([libc, "[heap]"]), Some("glibc"));
        assert_eq!(allocator_of([]), None);
    }
}
