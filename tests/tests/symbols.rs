//! Names of functions, files and lines: from debug information, symbol tables, debug files, perf maps, or none at all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tracer_tests::{Program, Report, Running, Stack, compile, programs_dir, run_tool, text, trace};

/// The only stack with this many outstanding bytes.
#[track_caller]
fn stack_of(report: &Report, bytes: u64) -> &Stack {
    let found: Vec<_> = report.stacks.iter().filter(|stack| stack.outstanding_bytes == bytes).collect();
    let [stack] = found[..] else { panic!("one stack of {bytes} bytes: {:#?}", report.outlines()) };
    stack
}

/// The line of the source that contains `text`, from 1.
#[track_caller]
fn line_of(source: &str, text: &str) -> u32 {
    let source = fs::read_to_string(programs_dir().join(source)).expect("the source is there");
    let line = source.lines().position(|line| line.contains(text)).expect("the source has this line");
    u32::try_from(line + 1).expect("sources are short")
}

/// A copy of the program without any symbol or debug information.
fn stripped(executable: &Path, directory: &TempDir) -> PathBuf {
    let stripped = directory.path().join("stripped");
    run_tool("strip", &["-o", text(&stripped), text(executable)]);
    stripped
}

#[test]
fn file_and_line_come_from_debug_information() {
    let mut program = Program::new("malloc_family.c").start();
    let report = trace(&mut program);
    let leaf = &stack_of(&report, 7 * 1001).frames[0];
    assert!(leaf.file.as_deref().is_some_and(|file| file.ends_with("malloc_family.c")), "{leaf:?}");
    assert_eq!(leaf.line, Some(line_of("malloc_family.c", "void leak_malloc(void)")), "{leaf:?}");
    assert!(leaf.build_id.as_deref().is_some_and(|id| id.len() == 40), "{leaf:?}");
}

#[test]
fn inlined_functions_have_frames_of_their_own() {
    let mut program = Program::new("mappings.c").start();
    let report = trace(&mut program);
    let [stack] = report.called_by("map_untouched")[..] else { panic!("{:#?}", report.outlines()) };
    let at = stack.frames.iter().position(|frame| frame.is("map_untouched")).expect("it is the caller");
    assert!(at > 0 && stack.frames[at - 1].is("map") && stack.frames[at - 1].inlined, "{stack:#?}");
    assert!(!stack.frames[at].inlined, "{stack:#?}");
}

#[test]
fn rust_names_are_demangled() {
    let mut program = Program::new("rust_leak.rs").start();
    let report = trace(&mut program);
    report.check(&program.expect);
    let functions =
        report.stacks.iter().flat_map(|stack| &stack.frames).filter_map(|frame| frame.function.as_ref());
    for function in functions {
        assert!(!function.starts_with("_ZN") && !function.starts_with("_R"), "{function} is mangled");
        assert!(!has_hash(function), "{function} carries a hash");
    }
}

