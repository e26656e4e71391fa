#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tracer::fuzzing::jit_dump(bytes));
