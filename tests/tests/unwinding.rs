//! Whole stacks, through code without frame pointers: the chain of functions is exactly the one that was called.

use std::fs;

use tempfile::TempDir;
use tracer_tests::{Frame, Program, Report, Running, Stack, compile, go, trace};

/// In a chain: code that is not the program's own (the C library, the compiler's, crt1.o).
const OTHERS: &str = "·";

/// The functions of a stack, leaf first: the program's own by name, neighbours of others' as one [`OTHERS`].
fn chain<'a>(stack: &'a Stack, source: &str) -> Vec<&'a str> {
    // Assembly names no source.
    let own = |frame: &Frame| {
        frame.file.as_deref().is_some_and(|file| file.ends_with(source)) || frame.is("interrupted")
    };
    let name = |frame: &'a Frame| match &frame.function {
        Some(function) if own(frame) => bare(function),
        _ => OTHERS,
    };
    let mut chain: Vec<_> = stack.frames.iter().map(name).collect();
    chain.dedup_by(|a, b| *a == OTHERS && *b == OTHERS);
    chain
}

/// A function without the program's own scope and its parameters.
fn bare(function: &str) -> &str {
    let function = function.strip_prefix("(anonymous namespace)::").unwrap_or(function);
    let function = function.strip_prefix("unwinding_rust::").unwrap_or(function);
    function.split('(').next().unwrap_or_default()
}

/// The only stack of an allocation of this size.
#[track_caller]
fn stack_of(report: &Report, bytes: u64) -> &Stack {
    let found: Vec<_> = report.stacks.iter().filter(|stack| stack.allocated_bytes == bytes).collect();
    let [stack] = found[..] else { panic!("one stack of {bytes} bytes: {:#?}", report.outlines()) };
    stack
}

/// Panics unless the stack of this size has this chain and reached the thread's base.
#[track_caller]
fn assert_complete(report: &Report, source: &str, bytes: u64, expected: &[&str]) {
    let stack = stack_of(report, bytes);
    assert_eq!(chain(stack, source), expected, "{bytes} bytes: {stack:#?}");
    assert!(stack.complete, "{bytes} bytes: {:?} {}", stack.stop, stack.outline());
}

/// Checks every case of `unwinding.c`.
#[track_caller]
fn check_c(report: &Report) {
    let complete = |bytes, expected: &[&str]| assert_complete(report, "unwinding.c", bytes, expected);
    check_c_up_to_libc(report);
    complete(101, &["plain_leaf", "plain", "main", OTHERS]);
    complete(102, &["many_arguments", "main", OTHERS]);
    complete(103, &["with_alloca", "main", OTHERS]);
    complete(104, &["with_vla", "main", OTHERS]);
    complete(105, &["realigned", "main", OTHERS]);
    complete(106, &[&["recursive"; 21][..], &["main", OTHERS]].concat());
    complete(107, &["compare", OTHERS, "sorted", "main", OTHERS]);
    complete(108, &["on_user_signal", OTHERS, "raised", "main", OTHERS]);
    let signal = stack_of(report, 108);
    assert!(signal.passes("<signal handler called>"), "{}", signal.outline());
    for bytes in [109, 110] {
        let interrupted = ["interrupted", "interrupts", "main", OTHERS];
        complete(bytes, &[&["on_bad_instruction", OTHERS][..], &interrupted].concat());
    }
    // musl has no coroutines.
    if report.stacks.iter().any(|stack| stack.allocated_bytes == 111) {
        complete(111, &["in_coroutine", "coroutine", OTHERS]);
    }
    complete(113, &["thread", OTHERS]);
    complete(114, &["leaves", "last_call", "main", OTHERS]);
    complete(21 << 12, &["maps", "main", OTHERS]);
    complete(22 << 12, &["maps_without_libc", "main", OTHERS]);
    complete(23 << 12, &["maps", "maps_in_room", "main", OTHERS]);
    for stack in &report.stacks {
        let last = stack.frames.last().and_then(|frame| frame.function.as_deref());
        let in_main = chain(stack, "unwinding.c").contains(&"main");
        assert!(!(stack.complete && in_main) || last == Some("_start"), "main has a caller: {stack:#?}");
    }
}

