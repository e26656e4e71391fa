//! Allocators that no table knows, named by `--allocator` and `--symbol-prefix`; and targets that have none.

use std::path::{Path, PathBuf};

use tracer_tests::{Program, Tracer, compile, trace_with};

/// The library, under a name that `--allocator` can say.
fn library() -> PathBuf {
    compile("pool.c", &["-shared".into(), "-fPIC".into(), "-fno-builtin".into()])
}

fn user_of(library: &Path) -> Program {
    Program::new("pool_user.c").flag(library.display().to_string())
}

fn declaration(file: &str) -> String {
    let functions = "malloc=pool_get,calloc=pool_zget,realloc=pool_grow,free=pool_put,malloc+1=pool_get_from,free+1=pool_put_to";
    format!("{file}:{functions}")
}

#[test]
fn functions_of_a_file_by_its_name_or_path() {
    let library = library();
    let name = library.file_name().expect("it is a file").to_string_lossy().into_owned();
    for file in [name, library.display().to_string()] {
        let mut program = user_of(&library).argument("own").start();
        let report = trace_with(&mut program, Tracer::new().options(["--allocator", &declaration(&file)]));
        report.check(&program.expect);
        program.assert_unharmed();
    }
}

#[test]
fn the_family_under_a_prefix() {
    let mut program = user_of(&library()).argument("prefix").start();
    trace_with(&mut program, Tracer::new().options(["--symbol-prefix", "my_"])).check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn undeclared_they_are_not_seen() {
    let mut program = user_of(&library()).argument("prefix").start();
    let report = trace_with(&mut program, Tracer::new());
    assert_eq!(report.events.allocations, 0, "{:?}", report.events);
}

#[test]
fn a_library_that_is_loaded_later() {
    // `--allocator` about a command's file may be ahead of its loading; the warning says so.
    let program = Program::new("leave.c").build();
    let recording = Tracer::new().options(["--allocator", "libpool.so:malloc=pool_get"]).launch([program]);
    let mut recording = recording.start();
    recording.send_line("go");
    let finished = recording.wait();
    finished.report().assert_exact();
    assert!(
        finished.stderr.iter().any(|line| line.contains("libpool.so") && line.contains("yet")),
        "{finished:#?}"
    );
}

#[test]
fn what_is_not_there_is_one_clear_line() {
    let library = library();
    let program = user_of(&library).start();
    let refused = |options: [&str; 2], words: &[&str]| {
        Tracer::new().options(options).pid(program.pid()).run().assert_failed(1, words);
    };
    let name = library.file_name().expect("it is a file").to_string_lossy().into_owned();
    refused(["--allocator", "libpool.so:malloc=pool_get"], &["has no mapped file libpool.so"]);
    refused(
        ["--allocator", &format!("{}:malloc=pool_get", &name[..name.len() - 2])],
        &["has no mapped file", &format!("did you mean {name}?")],
    );
    refused(["--allocator", &format!("{name}:malloc=pool_gett")], &["has no function pool_gett", "pool_get"]);
    refused(["--symbol-prefix", "your_"], &["has no function your_malloc"]);
}

#[test]
fn a_target_without_an_allocator() {
    let pause = compile("pause.S", &["-static".into(), "-nostdlib".into()]);
    let words = ["no allocator that tracer knows", "--allocator", "--symbol-prefix", "--mode growth"];
    Tracer::new().launch([&pause]).run().assert_failed(1, &words);
    let mut child = std::process::Command::new(&pause).spawn().expect("it can be run");
    Tracer::new().pid(child.id()).run().assert_failed(1, &words);
    child.kill().and_then(|()| child.wait()).expect("it runs");
}
