//! Bad input and bad days: each ends in a clear line and the right exit status, and harms no target.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    process::{Child, Command},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tracer_tests::{
    Finished, Program, Running, Tracer, assert_text_is_pristine, compile, is_running, process_state,
    send_signal, tracer_binary, wait_for_exit, wait_until,
};

/// User and group of `nobody`.
const NOBODY: &str = "65534";

fn blocks(made: u64, leaked: u64) -> Running {
    Program::new("live_blocks.c").argument(made.to_string()).argument(leaked.to_string()).start()
}

/// A target that allocates and checks its memory all the time.
fn busy() -> Running {
    let mut program = Program::new("busy.c").start();
    program.work();
    program
}

/// Killed and collected when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- what cannot be traced

#[test]
fn no_such_process() {
    let mut child = Command::new("true").spawn().expect("it can be run");
    wait_for_exit(&mut child);
    Tracer::new().pid(child.id()).run().assert_failed(1, &["no process", &child.id().to_string()]);
}

#[test]
fn a_kernel_thread() {
    Tracer::new().pid(2).run().assert_failed(1, &["kernel thread"]);
}

#[test]
fn its_own_process() {
    // The shell becomes the tracer, under the pid that it has put into the arguments.
    let shell = ["sh", "-c", "exec \"$0\" \"$@\" --pid $$"];
    Tracer::new().through(shell).run().assert_failed(1, &["own"]);
}

#[test]
fn a_thread_that_is_not_a_process() {
    let program = busy();
    let tasks = fs::read_dir(format!("/proc/{}/task", program.pid())).expect("it is running");
    let ids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok());
    let thread = ids.max().expect("it has threads");
    Tracer::new().pid(thread).run().assert_failed(1, &["thread", &program.pid().to_string()]);
}

#[test]
fn a_process_that_has_exited_and_waits_for_its_parent() {
    let zombie = Killed(Command::new("true").spawn().expect("it can be run"));
    wait_until("it exits", || (process_state(zombie.0.id()) == Some('Z')).then_some(()));
    Tracer::new().pid(zombie.0.id()).run().assert_failed(1, &["exited"]);
}

#[test]
fn a_32_bit_process() {
    let program =
        Command::new(compile("i386.S", &["-m32".into()])).spawn().expect("the kernel runs 32-bit programs");
    let program = Killed(program);
    Tracer::new().pid(program.0.id()).run().assert_failed(1, &["32-bit"]);
    assert!(is_running(program.0.id()));
}

#[test]
fn wrong_usage() {
    let program = busy();
    let pid = program.pid();
    let usage = |options: &[&str], words: &[&str]| {
        let finished = Tracer::new().without_report().options(options).pid(pid).run();
        assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
        let message = finished.stderr.join("\n").to_lowercase();
        for word in words {
            assert!(message.contains(word), "the message says {word:?}: {message}");
        }
    };
    usage(&["-o", "report.xyz"], &["report.xyz", ".svg", ".json"]);
    usage(&["-d", "soon"], &["soon"]);
    usage(&["-d", "0s"], &["0s"]);
    usage(&["--max-live", "0"], &["0"]);
    usage(&["--fail-on", "much"], &["much"]);
    usage(&["--no-such-option"], &["--no-such-option"]);
    let without_target = Tracer::new().run();
    assert_eq!(without_target.status.code(), Some(2), "{without_target:#?}");
}

// ---- privilege

/// A tracer that runs as `nobody`, with these capabilities (`+bpf,+perfmon`) or none, from where that user can reach it.
fn as_nobody(capabilities: &str) -> (Tracer, TempDir) {
    as_nobody_through(capabilities, &[])
}

