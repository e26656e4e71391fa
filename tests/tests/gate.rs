//! The gate: code of a running process is replaced, so that it samples its allocations itself. What is looked at is whether the process
//! is harmed, whatever it does and whoever is killed meanwhile, and whether what is said of it is right.
//!
//! `TRACER_GATE_ROUNDS` says how often gates open and close (10,000 take an hour or two), `TRACER_FAULTS` how many tracers are killed.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::mpsc,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tracer_tests::{
    Chance, Finished, Freezer, Leak, Program, Recording, Report, Running, Stack, Tracer, Turn, compile,
    faults, gate_rounds, gate_stubs, is_running, modified_text, process_state, read_memory, send_signal,
    wait_until,
};

const GATE: &str = "/memfd:tracer-gate";
const LIBC: &str = "/libc.so.6";

// ---- gates

/// `tracer gate`.
fn gate(pid: u32) -> Tracer {
    Tracer::command(["gate"]).pid(pid)
}

/// Opens a gate, and waits until it is open.
#[track_caller]
fn open(pid: u32) -> Recording {
    opened(gate(pid), pid)
}

#[track_caller]
fn opened(gate: Tracer, pid: u32) -> Recording {
    let mut gate = gate.spawn();
    gate.wait_for_output(&format!("({pid}) is open; Ctrl-C closes it"));
    gate
}

/// Closes it as a user does; the process is as it was.
#[track_caller]
fn close(gate: Recording, pid: u32) {
    let finished = gate.interrupt();
    assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:#?}");
    assert_closed(pid);
}

/// Opens and closes a gate; how long that took to open.
#[track_caller]
fn open_and_close(pid: u32) -> Duration {
    let began = Instant::now();
    let gate = open(pid);
    let took = began.elapsed();
    assert_open(pid);
    close(gate, pid);
    took
}

/// `tracer gate --remove`, which succeeds.
#[track_caller]
fn remove(pid: u32) -> String {
    let finished = gate(pid).options(["--remove"]).run();
    assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:#?}");
    finished.stdout.join("\n")
}

/// A recording by a gate.
fn by_gate(pid: u32) -> Tracer {
    Tracer::new().options(["--gate"]).pid(pid)
}

/// A mapping of a process: where it is, and what of.
fn mappings(pid: u32) -> Vec<(u64, u64, u64, String)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let number = |text: &str| u64::from_str_radix(text, 16).expect("an address");
    let mapping = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = number(fields.nth(1)?);
        Some((number(start), number(end), offset, fields.nth(2).unwrap_or_default().to_owned()))
    };
    maps.lines().filter_map(mapping).collect()
}

/// Of which file the code of `malloc` is, that of the library or program of this name.
#[track_caller]
fn file_at_malloc(pid: u32, library: &str) -> String {
    let mappings = mappings(pid);
    let base = mappings.iter().find(|(_, _, offset, file)| *offset == 0 && file.ends_with(library));
    let (base, _, _, file) = base.unwrap_or_else(|| panic!("it has {library}: {mappings:#x?}"));
    // Programs that are linked statically have no dynamic symbols.
    let symbols = [Some("-D"), None].map(|which| {
        let symbols = Command::new("nm").args(which).arg(file).output().expect("binutils are installed");
        String::from_utf8(symbols.stdout).expect("symbols are text")
    });
    let is_malloc =
        |line: &&str| line.split(' ').nth(2).and_then(|name| name.split('@').next()) == Some("malloc");
    let malloc = symbols.iter().flat_map(|symbols| symbols.lines()).find(is_malloc);
    let at = u64::from_str_radix(&malloc.expect("it defines malloc")[..16], 16).expect("an address");
    let at = if at < *base { base + at } else { at };
    let there = mappings.iter().find(|(start, end, ..)| (*start..*end).contains(&at));
    there.map(|(.., file)| file.clone()).expect("its code is mapped")
}

fn is_open(pid: u32, library: &str) -> bool {
    let file = file_at_malloc(pid, library);
    assert!(file.starts_with(GATE) || file.ends_with(library), "{file}");
    file.starts_with(GATE)
}

#[track_caller]
fn assert_open(pid: u32) {
    assert!(is_open(pid, LIBC), "{:#x?}", mappings(pid));
}

/// The code of the C library is that of its file again, and at its place. Nobody holds the process.
#[track_caller]
fn assert_closed(pid: u32) {
    assert!(!is_open(pid, LIBC), "{:#x?}", mappings(pid));
    assert_text_is_as_in_files(pid);
    assert_free(pid);
}

#[track_caller]
fn assert_text_is_as_in_files(pid: u32) {
    let modified = modified_text(pid);
    let shown: Vec<_> =
        modified.iter().take(8).map(|&at| (at, tracer_tests::read_memory(pid, at, 8))).collect();
    assert!(
        modified.is_empty(),
        "{} bytes of code are not as in the files: {shown:x?} of {:#x?}",
        modified.len(),
        mappings(pid)
    );
}

/// No thread is traced, or stands still.
#[track_caller]
fn assert_free(pid: u32) {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    for thread in threads {
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!(field("TracerPid:"), Some("0"), "{status}");
        assert!(!field("State:").is_some_and(|state| state.starts_with(['t', 'T'])), "{status}");
    }
}

/// A line says why not, and the process is untouched.
#[track_caller]
fn assert_refused(tracer: Tracer, words: &[&str]) -> Finished {
    let finished = tracer.run();
    finished.assert_failed(1, words);
    finished
}

// ---- programs

/// Threads that calculate; words say what else they do.
fn threads(words: &[&str]) -> Running {
    let program = words.iter().fold(Program::new("gated.c"), |program, word| program.argument(*word));
    let mut running = program.start();
    running.work();
    running
}

fn lone(mode: &str) -> Running {
    let mut program = Program::new("gated_lone.c").argument(mode).start();
    program.work();
    program
}

#[track_caller]
fn assert_lone_alive(program: &mut Running) {
    send_signal(program.pid(), Signal::USR1);
    program.wait_for_line("alive");
}

#[track_caller]
fn end_lone(mut program: Running) {
    send_signal(program.pid(), Signal::TERM);
    program.assert_unharmed();
}

// ---- what is recorded

/// Five standard errors, of estimates by one sample every `mean` bytes.
fn allowed(bytes: f64, mean: u64) -> f64 {
    5.0 * (bytes * mean as f64).sqrt()
}

fn sum(report: &Report, function: &str, figure: fn(&Stack) -> u64) -> u64 {
    report.called_by(function).into_iter().map(figure).sum()
}

#[track_caller]
fn assert_near(what: &str, found: u64, truth: u64, mean: u64) {
    let off = found as f64 - truth as f64;
    let allowed = allowed(truth as f64, mean);
    println!("{what}: {found} of {truth}, {:+.2} standard errors", 5.0 * off / allowed);
    assert!(off.abs() <= allowed, "{what}: {found} of {truth}");
}

#[track_caller]
fn assert_sampled_within(finished: &Finished) {
    let said = finished.stderr.join("\n");
    assert!(said.contains("sampled within"), "{said}");
}

