//! `tracer watch` on this machine's control groups: a limit, a leak, and the kernel that kills.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command},
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tracer_tests::{
    Leaking, MemoryGroup, Program, Recording, Report, Running, Tracer, assert_text_is_pristine, bpf, http,
    is_running, run_tool, sampler, text, wait_for_exit, wait_until,
};

const MIB: u64 = 1 << 20;

/// Watches a group, with these options besides.
fn watch(group: &MemoryGroup, reports: &Path, options: &[&str]) -> Recording {
    // What probes take of a target that only leaks is little, or too much, as the machine is: so not `auto`.
    let defaults =
        [("--cool-down", "0s"), ("--record", "10m"), ("--mode", "allocations"), ("--listen", "none")];
    let defaults = defaults.into_iter().filter(|(option, _)| !options.contains(option));
    Tracer::command([
        "watch",
        "--interval",
        "200ms",
        "--cgroup",
        text(group.directory()),
        "--dir",
        text(reports),
    ])
    .options(defaults.flat_map(|(option, value)| [option, value]))
    .options(options)
    .spawn()
}

fn recordings(reports: &Path) -> Vec<Value> {
    let index = fs::read(reports.join("index.json")).expect("there is an index");
    let index: Value = serde_json::from_slice(&index).expect("which is whole at any moment");
    index["recordings"].as_array().expect("a list").clone()
}

/// The recordings, once there are so many and all have ended.
fn ended(reports: &Path, number: usize) -> Vec<Value> {
    wait_until("the recordings end", || {
        let all = recordings(reports);
        let is_over = |recording: &Value| recording["state"] != "recording";
        (all.len() == number && all.iter().all(is_over)).then_some(all)
    })
}

/// The JSON report of a recording, unpacked.
fn report_of(reports: &Path, recording: &Value) -> Report {
    let name = format!("{}.json.gz", recording["name"].as_str().expect("a name"));
    let unpacked = Command::new("gzip").arg("-dc").arg(reports.join(name)).output().expect("gzip runs");
    Report::parse(&String::from_utf8(unpacked.stdout).expect("it is JSON"))
}

#[test]
fn a_leak_is_named_each_time_the_kernel_kills_for_it() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    let mut watching = watch(&group, reports.path(), &["--when", "usage > 25%"]);
    // The first one leaks for some 12 s, long enough to be judged; the others are restarts, which die soon.
    for (round, pause_us) in [(1, 3500), (2, 100), (3, 100)] {
        let mut service = Leaking::start(&group, 16 * 60, pause_us);
        watching.wait_for_message("its probes are in");
        service.go();
        if round == 1 {
            watching.wait_for_message("usage > 95%: its reports are written now");
        }
        let status = wait_for_exit(&mut service.child);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "the kernel killed it");
        let all = ended(reports.path(), round);
        let recording = all.last().expect("there is one");
        assert_eq!(recording["state"], "done", "{recording:#}");
        assert_eq!((&recording["digest"]["end"], &recording["oom_kills"]), (&"oom_killed".into(), &1.into()));
        assert!(
            recording["digest"]["causes"][0]["cause"].as_str().unwrap().contains("forget"),
            "{recording:#}"
        );
        let report = report_of(reports.path(), recording);
        assert_eq!(report.window.end.as_deref(), Some("oom_killed"));
        assert!(!report.called_by("forget").is_empty());
        if round == 1 {
            assert_eq!(recording["digest"]["leaking"], true, "{recording:#}");
        }
        // What was written before the end has made room for what was written at it.
        let names: Vec<_> =
            recording["files"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(
            names.iter().all(|name| reports.path().join(name).is_file()) && names.len() == 3,
            "{names:?}"
        );
        assert_eq!(fs::read_dir(reports.path()).unwrap().count(), 3 * round + 2, "index, lock and reports");
    }
    assert!(watching.interrupt().status.success());
}

