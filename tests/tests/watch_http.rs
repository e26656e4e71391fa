//! What `tracer watch` says by HTTP, to those who ask in practice: Prometheus, a browser, `go tool pprof`; and to those who mean harm.

use std::{
    ffi::OsString,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Barrier,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use serde_json::Value;
use tempfile::TempDir;
use tracer_tests::{
    Browser, Leaking, MemoryGroup, Program, Recording, Tracer, faults,
    http::{self, Answer},
    node_addon, programs_dir, run_tool, text, wait_for_exit, wait_until,
};

const MIB: u64 = 1 << 20;

/// A service that watches groups, and listens.
struct Watching {
    service: Recording,
    /// Where it listens.
    address: String,
    reports: TempDir,
}

impl Watching {
    /// Watches these, at a free port of this machine.
    #[track_caller]
    fn start(groups: &[&MemoryGroup], options: &[&str]) -> Self {
        Self::listening("127.0.0.1:0", groups, options)
    }

    #[track_caller]
    fn listening(place: &str, groups: &[&MemoryGroup], options: &[&str]) -> Self {
        Self::in_directory(TempDir::new().unwrap(), place, groups, options)
    }

    #[track_caller]
    fn in_directory(reports: TempDir, place: &str, groups: &[&MemoryGroup], options: &[&str]) -> Self {
        let mut service = Tracer::command(words(place, groups, reports.path(), options)).spawn();
        let address =
            service.message("serving at ").trim_start_matches("http://").replace("0.0.0.0", "127.0.0.1");
        Self { service, address, reports }
    }

    fn get(&self, path: &str) -> Answer {
        http::get(&self.address, path)
    }

    /// A page that is there.
    #[track_caller]
    fn text(&self, path: &str) -> String {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text().to_owned()
    }

    /// The value of a series, once there is one.
    #[track_caller]
    fn metric(&self, series: &str) -> f64 {
        wait_until(series, || {
            let text = self.text("/metrics");
            text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
        })
    }
}

fn words(place: &str, groups: &[&MemoryGroup], reports: &Path, options: &[&str]) -> Vec<OsString> {
    let cool_down = if options.contains(&"--cool-down") { &[][..] } else { &["--cool-down", "1h"] };
    let words =
        ["watch", "--interval", "200ms", "--listen", place].into_iter().chain(cool_down.iter().copied());
    let mut words: Vec<OsString> = words.chain(["--dir"]).map(Into::into).collect();
    words.push(reports.into());
    for group in groups {
        words.extend(["--cgroup".into(), group.directory().into()]);
    }
    words.extend(options.iter().map(Into::into));
    words
}

/// What a group is called as a subject.
fn name(group: &MemoryGroup) -> &str {
    group.directory().file_name().unwrap().to_str().unwrap()
}

/// Never, and that at once.
const NEVER: [&str; 2] = ["--when", "rss > 1TiB"];

fn deployed(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// Gives a text to `promtool check metrics`, which has nothing to say about it.
#[track_caller]
fn assert_promtool_likes(metrics: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("there is promtool (Debian's package `prometheus`)");
    let mut input = promtool.stdin.take().expect("it is piped");
    input.write_all(metrics.as_bytes()).expect("it reads");
    drop(input);
    let output = promtool.wait_with_output().expect("it ends");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}\n{metrics}");
}

#[test]
fn metrics_are_what_the_kernel_says_and_promtool_likes_them() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let _service = Leaking::start(&group, 16 * 64, 0);
    let watching = Watching::start(&[&group], &NEVER);
    wait_until("it is ready", || (watching.get("/-/ready").status == 200).then_some(()));
    assert_eq!(watching.get("/-/healthy").status, 200);
    let subject = format!("{{subject=\"{}\"}}", name(&group));
    let limit = watching.metric(&format!("tracer_watch_memory_limit_bytes{subject}"));
    assert_eq!(limit, (200 * MIB) as f64);
    for metric in ["memory_usage_bytes", "memory_limit_used_bytes", "resident_memory_bytes"] {
        let bytes = watching.metric(&format!("tracer_watch_{metric}{subject}"));
        assert!(bytes >= (64 * MIB) as f64 && bytes < (80 * MIB) as f64, "{metric}: {bytes}");
    }
    assert_eq!(watching.metric(&format!("tracer_watch_processes{subject}")), 1.0);
    assert!(watching.metric("process_cpu_seconds_total") > 0.0, "it takes CPU time");
    let metrics = watching.get("/metrics");
    assert_eq!(metrics.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_promtool_likes(metrics.text());
    let open = ["Host: localhost", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5"];
    let open = http::ask(&watching.address, &http::request("/metrics", &open));
    assert!(open.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(open.text().ends_with("# EOF\n"));
    assert!(watching.service.interrupt().status.success());
}

#[test]
fn promtool_likes_the_rules() {
    let rules = deployed("prometheus");
    let path = |file: &str| rules.join(file).to_str().unwrap().to_owned();
    run_tool("promtool", &["check", "rules", &path("tracer-watch.rules.yml")]);
    run_tool("promtool", &["check", "config", &path("prometheus.yml")]);
    run_tool("promtool", &["test", "rules", &path("tracer-watch.test.yml")]);
    // Debian's knows nothing of clusters, and the token of one is not here.
    let found = "kubernetes_sd_configs:\n      - role: pod\n        namespaces:\n          names: [tracer]\n";
    let job = altered("prometheus-kubernetes.yml", &[(found, "static_configs: [targets: [pod:9497]]\n")]);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("prometheus.yml");
    fs::write(&file, job).unwrap();
    run_tool("promtool", &["check", "config", "--syntax-only", text(&file)]);
    run_tool("amtool", &["check-config", &path("alertmanager.yml")]);
}

/// A Prometheus that scrapes a service, with the rules of `deploy/` made impatient.
struct Prometheus {
    child: Child,
    address: String,
    _directory: TempDir,
}

/// A file of `deploy/prometheus`, with other words in it.
#[track_caller]
fn altered(file: &str, others: &[(&str, &str)]) -> String {
    let text = fs::read_to_string(deployed("prometheus").join(file)).expect("it is deployed");
    others.iter().fold(text, |text, (old, new)| {
        assert!(text.contains(old), "{file}: {old}");
        text.replace(old, new)
    })
}

/// An address that nobody has.
#[track_caller]
fn free_address() -> String {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    free.expect("there is a free port").to_string()
}

impl Prometheus {
    /// Scrapes a service, and sends its alerts to an Alertmanager.
    #[track_caller]
    fn start(target: &str, alertmanager: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let others = [("127.0.0.1:9497", target), ("127.0.0.1:9093", alertmanager), ("15s", "1s")];
        fs::write(directory.path().join("prometheus.yml"), altered("prometheus.yml", &others)).unwrap();
        let rules = altered("tracer-watch.rules.yml", &[("for: 5m", "for: 1s"), ("> 0.8", "> 0.5")]);
        fs::write(directory.path().join("tracer-watch.rules.yml"), rules).unwrap();
        let address = free_address();
        let mut prometheus = Command::new("prometheus");
        prometheus.arg("--config.file").arg(directory.path().join("prometheus.yml"));
        prometheus.arg("--storage.tsdb.path").arg(directory.path().join("data"));
        prometheus.arg(format!("--web.listen-address={address}")).arg("--log.level=error");
        let child = prometheus.stdout(Stdio::null()).spawn();
        let child = child.expect("there is prometheus (Debian's package of that name)");
        wait_until("prometheus listens", || TcpStream::connect(&address).ok());
        let prometheus = Self { child, address, _directory: directory };
        wait_until("it is ready", || (prometheus.get("/-/ready").status == 200).then_some(()));
        prometheus
    }

    #[track_caller]
    fn get(&self, path: &str) -> Answer {
        let headers = [&format!("Host: {}", self.address), "Connection: close"];
        http::ask(&self.address, &http::request(path, &headers))
    }

    /// What its interface says.
    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let answer = String::from_utf8_lossy(&self.get(path).body).into_owned();
        // It may come in pieces, each with its length on a line of its own.
        let json: String = answer.split("\r\n").filter(|line| line.contains(['{', '"', '['])).collect();
        let json: Value =
            serde_json::from_str(&json).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"));
        assert_eq!(json["status"], "success", "{path}: {json}");
        json["data"].clone()
    }

    fn is_firing(&self, alert: &str, subject: &str) -> bool {
        let alerts = self.ask("/api/v1/alerts");
        let fires = |known: &Value| {
            known["labels"]["alertname"] == alert
                && known["labels"]["subject"] == subject
                && known["state"] == "firing"
        };
        alerts["alerts"].as_array().expect("a list").iter().any(fires)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An Alertmanager that passes on what it gets, by the configuration of `deploy/` made impatient.
struct Alertmanager {
    child: Child,
    address: String,
    /// Who is told.
    receiver: TcpListener,
    _directory: TempDir,
}

impl Alertmanager {
    #[track_caller]
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let receiver = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let place = receiver.local_addr().expect("it has one").to_string();
        let config = altered("alertmanager.yml", &[("127.0.0.1:9095", &place), ("30s", "0s")]);
        let file = directory.path().join("alertmanager.yml");
        fs::write(&file, config).unwrap();
        let address = free_address();
        let mut alertmanager = Command::new("prometheus-alertmanager");
        alertmanager.arg("--config.file").arg(&file);
        alertmanager.arg("--storage.path").arg(directory.path().join("data"));
        alertmanager.arg(format!("--web.listen-address={address}")).arg("--cluster.listen-address=");
        let child = alertmanager.arg("--log.level=error").stdout(Stdio::null()).spawn();
        let child = child.expect("there is prometheus-alertmanager (Debian's package of that name)");
        wait_until("it listens", || TcpStream::connect(&address).ok());
        Self { child, address, receiver, _directory: directory }
    }

    /// Waits until somebody is told of an alert.
    #[track_caller]
    fn wait_for(&self, alert: &str, subject: &str) {
        wait_until(alert, || {
            let (asked, body) = http::take_request(&self.receiver);
            assert!(asked.starts_with("POST /alerts "), "{asked}");
            let message: Value = serde_json::from_slice(&body).expect("it is JSON");
            let is_it = |known: &Value| {
                known["status"] == "firing"
                    && known["labels"]["alertname"] == alert
                    && known["labels"]["subject"] == subject
                    && known["annotations"]["summary"].as_str().is_some_and(|text| text.contains(subject))
            };
            message["alerts"].as_array().expect("a list").iter().any(is_it).then_some(())
        });
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As in a query of a URL.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

/// Every query of the dashboard.
fn queries(dashboard: &Value) -> Vec<String> {
    let query = |target: &Value| target["expr"].as_str().expect("it has one").to_owned();
    let panels = dashboard["panels"].as_array().expect("a list").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("a list"));
    targets.chain(dashboard["annotations"]["list"].as_array().expect("a list")).map(query).collect()
}

/// The service of the demonstration in a group: each of its requests leaks 16 KiB.
struct Service(Child);

impl Service {
    #[track_caller]
    fn start(group: &MemoryGroup, addon: &Path) -> Self {
        let [shell, words @ ..] = group.wrapper();
        let mut node = Command::new(shell);
        node.args(words).arg("node").arg(programs_dir().join("node/service.js")).arg(addon);
        // From half of its memory to all of it in some 30 s.
        node.env("REQUESTS_A_SECOND", "200").stdin(Stdio::piped()).stdout(Stdio::null());
        Self(node.spawn().expect("it can be started"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `TRACER_FAULTS=3` has the service started anew twice.
#[test]
fn an_alert_fires_before_the_kernel_kills_a_service_and_its_report_names_the_leak() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let directory = TempDir::new().unwrap();
    let addon = node_addon(directory.path());
    let options = ["--when", "usage > 50%", "--record", "10m", "--cool-down", "0s", "--mode", "allocations"];
    let watching = Watching::start(&[&group], &options);
    let alertmanager = Alertmanager::start();
    let prometheus = Prometheus::start(&watching.address, &alertmanager.address);
    let is_firing = |alert: &str| prometheus.is_firing(alert, name(&group));
    let rounds = faults(1) as usize;
    for round in 1..=rounds {
        wait_until("the alert is over", || (!is_firing("TracerMemoryNearLimit")).then_some(()));
        let mut service = Service::start(&group, &addon);
        wait_until("the alert fires", || is_firing("TracerMemoryNearLimit").then_some(()));
        assert!(service.0.try_wait().unwrap().is_none(), "it fires before the kill");
        if round == 1 {
            alertmanager.wait_for("TracerMemoryNearLimit", name(&group));
        }
        assert_eq!(wait_for_exit(&mut service.0).signal(), Some(9), "the kernel killed it");
        let recording = wait_until("its recording ends", || {
            let index: Value =
                serde_json::from_str(&watching.text("/reports/index.json")).expect("it is JSON");
            let all = index["recordings"].as_array().expect("a list");
            let last = all.get(round - 1)?;
            (last["state"] != "recording").then(|| last.clone())
        });
        let digest = &recording["digest"];
        assert_eq!(
            (&digest["end"], &digest["leaking"]),
            (&"oom_killed".into(), &true.into()),
            "{recording:#}"
        );
        let verdict = digest["verdict"].as_str().expect("there is one");
        for word in ["session_cache.node: session::Cache::Open", "called from `handle (service.js:"] {
            assert!(verdict.contains(word), "{recording:#}");
        }
    }
    // The group has no process now, and that is still to be said of it.
    for alert in ["TracerLeakFound", "TracerOomKill"] {
        wait_until(alert, || is_firing(alert).then_some(()));
    }
    let _service = Service::start(&group, &addon);
    let up = prometheus.ask("/api/v1/query?query=up");
    assert_eq!(up["result"][0]["value"][1], "1", "it takes all that it was given: {up}");
    assert_dashboard_shows_something(&prometheus);
    let metrics = watching.text("/metrics");
    let leak = metrics.lines().find(|line| line.starts_with("tracer_watch_leak_bytes_per_second{"));
    assert!(leak.is_some_and(|leak| leak.contains("Open") && leak.contains(name(&group))), "{leak:?}");
    assert_promtool_likes(&metrics);
    watching.service.interrupt();
}

#[track_caller]
fn assert_dashboard_shows_something(prometheus: &Prometheus) {
    let dashboard = fs::read(deployed("grafana/tracer-watch.json")).expect("it is deployed");
    let queries = queries(&serde_json::from_slice(&dashboard).expect("it is JSON"));
    assert!(queries.len() > 15, "{queries:?}");
    for query in queries {
        let query =
            query.replace("$instance", ".*").replace("$subject", ".*").replace("$__rate_interval", "1m");
        // Nobody waits here, and version 1 would not say so.
        if ["pressure", "changes("].iter().any(|word| query.contains(word)) {
            continue;
        }
        wait_until(&query, || {
            let answer = prometheus.ask(&format!("/api/v1/query?query={}", encoded(&query)));
            (!answer["result"].as_array().expect("a list").is_empty()).then_some(())
        });
    }
}

#[test]
fn a_kill_is_counted_though_the_group_is_removed_at_once() {
    let group = MemoryGroup::with_limit(64 * MIB);
    let watching = Watching::start(&[&group], &NEVER);
    let kills = format!("tracer_watch_oom_kills_total{{subject=\"{}\"}}", name(&group));
    let mut service = Leaking::start(&group, 16, 100);
    assert_eq!(watching.metric(&kills), 0.0);
    service.go();
    assert_eq!(wait_for_exit(&mut service.child).signal(), Some(9), "the kernel killed it");
    let processes = format!("tracer_watch_processes{{subject=\"{}\"}}", name(&group));
    drop(group);
    wait_until("the kill is counted", || (watching.metric(&kills) == 1.0).then_some(()));
    wait_until("the subject is gone", || (!watching.text("/metrics").contains(&processes)).then_some(()));
    assert_eq!(watching.metric(&kills), 1.0, "its count is not");
    assert!(watching.text("/").contains("1 process of"));
    watching.service.interrupt();
}

#[test]
fn the_page_shows_subjects_and_recordings_and_opens_reports() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let mut leaking = Leaking::start(&group, 16 * 60, 50_000);
    leaking.go();
    let watching = Watching::start(&[&group], &["--when", "usage > 25%", "--record", "1s"]);
    let done = "tracer_watch_recordings_total{trigger=\"usage > 25%\",outcome=\"done\"}";
    wait_until("it has been recorded", || (watching.metric(done) == 1.0).then_some(()));
    let mut browser = Browser::start();
    for (width, dark) in [(1280, false), (400, true)] {
        browser.look(width, 800, dark);
        browser.open_address(&format!("http://{}/", watching.address));
        browser.wait_for("document.querySelector('#recordings li')");
        assert_eq!(browser.text("document.querySelector('#subjects h3').innerText"), name(&group));
        assert!(browser.text("document.querySelector('#subjects li').innerText").contains("of 200.0 MiB"));
        assert!(browser.text("document.querySelector('#subjects path').getAttribute('d')").contains('L'));
        let overflow = browser.number("document.documentElement.scrollWidth - innerWidth");
        assert!(overflow <= 0.0, "{overflow} pixels are out of sight at {width}");
        assert_eq!(browser.complaints(), [""; 0]);
    }
    let report = browser.text("document.querySelector('#recordings a[href$=html]').href");
    browser.open_address(&report);
    browser.wait_for("document.querySelector('#graph div')");
    assert_eq!(browser.complaints(), [""; 0]);

    // The other files are there, too, and nothing else is.
    let index: Value = serde_json::from_str(&watching.text("/reports/index.json")).expect("it is JSON");
    let files = index["recordings"][0]["files"].as_array().expect("a list").iter();
    for file in files.map(|file| file.as_str().expect("a name")) {
        let served = watching.get(&format!("/reports/{file}"));
        assert!(served.status == 200 && served.body == fs::read(watching.reports.path().join(file)).unwrap());
    }
    for path in [
        "/reports/.lock",
        "/reports/..%2F..%2Fetc%2Fpasswd",
        "/reports/../index.json",
        "/reports//etc/passwd",
        "/x",
    ] {
        assert_eq!(watching.get(path).status, 404, "{path}");
    }
    watching.service.interrupt();
}

/// `go tool pprof`, with a directory of its own for what it keeps.
#[track_caller]
fn pprof(directory: &Path, url: &str) -> String {
    let mut pprof = Command::new("go");
    pprof.args(["tool", "pprof", "-top", "-timeout=120", url]);
    pprof.env("PPROF_TMPDIR", directory).env("HOME", directory);
    let output = pprof.output().expect("there is go (Debian's package `golang-go`)");
    assert!(output.status.success(), "{pprof:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

#[test]
fn go_tool_pprof_gets_a_profile_on_demand() {
    let group = MemoryGroup::with_limit(400 * MIB);
    let mut leaking = Leaking::start(&group, 16, 20_000);
    leaking.go();
    let watching = Watching::start(&[&group], &NEVER);
    wait_until("it is ready", || (watching.get("/-/ready").status == 200).then_some(()));
    for (kind, shown) in [("heap", "inuse_space"), ("allocs", "alloc_space")] {
        let url =
            format!("http://{}/debug/pprof/{kind}?subject={}&seconds=1", watching.address, name(&group));
        let listing = pprof(watching.reports.path(), &url);
        assert!(listing.contains(&format!("Type: {shown}")) && listing.contains("forget"), "{listing}");
    }
    assert_eq!(watching.metric("tracer_watch_recordings_total{trigger=\"request\",outcome=\"done\"}"), 2.0);
    let index: Value = serde_json::from_str(&watching.text("/reports/index.json")).expect("it is JSON");
    assert_eq!(index["recordings"], serde_json::json!([]), "none of them is kept");
    watching.service.interrupt();
}

#[test]
fn profiles_are_refused_with_a_line_and_end_with_who_asked() {
    let groups = [200, 100].map(|limit| MemoryGroup::with_limit(limit * MIB));
    let _targets = groups.each_ref().map(|group| Leaking::start(group, 16, 0));
    let mut watching = Watching::start(&groups.each_ref(), &NEVER);
    wait_until("it is ready", || (watching.get("/-/ready").status == 200).then_some(()));
    let heap = |query: &str| format!("/debug/pprof/heap?{query}");
    let [first, second] = groups.each_ref().map(|group| format!("subject={}&seconds=600", name(group)));
    let refused = |watching: &Watching, path: &str, status: u16, word: &str| {
        let answer = watching.get(path);
        let line = answer.text();
        assert!(
            answer.status == status && line.contains(word) && line.lines().count() == 1,
            "{path}: {answer:?}"
        );
    };
    refused(&watching, &heap(""), 400, "whom to record?");
    refused(&watching, &heap("subject=x&seconds=0"), 400, "from 1 to 600");
    refused(&watching, &heap("subject=1"), 404, "no subject");
    let cross = ["Host: localhost", "Sec-Fetch-Site: cross-site"];
    assert_eq!(http::ask(&watching.address, &http::request(&heap(&first), &cross)).status, 403);
    let head = http::request(&heap(&first), &["Host: localhost"]).replace("GET", "HEAD");
    assert_eq!(http::ask(&watching.address, &head).status, 405);

    let mut asking = http::connect(&watching.address);
    asking.write_all(http::request(&heap(&first), &["Host: localhost"]).as_bytes()).unwrap();
    watching.service.wait_for_message("request 1: its probes are in");
    refused(&watching, &heap(&first), 409, "already");
    refused(&watching, &heap(&second), 503, "as many as there may be");
    drop(asking);
    watching.service.wait_for_message("request 1: interrupted");
    let files = fs::read_dir(watching.reports.path()).unwrap().map(|file| file.unwrap().file_name());
    let left: Vec<_> = files.filter(|name| name.to_string_lossy().starts_with(".tracer-")).collect();
    assert!(left.is_empty(), "the profile is not kept: {left:?}");
    watching.service.interrupt();
}

#[test]
fn recordings_take_no_more_cpu_time_than_they_may() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    // A thousandth of the machine, of which an earlier service has used most.
    let cpus = thread::available_parallelism().expect("there are some").get();
    let used = serde_json::json!({
        "name": "web-20270115T080000Z",
        "subject": "web",
        "trigger": "x",
        "state": "failed",
        "processes": [],
        "started": SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs(),
        "cpu_seconds": 0.85 * 3.6 * cpus as f64,
    });
    let index = serde_json::json!({ "schema": "tracer.watch/1", "recordings": [used] });
    fs::write(reports.path().join("index.json"), index.to_string()).unwrap();
    let mut target = Program::new("busy.c").start();
    fs::write(group.directory().join("cgroup.procs"), target.pid().to_string()).expect("it can be moved");
    target.work();
    let options = ["--when", "rss > 64KiB", "--record", "10m", "--cool-down", "0s", "--mode", "allocations"];
    let options = [&options[..], &["--cpu-budget", "0.1%"]].concat();
    let mut watching = Watching::in_directory(reports, "127.0.0.1:0", &[&group], &options);
    watching.service.wait_for_message("ended early, since it has taken");
    watching.service.wait_for_message("there is no CPU time for another recording (--cpu-budget 0.1%)");
    wait_until("everybody sees it", || {
        (watching.metric("tracer_watch_cpu_budget_used_up") == 1.0).then_some(())
    });
    assert!(watching.text("/").contains("the next one waits"));
    assert!((watching.metric("tracer_watch_cpu_budget_seconds") - 3.6 * cpus as f64).abs() < 1e-6);
    let index: Value = serde_json::from_str(&watching.text("/reports/index.json")).expect("it is JSON");
    let recording = &index["recordings"][1];
    assert_eq!((&recording["state"], &recording["digest"]["mode"]), (&"done".into(), &"allocations".into()));
    assert!(recording["cpu_seconds"].as_f64().expect("a number") > 0.15 * 3.6, "{recording:#}");
    assert!(watching.metric("tracer_watch_probes_cpu_seconds_total") > 0.0);
    let refused = watching.get(&format!("/debug/pprof/heap?subject={}", name(&group)));
    assert!(refused.status == 503 && refused.text().contains("--cpu-budget"), "{refused:?}");
    watching.service.interrupt();
    target.assert_unharmed();
}

#[test]
fn many_slow_and_large_requests_keep_nobody_from_asking() {
    // One for each of a thousand connections.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("it may be as much as it may be");
    let group = MemoryGroup::with_limit(200 * MIB);
    let _target = Leaking::start(&group, 16, 0);
    let watching = Watching::start(&[&group], &NEVER);
    let whole = http::request("/metrics", &["Host: localhost"]);

    let barrier = Barrier::new(1000);
    let ask = || {
        barrier.wait();
        http::ask(&watching.address, &whole).status
    };
    let statuses: Vec<u16> = thread::scope(|scope| {
        let all: Vec<_> = (0..1000).map(|_| scope.spawn(ask)).collect();
        all.into_iter().map(|asking| asking.join().expect("it is answered")).collect()
    });
    assert_eq!(statuses, [200; 1000]);

    // They take every place there is, and never say what they want.
    let mut slow: Vec<TcpStream> = (0..64).map(|_| http::connect(&watching.address)).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc").unwrap());
    assert_eq!(watching.get("/-/healthy").status, 200, "who waits long enough is answered");
    for stream in &mut slow {
        assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)), "it is sent away");
    }

    let large = http::request("/metrics", &["Host: localhost", &format!("X: {}", "x".repeat(15 << 10))]);
    assert_eq!(http::ask(&watching.address, &large).status, 200);
    let larger = http::request("/metrics", &["Host: localhost", &format!("X: {}", "x".repeat(1 << 20))]);
    let mut stream = http::connect(&watching.address);
    // It may be shut before all is written, and before the answer is read.
    let _ = stream.write_all(larger.as_bytes());
    assert!(Answer::read(&mut stream).map_or(true, |answer| answer.status == 431));
    let many: Vec<String> = (0..200).map(|number| format!("X-{number}: y")).collect();
    let many: Vec<&str> = ["Host: localhost"].into_iter().chain(many.iter().map(String::as_str)).collect();
    assert_eq!(http::ask(&watching.address, &http::request("/metrics", &many)).status, 431);
    let post = "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n";
    assert_eq!(http::ask(&watching.address, post).status, 405);
    for nonsense in ["\r\n\r\n\r\n", "GET\r\n\r\n", "\u{0}\u{1}\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = http::connect(&watching.address);
        let _ = stream.write_all(nonsense.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(Answer::read(&mut stream).map_or(true, |answer| answer.status >= 400), "{nonsense:?}");
    }
    assert!(watching.metric("process_open_fds") < 40.0, "all of them are gone");
    assert!(watching.metric("process_resident_memory_bytes") < (80 * MIB) as f64);
    watching.service.interrupt();
}

#[test]
fn pages_of_others_cannot_ask_through_a_browser() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let watching = Watching::start(&[&group], &NEVER);
    let status =
        |path: &str, headers: &[&str]| http::ask(&watching.address, &http::request(path, headers)).status;
    assert_eq!(status("/metrics", &["Host: localhost:9497"]), 200);
    assert_eq!(status("/metrics", &["Host: evil.test:9497"]), 421);
    assert_eq!(status("/metrics", &[]), 421);
    assert_eq!(status("http://evil.test/metrics", &["Host: localhost"]), 421);
    watching.service.interrupt();
}

#[test]
fn others_than_this_machine_need_a_token() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let reports = TempDir::new().unwrap();
    let refused = |options: &[&str], says: &[&str]| {
        let words = words("0.0.0.0:0", &[&group], reports.path(), options);
        Tracer::command(words).run().assert_failed(1, says);
    };
    refused(&NEVER, &["--listen 0.0.0.0:0", "give --token-file"]);
    refused(&["--check"], &["give --token-file"]);
    let file = reports.path().join("token");
    refused(&["--token-file", text(&file)], &["--token-file", "cannot read it"]);
    let tokens = ["the-first-token-0001", "the-second-token-002"];
    fs::write(&file, tokens[0]).unwrap();
    let options = ["--when", "rss > 1TiB", "--token-file", text(&file)];
    let mut watching = Watching::listening("0.0.0.0:0", &[&group], &options);
    let status = |watching: &Watching, token: &str| {
        let headers = ["Host: a.test", &format!("Authorization: Bearer {token}")];
        http::ask(&watching.address, &http::request("/metrics", &headers)).status
    };
    assert_eq!(watching.get("/metrics").status, 401);
    assert_eq!(watching.get("/-/healthy").status, 200);
    assert_eq!(tokens.map(|token| status(&watching, token)), [200, 401]);
    fs::write(&file, "short").unwrap();
    watching.service.signal(Signal::HUP);
    watching.service.wait_for_message("the configuration stays as it was");
    assert_eq!(tokens.map(|token| status(&watching, token)), [200, 401]);
    fs::write(&file, format!("{}\n", tokens[1])).unwrap();
    watching.service.signal(Signal::HUP);
    watching.service.wait_for_message("read again");
    assert_eq!(tokens.map(|token| status(&watching, token)), [401, 200]);

    // Somebody has that port.
    let words = words(&watching.address, &[&group], reports.path(), &NEVER);
    Tracer::command(words).run().assert_failed(1, &["cannot listen at", "in use"]);
    watching.service.interrupt();
}

#[test]
fn a_socket_in_the_file_system_is_listened_at() {
    let group = MemoryGroup::with_limit(200 * MIB);
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("watch.sock");
    let watching = Watching::listening(&format!("unix:{}", socket.display()), &[&group], &NEVER);
    let answer = http::get_of_socket(&socket, "/metrics");
    assert!(answer.status == 200 && answer.text().contains("tracer_build_info{"), "{answer:?}");
    assert!(watching.service.interrupt().status.success());
    assert!(!socket.exists(), "it is gone with the service");
}
