//! The files that other tools open, opened by these tools: pprof of Go, speedscope, Chrome DevTools. Their totals are those of
//! the JSON report.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tracer_tests::{Browser, Program, Report, Tracer};

/// One recording in every format, shared by the tests of this file.
static RECORDING: LazyLock<Recording> = LazyLock::new(Recording::make);

struct Recording {
    directory: TempDir,
    report: Report,
}

impl Recording {
    fn make() -> Self {
        let directory = TempDir::new().expect("the directory for temporary files is writable");
        let mut program = Program::new("malloc_family.c").start();
        let endings = ["pb.gz", "speedscope.json", "heapprofile"];
        let outputs = endings.map(|ending| directory.path().join("leak").with_extension(ending));
        let options = outputs.iter().flat_map(|output| ["-o".into(), output.clone().into_os_string()]);
        let recording = Tracer::new().options(options).pid(program.pid()).start();
        program.work();
        let report = recording.interrupt().report();
        report.check(&program.expect);
        Self { directory, report }
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.directory.path().join("leak").with_extension(ending)
    }

    /// What a function holds with all that it called, in bytes and in objects.
    fn held_by(&self, function: &str) -> (u64, u64) {
        let stacks = self.report.stacks.iter().filter(|stack| matches!(&*stack.kind, "native" | "mapping"));
        let named = stacks
            .filter(|stack| stack.frames.iter().any(|frame| frame.function.as_deref() == Some(function)));
        named.fold((0, 0), |(bytes, objects), stack| {
            (bytes + stack.weight_bytes, objects + stack.outstanding_objects)
        })
    }
}

/// `go tool pprof`, with a directory of its own for what it keeps.
fn pprof(arguments: &[&str], file: &Path) -> Command {
    let mut pprof = Command::new("go");
    pprof.args(["tool", "pprof"]).args(arguments).arg(file);
    pprof.env("PPROF_TMPDIR", RECORDING.directory.path()).env("HOME", RECORDING.directory.path());
    pprof
}

#[track_caller]
fn listing(arguments: &[&str]) -> String {
    let mut pprof = pprof(arguments, &RECORDING.file("pb.gz"));
    let output = pprof.output().expect("there is go (Debian's package `golang-go`)");
    assert!(output.status.success(), "{pprof:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

/// The number behind `Total samples = `.
#[track_caller]
fn total_samples(listing: &str) -> u64 {
    let total = listing.lines().find_map(|line| line.split_once("Total samples = "));
    let total = total.unwrap_or_else(|| panic!("it says its total:\n{listing}")).1.trim();
    total.trim_end_matches('B').parse().unwrap_or_else(|_| panic!("{total} is a number"))
}

#[test]
fn pprof_agrees_with_the_report() {
    let totals = &RECORDING.report.totals;
    let expected = [
        ("inuse_space", totals.weight_bytes),
        ("inuse_objects", totals.outstanding_objects),
        ("alloc_space", totals.allocated_bytes),
        ("alloc_objects", totals.allocated_objects),
    ];
    for (sample, total) in expected {
        let listing = listing(&["-top", "-unit=B", &format!("-sample_index={sample}")]);
        assert_eq!(total_samples(&listing), total, "{sample}:\n{listing}");
    }
    let top = listing(&["-top", "-unit=B", "-nodefraction=0"]);
    assert!(top.contains("Type: inuse_space"), "what is in use is what it shows first:\n{top}");
    // `flat flat% sum% cum cum% name`
    let line = top.lines().find(|line| line.ends_with(" leak_calloc")).unwrap_or_else(|| panic!("{top}"));
    let held = line.split_whitespace().nth(3).expect("a column").trim_end_matches('B');
    assert_eq!(held.parse(), Ok(RECORDING.held_by("leak_calloc").0), "{line}");
}

#[test]
fn pprof_knows_files_lines_and_labels() {
    let traces = listing(&["-traces", "-lines"]);
    assert!(traces.contains("malloc_family.c:"), "{traces}");
    for label in ["api:  calloc", "kind:  native"] {
        assert!(traces.contains(label), "{label}:\n{traces}");
    }
}

#[test]
fn pprof_sees_no_difference_of_a_recording_to_itself() {
    let base = format!("-diff_base={}", RECORDING.file("pb.gz").display());
    let difference = listing(&["-top", "-unit=B", &base]);
    assert!(difference.contains("Showing nodes accounting for 0"), "{difference}");
}

#[test]
fn pprof_serves_pages() {
    let server = Server::start();
    for page in ["/ui/top", "/ui/flamegraph", "/ui/peek?f=leak_large"] {
        let answer = server.get(page);
        assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"), "{page}: {answer}");
        assert!(answer.contains("leak_large"), "{page}");
    }
}

/// `go tool pprof -http`.
struct Server {
    pprof: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let address = free.expect("there is a free port").to_string();
        let http = format!("-http={address}");
        let mut pprof = pprof(&[&http, "-no_browser"], &RECORDING.file("pb.gz"));
        let pprof = pprof.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { pprof: pprof.expect("there is go (Debian's package `golang-go`)"), address }
    }

    #[track_caller]
    fn get(&self, page: &str) -> String {
        let began = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(&self.address) {
                Ok(stream) => break stream,
                Err(why) => assert!(began.elapsed() < Duration::from_secs(60), "pprof serves {page}: {why}"),
            }
            thread::sleep(Duration::from_millis(50));
        };
        let request = format!("GET {page} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).expect("it takes the request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // `go tool` passes the signal on to nobody: pprof is its child.
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pprof.id()));
        for child in children.unwrap_or_default().split_whitespace() {
            let _ = Command::new("kill").arg(child).status();
        }
        let _ = self.pprof.kill();
        let _ = self.pprof.wait();
    }
}

