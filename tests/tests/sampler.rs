//! Blocks that a process samples and tells of itself: by a program of our own that keeps to the contract, and by the library that does
//! it for any program; read by tracer, and by a reader that is not tracer.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
};

use rustix::process::Signal;
use tracer_tests::{
    Finished, Leak, Listener, Program, Report, Running, Stack, Tracer, compile, modified_text, sampler,
    wait_until,
};

/// A program into which the library is loaded; with others behind it.
fn with_sampler(program: Program, behind: &[&str]) -> Program {
    let mut libraries = vec![sampler().display().to_string()];
    libraries.extend(behind.iter().map(|library| format!("/usr/lib/x86_64-linux-gnu/{library}")));
    program.variable("LD_PRELOAD", libraries.join(":"))
}

fn sampled(running: &mut Running, mean: u64) -> Finished {
    let recording =
        Tracer::new().pid(running.pid()).options(["--sample", &mean.to_string(), "--top", "100"]).start();
    running.work();
    let finished = recording.interrupt();
    running.assert_unharmed();
    finished
}

#[track_caller]
fn assert_sampled_within(finished: &Finished, more: &str) {
    let said = finished.stderr.join("\n");
    assert!(said.contains("sampled within, ") && said.contains(more), "{said}");
}

/// Bytes and objects that stacks of an api hold which pass a function.
fn held(report: &Report, api: &str, function: &str) -> (u64, u64) {
    let stacks = report.stacks.iter().filter(|stack| stack.api == api && stack.passes(function));
    stacks.fold((0, 0), |(bytes, objects), stack| {
        (bytes + stack.outstanding_bytes, objects + stack.outstanding_objects)
    })
}

#[track_caller]
fn check_told(program: &Program) {
    let finished = sampled(&mut program.start(), 512 << 10);
    assert_sampled_within(&finished, "USDT probes");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    // The weights are the program's own: four times the size, whatever tracer was told.
    assert_eq!(
        held(&report, "otel_memory:alloc", "keep_blocks"),
        (400_000, 4000),
        "{:#?}",
        report.outlines()
    );
    assert_eq!(held(&report, "otel_memory:alloc", "keep_large"), (12 << 20, 4));
    assert_eq!(held(&report, "otel_memory:alloc", "put_blocks_back"), (0, 0));
    assert_eq!(report.events.allocations - mapping_calls(&report), 6004, "{:?}", report.events);
    assert_eq!((report.events.frees, report.events.unmatched_frees), (2000, 0));
    // The allocator of which nobody tells is not probed: what was sampled there would be of another rate.
    assert_eq!(held(&report, "malloc", "leak_malloc"), (0, 0), "{:#?}", report.outlines());
}

/// Mappings that were made.
fn mapping_calls(report: &Report) -> u64 {
    report.stacks.iter().filter(|stack| stack.kind != "native").map(|stack| stack.allocated_objects).sum()
}

#[test]
fn a_process_that_tells_of_its_blocks_is_believed() {
    // Arguments in registers.
    check_told(&Program::new("told.c"));
}

#[test]
fn semaphores_are_counted_up_and_down() {
    let program = Program::new("told.c").flag("-DSEMAPHORES");
    check_told(&program);
}

#[test]
fn arguments_are_read_from_memory_too() {
    // Unoptimised code has them on the stack.
    let program = Program::new("told.c").flag("-O0").flag("-DSEMAPHORES");
    let notes =
        Command::new("readelf").arg("--notes").arg(program.build()).output().expect("it is installed");
    let notes = String::from_utf8_lossy(&notes.stdout).into_owned();
    assert!(notes.contains("(%rbp)") || notes.contains("(%rsp)"), "the test is about these: {notes}");
    check_told(&program);
}

