//! Programs that nobody wrote for these tests: Python, Node.js, Redis, nginx.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::Signal;
use tempfile::TempDir;
use tracer_tests::{
    Report, Running, Server, Stack, Tracer, is_running, node_addon, programs_dir, trace, wait_for_exit,
    wait_until,
};

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

/// Records a server while `load` runs, which must succeed; it must still run after.
#[track_caller]
fn trace_under(server: &Server, mut load: Command) -> Report {
    let recording = Tracer::new().pid(server.pid()).start();
    let status = load.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{load:?}: {status:?}");
    let report = recording.interrupt().report();
    assert!(is_running(server.pid()), "the server goes on");
    report
}

#[test]
fn redis_under_load() {
    let directory = TempDir::new().expect("a temporary directory");
    let server = Server::redis(directory.path());

    let mut load = Command::new("redis-benchmark");
    load.args(["-q", "-t", "set,get,lpush", "-n", "5000", "-r", "2000", "-d", "200", "-s"])
        .arg(server.socket());
    let report = trace_under(&server, load);
    report.assert_exact();
    assert!(report.events.allocations > 5000, "{:?}", report.events);
    // The lists and keys that the benchmark made are still there.
    assert!(report.totals.outstanding_bytes > 5000 * 200, "{:?}", report.totals);

    let mut ping = Command::new("redis-cli");
    let mut ping =
        ping.arg("-s").arg(server.socket()).arg("ping").stdout(Stdio::null()).spawn().expect("it can be run");
    assert!(wait_for_exit(&mut ping).success(), "it still answers");
}

#[test]
fn nginx_under_load() {
    let directory = TempDir::new().expect("a temporary directory");
    let server = Server::nginx(directory.path(), "master_process off");

    let mut load = Command::new("curl");
    load.args(["--silent", "--fail", "--unix-socket"]).arg(server.socket()).arg("http://localhost/[1-500]");
    let report = trace_under(&server, load);
    report.assert_exact();
    // A pool a request: all of them given back, but for what the connection keeps.
    assert!(report.events.allocations >= 500, "{:?}", report.events);
    assert!(report.totals.outstanding_objects < 100, "{:#?}", report.outlines());
}

// ---- with children

fn following() -> Tracer {
    Tracer::new().options(["--follow"])
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it is running");
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[track_caller]
fn request(socket: &Path) {
    let mut load = Command::new("curl");
    load.args(["--silent", "--fail", "--unix-socket"]).arg(socket).arg("http://localhost/[1-300]");
    let status = load.stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "requests are answered");
}

#[test]
fn nginx_with_workers_from_before_and_after() {
    let directory = TempDir::new().expect("a temporary directory");
    let server = Server::nginx(directory.path(), "worker_processes 2");
    let (master, socket) = (server.pid(), server.socket());
    let old = wait_until("it has its workers", || Some(children(master)).filter(|all| all.len() == 2));
    let recording = following().pid(master).start();
    request(socket);
    // New workers take the place of the old ones.
    tracer_tests::send_signal(master, Signal::HUP);
    let is_new = |all: &Vec<u32>| all.len() == 2 && !all.iter().any(|pid| old.contains(pid));
    let new = wait_until("it has new workers", || Some(children(master)).filter(is_new));
    request(socket);
    let report = recording.interrupt().report();
    report.assert_exact();
    assert!(is_running(master) && new.iter().all(|&pid| is_running(pid)), "the server goes on");
    let mut pids: Vec<_> = report.processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    let mut expected = [vec![master], old.clone(), new.clone()].concat();
    expected.sort_unstable();
    assert_eq!(pids, expected);
    for process in &report.processes {
        let end = old.contains(&process.pid).then_some("exited");
        assert_eq!(process.end.as_deref(), end, "{process:?}");
        assert_eq!(process.from, new.contains(&process.pid).then_some(0), "{process:?}");
    }
    // Old and new workers had requests, each of which has a pool of its own.
    for workers in [&old, &new] {
        let of_workers =
            report.stacks.iter().filter(|stack| stack.pid.is_some_and(|pid| workers.contains(&pid)));
        let pools: u64 = of_workers
            .filter(|stack| stack.passes("ngx_create_pool") || stack.kind == "native")
            .map(|stack| stack.allocated_objects)
            .sum();
        assert!(pools >= 300, "{workers:?}: {pools}");
    }
}

#[test]
fn node_cluster_leaking_in_its_workers() {
    let directory = TempDir::new().expect("a temporary directory");
    let mut command = Command::new("node");
    command.arg(programs_dir().join("node/cluster.js")).arg(node_addon(directory.path())).arg("200");
    let mut program = Running::start(command);
    let recording = following().pid(program.pid()).start();
    program.work();
    let report = recording.interrupt().report();
    report.assert_exact();
    let [leak] = &program.expect.leaks[..] else { panic!("one leak a worker: {:?}", program.expect) };
    let mut workers: Vec<_> = report.called_by(&leak.function).iter().map(|stack| stack.process).collect();
    workers.sort_unstable();
    workers.dedup();
    assert_eq!(workers.len(), 2, "{:#?}", report.processes);
    for worker in workers.into_iter().flatten() {
        let stacks =
            report.called_by(&leak.function).into_iter().filter(|stack| stack.process == Some(worker));
        let totals = stacks
            .fold((0, 0), |sum, stack| (sum.0 + stack.outstanding_bytes, sum.1 + stack.outstanding_objects));
        assert_eq!(totals, (leak.bytes, leak.objects), "{:#?}", report.processes[worker]);
        assert!(
            report.processes[worker].command.iter().any(|word| word.ends_with("cluster.js")),
            "{:#?}",
            report.processes
        );
    }
    program.assert_unharmed();
}

#[test]
fn python_workers_leaking_through_ctypes() {
    let mut command = Command::new("python3");
    command.arg(programs_dir().join("python_workers.py"));
    let mut program = Running::start(command);
    let recording = following().pid(program.pid()).start();
    program.work();
    let report = recording.interrupt().report();
    report.assert_exact();
    assert_eq!(report.processes.len(), 3, "{:#?}", report.processes);
    for worker in [1, 2] {
        assert_eq!(report.processes[worker].from, Some(0));
        let by_libffi = |stack: &&Stack| {
            let module = stack.frames.first().and_then(|frame| frame.module.as_deref());
            module.is_some_and(|module| module.starts_with("libffi"))
                && stack.api == "malloc"
                && stack.process == Some(worker)
                && stack.outstanding_bytes >= 4321
        };
        let stacks: Vec<_> = report.stacks.iter().filter(by_libffi).collect();
        let bytes: u64 = stacks.iter().map(|stack| stack.outstanding_bytes).sum();
        assert_eq!(bytes, 50 * 4321, "{:#?}", report.outlines());
    }
    program.assert_unharmed();
}
