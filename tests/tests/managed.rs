//! How much the tracer takes for heaps of runtimes, next to what the runtimes say themselves, at the same moments: before the
//! window opens and after the work the program is quiet.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tracer_tests::{Report, Running, Tracer, java, programs_dir, python};

/// Records a program until it has done its work and is quiet; also what `says` then makes of it.
#[track_caller]
fn record<T>(program: &mut Running, says: impl FnOnce(&mut Running) -> T) -> (Report, T) {
    let recording = Tracer::new().pid(program.pid()).start();
    program.go();
    program.wait_for_line("worked");
    program.go();
    let said = says(program);
    (recording.interrupt().report(), said)
}

/// What a program says of its memory when it has done its work.
#[track_caller]
fn said_usage(program: &mut Running) -> String {
    let usage = program.wait_for_line_after("usage ");
    program.wait_until_done();
    usage
}

/// A part's size before and after.
fn sizes(report: &Report, name: &str) -> [i64; 2] {
    let parts = report.memory.iter().flat_map(|memory| &memory.parts);
    let mut sizes = parts.filter(|part| part.part == name).map(|part| [part.before_bytes, part.after_bytes]);
    sizes.next().unwrap_or_else(|| panic!("{name} is a part of {:#?}", report.memory))
}

#[track_caller]
fn assert_close(what: &str, found: i64, said: i64) {
    assert!((found - said).abs() * 20 <= said, "{what}: {found}, and the runtime says {said}");
}

#[track_caller]
fn runtime(report: &Report) -> Option<String> {
    let parts = report.memory.iter().flat_map(|memory| &memory.parts);
    parts.filter(|part| part.part == "managed").find_map(|part| part.runtime.clone())
}

/// What `process.memoryUsage()` says.
fn usage(text: &str) -> impl Fn(&str) -> i64 + use<> {
    let usage: Value = serde_json::from_str(text).expect("it is JSON");
    move |name| usage[name].as_i64().expect("it is a number")
}

/// What node does in five seconds.
fn node(work: &str) -> Running {
    let mut command = Command::new("node");
    // What new objects go to is committed, and not all of it touched; little of it here. What the collector's helper threads free stays
    // mapped, and `heapTotal` leaves it out (up to 14 MiB here); no helpers here.
    command
        .args(["--max-semi-space-size=1", "--single-threaded-gc"])
        .arg(programs_dir().join("node/scenario.js"));
    Running::start({
        command.args([work, "-", "250"]);
        command
    })
}

#[test]
fn the_heap_of_node() {
    let mut program = node("heap");
    let before = usage(program.hello("usage"));
    let (report, after) = record(&mut program, said_usage);
    let after = usage(&after);
    let [_, managed] = sizes(&report, "managed");
    assert_close("heap", managed, after("heapTotal"));
    let memory = report.memory.as_ref().expect("it can be read");
    assert_close("resident before", memory.rss_before_bytes.unwrap_or(0) as i64, before("rss"));
    assert_close("resident after", memory.rss_after_bytes.unwrap_or(0) as i64, after("rss"));
    assert_eq!(runtime(&report).as_deref(), Some("V8"));
    program.assert_unharmed();
}

#[test]
fn buffers_of_node_are_native() {
    let mut program = node("buffers");
    let before = usage(program.hello("usage"));
    let (report, after) = record(&mut program, said_usage);
    let after = usage(&after);
    let [native_before, native] = sizes(&report, "native");
    let [managed_before, managed] = sizes(&report, "managed");
    // Each buffer of 128 KiB has a mapping of its own, with a page more.
    let held = |name| (after(name) - before(name)) / 32 * 33;
    assert_close("ArrayBuffers", native - native_before, held("arrayBuffers"));
    assert_close("external memory", native - native_before, held("external"));
    // The heap has not grown by a tenth of that.
    assert!((managed - managed_before) * 10 < native, "{:#?}", report.memory);
    program.assert_unharmed();
}

/// What `jcmd` says that is committed of these, in bytes.
fn committed(pid: u32, categories: &[&str]) -> i64 {
    let output = Command::new("jcmd").args([&pid.to_string(), "VM.native_memory", "summary"]).output();
    let text = String::from_utf8(output.expect("jcmd is installed").stdout).expect("it is text");
    // `-                 Java Heap (reserved=262144KB, committed=150528KB)`, then `(mmap: reserved=…, committed=…KB)`.
    let mut sum = 0;
    let mut counts = false;
    for line in text.lines() {
        if let Some(category) = line.strip_prefix('-') {
            counts = categories.contains(&category.split('(').next().unwrap_or("").trim());
        } else if let (true, Some((_, rest))) = (counts, line.split_once("(mmap: ")) {
            let size = rest.split("committed=").nth(1).and_then(|size| size.split("KB").next());
            sum += size.and_then(|size| size.parse::<i64>().ok()).expect("it has a size") * 1024;
        }
    }
    assert!(sum > 0, "{text}");
    sum
}

#[test]
fn the_heap_of_java() {
    let directory = TempDir::new().expect("a temporary directory");
    let mut options = vec!["-XX:NativeMemoryTracking=summary", "-Xms64m", "-Xmx256m", "-XX:+AlwaysPreTouch"];
    // Marking goes on when the program is quiet, and makes the heap larger when it is done (at `Pause Remark`).
    options.extend(["-XX:-G1UseAdaptiveIHOP", "-XX:InitiatingHeapOccupancyPercent=100"]);
    let mut command = java("Scenario", directory.path(), &options);
    command.arg("heap");
    let mut program = Running::start(command);
    let (report, said) = record(&mut program, |program| {
        program.wait_until_done();
        committed(program.pid(), &["Java Heap", "Class", "Code", "Metaspace"])
    });
    let [_, managed] = sizes(&report, "managed");
    assert_close("Java heap, classes and code", managed, said);
    assert_eq!(runtime(&report).as_deref(), Some("HotSpot"));
    program.assert_unharmed();
}

#[test]
fn the_arenas_of_python() {
    let mut command = python();
    command.arg(programs_dir().join("python/scenario.py")).arg("objects");
    let mut program = Running::start(command);
    let before: i64 = program.hello("arenas").parse().expect("it is a number");
    let (report, after) = record(&mut program, said_usage);
    let after: i64 = after.parse().expect("it is a number");
    // Those from before the window are known by what is in them. The last one is of 1 MiB, not all of which is in use.
    let [managed_before, managed] = sizes(&report, "managed");
    assert!((before - (1 << 20)..=before).contains(&managed_before), "{before}: {:#?}", report.memory);
    assert_close("arenas", managed, after);
    assert_eq!(runtime(&report).as_deref(), Some("CPython"));
    program.assert_unharmed();
}