/// Whether a name ends in the hash of Rust's older mangling (`::h0123456789abcdef`).
fn has_hash(function: &str) -> bool {
    let hash = function.rsplit_once("::h").map_or("", |(_, hash)| hash);
    hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn cxx_names_are_demangled() {
    let mut program = Program::new("cxx_new.cpp").start();
    let report = trace(&mut program);
    let leaf = stack_of(&report, 6 * 160).frames[0].function.as_deref();
    assert!(leaf.is_some_and(|function| function.starts_with("pool::Session<int>::open")), "{leaf:?}");
}

#[test]
fn a_stripped_program_shows_module_and_where_functions_begin_and_no_guess() {
    let program = Program::new("malloc_family.c");
    let executable = program.build();
    let directory = TempDir::new().expect("a temporary directory");
    let mut running = program.start_as(&stripped(&executable, &directory));
    let report = trace(&mut running);
    let leaf = &stack_of(&report, 7 * 1001).frames[0];
    assert_eq!((leaf.function.as_deref(), leaf.module.as_deref()), (None, Some("stripped")), "{leaf:?}");
    let number = |hex: &Option<String>| {
        let digits = hex.as_deref().and_then(|hex| hex.strip_prefix("0x")).expect("it is known");
        u64::from_str_radix(digits, 16).expect("it is hexadecimal")
    };
    let leaks = symbol(&executable, "leak_malloc");
    assert!(leaks.contains(&number(&leaf.offset)), "{leaf:?}");
    assert_eq!(number(&leaf.function_offset), leaks.start, "{leaf:?}");
}

/// The addresses of a function, as the file states them.
fn symbol(executable: &Path, name: &str) -> std::ops::Range<u64> {
    let table = run_tool("nm", &["--print-size", text(executable)]);
    let line =
        table.lines().find(|line| line.ends_with(&format!(" {name}"))).expect("the symbol is in the table");
    let mut numbers = line.split(' ').map(|number| u64::from_str_radix(number, 16));
    let mut number = || numbers.next().expect("address and size").expect("they are hexadecimal");
    let start = number();
    start..start + number()
}

#[test]
fn a_stripped_library_is_named_by_its_dynamic_symbols() {
    let plugin = compile("plugin.c", &["-shared".into(), "-fPIC".into(), "-Wl,--build-id=none".into()]);
    let directory = TempDir::new().expect("a temporary directory");
    let plugin = stripped(&plugin, &directory);
    let mut program = Program::new("plugin_host.c").argument(text(&plugin)).start();
    trace(&mut program).check(&program.expect);
}

/// A file that is removed when dropped, and its directory if that is empty.
struct Installed(PathBuf);

impl Drop for Installed {
    fn drop(&mut self) {
        // What cannot be removed is not worth a second panic.
        let _ = fs::remove_file(&self.0);
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

#[test]
fn a_debug_file_is_found_by_build_id() {
    // A content of its own: with the build id of another test's program, that would find the debug file, too.
    let program = Program::new("malloc_family.c").flag("-Wl,--defsym=of_its_own=0");
    let executable = program.build();
    let notes = run_tool("readelf", &["--notes", text(&executable)]);
    let id =
        notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).expect("it has a build id");
    let (directory, file) = id.split_at(2);
    let debug = Installed(format!("/usr/lib/debug/.build-id/{directory}/{file}.debug").into());
    fs::create_dir_all(debug.0.parent().expect("it has a directory")).expect("the test is root");
    run_tool("objcopy", &["--only-keep-debug", text(&executable), text(&debug.0)]);
    let directory = TempDir::new().expect("a temporary directory");
    let mut running = program.start_as(&stripped(&executable, &directory));
    trace(&mut running).check(&running.expect);
}

#[test]
fn a_debug_file_is_found_by_debug_link() {
    let program = Program::new("malloc_family.c").flag("-Wl,--build-id=none");
    let executable = program.build();
    let directory = TempDir::new().expect("a temporary directory");
    let debug = directory.path().join("program.debug");
    let stripped = stripped(&executable, &directory);
    run_tool("objcopy", &["--only-keep-debug", text(&executable), text(&debug)]);
    run_tool("objcopy", &[&format!("--add-gnu-debuglink={}", text(&debug)), text(&stripped)]);
    let mut running = program.start_as(&stripped);
    trace(&mut running).check(&running.expect);
}

#[test]
fn static_programs_are_traced_and_named() {
    for flag in ["-static", "-static-pie"] {
        let mut program = Program::new("malloc_family.c").flag(flag).start();
        trace(&mut program).check(&program.expect);
        program.assert_unharmed();
    }
}

#[test]
fn jit_code_is_named_by_its_perf_map() {
    let mut program = Program::new("jit.c").start();
    check_jit(&trace(&mut program), &program);
    program.assert_unharmed();
}

#[test]
fn jit_code_in_a_memfd_is_walked_through() {
    let mut program = Program::new("jit.c").argument("memfd").start();
    check_jit(&trace(&mut program), &program);
    program.assert_unharmed();
}

/// In time, and written only after the stacks were seen.
#[test]
fn jit_code_is_named_by_its_jitdump() {
    for argument in ["jitdump", "late"] {
        let mut program = Program::new("jit.c").argument(argument).start();
        let report = trace(&mut program);
        check_jit(&report, &program);
        program.assert_unharmed();
        let named = stack_of(&report, 5 * 416);
        let frame = named.frames.iter().find(|frame| frame.is("leakInJit")).expect("it is named");
        let place = (frame.file.as_deref(), frame.line, frame.language.as_deref());
        assert_eq!(place, (Some("/srv/server.rb"), Some(7), Some("jit")), "{argument}");
    }
}

#[track_caller]
fn check_jit(report: &Report, program: &Running) {
    report.assert_exact();
    report.check_leaks(&program.expect);
    let nameless = stack_of(report, 928);
    assert_eq!(nameless.frames[0].function, None, "{nameless:#?}");
    assert!(nameless.passes("main"), "the walk goes through code that has no name: {nameless:#?}");
}

/// A command that starts `executable` where only its own mount namespace has it, with a /tmp of its own.
fn contained(executable: &Path, unshare: &[&str]) -> Command {
    let script =
        "mount -t tmpfs none /mnt && cp \"$0\" /mnt/program && mount -t tmpfs none /tmp && exec /mnt/program";
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-c", script]).arg(executable);
    command
}

#[test]
fn programs_in_another_mount_namespace_are_read_where_they_are() {
    let mut program = Running::start(contained(&Program::new("malloc_family.c").build(), &["--mount"]));
    trace(&mut program).check(&program.expect);
    let mut program = Running::start(contained(&Program::new("jit.c").build(), &["--mount"]));
    check_jit(&trace(&mut program), &program);
}

#[test]
fn perf_maps_are_named_after_the_pid_in_the_targets_namespace() {
    let unshare = ["--mount", "--pid", "--fork", "--kill-child"];
    let mut program = Running::start_in_pid_namespace(contained(&Program::new("jit.c").build(), &unshare));
    check_jit(&trace(&mut program), &program);
}
