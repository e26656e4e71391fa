//! `tracer watch` and what can go wrong around it: it is killed at random moments, those that it records die, the disk is full.
//!
//! Here are a few of each. `cargo xtask faults` makes as many as one has time for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tracer_tests::{
    Chance, MemoryGroup, Program, Recording, Running, Tracer, assert_text_is_pristine, faults, is_running,
    run_tool, send_signal, text, wait_until,
};

/// A target whose threads calculate, and check what they get.
fn target() -> Running {
    let mut target = Program::new("checksum.c").start();
    target.work();
    target
}

/// Watches a process whose memory is reason enough for recordings, one after the other.
fn watch(target: &Running, reports: &Path, options: &[&str]) -> Tracer {
    let pid = target.pid().to_string();
    let words = [
        "watch",
        "--listen",
        "none",
        "--interval",
        "200ms",
        "--cool-down",
        "0s",
        "--when",
        "rss > 64KiB",
        "--pid",
        &pid,
        "--dir",
    ];
    Tracer::command(words).options([reports]).options(options)
}

fn index(reports: &Path) -> Vec<Value> {
    let Ok(text) = fs::read(reports.join("index.json")) else { return Vec::new() };
    let index: Value = serde_json::from_slice(&text).expect("it is whole at any moment");
    index["recordings"].as_array().expect("a list").clone()
}

/// The processes that this one has started.
fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

/// Every recording has ended, its files are there, and no others.
#[track_caller]
fn assert_index_is_right(reports: &Path) {
    let index = index(reports);
    assert!(index.iter().all(|recording| recording["state"] != "recording"), "{index:#?}");
    let listed = index.iter().flat_map(|recording| recording["files"].as_array().expect("a list"));
    let mut listed: BTreeSet<String> = listed.map(|file| file.as_str().expect("a name").to_owned()).collect();
    listed.extend(["index.json".to_owned(), ".lock".to_owned()]);
    let files =
        fs::read_dir(reports).expect("it is there").map(|file| file.expect("it can be read").file_name());
    let files: BTreeSet<String> = files.map(|name| name.into_string().expect("it is text")).collect();
    assert_eq!(files, listed);
}

#[test]
fn a_service_that_is_killed_at_any_moment_leaves_no_probe_and_a_right_index() {
    let mut chance = Chance::seeded();
    let mut target = target();
    let reports = TempDir::new().unwrap();
    // A whole recording, from the start of the service on.
    let began = Instant::now();
    let mut watching = watch(&target, reports.path(), &["--record", "300ms"]).spawn();
    wait_until("it is recorded", || {
        index(reports.path()).iter().any(|one| one["state"] == "done").then_some(())
    });
    let takes = began.elapsed();
    watching.wait_for_message("watching");
    watching.interrupt();
    for fault in 1..=faults(2) {
        let mode = chance.pick(&["auto", "allocations", "growth"]);
        println!("kill {fault}, {mode}");
        let options = ["--record", "300ms", "--keep", "3", "--mode", mode];
        let watching = watch(&target, reports.path(), &options).spawn();
        sleep(chance.moment(takes * 5 / 4));
        let recorders = children(watching.pid());
        watching.kill();
        wait_until("its recordings die with it", || {
            (!recorders.iter().any(|&recorder| is_running(recorder))).then_some(())
        });
        assert_text_is_pristine(target.pid());
        // The next start puts right what it finds.
        let words = ["watch", "--listen", "none", "--cgroup", "/no/such/group", "--dir"];
        settle(Tracer::command(words).options([reports.path()]).spawn());
        assert_index_is_right(reports.path());
    }
    target.go();
    target.wait_for_line("alive");
    target.assert_unharmed();
}

/// Lets a service start, and ends it.
fn settle(mut watching: Recording) {
    watching.wait_for_message("watching");
    assert!(watching.interrupt().status.success());
}

