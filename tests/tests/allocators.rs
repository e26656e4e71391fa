//! Every allocator, however it comes into the process: preloaded, under its own names, linked statically under a prefix.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tracer_tests::{Program, Running, Tracer, compile, trace};

/// A library of a Debian package that `cargo xtask setup` installs.
#[track_caller]
fn library(name: &str) -> PathBuf {
    let path = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
    assert!(path.exists(), "{} is there: run `cargo xtask setup`", path.display());
    path
}

fn preloaded(allocator: &str) -> Program {
    Program::new("cxx_allocator.cpp").variable("LD_PRELOAD", library(allocator).display().to_string())
}

#[track_caller]
fn check(mut program: Running) {
    let report = trace(&mut program);
    report.check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn tcmalloc_preloaded() {
    check(preloaded("libtcmalloc_minimal.so.4").start());
}

#[test]
fn jemalloc_preloaded() {
    check(preloaded("libjemalloc.so.2").start());
}

#[test]
fn mimalloc_preloaded() {
    check(preloaded("libmimalloc.so.2").start());
}

/// Without unwind information (as Chromium is built) no exception can pass `operator new`, so that it may have a return probe.
#[test]
fn operators_without_unwind_information() {
    let flags = ["-shared", "-fPIC", "-fno-builtin", "-DOPERATORS", "-fno-asynchronous-unwind-tables", "-O2"];
    let allocator = compile("own_allocator.c", &flags.map(String::from));
    let program = Program::new("cxx_allocator.cpp").variable("LD_PRELOAD", allocator.display().to_string());
    let program = program.start();
    let plan = Tracer::command(["plan", "--pid", &program.pid().to_string()]).run();
    let with_return = |line: &&String| line.starts_with("operator new") && line.contains("entry+return");
    assert!(plan.stdout.iter().any(|line| with_return(&line)), "{:#?}", plan.stdout);
    check(program);
}

// An exception passes the probes, the target lives on, and no thread goes blind. (Debian's mimalloc aborts instead.)

#[test]
fn tcmalloc_throwing() {
    check(preloaded("libtcmalloc_minimal.so.4").argument("throw").start());
}

#[test]
fn jemalloc_throwing() {
    check(preloaded("libjemalloc.so.2").argument("throw").start());
}

/// A program with jemalloc in it, all of whose functions have this prefix.
fn with_jemalloc(prefix: &str) -> (Running, TempDir) {
    const FUNCTIONS: [&str; 11] = [
        "malloc",
        "calloc",
        "realloc",
        "free",
        "aligned_alloc",
        "memalign",
        "posix_memalign",
        "mallocx",
        "rallocx",
        "dallocx",
        "sdallocx",
    ];
    let directory = TempDir::new().expect("a temporary directory");
    let archive = directory.path().join("libprefixed.a");
    let mut objcopy = Command::new("objcopy");
    for function in FUNCTIONS {
        objcopy.arg("--redefine-sym").arg(format!("{function}={prefix}{function}"));
    }
    let status = objcopy.arg(library("libjemalloc_pic.a")).arg(&archive).status();
    assert!(status.is_ok_and(|status| status.success()), "objcopy renames jemalloc's functions");
    // Named by its content, so that what was built before is found again.
    let kept = std::env::temp_dir().join(format!("tracer-tests-{prefix}jemalloc.a"));
    fs::rename(&archive, &kept).or_else(|_| fs::copy(&archive, &kept).map(drop)).expect("there is room");
    let program = Program::new("jemalloc_api.c")
        .flag(format!("-DPREFIX={prefix}"))
        .flag(kept.display().to_string())
        .flag("-lstdc++")
        .flag("-lm")
        .flag("-lpthread");
    (program.start(), directory)
}

#[test]
fn jemalloc_linked_as_rust_does() {
    check(with_jemalloc("_rjem_").0);
}

#[test]
fn jemalloc_linked_as_redis_does() {
    check(with_jemalloc("je_").0);
}

#[test]
fn mimalloc_under_its_own_names() {
    check(Program::new("mimalloc_api.c").flag(library("libmimalloc.so.2").display().to_string()).start());
}

#[test]
fn glibc_linked_statically() {
    check(Program::new("malloc_family.c").flag("-static").start());
}

#[test]
fn musl_linked_dynamically_and_statically() {
    let directory = TempDir::new().expect("a temporary directory");
    for (name, flags) in [("dynamic", &[][..]), ("static", &["-static"][..])] {
        let program = directory.path().join(name);
        let source = tracer_tests::programs_dir().join("musl.c");
        let mut compiler = Command::new("musl-gcc");
        let status = compiler.args(["-O1", "-g"]).args(flags).arg(source).arg("-o").arg(&program).status();
        assert!(status.is_ok_and(|status| status.success()), "musl-gcc is there: run `cargo xtask setup`");
        check(Running::start(Command::new(program)));
    }
}
