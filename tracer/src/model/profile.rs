//! The result of a recording. Field names and shapes are those of the JSON report; a field that cannot be known is
//! `None` and absent from it, never guessed.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Address, Bytes, Cause, Pid};

/// The name and version of the report's format.
pub const SCHEMA: &str = "tracer.report/2";

/// Everything that a recording found out.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Version of the tracer that recorded it.
    pub tracer_version: String,
    /// The traced process; the first one when there were several.
    pub target: Process,
    /// Every traced process when there was more than one; stacks refer to them by pid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    /// When the recording took place and how it ended.
    pub window: Window,
    /// The settings in force.
    pub settings: Settings,
    /// What tracing took of the targets' CPU time; absent when that was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead: Option<Overhead>,
    /// What was seen and what was lost.
    pub events: Events,
    /// Allocator functions whose calls were not seen, by module and name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_probed: Vec<NotProbed>,
    /// Sums over the stacks of kinds `native` and `mapping`.
    pub totals: Totals,
    /// Where the resident memory went; absent when the target's memory could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Snapshots over the window, oldest first.
    pub timeline: Vec<TimelinePoint>,
    /// Stacks by descending weight, every kind included. A saved report has them in a form of its own.
    #[serde(skip)]
    pub stacks: Vec<StackReport>,
    /// What it all means; absent when nothing was analysed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictSummary>,
    /// Who is to blame for what is held: those that leak first, then by weight. Small ones are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
}

/// An allocator function that could not be probed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NotProbed {
    /// The file that defines it, without its directory.
    pub module: String,
    /// The function.
    pub function: String,
    /// Why it was not probed.
    pub why: String,
}

/// A traced process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid, as the tracer sees it.
    pub pid: Pid,
    /// The kernel's name for it (at most 15 bytes).
    pub comm: String,
    /// Path of its executable, in its own mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The process that it was forked from, or that it was before it executed this program, by its place in
    /// [`Profile::processes`]; absent for those that were there from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// How it ended while it was traced; absent when it had not, or nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ProcessEnd>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessEnd {
    /// It exited.
    Exited,
    /// It executed another program, which is another process of the report under the same pid.
    Exec,
}

/// The recorded span of time: from the moment every probe was attached to the end of the recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// RFC 3339 time of the start, UTC.
    pub started_at: String,
    /// Length in nanoseconds.
    pub duration_ns: u64,
    /// Why it ended; absent in a snapshot, after which the recording went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

impl Window {
    /// Whether the recording went on.
    #[must_use]
    pub const fn is_snapshot(&self) -> bool {
        self.end.is_none()
    }
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The asked-for time was over.
    Duration,
    /// The user ended it (Ctrl-C).
    Interrupted,
    /// The target exited.
    TargetExited,
    /// The target replaced itself by `exec`.
    TargetExec,
    /// The kernel killed the target for want of memory.
    OomKilled,
    /// The tracer could not go on.
    Failed,
}

/// The settings a recording was made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Mean bytes between sampled allocations; 0 tracks every one.
    pub sample_bytes: u64,
    /// Only blocks at least this old at the end count as outstanding, in nanoseconds.
    pub min_age_ns: u64,
    /// Only requests of at least this many bytes were tracked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_size: Option<Bytes>,
    /// Only requests of at most this many bytes were tracked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Bytes>,
    /// Live blocks that the table was sized for.
    pub max_live: u64,
    /// What was looked at.
    #[serde(default, skip_serializing_if = "Mode::is_allocations")]
    pub mode: Mode,
}

/// What a recording looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every allocation, and which of them are not freed.
    #[default]
    Allocations,
    /// Only what makes the process' memory grow: mappings and page faults, no probes.
    Growth,
}

impl Mode {
    /// Whether it is the usual one.
    #[must_use]
    pub const fn is_allocations(&self) -> bool {
        matches!(self, Self::Allocations)
    }
}

/// What tracing took of the targets' CPU time in the window, about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Their CPU time, in nanoseconds.
    pub cpu_ns: u64,
    /// Of that, what probes and the programs behind them took.
    pub tracing_ns: u64,
    /// The same in per cent.
    pub percent: f64,
}