/// speedscope with a file that its own importer has read, given to it as its command does: by a script that its page loads.
fn speedscope(file: &Path) -> Browser {
    let page = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/tools/node_modules/speedscope/dist/release/index.html");
    let page = page.canonicalize().expect("speedscope is there: `cargo xtask test` gets it with npm");
    let bytes = fs::read(file).expect("the tracer wrote it");
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let name = file.file_name().expect("a file").to_string_lossy();
    let script = file.with_extension("js");
    let bytes = format!("'{digits}'.match(/../g).map(digits => String.fromCharCode(parseInt(digits, 16)))");
    fs::write(&script, format!("speedscope.loadFileFromBase64({name:?}, btoa({bytes}.join('')))"))
        .expect("the directory is writable");
    let mut browser = Browser::start();
    browser.look(1280, 800, false);
    browser.open_address(&format!("file://{}#localProfilePath={}", page.display(), script.display()));
    browser.wait_for("document.body.innerText.includes('Sandwich')");
    browser
}

/// Whether the table of speedscope's sandwich view has every function that leaks with what it holds.
#[track_caller]
fn assert_speedscope_agrees(browser: &mut Browser) {
    browser.press("3");
    browser.wait_for("document.querySelector('table')");
    let mut checked = 0;
    let leaf = RECORDING.report.stacks.iter().filter_map(|stack| stack.frames.first()?.function.as_deref());
    for function in leaf.filter(|function| function.starts_with("leak_")) {
        let held = RECORDING.held_by(function).0;
        if held == 0 {
            continue; // What weighs nothing is not in a picture of weights.
        }
        let row = format!(
            "[...document.querySelectorAll('tr')].find(row => row.lastElementChild.textContent.trim() === {function:?})"
        );
        // The table is filled after it is there.
        browser.wait_for(&row);
        let row = browser.text(&format!("{row}.innerText"));
        let held = if held < 1024 { format!("{held} B") } else { format!("{:.2} KB", held as f64 / 1024.0) };
        assert!(row.contains(&held), "{function} holds {held}: {row}");
        checked += 1;
    }
    assert!(checked > 10, "the program leaks in many ways");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn speedscope_opens_its_own_format() {
    assert_speedscope_agrees(&mut speedscope(&RECORDING.file("speedscope.json")));
}

#[test]
fn speedscope_opens_the_heap_profile() {
    assert_speedscope_agrees(&mut speedscope(&RECORDING.file("heapprofile")));
}

/// The part of Chrome's DevTools that shows sampling heap profiles reads ours.
#[test]
fn devtools_opens_the_heap_profile() {
    const DEVTOOLS: &str = "devtools://devtools/bundled";
    let profile = fs::read_to_string(RECORDING.file("heapprofile")).expect("the tracer wrote it");
    let mut browser = Browser::start();
    browser.open_address(&format!("{DEVTOOLS}/devtools_app.html"));
    let held = browser.evaluate(&format!(
        "(async () => {{
            const {{ HeapProfileView }} = await import('{DEVTOOLS}/panels/profiler/profiler.js');
            const model = new HeapProfileView.SamplingHeapProfileModel({profile}, 0, 0);
            const held = {{ everything: model.total }};
            const walk = (node) => {{
                held[node.functionName] = (held[node.functionName] || 0) + node.total;
                node.children.forEach(walk);
            }};
            walk(model.root);
            return held;
        }})()"
    ));
    assert_eq!(held["everything"], RECORDING.report.totals.weight_bytes);
    for function in ["leak_large", "leak_calloc", "leak_grown"] {
        assert_eq!(held[function], RECORDING.held_by(function).0, "{function}: {held}");
    }
}