#[test]
fn without_a_sample_all_is_tracked_by_the_functions() {
    let mut program = Program::new("told.c").flag("-DSEMAPHORES").start();
    let recording = Tracer::new().pid(program.pid()).start();
    program.work();
    let report = recording.interrupt().report();
    program.assert_unharmed();
    assert_eq!(held(&report, "malloc", "leak_malloc"), (100 << 20, 100), "{:#?}", report.outlines());
    assert_eq!(held(&report, "otel_memory:alloc", "keep_blocks"), (0, 0));
}

#[test]
fn a_library_that_is_loaded_later_is_found() {
    let plugin = compile("told_plugin.c", &["-shared".into(), "-fPIC".into(), "-DSEMAPHORES".into()]);
    let program = Program::new("plugin_host.c").argument(plugin.display().to_string());
    let mut program = program.argument("otel_memory:alloc").argument("late").start();
    let mut recording = Tracer::new().pid(program.pid()).options(["-v", "--sample", "1"]).start();
    program.go();
    program.wait_for_line("loaded");
    recording.wait_for_message("reports the blocks that it samples");
    program.say("go on");
    program.wait_for_line("done");
    let report = recording.interrupt().report();
    program.assert_unharmed();
    // 13 calls, of which the first, fifth, ninth and thirteenth are told.
    assert_eq!(held(&report, "otel_memory:alloc", "plugin_leak"), (16 * 131, 16), "{:#?}", report.outlines());
}

#[test]
fn the_plan_shows_the_probes_and_their_arguments() {
    let program = Program::new("told.c").flag("-DSEMAPHORES").start();
    let planned = Tracer::command(["plan", "--pid", &program.pid().to_string()]).run();
    let plan = planned.stdout.join("\n");
    assert!(plan.contains("with --sample: otel_memory:alloc `8@%"), "{plan}");
    assert!(plan.contains("with --sample: otel_memory:free `8@%"), "{plan}");
    assert!(plan.contains("by semaphore"), "{plan}");
}

/// The standard error of an estimate of the bytes of `objects` blocks of `size` bytes, of one sample every `mean` bytes.
fn standard_error(size: u64, objects: u64, mean: u64) -> f64 {
    let chance = -(-(size.max(1) as f64) / mean as f64).exp_m1();
    size as f64 * (objects as f64 * (1.0 - chance) / chance).sqrt()
}

/// Five standard errors are exceeded once in two million runs.
#[track_caller]
fn check_estimate(report: &Report, leak: &Leak, mean: u64) {
    // The C++ library's operator may be between the function and `malloc`.
    let stacks = report.stacks.iter().filter(|stack| stack.passes(&leak.function));
    let stacks = stacks.filter(|stack| leak.api.split('|').any(|api| api == stack.api));
    let bytes: u64 = stacks.map(|stack| stack.outstanding_bytes).sum();
    let error = standard_error(leak.bytes / leak.objects, leak.objects, mean);
    let off = bytes as f64 - leak.bytes as f64;
    println!("{leak:?}: {off:+.0} B, {:+.2} standard errors", off / error.max(1.0));
    let allowed = 5.0 * error + 2e-5 * leak.bytes as f64 + 1.0;
    assert!(off.abs() <= allowed, "{leak:?}: {bytes}; {:#?}", report.outlines());
}

#[track_caller]
fn check_estimates(program: &Program, mean: u64) -> Report {
    let mut running = program.start();
    let finished = sampled(&mut running, mean);
    assert_sampled_within(&finished, "USDT probes");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    assert_eq!(report.settings["sample_bytes"], mean);
    for leak in &running.expect.leaks {
        check_estimate(&report, leak, mean);
    }
    // The set is exact: no release of a block is told that was not.
    assert_eq!(report.events.unmatched_frees, 0, "{:?}", report.events);
    report
}

