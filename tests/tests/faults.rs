//! Faults on purpose, at random moments: tracers that are killed, targets that go away, and machines that are out of everything. The
//! target checks all that it calculates, on eight threads: that it is alive says that it is whole.
//!
//! Here are a few of each. `cargo xtask faults` makes as many as one has time for.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tracer_tests::{
    Chance, Finished, MemoryGroup, Program, Recording, Running, Tracer, faults, is_running, send_signal,
    wait_until,
};

/// A target whose threads calculate.
fn target() -> Running {
    let mut target = Program::new("checksum.c").start();
    target.work();
    target
}

/// Every thread goes on, and gets the right results.
#[track_caller]
fn assert_whole(target: &mut Running) {
    target.go();
    target.wait_for_line("alive");
}

/// What tracers do, one after another.
fn modes(chance: &mut Chance) -> &'static [&'static str] {
    chance.pick(&[&[], &[], &["--follow"], &["--mode", "growth"], &["--sample", "64KiB"]])
}

fn tracer(target: &Running, options: &[&str]) -> Tracer {
    Tracer::new().options(options).pid(target.pid())
}

/// Nothing is lost. Of samples the figures are estimates, so calls are no bound for them.
#[track_caller]
fn assert_adds_up(finished: &Finished) {
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
}

/// How long attaching and letting go take here and now.
struct Takes {
    attach: Duration,
    end: Duration,
}

impl Takes {
    fn measure(target: &Running) -> Self {
        let began = Instant::now();
        let recording = tracer(target, &[]).start();
        let attach = began.elapsed();
        let began = Instant::now();
        recording.interrupt().report().assert_exact();
        Self { attach, end: began.elapsed() }
    }
}

// ---- tracers that are killed

/// A tracer at a random moment of attaching, recording or letting go.
fn at_any_moment(target: &Running, takes: &Takes, chance: &mut Chance) -> Recording {
    let tracer = tracer(target, modes(chance));
    match chance.between(0, 2) {
        0 => {
            let recording = tracer.spawn();
            sleep(chance.moment(takes.attach));
            recording
        }
        1 => {
            let recording = tracer.start();
            sleep(chance.moment(Duration::from_millis(50)));
            recording
        }
        _ => {
            let recording = tracer.start();
            recording.signal(Signal::INT);
            sleep(chance.moment(takes.end));
            recording
        }
    }
}

/// The code being as it was, there is no probe; the programs being gone, there is no link.
#[test]
fn a_killed_tracer_leaves_nothing() {
    let mut chance = Chance::seeded();
    let mut target = target();
    let takes = Takes::measure(&target);
    for fault in 1..=faults(6) {
        println!("kill {fault}");
        at_any_moment(&target, &takes, &mut chance).kill();
        assert_whole(&mut target);
    }
    tracer(&target, &[]).start().interrupt().report().assert_exact();
    target.assert_unharmed();
}

/// Whether a process of its own puts in or takes out probes for this tracer.
fn probes_are_on_their_way(tracer: u32) -> bool {
    let is_for_it = |stat: String| {
        let (name, rest) = stat.rsplit_once(')')?;
        Some(name.ends_with("(probes") && rest.split_whitespace().nth(1)?.parse() == Ok(tracer))
    };
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let mut stats = processes.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
    stats.any(|stat| is_for_it(stat) == Some(true))
}

/// Kills a tracer when its probes go in or out, unless that is over before anybody looks.
fn is_killed_on_the_way(recording: Recording) -> bool {
    let pid = recording.pid();
    let seen = wait_until("probes go in or out", || {
        let is_over = !is_running(pid);
        (probes_are_on_their_way(pid) || is_over).then_some(!is_over)
    });
    recording.signal(Signal::KILL);
    // Here the code of the target is compared with its files.
    recording.wait();
    seen
}

/// Where a thread that puts in or takes out a probe is to be killed, the kernel stops on the way, and breakpoints stay.
#[test]
fn a_tracer_that_is_killed_while_probes_go_in_or_out_leaves_none() {
    let mut target = target();
    let mut wanted = [faults(2); 2];
    for _ in 0..20 * faults(2) {
        if wanted == [0; 2] {
            break;
        }
        let attaching = is_killed_on_the_way(tracer(&target, &[]).spawn());
        assert_whole(&mut target);
        let mut recording = tracer(&target, &["-v"]).start();
        // The tracer's own probes, by which it measures what hits cost, are out.
        recording.message("beside its program");
        recording.signal(Signal::INT);
        let ending = is_killed_on_the_way(recording);
        assert_whole(&mut target);
        for (wanted, was_seen) in wanted.iter_mut().zip([attaching, ending]) {
            *wanted = wanted.saturating_sub(was_seen.into());
        }
    }
    assert_eq!(wanted, [0; 2], "they are seen on their way");
    target.assert_unharmed();
}

// ---- targets that go away, stand still, or multiply

