//! Java methods by name, file and line, in processes that were started without any flag: what the report says of an allocation is compared
//! with what Java told the program itself at that moment.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;
use tracer_tests::{
    Frame, Functions, Moving, Pairs, Report, Running, Stack, Tracer, is_thorough, java_of, javas,
    stacks_wanted, trace_with, version,
};

/// What one recording of `java/Frames.java` gave.
struct Recorded {
    report: Report,
    stated: Vec<Functions>,
}

fn record(java: &Path, options: &[&str], tracer: Tracer) -> Recorded {
    record_class(java, "Frames", options, &["10", "3"], tracer)
}

fn record_class(java: &Path, class: &str, options: &[&str], arguments: &[&str], tracer: Tracer) -> Recorded {
    let directory = TempDir::new().expect("a temporary directory");
    let stacks = directory.path().join("stacks");
    let mut command = java_of(java, class, directory.path(), options);
    command.arg(&stacks).args(arguments);
    let mut program = Running::start(command);
    let report = trace_with(&mut program, tracer);
    program.assert_unharmed();
    let text = fs::read_to_string(stacks).expect("the program has stated its stacks");
    let stated = text.split_terminator("\n\n").map(|stack| stack.lines().map(stated).collect());
    Recorded { report, stated: stated.collect() }
}

/// A line of what the program states.
fn stated(line: &str) -> (String, Option<String>, Option<u32>) {
    let mut words = line.split('\t');
    let mut word = || words.next().expect("three words a line");
    let (name, file, line) = (word(), word(), word());
    (anew(name), (!file.is_empty()).then(|| file.to_owned()), line.parse().ok().filter(|&line| line > 0))
}

/// A name without the number of a class that was made at run time.
fn anew(name: &str) -> String {
    // What Java shows as `Frames$$Lambda/0x00…` is `Frames$$Lambda` here.
    let Some((class, method)) = name.split_once("/0x") else { return name.to_owned() };
    format!("{class}{}", &method[method.find('.').unwrap_or(method.len())..])
}

/// The native method by which direct buffers are allocated. In some builds the function below it has no name.
const ALLOCATE: &str = "jdk.internal.misc.Unsafe.allocateMemory0";

/// Whether it is the method that allocates and states its stack.
fn is_leak(frame: &Frame) -> bool {
    let name = frame.function.as_deref().unwrap_or_default();
    frame.language.as_deref() == Some("java") && (name.ends_with(".leak") || name.ends_with(".leakDeflater"))
}

/// Whether it is the allocation that the program stated its stack with.
fn is_stated(stack: &Stack) -> bool {
    let leaf = |name| stack.frames.first().is_some_and(|frame| frame.is(name));
    let is_java = |frame: &&Frame| frame.language.as_deref() == Some("java");
    let is_unsafe = stack.frames.iter().find(is_java).is_some_and(|frame| frame.is(ALLOCATE));
    let native = stack.frames.iter().take_while(|frame| !is_java(frame)).count();
    is_unsafe && native <= 2 && stack.frames.iter().any(is_leak) || leaf("Java_java_util_zip_Deflater_init")
}

impl Recorded {
    /// The methods of each block that was leaked, from the one that states its stack on.
    fn told(&self) -> Vec<Functions> {
        let functions = |frames: &[Frame]| -> Functions {
            let written = frames.iter().filter(|frame| frame.language.as_deref() == Some("java"));
            let place =
                |frame: &Frame| (frame.function.clone().unwrap_or_default(), frame.file.clone(), frame.line);
            written.skip_while(|frame| !is_leak(frame)).map(place).collect()
        };
        let stacks = self.report.stacks.iter().filter(|stack| is_stated(stack));
        stacks.flat_map(|stack| vec![functions(&stack.frames); stack.outstanding_objects as usize]).collect()
    }
}

impl Recorded {
    fn pairs(&self) -> Pairs {
        Pairs::of(&self.stated, self.told())
    }
}

/// What has to be right for every Java, with these options.
fn check(java: &Path, options: &[&str]) {
    let recorded = record(java, options, Tracer::new());
    let told = recorded.told();
    let stated = recorded.stated.len();
    let pairs = recorded.pairs();
    let (functions, lines) = pairs.shares();
    let complete = recorded.report.stacks.iter().filter(|stack| is_stated(stack));
    let incomplete: Vec<_> = complete.filter(|stack| !stack.complete).map(Stack::outline).collect();
    println!(
        "{} {options:?}: {} incomplete, unnamed {:?}",
        java.display(),
        incomplete.len(),
        recorded.report.events.unnamed_functions
    );
    let options_shown: String = options.iter().map(|option| format!(" `{option}`")).collect();
    pairs.say_shares(&format!("JDK {}{options_shown}", version(java, &["-version"])));
    assert!(incomplete.is_empty(), "{java:?} {options:?}: {incomplete:#?}");
    assert!(stated > 1000 && told.len() == stated, "{java:?}: {} of {stated} allocations", told.len());
    assert!(functions >= 99.0, "{java:?}: {functions} %: {:#?}", pairs.wrong(5));
    assert!(lines >= 98.0, "{java:?}: {lines} %: {:#?}", pairs.wrong(5));
}

