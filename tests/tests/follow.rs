//! `--follow`: children, and the programs they execute, are accounted each by itself; and how targets are chosen.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tracer_tests::{Expect, Program, Report, Running, Tracer, trace, trace_with};

fn following() -> Tracer {
    Tracer::new().options(["--follow"])
}

/// Everything that the family does, by process.
#[track_caller]
fn check_family(report: &Report, expect: &Expect) {
    report.assert_exact();
    report.check_leaks(expect);
    let place = |function| report.process_of(function);
    let (parent, child) = (place("leak_in_parent"), place("leak_in_child"));
    assert_eq!(place("leak_shared"), parent, "the block is its maker's");
    assert_eq!(place("map_shared"), parent, "the mapping too");
    assert_eq!(place("leak_in_vfork"), parent, "a child in its parent's memory works for it");
    assert_eq!(place("map_in_child"), child);
    assert_eq!(report.processes[child].from, Some(parent));
    let (grandchild, orphan) = (place("leak_in_grandchild"), place("leak_as_orphan"));
    assert_eq!(report.processes[grandchild].from, Some(child));
    assert_eq!(report.processes[orphan].from, Some(child));
    let executed = place("leak_when_executed");
    let before = report.processes[executed].from.expect("it was another program before");
    assert_eq!(report.processes[before].pid, report.processes[executed].pid);
    assert_eq!(report.processes[before].from, Some(parent));
    assert_eq!(report.processes[before].end.as_deref(), Some("exec"));
    assert_eq!(report.processes[grandchild].end.as_deref(), Some("exited"));
    assert_eq!(report.processes.len(), 6, "{:#?}", report.processes);
    // The child frees what its parent allocated and unmaps what it mapped.
    assert_eq!(report.events.unmatched_frees, 2, "{:?}", report.events);
}

#[test]
fn a_family_is_told_apart() {
    let mut program = Program::new("family.c").start();
    let recording = following().pid(program.pid()).start();
    program.go();
    program.wait_for_lines(&["done", "executed", "orphaned"]);
    let finished = recording.interrupt();
    check_family(&finished.report(), &program.expect);
    let summary = finished.stdout.join("\n");
    for words in ["6 processes", "By process", "child of", "exited", "executed another program"] {
        assert!(summary.contains(words), "{words}: {summary}");
    }
    program.assert_unharmed();
}

#[test]
fn without_following_children_are_not_mixed_in() {
    let mut program = Program::new("family.c").start();
    let report = trace(&mut program);
    report.assert_exact();
    assert!(report.processes.is_empty(), "{:?}", report.processes);
    for foreign in ["leak_in_child", "leak_in_grandchild", "leak_as_orphan", "leak_when_executed"] {
        assert!(report.called_by(foreign).is_empty(), "{foreign}: {:#?}", report.outlines());
    }
    assert_eq!(report.called_by("leak_in_parent").len(), 1);
}

/// What the family leaks, by the names of processes, which are certain however soon they are gone.
#[track_caller]
fn check_totals(report: &Report) {
    report.assert_exact();
    assert_eq!(report.window.end.as_deref(), Some("target_exited"));
    let mut leaks: Vec<_> = (0..report.processes.len()).map(|process| report.native_of(process)).collect();
    leaks.sort_unstable();
    let expected = [(0, 0), (777, 7), (891, 9), (1665, 5), (3800, 6), (38400, 40)];
    assert!(leaks.ends_with(&expected), "{leaks:?}: {:#?}", report.processes);
    assert!(report.processes.iter().all(|process| process.end.is_some()), "{:#?}", report.processes);
}

#[test]
fn a_launched_family_is_traced_until_the_last_is_gone() {
    let program = Program::new("family.c").build();
    let report = following().launch([program.into_os_string(), "leave".into()]).run().report();
    check_totals(&report);
    assert_eq!(report.process_of("leak_in_parent"), 0);
}

#[test]
fn what_a_shell_executes_is_followed() {
    let program = Program::new("family.c").build();
    let script = format!("true; '{}' leave; exec '{}' leave", program.display(), program.display());
    let finished = following().launch(["sh", "-c", &script]).run();
    let report = finished.report();
    report.assert_exact();
    // The shell has its program in a child, then it becomes the program.
    let shell = &report.processes[0];
    assert_eq!((shell.comm.as_str(), shell.end.as_deref()), ("sh", Some("exec")), "{:#?}", report.processes);
    let successor =
        report.processes.iter().find(|process| process.from == Some(0) && process.pid == shell.pid);
    assert!(successor.is_some_and(|process| process.comm.starts_with("family")), "{:#?}", report.processes);
    let leaks = |bytes| (0..report.processes.len()).filter(|&at| report.native_of(at).0 == bytes).count();
    for bytes in [777, 891, 1665, 38400] {
        assert_eq!(leaks(bytes), 2, "{bytes}: {:#?}", report.processes);
    }
}

#[test]
fn without_following_the_end_at_exec_says_what_to_do() {
    let finished = Tracer::new().launch(["sh", "-c", "exec true"]).run();
    assert_eq!(finished.report().window.end.as_deref(), Some("target_exec"));
    assert!(finished.stdout.iter().any(|line| line.contains("--follow")), "{:#?}", finished.stdout);
}