#[test]
fn what_eight_threads_allocate_is_estimated_and_their_leak_is_found() {
    const MEAN: u64 = 20 << 10;
    let pairs = (gate_rounds(20) * 5000).clamp(300_000, 12_000_000);
    let mut program = Program::new("gated_pairs.c").argument(pairs.to_string()).start();
    let pid = program.pid();
    let recording = by_gate(pid).options(["--sample", "20KiB", "--top", "100"]).start();
    assert_open(pid);
    program.go();
    let truth = program.wait_for_line_after("allocated ");
    program.wait_for_line("done");
    let finished = recording.interrupt();
    assert_closed(pid);
    assert_sampled_within(&finished);
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    assert_eq!(report.settings["sample_bytes"], MEAN);
    let truth: BTreeMap<String, [u64; 2]> = serde_json::from_str(&truth).expect("the program writes JSON");
    for function in ["make_malloc", "make_calloc", "make_realloc", "make_aligned"] {
        let [_, bytes] = truth[function];
        assert_near(function, sum(&report, function, |stack| stack.allocated_bytes), bytes, MEAN);
        // All were freed, and each release was that of a block that was known.
        assert_eq!(sum(&report, function, |stack| stack.outstanding_objects), 0, "{:#?}", report.outlines());
    }
    assert_eq!(report.events.unmatched_frees, 0, "{:?}", report.events);
    let [Leak { bytes, .. }] = program.expect.leaks[..] else { panic!("one leak") };
    assert_near("leak_blocks", sum(&report, "leak_blocks", |stack| stack.outstanding_bytes), bytes, MEAN);
    // Nothing but the leak is left.
    let is_left = |stack: &&Stack| {
        stack.kind == "native" && stack.outstanding_bytes > 0 && !stack.called_by("leak_blocks")
    };
    let left: Vec<_> = report.stacks.iter().filter(is_left).map(Stack::outline).collect();
    assert!(left.is_empty(), "{left:#?}");
    program.assert_unharmed();
}

#[test]
fn a_gate_that_opens_under_load_accounts_for_all_it_saw() {
    let mut program = threads(&["signals", "births"]);
    let pid = program.pid();
    for _ in 0..3 {
        let recording = by_gate(pid).options(["--sample", "4KiB", "--top", "100"]).start();
        assert_open(pid);
        program.assert_alive();
        let finished = recording.interrupt();
        assert_closed(pid);
        assert_sampled_within(&finished);
        let report = finished.report();
        report.assert_nothing_lost_but(&[]);
        report.assert_balanced();
        assert!(
            sum(&report, "calculate", |stack| stack.allocated_objects) > 1000,
            "{:#?}",
            report.outlines()
        );
        program.assert_alive();
    }
    let recording = by_gate(pid).options(["--sample", "4KiB", "--top", "100"]).start();
    program.assert_alive();
    program.say("quiet");
    program.wait_for_line("quiet");
    let report = recording.interrupt().report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    assert_eq!(sum(&report, "calculate", |stack| stack.outstanding_objects), 0, "{:#?}", report.outlines());
    // Blocks that were sampled before the window opened, as the probes went in: no more than there were at a time.
    const HELD: u64 = 8 * 32 + 2 * 4 * 32;
    assert!(report.events.unmatched_frees <= HELD, "{:?}", report.events);
    program.assert_unharmed();
}

// ---- opening and closing

#[track_caller]
fn open_and_close_often(program: &mut Running, times: u64) {
    let pid = program.pid();
    let mut took = Vec::new();
    for time in 1..=times {
        took.push(open_and_close(pid));
        program.assert_alive();
        if time % 500 == 0 {
            println!("{time} of {times} gates");
        }
    }
    took.sort();
    println!(
        "{times} gates, each open after {:?} (median), {:?} (longest)",
        took[took.len() / 2],
        took[took.len() - 1]
    );
}

#[test]
fn gates_open_and_close_beneath_threads_signals_and_births() {
    let mut program = threads(&["signals", "births"]);
    open_and_close_often(&mut program, gate_rounds(20));
    program.assert_unharmed();
}

#[test]
fn gates_open_and_close_beneath_forks_and_spawns() {
    let mut program = threads(&["begets"]);
    open_and_close_often(&mut program, gate_rounds(20) / 3 + 1);
    program.assert_unharmed();
}

#[test]
fn a_gate_is_used_again_and_the_mappings_do_not_grow() {
    let mut program = threads(&[]);
    let pid = program.pid();
    let of_gate = || mappings(pid).iter().filter(|(.., file)| file.starts_with(GATE)).count();
    open_and_close(pid);
    let once = of_gate();
    for _ in 0..3 {
        open_and_close(pid);
        assert_eq!(of_gate(), once, "{:#x?}", mappings(pid));
    }
    for _ in 0..3 {
        let recording = by_gate(pid).options(["--sample", "1KiB"]).start();
        program.assert_alive();
        let report = recording.interrupt().report();
        report.assert_nothing_lost_but(&[]);
        assert!(report.totals.allocated_objects > 0, "{:?}", report.totals);
        program.assert_alive();
    }
    assert_eq!(of_gate(), once, "{:#x?}", mappings(pid));
    program.assert_unharmed();
}

#[test]
fn what_is_recorded_after_a_gate_is_recorded_by_probes() {
    let mut program = threads(&[]);
    let pid = program.pid();
    open_and_close(pid);
    // The sampler is still mapped, and nobody calls it.
    for options in [&[][..], &["--sample", "4KiB"]] {
        let recording = Tracer::new().options(options).pid(pid).start();
        program.assert_alive();
        let finished = recording.interrupt();
        let report = finished.report();
        report.assert_nothing_lost_but(&[]);
        assert!(!finished.stderr.join("\n").contains("sampled within"), "{:?}", finished.stderr);
        let made = sum(&report, "calculate", |stack| stack.allocated_objects);
        assert!(made > 100, "{made}: {:#?}", report.outlines());
    }
    program.assert_unharmed();
}

#[test]
fn a_child_that_keeps_an_open_gate_is_seen_by_its_probes_among_others() {
    // No other test has a program of this name.
    let directory = tempfile::tempdir().expect("it can be made");
    let executable = directory.path().join("gated-family");
    std::os::unix::fs::symlink(compile("gated.c", &[]), &executable).expect("it can be made");
    let mut program = Program::new("gated.c").start_as(&executable);
    program.work();
    let pid = program.pid();
    let opened_gate = opened(gate(pid).beside_another(), pid);
    program.say("part");
    let child: u32 = program.wait_for_line_after("child ").parse().expect("a pid");
    let finished = opened_gate.interrupt();
    assert!(finished.status.success() && is_open(child, LIBC) && !is_open(pid, LIBC), "{finished:#?}");
    let mut record = |options: &[&str]| {
        let recording = Tracer::new()
            .options(["--name", "gated-family", "--top", "100"])
            .options(options)
            .alone()
            .start();
        program.assert_alive();
        program.say("child");
        program.wait_for_line("child alive");
        recording.interrupt()
    };
    let finished = record(&[]);
    let said = finished.stderr.join("\n");
    let warning =
        format!("blocks are not seen without --sample; `tracer gate --remove --pid {child}` closes it");
    assert!(said.contains(&warning) && !said.contains(&format!("--pid {pid}`")), "{said}");
    let finished = record(&["--sample", "4KiB"]);
    assert!(!finished.stderr.join("\n").contains("not seen"), "{:?}", finished.stderr);
    let report = finished.report();
    for process in [pid, child] {
        let of_process = report.called_by("calculate").into_iter().filter(|stack| stack.pid == Some(process));
        let made: u64 = of_process.map(|stack| stack.allocated_objects).sum();
        assert!(made > 100, "{process} of {pid} and {child}: {made}: {:#?}", report.outlines());
    }
    program.say("leave");
    program.wait_for_line("child left");
    program.assert_unharmed();
}

// ---- calls that wait

