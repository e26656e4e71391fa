//! Estimates from a sample: unbiased for every size, and no call counted twice or attributed to older blocks.
//!
//! What a sample says is left to chance. The bounds are five standard errors, which a right estimate exceeds once in two
//! million runs, and the programs make so many blocks that these are a few per cent.

use tracer_tests::{Expect, Finished, Leak, Program, Report, Tracer, compile};

fn sample(program: &Program, mean: u64) -> (Finished, Expect) {
    let mut running = program.start();
    let recording = Tracer::new().pid(running.pid()).options(["--sample", &mean.to_string()]).start();
    running.work();
    let finished = recording.interrupt();
    running.assert_unharmed();
    (finished, running.expect.clone())
}

/// The standard error of an estimate of the bytes of `objects` blocks of `size` bytes, of one sample every `mean` bytes.
fn standard_error(size: u64, objects: u64, mean: u64) -> f64 {
    let chance = -(-(size.max(1) as f64) / mean as f64).exp_m1();
    size as f64 * (objects as f64 * (1.0 - chance) / chance).sqrt()
}

/// Panics unless what the function holds is estimated right.
fn check(report: &Report, leak: &Leak, mean: u64) {
    let stacks = report.called_by(&leak.function);
    let stacks: Vec<_> =
        stacks.iter().filter(|stack| leak.api.split('|').any(|api| api == stack.api)).collect();
    let bytes: u64 = stacks.iter().map(|stack| stack.outstanding_bytes).sum();
    let objects: u64 = stacks.iter().map(|stack| stack.outstanding_objects).sum();
    let size = leak.bytes / leak.objects;
    let error = standard_error(size, leak.objects, mean);
    let off = bytes as f64 - leak.bytes as f64;
    println!(
        "{size} B of {mean} B: {off:+.0} B of {}, {:+.2} standard errors",
        leak.bytes,
        off / error.max(1.0)
    );
    // The last term is what rounding the weights may make of it.
    let allowed = |error: f64, exact: u64| 5.0 * error + 2e-5 * exact as f64 + 1.0;
    assert!(off.abs() <= allowed(error, leak.bytes), "{leak:?}: {bytes} B; {:#?}", report.outlines());
    let off = (objects as f64 - leak.objects as f64).abs();
    assert!(off <= allowed(error / size as f64, leak.objects), "{leak:?}: {objects} objects");
}

fn check_estimates(program: &Program, mean: u64) -> (Report, Expect) {
    let (finished, expect) = sample(program, mean);
    let summary = finished.stdout.join("\n");
    let report = finished.report();
    report.assert_nothing_lost_but(&[]);
    report.assert_balanced();
    assert_eq!(report.settings["sample_bytes"], mean);
    assert!(summary.contains("estimated from a sample"), "{summary}");
    for leak in &expect.leaks {
        check(&report, leak, mean);
    }
    // Calls are counted, kept or not.
    let freed = expect.freed.expect("the program knows");
    let left: u64 = expect.leaks.iter().map(|leak| leak.objects).sum();
    assert_eq!(report.events.allocations, freed.objects + left, "{:?}", report.events);
    let older = expect.unmatched_frees.unwrap_or(0);
    assert_eq!(
        report.events.frees + report.events.unmatched_frees,
        freed.objects + older,
        "{:?}",
        report.events
    );
    (report, expect)
}

#[test]
fn estimates_are_unbiased_from_8_bytes_to_8_mebibytes() {
    let (report, expect) = check_estimates(&Program::new("sampling.c"), 512);
    // 40,000 frees of blocks from before the window, told by what is left, of which the standard error is 3,700.
    let older = report.events.unmatched_frees;
    assert!((21_500..58_500).contains(&older), "{:?}", report.events);
    let total = report.totals.outstanding_bytes as f64;
    let exact = expect.leaks.iter().map(|leak| leak.bytes).sum::<u64>() as f64;
    assert!((total / exact - 1.0).abs() < 0.05);
}

#[test]
fn the_usual_mean_is_within_five_per_cent_in_all() {
    let (report, expect) = check_estimates(&Program::new("sampling.c"), 512 << 10);
    let exact = expect.leaks.iter().map(|leak| leak.bytes).sum::<u64>() as f64;
    let total = report.totals.outstanding_bytes as f64;
    assert!((total / exact - 1.0).abs() < 0.05, "{total} of {exact}");
}

#[test]
fn what_a_call_that_was_left_out_calls_is_no_allocation() {
    let allocator = compile("own_allocator.c", &["-shared".into(), "-fPIC".into(), "-fno-builtin".into()]);
    let program = Program::new("sampling.c").flag(allocator.display().to_string()).argument("nested");
    let (report, expect) = check_estimates(&program, 4096);
    // Nothing is attributed to the allocator's own functions.
    assert_eq!(
        report.stacks.iter().filter(|stack| stack.allocated_bytes > 0 && stack.kind == "native").count(),
        expect.leaks.len(),
        "{:#?}",
        report.outlines()
    );
}

#[test]
fn what_is_certain_to_be_kept_is_exact() {
    // One sample a byte: a block of 48 bytes is left out once in 10^20 times.
    let mut program = Program::new("live_blocks.c").argument("20000").argument("7000").start();
    let recording = Tracer::new().pid(program.pid()).options(["--sample", "1"]).start();
    program.work();
    recording.interrupt().report().check(&program.expect);
    program.assert_unharmed();
}