/// The processes that this one has started.
fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn whoever_kills_the_service_leaves_no_probe_and_a_right_index() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    let mut service = Leaking::start(&group, 16 * 10, 0);
    let mut watching = watch(&group, reports.path(), &["--when", "rss > 1MiB"]);
    watching.wait_for_message("its probes are in");
    let [recorder] = children(watching.pid())[..] else { panic!("one recording") };
    let programs = bpf::programs_held_by(recorder);
    assert!(!programs.is_empty() && recordings(reports.path())[0]["state"] == "recording");
    service.go();

    watching.kill();
    wait_until("the recording dies, too", || (!is_running(recorder)).then_some(()));
    wait_until("its programs are gone", || programs.iter().all(|&id| !bpf::program_exists(id)).then_some(()));
    assert_text_is_pristine(service.child.id());
    assert!(is_running(service.child.id()));

    let mut watching = watch(&group, reports.path(), &["--when", "rss > 1GiB"]);
    watching.wait_for_message("watching");
    assert_eq!(recordings(reports.path()), [] as [Value; 0], "nothing had been written of it");
    watching.interrupt();
}

#[test]
fn a_configuration_is_read_again_and_a_bad_one_is_not() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    let file = reports.path().join("watch.toml");
    fs::write(&file, "when = 'rss > 1GiB'\n").unwrap();
    let service = Leaking::start(&group, 16 * 10, 0);
    let mut watching = watch(&group, reports.path(), &["--config", file.to_str().unwrap()]);
    watching.wait_for_message("watching");
    fs::write(&file, "when = 'rss > 1 elephant'\n").unwrap();
    watching.signal(Signal::HUP);
    watching.wait_for_message("the configuration stays as it was");
    fs::write(&file, "when = 'rss > 1MiB'\n").unwrap();
    watching.signal(Signal::HUP);
    watching.wait_for_message("its probes are in");
    // It says goodbye with a report of what it has.
    watching.interrupt();
    let [recording] = &recordings(reports.path())[..] else { panic!("one recording") };
    assert_eq!((&recording["state"], &recording["digest"]["end"]), (&"done".into(), &"interrupted".into()));
    assert!(is_running(service.child.id()));
}

/// Watches one process, whose memory is reason enough, and gives the recording once that has ended and the service, too.
fn recorded(target: &mut Running, options: &[&str], meanwhile: impl FnOnce(&mut Running)) -> Value {
    let reports = TempDir::new().unwrap();
    let pid = target.pid().to_string();
    let words =
        ["watch", "--interval", "200ms", "--listen", "none", "--when", "rss > 64KiB", "--pid", &pid, "--dir"];
    let watching = Tracer::command(words).options([reports.path()]).options(options);
    let mut watching = watching.spawn();
    watching.wait_for_message("its probes are in");
    meanwhile(target);
    let all = ended(reports.path(), 1);
    assert!(watching.interrupt().status.success());
    all.into_iter().next().expect("there is one")
}

fn note(recording: &Value) -> &str {
    recording["note"].as_str().unwrap_or_default()
}

#[test]
fn probes_that_would_slow_a_busy_target_make_way_for_growth_mode() {
    let mut target = Program::new("busy.c").start();
    target.work();
    let recording = recorded(&mut target, &["--record", "1s"], |_| {});
    assert_eq!((&recording["state"], &recording["digest"]["mode"]), (&"done".into(), &"growth".into()));
    assert!(note(&recording).contains("growth mode, since probes took"), "{recording:#}");
    assert_text_is_pristine(target.pid());
    target.assert_unharmed();
}

/// Takes all of a CPU that those leave who are as nice.
struct Hog(Child);