const KINDS: &[(&str, i64)] = &[
    ("epoll_wait", libc::SYS_epoll_wait),
    ("epoll_pwait", libc::SYS_epoll_pwait),
    ("poll", libc::SYS_poll),
    ("ppoll", libc::SYS_ppoll),
    ("select", libc::SYS_select),
    ("pselect", libc::SYS_pselect6),
    ("nanosleep", libc::SYS_nanosleep),
    ("clock_nanosleep", libc::SYS_clock_nanosleep),
    ("futex", libc::SYS_futex),
    ("futex_timed", libc::SYS_futex),
    ("read", libc::SYS_read),
    ("write", libc::SYS_write),
    ("accept", libc::SYS_accept),
    ("semop", libc::SYS_semop),
    ("semtimedop", libc::SYS_semtimedop),
    ("sigtimedwait", libc::SYS_rt_sigtimedwait),
    ("recv", libc::SYS_recvfrom),
    ("recv_timed", libc::SYS_recvfrom),
    ("read_timed", libc::SYS_read),
    ("recvmsg_timed", libc::SYS_recvmsg),
    ("sigsuspend", libc::SYS_rt_sigsuspend),
    ("wait4", libc::SYS_wait4),
    ("waitid", libc::SYS_waitid),
    ("msgrcv", libc::SYS_msgrcv),
    ("io_getevents", libc::SYS_io_getevents),
    ("pause", libc::SYS_pause),
];

/// The system call that the first thread waits in.
fn call_of(pid: u32) -> Option<i64> {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    // `futex_timed` and others that are restarted may be in restart_syscall.
    call.split(' ').next()?.parse().ok()
}

/// The thread that a call waits in is the only one there is to be led aside.
#[test]
fn a_call_that_waits_does_not_see_a_gate() {
    let mut unseen = Vec::new();
    for &(kind, number) in KINDS {
        let mut program = Program::new("gated_calls.c").argument("one").argument(kind).start();
        let pid = program.pid();
        program.go();
        wait_until(kind, || (call_of(pid) == Some(number) && process_state(pid) == Some('S')).then_some(()));
        open_and_close(pid);
        // It waits as before; then its own signal interrupts it as ever.
        let again = wait_until(kind, || {
            call_of(pid).filter(|_| matches!(process_state(pid), None | Some('S' | 'Z')))
        });
        if again != number && again != libc::SYS_restart_syscall {
            unseen.push(format!("{kind}: {again}"));
            continue;
        }
        send_signal(pid, Signal::USR1);
        program.wait_for_line("interrupted");
        program.assert_unharmed();
    }
    assert!(unseen.is_empty(), "these calls returned: {unseen:?}");
}

#[test]
fn threads_that_wait_in_calls_of_all_kinds_are_not_interrupted() {
    let mut program = Program::new("gated_calls.c").argument("all").start();
    program.work();
    for _ in 0..gate_rounds(20).div_ceil(3) {
        open_and_close(program.pid());
    }
    program.go();
    program.wait_for_line("interrupted");
    program.assert_unharmed();
}

#[test]
fn calls_with_a_limit_of_time_keep_it() {
    let mut program = Program::new("gated_calls.c").argument("timed").start();
    program.work();
    for _ in 0..gate_rounds(20).div_ceil(3) {
        open_and_close(program.pid());
    }
    send_signal(program.pid(), Signal::USR1);
    program.wait_for_line("right");
    program.assert_unharmed();
}

#[test]
fn signals_interrupt_calls_as_ever() {
    let mut program = Program::new("gated_calls.c").argument("signals").start();
    program.work();
    for _ in 0..gate_rounds(20).div_ceil(3) {
        open_and_close(program.pid());
    }
    send_signal(program.pid(), Signal::USR1);
    program.wait_for_line("right");
    program.assert_unharmed();
}

// ---- odd processes

#[track_caller]
fn check_lone(mode: &str) {
    let mut program = lone(mode);
    let pid = program.pid();
    let mut took: Vec<_> = (0..gate_rounds(20).div_ceil(4))
        .map(|_| {
            let took = open_and_close(pid);
            assert_lone_alive(&mut program);
            took
        })
        .collect();
    took.sort();
    println!("{mode}: open after {:?} (median)", took[took.len() / 2]);
    let recording = by_gate(pid).options(["--sample", "4KiB"]).start();
    assert_open(pid);
    assert_lone_alive(&mut program);
    let finished = recording.interrupt();
    assert_closed(pid);
    finished.report().assert_nothing_lost_but(&[]);
    assert_lone_alive(&mut program);
    end_lone(program);
}

#[test]
fn a_single_thread_that_waits() {
    check_lone("pause");
}

/// As Java with a heap of 40 GiB.
#[test]
fn a_process_that_has_reserved_all_addresses_below_its_allocator() {
    check_lone("reserves");
}

#[test]
fn code_in_several_mappings_is_refused() {
    let mut program = lone("splits");
    let pid = program.pid();
    for _ in 0..3 {
        assert_refused(gate(pid), &["several mappings"]);
        assert_closed(pid);
        assert_lone_alive(&mut program);
    }
    assert_eq!(mappings(pid).iter().filter(|(.., file)| file.starts_with(GATE)).count(), 0);
    end_lone(program);
}

#[test]
fn a_call_that_has_done_a_part_is_left_alone() {
    check_lone("pours");
}

#[test]
fn a_message_queue_whose_notification_would_be_lost_is_refused() {
    let mut program = lone("queue");
    assert_refused(gate(program.pid()), &["message queue", "mq_notify"]);
    assert_lone_alive(&mut program);
    end_lone(program);
}

#[test]
fn code_that_is_locked_in_memory_is_refused() {
    let mut program = lone("locks_all");
    let pid = program.pid();
    let locked = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        status.lines().find(|line| line.starts_with("VmLck:")).expect("the kernel says it").to_owned()
    };
    let of_gate = || mappings(pid).iter().filter(|(.., file)| file.starts_with(GATE)).count();
    for _ in 0..2 {
        let before = locked();
        assert_refused(gate(pid), &["locked in memory"]);
        assert_eq!((locked(), of_gate()), (before, 0));
        assert_lone_alive(&mut program);
    }
    end_lone(program);
}

/// Which of them the program calls is not looked for.
#[test]
fn several_allocators_are_refused() {
    let mut twice = lone("twice");
    assert_refused(gate(twice.pid()), &["twice (dlmopen)"]);
    assert_lone_alive(&mut twice);
    end_lone(twice);

    let library = compile("arena_allocator.c", &["-shared".into(), "-fPIC".into()]);
    let mut program = Program::new("plugin_host.c").argument(library.display().to_string()).start();
    assert_refused(gate(program.pid()), &["arena_allocator", "an allocator of its own beside"]);
    program.work();
    program.assert_unharmed();

    let library = compile("arena_allocator.c", &["-shared", "-fPIC", "-DCALLS_NOBODY"].map(String::from));
    let mut program = Program::new("plugin_host.c").argument(library.display().to_string()).start();
    assert_refused(gate(program.pid()), &["arena_allocator", "calls nothing outside of its file"]);
    program.work();
    program.assert_unharmed();

    let mut program = Program::new("arena_new.cpp").start();
    assert_refused(gate(program.pid()), &["operator new", "does not call its malloc"]);
    program.work();
    program.assert_unharmed();
}

/// It ends what it does for the program when it is interrupted.
#[test]
fn a_thread_of_the_kernel_that_waits_is_left_alone() {
    check_lone("io_uring");
}

#[test]
fn a_thread_that_executes_32_bit_code() {
    check_lone("narrow");
}

#[test]
fn a_single_thread_without_calls() {
    check_lone("busy");
}

#[test]
fn a_single_thread_that_allocates() {
    check_lone("allocates");
}

/// The kernel shows nothing of such a process but its other threads.
#[test]
fn a_process_whose_first_thread_has_ended_is_refused() {
    let mut program = lone("dead");
    let pid = program.pid();
    wait_until("its first thread ends", || (process_state(pid) == Some('Z')).then_some(()));
    assert_refused(gate(pid), &["exited"]);
    assert_refused(by_gate(pid).options(["-d", "100ms"]), &["exited"]);
    assert_free(pid);
    assert_lone_alive(&mut program);
    end_lone(program);
}