impl Overhead {
    /// More than that of the CPU time changes how fast the targets go, in per cent.
    pub const WORTH_SAYING: f64 = 10.0;

    /// Of so much CPU time, so much.
    #[must_use]
    pub fn new(cpu_ns: f64, tracing_ns: f64) -> Self {
        let percent = (100.0 * tracing_ns / cpu_ns.max(1.0)).clamp(0.0, 100.0);
        Self {
            cpu_ns: cpu_ns as u64,
            tracing_ns: tracing_ns as u64,
            percent: (percent * 10.0).round() / 10.0,
        }
    }

    /// Whether rates are those of a slowed process.
    #[must_use]
    pub fn is_much(self) -> bool {
        self.percent > Self::WORTH_SAYING
    }

    /// How many times as fast a target would have gone without, that does nothing but use its CPU. At most 1,000.
    #[must_use]
    pub fn times_as_fast(self) -> f64 {
        let work_ns = self.cpu_ns.saturating_sub(self.tracing_ns) as f64;
        (self.cpu_ns as f64 / work_ns.max(1.0)).clamp(1.0, 1000.0)
    }
}

/// What was seen in the window, and what could not be accounted for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Successful outermost allocator calls and anonymous mappings.
    pub allocations: u64,
    /// Releases of a tracked allocation.
    pub frees: u64,
    /// Releases of a block the window does not know (made before it).
    pub unmatched_frees: u64,
    /// Allocator calls that returned failure.
    #[serde(default)]
    pub failed_allocations: u64,
    /// Cause → events that could not be accounted for; every known cause is present, 0 included.
    pub lost: BTreeMap<String, u64>,
    /// Cause → allocations whose stack stopped before the thread's base.
    #[serde(default)]
    pub incomplete_stacks: BTreeMap<String, u64>,
    /// Cause → frames of distinct stacks that are functions of a language runtime and have no name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unnamed_functions: BTreeMap<String, u64>,
}

impl Events {
    /// Events lost by any cause.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        self.lost.values().fold(0, |sum, &number| sum.saturating_add(number))
    }

    /// Allocations with an incomplete stack, by any cause.
    #[must_use]
    pub fn incomplete_total(&self) -> u64 {
        self.incomplete_stacks.values().fold(0, |sum, &number| sum.saturating_add(number))
    }
}

/// Sums over stacks of kinds `native` and `mapping`. When nothing was lost and no minimal age is in force,
/// `allocated - freed = outstanding`, in bytes and in objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Allocated in the window and not freed at its end.
    pub outstanding_bytes: u64,
    /// Objects of `outstanding_bytes`.
    pub outstanding_objects: u64,
    /// Allocated in the window.
    pub allocated_bytes: u64,
    /// Objects of `allocated_bytes`.
    pub allocated_objects: u64,
    /// Allocated and freed in the window.
    pub freed_bytes: u64,
    /// Objects of `freed_bytes`.
    pub freed_objects: u64,
    /// Sum of the stacks' weights.
    pub weight_bytes: u64,
}

impl Totals {
    /// The sums over these stacks. They saturate: figures read from a file may be any.
    #[must_use]
    pub fn of(stacks: &[StackReport]) -> Self {
        let mut totals = Self::default();
        let add = |sum: &mut u64, figure: u64| *sum = sum.saturating_add(figure);
        for stack in stacks.iter().filter(|stack| stack.kind.counts_by_default()) {
            add(&mut totals.outstanding_bytes, stack.outstanding_bytes);
            add(&mut totals.outstanding_objects, stack.outstanding_objects);
            add(&mut totals.allocated_bytes, stack.allocated_bytes);
            add(&mut totals.allocated_objects, stack.allocated_objects);
            add(&mut totals.freed_bytes, stack.freed_bytes);
            add(&mut totals.freed_objects, stack.freed_objects);
            add(&mut totals.weight_bytes, stack.weight_bytes);
        }
        totals
    }
}

/// Where the resident memory went, before and after the window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident set at the start of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_before_bytes: Option<u64>,
    /// Resident set at the end of the window (the last known one when the target exited).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_after_bytes: Option<u64>,
    /// Parts that add up to the resident set; empty when it was not split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartSize>,
    /// What each allocator keeps, the most first; empty when that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocators: Vec<AllocatorMemory>,
}