#[test]
fn methods_are_those_that_java_tells() {
    javas().iter().for_each(|java| check(java, &[]));
}

/// The code is in one piece instead of three, and another collector moves objects.
#[test]
fn code_caches_and_collectors_make_no_difference() {
    let options = ["-XX:-SegmentedCodeCache", "-XX:+UseSerialGC"];
    check(Path::new("java"), &options);
}

/// Every collector, and each compiler alone, in the machine's own version.
#[test]
fn every_way_to_run_java_is_told() {
    let all: [&[&str]; 8] = [
        &["-XX:+UseZGC"],
        &["-XX:+UseParallelGC"],
        &["-XX:+UseShenandoahGC", "-XX:+UnlockExperimentalVMOptions"],
        &["-Xint"],
        &["-XX:TieredStopAtLevel=1"],
        &["-XX:-TieredCompilation"],
        &["-XX:-UseCompressedOops"],
        &["-XX:+PreserveFramePointer"],
    ];
    all.iter().for_each(|options| check(Path::new("java"), options));
}

/// Classes that are unloaded leave their memory to others, with the same layout: names may be missing, but none is another method's.
#[test]
fn classes_that_are_unloaded_lend_no_names() {
    for java in javas() {
        check_unloaded(&java, &[]);
        if is_thorough() {
            check_unloaded(&java, &["-XX:+UnlockExperimentalVMOptions", "-XX:+UseZGC"]);
        }
    }
}

fn check_unloaded(java: &Path, options: &[&str]) {
    let classes = stacks_wanted(300);
    let recorded = record_class(java, "Reloaded", options, &[&classes.to_string()], Tracer::new());
    let told = recorded.told();
    let all = classes as usize;
    assert_eq!((recorded.stated.len(), told.len()), (all, all), "{java:?} {options:?}");
    let copy = |stack: &Functions| {
        let names = stack.iter().map(|(name, ..)| name.as_str()).filter(|name| name.contains("Copy"));
        let mut classes: Vec<_> = names.filter_map(|name| name.split('.').next()).collect();
        classes.dedup();
        classes.join(" ")
    };
    let mut copies: Vec<_> = told.iter().map(copy).filter(|copy| !copy.is_empty()).collect();
    let named = copies.len();
    copies.sort_unstable();
    copies.dedup();
    println!(
        "{}: {named} of {classes} classes are named, {:?}",
        java.display(),
        recorded.report.events.unnamed_functions
    );
    let moving = Moving::of(&recorded.stated, &told);
    let collector = if options.is_empty() { "" } else { " `-XX:+UseZGC`" };
    moving.say(&format!("JDK {}{collector}, classes unloaded", version(java, &["-version"])));
    let title = format!("{java:?} {options:?}");
    moving.assert_names(&title);
    moving.assert_lines(&title, 0);
    // Each class allocates once: one that is told twice stands for another one.
    assert_eq!(copies.len(), named, "{java:?} {options:?}");
    assert!(copies.iter().all(|copy| copy.split(' ').count() == 1), "{java:?} {options:?}: {copies:?}");
    assert!(named > 0, "{java:?} {options:?}");
}

/// Of a virtual thread that has waited the innermost frames are on its stack: what is told are these, and that there were more.
#[test]
fn virtual_threads_say_that_their_callers_are_elsewhere() {
    const ELSEWHERE: &str = "[virtual thread: callers are not on the stack]";
    for java in javas().iter().filter(|java| has_virtual_threads(java)) {
        let recorded = record_class(java, "VirtualThreads", &[], &["20"], Tracer::new());
        let told = recorded.told();
        assert_eq!((recorded.stated.len(), told.len()), (40, 40), "{java:?}");
        let is_cut = |stack: &&Functions| stack.iter().any(|(name, ..)| name == ELSEWHERE);
        assert_eq!(told.iter().filter(is_cut).count(), 20, "{java:?}: {told:#?}");
        for mut stack in told {
            let cut = stack.iter().position(|(name, ..)| name == ELSEWHERE);
            // What carries the thread is behind.
            let carried = stack.iter().position(|(name, ..)| name.starts_with("java.lang.VirtualThread."));
            stack.truncate(cut.or(carried).unwrap_or(stack.len()));
            let is_begin = |stated: &Functions| !stack.is_empty() && stated.starts_with(&stack);
            assert!(recorded.stated.iter().any(is_begin), "{java:?}: {stack:#?}");
        }
    }
}

fn has_virtual_threads(java: &Path) -> bool {
    let output = Command::new(java).arg("-version").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = text.split('"').nth(1).and_then(|version| version.split(['.', '-', '+']).next());
    version.and_then(|version| version.parse().ok()).is_some_and(|version: u32| version >= 21)
}
