//! What a tracer must not leave behind: breakpoints in the target's code, loaded BPF programs, mounts.

use std::{collections::BTreeSet, fs, ops::Range, os::unix::fs::FileExt, path::PathBuf};

use crate::{bpf, process};

/// What a running tracer holds that must be gone with it.
#[derive(Debug)]
pub(crate) struct Holdings {
    programs: BTreeSet<u32>,
    mounts: String,
}

impl Holdings {
    /// Takes stock. `tracer` is its pid.
    pub(crate) fn of(tracer: u32) -> Self {
        Self { programs: bpf::programs_held_by(tracer), mounts: mounts() }
    }

    /// Panics unless everything is gone, and the mounts are those of before.
    #[track_caller]
    pub(crate) fn assert_released(&self) {
        // The kernel lets go of them after RCU grace periods.
        process::wait_until("the BPF programs of a tracer that ended are unloaded", || {
            self.programs.iter().all(|&id| !bpf::program_exists(id)).then_some(())
        });
        assert_eq!(mounts(), self.mounts, "the tracer changed the mounts");
    }
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").expect("the mounts can be read")
}

/// Panics when code of `pid` differs from the file it was mapped from, as a forgotten breakpoint makes it.
#[track_caller]
pub fn assert_text_is_pristine(pid: u32) {
    process::wait_until("the target's code is as its files have it", || {
        modified_text(pid).is_empty().then_some(())
    });
}

/// The addresses where the code of `pid` differs from its files. Empty when the process is gone.
///
/// Position-independent code has no relocations in its text, so any difference is a change made at run time. What stays of a killed
/// tracer's code behind that of a file is none: nobody executes it, but for who comes back from a handler.
#[must_use]
pub fn modified_text(pid: u32) -> Vec<u64> {
    let mut modified = Vec::new();
    let done = gate_stubs(pid, b"tracer gate done");
    for text in text_mappings(pid) {
        let length = usize::try_from(text.end - text.start).expect("a mapping fits the address space");
        let Some(now) = process::read_memory(pid, text.start, length) else { continue };
        let Ok(file) = fs::File::open(&text.file) else { continue };
        let mut on_disk = vec![0; length];
        let read = file.read_at(&mut on_disk, text.offset).unwrap_or(0);
        let differing = differing(&now, &on_disk[..read]);
        modified.extend(differing.into_iter().map(|at| text.start + at as u64));
    }
    modified.retain(|at| !done.iter().any(|left| left.contains(at)));
    modified
}

/// Where code is with this mark that makes, or made, the calls of a gate: behind the end of some file's code.
#[must_use]
pub fn gate_stubs(pid: u32, mark: &[u8; 16]) -> Vec<Range<u64>> {
    const PAGE: u64 = 4096;
    /// Where it says how long it is, as far as it stays there.
    const KEPT: usize = 24;
    let of_page = |at: u64| {
        let page = process::read_memory(pid, at, PAGE as usize).unwrap_or_default();
        let range = |offset: usize| {
            let kept = page.get(offset + KEPT..)?.first_chunk()?;
            let start = at + offset as u64;
            page[offset..]
                .starts_with(mark)
                .then(|| start..start + u64::from(u32::from_le_bytes(*kept)).next_multiple_of(16))
        };
        (0..page.len()).step_by(mark.len()).filter_map(range).collect::<Vec<_>>()
    };
    text_mappings(pid).iter().flat_map(|text| of_page(text.end - PAGE)).collect()
}

/// Where two pieces of code differ. Most pages are alike, which is told at once.
fn differing(now: &[u8], disk: &[u8]) -> Vec<usize> {
    const PAGE: usize = 4096;
    let pages = now.chunks(PAGE).zip(disk.chunks(PAGE)).enumerate();
    let bytes = |(page, (now, disk)): (usize, (&[u8], &[u8]))| {
        let differing = now.iter().zip(disk).enumerate().filter(|(_, (now, disk))| now != disk);
        differing.map(|(at, _)| page * PAGE + at).collect::<Vec<_>>()
    };
    pages.filter(|(_, (now, disk))| now != disk).flat_map(bytes).collect()
}

struct TextMapping {
    start: u64,
    end: u64,
    offset: u64,
    file: PathBuf,
}

/// The executable mappings of files that are still there.
fn text_mappings(pid: u32) -> Vec<TextMapping> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter_map(text_mapping).collect()
}

fn text_mapping(line: &str) -> Option<TextMapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let file = fields.nth(2).filter(|path| path.starts_with('/') && permissions == "r-xp")?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(TextMapping { start: number(start)?, end: number(end)?, offset: number(offset)?, file: file.into() })
}