/// As that, started through another command.
fn as_nobody_through(capabilities: &str, command: &[&str]) -> (Tracer, TempDir) {
    let place = TempDir::new().expect("a temporary directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
    let binary = place.path().join("tracer");
    // By another process: what a test that forks just now inherits from this one, open for writing, cannot be executed.
    let copied = Command::new("cp").arg(tracer_binary()).arg(&binary).status().expect("cp runs");
    assert!(copied.success());
    let mut wrapper = vec!["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    if !capabilities.is_empty() {
        wrapper.extend(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
    }
    wrapper.extend(command);
    let report = place.path().join("report.json");
    (Tracer::new().binary(binary).through(wrapper).output(report), place)
}

#[test]
fn without_privilege_the_missing_capabilities_are_named() {
    let program = busy();
    let (tracer, _place) = as_nobody("");
    tracer.pid(program.pid()).run().assert_failed(1, &["cap_bpf", "cap_perfmon"]);
}

#[test]
fn without_one_capability_that_one_is_named() {
    let program = busy();
    let (tracer, _place) = as_nobody("+bpf,+sys_ptrace,+dac_read_search,+checkpoint_restore,+syslog");
    tracer.pid(program.pid()).run().assert_failed(1, &["cap_perfmon"]);
}

/// As in a container whose profile does not know CAP_BPF: it is no capability that is missing.
#[test]
fn a_filter_that_forbids_bpf_is_named() {
    let without_bpf = || [compile("no_bpf.c", &[])];
    let program = busy();
    let finished = Tracer::new().through(without_bpf()).pid(program.pid()).run();
    finished.assert_failed(1, &["bpf(2) is refused", "seccomp"]);
    assert!(!finished.stderr.concat().contains("missing"), "{finished:#?}");
    let doctor = Tracer::command(["doctor"]).through(without_bpf()).run();
    assert_eq!(doctor.status.code(), Some(1), "{doctor:#?}");
    let said = doctor.stdout.iter().find(|line| line.contains("bpf(2)")).expect("it has a line");
    assert!(said.starts_with("MISSING") && said.contains("seccomp profile"), "{said}");
}

/// Whether uprobes can be links of many for a whole process, which ask for no CAP_SYS_ADMIN. Those that are perf events do, on every
/// kernel with the fix of CVE-2025-38466.
fn kernel_links_many_uprobes() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(10))
}

/// Least sets of capabilities. Without CAP_DAC_READ_SEARCH the numbers of tracepoints cannot be read, and CAP_PERFMON alone opens none of them where
/// `perf_event_paranoid` is 3, as on Debian: either way every system call is looked at.
#[test]
fn a_few_capabilities_are_enough() {
    for capabilities in [
        "+bpf,+perfmon,+sys_ptrace",
        "+bpf,+perfmon,+sys_ptrace,+checkpoint_restore,+dac_read_search",
        "+sys_admin,+sys_ptrace",
        "+sys_admin,+bpf,+perfmon,+sys_ptrace",
        "+sys_admin,+sys_ptrace,+dac_read_search",
    ] {
        let mut program = blocks(1000, 10);
        let (tracer, _place) = as_nobody(capabilities);
        let tracer = tracer.pid(program.pid());
        if !capabilities.contains("sys_admin") && !kernel_links_many_uprobes() {
            tracer.run().assert_failed(1, &["cap_sys_admin"]);
            continue;
        }
        let recording = tracer.start();
        program.work();
        recording.interrupt().report().check(&program.expect);
    }
}

// ---- where reports go

#[test]
fn an_output_that_cannot_be_written_is_told_before_the_recording() {
    let program = busy();
    for output in ["/no/such/directory/report.json", "/sys/kernel/report.json"] {
        let finished = Tracer::new().output(output).pid(program.pid()).options(["-d", "200ms"]).run();
        finished.assert_failed(1, &[output]);
        assert!(!finished.stderr.iter().any(|line| line.starts_with("recording ")), "{finished:#?}");
    }
}

#[test]
fn a_full_disk_is_told() {
    let mut program = Program::new("malloc_family.c").start();
    let place = TempDir::new().expect("a temporary directory");
    let directory = place.path().to_str().expect("paths of tests are UTF-8");
    let script = format!("mount -t tmpfs -o size=4k none {directory} && exec \"$0\" \"$@\"");
    let tracer = Tracer::new().through(["unshare", "--mount", "sh", "-c", &script]);
    let recording = tracer.output(place.path().join("report.json")).pid(program.pid()).start();
    program.work();
    recording.interrupt().assert_failed(1, &["report.json", "no space"]);
    program.assert_unharmed();
}

// ---- limits

