//! Programs that nobody wrote for these tests: Python, Node.js, Redis, nginx.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tracer_tests::{
    Report, Running, Stack, Tracer, is_running, node_addon, programs_dir, trace, wait_for_exit, wait_until,
};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn python_leaking_through_ctypes() {
    let mut command = Command::new("python3");
    command.arg(programs_dir().join("python_leak.py"));
    let mut program = Running::start(command);
    let report = trace(&mut program);
    report.assert_exact();
    let in_libffi = |stack: &&Stack| {
        stack
            .frames
            .first()
            .and_then(|frame| frame.module.as_ref())
            .is_some_and(|module| module.starts_with("libffi"))
    };
    let of_malloc = |stack: &&Stack| stack.api == "malloc" && stack.outstanding_bytes >= 4321;
    let stacks: Vec<_> = report.stacks.iter().filter(in_libffi).filter(of_malloc).collect();
    let bytes: u64 = stacks.iter().map(|stack| stack.outstanding_bytes).sum();
    let objects: u64 = stacks.iter().map(|stack| stack.outstanding_objects).sum();
    assert_eq!((bytes, objects), (50 * 4321, 50), "{:#?}", report.outlines());
    program.assert_unharmed();
}

#[test]
fn node_leaking_in_an_addon() {
    let directory = TempDir::new().expect("a temporary directory");
    let mut command = Command::new("node");
    command.arg(programs_dir().join("node/service.js")).arg(node_addon(directory.path())).arg("300");
    let mut program = Running::start(command);
    let report = trace(&mut program);
    report.assert_exact();
    report.check_leaks(&program.expect);
    let top = report.stacks.first().expect("there are stacks");
    assert!(top.called_by("session::Cache::Open"), "the leak comes first: {:#?}", report.outlines());
    assert!(top.passes("Handle"), "{top:#?}");
    program.assert_unharmed();
}

/// A server that is killed when dropped.
struct Server(Child);

impl Server {
    /// Starts it and waits until its socket takes connections.
    #[track_caller]
    fn start(mut command: Command, socket: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server =
            Self(command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}")));
        wait_until("the server takes connections", SOON, || UnixStream::connect(socket).ok());
        server
    }

    /// Records it while `load` runs, which must succeed; it must still run after.
    #[track_caller]
    fn trace_under(&self, mut load: Command) -> Report {
        let recording = Tracer::new().pid(self.0.id()).start();
        let status = load.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.as_ref().is_ok_and(|status| status.success()), "{load:?}: {status:?}");
        let report = recording.interrupt().report();
        assert!(is_running(self.0.id()), "the server goes on");
        report
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell about it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn redis_under_load() {
    let directory = TempDir::new().expect("a temporary directory");
    let socket = directory.path().join("redis.socket");
    let mut command = Command::new("redis-server");
    command
        .args(["--port", "0", "--save", "", "--dir"])
        .arg(directory.path())
        .arg("--unixsocket")
        .arg(&socket);
    let server = Server::start(command, &socket);

    let mut load = Command::new("redis-benchmark");
    load.args(["-q", "-t", "set,get,lpush", "-n", "5000", "-r", "2000", "-d", "200", "-s"]).arg(&socket);
    let report = server.trace_under(load);
    report.assert_exact();
    assert!(report.events.allocations > 5000, "{:?}", report.events);
    // The lists and keys that the benchmark made are still there.
    assert!(report.totals.outstanding_bytes > 5000 * 200, "{:?}", report.totals);

    let mut ping = Command::new("redis-cli");
    let mut ping =
        ping.arg("-s").arg(&socket).arg("ping").stdout(Stdio::null()).spawn().expect("it can be run");
    assert!(wait_for_exit(&mut ping, SOON).success(), "it still answers");
}

#[test]
fn nginx_under_load() {
    let directory = TempDir::new().expect("a temporary directory");
    let socket = directory.path().join("nginx.socket");
    let configuration = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{}} http {{ access_log off; \
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; \
         scgi_temp_path scgi; server {{ listen unix:{}; location / {{ return 200 ok; }} }} }}",
        socket.display()
    );
    fs::write(directory.path().join("nginx.conf"), configuration).expect("there is room");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory.path()).args(["-e", "stderr", "-c", "nginx.conf"]);
    let server = Server::start(command, &socket);

    let mut load = Command::new("curl");
    load.args(["--silent", "--fail", "--unix-socket"]).arg(&socket).arg("http://localhost/[1-500]");
    let report = server.trace_under(load);
    report.assert_exact();
    // A pool a request: all of them given back, but for what the connection keeps.
    assert!(report.events.allocations >= 500, "{:?}", report.events);
    assert!(report.totals.outstanding_objects < 100, "{:#?}", report.outlines());
}