#[test]
fn more_processes_than_there_is_room_for_are_counted() {
    let program = Program::new("family.c").build();
    let finished = following().launch([program.into_os_string(), "crowd".into(), "4200".into()]).run();
    let report = finished.report();
    report.assert_nothing_lost_but(&["process_not_followed"]);
    report.assert_sums();
    assert_eq!(report.processes.len(), 4096);
    assert_eq!(report.events.lost["process_not_followed"], 4200 - 4095);
    let crowd: u64 = (1..4096).map(|process| report.native_of(process).0).sum();
    assert_eq!(crowd, 4095 * 100);
    assert!(
        finished.stdout.iter().any(|line| line.contains("than can be followed (4,096)")),
        "{finished:#?}"
    );
}

// ---- choosing targets

/// A copy of a program under a name that nobody else has.
fn named_program(directory: &Path) -> (PathBuf, String) {
    let name = format!("chosen{}", std::process::id());
    let path = directory.join(&name);
    let copied = Command::new("cp").arg(Program::new("live_blocks.c").build()).arg(&path).status();
    assert!(copied.is_ok_and(|status| status.success()), "it can be copied");
    (path, name)
}

fn blocks(program: &Path) -> Running {
    let mut command = Command::new(program);
    command.args(["100", "10"]);
    Running::start(command)
}

/// What two of these leak.
#[track_caller]
fn check_two(report: &Report, programs: &[Running]) {
    report.assert_exact();
    let mut pids: Vec<_> = report.processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    let mut expected: Vec<_> = programs.iter().map(Running::pid).collect();
    expected.sort_unstable();
    assert_eq!(pids, expected);
    let leaked = |program: &Running| program.expect.leaks.iter().map(|leak| leak.bytes).sum::<u64>();
    assert_eq!(report.totals.outstanding_bytes, programs.iter().map(leaked).sum::<u64>());
}

#[test]
fn all_processes_of_a_name() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let (path, name) = named_program(directory.path());
    let mut programs = [blocks(&path), blocks(&path)];
    let recording = Tracer::new().options(["--name", &name]).start();
    programs.iter_mut().for_each(Running::work);
    check_two(&recording.interrupt().report(), &programs);
    Tracer::new().options(["--name", "nobody is called so"]).run().assert_failed(1, &["nobody is called so"]);
}

/// A control group of its own, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    #[track_caller]
    fn new(mount: &Path) -> Self {
        let path = mount.join(format!("tracer-test-{}", std::process::id()));
        fs::create_dir_all(path.join("below")).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    #[track_caller]
    fn add(&self, below: &str, pid: u32) {
        fs::write(self.0.join(below).join("cgroup.procs"), pid.to_string()).expect("it takes processes");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // They are empty once the programs' children are gone, too; there is nobody to tell if that never comes.
        let below = self.0.join("below");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&below).is_err() && below.is_dir() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where control groups of this version are mounted.
fn cgroup_mount(version: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("it can be read");
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .find(|fields| fields[2] == version && fields[3].split(',').any(|option| option == "rw"))
        .map(|f| f[1].into())
}

#[test]
fn all_processes_of_a_control_group_and_below() {
    let mounts: Vec<_> = ["cgroup2", "cgroup"].into_iter().filter_map(cgroup_mount).collect();
    assert!(!mounts.is_empty(), "control groups are mounted");
    for mount in mounts {
        let group = Cgroup::new(&mount);
        let program = Program::new("live_blocks.c").build();
        let mut programs = [blocks(&program), blocks(&program)];
        group.add("", programs[0].pid());
        group.add("below", programs[1].pid());
        let name = Path::new("/").join(group.0.strip_prefix(&mount).expect("it is there"));
        for path in [&group.0, &name] {
            let recording = Tracer::new().options(["--cgroup".as_ref(), path.as_os_str()]).start();
            if *path == name {
                programs.iter_mut().for_each(Running::work);
                check_two(&recording.interrupt().report(), &programs);
            } else {
                recording.interrupt().report().assert_exact();
            }
        }
        programs.iter_mut().for_each(Running::assert_unharmed);
    }
    Tracer::new().options(["--cgroup", "no/such/group"]).run().assert_failed(1, &["no/such/group"]);
}

#[test]
fn a_child_in_a_chosen_group_is_followed() {
    let mount =
        cgroup_mount("cgroup2").or_else(|| cgroup_mount("cgroup")).expect("control groups are mounted");
    let mount = mount.join(format!("tracer-family-{}", std::process::id()));
    fs::create_dir_all(&mount).expect("a group can be made");
    let mut program = Program::new("family.c").start();
    let group = Cgroup::new(&mount);
    group.add("below", program.pid());
    let recording = following().options(["--cgroup".as_ref(), group.0.as_os_str()]).start();
    program.go();
    program.wait_for_lines(&["done", "executed", "orphaned"]);
    check_family(&recording.interrupt().report(), &program.expect);
    program.assert_unharmed();
    drop((program, group));
    let _ = fs::remove_dir(mount);
}

#[test]
fn following_two_targets_of_one_library_counts_nothing_twice() {
    let program = Program::new("live_blocks.c").argument("100").argument("10").build();
    let mut programs = [blocks(&program), blocks(&program)];
    let recording = following().pid(programs[0].pid()).pid(programs[1].pid()).start();
    programs.iter_mut().for_each(Running::work);
    check_two(&recording.interrupt().report(), &programs);
}

#[test]
fn following_one_that_has_no_children_changes_nothing() {
    let mut program = Program::new("malloc_family.c").start();
    trace_with(&mut program, following()).check(&program.expect);
    program.assert_unharmed();
}
