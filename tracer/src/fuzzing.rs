//! What reads bytes that others made, as functions that a fuzzer calls: none may panic, or take long, whatever the bytes are.
//!
//! `tracer/fuzz` has a target of `cargo fuzz` for each; the tests call each with the inputs in `tracer/fuzz/corpus`.

use crate::{
    memory::heap_walk,
    model::{Address, AddressRange},
    plan::plan_object,
    report::{Options, Report as _, saved, text::Text},
    runtime::{hotspot, python, v8},
    symbolize,
    target::{Mapping, parse_maps},
    unwind::{CodeSegments, Table},
};

/// The name of a target, and what it calls.
pub type Target = (&'static str, fn(&[u8]));

/// Every function, by the name of its target.
pub const TARGETS: [Target; 9] = [
    ("glibc_arenas", glibc_arenas),
    ("jit_dump", jit_dump),
    ("mappings", mappings),
    ("perf_map", perf_map),
    ("probe_plan", probe_plan),
    ("python_lines", python_lines),
    ("runtimes", runtimes),
    ("saved_report", saved_report),
    ("unwind_table", unwind_table),
];

/// A process whose C library keeps its arenas in these bytes: the first half is its heap, the second the library's data.
pub fn glibc_arenas(bytes: &[u8]) {
    const AT: u64 = 0x5555_0000_0000;
    let half = (bytes.len() as u64 / 2) & !7;
    if half == 0 {
        return;
    }
    let ranges = [(AT, half), (AT + half, bytes.len() as u64 - half)];
    let [heap, library] = ranges.map(|(start, length)| AddressRange::sized(start, length));
    let (Some(heap), Some(library)) = (heap, library) else { return };
    let mappings =
        [Mapping::made_up(heap, "rw-p", "[heap]"), Mapping::made_up(library, "rw-p", "/libc.so.6")];
    heap_walk::count_free(&At(Address(AT), bytes), &mappings);
}

/// Memory that consists of some bytes at an address.
struct At<'a>(Address, &'a [u8]);

impl heap_walk::ReadMemory for At<'_> {
    fn read(&self, at: Address, buffer: &mut [u8]) -> bool {
        let offset = at.0.checked_sub(self.0.0).and_then(|offset| usize::try_from(offset).ok());
        let bytes = offset.and_then(|offset| self.1.get(offset..)?.get(..buffer.len()));
        bytes.is_some_and(|bytes| {
            buffer.copy_from_slice(bytes);
            true
        })
    }
}

/// A jitdump.
pub fn jit_dump(bytes: &[u8]) {
    symbolize::find_in_jit_dump(bytes, 0x1000);
}

/// `/proc/PID/maps` or `smaps`.
pub fn mappings(bytes: &[u8]) {
    for mapping in parse_maps(bytes) {
        assert!(mapping.range().start <= mapping.range().end);
    }
}

/// A perf map.
pub fn perf_map(bytes: &[u8]) {
    symbolize::find_in_perf_map(bytes, 0x1000);
}

/// An ELF file that may have an allocator.
pub fn probe_plan(bytes: &[u8]) {
    let _ = plan_object(bytes);
}

/// The table of lines of a Python function.
pub fn python_lines(bytes: &[u8]) {
    let Some((place, table)) = bytes.split_first_chunk::<4>() else { return };
    let place = i32::from_le_bytes(*place);
    for kind in [python::LineTable::Increments, python::LineTable::Ranges, python::LineTable::Locations] {
        let _ = (kind.line_at(table, place, place), kind.line_at(table, 1, place & 0xffff));
    }
}

/// An ELF file that may be the runtime of a language.
pub fn runtimes(bytes: &[u8]) {
    let _ = v8::Layout::of_elf(bytes);
    let _ = python::Build::of_elf(bytes);
    let _ = hotspot::Symbols::of_elf(bytes);
}

/// A recording that was saved: what can be read can be shown.
pub fn saved_report(bytes: &[u8]) {
    if let Ok(profile) = saved::read(bytes) {
        let shown = Text { written: &[] }.write(&profile, &Options::default(), &mut std::io::sink());
        shown.expect("nothing is in the way of writing to nowhere");
    }
}

/// An ELF file whose code is to be walked.
pub fn unwind_table(bytes: &[u8]) {
    let _ = Table::from_elf(bytes);
    let _ = CodeSegments::of(bytes);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_input_of_the_corpus_is_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs = fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let inputs: Vec<_> = inputs.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
            assert!(!inputs.is_empty(), "{name} has no input");
            inputs.iter().for_each(|input| target(input));
        }
    }

    #[test]
    fn an_input_that_is_cut_anywhere_is_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            for entry in fs::read_dir(corpus.join(name)).unwrap() {
                let input = fs::read(entry.unwrap().path()).unwrap();
                let step = (input.len() / 64).max(1);
                (0..input.len()).step_by(step).for_each(|length| target(&input[..length]));
            }
        }
    }
}