/// What an allocator has resident beyond the blocks that the program holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocatorMemory {
    /// What people call it (`mimalloc`); absent of one that nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The file that it is in.
    pub file: String,
    /// Resident bytes at the end, blocks included.
    pub resident_bytes: u64,
    /// What it kept at the start of the window. Estimates count blocks from before the window as kept: only their growth says something.
    pub kept_before_bytes: u64,
    /// What it kept at the end.
    pub kept_after_bytes: u64,
    /// What `malloc_trim(0)` would give back of that; of glibc only, where its arenas could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trimmable_bytes: Option<u64>,
    /// Whether the file is nothing but this allocator, or the C library.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_whole_file: bool,
}

impl AllocatorMemory {
    /// By how much what it keeps grew.
    #[must_use]
    pub const fn growth(&self) -> u64 {
        self.kept_after_bytes.saturating_sub(self.kept_before_bytes)
    }

    /// Which one it is, as part of a sentence: `glibc`, `the mimalloc in libarrow.so.2100`.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.name {
            Some(name) if self.is_whole_file => name.clone(),
            Some(name) => format!("the {name} in {}", self.file),
            None => format!("the allocator in {}", self.file),
        }
    }
}

/// The size of one part of the resident memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSize {
    /// Which part.
    pub part: Part,
    /// At the start of the window.
    pub before_bytes: i64,
    /// At its end.
    pub after_bytes: i64,
    /// Of the managed part, the runtime whose heap it is (`V8`), if there is one that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Whether it can only be estimated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// What a reader should know about this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Parts of the resident memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the kinds explain themselves; see Kind")]
pub enum Part {
    Native,
    Mapping,
    Managed,
    Allocator,
    File,
    Stack,
    Unexplained,
}

/// One snapshot of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelinePoint {
    /// Nanoseconds since the window's start.
    pub t_ns: u64,
    /// Resident set.
    pub rss_bytes: u64,
    /// Outstanding bytes, weight of kinds `native` and `mapping`.
    pub outstanding_bytes: u64,
    /// Resident bytes of managed heaps, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_bytes: Option<u64>,
}

/// What kind of memory an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The malloc family.
    Native,
    /// Anonymous `mmap`/`mremap`, `brk` outside an allocator.
    Mapping,
    /// Memory an allocator took from the kernel for itself.
    Allocator,
    /// A language runtime's own heap.
    Managed,
    /// A file-backed mapping.
    File,
}

impl Kind {
    /// Whether it counts in totals and pictures without being asked for.
    #[must_use]
    pub const fn counts_by_default(self) -> bool {
        matches!(self, Kind::Native | Kind::Mapping)
    }

    /// As reports write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Native => "native",
            Kind::Mapping => "mapping",
            Kind::Allocator => "allocator",
            Kind::Managed => "managed",
            Kind::File => "file",
        }
    }
}

/// One stack and what it holds. In a saved report, its frames `F` are places in a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StackReport<F = Arc<Frame>> {
    /// The process it belongs to; absent when there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<Pid>,
    /// Its place in [`Profile::processes`]: a process that executed another program is there twice under one pid. Absent when there is
    /// only one, or a recording does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// What kind of memory.
    pub kind: Kind,
    /// The allocator function that was called (`malloc`, `mmap`, …).
    pub api: String,
    /// What pictures, order and `--fail-on` use: outstanding bytes (native) or resident bytes (mapping).
    pub weight_bytes: u64,
    /// Requested (native) or mapped (mapping) bytes not released.
    pub outstanding_bytes: u64,
    /// Objects of `outstanding_bytes`.
    pub outstanding_objects: u64,
    /// Standard error of `outstanding_bytes`, when they are estimated from a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error_bytes: Option<u64>,
    /// Allocated in the window.
    pub allocated_bytes: u64,
    /// Objects of `allocated_bytes`.
    pub allocated_objects: u64,
    /// Released in the window.
    pub freed_bytes: u64,
    /// Objects of `freed_bytes`.
    pub freed_objects: u64,
    /// Resident bytes, of mappings only; absent when it could not be read in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Age of the oldest outstanding block at the end of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_age_ns: Option<u64>,
    /// Half of the outstanding bytes are at least this old, to a thirty-second of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_age_ns: Option<u64>,
    /// Growth rate over the timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_bytes_per_second: Option<f64>,
    /// What it weighed at evenly spaced times, from the start of the window to its end; empty when that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history_bytes: Vec<u64>,
    /// What its history says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why it says so, as the end of a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the walk reached the thread's base.
    pub complete: bool,
    /// Name of the [`super::Stop`] of an incomplete walk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// Leaf first; frame 0 is the caller of the allocator function. Inlined frames precede the function they are in.
    /// Stacks have most of their frames in common, and a frame takes some 300 bytes: they share them.
    #[serde(skip_serializing)]
    pub frames: Vec<F>,
}