#[test]
fn a_full_live_table_loses_blocks_and_says_how_many() {
    const MADE: u64 = 50_000;
    const LEAKED: u64 = 200;
    let mut program = blocks(MADE, LEAKED);
    let recording = Tracer::new().options(["--max-live", "1000"]).pid(program.pid()).start();
    program.work();
    let finished = recording.interrupt();
    let report = finished.report();
    report.assert_sums();
    let lost = report.events.lost["live_table_full"];
    assert!(lost > 0, "{:?}", report.events);
    assert_eq!(report.totals.allocated_objects + lost, MADE, "tracked and lost are all that were made");
    // The first blocks were tracked and stay; whatever else was tracked is seen to be freed, what was lost is not.
    assert_eq!(report.totals.outstanding_objects, LEAKED, "{:?}", report.totals);
    assert_eq!(
        report.totals.freed_objects + report.events.unmatched_frees,
        MADE - LEAKED,
        "{:?}",
        report.events
    );
    let verdict = report.verdict.as_ref().expect("there is a verdict");
    assert_eq!(verdict.leaking, None, "where most is lost nothing is told: {verdict:?}");
    assert!(verdict.summary.contains("no verdict"), "{verdict:?}");
    let summary = finished.stdout.join("\n");
    assert!(
        summary.to_lowercase().contains("lost") && summary.contains("--max-live"),
        "it says so and what to do:\n{summary}"
    );
}

// ---- what runs out

/// What is enough to trace, and no exemption from limits.
const ORDINARY: &str = "+bpf,+perfmon,+sys_ptrace";

/// From now on a process may not have more of something. Only its own user may say so without CAP_SYS_RESOURCE.
fn limit(pid: u32, user: &str, what: &str, most: u64) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "prlimit"]);
    command.args(["--pid", &pid.to_string(), &format!("--{what}={most}:{most}")]);
    assert!(command.status().expect("setpriv is installed").success(), "{command:?}");
}

#[test]
fn where_no_thread_can_be_had_it_says_so() {
    let mut program = busy();
    let (tracer, _place) = as_nobody_through(ORDINARY, &["prlimit", "--nproc=1:1"]);
    let finished = tracer.pid(program.pid()).run();
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    // Before it there may be warnings.
    let said = finished.stderr.last().expect("it says why");
    assert!(said.starts_with("tracer: cannot start the thread"), "{finished:#?}");
    program.assert_unharmed();
}

#[test]
fn a_recording_ends_well_where_no_thread_can_be_had_any_more() {
    let mut program = blocks(1000, 10);
    let (tracer, _place) = as_nobody(ORDINARY);
    let recording = tracer.pid(program.pid()).start();
    program.work();
    limit(recording.pid(), NOBODY, "nproc", 0);
    recording.interrupt().report().check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn locked_memory_is_not_needed() {
    let mut program = blocks(1000, 10);
    let (tracer, _place) = as_nobody_through(ORDINARY, &["prlimit", "--memlock=0:0"]);
    let recording = tracer.pid(program.pid()).start();
    program.work();
    recording.interrupt().report().check(&program.expect);
}

/// A limit of descriptors under which a process can have one more. What it opens for a moment only makes the numbers larger.
fn room_for_one_descriptor(pid: u32) -> u64 {
    let second_free = || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is running");
        let open: BTreeSet<u64> =
            open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        (0..).filter(|number| !open.contains(number)).nth(1)
    };
    // Who reads the target's memory has files open meanwhile.
    let (mut number, mut looks) = (second_free(), 0);
    wait_until("no file is opened or closed", || {
        let now = second_free();
        looks = if now == number { looks + 1 } else { 0 };
        number = now;
        (looks == 50).then_some(number).flatten()
    })
}

#[test]
fn an_error_in_the_middle_keeps_what_was_recorded() {
    let mut program = blocks(1000, 10);
    let mut recording = Tracer::new().pid(program.pid()).start();
    program.work();
    // Everything has its name.
    recording.signal(Signal::USR1);
    recording.wait_for_message("snapshot 1, ");
    // A new window takes two maps.
    limit(recording.pid(), "0", "nofile", room_for_one_descriptor(recording.pid()));
    recording.signal(Signal::USR2);
    let finished = recording.wait();
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    let said = finished.stderr.last().expect("it says why");
    assert!(said.starts_with("tracer: the recording ended early: no new window"), "{finished:#?}");
    assert!(finished.stdout.iter().any(|line| line.contains("could not go on")), "{finished:#?}");
    let report = finished.report_despite_status();
    assert_eq!(report.window.end.as_deref(), Some("failed"));
    report.check(&program.expect);
    program.assert_unharmed();
}

// ---- targets that go away or do not answer