/// Cases that end before they come to the C library.
#[track_caller]
fn check_c_up_to_libc(report: &Report) {
    let deep = stack_of(report, 206);
    assert_eq!((deep.complete, deep.stop.as_deref()), (false, Some("too_deep")), "{}", deep.outline());
    assert!(deep.frames.len() >= 127, "{} frames", deep.frames.len());
    assert!(deep.frames.iter().all(|frame| frame.is("recursive")), "{deep:#?}");
    // A stack that leads nowhere: no function that was not called, and no claim that this is all.
    let lost = stack_of(report, 112);
    assert_eq!(lost.frames[0].function.as_deref(), Some("on_own_stack"), "{lost:#?}");
    assert!(!lost.complete && lost.frames.len() <= 2, "{lost:#?}");
}

fn record_c(flags: &[&str]) -> Report {
    let program = flags.iter().fold(Program::new("unwinding.c"), |program, flag| program.flag(*flag));
    let mut program = program.start();
    let report = trace(&mut program);
    report.assert_exact();
    report.check_leaks(&program.expect);
    program.assert_unharmed();
    report
}

const NO_FRAME_POINTERS: &str = "-fomit-frame-pointer";

#[test]
fn c_at_every_optimisation() {
    for optimisation in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        check_c(&record_c(&[NO_FRAME_POINTERS, optimisation]));
    }
}

#[test]
fn c_that_is_static_or_position_independent() {
    for linkage in [&["-static"][..], &["-static-pie", "-fPIE"], &["-no-pie"], &["-pie", "-fPIE"]] {
        check_c(&record_c(&[&[NO_FRAME_POINTERS], linkage].concat()));
    }
}

#[test]
fn c_built_with_and_without_control_flow_protection() {
    for flags in [&["-fcf-protection=full", "-Wl,-z,ibtplt"][..], &["-fcf-protection=none", "-Wl,-z,lazy"]] {
        check_c(&record_c(&[&[NO_FRAME_POINTERS], flags].concat()));
    }
}

