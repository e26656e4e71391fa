//! What the tracer makes of programs whose truth is known: the verdict, the stack, and where the memory went.

use std::process::Command;

use tracer_tests::{Program, Report, Running, Stack, Tracer, programs_dir};

/// Shorter than the programs work.
const WINDOW: &str = "7500ms";

/// A recording of a scenario, judged.
struct Judged(Report);

impl Judged {
    #[track_caller]
    fn scenario(name: &str) -> Self {
        Self::running(Program::new("scenario.c").argument(name).start())
    }

    #[track_caller]
    fn running(mut program: Running) -> Self {
        // The window ends while the program still works: growth that stops before the end is another story.
        let recording = Tracer::new().pid(program.pid()).options(["-d", WINDOW]).start();
        program.go();
        let report = recording.wait().report();
        program.wait_until_done();
        report.assert_exact();
        let judged = Self(report);
        judged.assert_explained();
        program.assert_unharmed();
        judged
    }

    /// The parts add up to the resident set, and all but a twentieth of the growth is in a part with a name.
    #[track_caller]
    fn assert_explained(&self) {
        let memory = self.0.memory.as_ref().expect("the target's memory can be read");
        let before: i64 = memory.parts.iter().map(|part| part.before_bytes).sum();
        let after: i64 = memory.parts.iter().map(|part| part.after_bytes).sum();
        assert_eq!(memory.rss_before_bytes, Some(before as u64), "{memory:#?}");
        assert_eq!(memory.rss_after_bytes, Some(after as u64), "{memory:#?}");
        let unexplained = self.growth_of("unexplained").abs();
        assert!(unexplained * 20 <= (after - before).abs().max(1 << 20), "{memory:#?}");
    }

    fn growth_of(&self, name: &str) -> i64 {
        let parts = self.0.memory.iter().flat_map(|memory| &memory.parts);
        parts.filter(|part| part.part == name).map(|part| part.after_bytes - part.before_bytes).sum()
    }

    /// A part grew by so much, give or take a twentieth.
    #[track_caller]
    fn assert_growth(&self, part: &str, bytes: u64) {
        let (found, bytes) = (self.growth_of(part), bytes as i64);
        assert!(
            (found - bytes).abs() * 20 <= bytes,
            "{part}: {found} instead of {bytes}: {:#?}",
            self.0.memory
        );
    }

    #[track_caller]
    fn assert_says(&self, leaking: Option<bool>, words: &[&str]) {
        let verdict = self.0.verdict.as_ref().expect("there is a verdict");
        assert_eq!(verdict.leaking, leaking, "{verdict:?}");
        for word in words {
            assert!(verdict.summary.contains(word), "{word:?} is in {:?}", verdict.summary);
        }
    }

    /// The largest stack, which must be this function's.
    #[track_caller]
    fn top(&self, function: &str, verdict: &str) -> &Stack {
        let top = self.0.stacks.iter().find(|stack| stack.counts()).expect("there are stacks");
        assert!(top.called_by(function), "{:#?}", self.0.outlines());
        assert_eq!(top.verdict.as_deref(), Some(verdict), "{top:#?}");
        top
    }
}

#[test]
fn a_steady_leak() {
    let judged = Judged::scenario("steady_leak");
    let leak = judged.top("leaked", "leaking");
    judged.assert_says(Some(true), &["leaking ", "/min in `", "leaked` (9"]);
    judged.assert_growth("native", leak.outstanding_bytes);
    // 64 KiB every 10 ms; a slow machine catches up.
    let rate = leak.growth_bytes_per_second.expect("it is known");
    assert!((rate / 6_553_600.0 - 1.0).abs() < 0.2, "{rate}");
}

#[test]
fn a_slow_leak_under_turnover() {
    let judged = Judged::scenario("slow_leak");
    judged.top("leaked", "leaking");
    judged.assert_says(Some(true), &["leaking ", "leaked`"]);
    let [passing] = judged.0.called_by("passing")[..] else { panic!("{:#?}", judged.0.outlines()) };
    assert_eq!(passing.verdict.as_deref(), Some("steady"), "{passing:#?}");
}

#[test]
fn a_cache_that_fills_and_stops() {
    let judged = Judged::scenario("cache");
    judged.top("cached", "one_off");
    judged.assert_says(Some(false), &["not a leak", "cached`"]);
    judged.assert_growth("native", 4000 * 4096);
}

#[test]
fn a_sawtooth() {
    let judged = Judged::scenario("sawtooth");
    judged.top("batch", "steady");
    judged.assert_says(Some(false), &["not a leak", "batch`"]);
}

#[test]
fn fragmentation() {
    let judged = Judged::scenario("fragmentation");
    judged.assert_says(Some(false), &["not a leak: freed memory kept by glibc", "jemalloc"]);
    judged.assert_growth("allocator", (64 << 10) / 16 * 15 * 1000);
    judged.assert_growth("native", (64 << 10) / 16 * 1000);
}

#[test]
fn a_leak_of_mappings() {
    let judged = Judged::scenario("mapping_leak");
    let leak = judged.top("mapped", "leaking");
    judged.assert_says(Some(true), &["leaking ", "mapped`"]);
    judged.assert_growth("mapping", leak.weight_bytes);
}

#[test]
fn a_reservation_that_is_used_in_part() {
    let judged = Judged::scenario("reservation");
    let top = judged.top("mapped", "one_off");
    assert_eq!((top.outstanding_bytes, top.weight_bytes), (1 << 30, 16 << 20));
    judged.assert_says(Some(false), &["not a leak"]);
    judged.assert_growth("mapping", 16 << 20);
}

#[test]
fn a_growing_javascript_heap() {
    let mut command = Command::new("node");
    command.arg(programs_dir().join("node/heap.js"));
    let judged = Judged::running(Running::start(command));
    judged.assert_says(None, &["the JavaScript heap is what grows: take a heap snapshot"]);
    let memory = judged.0.memory.as_ref().expect("the target's memory can be read");
    let grown: i64 = memory.parts.iter().map(|part| part.after_bytes - part.before_bytes).sum();
    // The collector's work lists are malloc'd, a tenth of the growth or so, and glibc keeps them.
    assert!(judged.growth_of("managed") * 10 > grown * 8, "{memory:#?}");
    assert!(judged.0.stacks.iter().any(|stack| stack.kind == "managed"), "{:#?}", judged.0.outlines());
    assert!(judged.0.stacks.iter().all(|stack| stack.kind != "mapping"), "{:#?}", judged.0.outlines());
}
