//! Python functions by name, file and line, in processes that were started without any flag: what the report says of an allocation is
//! compared with what the interpreter told the program itself at that moment.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;
use tracer_tests::{
    Frame, Functions, Moving, Pairs, Place, Report, Running, Tracer, is_thorough, programs_dir, python,
    pythons, stacks_wanted, trace_with, version,
};

/// What one recording of `python/functions.py` gave.
struct Recorded {
    report: Report,
    stated: Vec<Functions>,
}

/// Says the version, and whether the interpreter does without its lock.
const VERSION: &str = "import sys; print(sys.version.split()[0] + getattr(sys, 'abiflags', ''))";

/// The size of the blocks that the program leaks, and nobody else.
const SIZE: u64 = 4321;

fn record(python: &Path, arguments: &[&str], tracer: Tracer) -> Recorded {
    let directory = TempDir::new().expect("a temporary directory");
    let stacks = directory.path().join("stacks.json");
    let mut command = Command::new(python);
    command.arg(programs_dir().join("python/functions.py")).arg(&stacks).args(arguments);
    let mut program = Running::start(command);
    let report = trace_with(&mut program, tracer);
    program.assert_unharmed();
    let text = fs::read_to_string(stacks).expect("the program has stated its stacks");
    let stated: Vec<Vec<(String, String, u32)>> =
        serde_json::from_str(&text).expect("it states functions, files and lines");
    let place = |(name, file, line): (String, String, u32)| -> Place { (name, Some(file), Some(line)) };
    Recorded {
        report,
        stated: stated.into_iter().map(|stack| stack.into_iter().map(place).collect()).collect(),
    }
}

impl Recorded {
    /// The functions of each block that the program leaked.
    fn told(&self) -> Vec<Functions> {
        let is_leak = |objects: u64, bytes: u64| objects > 0 && bytes == SIZE * objects;
        let leaks = self
            .report
            .stacks
            .iter()
            .filter(|stack| is_leak(stack.outstanding_objects, stack.outstanding_bytes));
        let functions = |frames: &[Frame]| -> Functions {
            let written = |frame: &&Frame| frame.language.as_deref() == Some("python");
            let place =
                |frame: &Frame| (frame.function.clone().unwrap_or_default(), frame.file.clone(), frame.line);
            frames.iter().filter(written).map(place).collect()
        };
        leaks.flat_map(|stack| vec![functions(&stack.frames); stack.outstanding_objects as usize]).collect()
    }
}

#[test]
fn functions_are_those_that_the_interpreter_tells() {
    for python in pythons() {
        let recorded = record(&python, &["10"], Tracer::new());
        let told = recorded.told();
        let stated = recorded.stated.len();
        assert!(stated > 1000 && told.len() == stated, "{python:?}: {} of {stated} allocations", told.len());
        let pairs = Pairs::of(&recorded.stated, told);
        let (functions, lines) = pairs.shares();
        let place = if python.starts_with("/usr/bin") { " (Debian)" } else { "" };
        pairs.say_shares(&format!("CPython {}{place}", version(&python, &["-c", VERSION])));
        assert!(functions >= 99.0, "{python:?}: {functions} %: {:#?}", pairs.wrong(3));
        assert!(lines >= 98.0, "{python:?}: {lines} %: {:#?}", pairs.wrong(3));
    }
}

/// Code is dropped at once, and other code is at its addresses: names may be missing, but none is another function's.
#[test]
fn code_that_is_gone_has_no_wrong_name() {
    if is_thorough() {
        return pythons().iter().for_each(|python| check_gone(python));
    }
    check_gone(Path::new(python().get_program()));
}

fn check_gone(python: &Path) {
    /// Allocations of each round, in all threads.
    const A_ROUND: u32 = 220;
    let rounds = (stacks_wanted(4400) / A_ROUND).to_string();
    let recorded = record(python, &[&rounds, "drop"], Tracer::new());
    let told = recorded.told();
    assert_eq!(told.len(), recorded.stated.len(), "{python:?}: an allocation has no stack");
    let moving = Moving::of(&recorded.stated, &told);
    let version = version(python, &["-c", VERSION]);
    moving.say(&format!("CPython {version}, modules and `exec` drop their code"));
    println!("unnamed: {:?}", recorded.report.events.unnamed_functions);
    moving.assert_names(&version);
    moving.assert_lines(&version, 0);
}

#[test]
fn frames_that_say_how_the_interpreter_works_are_shown_on_request() {
    let loops = |tracer: Tracer| {
        let python = python();
        let recorded = record(Path::new(python.get_program()), &["1"], tracer);
        let frames = recorded.report.stacks.iter().flat_map(|stack| &stack.frames);
        frames.filter(|frame| frame.is("_PyEval_EvalFrameDefault")).count()
    };
    assert_eq!(loops(Tracer::new()), 0);
    assert!(loops(Tracer::new().options(["--native-frames"])) > 0);
}