/// What debuggers read describes the program's own code, and what the start files bring along describes the rest.
#[test]
fn c_described_for_debuggers_alone() {
    check_c(&record_c(&[NO_FRAME_POINTERS, "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]));
}

/// musl has no unwind tables: its frames are found by its instructions, also in its shared library, which is stripped.
#[test]
fn c_with_musl() {
    let specs = ["-specs", "/usr/lib/x86_64-linux-musl/musl-gcc.specs"];
    for linkage in [&["-static"][..], &["-static-pie", "-fPIE"], &["-Wl,-z,now"]] {
        let report = record_c(&[&[NO_FRAME_POINTERS], linkage, &specs].concat());
        check_c(&report);
        for stack in &report.stacks {
            let too_deep = stack.stop.as_deref() == Some("too_deep");
            let on_own_stack = stack.allocated_bytes == 112;
            assert!(stack.complete || too_deep || on_own_stack, "{linkage:?}: {stack:#?}");
        }
    }
}

#[test]
fn cxx_around_exceptions() {
    for flags in [&["-O0"][..], &["-O2"], &["-Os"], &["-static"]] {
        let program = Program::new("unwinding.cpp").flag(NO_FRAME_POINTERS);
        let mut program = flags.iter().fold(program, |program, flag| program.flag(*flag)).start();
        let report = trace(&mut program);
        report.assert_exact();
        report.check_leaks(&program.expect);
        let complete = |bytes, expected: &[&str]| assert_complete(&report, "unwinding.cpp", bytes, expected);
        complete(201, &["Guard::~Guard", "passed_through", "catches_and_allocates", "main", OTHERS]);
        complete(202, &["allocate", "catches_and_allocates", "main", OTHERS]);
        complete(203, &["Failure::Failure", "throws_copy", "catches_copy", "main", OTHERS]);
        complete(204, &["Guard::~Guard", "passed_twice", "rethrows", "catches_rethrown", "main", OTHERS]);
        let through = ["passed_through", "passed_twice", "rethrows", "catches_rethrown", "main", OTHERS];
        complete(205, &[&["Guard::~Guard"][..], &through].concat());
        complete(206, &["allocate", "rethrows", "catches_rethrown", "main", OTHERS]);
        complete(207, &["allocate", "catches_rethrown", "main", OTHERS]);
        complete(208, &["Circle::draw", "draws", "main", OTHERS]);
        complete(209, &["before", OTHERS, "sorts", "main", OTHERS]);
        program.assert_unharmed();
    }
}

#[test]
fn rust_at_every_optimisation() {
    for optimisation in ["-Copt-level=0", "-Copt-level=2", "-Copt-level=s"] {
        let mut program = Program::new("unwinding_rust.rs").flag(optimisation).start();
        let report = trace(&mut program);
        report.assert_exact();
        let complete = |bytes, expected: &[&str]| {
            let stack = stack_of(&report, bytes);
            let mut own = chain(stack, "unwinding_rust.rs");
            own.retain(|name| *name != OTHERS);
            assert_eq!(own, expected, "{stack:#?}");
            assert!(stack.complete, "{stack:#?}");
        };
        complete(301, &["allocate", "main::{{closure}}", "through_object", "main"]);
        complete(302, &["allocate", "called_back", "sorts", "main"]);
        complete(
            303,
            &[
                "allocate",
                "<unwinding_rust::Guard as core::ops::drop::Drop>::drop",
                "panics",
                "catches",
                "main",
            ],
        );
        complete(304, &["allocate", "in_thread"]);
        program.assert_unharmed();
    }
}

#[test]
fn every_instruction_of_calls_through_the_linkage_table() {
    for flags in [&["-fcf-protection=full", "-Wl,-z,ibtplt"][..], &["-fcf-protection=none"]] {
        let program = Program::new("unwinding_steps.c").flag(NO_FRAME_POINTERS).flag("-Wl,-z,lazy");
        let mut program = flags.iter().fold(program, |program, flag| program.flag(*flag)).start();
        let report = trace(&mut program);
        report.assert_exact();
        let stacks = report.called_by("on_step");
        let steps: u64 = stacks.iter().map(|stack| stack.allocated_objects).sum();
        assert!(steps > 100 && stacks.len() > 100, "{steps} steps, {} stacks", stacks.len());
        let mut cut = 0;
        for stack in &stacks {
            // While no call is under way, the CFA of the first is in rbx alone, which the walk does not know; the other has just begun.
            let resolving = |frame: &Frame| {
                let is_one = |name: &String| name.starts_with("_dl_runtime_resolve") || name == "_dl_fixup";
                frame.function.as_ref().is_some_and(is_one)
            };
            if !stack.complete && stack.frames.last().is_some_and(resolving) {
                assert_eq!(stack.stop.as_deref(), Some("unsupported_rule"), "{stack:#?}");
                cut += stack.allocated_objects;
                continue;
            }
            assert!(stack.complete, "{:?}: {}", stack.stop, stack.outline());
            let chain = chain(stack, "unwinding_steps.c");
            assert!(matches!(chain[..], ["on_step", OTHERS, "stepped", "main", OTHERS]), "{stack:#?}");
        }
        assert!(cut < 100, "{cut} of {steps} steps have no callers");
        let complete = stacks.iter().filter(|stack| stack.complete).count();
        assert!(complete > 100, "{complete} of {} stacks", stacks.len());
        let in_vdso =
            |stack: &&&Stack| stack.frames.iter().any(|frame| frame.module.as_deref() == Some("[vdso]"));
        assert!(stacks.iter().filter(in_vdso).count() > 5, "{:#?}", report.outlines());
        program.assert_unharmed();
    }
}

/// What the dynamic linker calls while it finds a function at its first call; how it aligns its stack depends on the caller's.
#[test]
fn allocations_of_the_first_call_of_a_function() {
    let calling = ["-shared", "-fPIC", NO_FRAME_POINTERS, "-Wl,-z,lazy"].map(str::to_owned);
    let calling = compile("unwinding_lazy_library.c", &calling);
    let program = Program::new("unwinding_lazy.c").flag(NO_FRAME_POINTERS).flag("-Wl,-z,lazy");
    let program = program.argument(library("provided", 40)).argument(calling.display().to_string());
    let mut program = program.start();
    let report = trace(&mut program);
    report.assert_exact();
    report.check_leaks(&program.expect);
    for number in 1..=4 {
        let stack = stack_of(&report, 700 + number);
        let names = stack.frames.iter().filter_map(|frame| frame.function.as_deref());
        let own: Vec<_> =
            names.filter(|name| !name.starts_with("_dl_") && !name.starts_with("elf_")).collect();
        let (resolver, chooses) = (format!("chosen_{number}"), format!("chooses_{number}"));
        assert_eq!(own[..4], [&resolver, &chooses, "aligned", "main"], "{stack:#?}");
        assert!(stack.complete && stack.passes("_dl_fixup"), "{stack:#?}");
    }
    let by_linker =
        report.stacks.iter().find(|stack| stack.frames[0].is_in_libc() && stack.passes("needs_another"));
    let by_linker = by_linker.unwrap_or_else(|| panic!("{:#?}", report.outlines()));
    assert!(
        by_linker.complete && by_linker.passes("_dl_fixup") && by_linker.passes("main"),
        "{by_linker:#?}"
    );
    for stack in &report.stacks {
        assert!(stack.complete, "{stack:#?}");
    }
    program.assert_unharmed();
}

/// Go calls C on another stack than its own, whose frames have frame pointers.
#[test]
fn go_that_calls_c() {
    let directory = TempDir::new().expect("a temporary directory");
    let mut program = Running::start(go("calls_c", directory.path()));
    let report = trace(&mut program);
    report.assert_exact();
    report.check_leaks(&program.expect);
    for (bytes, callers) in
        [(801, &["main.callsFirst", "main.main", "runtime.main"][..]), (802, &["main.callsElsewhere"])]
    {
        let stack = stack_of(&report, bytes);
        let names: Vec<_> = stack.frames.iter().filter_map(|frame| frame.function.as_deref()).collect();
        assert_eq!(names[..2], ["leak", "from_go"], "{stack:#?}");
        let calls = names.iter().position(|name| *name == "main.calls").map(|at| &names[at + 1..]);
        assert!(calls.is_some_and(|rest| rest.starts_with(callers)), "{stack:#?}");
        assert!(stack.complete, "{stack:#?}");
    }
    program.assert_unharmed();
}

/// A library whose function `name` has a stack frame of its own size.
fn library(name: &str, room: u32) -> String {
    library_with(name, room, &[])
}

fn library_with(name: &str, room: u32, more: &[&str]) -> String {
    let flags = ["-shared", "-fPIC", "-Wl,-Bsymbolic", NO_FRAME_POINTERS];
    let flags = flags.iter().chain(more).map(|&flag| flag.to_owned());
    let own = [format!("-DNAME={name}"), format!("-DROOM={room}")];
    let path = compile("unwinding_library.c", &flags.chain(own).collect::<Vec<_>>());
    path.to_str().expect("paths of tests are UTF-8").to_owned()
}

/// The libraries of `unwinding_loads.c`. The code of `third` is that of `first`, byte for byte, under another name.
fn libraries() -> [String; 3] {
    [("first", 40), ("second", 400), ("third", 40)].map(|(name, room)| library(name, room))
}

fn record_loads(cycles: u32, calls: u32, pause_us: u32) -> Report {
    record_loads_of(&libraries(), cycles, calls, pause_us)
}

fn record_loads_of(libraries: &[String], cycles: u32, calls: u32, pause_us: u32) -> Report {
    let program = Program::new("unwinding_loads.c").flag(NO_FRAME_POINTERS);
    let numbers = [cycles, calls, pause_us].map(|number| number.to_string());
    let arguments = numbers.into_iter().chain(libraries.iter().cloned());
    let mut program = arguments.fold(program, |program, argument| program.argument(argument)).start();
    let report = trace(&mut program);
    report.assert_exact();
    program.assert_unharmed();
    report
}

/// The stacks of blocks of this size.
fn stacks_of(report: &Report, bytes: u64) -> Vec<&Stack> {
    let made = |stack: &&Stack| {
        stack.api == "malloc"
            && stack.allocated_bytes == stack.allocated_objects * bytes
            && stack.allocated_bytes > 0
    };
    report.stacks.iter().filter(made).collect()
}

/// While the table of a library is being made, its stacks are short and say why.
#[test]
fn libraries_that_follow_each_other_at_one_address() {
    let report = record_loads(6, 300, 1000);
    for (name, bytes, caller) in [
        ("first", 1000, "cycle"),
        ("second", 1001, "cycle"),
        ("third", 1002, "cycle"),
        ("first", 2000, "again"),
        ("third", 3000, "again"),
    ] {
        let (complete, short): (Vec<_>, Vec<_>) =
            stacks_of(&report, bytes).into_iter().partition(|stack| stack.complete);
        let [whole] = complete[..] else {
            panic!("one whole stack through {name}: {:#?}", report.outlines())
        };
        let functions: Vec<_> =
            whole.frames.iter().take(4).filter_map(|frame| frame.function.as_deref()).collect();
        let above = if caller == "again" { if bytes == 2000 { "stays" } else { "replaced" } } else { "main" };
        assert_eq!(functions, [name, "leak", caller, above], "{whole:#?}");
        for stack in short {
            assert_eq!(stack.stop.as_deref(), Some("table_not_ready"), "{stack:#?}");
        }
    }
}

/// Libraries that come and go faster than anybody can look: what is not known is not named, and nothing has another's name.
#[test]
fn libraries_that_are_gone_before_they_are_looked_at() {
    for (cycles, calls, pause_us) in [(3000, 1, 0), (600, 3, 100), (150, 3, 1000)] {
        let report = record_loads(cycles, calls, pause_us);
        let mut seen = 0;
        for (name, bytes) in [("first", 1000), ("second", 1001), ("third", 1002)] {
            for stack in stacks_of(&report, bytes) {
                seen += stack.allocated_objects;
                let leaf = stack.frames[0].function.as_deref();
                assert!(leaf.is_none_or(|leaf| leaf == name), "{bytes} bytes by {name}: {stack:#?}");
                assert!(!stack.complete || leaf == Some(name), "{stack:#?}");
                assert!(stack.complete || stack.stop.as_deref() == Some("table_not_ready"), "{stack:#?}");
            }
        }
        assert_eq!(seen, u64::from(cycles * calls), "every block has a stack");
    }
}

/// More libraries, one after the other, than there is room for the unwind tables of.
#[test]
fn the_room_of_libraries_that_are_gone_is_used_again() {
    const LIBRARIES: u32 = 40;
    // 50,000 rows each, of a million and what other files need; tables of 16 that are gone are kept.
    let library = library_with("large", 40, &["-DFUNCTIONS=\"25000\""]);
    let directory = TempDir::new().expect("a temporary directory");
    let copies: Vec<_> =
        (0..LIBRARIES).map(|number| directory.path().join(format!("large_{number}.so"))).collect();
    let copies = copies.iter().map(|copy| {
        fs::copy(&library, copy).expect("there is room");
        copy.to_str().expect("paths of tests are UTF-8").to_owned()
    });
    let report = record_loads_of(&copies.collect::<Vec<_>>(), LIBRARIES, 20, 2000);
    let of_bytes = |bytes| stacks_of(&report, bytes);
    for number in 0..u64::from(LIBRARIES) {
        for stack in of_bytes(1000 + number) {
            let leaf = stack.frames[0].function.as_deref();
            assert!(leaf.is_none_or(|leaf| leaf == "large"), "{stack:#?}");
            assert!(stack.complete || stack.stop.as_deref() == Some("table_not_ready"), "{stack:#?}");
        }
    }
    for (bytes, caller) in [(2000, "stays"), (3000, "replaced")] {
        let complete: Vec<_> = of_bytes(bytes).into_iter().filter(|stack| stack.complete).collect();
        let [whole] = complete[..] else { panic!("one whole stack: {:#?}", report.outlines()) };
        let names = whole.frames.iter().filter_map(|frame| frame.function.as_deref());
        assert_eq!(names.take(4).collect::<Vec<_>>(), ["large", "leak", "again", caller], "{whole:#?}");
    }
}

/// It is noticed at the first stack that comes to it.
#[test]
fn code_that_mprotect_made_executable() {
    let program = Program::new("unwinding_protected.c").flag(NO_FRAME_POINTERS);
    let mut program = program.argument(library("protected", 40)).start();
    let report = trace(&mut program);
    report.assert_exact();
    for (bytes, functions, wholes) in [
        (1000, &["protected", "leak", "by_library", "main"][..], 1),
        (2000, &["by_written", "main"], 1),
        (3000, &["called", "by_trampoline", "main"], 2),
    ] {
        let stacks = stacks_of(&report, bytes);
        let blocks: u64 = stacks.iter().map(|stack| stack.allocated_objects).sum();
        assert_eq!(blocks, 3000, "every block has a stack");
        let (complete, short): (Vec<_>, Vec<_>) = stacks.into_iter().partition(|stack| stack.complete);
        assert_eq!(complete.len(), wholes, "{bytes} bytes: {:#?}", report.outlines());
        for whole in complete {
            let names = whole.frames.iter().filter_map(|frame| frame.function.as_deref());
            assert_eq!(names.take(functions.len()).collect::<Vec<_>>(), functions, "{whole:#?}");
        }
        for stack in short {
            assert!(matches!(stack.stop.as_deref(), Some("table_not_ready" | "not_code")), "{stack:#?}");
        }
    }
    program.assert_unharmed();
}

#[test]
fn code_whose_mapping_was_split() {
    let mut program =
        Program::new("unwinding_split.c").flag(NO_FRAME_POINTERS).flag("-fno-pie").flag("-no-pie").start();
    let report = trace(&mut program);
    report.assert_exact();
    report.check_leaks(&program.expect);
    let chain = ["in_third", "in_second", "in_first", "main", OTHERS];
    assert_complete(&report, "unwinding_split.c", 501, &chain);
    program.assert_unharmed();
}
