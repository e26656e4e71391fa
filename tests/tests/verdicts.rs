//! What the tracer makes of programs whose truth is known: the verdict, the stack, and where the memory went.
//!
//! With `TRACER_SCENARIOS` naming a directory, every scenario leaves its row of the table of docs/analysis.md there
//! (`cargo xtask scenarios`).

use std::{env, fs, panic::Location, path::Path, process::Command};

use tempfile::TempDir;
use tracer_tests::{
    Program, Report, Running, Stack, Tracer, compile, java, node_addon, programs_dir, python,
};

const MIB: u64 = 1 << 20;

/// A recording of a scenario, judged.
struct Judged(Report);

impl Judged {
    #[track_caller]
    fn scenario(name: &str, title: &str) -> Self {
        Self::running(Program::new("scenario.c").argument(name).start(), title)
    }

    #[track_caller]
    fn running(mut program: Running, title: &str) -> Self {
        let recording = Tracer::new().pid(program.pid()).start();
        program.go();
        program.wait_for_line("worked");
        // The window ends while the program still works: growth that stops before the end is another story.
        let report = recording.interrupt().report();
        program.go();
        program.wait_until_done();
        let judged = Self(report);
        judged.leave_row(title);
        judged.0.assert_exact();
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

    fn parts(&self) -> impl Iterator<Item = (&str, i64)> {
        let parts = self.0.memory.iter().flat_map(|memory| &memory.parts);
        parts.map(|part| (part.part.as_str(), part.after_bytes - part.before_bytes))
    }

    fn growth_of(&self, name: &str) -> i64 {
        self.parts().filter(|(part, _)| *part == name).map(|(_, bytes)| bytes).sum()
    }

    fn growth(&self) -> i64 {
        self.parts().map(|(_, bytes)| bytes).sum()
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

    /// A part is at least so much of the growth, in percent.
    #[track_caller]
    fn assert_share(&self, part: &str, percent: i64) {
        self.assert_share_of(&[part], percent);
    }

    /// These parts together.
    #[track_caller]
    fn assert_share_of(&self, parts: &[&str], percent: i64) {
        let grown: i64 = parts.iter().map(|part| self.growth_of(part)).sum();
        assert!(grown * 100 >= self.growth() * percent, "{parts:?}: {:#?}", self.0.memory);
    }

    #[track_caller]
    fn assert_says(&self, leaking: Option<bool>, words: &[&str]) {
        let verdict = self.0.verdict.as_ref().expect("there is a verdict");
        assert_eq!(verdict.leaking, leaking, "{verdict:?}");
        for word in words {
            assert!(verdict.summary.contains(word), "{word:?} is in {:?}", verdict.summary);
        }
    }

    fn first(&self) -> Option<&Stack> {
        self.0.stacks.iter().find(|stack| stack.counts() && stack.weight_bytes > 0)
    }

    /// The largest stack, which must be this function's.
    #[track_caller]
    fn top(&self, function: &str, verdict: &str) -> &Stack {
        let top = self.first().expect("there are stacks");
        assert!(top.called_by(function), "{:#?}", self.0.outlines());
        assert_eq!(top.verdict.as_deref(), Some(verdict), "{top:#?}");
        top
    }

    /// What all stacks hold that have this function: code that is compiled as it runs makes several of one.
    fn held_through(&self, function: &str) -> u64 {
        let through = self.0.stacks.iter().filter(|stack| stack.counts() && stack.passes(function));
        through.map(|stack| stack.outstanding_bytes).sum()
    }

    /// Leaves the row of the table, in the order of the tests.
    #[track_caller]
    fn leave_row(&self, title: &str) {
        let Some(directory) = env::var_os("TRACER_SCENARIOS") else { return };
        let first = self.first().and_then(|stack| stack.verdict.clone());
        let first = first.map_or_else(String::new, |verdict| format!("`{verdict}`"));
        let mut parts: Vec<_> = self
            .parts()
            .filter(|(_, bytes)| bytes.unsigned_abs() * 50 > self.growth().unsigned_abs())
            .collect();
        parts.sort_by_key(|(_, bytes)| -bytes.abs());
        let parts: Vec<_> =
            parts.iter().map(|(part, bytes)| format!("{part} {:+.1}", *bytes as f64 / MIB as f64)).collect();
        let summary = self.0.verdict.as_ref().map_or("", |verdict| &verdict.summary);
        let summary = without_build_hash(summary);
        let row = format!("| {title} | {first} | {} | {summary} |\n", parts.join(", "));
        let name = format!("{:05}", Location::caller().line());
        fs::write(Path::new(&directory).join(name), row).expect("the directory is writable");
    }
}

/// `scenario: leaked` for `scenario-f320e238657e6d40: leaked`.
fn without_build_hash(summary: &str) -> String {
    let is_hash = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = summary.split('-');
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..16).filter(|hash| is_hash(hash)) {
            Some(hash) => clean += part.trim_start_matches(hash),
            None => clean = format!("{clean}-{part}"),
        }
    }
    clean
}

