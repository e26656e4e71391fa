//! Programs of other distributions, and the packed tracer in them. `cargo xtask distributions` makes their root directories and
//! runs this; it is not among the tests that run otherwise.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tracer_tests::{Expect, Report, Running, Stack, Tracer, programs_dir, trace, wait_until};

/// Where the root directories are.
const DIRECTORY: &str = "TRACER_DISTRIBUTIONS";

/// Where programs and packages are in a root directory.
const PLACE: &str = "srv/tracer";

#[test]
fn debian_11() {
    judge_glibc("bullseye", "Debian 11");
}

#[test]
fn debian_12() {
    judge_glibc("bookworm", "Debian 12");
}

#[test]
fn debian_13() {
    judge_glibc("trixie", "Debian 13");
}

#[test]
fn debian_sid() {
    judge_glibc("sid", "Debian sid");
}

#[test]
fn musl() {
    let root = Root::open("musl");
    let family = root.judge_live_blocks("/srv/tracer/live_blocks");
    let tarball = root.judge_tracer_in_it("/srv/tracer/tracer");
    let cells = ["musl alone", "musl", &family, "", "", "", "", "", "", "", &tarball, ""];
    root.leave_row(&cells);
}

/// Every check of a distribution with glibc; what came of them is left as the row of a table.
#[track_caller]
fn judge_glibc(name: &str, title: &str) {
    let root = Root::open(name);
    let glibc = root.output(&["ldd", "--version"]);
    let version = glibc.lines().next().and_then(|line| line.split(' ').next_back()).unwrap_or_default();
    root.compile("malloc_family");
    root.compile("live_blocks");
    root.compile("glibc_kept");
    let cells = [
        title,
        version,
        &root.judge_family(),
        &root.judge_kept(),
        &root.judge_python(),
        &root.judge_node(),
        &root.judge_java(),
        &root.judge_redis(),
        &root.judge_nginx(),
        &root.judge_postgres(),
        &root.judge_tracer_in_it("/srv/tracer/tracer"),
        &root.judge_tracer_in_it("/usr/bin/tracer"),
    ];
    root.leave_row(&cells);
}

/// The root directory of a distribution.
struct Root {
    name: String,
    path: PathBuf,
}

impl Root {
    #[track_caller]
    fn open(name: &str) -> Self {
        let directory = std::env::var_os(DIRECTORY).expect("cargo xtask distributions runs this");
        let path = Path::new(&directory).join(name);
        assert!(path.join(PLACE).is_dir(), "{} is a root directory", path.display());
        Self { name: name.to_owned(), path }
    }

    /// What a program in it prints.
    #[track_caller]
    fn output(&self, words: &[&str]) -> String {
        let output = self.contained(words).output().expect("unshare can be run");
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{words:?} in {} succeeds: {stdout}{stderr}", self.name);
        stdout.into_owned()
    }

    /// Compiles a program by the compiler that is in it.
    #[track_caller]
    fn compile(&self, program: &str) {
        for file in [&format!("{program}.c"), "protocol.h"] {
            self.put(&programs_dir().join(file));
        }
        let (source, executable) = (format!("/{PLACE}/{program}.c"), format!("/{PLACE}/{program}"));
        let flags = ["-O2", "-g", "-fno-omit-frame-pointer", "-pthread", "-w"];
        let mut words = vec!["gcc"];
        words.extend(flags);
        words.extend([&*source, "-o", &executable, "-ldl"]);
        self.output(&words);
    }

    #[track_caller]
    fn put(&self, file: &Path) {
        let name = file.file_name().expect("files have names");
        fs::copy(file, self.path.join(PLACE).join(name)).expect("it can be copied");
    }