#[test]
fn a_hundred_threads_that_sleep() {
    check_lone("crowd");
}

#[test]
fn a_thread_whose_signals_lead_it_away() {
    check_lone("jumps");
}

#[test]
fn restartable_sequences_are_begun_anew() {
    let mut program = lone("sequences");
    for _ in 0..gate_rounds(20).div_ceil(4) {
        open_and_close(program.pid());
    }
    send_signal(program.pid(), Signal::TERM);
    program.wait_for_line("all counted");
    program.assert_unharmed();
}

// ---- children

#[test]
fn a_child_takes_the_open_gate_along_and_it_stays_harmless() {
    let mut program = threads(&[]);
    let pid = program.pid();
    let recording = by_gate(pid).options(["--sample", "4KiB"]).start();
    program.say("part");
    let child: u32 = program.wait_for_line_after("child ").parse().expect("a pid");
    let ask = |program: &mut Running| {
        program.say("child");
        program.wait_for_line("child alive");
    };
    ask(&mut program);
    assert!(is_open(child, LIBC));
    recording.interrupt().report().assert_nothing_lost_but(&[]);
    assert_closed(pid);
    ask(&mut program);
    assert!(is_open(child, LIBC));
    // What the gate of its parent goes through does not change it, nor the other way round.
    open_and_close(pid);
    ask(&mut program);
    // It is told from one that was not left, and can be closed.
    assert_refused(Tracer::new().pid(child).options(["-d", "100ms"]), &["tracer gate --remove"]);
    // It is recorded by the probes of the gate.
    let recording = Tracer::new().pid(child).options(["--sample", "4KiB"]).start();
    ask(&mut program);
    let report = recording.interrupt().report();
    assert!(sum(&report, "calculate", |stack| stack.allocated_objects) > 0, "{:#?}", report.outlines());
    let removed = remove(child);
    assert!(removed.starts_with("closed the gate of"), "{removed}");
    assert_closed(child);
    ask(&mut program);
    open_and_close(child);
    ask(&mut program);
    program.say("leave");
    program.wait_for_line("child left");
    program.assert_alive();
    program.assert_unharmed();
}

#[test]
fn a_child_lives_longer_than_the_tracer_that_was_killed() {
    let mut program = threads(&[]);
    let recording = by_gate(program.pid()).start();
    program.say("part");
    let child: u32 = program.wait_for_line_after("child ").parse().expect("a pid");
    recording.kill();
    wait_until_closed(program.pid());
    program.say("child");
    program.wait_for_line("child alive");
    // It can be recorded by a gate of its own, which takes the place of the other one.
    let recording = by_gate(child).options(["--sample", "4KiB"]).start();
    program.say("child");
    program.wait_for_line("child alive");
    let finished = recording.interrupt();
    assert_sampled_within(&finished);
    let report = finished.report();
    assert!(sum(&report, "calculate", |stack| stack.allocated_objects) > 0, "{:#?}", report.outlines());
    assert_closed(child);
    program.say("leave");
    program.wait_for_line("child left");
    program.assert_unharmed();
}

#[test]
fn a_program_that_is_executed_has_no_gate() {
    let mut program = threads(&[]);
    let pid = program.pid();
    let recording = by_gate(pid).start();
    let keeper = keeper_of(recording.pid()).expect("it has a keeper");
    program.say("exec");
    program.work();
    let finished = recording.wait();
    let report = finished.report();
    assert_eq!(report.window.end.as_deref(), Some("target_exec"));
    assert!(!is_running(keeper), "the keeper ends");
    assert_closed(pid);
    program.assert_alive();

    let gate = open(pid);
    program.say("exec");
    program.work();
    close(gate, pid);
    program.assert_alive();
    open_and_close(pid);
    program.assert_unharmed();
}

#[test]
fn a_process_that_ends_ends_the_recording_and_the_gate() {
    let mut program = threads(&[]);
    let recording = by_gate(program.pid()).start();
    program.assert_unharmed();
    let report = recording.wait().report();
    assert_eq!(report.window.end.as_deref(), Some("target_exited"));

    let mut program = threads(&[]);
    let gate = open(program.pid());
    program.assert_unharmed();
    let finished = gate.wait();
    assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:#?}");
}

// ---- tracers that are killed

/// The process that keeps the gate for a tracer.
fn keeper_of(tracer: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{tracer}/task")).ok()?.flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect::<Vec<_>>())
        .collect();
    children.into_iter().find(|child| {
        fs::read(format!("/proc/{child}/cmdline"))
            .is_ok_and(|words| String::from_utf8_lossy(&words).contains("--until-input-ends"))
    })
}

#[track_caller]
fn wait_until_closed(pid: u32) {
    wait_until("the gate is closed", || (!is_open(pid, LIBC)).then_some(()));
}

#[test]
fn the_keeper_closes_the_gate_of_a_tracer_that_was_killed() {
    let mut program = threads(&["signals"]);
    let pid = program.pid();
    let recording = by_gate(pid).start();
    let keeper = keeper_of(recording.pid()).expect("it has a keeper");
    program.assert_alive();
    let began = Instant::now();
    recording.signal(Signal::KILL);
    wait_until_closed(pid);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    wait_until("the keeper ends", || (!is_running(keeper)).then_some(()));
    recording.kill();
    assert_closed(pid);
    program.assert_alive();
    assert_eq!(remove(pid), format!("gated ({pid}) has no open gate").replace("gated", &comm(pid)));
    program.assert_unharmed();
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).expect("it runs").trim_end().to_owned()
}

#[test]
fn a_tracer_whose_keeper_was_killed_closes_the_gate_itself() {
    let mut program = threads(&["signals"]);
    let pid = program.pid();
    let recording = by_gate(pid).options(["--sample", "4KiB"]).start();
    send_signal(keeper_of(recording.pid()).expect("it has a keeper"), Signal::KILL);
    program.assert_alive();
    let report = recording.interrupt().report();
    report.assert_nothing_lost_but(&[]);
    assert!(sum(&report, "calculate", |stack| stack.allocated_objects) > 0, "{:#?}", report.outlines());
    assert_closed(pid);
    program.assert_alive();
    program.assert_unharmed();
}

#[track_caller]
fn kill_with_keeper(recording: Recording) {
    let keeper = keeper_of(recording.pid()).expect("it has a keeper");
    send_signal(keeper, Signal::KILL);
    recording.kill();
    wait_until("the keeper ends", || (!is_running(keeper)).then_some(()));
}

/// Kills both; the gate stays open.
#[track_caller]
fn leave_open(program: &Running) {
    kill_with_keeper(by_gate(program.pid()).start());
    assert_open(program.pid());
    assert_free(program.pid());
}

#[test]
fn a_gate_that_was_left_is_harmless_and_is_closed_or_taken_over() {
    let mut program = threads(&["signals", "births"]);
    let pid = program.pid();
    leave_open(&program);
    program.assert_alive();
    assert_refused(
        Tracer::new().options(["-d", "100ms"]).pid(pid),
        &["tracer gate --remove", &pid.to_string()],
    );
    let finished = Tracer::new().options(["-d", "300ms", "--sample", "4KiB"]).pid(pid).run();
    assert_sampled_within(&finished);
    finished.report().assert_nothing_lost_but(&[]);
    assert_open(pid);
    let removed = remove(pid);
    assert!(removed.starts_with("closed the gate of ") && removed.contains(&format!("({pid})")), "{removed}");
    assert_closed(pid);
    program.assert_alive();
    Tracer::new().options(["-d", "100ms"]).pid(pid).run().report().assert_nothing_lost_but(&[]);

    leave_open(&program);
    let finished = by_gate(pid).options(["-d", "300ms"]).run();
    assert_sampled_within(&finished);
    finished.report().assert_nothing_lost_but(&[]);
    assert_closed(pid);
    program.assert_alive();

    leave_open(&program);
    open_and_close(pid);
    program.assert_alive();
    program.assert_unharmed();
}