#[test]
fn a_subject_may_die_at_any_moment_of_its_recording() {
    let mut chance = Chance::seeded();
    let reports = TempDir::new().unwrap();
    let group = MemoryGroup::with_limit(1 << 30);
    let words = [
        "watch",
        "--listen",
        "none",
        "--interval",
        "100ms",
        "--cool-down",
        "0s",
        "--when",
        "rss > 64KiB",
        "--record",
        "500ms",
    ];
    let mut watching = Tracer::command(words)
        .options(["--cgroup".as_ref(), group.directory().as_os_str()])
        .options(["--dir".as_ref(), reports.path().as_os_str()])
        .spawn();
    watching.wait_for_message("watching");
    for fault in 1..=faults(2) {
        println!("death {fault}");
        let before = index(reports.path()).len();
        let mut target = target();
        fs::write(group.directory().join("cgroup.procs"), target.pid().to_string()).expect("it can be moved");
        wait_until("it is recorded", || (index(reports.path()).len() > before).then_some(()));
        // Before its probes are in, while it is recorded, and while the report is written.
        sleep(chance.moment(Duration::from_millis(1500)));
        send_signal(target.pid(), Signal::KILL);
        target.finish();
        let all = wait_until("its recordings end", || {
            let all = index(reports.path());
            all.iter().all(|recording| recording["state"] != "recording").then_some(all)
        });
        for recording in &all[before..] {
            let is_told = recording["state"] == "done" || recording["error"].is_string();
            assert!(is_told, "{recording:#}");
        }
    }
    assert!(watching.interrupt().status.success());
    assert_index_is_right(reports.path());
}

#[test]
fn a_full_disk_fails_recordings_and_not_the_service() {
    let mut target = target();
    let reports = TempDir::new().unwrap();
    // A small disk that nobody else sees.
    let wrapper =
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=16k tmpfs \"$0\" && exec \"$@\""];
    let wrapper = wrapper.into_iter().map(Into::into).chain([reports.path().as_os_str().to_owned()]);
    let mut watching =
        watch(&target, reports.path(), &["--record", "300ms"]).through(wrapper.collect::<Vec<_>>()).spawn();
    watching.wait_for_message("No space left on device");
    let seen: PathBuf = format!("/proc/{}/root{}", watching.pid(), reports.path().display()).into();
    let pid = watching.pid().to_string();
    run_tool(
        "nsenter",
        &["--mount", "--target", &pid, "mount", "-o", "remount,size=64m", text(reports.path())],
    );
    // With room again there are reports again.
    wait_until("it is recorded", || index(&seen).iter().any(|one| one["state"] == "done").then_some(()));
    assert!(watching.interrupt().status.success());
    target.go();
    target.wait_for_line("alive");
    target.assert_unharmed();
}

#[test]
fn a_configuration_may_change_while_it_records() {
    let target = target();
    let reports = TempDir::new().unwrap();
    let file = reports.path().join("watch.toml");
    let configurations = [
        format!("pid = {}\nwhen = ['rss > 64KiB', 'usage > 1TiB']", target.pid()),
        "cgroup = '/no/such/group'\nwhen = 'anon > 1KiB'".to_owned(),
        format!("pid = {}\nwhen = 'rss > 1TiB'\nkeep = 1\nmode = 'growth'", target.pid()),
    ];
    fs::write(&file, &configurations[0]).unwrap();
    let directory = reports.path().join("reports");
    let words = ["watch", "--listen", "none", "--interval", "200ms", "--record", "2s", "--config"];
    let mut watching =
        Tracer::command(words).options([&file]).options(["--dir".as_ref(), directory.as_os_str()]).spawn();
    watching.wait_for_message("its probes are in");
    for configuration in &configurations[1..] {
        fs::write(&file, configuration).unwrap();
        watching.signal(Signal::HUP);
        watching.wait_for_message("the configuration has been read again");
    }
    wait_until("it is recorded to its end", || {
        index(&directory)
            .iter()
            .any(|one| one["state"] == "done" && one["digest"]["end"] == "duration")
            .then_some(())
    });
    assert!(watching.interrupt().status.success());
    assert_index_is_right(&directory);
}
