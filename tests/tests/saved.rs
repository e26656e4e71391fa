//! Saved recordings: `tracer report` and `tracer diff` read the `.json` and `.json.gz` files that tracer wrote, and refuse others.

use std::{fs, path::Path};

use tempfile::TempDir;
use tracer_tests::{Finished, Program, Tracer};

/// A recording that is saved in a directory as `leak.json`, `leak.json.gz` and `leak.pb.gz`.
fn save(directory: &Path) {
    let mut program = Program::new("malloc_family.c").start();
    let outputs = ["leak.json.gz", "leak.pb.gz"].map(|name| directory.join(name).into_os_string());
    let options = outputs.into_iter().flat_map(|output| ["-o".into(), output]);
    let recording =
        Tracer::new().output(directory.join("leak.json")).options(options).pid(program.pid()).start();
    program.work();
    recording.interrupt().report().check(&program.expect);
}

fn tracer(directory: &Path, words: &[&str]) -> Finished {
    let word = |word: &&str| match word.contains('.') {
        true => directory.join(word).into_os_string(),
        false => word.into(),
    };
    Tracer::command(words.iter().map(word)).run()
}

#[test]
fn a_saved_recording_is_whole() {
    let directory = TempDir::new().expect("the directory for temporary files is writable");
    save(directory.path());
    let run = |words: &[&str]| tracer(directory.path(), words);
    let read = |name: &str| fs::read(directory.path().join(name)).expect("tracer wrote it");

    let drawn =
        run(&["report", "leak.json.gz", "-o", "again.json", "-o", "again.json.gz", "-o", "again.pb.gz"]);
    assert!(drawn.status.success(), "{drawn:#?}");
    for ending in ["json", "json.gz", "pb.gz"] {
        assert!(read(&format!("leak.{ending}")) == read(&format!("again.{ending}")), "{ending}");
    }
    let compared = run(&["diff", "leak.json", "leak.json.gz"]);
    assert!(compared.status.success(), "{compared:#?}");
    assert!(compared.stdout.join("\n").contains("No stack holds more or less"), "{compared:#?}");

    run(&["report", "leak.pb.gz"]).assert_failed(1, &["leak.pb.gz", ".json.gz files"]);
    let text = String::from_utf8(read("leak.json")).expect("it is text");
    fs::write(directory.path().join("old.json"), text.replace("tracer.report/2", "tracer.report/1"))
        .expect("the directory is writable");
    run(&["report", "old.json"]).assert_failed(1, &["old.json", "tracer.report/1"]);
    run(&["diff", "leak.json", "old.json"]).assert_failed(1, &["old.json", "tracer.report/1"]);
}