/// Whether a tracer of this process runs, or is just being started.
fn has_tracer(pid: u32) -> bool {
    let words = format!("--pid\0{pid}\0");
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let mut lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).ends_with(&words))
}

/// Closes what was left by tracers that were killed, of which a keeper that was just being started may do its work and end.
#[track_caller]
fn remove_of_killed(pid: u32) {
    wait_until("no tracer is left", || (!has_tracer(pid)).then_some(()));
    // The kernel may not have taken everything from them yet.
    wait_until("nobody has the gate", || {
        let removed = gate(pid).options(["--remove"]).beside_another().run();
        let is_had = removed.stderr.iter().any(|line| line.contains("another tracer has a gate"));
        assert!(is_had || removed.status.success(), "{removed:#?}");
        (!is_had).then_some(())
    });
    assert_closed(pid);
}

/// Whether a tracer is about to have calls made.
fn has_stub(pid: u32) -> bool {
    !gate_stubs(pid, b"tracer gate stub").is_empty()
}

#[test]
fn what_a_killed_tracer_has_begun_is_waited_for() {
    faults_of_processes().for_each(kill_in_the_middle);
}

fn kill_in_the_middle(faults: u64) {
    let mut program = threads(&["signals"]);
    let pid = program.pid();
    let mut caught = 0;
    for _ in 0..faults {
        let gate = gate(pid).spawn();
        // It is there for a millisecond, and can be missed.
        let deadline = Instant::now() + Duration::from_secs(1);
        while !has_stub(pid) && Instant::now() < deadline {}
        caught += u32::from(has_stub(pid));
        gate.signal(Signal::KILL);
        wait_until("tracer ends", || (!is_running(gate.pid())).then_some(()));
        remove_of_killed(pid);
        assert!(!has_stub(pid), "its code is taken away");
    }
    assert!(caught > 0, "it was never killed in the middle");
    program.assert_alive();
    program.assert_unharmed();
}

/// A thread that comes back from a handler executes again what the killed tracer has led it to.
#[test]
fn a_signal_that_comes_while_a_thread_is_led_aside_and_its_tracer_is_killed() {
    let mut program = lone("handles");
    let pid = program.pid();
    let mut caught = 0;
    let deadline = Instant::now() + Duration::from_secs(150);
    while caught < 2 {
        assert!(Instant::now() < deadline, "tracer was stopped in the middle {caught} times");
        let gate = gate(pid).spawn();
        let soon = Instant::now() + Duration::from_secs(1);
        while !has_stub(pid) && Instant::now() < soon {}
        gate.signal(Signal::STOP);
        // As long as tracer is stopped it stays as it is.
        sleep(Duration::from_millis(5));
        let is_aside = process_state(pid) == Some('t') && has_stub(pid);
        if is_aside {
            send_signal(pid, Signal::USR2);
        }
        gate.signal(Signal::KILL);
        if is_aside {
            program.wait_for_line("handling");
            caught += 1;
        }
        remove_of_killed(pid);
        if is_aside {
            program.wait_for_line("handled");
        }
        assert_lone_alive(&mut program);
    }
    open_and_close(pid);
    end_lone(program);
}

#[test]
fn whoever_is_killed_at_any_moment_the_process_goes_on() {
    let mut chance = Chance::seeded();
    for faults in faults_of_processes() {
        kill_at_random(&mut chance, faults);
    }
}

/// So many tracers are killed, of one process after the other: what each leaves there takes room.
fn faults_of_processes() -> impl Iterator<Item = u64> {
    const OF_ONE: u64 = 20;
    let all = faults(15);
    (0..all.div_ceil(OF_ONE)).map(move |process| OF_ONE.min(all - process * OF_ONE))
}

fn kill_at_random(chance: &mut Chance, faults: u64) {
    let mut program = threads(&["signals", "births"]);
    let pid = program.pid();
    for fault in 1..=faults {
        let recording = by_gate(pid).options(["-d", "5s"]).spawn();
        let moment = chance.moment(Duration::from_millis(400));
        sleep(moment);
        let keeper = keeper_of(recording.pid());
        let who = chance.pick(&["tracer", "keeper", "both"]);
        println!("fault {fault}: {who} after {moment:?}");
        if let Some(keeper) = keeper.filter(|_| who != "tracer") {
            send_signal(keeper, Signal::KILL);
        }
        if who == "keeper" {
            // It may not yet have begun to listen to it.
            recording.signal(Signal::INT);
        } else {
            recording.signal(Signal::KILL);
        }
        wait_until("tracer ends", || (!is_running(recording.pid())).then_some(()));
        if let Some(keeper) = keeper {
            wait_until("its keeper ends", || (!is_running(keeper)).then_some(()));
        }
        drop(recording);
        remove_of_killed(pid);
        program.assert_alive();
    }
    open_and_close(pid);
    let finished = by_gate(pid).options(["-d", "200ms", "--sample", "64KiB"]).run();
    assert_sampled_within(&finished);
    finished.report().assert_nothing_lost_but(&[]);
    program.assert_alive();
    program.assert_unharmed();
}

// ---- what is refused