    /// Words that run others in it, with mounts and pids of their own.
    fn contained(&self, words: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]);
        command.arg("mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"");
        command.arg(&self.path).args(words);
        command
    }

    #[track_caller]
    fn start(&self, words: &[&str]) -> Running {
        Running::start_in_pid_namespace(self.contained(words))
    }

    /// Every function of the malloc family, to the byte.
    #[track_caller]
    fn judge_family(&self) -> String {
        let mut program = self.start(&["/srv/tracer/malloc_family"]);
        let report = trace(&mut program);
        report.check(&program.expect);
        program.assert_unharmed();
        stacks_of(&report)
    }

    #[track_caller]
    fn judge_live_blocks(&self, program: &str) -> String {
        let mut program = self.start(&[program, "1000", "30"]);
        let report = trace(&mut program);
        report.check(&program.expect);
        program.assert_unharmed();
        stacks_of(&report)
    }

    /// What glibc says is free in its arenas.
    #[track_caller]
    fn judge_kept(&self) -> String {
        const TOLERANCE: f64 = 0.02;

        let mut program = self.start(&["/srv/tracer/glibc_kept"]);
        let recording = Tracer::new().pid(program.pid()).start();
        program.go();
        let said: f64 = program.wait_for_line_after("free ").parse().expect("a number");
        program.wait_until_done();
        let finished = recording.interrupt();
        let report = finished.report();
        let json: serde_json::Value =
            serde_json::from_str(finished.json.as_deref().expect("it was read")).expect("it was read");
        let memory = report.memory.expect("the kernel says it");
        let part = memory.parts.iter().find(|part| part.part == "allocator").expect("it kept some");
        let found = (part.after_bytes - part.before_bytes) as f64;
        let parts = json["memory"]["parts"].as_array().expect("there are parts");
        let is_estimated =
            |part: &serde_json::Value| part["part"] == "allocator" && part["estimated"] == true;
        let is_estimated = parts.iter().any(is_estimated);
        assert!(!is_estimated, "in {} the arenas are read: {parts:?}", self.name);
        let error = found / said - 1.0;
        assert!(error.abs() < TOLERANCE, "in {} glibc says {said}, and {found} were found", self.name);
        program.assert_unharmed();
        format!("{:.1} MiB, {:+.2} %", said / f64::from(1 << 20), 100.0 * error)
    }

    #[track_caller]
    fn judge_python(&self) -> String {
        self.put(&programs_dir().join("python_leak.py"));
        let version = self.output(&["python3", "--version"]);
        let mut program = self.start(&["python3", "/srv/tracer/python_leak.py"]);
        let report = trace(&mut program);
        report.assert_exact();
        // The callers can differ: the interpreter rewrites code that gets hot.
        let in_libffi = |stack: &&Stack| {
            let module = stack.frames.first().and_then(|frame| frame.module.as_deref());
            stack.api == "malloc" && module.is_some_and(|module| module.starts_with("libffi"))
        };
        let leaks: Vec<_> = report.stacks.iter().filter(in_libffi).collect();
        let bytes: u64 = leaks.iter().map(|stack| stack.outstanding_bytes).sum();
        assert_eq!(bytes, 50 * 4321, "in {}: {:#?}", self.name, report.outlines());
        let is_named = |stack: &&Stack| stack.complete && stack.passes("Py_RunMain");
        assert!(leaks.iter().all(is_named), "in {}: {:#?}", self.name, report.outlines());
        program.assert_unharmed();
        format!("{} {}", version.trim().trim_start_matches("Python "), stacks_of(&report))
    }

    #[track_caller]
    fn judge_node(&self) -> String {
        self.put(&programs_dir().join("node/buffers.js"));
        let version = self.output(&["node", "--version"]);
        let mut program = self.start(&["node", "/srv/tracer/buffers.js"]);
        let report = trace(&mut program);
        report.assert_exact();
        let buffers = report.stacks.iter().filter(|stack| stack.outstanding_bytes >= 100_000);
        let whole: Vec<_> = buffers.filter(|stack| stack.outstanding_bytes % 100_000 == 0).collect();
        let objects: u64 = whole.iter().map(|stack| stack.outstanding_objects).sum();
        assert_eq!(objects, 50, "in {}: {:#?}", self.name, report.outlines());
        let is_node = |stack: &&Stack| stack.passes("Start") && stack.passes("_start");
        assert!(whole.iter().all(is_node), "{:#?}", report.outlines());
        program.assert_unharmed();
        format!("{} {}", version.trim().trim_start_matches('v'), stacks_of(&report))
    }

    #[track_caller]
    fn judge_java(&self) -> String {
        self.put(&programs_dir().join("java/Buffers.java"));
        self.output(&["javac", "-d", "/srv/tracer", "/srv/tracer/Buffers.java"]);
        let version = self.output(&["java", "--version"]);
        let mut program = self.start(&["java", "-XX:+PreserveFramePointer", "-cp", "/srv/tracer", "Buffers"]);
        let report = trace(&mut program);
        report.assert_exact();
        // The function of libjvm that calls `os::malloc` does so by a tail call in some versions: it has no frame then.
        let keeps_buffers = |stack: &&Stack| stack.outstanding_bytes >= 100_000 && stack.passes("JavaMain");
        let buffers: Vec<_> =
            report.stacks.iter().filter(keeps_buffers).filter(|s| s.api == "malloc").collect();
        let objects: u64 = buffers.iter().map(|stack| stack.outstanding_objects).sum();
        let bytes: u64 = buffers.iter().map(|stack| stack.outstanding_bytes).sum();
        assert_eq!((objects, bytes), (50, 50 * 100_000), "in {}: {:#?}", self.name, report.outlines());
        program.assert_unharmed();
        format!("{} {}", version.split(' ').nth(1).unwrap_or("?"), stacks_of(&report))
    }

    #[track_caller]
    fn judge_nginx(&self) -> String {
        let socket = "/srv/tracer/nginx.sock";
        let _ = fs::remove_file(self.path.join(&socket[1..]));
        let configuration = format!(
            "daemon off; master_process off; error_log /dev/null; pid /srv/tracer/nginx.pid; events {{}} \
             http {{ access_log off; gzip on; gzip_types *; gzip_min_length 1; \
             server {{ listen unix:{socket}; root /usr/include; }} }}"
        );
        fs::write(self.path.join(PLACE).join("nginx.conf"), configuration).expect("there is room");
        let server = Server::start(self.contained(&["nginx", "-c", "/srv/tracer/nginx.conf"]));
        let connect = || std::os::unix::net::UnixStream::connect(self.path.join(&socket[1..])).ok();
        wait_until("nginx takes connections", || connect().map(drop));
        let recording = Tracer::new().pid(server.pid()).start();
        for _ in 0..100 {
            let mut connection = connect().expect("it takes connections");
            let request = "GET /stdio.h HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n";
            connection.write_all(request.as_bytes()).expect("it reads");
            let mut answer = Vec::new();
            connection.read_to_end(&mut answer).expect("it answers");
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
        let report = recording.interrupt().report();
        drop(server);
        report.assert_exact();
        assert!(report.events.allocations >= 100, "{:?}", report.events);
        stacks_of(&report)
    }

    #[track_caller]
    fn judge_redis(&self) -> String {
        let socket = "/srv/tracer/redis.sock";
        let words = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""];
        let server = Server::start(self.contained(&words));
        wait_until("redis answers", || {
            let mut ping = Command::new("chroot");
            ping.arg(&self.path).args(["redis-cli", "-s", socket, "ping"]);
            ping.output().ok().filter(|output| output.stdout.starts_with(b"PONG")).map(drop)
        });
        let version = self.output(&["redis-server", "--version"]);
        let recording = Tracer::new().pid(server.pid()).start();
        self.output(&["redis-benchmark", "-s", socket, "-q", "-t", "set,lpush", "-n", "2000", "-r", "1000"]);
        let report = recording.interrupt().report();
        drop(server);
        report.assert_exact();
        let version = version.split("v=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("?");
        format!("{version} {}", stacks_of(&report))
    }

    /// The server and a process of it for each client.
    #[track_caller]
    fn judge_postgres(&self) -> String {
        // It does not run as root.
        let script = "set -e
            programs=$(echo /usr/lib/postgresql/*/bin) data=/srv/tracer/postgres
            own='setpriv --reuid=postgres --regid=postgres --init-groups'
            rm -rf $data
            mkdir $data
            chown postgres $data
            $own $programs/initdb --pgdata=$data --auth=trust --locale=C --no-sync >/dev/null
            exec $own $programs/postgres -D $data -k $data -c listen_addresses= -c logging_collector=off";
        let server = Server::start(self.contained(&["sh", "-c", script]));
        let query = |text: &str| {
            let mut client = Command::new("chroot");
            client.arg(&self.path).args(["psql", "--host=/srv/tracer/postgres", "--username=postgres"]);
            client.args(["--no-align", "--tuples-only", "--command", text]);
            let output = client.output().expect("chroot can be run");
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let version = wait_until("postgres answers", || query("SHOW server_version"));
        let recording = Tracer::new().options(["--follow"]).pid(server.pid()).start();
        for _ in 0..10 {
            let count = query("SELECT count(DISTINCT md5(n::text)) FROM generate_series(1, 5000) n");
            assert_eq!(count.as_deref(), Some("5000"), "in {}", self.name);
        }
        let report = recording.interrupt().report();
        drop(server);
        report.assert_exact();
        assert!(report.events.allocations >= 100, "{:?}", report.events);
        let version = version.split(' ').next().unwrap_or("?");
        format!("{version} {}", stacks_of(&report))
    }

    /// The packed tracer, run in it, launches a program that leaks.
    #[track_caller]
    fn judge_tracer_in_it(&self, tracer: &str) -> String {
        let report = "/srv/tracer/report.json";
        let script = format!(
            "mount -t sysfs sys \"$0/sys\" && mount -t proc proc \"$0/proc\" && mkdir -p \"$0/tmp\" && echo go | \
             chroot \"$0\" {tracer} --no-progress -o {report} -- /{PLACE}/live_blocks 1000 30"
        );
        let mut command = Command::new("unshare");
        let output =
            command.args(["--mount", "sh", "-c", &script]).arg(&self.path).output().expect("it runs");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tracer} in {}: {stdout}{stderr}", self.name);
        let lines: Vec<String> = stdout.lines().map(str::to_owned).collect();
        let expect = Expect::in_output(&lines).expect("the program says what it leaks");
        let file = self.path.join(report.trim_start_matches('/'));
        let report = Report::parse(&fs::read_to_string(&file).expect("it was written"));
        fs::remove_file(file).expect("it was written");
        report.assert_exact();
        report.check_leaks(&expect);
        assert!(
            report.called_by("make_blocks").iter().all(|stack| stack.complete),
            "{:#?}",
            report.outlines()
        );
        "exact".to_owned()
    }

    /// Leaves what was found as a row of the table.
    #[track_caller]
    fn leave_row(&self, cells: &[&str]) {
        let row = format!("| {} |\n", cells.join(" | "));
        let path = self.path.with_extension("row");
        fs::write(path, row).expect("the directory is writable");
    }
}

/// A server that was started in a pid namespace; both end when this is dropped.
struct Server(Child);

impl Server {
    #[track_caller]
    fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().expect("unshare can be run"))
    }

    /// Its pid, as the tests' namespace numbers it.
    #[track_caller]
    fn pid(&self) -> u32 {
        let parent = self.0.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        children.expect("it runs").trim().parse().expect("it has one child")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell about it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many stacks are complete.
fn stacks_of(report: &Report) -> String {
    let complete = report.stacks.iter().filter(|stack| stack.complete).count();
    format!("exact, {complete} of {} stacks", report.stacks.len())
}
