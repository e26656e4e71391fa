#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tracer::fuzzing::saved_report(bytes));