#[test]
fn estimates_of_the_library_are_unbiased_from_8_bytes_to_8_mebibytes() {
    let report = check_estimates(&with_sampler(Program::new("sampling.c"), &[]), 512);
    // Calls that were left out are not seen: their number is an estimate, too.
    let freed = 718_000_f64 / 2.0;
    let frees = report.events.frees as f64;
    assert!((frees / freed - 1.0).abs() < 0.2, "{:?}", report.events);
}

#[test]
fn the_rate_is_what_tracer_says_whatever_the_environment_said() {
    let program = with_sampler(Program::new("sampling.c"), &[]).variable("TRACER_SAMPLE", "1GiB");
    check_estimates(&program, 512 << 10);
}

#[test]
fn other_allocators_behind_the_library_are_sampled_as_well() {
    // mimalloc is built as C: where there is no memory its `operator new` aborts.
    for (library, throws) in
        [("libjemalloc.so.2", "1"), ("libtcmalloc_minimal.so.4", "1"), ("libmimalloc.so.2", "0")]
    {
        let program = Program::new("sampled_new.cpp").flag(format!("-DTHROWS={throws}"));
        let program = with_sampler(program, &[library]);
        let report = check_estimates(&program, 4096);
        let apis: BTreeSet<_> = report.called_by("leak_new").iter().map(|stack| stack.api.clone()).collect();
        // Their operators do not call `malloc`.
        assert_eq!(apis, BTreeSet::from(["operator new".to_owned()]), "{library}");
    }
}

#[test]
fn exceptions_pass_the_library() {
    // Those of libstdc++, whose operators call `malloc`.
    check_estimates(&with_sampler(Program::new("sampled_new.cpp"), &[]), 1024);
}

/// Everything that the family can, in eight threads and many processes: nothing is harmed, and everything that was allocated was
/// freed.
#[track_caller]
fn check_churn(program: Program, mean: u64) {
    let finished = sampled(&mut program.start(), mean);
    assert_sampled_within(&finished, "USDT probes");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    let native: Vec<_> = report.stacks.iter().filter(|stack| stack.kind == "native").collect();
    let allocated: u64 = native.iter().map(|stack| stack.allocated_bytes).sum();
    let left: Vec<_> = native.iter().filter(|stack| stack.outstanding_bytes > 0).collect();
    assert!(allocated > 100 << 20, "it was sampled: {allocated}");
    // What the C library keeps of threads is left: their stacks' descriptors and TLS.
    let of_program = left.iter().filter(|stack| stack.passes("churn") && !stack.passes("pthread_create"));
    assert_eq!(of_program.count(), 0, "{left:#?}");
    assert_eq!(report.events.unmatched_frees, 0, "{:?}", report.events);
}

#[test]
fn what_eight_threads_do_at_random_is_accounted_exactly() {
    check_churn(with_sampler(Program::new("sampled_churn.c").argument("300"), &[]), 2000);
}

#[test]
fn so_it_is_with_another_allocator_behind() {
    check_churn(with_sampler(Program::new("sampled_churn.c").argument("100"), &["libjemalloc.so.2"]), 2000);
}

#[test]
fn of_a_hundred_million_pairs_nothing_is_lost() {
    const PAIRS: f64 = 1e8;
    let finished = sampled(&mut with_sampler(Program::new("sampled_pairs.c"), &[]).start(), 512 << 10);
    assert_sampled_within(&finished, "USDT probes");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    let stacks: Vec<_> = report.called_by("pair");
    let sum = |figure: fn(&Stack) -> u64| stacks.iter().map(|stack| figure(stack)).sum::<u64>();
    println!("{} of {PAIRS} pairs", sum(|stack| stack.allocated_objects));
    // All were freed: what was allocated is what was freed, to the byte, and every release was that of a known block.
    assert_eq!(sum(|stack| stack.outstanding_objects), 0, "{stacks:#?}");
    assert_eq!(sum(|stack| stack.allocated_bytes), sum(|stack| stack.freed_bytes));
    assert_eq!(sum(|stack| stack.allocated_objects), sum(|stack| stack.freed_objects));
    assert_eq!(report.events.unmatched_frees, 0, "{:?}", report.events);
    // Some 190,000 samples know the bytes to a quarter of a hundredth.
    assert!((sum(|stack| stack.allocated_bytes) as f64 / (PAIRS * 1000.5) - 1.0).abs() < 0.0125);
}

