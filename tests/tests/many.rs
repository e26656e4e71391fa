//! Many processes at once: their probes are one link for each file, in everybody's code.

use tracer_tests::{Program, Running, Tracer};

/// From how many processes on they have their probes in common.
const MANY: usize = 17;

/// Without a harness of its own for each: they are children of the program.
#[test]
fn more_than_a_thousand_processes_are_traced_at_once() {
    const MEMBERS: usize = 1100;
    let mut herd = Program::new("herd.c").argument(MEMBERS.to_string()).start();
    let mut stranger = Program::new("live_blocks.c").argument("100").argument("10").start();
    let name = format!("herd{}", herd.pid());
    let recording = Tracer::new().alone().options(["--name", &name]).start();
    stranger.work();
    herd.work();
    let finished = recording.interrupt();
    let report = finished.report();
    report.assert_exact();
    report.check_leaks(&herd.expect);
    assert_eq!(report.processes.len(), MEMBERS);
    assert!((0..MEMBERS).all(|process| report.native_of(process) == (100, 1)), "{:#?}", report.outlines());
    assert!(report.called_by("make_blocks").is_empty(), "{:#?}", report.outlines());
    assert!(finished.stderr.iter().all(|line| line.len() < 1000), "{:#?}", finished.stderr);
    stranger.assert_unharmed();
    herd.assert_unharmed();
}

/// Nested calls, calls that fail, mappings of the allocator's own.
#[test]
fn what_one_of_many_does_is_accounted_as_if_it_were_alone() {
    let mut programs: Vec<Running> = (0..MANY).map(|_| Program::new("malloc_family.c").start()).collect();
    let tracer = programs.iter().fold(Tracer::new().alone(), |tracer, program| tracer.pid(program.pid()));
    let recording = tracer.start();
    programs.iter_mut().for_each(Running::work);
    let report = recording.interrupt().report();
    report.assert_exact();
    for program in &mut programs {
        let process = report.processes.iter().position(|process| process.pid == program.pid());
        let native = program.expect.leaks.iter().filter(|leak| leak.kind == "native");
        let expected = native.fold((0, 0), |sum, leak| (sum.0 + leak.bytes, sum.1 + leak.objects));
        assert_eq!(process.map(|process| report.native_of(process)), Some(expected), "{}", program.pid());
        program.assert_unharmed();
    }
}