/// Another thread of this process traces the target until this is dropped.
struct Traced {
    leave: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Traced {
    #[track_caller]
    fn seize(pid: u32) -> Self {
        let (leave, left) = mpsc::channel::<()>();
        let (seized, is_seized) = mpsc::channel();
        let thread = thread::spawn(move || {
            let pid = libc::pid_t::try_from(pid).expect("pids are small");
            // SAFETY: the request reads and writes no memory.
            let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
            seized.send(result).expect("it is waited for");
            // The kernel lets go of the target when this thread ends.
            let _ = left.recv();
        });
        assert_eq!(is_seized.recv(), Ok(0), "it can be seized");
        Self { leave: Some(leave), thread: Some(thread) }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.leave = None;
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn a_process_that_is_traced_is_refused() {
    let mut program = threads(&[]);
    let pid = program.pid();
    let traced = Traced::seize(pid);
    assert_refused(gate(pid), &["traces it"]);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(!status.contains("TracerPid:\t0\n"), "whoever traces it still does: {status}");
    assert_refused(by_gate(pid).options(["-d", "100ms"]), &["traces it"]);
    drop(traced);
    assert_closed(pid);
    program.assert_alive();
    open_and_close(pid);
    program.assert_unharmed();
}

#[test]
fn a_process_of_which_another_thread_is_traced_is_refused_or_led_aside_by_another_one() {
    let mut program = threads(&[]);
    let pid = program.pid();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let other = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).find(|&id: &u32| id != pid);
    let traced = Traced::seize(other.expect("it has threads"));
    let mut gate = gate(pid).spawn();
    wait_until("it is open or refused", || (is_open(pid, LIBC) || !is_running(gate.pid())).then_some(()));
    if is_running(gate.pid()) {
        gate.wait_for_output("is open");
        gate.interrupt();
    } else {
        gate.wait().assert_failed(1, &["traces it"]);
    }
    assert!(!is_open(pid, LIBC));
    drop(traced);
    assert_closed(pid);
    program.assert_alive();
    program.assert_unharmed();
}

#[test]
fn a_process_that_is_frozen_is_refused() {
    for freezer in Freezer::of_each_kind() {
        let mut program = threads(&[]);
        // It thaws before the program is waited for, whatever fails here.
        let freezer = freezer;
        let pid = program.pid();
        freezer.take_in(pid);
        freezer.freeze();
        assert_refused(gate(pid), &["frozen"]);
        let gate = {
            freezer.thaw();
            program.assert_alive();
            open(pid)
        };
        // One that is frozen while the gate is open cannot close it then, but afterwards.
        freezer.freeze();
        gate.interrupt().assert_failed(1, &["frozen", "gate --remove"]);
        freezer.thaw();
        program.assert_alive();
        assert!(remove(pid).starts_with("closed"));
        assert_closed(pid);
        program.assert_alive();
        program.assert_unharmed();
    }
}

#[test]
fn a_process_that_is_stopped_is_refused() {
    let mut program = threads(&[]);
    let pid = program.pid();
    send_signal(pid, Signal::STOP);
    wait_until("it stops", || (process_state(pid) == Some('T')).then_some(()));
    assert_refused(gate(pid), &["stopped", "kill -CONT"]);
    assert_eq!(process_state(pid), Some('T'), "it stays so");
    send_signal(pid, Signal::CONT);
    program.assert_alive();
    open_and_close(pid);
    // One that is stopped while the gate is open cannot close it then, but afterwards.
    let gate = open(pid);
    send_signal(pid, Signal::STOP);
    wait_until("it stops", || (process_state(pid) == Some('T')).then_some(()));
    let finished = gate.interrupt();
    println!("a stopped process: {:?}", finished.stderr);
    send_signal(pid, Signal::CONT);
    program.assert_alive();
    if !finished.status.success() {
        finished.assert_failed(1, &["stopped", "gate --remove"]);
        assert!(remove(pid).starts_with("closed"));
    }
    assert_closed(pid);
    program.assert_alive();
    program.assert_unharmed();
}

#[test]
fn code_with_probes_in_it_is_refused() {
    let mut program = threads(&[]);
    let pid = program.pid();
    let recording = Tracer::new().pid(pid).start();
    assert_refused(gate(pid).beside_another(), &["libc", "probe"]);
    assert_refused(by_gate(pid).options(["-d", "100ms"]).beside_another(), &["libc", "probe"]);
    program.assert_alive();
    recording.interrupt().report().assert_nothing_lost_but(&[]);
    assert_closed(pid);
    open_and_close(pid);
    program.assert_alive();
    program.assert_unharmed();
}

#[test]
fn there_is_one_gate_at_a_time() {
    let mut program = threads(&[]);
    let pid = program.pid();
    let first = by_gate(pid).start();
    assert_refused(gate(pid).beside_another(), &["another tracer has a gate"]);
    assert_refused(by_gate(pid).options(["-d", "100ms"]).beside_another(), &["another tracer has a gate"]);
    assert_refused(gate(pid).options(["--remove"]).beside_another(), &["another tracer has a gate"]);
    // It will be closed, and what is freed then is not seen.
    for options in [&["-d", "100ms"][..], &["-d", "100ms", "--sample", "64KiB"]] {
        let recording = Tracer::new().pid(pid).options(options);
        assert_refused(recording.beside_another(), &["another tracer has a gate"]);
    }
    // As from another container.
    let elsewhere = |gate: Tracer| gate.through(["unshare", "--net"]).beside_another();
    assert_refused(elsewhere(gate(pid)), &["another tracer has a gate"]);
    assert_refused(elsewhere(by_gate(pid).options(["-d", "100ms"])), &["another tracer has a gate"]);
    assert_refused(elsewhere(gate(pid).options(["--remove"])), &["another tracer has a gate"]);
    assert_open(pid);
    program.assert_alive();
    first.interrupt().report().assert_nothing_lost_but(&[]);
    assert_closed(pid);
    program.assert_unharmed();
}

/// A child that is killed and collected when dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_without_an_allocator_are_refused() {
    let pause = compile("pause.S", &["-static".into(), "-nostdlib".into()]);
    let pause = Killed(Command::new(pause).spawn().expect("it was built"));
    let pid = pause.0.id();
    wait_until("it runs", || (process_state(pid) == Some('S')).then_some(()));
    assert_refused(gate(pid), &["malloc"]);
    assert_refused(by_gate(pid).options(["-d", "100ms"]), &["malloc"]);
    assert_refused(Tracer::command(["plan", "--gate"]).pid(pid), &["malloc"]);
    assert!(is_running(pid));
    let narrow = Killed(Command::new(compile("i386.S", &["-m32".into()])).spawn().expect("it was built"));
    assert_refused(gate(narrow.0.id()), &["32-bit"]);
    assert_refused(by_gate(narrow.0.id()).options(["-d", "100ms"]), &["32-bit"]);
    assert!(is_running(narrow.0.id()));
}

#[test]
fn wrong_usage() {
    let mut program = threads(&[]);
    let pid = program.pid().to_string();
    for words in [
        &["--gate", "--follow", "--pid", &pid][..],
        &["--gate", "--name", "gated"],
        &["--gate", "--", "true"],
        &["--gate", "--mode", "growth", "--pid", &pid],
        &["--gate", "--pid", &pid, "--pid", "1"],
        &["gate", "--pid", &pid, "--remove", "--until-input-ends"],
        &["gate"],
    ] {
        let finished = Tracer::new().without_report();
        let finished = if words[0] == "gate" {
            Tracer::command(words.iter().copied())
        } else {
            finished.options(words.iter().copied())
        }
        .run();
        assert_eq!(finished.status.code(), Some(2), "{words:?}: {finished:#?}");
        assert!(finished.stderr.iter().any(|line| !line.is_empty()), "{words:?} says why: {finished:#?}");
    }
    assert_closed(program.pid());
    program.assert_alive();
    program.assert_unharmed();
}

#[test]
fn the_plan_shows_the_places() {
    let mut program = threads(&[]);
    let planned = Tracer::command(["plan", "--gate"]).pid(program.pid()).run();
    assert!(planned.status.success(), "{planned:#?}");
    for function in ["malloc ", "calloc ", "realloc ", "free "] {
        assert!(planned.stdout.iter().any(|line| line.starts_with(function)), "{planned:#?}");
    }
    assert_eq!(mappings(program.pid()).iter().filter(|(.., file)| file.starts_with(GATE)).count(), 0);
    program.assert_unharmed();
}

// ---- filters of system calls

#[track_caller]
fn check_filtered(mode: &str) {
    let mut program = Program::new("gated_filtered.c").argument(mode).start();
    program.work();
    let pid = program.pid();
    for _ in 0..5 {
        open_and_close(pid);
        program.assert_alive();
    }
    let recording = by_gate(pid).options(["--sample", "1KiB"]).start();
    assert_open(pid);
    program.assert_alive();
    let finished = recording.interrupt();
    assert_sampled_within(&finished);
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    assert!(sum(&report, "allocate", |stack| stack.allocated_objects) > 0, "{:#?}", report.outlines());
    assert_closed(pid);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let is_filtered = status.contains("Seccomp:\t2\n");
    assert_eq!(is_filtered, ["calls", "all"].contains(&mode), "the filter is there as ever: {status}");
    program.assert_alive();
    program.assert_unharmed();
}

#[test]
fn a_filter_that_kills_at_what_a_gate_needs() {
    check_filtered("calls");
}

#[test]
fn a_filter_that_kills_at_everything_else() {
    check_filtered("all");
}

#[test]
fn a_filter_of_the_one_thread_that_can_be_led_aside() {
    check_filtered("thread");
}

#[test]
fn memory_that_may_not_be_written_and_executed() {
    check_filtered("mdwe");
}

// ---- other tools in the same code

#[test]
fn probes_for_everybody_come_and_go_while_a_gate_is_open_and_the_other_way_round() {
    let turn = Turn::alone();
    let (mut program, mut other) = (threads(&["signals", "births", "begets"]), threads(&[]));
    let (pid, other_pid) = (program.pid(), other.pid());
    let gate = || gate(pid).in_turn(&turn).beside_another();
    let everywhere =
        || Tracer::new().options(["--follow"]).pid(other_pid).in_turn(&turn).beside_another().start();
    let mut check = |program: &mut Running| {
        program.assert_alive();
        other.assert_alive();
    };
    // The kernel merges the pages with those beside them only in a process that has had a probe (CVE-2025-38207).
    Tracer::new().pid(pid).in_turn(&turn).start().interrupt().report().assert_nothing_lost_but(&[]);
    // They come and go while it is open.
    let opened_gate = opened(gate(), pid);
    for _ in 0..2 {
        let probes = everywhere();
        check(&mut program);
        probes.interrupt().report().assert_nothing_lost_but(&[]);
        check(&mut program);
        assert_open(pid);
    }
    // They come while it is open, and go when it is closed.
    let probes = everywhere();
    check(&mut program);
    let finished = opened_gate.interrupt();
    assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:#?}");
    assert!(!is_open(pid, LIBC));
    check(&mut program);
    // It is not opened while they are there.
    assert_refused(gate(), &["libc", "probe"]);
    check(&mut program);
    probes.interrupt().report().assert_nothing_lost_but(&[]);
    wait_until("the code is as it was", || modified_text(pid).is_empty().then_some(()));
    assert_closed(pid);
    check(&mut program);
    // They are killed while it is open.
    let opened_gate = opened(gate(), pid);
    everywhere().kill();
    check(&mut program);
    close(opened_gate, pid);
    check(&mut program);
    close(opened(gate(), pid), pid);
    check(&mut program);
    program.assert_unharmed();
    other.assert_unharmed();
}

/// The places of the C library at which an open gate has changed its code.
#[track_caller]
fn gated_places(pid: u32) -> Vec<u64> {
    let mappings = mappings(pid);
    let library = mappings.iter().find(|(_, _, offset, file)| *offset == 0 && file.ends_with(LIBC));
    let (base, _, _, file) = library.expect("it has a C library");
    let on_disk = fs::read(file).expect("it can be read");
    let gated = mappings.iter().filter(|mapping| mapping.3.starts_with(GATE));
    let mut places = Vec::new();
    for (start, end, ..) in gated {
        // The functions that the gate adds are elsewhere.
        let in_file = start.checked_sub(*base).and_then(|offset| on_disk.get(offset as usize..));
        let Some(on_disk) = in_file else { continue };
        let now = read_memory(pid, *start, (end - start) as usize).expect("it is mapped");
        let differing = now.iter().zip(on_disk).enumerate().filter(|(_, (now, on_disk))| now != on_disk);
        places.extend(differing.map(|(at, _)| start + at as u64));
    }
    // A jump is five bytes, of which some may be as they were.
    places.dedup_by(|next, place| *next - *place < 5);
    assert!(places.len() >= 4, "{places:x?} of {mappings:#x?}");
    places
}

/// A tool that others use on a process that has a gate.
struct Tool {
    command: Command,
    /// Whether it is at work, by what it has written.
    is_there: Box<dyn Fn(&str) -> bool>,
}

impl Tool {
    /// Starts it, and waits until it is there.
    #[track_caller]
    fn start(&mut self) -> Killed {
        let written = tempfile::NamedTempFile::new().expect("a temporary file");
        let output = || written.reopen().expect("it is there");
        let child = self.command.stdout(output()).stderr(output()).stdin(std::process::Stdio::null());
        let mut child = Killed(child.spawn().expect("the tests' tools are installed"));
        wait_until("the tool is there", || {
            let said = fs::read_to_string(written.path()).unwrap_or_default();
            assert!(child.0.try_wait().expect("it is our child").is_none(), "{:?}: {said}", self.command);
            (self.is_there)(&said).then_some(())
        });
        child
    }
}

/// Has a tool end as a user does, if it has not ended by itself.
#[track_caller]
fn end(mut tool: Killed) {
    if tool.0.try_wait().expect("it is our child").is_none() {
        send_signal(tool.0.id(), Signal::INT);
    }
    wait_until("the tool ends", || tool.0.try_wait().expect("it is our child"));
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.contains("TracerPid:\t0\n")
}

/// Breakpoints at the functions and on the very places, of which each thread hits some.
fn gdb(pid: u32, places: &[u64]) -> Tool {
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-p", &pid.to_string()]);
    let places = places.iter().map(|place| format!("*{place:#x}"));
    let places = ["malloc", "free"].map(str::to_owned).into_iter().chain(places);
    for (number, place) in (1..).zip(places) {
        for words in [format!("break {place}"), format!("ignore {number} 300")] {
            command.args(["-ex", &words]);
        }
    }
    command.args(["-ex", "continue", "-ex", "bt", "-ex", "detach"]);
    Tool { command, is_there: Box::new(move |_| is_traced(pid)) }
}

fn strace(pid: u32) -> Tool {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]);
    Tool { command, is_there: Box::new(move |said| said.contains("attached") && is_traced(pid)) }
}