impl<F> StackReport<F> {
    /// The same stack, its frames found by what stood for them; `None` when one is not there.
    #[must_use]
    pub fn find_frames<G>(self, find: impl FnMut(F) -> Option<G>) -> Option<StackReport<G>> {
        Some(StackReport {
            frames: self.frames.into_iter().map(find).collect::<Option<_>>()?,
            pid: self.pid,
            process: self.process,
            kind: self.kind,
            api: self.api,
            weight_bytes: self.weight_bytes,
            outstanding_bytes: self.outstanding_bytes,
            outstanding_objects: self.outstanding_objects,
            standard_error_bytes: self.standard_error_bytes,
            allocated_bytes: self.allocated_bytes,
            allocated_objects: self.allocated_objects,
            freed_bytes: self.freed_bytes,
            freed_objects: self.freed_objects,
            resident_bytes: self.resident_bytes,
            oldest_age_ns: self.oldest_age_ns,
            median_age_ns: self.median_age_ns,
            growth_bytes_per_second: self.growth_bytes_per_second,
            history_bytes: self.history_bytes,
            verdict: self.verdict,
            reason: self.reason,
            complete: self.complete,
            stop: self.stop,
        })
    }
}

/// One frame of a stack. All but `ip` may be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// The return address (the address after the call).
    pub ip: Address,
    /// Demangled name of the function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// File name of the object that holds the code (`libc.so.6`), or a mapping's name (`[vdso]`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// The object's build id, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// Offset of `ip` in the object as its file states addresses (svma), in hex with `0x`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
    /// Where the function begins, stated as `offset` is, if the function has no name: in every run and at every call in it the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_offset: Option<String>,
    /// Source file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in the source file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Whether this frame was inlined into the next one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
    /// Source language (`c`, `c++`, `rust`, `javascript`, `python`, `wasm`), or `jit` for code that a perf map names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

impl Frame {
    /// What to call this frame: its function, else `module+0xoffset` of where that begins, or of the call where that is not known, else
    /// the bare address in brackets.
    #[must_use]
    pub fn label(&self) -> String {
        match (&self.function, &self.module, self.function_offset.as_ref().or(self.offset.as_ref())) {
            (Some(function), _, _) => function.clone(),
            (None, Some(module), Some(offset)) => format!("{module}+{offset}"),
            (None, Some(module), None) => module.clone(),
            (None, None, _) => format!("[{}]", self.ip),
        }
    }
}

/// What the history of a stack says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Grows steadily and old blocks are never freed.
    Leaking,
    /// Grows, with not enough evidence to call it a leak.
    Growing,
    /// Allocates and frees at the same rate.
    Steady,
    /// Allocated once and kept.
    OneOff,
    /// The window is too short to tell.
    Unknown,
}

impl Verdict {
    /// As reports write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Leaking => "leaking",
            Verdict::Growing => "growing",
            Verdict::Steady => "steady",
            Verdict::OneOff => "one_off",
            Verdict::Unknown => "unknown",
        }
    }
}

/// What the recording as a whole says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictSummary {
    /// One sentence.
    pub summary: String,
    /// Whether there is a leak; absent when it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaking: Option<bool>,
    /// Growth of what is outstanding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_bytes_per_second: Option<f64>,
}