#[test]
fn a_steady_leak() {
    let judged = Judged::scenario("steady_leak", "steady leak");
    let leak = judged.top("leaked", "leaking");
    judged.assert_says(Some(true), &["leaking ", "/min in `", "leaked` below `steady_leak` (9"]);
    judged.assert_growth("native", leak.outstanding_bytes);
    // 64 KiB every 10 ms; a slow machine catches up.
    let rate = leak.growth_bytes_per_second.expect("it is known");
    assert!((rate / 6_553_600.0 - 1.0).abs() < 0.2, "{rate}");
    // What leaks evenly is half as old as the window in the middle.
    let (oldest, median) = (leak.oldest_age_ns.expect("it holds"), leak.median_age_ns.expect("it holds"));
    assert!(median * 10 > oldest * 4 && median * 10 < oldest * 6, "{median} of {oldest}");
    assert!(leak.reason.as_ref().is_some_and(|reason| reason.contains("never freed")), "{leak:#?}");
}

#[test]
fn a_leak_in_one_of_fifty_threads() {
    let judged = Judged::scenario("one_of_fifty", "leak in one of 50 busy threads");
    let leak = judged.top("leaked", "leaking");
    judged.assert_says(Some(true), &["leaking ", "leaked`"]);
    let [passing] = judged.0.called_by("passing")[..] else { panic!("{:#?}", judged.0.outlines()) };
    assert_eq!(passing.verdict.as_deref(), Some("steady"), "{passing:#?}");
    judged.assert_growth("native", leak.outstanding_bytes + passing.outstanding_bytes);
}

#[test]
fn a_slow_leak_under_turnover() {
    let judged = Judged::scenario("slow_leak", "slow leak under turnover: one block of 10,000");
    judged.top("leaked", "leaking");
    judged.assert_says(Some(true), &["leaking ", "leaked`"]);
    let [passing] = judged.0.called_by("passing")[..] else { panic!("{:#?}", judged.0.outlines()) };
    assert_eq!(passing.verdict.as_deref(), Some("steady"), "{passing:#?}");
}

#[test]
fn a_cache_that_fills_and_stops() {
    let judged = Judged::scenario("cache", "cache that fills and stops");
    judged.top("cached", "one_off");
    judged.assert_says(Some(false), &["not a leak", "cached`"]);
    judged.assert_growth("native", 4000 * 4096);
}

#[test]
fn a_sawtooth() {
    let judged = Judged::scenario("sawtooth", "sawtooth: batches that are freed every 1.4 s");
    judged.top("batch", "steady");
    judged.assert_says(Some(false), &["not a leak", "batch`"]);
}

#[test]
fn a_queue_of_old_blocks() {
    let judged = Judged::scenario("queue", "queue: each block lives for 40 s");
    let top = judged.top("queued", "leaking");
    judged.assert_says(None, &["queued`", "as many older blocks are freed"]);
    // Every new block takes the place of one from before the window.
    assert!(judged.growth_of("native") * 20 < top.outstanding_bytes as i64, "{:#?}", judged.0.memory);
}

#[test]
fn fragmentation() {
    let judged = Judged::scenario("fragmentation", "fragmentation: every other block of 256 MiB freed");
    let top = judged.top("fragment", "one_off");
    assert_eq!(top.outstanding_bytes, 32 * 1024 * 4080, "{top:#?}");
    judged.assert_says(Some(false), &["not a leak: freed memory kept by glibc", "jemalloc"]);
    judged.assert_growth("allocator", 128 * MIB);
    judged.assert_growth("native", top.outstanding_bytes);
}

#[test]
fn arenas_of_many_threads() {
    let judged = Judged::scenario("arenas", "arenas of 30 threads that freed what they had");
    judged.assert_says(Some(false), &["not a leak: freed memory kept by glibc", "MALLOC_ARENA_MAX"]);
    judged.assert_share("allocator", 95);
    // Each thread has touched a few pages of its stack.
    let stacks = judged.growth_of("stack");
    assert!(stacks >= 30 * 4096 && judged.growth_of("mapping").abs() < stacks, "{:#?}", judged.0.memory);
}

#[test]
fn a_leak_of_mappings() {
    let judged = Judged::scenario("mapping_leak", "leak of mappings");
    let leak = judged.top("mapped", "leaking");
    judged.assert_says(Some(true), &["leaking ", "mapped`"]);
    judged.assert_growth("mapping", leak.weight_bytes);
}

#[test]
fn a_reservation_that_is_used_in_part() {
    let judged = Judged::scenario("reservation", "1 GiB reserved, 16 MiB of it used");
    let top = judged.top("mapped", "one_off");
    assert_eq!((top.outstanding_bytes, top.weight_bytes), (1 << 30, 16 << 20));
    judged.assert_says(Some(false), &["not a leak"]);
    judged.assert_growth("mapping", 16 << 20);
}

#[test]
fn a_file_that_is_read_through() {
    let judged = Judged::scenario("file", "file of 64 MiB mapped and read through");
    judged.assert_says(Some(false), &["not a leak: mapped files were read"]);
    judged.assert_growth("file", 64 * MIB);
    assert!(judged.first().is_none(), "{:#?}", judged.0.outlines());
}