impl Hog {
    fn of_cpu(cpu: &str) -> Self {
        let loops = ["-c", cpu, "sh", "-c", "while :; do :; done"];
        Self(Command::new("taskset").args(loops).spawn().expect("taskset runs"))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn a_target_that_waits_for_a_cpu_is_not_taken_for_one_that_has_nothing_to_do() {
    let mut command = Command::new("nice");
    command.args(["-n", "19", "taskset", "-c", "0"]).arg(Program::new("busy.c").build());
    let mut target = Running::start(command);
    // It leaves a seventieth of the CPU: what the probes take is 1 % of a CPU, and most of what the target does.
    let _hog = Hog::of_cpu("0");
    target.work();
    let recording = recorded(&mut target, &["--record", "1s"], |_| {});
    assert_eq!(recording["digest"]["mode"], "growth", "{recording:#}");
    assert!(note(&recording).contains("growth mode, since probes took"), "{recording:#}");
    target.assert_unharmed();
}

/// The number before a text.
#[track_caller]
fn number_before(text: &str, after: &str) -> f64 {
    let before = text.split(after).next().filter(|before| before.len() < text.len());
    let number = before.and_then(|before| before.rsplit(' ').next()).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number before {after:?}: {text}"))
}

#[test]
fn a_sample_takes_the_place_of_walks_that_would_slow_a_target() {
    let mut target = Program::new("deep.c").start();
    target.work();
    // It never waits, so that the parts of its CPU time are the same however little of a CPU it gets.
    let options = |limit| ["--record", "1s", "--max-cost", limit];
    let refused = recorded(&mut target, &options("0%"), |_| {});
    assert_eq!(refused["digest"]["mode"], "growth", "{refused:#}");
    let all = number_before(note(&refused), " % of the CPU time");
    let without_walks = number_before(note(&refused), " % without a look at any stack");
    assert!(all > 2.0 * without_walks, "{refused:#}");
    // Of what probes leave, a sample takes half.
    let less = format!("{:.1}%", 0.7 * all);
    let recording = recorded(&mut target, &options(&less), |_| {});
    assert_eq!((&recording["state"], &recording["digest"]["mode"]), (&"done".into(), &"allocations".into()));
    assert!(note(&recording).starts_with("sampled, since probes took"), "{recording:#}");
    assert!(note(&recording).contains("(--max-cost): one in "), "{recording:#}");
    assert_text_is_pristine(target.pid());
    target.assert_unharmed();
}

#[test]
fn probes_stay_where_they_cost_little_and_go_when_that_changes() {
    let mut target = Program::new("busy.c").start();
    let recording = recorded(&mut target, &["--record", "10m"], Running::work);
    assert_eq!((&recording["state"], &recording["digest"]["mode"]), (&"done".into(), &"allocations".into()));
    assert!(note(&recording).contains("ended early, since probes took"), "{recording:#}");
    assert_text_is_pristine(target.pid());
    target.assert_unharmed();
}

#[test]
fn a_busy_target_that_samples_itself_is_recorded_by_its_own_probes() {
    let library = sampler().display().to_string();
    let mut target = Program::new("busy.c").variable("LD_PRELOAD", library).start();
    target.work();
    // Probes on every call take more than nine tenths.
    let options = ["--record", "1s", "--max-cost", "50%"];
    let recording = recorded(&mut target, &options, |_| {});
    assert_eq!((&recording["state"], &recording["digest"]["mode"]), (&"done".into(), &"allocations".into()));
    assert_eq!(recording["note"], Value::Null);
    target.assert_unharmed();
}

#[test]
fn a_command_is_run_after_each_recording_and_its_failure_told_once() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    let told = reports.path().join("told.txt");
    // It fails each time, and never ends in its third run, which holds up nobody.
    let command = format!(
        "echo \"$TRACER_SUBJECT|$TRACER_CONDITION|$TRACER_STATE|$TRACER_REPORT\" >> {0}; \
         if [ $(wc -l < {0}) = 3 ]; then exec sleep 1000; fi; exit 7",
        told.display()
    );
    let _service = Leaking::start(&group, 16 * 10, 0);
    let options = ["--when", "rss > 1MiB", "--record", "200ms", "--exec", &command];
    let mut watching = watch(&group, reports.path(), &options);
    watching.wait_for_message("watching");
    let all = wait_until("four recordings end", || {
        let all = recordings(reports.path());
        let done = all.iter().filter(|recording| recording["state"] == "done");
        (done.count() >= 4).then_some(all)
    });
    watching.signal(Signal::TERM);
    let finished = watching.wait();
    assert!(finished.status.success());
    let complaints: Vec<_> = finished.stderr.iter().filter(|line| line.contains("--exec:")).collect();
    assert!(
        matches!(&complaints[..], [first, second] if first.contains("status: 7") && second.contains("in time")),
        "{complaints:?}"
    );
    let told = fs::read_to_string(told).unwrap();
    let first = told.lines().next().expect("it was run");
    let name = all[0]["name"].as_str().unwrap();
    let report = reports.path().join(format!("{name}.html"));
    let subject = all[0]["subject"].as_str().unwrap();
    assert_eq!(first, format!("{subject}|rss > 1MiB|done|{}", report.display()));
    assert_eq!(told.lines().count(), 3);
}

#[test]
fn profiles_are_sent_to_pyroscope_and_to_a_collector() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    let [pyroscope, collector] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("there is a port"));
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("it has one"));
    let push = [format!("pyroscope={}", url(&pyroscope)), format!("otlp={}", url(&collector))];
    let mut service = Leaking::start(&group, 16 * 10, 1000);
    let options = ["--when", "rss > 1MiB", "--record", "1s", "--cool-down", "1h"];
    let options = [&options[..], &["--push", &push[0], "--push", &push[1]]].concat();
    let mut watching = watch(&group, reports.path(), &options);
    watching.wait_for_message("its probes are in");
    service.go();
    let (asked, body) = http::take_request(&pyroscope);
    assert!(asked.starts_with("POST /ingest?name=tracer-tests-") && asked.contains("host%3D"), "{asked}");
    let [recording] = &ended(reports.path(), 1)[..] else { panic!("one recording") };
    let report = format!("{}.pb.gz", recording["name"].as_str().expect("a name"));
    let report = fs::read(reports.path().join(report)).expect("it is there");
    let start = body.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a part has a head") + 4;
    let sent = &body[start..start + report.len()];
    assert!(sent == report, "the form has the report in it");
    let pushed = reports.path().join("pushed");
    fs::write(&pushed, sent).unwrap();
    assert!(run_tool("go", &["tool", "pprof", "-top", text(&pushed)]).contains("forget"));
    let (asked, body) = http::take_request(&collector);
    assert!(asked.starts_with("POST /v1development/profiles "), "{asked}");
    // Tests beside the code read it by OpenTelemetry's own messages.
    let packed = reports.path().join("packed.gz");
    fs::write(&packed, body).unwrap();
    let unpacked = Command::new("gzip").arg("-dc").arg(&packed).output().expect("gzip runs").stdout;
    let has = |text: &str| unpacked.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(has("forget") && has("service.name") && has("inuse_space"));
    assert!(watching.interrupt().status.success());
}

#[test]
fn a_check_shows_what_would_be_watched_and_changes_nothing() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    let directory = reports.path().join("not/yet");
    let _service = Leaking::start(&group, 16 * 10, 0);
    let name = group.directory().file_name().unwrap().to_str().unwrap();
    let check = |words: &[&str]| Tracer::command(["watch", "--check"].iter().chain(words)).run();
    let directory_text = directory.to_str().unwrap();
    let finished = check(&["--cgroup", name, "--dir", directory_text]);
    let said = finished.stdout.join("\n");
    assert!(finished.status.success() && said.contains(&format!("{name}: ")), "{finished:#?}");
    assert!(said.contains("of 200.0 MiB") && said.contains("records when usage > 80% for 5m"), "{said}");
    assert!(!directory.exists());
    let finished = check(&["--dir", directory_text]);
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.stderr[0].contains("nothing to watch"), "{finished:#?}");
}