fn perf(pid: u32) -> Tool {
    let mut command = Command::new("perf");
    let options = ["record", "-e", "cpu-clock", "-g", "-v", "-o", "/dev/null", "-p"];
    command.args(options).arg(pid.to_string());
    Tool { command, is_there: Box::new(|said| said.contains("mmap size")) }
}

/// Probes at the functions' entries and returns.
fn bpftrace(pid: u32) -> Tool {
    let mut command = Command::new("bpftrace");
    let script = "uprobe:LIB:malloc,uprobe:LIB:free,uretprobe:LIB:malloc,uretprobe:LIB:free { @ = count(); }
        interval:ms:100 { printf(\"ready\\n\"); }";
    let library = mappings(pid).into_iter().find(|(.., file)| file.ends_with(LIBC)).expect("it has one").3;
    command.args(["-p", &pid.to_string(), "-e", &script.replace("LIB", &library)]);
    Tool { command, is_there: Box::new(|said| said.contains("ready")) }
}

#[test]
fn debuggers_and_profilers_come_and_go_while_a_gate_is_open_and_the_other_way_round() {
    // The probes of bpftrace are everybody's, whichever process it is told.
    let turn = Turn::alone();
    let gate = |pid| gate(pid).in_turn(&turn).beside_another();
    let mut program = threads(&["births"]);
    let pid = program.pid();
    let opened_gate = opened(gate(pid), pid);
    let places = gated_places(pid);
    close(opened_gate, pid);
    let mut tools = [gdb(pid, &places), strace(pid), perf(pid), bpftrace(pid)];
    for tool in &mut tools {
        // It comes and goes while the gate is open.
        let opened_gate = opened(gate(pid), pid);
        let at_work = tool.start();
        end(at_work);
        program.assert_alive();
        assert_open(pid);
        close(opened_gate, pid);
        program.assert_alive();

        // It is there when the gate is to be closed: that can be, or is to be done later.
        let opened_gate = opened(gate(pid), pid);
        let at_work = tool.start();
        let closed = opened_gate.interrupt();
        end(at_work);
        program.assert_alive();
        if !closed.status.success() {
            closed.assert_failed(1, &["traces it", "gate --remove"]);
            assert_open(pid);
            let removed = gate(pid).options(["--remove"]).run();
            assert!(removed.status.success(), "{removed:#?}");
        }
        assert_closed(pid);
        program.assert_alive();

        // It is there when a gate is to be opened, and goes when it is open, or is refused.
        let at_work = tool.start();
        let mut gate = gate(pid).spawn();
        wait_until("open or refused", || (is_open(pid, LIBC) || !is_running(gate.pid())).then_some(()));
        if is_open(pid, LIBC) {
            gate.wait_for_output("is open");
            end(at_work);
            program.assert_alive();
            close(gate, pid);
        } else {
            let refused = gate.wait();
            end(at_work);
            refused.assert_failed(1, &[]);
            println!("{:?}: {:?}", tool.command.get_program(), refused.stderr);
        }
        assert_closed(pid);
        program.assert_alive();
    }
    program.assert_unharmed();
}

#[test]
fn a_tracer_with_probes_of_its_own_on_a_gated_process_does_no_harm() {
    let mut program = threads(&["signals"]);
    let pid = program.pid();
    let gate = opened(gate(pid).beside_another(), pid);
    // It is not the recording that the gate belongs to, so it is refused, or it records by the gate's probes.
    let finished =
        Tracer::new().options(["-d", "300ms", "--sample", "64KiB"]).pid(pid).beside_another().run();
    if !finished.status.success() {
        finished.assert_failed(1, &["gate"]);
    }
    assert_open(pid);
    program.assert_alive();
    close(gate, pid);
    program.assert_alive();
    program.assert_unharmed();
}

// ---- other allocators

/// A gate goes in and out and records, or is refused in one line; the program is not harmed. Whether it went in.
#[track_caller]
fn check_allocator(program: &mut Running, library: &str, is_gated: Option<bool>) {
    let pid = program.pid();
    let mut was_gated = is_gated;
    for turn in 0..3 {
        let mut gate = gate(pid).spawn();
        wait_until("it is open or refused", || {
            (is_open(pid, library) || !is_running(gate.pid())).then_some(())
        });
        if is_open(pid, library) {
            gate.wait_for_output("is open");
            assert!(*was_gated.get_or_insert(true), "{library}, {turn}");
            program.assert_alive();
            let finished = gate.interrupt();
            assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:#?}");
        } else {
            let finished = gate.wait();
            finished.assert_failed(1, &[]);
            assert!(!*was_gated.get_or_insert(false), "{library}, {turn}: {finished:#?}");
            println!("{library}: {:?}", finished.stderr);
        }
        assert!(!is_open(pid, library));
        assert_text_is_as_in_files(pid);
        assert_free(pid);
        program.assert_alive();
    }
    if was_gated == Some(true) {
        let recording = by_gate(pid).options(["--sample", "4KiB", "--top", "100"]).start();
        program.assert_alive();
        program.say("quiet");
        program.wait_for_line("quiet");
        let finished = recording.interrupt();
        assert_sampled_within(&finished);
        // The gate has all of its functions, so none is probed besides.
        assert!(!finished.stderr.join("\n").contains("functions probed"), "{finished:#?}");
        let report = finished.report();
        report.assert_nothing_lost_but(&[]);
        report.assert_balanced();
        assert!(
            sum(&report, "calculate", |stack| stack.allocated_objects) > 1000,
            "{:#?}",
            report.outlines()
        );
        assert_eq!(
            sum(&report, "calculate", |stack| stack.outstanding_objects),
            0,
            "{:#?}",
            report.outlines()
        );
        assert!(!is_open(pid, library));
        assert_text_is_as_in_files(pid);
    }
    program.assert_unharmed();
}

fn preloaded(library: &str) -> Running {
    let library = format!("/usr/lib/x86_64-linux-gnu/{library}");
    assert!(Path::new(&library).is_file(), "{library} is there: run `cargo xtask setup`");
    let mut running = Program::new("gated.c").argument("births").variable("LD_PRELOAD", library).start();
    running.work();
    running
}

#[test]
fn jemalloc() {
    let mut program = preloaded("libjemalloc.so.2");
    // Its `operator new` does not call its `malloc`, and throws; a program in C does not use it.
    let file = mappings(program.pid())
        .into_iter()
        .find(|(.., file)| file.contains("libjemalloc"))
        .expect("it is loaded")
        .3;
    let library = Path::new(&file).file_name().expect("a file").to_str().expect("text").to_owned();
    check_allocator(&mut program, &library, Some(true));
}

#[test]
fn tcmalloc_has_places_and_mimalloc_is_refused() {
    for (library, is_gated) in [("libtcmalloc_minimal.so.4", true), ("libmimalloc.so.2", false)] {
        let mut program = preloaded(library);
        let stem = library.split('.').next().expect("a name");
        let file = mappings(program.pid())
            .into_iter()
            .find(|(.., file)| file.contains(stem))
            .expect("it is loaded")
            .3;
        let library = Path::new(&file).file_name().expect("a file").to_str().expect("text").to_owned();
        check_allocator(&mut program, &library, Some(is_gated));
    }
}

/// By the name that it has on Debian, and by that of Alpine. Its `calloc` has no place, and calls its `malloc`.
#[test]
fn musl() {
    const DEBIAN: &str = "/usr/lib/x86_64-linux-musl/libc.so";
    let directory = tempfile::tempdir().expect("it can be made");
    let alpine = directory.path().join("ld-musl-x86_64.so.1");
    // By another process: a child of this one would hold it open for writing for a moment, and it could not be run.
    let copied = Command::new("cp").arg(DEBIAN).arg(&alpine).status();
    assert!(copied.is_ok_and(|status| status.success()), "musl-tools are installed: run `cargo xtask setup`");
    for library in [Path::new(DEBIAN), &alpine] {
        let executable = directory.path().join("gated");
        let mut compiler = Command::new("musl-gcc");
        compiler
            .args(["-O2", "-g", "-fno-omit-frame-pointer"])
            .arg(format!("-Wl,-dynamic-linker,{}", library.display()));
        compiler.arg(tracer_tests::programs_dir().join("gated.c")).arg("-o").arg(&executable);
        assert!(
            compiler.status().is_ok_and(|status| status.success()),
            "musl-gcc is there: run `cargo xtask setup`"
        );
        let mut program = Program::new("gated.c").argument("signals").start_as(&executable);
        program.work();
        let name = library.file_name().expect("a file").to_str().expect("text");
        check_allocator(&mut program, &format!("/{name}"), Some(true));
    }
}

/// As by an update while it runs.
#[test]
fn a_program_whose_file_was_replaced_is_still_its_program() {
    let directory = tempfile::tempdir().expect("it can be made");
    let executable = directory.path().join("gated-replaced");
    let mut compile = Command::new("gcc");
    compile.args(["-O2", "-static", "-pthread"]).arg(tracer_tests::programs_dir().join("gated.c"));
    assert!(compile.arg("-o").arg(&executable).status().is_ok_and(|status| status.success()));
    let mut program = Program::new("gated.c").start_as(&executable);
    program.work();
    let pid = program.pid();
    kill_with_keeper(by_gate(pid).start());
    let another = directory.path().join("another");
    fs::copy(&executable, &another).expect("it can be copied");
    fs::rename(another, &executable).expect("it can be replaced");
    let removed = remove(pid);
    assert!(removed.starts_with("closed the gate of "), "{removed}");
    program.assert_alive();
    program.assert_unharmed();
}

#[test]
fn programs_that_are_linked_statically() {
    let directory = tempfile::tempdir().expect("it can be made");
    // There is hardly room for the code that makes the calls behind the little code of musl.
    let linked = [
        ("gcc", &["-static", "-pthread"][..], Some(true)),
        ("gcc", &["-static-pie", "-fPIE", "-pthread"], Some(true)),
        ("musl-gcc", &["-static"], None),
    ];
    for (number, (compiler, options, is_gated)) in linked.into_iter().enumerate() {
        let name = format!("gated-{number}");
        let executable = directory.path().join(&name);
        let mut compile = Command::new(compiler);
        compile.args(["-O2", "-g", "-fno-omit-frame-pointer"]).args(options);
        compile.arg(tracer_tests::programs_dir().join("gated.c")).arg("-o").arg(&executable);
        assert!(compile.status().is_ok_and(|status| status.success()), "{compiler}: run `cargo xtask setup`");
        let mut program = Program::new("gated.c").argument("signals").start_as(&executable);
        program.work();
        check_allocator(&mut program, &format!("/{name}"), is_gated);
    }
}
