//! Every allocator, however it comes into the process: preloaded, under its own names, linked statically under a prefix.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tracer_tests::{Program, Running, Tracer, compile, rust_allocator, trace};

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

/// jemalloc as an archive, all of whose functions have this prefix.
fn prefixed_jemalloc(prefix: &str) -> String {
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
    kept.display().to_string()
}

/// What jemalloc needs besides.
const LIBRARIES_OF_JEMALLOC: [&str; 3] = ["-lstdc++", "-lm", "-lpthread"];

/// A program with that in it.
fn with_jemalloc(prefix: &str) -> Running {
    let program =
        Program::new("jemalloc_api.c").flag(format!("-DPREFIX={prefix}")).flag(prefixed_jemalloc(prefix));
    LIBRARIES_OF_JEMALLOC.into_iter().fold(program, Program::flag).start()
}

#[test]
fn jemalloc_linked_as_rust_does() {
    check(with_jemalloc("_rjem_"));
}

#[test]
fn jemalloc_linked_as_redis_does() {
    check(with_jemalloc("je_"));
}

#[test]
fn jemalloc_by_its_own_interface() {
    let library = library("libjemalloc.so.2").display().to_string();
    let program = Program::new("jemalloc_api.c").flag("-DPREFIX=").flag("-fno-builtin").flag(library);
    check(program.start());
}

// The crates that Rust programs get these from, as their global allocator.

fn check_crate(name: &str) {
    check(Running::start(Command::new(rust_allocator(name))));
}

#[test]
fn jemalloc_of_a_crate_and_its_functions_of_c23() {
    check_crate("jemalloc");
}

#[test]
fn mimalloc_of_a_crate() {
    check_crate("mimalloc");
}

#[test]
fn snmalloc_of_a_crate() {
    check_crate("snmalloc");
}

#[test]
fn mimalloc_under_its_own_names() {
    check(Program::new("mimalloc_api.c").flag(library("libmimalloc.so.2").display().to_string()).start());
}

#[test]
fn glibc_linked_statically() {
    check(Program::new("malloc_family.c").flag("-static").start());
}

// Loaded in the middle of the window, by a library that a running program opens.

/// A library that leaks through this function, built with these flags.
fn plugin(malloc: &str, flags: &[&str]) -> PathBuf {
    let mut all = vec!["-shared".to_owned(), "-fPIC".to_owned(), format!("-Dmalloc={malloc}")];
    all.extend(flags.iter().map(|&flag| flag.to_owned()));
    compile("plugin.c", &all)
}

/// The functions at which the plugin's blocks are made have these names.
fn check_late(names: &str, plugin: &Path, allocator: &str) {
    let mut program = Program::new("plugin_host.c")
        .argument(plugin.display().to_string())
        .argument(names)
        .argument("late")
        // jemalloc wants more of this than there is to spare.
        .variable("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384")
        .start();
    let mut recording = Tracer::new().options(["-v"]).pid(program.pid()).start();
    program.go();
    program.wait_for_line("loaded");
    // It is probed as soon as it is seen; from then on not a block is missed.
    recording.wait_for_message(&format!("probed in {allocator}"));
    program.work();
    let report = recording.interrupt().report();
    report.assert_exact();
    report.check_leaks(&program.expect);
    program.assert_unharmed();
}

#[test]
fn an_allocator_that_is_loaded_in_the_window() {
    let mimalloc = library("libmimalloc.so.2");
    let plugin = plugin("mi_malloc", &[&mimalloc.display().to_string()]);
    let allocator = fs::canonicalize(mimalloc).expect("it is there");
    check_late("malloc|mi_malloc", &plugin, &allocator.display().to_string());
}

#[test]
fn a_library_with_an_allocator_in_it_that_is_loaded_in_the_window() {
    let archive = prefixed_jemalloc("je_");
    let flags = [&[archive.as_str()], &LIBRARIES_OF_JEMALLOC[..]].concat();
    let plugin = plugin("je_malloc", &flags);
    check_late("je_malloc", &plugin, &plugin.display().to_string());
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
