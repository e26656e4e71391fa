//! Names by debug files of a real debuginfod server, which serves on this machine alone.

use std::{
    ffi::OsString,
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;
use tempfile::TempDir;
use tracer_tests::{Finished, Program, Report, Stack, Tracer, run_tool, text, wait_until};

/// A program without symbols whose debug file a server has.
struct Served {
    directory: TempDir,
    url: String,
    server: Child,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It has ended where a test has ended it.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Served {
    /// Splits the program, and waits until the server knows its debug file.
    #[track_caller]
    fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let built = Program::new("malloc_family.c").flag("-Wl,--build-id").build();
        let (program, debug) = (directory.path().join("stripped"), directory.path().join("debug"));
        run_tool("strip", &["-o", text(&program), text(&built)]);
        fs::create_dir(&debug).expect("a directory");
        run_tool("objcopy", &["--only-keep-debug", text(&built), text(&debug.join("malloc_family.debug"))]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it has a port").port();
        drop(listener);
        let server = Command::new("debuginfod")
            .args(["--fdcache-mbs=16", "--database=:memory:", "--port", &port.to_string(), "-F"])
            .arg(&debug)
            .env_remove("DEBUGINFOD_URLS")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("debuginfod can be run");
        let served = Self { directory, url: format!("http://127.0.0.1:{port}"), server };
        let notes = run_tool("readelf", &["--notes", text(&program)]);
        let build_id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: "));
        let url = format!("{}/buildid/{}/debuginfo", served.url, build_id.expect("it has a build id"));
        wait_until("the server has the debug file", || {
            let asked =
                Command::new("curl").args(["--silent", "--fail", "--output", "/dev/null", &url]).status();
            asked.expect("curl can be run").success().then_some(())
        });
        served
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// Records the program, with these words in front of the tracer and these options.
    #[track_caller]
    fn record(&self, variables: &[String], options: &[&str]) -> Finished {
        let mut program = Program::new("malloc_family.c").start_as(&self.directory.path().join("stripped"));
        let words = ["env".to_owned(), format!("DEBUGINFOD_CACHE_PATH={}", text(&self.cache()))];
        let words = words.into_iter().chain(variables.iter().cloned()).map(OsString::from);
        let tracer = Tracer::new().through(words).options(options);
        let recording = tracer.pid(program.pid()).start();
        program.work();
        recording.interrupt()
    }

    /// A snapshot of a recording that is to have the server's names at its end.
    #[track_caller]
    fn snapshot(&self) -> Report {
        let mut program = Program::new("malloc_family.c").start_as(&self.directory.path().join("stripped"));
        let words = ["env".to_owned(), format!("DEBUGINFOD_CACHE_PATH={}", text(&self.cache()))];
        let tracer = Tracer::new().through(words.map(OsString::from)).options(["--debuginfod", &self.url]);
        let mut recording = tracer.pid(program.pid()).start();
        program.work();
        recording.signal(Signal::USR1);
        recording.wait_for_message("snapshot 1, ");
        Report::parse(&recording.file("report.1.json"))
    }
}

/// The leaf of the stack that leaks in `leak_malloc`: its function, and whether it has a line.
#[track_caller]
fn leaf(finished: &Finished) -> (Option<String>, bool) {
    leaf_of(&finished.report())
}

#[track_caller]
fn leaf_of(report: &Report) -> (Option<String>, bool) {
    let leaks = |stack: &&Stack| stack.outstanding_bytes == 7 * 1001;
    let stack = report.stacks.iter().find(leaks).unwrap_or_else(|| panic!("{:#?}", report.outlines()));
    (stack.frames[0].function.clone(), stack.frames[0].line.is_some())
}

fn says(finished: &Finished, words: &str) -> bool {
    finished.stderr.iter().any(|line| line.contains(words))
}

#[test]
fn what_a_server_has_names_a_stripped_program() {
    let mut served = Served::start();
    let named = (Some("leak_malloc".to_owned()), true);

    let unasked = served.record(&[], &[]);
    assert_eq!(leaf(&unasked).0, None);
    assert!(!says(&unasked, "debug file") && !served.cache().exists(), "a surprise: {unasked:#?}");

    let asked = served.record(&[], &["--debuginfod", &served.url]);
    assert_eq!(leaf(&asked), named, "{asked:#?}");
    assert!(
        says(&asked, &format!("fetched from {} into {}", served.url, text(&served.cache()))),
        "{asked:#?}"
    );

    // A recording that was saved without is named later, in what was said of it, too.
    let saved = served.directory.path().join("saved.json");
    fs::write(&saved, unasked.json.as_ref().expect("it has a report")).expect("the directory is writable");
    let variable = format!("DEBUGINFOD_CACHE_PATH={}", text(&served.cache()));
    let again = Tracer::command(["report", text(&saved), "--debuginfod", &served.url])
        .output("report.json")
        .through(["env".to_owned(), variable].map(OsString::from))
        .run();
    let again = Report::parse(&again.file("report.json"));
    assert_eq!(leaf_of(&again), named);
    let places = |report: &Report| report.causes.iter().map(|cause| cause.place.clone()).collect::<Vec<_>>();
    let (before, after) = (places(&unasked.report()), places(&again));
    assert!(before.iter().all(|place| place.starts_with("stripped+0x")), "{before:#?}");
    assert!(after.contains(&"stripped: leak_malloc".to_owned()), "{after:#?}");

    // What was fetched is found by elfutils' own client, and without the server.
    served.server.kill().expect("it runs");
    served.server.wait().expect("it ends");
    let program = served.directory.path().join("stripped");
    let mut client = Command::new("debuginfod-find");
    client.args(["debuginfo", text(&program)]).env("DEBUGINFOD_URLS", &served.url);
    let found =
        client.env("DEBUGINFOD_CACHE_PATH", served.cache()).output().expect("debuginfod-find can be run");
    assert!(found.status.success(), "{found:?}");
    let by_environment = served.record(&[format!("DEBUGINFOD_URLS={}", served.url)], &[]);
    assert_eq!(leaf(&by_environment), named, "{by_environment:#?}");
    assert_eq!(leaf_of(&served.snapshot()), named, "what goes on has the names that are here");

    // With an empty cache the report is as good as without a server, and says why.
    fs::remove_dir_all(served.cache()).expect("it is there");
    let refused = served.record(&[], &["--debuginfod", &served.url]);
    assert_eq!(leaf(&refused).0, None);
    let warnings = refused.stderr.iter().filter(|line| line.contains("warning: debuginfod:"));
    assert_eq!(warnings.count(), 1, "{refused:#?}");
}
