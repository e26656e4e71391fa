//! What a tracer must not leave behind: breakpoints in the target's code, loaded BPF programs, mounts.

use std::{collections::BTreeSet, fs, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use crate::{bpf, process};

/// How long the kernel may take to let go of the programs of a tracer that is gone (it waits for RCU grace periods).
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

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
        process::wait_until("the BPF programs of a tracer that ended are unloaded", RELEASE_LIMIT, || {
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
    process::wait_until("the target's code is as its files have it", RELEASE_LIMIT, || {
        modified_text(pid).is_empty().then_some(())
    });
}

/// The addresses where the code of `pid` differs from its files. Empty when the process is gone.
///
/// Position-independent code has no relocations in its text, so any difference is a change made at run time.
#[must_use]
pub fn modified_text(pid: u32) -> Vec<u64> {
    let mut modified = Vec::new();
    for text in text_mappings(pid) {
        let length = usize::try_from(text.end - text.start).expect("a mapping fits the address space");
        let Some(now) = process::read_memory(pid, text.start, length) else { continue };
        let Ok(file) = fs::File::open(&text.file) else { continue };
        let mut on_disk = vec![0; length];
        let read = file.read_at(&mut on_disk, text.offset).unwrap_or(0);
        let differing = now.iter().zip(&on_disk[..read]).enumerate().filter(|(_, (now, disk))| now != disk);
        modified.extend(differing.map(|(at, _)| text.start + at as u64));
    }
    modified
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