#[test]
fn a_target_that_dies_while_we_attach() {
    // The delays only vary where the death falls; every outcome must be clean.
    for delay in [0, 2, 5, 10, 20, 40, 80, 160, 320] {
        let mut program = busy();
        let recording = Tracer::new().pid(program.pid()).spawn();
        thread::sleep(Duration::from_millis(delay));
        send_signal(program.pid(), Signal::KILL);
        program.finish();
        let finished = recording.wait();
        assert_died_well(&finished);
    }
}

/// Either the death came before the window, and the tracer says that, or it ended the window, and there is a report.
#[track_caller]
fn assert_died_well(finished: &Finished) {
    if finished.status.success() {
        let report = finished.report();
        assert_eq!(report.window.end.as_deref(), Some("target_exited"));
        report.assert_sums();
    } else {
        finished.assert_failed(1, &[]);
    }
}

#[test]
fn a_target_that_dies_while_we_record() {
    let mut program = busy();
    let recording = Tracer::new().pid(program.pid()).start();
    send_signal(program.pid(), Signal::KILL);
    program.finish();
    let report = recording.wait().report();
    assert_eq!(report.window.end.as_deref(), Some("target_exited"));
    report.assert_exact();
}

#[test]
fn a_target_that_dies_while_we_finish() {
    for delay in [0, 1, 3, 10, 30] {
        let mut program = Program::new("malloc_family.c").start();
        let recording = Tracer::new().pid(program.pid()).start();
        program.work();
        recording.signal(Signal::INT);
        thread::sleep(Duration::from_millis(delay));
        send_signal(program.pid(), Signal::KILL);
        let report = recording.wait().report();
        report.assert_exact();
        assert_eq!(
            report.totals.outstanding_objects,
            program.expect.leaks.iter().map(|leak| leak.objects).sum::<u64>()
        );
    }
}

#[test]
fn a_stopped_target_is_traced_and_stays_stopped() {
    let mut program = blocks(1000, 10);
    send_signal(program.pid(), Signal::STOP);
    wait_until("it stops", || (process_state(program.pid()) == Some('T')).then_some(()));
    let report = Tracer::new().pid(program.pid()).options(["-d", "200ms"]).run().report();
    assert_eq!(report.totals.allocated_objects, 0);
    assert_eq!(process_state(program.pid()), Some('T'), "it is as it was");

    let recording = Tracer::new().pid(program.pid()).start();
    send_signal(program.pid(), Signal::CONT);
    program.work();
    recording.interrupt().report().check(&program.expect);
    program.assert_unharmed();
}

// ---- tracers that go away

#[test]
fn a_tracer_killed_at_any_moment_harms_nobody() {
    let mut program = busy();
    for delay in [1, 5, 10, 20, 30, 50, 80, 120, 200, 400] {
        let recording = Tracer::new().pid(program.pid()).spawn();
        thread::sleep(Duration::from_millis(delay));
        let finished = recording.kill();
        assert!(!finished.status.success());
        assert!(is_running(program.pid()), "the target goes on after {delay} ms");
    }
    assert_text_is_pristine(program.pid());
    // What the dead tracers left does not disturb the next one.
    Tracer::new().pid(program.pid()).start().interrupt().report().assert_exact();
    program.assert_unharmed();
}

#[test]
fn a_second_interrupt_leaves_at_once() {
    let mut program = busy();
    let recording = Tracer::new().pid(program.pid()).start();
    recording.signal(Signal::INT);
    recording.signal(Signal::INT);
    recording.wait();
    program.assert_unharmed();
}

#[test]
fn a_lost_terminal_keeps_the_recording() {
    let mut program = blocks(1000, 10);
    // Who runs the tests under nohup has the signal ignored, and tracer keeps to that.
    let tracer = Tracer::new().through(["env", "--default-signal=HUP"]);
    let recording = tracer.pid(program.pid()).start();
    program.work();
    recording.signal(Signal::HUP);
    let report = recording.wait().report();
    assert_eq!(report.window.end.as_deref(), Some("interrupted"));
    report.check(&program.expect);
}

#[test]
fn two_tracers_on_one_process_are_both_exact() {
    let mut program = Program::new("malloc_family.c").start();
    let first = Tracer::new().pid(program.pid()).start();
    let second = Tracer::new().beside_another().pid(program.pid()).start();
    program.work();
    second.interrupt().report().check(&program.expect);
    first.interrupt().report().check(&program.expect);
    program.assert_unharmed();
}
