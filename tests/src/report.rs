//! The JSON report as the tests read it: validated against the schema, then compared with what a program said.
//!
//! These types are the tests' own, not the tracer's: a field that the tracer renamed fails here.

use std::{
    collections::{BTreeMap, HashSet},
    sync::LazyLock,
};

use serde::Deserialize;
use serde_json::Value;

use crate::program::{Expect, Leak};

static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
    let text = include_str!("../../docs/report.schema.json");
    let schema = serde_json::from_str(text).expect("the schema is JSON");
    jsonschema::validator_for(&schema).expect("the schema is valid")
});

/// A recording's JSON report.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the schema, which describes them")]
pub struct Report {
    pub target: Target,
    #[serde(default)]
    pub processes: Vec<Target>,
    pub window: Window,
    #[serde(default)]
    pub settings: serde_json::Value,
    #[serde(default)]
    pub overhead: serde_json::Value,
    pub events: Events,
    #[serde(default)]
    pub not_probed: Vec<NotProbed>,
    pub totals: Totals,
    pub memory: Option<Memory>,
    pub stacks: Vec<Stack>,
    pub verdict: Option<Verdict>,
    #[serde(default)]
    pub causes: Vec<Cause>,
}

#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the schema, which describes them")]
pub struct Cause {
    pub place: String,
    #[serde(default)]
    pub by: Vec<String>,
    pub below: Option<String>,
    pub verdict: String,
    pub weight_bytes: u64,
    pub stacks: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NotProbed {
    pub module: String,
    pub function: String,
    pub why: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Verdict {
    pub summary: String,
    pub leaking: Option<bool>,
    pub growth_bytes_per_second: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Memory {
    pub rss_before_bytes: Option<u64>,
    pub rss_after_bytes: Option<u64>,
    #[serde(default)]
    pub parts: Vec<PartSize>,
    #[serde(default)]
    pub allocators: Vec<AllocatorMemory>,
}

/// What an allocator has beyond the blocks that the program holds.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the schema, which describes them")]
pub struct AllocatorMemory {
    pub name: Option<String>,
    pub file: String,
    pub resident_bytes: u64,
    pub kept_before_bytes: u64,
    pub kept_after_bytes: u64,
    pub trimmable_bytes: Option<u64>,
    #[serde(default)]
    pub is_whole_file: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PartSize {
    pub part: String,
    pub before_bytes: i64,
    pub after_bytes: i64,
    pub runtime: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    pub pid: u32,
    pub comm: String,
    pub exe: Option<String>,
    #[serde(default)]
    pub command: Vec<String>,
    pub from: Option<usize>,
    pub end: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Window {
    pub duration_ns: u64,
    /// None in a snapshot.
    pub end: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Events {
    pub allocations: u64,
    pub frees: u64,
    pub unmatched_frees: u64,
    #[serde(default)]
    pub failed_allocations: u64,
    pub lost: BTreeMap<String, u64>,
    #[serde(default)]
    pub incomplete_stacks: BTreeMap<String, u64>,
    #[serde(default)]
    pub unnamed_functions: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Totals {
    pub outstanding_bytes: u64,
    pub outstanding_objects: u64,
    pub allocated_bytes: u64,
    pub allocated_objects: u64,
    pub freed_bytes: u64,
    pub freed_objects: u64,
    pub weight_bytes: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the schema, which describes them")]
pub struct Stack {
    pub pid: Option<u32>,
    pub process: Option<usize>,
    pub kind: String,
    pub api: String,
    pub weight_bytes: u64,
    pub outstanding_bytes: u64,
    pub outstanding_objects: u64,
    pub allocated_bytes: u64,
    pub allocated_objects: u64,
    pub freed_bytes: u64,
    pub freed_objects: u64,
    pub resident_bytes: Option<u64>,
    pub growth_bytes_per_second: Option<f64>,
    pub oldest_age_ns: Option<u64>,
    pub median_age_ns: Option<u64>,
    pub verdict: Option<String>,
    pub reason: Option<String>,
    pub complete: bool,
    pub stop: Option<String>,
    pub frames: Vec<Frame>,
}

#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the schema, which describes them")]
pub struct Frame {
    pub ip: String,
    pub function: Option<String>,
    pub module: Option<String>,
    pub build_id: Option<String>,
    pub offset: Option<String>,
    pub function_offset: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    #[serde(default)]
    pub inlined: bool,
    pub language: Option<String>,
}

impl Frame {
    /// Whether it is the named function, whatever its scope and parameters: `pool::take(unsigned long)` is `take`.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        let Some(function) = &self.function else { return false };
        let bare = function.strip_prefix("(anonymous namespace)::").unwrap_or(function);
        let bare = bare.split('(').next().unwrap_or_default();
        bare == name || bare.strip_suffix(name).is_some_and(|scope| scope.ends_with("::"))
    }

    /// Whether it lies in the C library or the dynamic loader.
    #[must_use]
    pub fn is_in_libc(&self) -> bool {
        self.module
            .as_deref()
            .is_some_and(|module| module.starts_with("libc.so") || module.starts_with("ld-"))
    }
}

impl Stack {
    /// The frames of the allocator function's caller: functions inlined into it, then itself. A mapping is made by a
    /// system call, so there the C library's wrapper, if any, comes first.
    fn caller(&self) -> &[Frame] {
        let wrapper = match self.kind.as_str() {
            "mapping" => self.frames.iter().take_while(|frame| frame.is_in_libc()).count(),
            _ => 0,
        };
        let frames = &self.frames[wrapper..];
        let caller = frames.iter().position(|frame| !frame.inlined).map_or(frames.len(), |at| at + 1);
        &frames[..caller]
    }

    /// Whether the named function called the allocator.
    #[must_use]
    pub fn called_by(&self, function: &str) -> bool {
        self.caller().iter().any(|frame| frame.is(function))
    }

    /// Whether the named function is anywhere in the stack.
    #[must_use]
    pub fn passes(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.is(function))
    }

    /// Whether it counts in the totals.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self.kind.as_str(), "native" | "mapping")
    }

    /// Its frames in one line, leaf first, for messages.
    #[must_use]
    pub fn outline(&self) -> String {
        let name = |frame: &Frame| {
            let module = frame.module.as_deref().unwrap_or("?");
            frame
                .function
                .clone()
                .unwrap_or_else(|| format!("{module}+{}", frame.offset.as_deref().unwrap_or("?")))
        };
        let frames: Vec<_> = self.frames.iter().map(name).collect();
        format!("{} {} {} B: {}", self.kind, self.api, self.outstanding_bytes, frames.join(" < "))
    }
}

impl Report {
    /// Reads a report, which must be valid against the schema.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let json: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("the report is JSON: {error}\n{text}"));
        let errors: Vec<_> =
            SCHEMA.iter_errors(&json).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "the report is not valid: {errors:#?}");
        serde_json::from_value(with_frames(json)).expect("a valid report can be read")
    }

    /// Panics unless every number adds up and nothing was lost.
    #[track_caller]
    pub fn assert_exact(&self) {
        self.assert_nothing_lost_but(&[]);
        self.assert_sums();
    }

    /// Panics when events were lost by another cause than these.
    #[track_caller]
    pub fn assert_nothing_lost_but(&self, causes: &[&str]) {
        let foreign = |(cause, lost): &(&String, &u64)| **lost != 0 && !causes.contains(&cause.as_str());
        let lost: Vec<_> = self.events.lost.iter().filter(foreign).collect();
        assert!(lost.is_empty(), "events were lost: {lost:?}");
        assert!(!self.events.lost.is_empty(), "every known cause of loss is stated, 0 included");
    }

    /// Panics unless the numbers add up: per stack, and the stacks to the totals. Blocks whose allocation was lost are
    /// in none of them, so this holds under loss too.
    #[track_caller]
    pub fn assert_sums(&self) {
        self.assert_balanced();
        let totals = self.totals;
        assert!(totals.allocated_objects <= self.events.allocations, "{totals:?} {:?}", self.events);
    }

    /// Panics unless the figures of memory add up; with sampling, the calls are counted and these are estimated.
    #[track_caller]
    pub fn assert_balanced(&self) {
        for stack in &self.stacks {
            let what = stack.outline();
            assert_eq!(stack.allocated_bytes - stack.freed_bytes, stack.outstanding_bytes, "bytes of {what}");
            assert_eq!(
                stack.allocated_objects - stack.freed_objects,
                stack.outstanding_objects,
                "objects of {what}"
            );
        }
        let totals = self.totals;
        assert_eq!(totals.allocated_bytes - totals.freed_bytes, totals.outstanding_bytes, "{totals:?}");
        assert_eq!(totals.allocated_objects - totals.freed_objects, totals.outstanding_objects, "{totals:?}");
        let sum = |field: fn(&Stack) -> u64| {
            self.stacks.iter().filter(|stack| stack.counts()).map(field).sum::<u64>()
        };
        // Stacks that hold nothing may be left out, so `allocated` and `freed` are only bounded by the totals.
        assert_eq!(sum(|stack| stack.outstanding_bytes), totals.outstanding_bytes, "outstanding bytes");
        assert_eq!(sum(|stack| stack.outstanding_objects), totals.outstanding_objects, "outstanding objects");
        assert_eq!(sum(|stack| stack.weight_bytes), totals.weight_bytes, "weights");
        assert!(sum(|stack| stack.allocated_bytes) <= totals.allocated_bytes, "allocated bytes");
        assert!(sum(|stack| stack.freed_objects) <= totals.freed_objects, "freed objects");
        assert!(self.stacks.is_sorted_by(|a, b| a.weight_bytes >= b.weight_bytes), "largest weight first");
    }

    /// Panics unless the report says what the program said that it would do, and nothing else.
    #[track_caller]
    pub fn check(&self, expect: &Expect) {
        self.assert_nothing_lost_but(&[]);
        self.check_account(expect);
    }

    /// As [`Report::check`], whatever was lost.
    #[track_caller]
    pub fn check_account(&self, expect: &Expect) {
        self.assert_sums();
        self.check_leaks(expect);
        let leaked_bytes = expect.leaks.iter().map(|leak| leak.bytes).sum::<u64>();
        let leaked_objects = expect.leaks.iter().map(|leak| leak.objects).sum::<u64>();
        let leaked = (leaked_bytes, leaked_objects);
        let totals = self.totals;
        let surplus = || self.unexpected(expect);
        assert_eq!(
            (totals.outstanding_bytes, totals.outstanding_objects),
            leaked,
            "in all; besides: {:#?}",
            surplus()
        );
        if let Some(freed) = expect.freed {
            assert_eq!((totals.freed_bytes, totals.freed_objects), (freed.bytes, freed.objects), "freed");
        }
        if let Some(failed) = expect.failed {
            assert_eq!(self.events.failed_allocations, failed, "failed allocations");
        }
        if let Some(unmatched) = expect.unmatched_frees {
            assert_eq!(self.events.unmatched_frees, unmatched, "frees of blocks from before the window");
        }
    }

    /// As [`Report::check`], for programs that also allocate what nobody can foresee: their leaks must be there.
    #[track_caller]
    pub fn check_leaks(&self, expect: &Expect) {
        for leak in &expect.leaks {
            let stacks: Vec<_> = self.stacks.iter().filter(|stack| is_of(stack, leak)).collect();
            let found = (
                stacks.iter().map(|stack| stack.outstanding_bytes).sum::<u64>(),
                stacks.iter().map(|stack| stack.outstanding_objects).sum::<u64>(),
            );
            assert_eq!(found, (leak.bytes, leak.objects), "{leak:?}\nof {:#?}", self.outlines());
            let weight = stacks.iter().map(|stack| stack.weight_bytes).sum::<u64>();
            assert_eq!(weight, leak.weight.unwrap_or(leak.bytes), "weight of {leak:?}");
        }
    }

    /// The stacks whose caller is the named function.
    #[must_use]
    pub fn called_by(&self, function: &str) -> Vec<&Stack> {
        self.stacks.iter().filter(|stack| stack.called_by(function)).collect()
    }

    /// The process whose stacks the named function made.
    #[track_caller]
    #[must_use]
    pub fn process_of(&self, function: &str) -> usize {
        let mut places: Vec<_> = self.called_by(function).iter().map(|stack| stack.process).collect();
        places.dedup();
        let [Some(place)] = places[..] else {
            panic!("{function} is in one process: {:#?}", self.outlines())
        };
        assert_eq!(self.called_by(function)[0].pid, Some(self.processes[place].pid));
        place
    }

    /// Outstanding bytes and objects of the malloc family in one process.
    #[must_use]
    pub fn native_of(&self, process: usize) -> (u64, u64) {
        let stacks =
            self.stacks.iter().filter(|stack| stack.process == Some(process) && stack.kind == "native");
        stacks.fold((0, 0), |sum, stack| (sum.0 + stack.outstanding_bytes, sum.1 + stack.outstanding_objects))
    }

    /// The stacks with the named function anywhere.
    #[must_use]
    pub fn passing(&self, function: &str) -> Vec<&Stack> {
        self.stacks.iter().filter(|stack| stack.passes(function)).collect()
    }

    /// Every stack in one line each, for messages.
    #[must_use]
    pub fn outlines(&self) -> Vec<String> {
        self.stacks.iter().map(Stack::outline).collect()
    }

    fn unexpected(&self, expect: &Expect) -> Vec<String> {
        let holds =
            |stack: &&Stack| stack.counts() && stack.outstanding_bytes + stack.outstanding_objects > 0;
        let foreign = |stack: &&Stack| !expect.leaks.iter().any(|leak| is_of(stack, leak));
        self.stacks.iter().filter(holds).filter(foreign).map(Stack::outline).collect()
    }
}

/// The report with the frames of its stacks in place of their indexes in its table, which has each of them once and no other.
#[track_caller]
fn with_frames(mut report: Value) -> Value {
    let Value::Array(table) = report["frames"].take() else { panic!("a valid report has a table of frames") };
    let texts: HashSet<String> = table.iter().map(Value::to_string).collect();
    assert_eq!(texts.len(), table.len(), "each frame is in the table once");
    let mut is_used = vec![false; table.len()];
    let stacks = report["stacks"].as_array_mut().into_iter().flatten();
    for frame in stacks.flat_map(|stack| stack["frames"].as_array_mut().into_iter().flatten()) {
        let index = frame.as_u64().and_then(|index| usize::try_from(index).ok()).expect("it is an index");
        assert!(index < table.len(), "a stack has frame {index} of {}", table.len());
        is_used[index] = true;
        *frame = table[index].clone();
    }
    assert!(!is_used.contains(&false), "each frame of the table is in a stack");
    report
}

fn is_of(stack: &Stack, leak: &Leak) -> bool {
    let by = if leak.through { stack.passes(&leak.function) } else { stack.called_by(&leak.function) };
    by && stack.kind == leak.kind && leak.api.split('|').any(|api| api == stack.api)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A report of one function that leaks two blocks of 50 bytes and frees a third.
    fn report() -> Value {
        let amounts = json!({
            "outstanding_bytes": 100, "outstanding_objects": 2, "allocated_bytes": 150, "allocated_objects": 3,
            "freed_bytes": 50, "freed_objects": 1, "weight_bytes": 100
        });
        let mut stack = amounts.clone();
        let frames = json!([
            {"ip": "0x1", "function": "alloc::Vec<T>::with", "inlined": true},
            {"ip": "0x1", "function": "pool::leak(unsigned long)"},
            {"ip": "0x2", "function": "main"}
        ]);
        for (field, value) in [
            ("kind", json!("native")),
            ("api", json!("malloc")),
            ("complete", json!(true)),
            ("frames", json!([0, 1, 2])),
        ] {
            stack[field] = value;
        }
        json!({
            "schema": "tracer.report/2", "tracer_version": "0", "target": {"pid": 1, "comm": "x"},
            "window": {"started_at": "2026-01-01T00:00:00Z", "duration_ns": 1, "end": "interrupted"},
            "settings": {"sample_bytes": 0, "min_age_ns": 0, "max_live": 1},
            "events": {
                "allocations": 3, "frees": 1, "unmatched_frees": 0, "failed_allocations": 0, "lost": {"full": 0},
                "incomplete_stacks": {}
            },
            "totals": amounts, "timeline": [], "frames": frames, "stacks": [stack]
        })
    }

    fn expect(function: &str, bytes: u64) -> Expect {
        serde_json::from_value(json!({
            "leaks": [{"function": function, "api": "calloc|malloc", "kind": "native", "bytes": bytes, "objects": 2}],
            "freed": {"bytes": 50, "objects": 1}, "failed": 0, "unmatched_frees": 0
        }))
        .expect("it is what a program says")
    }

    /// Checks a report in which one value is another.
    fn check(path: &str, value: Value) {
        let mut report = report();
        *report.pointer_mut(path).expect("the report has this value") = value;
        Report::parse(&report.to_string()).check(&expect("leak", 100));
    }

    #[test]
    fn what_was_announced_is_found() {
        Report::parse(&report().to_string()).check(&expect("leak", 100));
        Report::parse(&report().to_string()).check(&expect("pool::leak", 100));
    }

    #[test]
    #[should_panic(expected = "leak")]
    fn a_callers_caller_is_not_the_caller() {
        Report::parse(&report().to_string()).check(&expect("main", 100));
    }

    #[test]
    fn a_function_anywhere_is_found_when_that_is_what_was_announced() {
        let mut expect = expect("main", 100);
        expect.leaks[0].through = true;
        Report::parse(&report().to_string()).check(&expect);
    }

    #[test]
    #[should_panic(expected = "leak")]
    fn a_byte_less_is_noticed() {
        Report::parse(&report().to_string()).check(&expect("leak", 99));
    }

    #[test]
    #[should_panic(expected = "not valid")]
    fn an_invalid_report_is_noticed() {
        check("/frames/0/ip", json!("1"));
    }

    #[test]
    #[should_panic(expected = "a stack has frame 3 of 3")]
    fn a_frame_that_is_not_in_the_table_is_noticed() {
        check("/stacks/0/frames/0", json!(3));
    }

    #[test]
    #[should_panic(expected = "each frame of the table is in a stack")]
    fn a_frame_that_is_in_no_stack_is_noticed() {
        check("/stacks/0/frames/0", json!(1));
    }

    #[test]
    #[should_panic(expected = "each frame is in the table once")]
    fn a_frame_that_is_in_the_table_twice_is_noticed() {
        check("/frames/1", json!({"ip": "0x2", "function": "main"}));
    }

    #[test]
    #[should_panic(expected = "events were lost")]
    fn loss_is_noticed() {
        check("/events/lost/full", json!(1));
    }

    #[test]
    #[should_panic(expected = "bytes of native malloc")]
    fn a_stack_that_does_not_add_up_is_noticed() {
        check("/stacks/0/freed_bytes", json!(49));
    }

    #[test]
    #[should_panic(expected = "outstanding objects")]
    fn totals_that_are_not_the_sum_of_the_stacks_are_noticed() {
        let mut report = report();
        report["totals"]["outstanding_objects"] = json!(1);
        report["totals"]["freed_objects"] = json!(2);
        Report::parse(&report.to_string()).assert_sums();
    }

    #[test]
    #[should_panic(expected = "frees of blocks from before")]
    fn an_unmatched_free_is_noticed() {
        check("/events/unmatched_frees", json!(1));
    }
}