/// Either it came before the window, and the tracer says so, or it ended the window in one of these ways, and there is a report.
#[track_caller]
fn assert_ended_well(finished: &Finished, ends: &[&str]) {
    if finished.status.success() {
        let report = finished.report();
        let end = report.window.end.as_deref().expect("it is no snapshot");
        assert!(ends.contains(&end), "{finished:#?}");
        report.assert_balanced();
    } else {
        finished.assert_failed(1, &[]);
    }
}

/// A tracer on a new target, and a moment: somewhere in attaching, or soon after.
fn attaching(takes: &Takes, options: &[&str], chance: &mut Chance) -> (Running, Recording) {
    let target = target();
    let recording = tracer(&target, options).spawn();
    sleep(chance.moment(takes.attach * 5 / 4));
    (target, recording)
}

fn kill(takes: &Takes, chance: &mut Chance) {
    let (mut target, recording) = attaching(takes, modes(chance), chance);
    send_signal(target.pid(), Signal::KILL);
    target.finish();
    assert_ended_well(&recording.wait(), &["target_exited"]);
}

fn exit(takes: &Takes, chance: &mut Chance) {
    let (mut target, recording) = attaching(takes, modes(chance), chance);
    target.say("exit");
    assert_ended_well(&recording.wait(), &["target_exited"]);
    target.assert_unharmed();
}

/// A program that was executed before the tracer looked is the target.
fn exec(takes: &Takes, chance: &mut Chance) {
    let (mut target, recording) = attaching(takes, &["-d", "1s"], chance);
    target.say("exec");
    assert_ended_well(&recording.wait(), &["target_exec", "duration"]);
    target.work();
    assert_whole(&mut target);
    target.assert_unharmed();
}

fn stop(takes: &Takes, chance: &mut Chance) {
    let (mut target, mut recording) = attaching(takes, modes(chance), chance);
    send_signal(target.pid(), Signal::STOP);
    sleep(chance.moment(takes.attach / 2));
    send_signal(target.pid(), Signal::CONT);
    recording.wait_until_open();
    assert_whole(&mut target);
    assert_adds_up(&recording.interrupt());
    target.assert_unharmed();
}

fn fork(takes: &Takes, chance: &mut Chance) {
    let (mut target, mut recording) = attaching(takes, modes(chance), chance);
    target.say("fork");
    recording.wait_until_open();
    sleep(chance.moment(Duration::from_millis(50)));
    assert_adds_up(&recording.interrupt());
    target.wait_for_line("forked");
    assert_whole(&mut target);
    target.assert_unharmed();
}

#[test]
fn a_target_may_do_anything_at_any_moment() {
    let mut chance = Chance::seeded();
    let takes = Takes::measure(&target());
    let all = [kill, exit, exec, stop, fork];
    let names = ["kill", "exit", "exec", "stop", "fork"];
    for fault in 1..=faults(5) {
        let which = (fault % 5) as usize;
        println!("{} {fault}", names[which]);
        all[which](&takes, &mut chance);
    }
}

// ---- machines that are out of something

/// It succeeded, or it said in so many words why not, or the kernel killed it.
#[track_caller]
fn assert_gave_up_well(finished: &Finished, may_be_killed: bool) {
    use std::os::unix::process::ExitStatusExt as _;
    let panicked = finished.stderr.iter().any(|line| line.contains("panicked") || line.contains(".rs:"));
    assert!(!panicked, "{finished:#?}");
    match (finished.status.code(), finished.status.signal()) {
        (Some(0), _) => finished.report().assert_sums(),
        (Some(1), _) => {
            let said = finished.stderr.last().is_some_and(|line| line.starts_with("tracer: "));
            assert!(said, "the last line says why: {finished:#?}");
        }
        (None, Some(9)) if may_be_killed => {}
        _ => panic!("a way to end that is none: {finished:#?}"),
    }
}

#[test]
fn a_tracer_with_too_little_memory() {
    let mut chance = Chance::seeded();
    let mut target = target();
    for _ in 1..=faults(4) {
        let limit = (chance.between(1, 40) * chance.between(1, 5)) << 20;
        println!("{limit} bytes");
        let group = MemoryGroup::with_limit(limit);
        let tracer = tracer(&target, &["-d", "100ms"]).through(group.wrapper());
        assert_gave_up_well(&tracer.run(), true);
        assert_whole(&mut target);
    }
    target.assert_unharmed();
}

#[test]
fn a_tracer_with_too_few_descriptors() {
    let mut chance = Chance::seeded();
    let mut target = target();
    for _ in 1..=faults(5) {
        let limit = chance.between(3, 90);
        println!("{limit} descriptors");
        let wrapper = ["prlimit".to_owned(), format!("--nofile={limit}:{limit}")];
        let tracer = tracer(&target, &["-d", "100ms"]).through(wrapper);
        assert_gave_up_well(&tracer.run(), false);
        assert_whole(&mut target);
    }
    target.assert_unharmed();
}