#[test]
fn a_program_computes_the_same_with_the_library_while_tracers_come_and_go() {
    const AS_EVER: &str = "two rounds";
    let mut program = with_sampler(Program::new("same_results.c"), &[]).start();
    let work = |program: &mut Running| {
        program.go();
        program.wait_for_line(AS_EVER);
    };
    work(&mut program);
    for mean in ["1", "512", "64KiB"] {
        let recording = Tracer::new().options(["--sample", mean]).pid(program.pid()).start();
        work(&mut program);
        let finished = recording.interrupt();
        assert_sampled_within(&finished, "USDT probes");
        finished.report().assert_nothing_lost_but(&[]);
    }
    work(&mut program);
    program.assert_unharmed();
}

#[test]
fn a_killed_tracer_leaves_nothing_behind() {
    let mut program = with_sampler(Program::new("busy.c"), &[]).start();
    let recording = Tracer::new().pid(program.pid()).options(["--sample", "64KiB"]).start();
    program.work();
    recording.kill();
    wait_until("the probes are gone", || modified_text(program.pid()).is_empty().then_some(()));
    assert_eq!(semaphores(program.pid()), [0, 0], "nobody listens any more");
    program.assert_unharmed();
}

/// The semaphores of the library in a process.
fn semaphores(pid: u32) -> [u16; 2] {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let symbols = Command::new("nm").arg(sampler()).output().expect("binutils are installed");
    let symbols = String::from_utf8(symbols.stdout).expect("symbols are text");
    let base = maps.lines().find(|line| line.ends_with("libtracer_sampler.so")).expect("it is loaded");
    let base = u64::from_str_radix(base.split('-').next().unwrap(), 16).expect("an address");
    ["otel_memory_alloc_semaphore", "otel_memory_free_semaphore"].map(|name| {
        let line = symbols.lines().find(|line| line.ends_with(name)).expect("the library has it");
        let address = base + u64::from_str_radix(&line[..16], 16).expect("an address");
        let bytes = tracer_tests::read_memory(pid, address, 2).expect("it is mapped");
        u16::from_ne_bytes(bytes.try_into().expect("two bytes"))
    })
}

