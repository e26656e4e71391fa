//! Targets in namespaces and root directories of their own, as containers have them, and files that are not what they were.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tracer_tests::{Program, Running, Tracer, trace, trace_with};

/// How many blocks [`program`] makes, and how many of them it leaks.
const BLOCKS: [&str; 2] = ["1000", "30"];

/// A target of which everything is known.
fn program() -> Program {
    Program::new("live_blocks.c")
}

/// As [`program`], for musl.
fn musl_program() -> Program {
    let directory = PathBuf::from(format!("/usr/lib/{}-linux-musl", std::env::consts::ARCH));
    let specs = directory.join("musl-gcc.specs");
    assert!(specs.is_file(), "{} is there: install musl-tools or run `cargo xtask setup`", specs.display());
    program().flag("-specs").flag(specs.display().to_string())
}

/// Copies by another process: a file that this one had open for writing could not be executed while a fork of it lives.
#[track_caller]
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("it is in a directory")).expect("there is room");
    let copied = Command::new("cp").arg("--dereference").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} can be copied", from.display());
}

/// A root directory with `program` in it, and the libraries that it needs.
#[track_caller]
fn root_for(executable: &Path) -> TempDir {
    let root = TempDir::new().expect("a temporary directory");
    copy(executable, &root.path().join("program"));
    let listed = Command::new("ldd").arg(executable).output().expect("ldd can be run");
    let listed = String::from_utf8_lossy(&listed.stdout);
    let libraries: Vec<&str> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    assert!(!libraries.is_empty(), "it needs libraries: {listed}");
    for library in libraries {
        let library = library.trim_end_matches(':');
        copy(Path::new(library), &root.path().join(&library[1..]));
    }
    root
}

/// Starts the program in a root directory, with mounts, pids and users of its own.
#[track_caller]
fn start_contained(root: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "chroot"]);
    command.arg(root).arg("/program").args(arguments);
    Running::start_in_pid_namespace(command)
}

#[test]
fn a_program_in_a_musl_container() {
    let root = TempDir::new().expect("a temporary directory");
    copy(&musl_program().build(), &root.path().join("program"));
    let library = format!("lib/ld-musl-{}.so.1", std::env::consts::ARCH);
    copy(&Path::new("/").join(&library), &root.path().join(&library));
    let mut program = start_contained(root.path(), &BLOCKS);
    let report = trace(&mut program);
    report.check(&program.expect);
    let [stack] = report.called_by("make_blocks")[..] else { panic!("{:#?}", report.outlines()) };
    assert!(stack.passes("main") && stack.frames[0].module.as_deref() == Some("program"), "{stack:#?}");
    program.assert_unharmed();
}

#[test]
fn a_program_in_a_glibc_container() {
    let root = root_for(&program().build());
    let mut program = start_contained(root.path(), &BLOCKS);
    let report = trace(&mut program);
    report.check(&program.expect);
    assert!(report.events.incomplete_stacks.is_empty(), "{:?}", report.events);
    let [stack] = report.called_by("make_blocks")[..] else { panic!("{:#?}", report.outlines()) };
    assert!(stack.complete && stack.passes("main") && stack.passes("_start"), "{stack:#?}");
    program.assert_unharmed();
}

#[test]
fn following_in_a_container() {
    let root = root_for(&Program::new("family.c").build());
    let mut program = start_contained(root.path(), &[]);
    let recording = Tracer::new().options(["--follow"]).pid(program.pid()).start();
    program.go();
    program.wait_for_lines(&["done", "orphaned"]);
    let report = recording.interrupt().report();
    report.assert_exact();
    // The program in it has no /proc, so the child that wants to execute itself cannot.
    for function in ["leak_in_parent", "leak_in_child", "leak_in_grandchild", "leak_as_orphan"] {
        let leak = program.expect.leaks.iter().find(|leak| leak.function == function).expect("announced");
        let place = report.process_of(function);
        assert!(report.native_of(place).0 >= leak.bytes, "{leak:?}: {:#?}", report.outlines());
    }
    program.assert_unharmed();
}

#[test]
fn files_that_were_replaced_while_they_are_mapped() {
    let root = root_for(&program().build());
    let mut program = start_contained(root.path(), &BLOCKS);
    // As a package manager does it: the new file takes the place of the old one, which lives on without a name.
    let files: Vec<PathBuf> = files_below(root.path());
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let new = file.with_extension("dpkg-new");
        fs::write(&new, b"\x7fELF, but of another kind").expect("there is room");
        fs::rename(&new, &file).expect("it can be replaced");
    }
    let report = trace(&mut program);
    report.check(&program.expect);
    assert!(report.called_by("make_blocks")[0].passes("main"), "{:#?}", report.outlines());
    program.assert_unharmed();
}

#[test]
fn files_that_were_deleted_while_they_are_mapped() {
    let root = root_for(&program().build());
    let mut program = start_contained(root.path(), &BLOCKS);
    files_below(root.path()).iter().for_each(|file| fs::remove_file(file).expect("it can be deleted"));
    trace(&mut program).check(&program.expect);
    program.assert_unharmed();
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("it can be listed").flatten();
    entries
        .flat_map(|entry| match entry.file_type().expect("it is there") {
            kind if kind.is_dir() => files_below(&entry.path()),
            _ => vec![entry.path()],
        })
        .collect()
}

/// Two containers of one image: each file is one file underneath, with two faces.
#[test]
fn programs_on_overlays_of_one_image() {
    let image = root_for(&program().build());
    let start = || {
        let script = "d=$(mktemp -d) && mount -t tmpfs none $d && mkdir $d/up $d/work $d/root && \
             mount -t overlay overlay -o lowerdir=$0,upperdir=$d/up,workdir=$d/work $d/root && \
             cd $d/root && exec chroot . /program 1000 30";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]).arg(image.path());
        Running::start_in_pid_namespace(command)
    };
    let mut first = start();
    let report = trace(&mut first);
    report.check(&first.expect);
    assert!(report.called_by("make_blocks")[0].passes("main"), "{:#?}", report.outlines());

    for options in [&[][..], &["--follow"]] {
        let mut programs = [start(), start()];
        let recording = Tracer::new().options(options).pid(programs[0].pid()).pid(programs[1].pid()).start();
        programs.iter_mut().for_each(Running::work);
        let report = recording.interrupt().report();
        report.assert_exact();
        let totals = (report.totals.outstanding_bytes, report.totals.outstanding_objects);
        assert_eq!(totals, (2 * 30 * 48, 2 * 30), "{options:?}: {:#?}", report.outlines());
        programs.iter_mut().for_each(Running::assert_unharmed);
    }
}

#[test]
fn names_of_files_that_are_not_in_utf8() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join(OsStr::from_bytes(b"prog\xff\xferam"));
    copy(&program().build(), &path);
    let mut command = Command::new(&path);
    command.args(BLOCKS);
    let mut program = Running::start(command);
    let report = trace_with(&mut program, Tracer::new());
    report.check(&program.expect);
    assert!(report.called_by("make_blocks")[0].passes("main"), "{:#?}", report.outlines());
}
