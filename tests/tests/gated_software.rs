//! Gates that open and close in programs that nobody wrote for these tests, beneath load, while every result is checked.
//!
//! `TRACER_GATE_ROUNDS` says how often, and has every version of a runtime tried that is here.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use tempfile::TempDir;
use tracer_tests::{
    Chance, Running, Server, Tracer, assert_text_is_pristine, gate_rounds, java_of, javas, nodes,
    programs_dir, pythons, version,
};

/// Opens and closes gates in a process at work. Who is asked tells its pid, and whether all results are right: itself, or its client.
#[track_caller]
fn open_and_close_often(name: &str, mut asked: Running) {
    let mut chance = Chance::seeded();
    let pid = asked.pid();
    for _ in 0..gate_rounds(2) {
        let mut gate = Tracer::command(["gate"]).pid(pid).spawn();
        gate.wait_for_output("is open");
        sleep(chance.moment(Duration::from_millis(50)));
        let finished = gate.interrupt();
        assert!(finished.status.success() && finished.stderr.is_empty(), "{name}: {finished:#?}");
        asked.assert_alive();
    }
    // Results are checked while it is recorded, too.
    let finished = Tracer::new().options(["--gate", "-d", "1s", "--sample", "16KiB"]).pid(pid).run();
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    assert!(report.totals.allocated_objects > 0, "{name}: {:?}", report.totals);
    asked.assert_alive();
    assert_text_is_pristine(pid);
    asked.assert_unharmed();
}

/// The first version, or all.
fn of_versions(runtimes: Vec<PathBuf>) -> impl Iterator<Item = PathBuf> {
    let wanted = if env::var_os("TRACER_GATE_ROUNDS").is_some() { runtimes.len() } else { 1 };
    runtimes.into_iter().take(wanted)
}

#[test]
fn node() {
    for node in of_versions(nodes()) {
        let name = format!("node {}", version(&node, &["--version"]));
        let mut command = Command::new(node);
        command.arg(programs_dir().join("node/checked.js"));
        open_and_close_often(&name, Running::start(command));
    }
}

fn checked_by_python(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(programs_dir().join("python/checked.py"));
    command
}

#[test]
fn python() {
    for python in of_versions(pythons()) {
        open_and_close_often(&python.display().to_string(), Running::start(checked_by_python(&python)));
    }
}

#[test]
fn java() {
    let directory = TempDir::new().expect("a temporary directory");
    for java in of_versions(javas()) {
        let command = java_of(&java, "Checked", directory.path(), &[]);
        open_and_close_often(&java.display().to_string(), Running::start(command));
    }
}

/// Has a server work, and checks what it answers.
fn client(kind: &str, server: &Server) -> Command {
    let mut command = checked_by_python(Path::new("python3"));
    command.arg(kind).arg(server.socket());
    command
}

#[test]
fn redis() {
    let directory = TempDir::new().expect("a temporary directory");
    let server = Server::redis(directory.path());
    open_and_close_often("redis", Running::start(client("redis", &server)));
}

#[test]
fn nginx() {
    let directory = TempDir::new().expect("a temporary directory");
    let server = Server::nginx(directory.path(), "master_process off");
    let mut client = client("http", &server);
    client.arg(server.pid().to_string());
    open_and_close_often("nginx", Running::start(client));
}

#[test]
fn postgres() {
    let directory = TempDir::new().expect("a temporary directory");
    let server = Server::postgres(directory.path());
    open_and_close_often("a backend of postgres", Running::start(client("postgres", &server)));
}