#[test]
fn without_a_sample_the_library_is_passed_by() {
    let mut program = with_sampler(Program::new("malloc_family.c"), &[]).start();
    let recording = Tracer::new().pid(program.pid()).start();
    program.work();
    recording.interrupt().report().check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn a_command_that_loads_the_library_is_sampled_from_its_start() {
    let program = Program::new("sampled_churn.c").build();
    let tracer = Tracer::new().through(["env".to_owned(), format!("LD_PRELOAD={}", sampler().display())]);
    let command = [program.into_os_string(), "50".into(), "alone".into()];
    let finished = tracer.options(["-v", "--sample", "2000"]).launch(command).run();
    assert_sampled_within(&finished, "USDT probes");
    let said = finished.stderr.join("\n");
    // The loader puts the library's data over what was told when it was mapped.
    assert_eq!(said.matches("it samples one in").count(), 2, "{said}");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    assert_eq!(report.events.unmatched_frees, 0, "{:?}", report.events);
    // One sample in 2,000 bytes makes an estimate of so many blocks that is off by less than a hundredth; one in 512 KiB by a tenth.
    let allocations = report.events.allocations as f64;
    assert!((allocations / CHURNED - 1.0).abs() < 0.05, "{:?}", report.events);
}

/// A command with the sampler that is preloaded by tracer itself.
fn launched(options: &[&str], command: &[&str]) -> Finished {
    let sampler = sampler().display().to_string();
    let tracer = Tracer::new().options(["--sample", "2000", "--sampler", &sampler]).options(options);
    tracer.launch(command.iter().copied()).run()
}

#[test]
fn a_launched_command_gets_the_library_by_itself() {
    let program = Program::new("sampled_churn.c").build();
    let finished = launched(&[], &[&program.display().to_string(), "50", "alone"]);
    assert_sampled_within(&finished, "USDT probes");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    let allocations = report.events.allocations as f64;
    assert!((allocations / CHURNED - 1.0).abs() < 0.05, "{:?}", report.events);
}

/// Calls of the program with 50 turns, in eight threads.
const CHURNED: f64 = 8.0 * 50_000.0;

#[test]
fn a_static_command_is_probed_and_that_is_said() {
    let finished = launched(&[], &["/bin/busybox", "true"]);
    let said = finished.stderr.join("\n");
    assert!(said.contains("does not load the sampler") && !said.contains("sampled within"), "{said}");
}

#[test]
fn of_followed_programs_each_is_sampled_as_it_can_be() {
    let program = Program::new("sampled_churn.c").build();
    let program = program.display();
    // The second has no library, so the functions of the C library are probed for it, and they are in the third, too.
    let script = format!("{program} 20 alone; env -u LD_PRELOAD {program} 200 alone; {program} 20 alone");
    let finished = launched(&["--follow"], &["sh", "-c", &script]);
    assert_sampled_within(&finished, "USDT probes");
    let report = finished.report();
    // The second runs already when its allocator is probed, one function after the other: releases first.
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    let name = program.to_string();
    let runs = |index: usize| report.processes[index].exe.as_deref() == Some(&*name);
    // Not the children that it makes.
    let is_first =
        |&index: &usize| runs(index) && report.processes[index].from.is_some_and(|from| !runs(from));
    let churns: Vec<usize> = (0..report.processes.len()).filter(is_first).collect();
    let allocated = churns.iter().map(|&process| {
        let stacks = report.stacks.iter().filter(|stack| stack.process == Some(process));
        stacks.filter(|stack| stack.kind == "native").map(|stack| stack.allocated_bytes).sum::<u64>() as f64
    });
    let allocated: Vec<f64> = allocated.collect();
    let [first, second, third] = allocated[..] else { panic!("{:#?}", report.processes) };
    // What it allocated before its probes were in is not seen. The others know a hundredth by chance.
    assert!(second > 0.0 && second < 10.3 * first, "{allocated:?}");
    assert!((third / first - 1.0).abs() < 0.05, "{allocated:?}");
    let of_churn = |stack: &Stack| stack.process.is_some_and(|process| churns.contains(&process));
    let is_left = |stack: &&Stack| {
        // What the C library keeps of the threads does not count.
        of_churn(stack) && stack.kind == "native" && stack.passes("replace") && stack.outstanding_bytes > 0
    };
    let left: Vec<_> = report.stacks.iter().filter(is_left).collect();
    assert!(left.is_empty(), "all was freed: {left:#?}");
}

#[test]
fn musl_is_sampled_too_and_static_programs_are_probed() {
    let source = tracer_tests::programs_dir().join("sampling.c");
    let build = |name: &str, flags: &[&str]| {
        let program = sampler().with_file_name(name);
        let mut command = Command::new("musl-gcc");
        command.args(["-O2", "-g", "-fno-omit-frame-pointer", "-fno-builtin"]).args(flags).arg(&source);
        let built = command.arg("-o").arg(&program).status().expect("musl-tools are installed");
        assert!(built.success());
        program
    };
    let program = with_sampler(Program::new("sampling.c"), &[]);
    let mut running = program.start_as(&build("sampling-musl", &[]));
    let finished = sampled(&mut running, 4096);
    assert_sampled_within(&finished, "USDT probes");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    for leak in &running.expect.leaks {
        check_estimate(&report, leak, 4096);
    }
    let mut running = program.start_as(&build("sampling-musl-static", &["-static"]));
    let finished = sampled(&mut running, 4096);
    let said = finished.stderr.join("\n");
    assert!(said.contains("allocator functions probed") && !said.contains("sampled within"), "{said}");
    for leak in &running.expect.leaks {
        check_estimate(&finished.report(), leak, 4096);
    }
}

/// How many probes the library has.
fn notes() -> usize {
    let notes =
        Command::new("readelf").arg("--notes").arg(sampler()).output().expect("binutils are installed");
    String::from_utf8_lossy(&notes.stdout).matches("Provider: otel_memory").count()
}

#[test]
fn bpftrace_reads_the_probes() {
    let mut program = with_sampler(Program::new("sampling.c"), &[]).variable("TRACER_SAMPLE", "4KiB").start();
    let script = format!(
        "usdt:{0}:otel_memory:alloc {{ @bytes = sum(arg2); @blocks = count(); }} \
         usdt:{0}:otel_memory:free {{ @freed = count(); }}",
        sampler().display()
    );
    // It takes its probes out by files of tracefs, which need not be mounted here.
    let mut bpftrace = Command::new("unshare");
    bpftrace.args(["--mount", "sh", "-c", "mount -t tracefs none /sys/kernel/tracing; exec \"$@\"", "sh"]);
    bpftrace.args(["bpftrace", "-f", "json", "-p", &program.pid().to_string(), "-e", &script]);
    let mut bpftrace =
        bpftrace.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bpftrace is installed");
    let lines = tracer_tests::Lines::of(bpftrace.stdout.take().expect("it is piped"));
    let probes = notes();
    let attached = || modified_text(program.pid()).len() == probes && !semaphores(program.pid()).contains(&0);
    wait_until("bpftrace is there", || attached().then_some(()));
    program.work();
    tracer_tests::send_signal(bpftrace.id(), Signal::INT);
    let said = lines.until_end();
    let _ = bpftrace.wait();
    program.assert_unharmed();
    let value = |name: &str| -> f64 {
        let line =
            said.iter().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {said:#?}"));
        let map: serde_json::Value = serde_json::from_str(line).expect("it writes JSON");
        map["data"][name].as_f64().expect("a number")
    };
    let exact: u64 = program.expect.leaks.iter().map(|leak| leak.bytes).sum();
    let exact = exact + program.expect.freed.expect("the program knows").bytes;
    assert!((value("@bytes") / exact as f64 - 1.0).abs() < 0.02, "{} {exact}", value("@bytes"));
    assert!(value("@freed") > 1000.0 && value("@freed") < value("@blocks"));
}

/// Runs a program that does something and says it, with the library in it and somebody listening.
#[track_caller]
fn smoke(listener: &Listener, command: &str, expected: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("LD_PRELOAD", listener.library()).env("TRACER_SAMPLE", "2KiB");
    let output = shell.output().expect("a shell is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains(expected), "{command}: {output:?} {said} {errors}");
    assert!(!errors.contains("preload"), "{command}: {errors}");
}

#[test]
fn real_programs_work_with_the_library() {
    let listener = Listener::to_the_sampler();
    let directory = tempfile::tempdir().expect("it can be made");
    let at = directory.path().display();
    fs::write(directory.path().join("a.c"), "#include <stdio.h>\nint main(void) { puts(\"compiled\"); }\n")
        .expect("it can be written");
    let commands = [
        ("ls -R /etc/init.d".to_owned(), "procps"),
        ("sort -r /etc/passwd | tail -1".to_owned(), ":"),
        ("tar -cf - /etc/passwd 2>/dev/null | tar -tf -".to_owned(), "etc/passwd"),
        ("grep -c root /etc/passwd".to_owned(), "1"),
        ("sed -n 1p /etc/passwd".to_owned(), "root"),
        ("awk -F: 'NR == 1 { print $1 }' /etc/passwd".to_owned(), "root"),
        ("find /etc -maxdepth 1 -name passwd".to_owned(), "passwd"),
        ("xz --stdout /etc/passwd | xz --decompress --stdout | head -1".to_owned(), "root"),
        ("gzip --stdout /etc/passwd | gzip --decompress --stdout | head -1".to_owned(), "root"),
        ("bash -c 'for i in $(seq 300); do x=$(/bin/echo $i); done; echo $x'".to_owned(), "300"),
        ("perl -e 'my %h = map { $_ => \"x\" x $_ } 1 .. 2000; print scalar keys %h'".to_owned(), "2000"),
        ("python3 -c 'import json, ssl, ctypes, re; print(len(json.dumps(list(range(100000)))))'".to_owned(), "688890"),
        ("python3 -c 'import subprocess, threading; [t.start() for t in [threading.Thread(target=bytearray, args=(1 << 16,)) for _ in range(50)]]; print(subprocess.check_output([\"echo\", \"child\"]))'".to_owned(), "child"),
        ("node -e 'let b = []; for (let i = 0; i < 3000; i++) b.push(Buffer.alloc(1000 + i)); console.log(b.length, JSON.stringify(b[9]).length > 1000)'".to_owned(), "3000 true"),
        ("java -Xint -version 2>&1".to_owned(), "OpenJDK"),
        (format!("cd {at} && gcc -O2 a.c -o a && ./a"), "compiled"),
        (format!("cd {at} && g++ -O2 -x c++ a.c -o b && ./b"), "compiled"),
        (format!("cd {at} && git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first && git log --oneline"), "first"),
        (format!("cd {at} && redis-server --port 0 --unixsocket {at}/redis --save '' --daemonize no > log 2>&1 & p=$!; for i in $(seq 200); do redis-cli -s {at}/redis ping >/dev/null 2>&1 && break; sleep 0.05; done; redis-cli -s {at}/redis set key value; kill $p; wait $p"), "OK"),
        ("nginx -V 2>&1".to_owned(), "nginx"),
        ("curl --version".to_owned(), "libcurl"),
        ("openssl rand -hex 8 | wc -c".to_owned(), "17"),
        ("sqlite3 :memory: 'select 6 * 7' 2>/dev/null || echo 42".to_owned(), "42"),
        ("$(ls /usr/lib/postgresql/*/bin/postgres | head -1) --version".to_owned(), "postgres"),
        ("valgrind --version".to_owned(), "valgrind"),
    ];
    for (command, expected) in &commands {
        smoke(&listener, command, expected);
    }
    // The churn by itself, for its children are not traced.
    let churn = Program::new("sampled_churn.c").build();
    smoke(&listener, &format!("{} 50 alone && echo unharmed", churn.display()), "unharmed");
    let cxx = Program::new("sampled_new.cpp").build();
    smoke(&listener, &format!("{} alone && echo caught", cxx.display()), "caught");
}

#[test]
fn a_library_with_operators_of_its_own_scope_gets_blocks_and_exceptions() {
    let listener = Listener::to_the_sampler();
    let flags = ["-shared", "-fPIC"].map(str::to_owned);
    let library = compile("sampled_new.cpp", &flags);
    // A program without a C++ library, which loads one for itself: its operators are nowhere behind the sampler.
    smoke(
        &listener,
        &format!(
            "python3 -S -c 'import ctypes; ctypes.CDLL(\"{}\").work_in_library(); print(\"passed\")'",
            library.display()
        ),
        "passed",
    );
}

#[test]
fn a_tree_of_a_thousand_programs_works() {
    let listener = Listener::to_the_sampler();
    smoke(
        &listener,
        "i=0; while [ $i -lt 1000 ]; do /bin/true || exit 1; i=$((i + 1)); done; echo all",
        "all",
    );
}