fn node(name: &str) -> (Running, TempDir) {
    let directory = TempDir::new().expect("a temporary directory");
    let mut command = Command::new("node");
    command.arg(programs_dir().join("node/scenario.js")).arg(name).arg(node_addon(directory.path()));
    (Running::start(command), directory)
}

#[test]
fn a_growing_javascript_heap() {
    let (program, _directory) = node("heap");
    let judged = Judged::running(program, "node: JavaScript heap grows");
    judged.assert_says(None, &["the JavaScript heap is what grows: take a heap snapshot"]);
    judged.assert_share("managed", 80);
    // The rest is what the collector's lists took for a while, and code that ran for the first time; no block is held.
    judged.assert_share_of(&["managed", "allocator", "file"], 95);
    assert!(judged.growth_of("native") * 20 < judged.growth(), "{:#?}", judged.0.memory);
    assert!(judged.0.stacks.iter().any(|stack| stack.kind == "managed"), "{:#?}", judged.0.outlines());
    assert!(judged.0.stacks.iter().all(|stack| stack.kind != "mapping"), "{:#?}", judged.0.outlines());
}

#[test]
fn a_growing_javascript_heap_and_a_native_leak() {
    let (program, _directory) = node("heap_and_leak");
    let judged = Judged::running(program, "node: JavaScript heap grows and an addon leaks");
    let leak = judged.top("session::Cache::Open", "leaking");
    judged.assert_says(Some(true), &["leak", "session::Cache::Open`"]);
    assert!(judged.growth_of("managed") > 10 << 20, "{:#?}", judged.0.memory);
    assert!(leak.frames.len() > 5, "{leak:#?}");
    judged.assert_growth("native", judged.held_through("session::Cache::Open"));
}

#[test]
fn buffers_that_javascript_keeps() {
    let (program, _directory) = node("buffers");
    let judged = Judged::running(program, "node: Buffers that JavaScript keeps");
    let top = judged.first().expect("there are stacks");
    assert_eq!((top.kind.as_str(), top.verdict.as_deref()), ("native", Some("leaking")), "{top:#?}");
    assert!(
        top.passes("v8::internal::Builtin_ArrayBufferConstructor")
            || top.frames.iter().any(|frame| {
                frame.function.as_ref().is_some_and(|function| function.contains("ArrayBuffer"))
            }),
        "{top:#?}"
    );
    judged.assert_says(Some(true), &["leaking ", "in `node: "]);
    let leaf = top.frames[0].function.as_deref().and_then(|leaf| leaf.split('(').next());
    // Each has a mapping of its own: 128 KiB and a page.
    let held = judged.held_through(leaf.expect("node has symbols"));
    judged.assert_growth("native", held / 32 * 33);
}

fn jvm(name: &str) -> (Running, TempDir) {
    let directory = TempDir::new().expect("a temporary directory");
    let options = ["-Xmx256m", "-XX:MaxDirectMemorySize=1g"];
    let mut command = java("Scenario", directory.path(), &options);
    command.arg(name);
    (Running::start(command), directory)
}

#[test]
fn direct_buffers_of_java() {
    let (program, _directory) = jvm("buffers");
    let judged = Judged::running(program, "java: direct ByteBuffers that are kept");
    judged.assert_says(Some(true), &["leaking ", "`Scenario.keepBuffer`", "`Unsafe_AllocateMemory0`"]);
    judged.assert_growth("native", judged.held_through("Unsafe_AllocateMemory0"));
}

#[test]
fn inflaters_of_java_that_are_not_ended() {
    let (program, _directory) = jvm("inflaters");
    let judged = Judged::running(program, "java: `Inflater`s that are not ended");
    assert!(judged.held_through("inflateInit2_") > 0);
    judged.assert_says(Some(true), &["leaking ", "`Scenario.forgetInflater`"]);
}

#[test]
fn a_growing_java_heap() {
    let (program, _directory) = jvm("heap");
    let judged = Judged::running(program, "java: objects that are kept");
    judged.assert_says(None, &["the Java heap is what grows"]);
    judged.assert_share("managed", 80);
}

#[test]
fn growing_python_objects() {
    let mut command = python();
    command.arg(programs_dir().join("python/scenario.py")).arg("objects");
    let judged = Judged::running(Running::start(command), "python: objects that are kept");
    judged.assert_says(None, &["the Python heap is what grows"]);
    judged.assert_share("managed", 85);
    // The list that keeps them is a block of `malloc`.
    judged.assert_share_of(&["managed", "native"], 95);
}

#[test]
fn a_leaking_extension_of_python() {
    let library = compile("python/extension.c", &["-shared".into(), "-fPIC".into()]);
    let mut command = python();
    command.arg(programs_dir().join("python/scenario.py")).arg("extension").arg(library);
    let judged = Judged::running(Running::start(command), "python: C extension that leaks");
    judged.top("leaked", "leaking");
    judged.assert_says(Some(true), &["leaking ", "leaked`"]);
    // Two lines of the program call it.
    judged.assert_growth("native", judged.held_through("leaked"));
}
