//! Where fields of the kernel's structures are: from the types that the running kernel describes (BTF).
//!
//! The format is that of the kernel's Documentation/bpf/btf.rst, as far as structures and their members go.

use anyhow::{Context as _, Result};

const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Offsets, in bytes, of what the programs that follow children read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskOffsets {
    /// `pid` in `struct task_struct`.
    pub pid: u32,
    /// `signal` in `struct task_struct`.
    pub signal: u32,
    /// `live` in `struct signal_struct`.
    pub live: u32,
}

/// How far the base of a thread's own memory, `thread.fsbase`, is in `struct task_struct`; `None` when the running kernel does not
/// describe that.
#[must_use]
pub fn thread_base() -> Option<u32> {
    let btf = std::fs::read(TYPES).ok()?;
    Some(offset_of(&btf, "task_struct", "thread")? + offset_of(&btf, "thread_struct", "fsbase")?)
}

impl TaskOffsets {
    /// Those of the running kernel.
    ///
    /// # Errors
    /// When it describes no types, or not these.
    pub fn of_this_kernel() -> Result<Self> {
        let btf = std::fs::read(TYPES).with_context(|| format!("cannot read {TYPES}"))?;
        let unknown = || format!("{TYPES} does not describe the kernel's tasks");
        let of = |structure, member| offset_of(&btf, structure, member).with_context(unknown);
        Ok(Self {
            pid: of("task_struct", "pid")?,
            signal: of("task_struct", "signal")?,
            live: of("signal_struct", "live")?,
        })
    }
}

/// Offset in bytes of a member of a structure.
fn offset_of(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    const MAGIC: u16 = 0xeb9f;
    let word = |at: usize| Some(u32::from_ne_bytes(*btf.get(at..)?.first_chunk()?));
    let half = u16::from_ne_bytes(*btf.first_chunk()?);
    let (header, types, types_length, strings) =
        (word(4)? as usize, word(8)? as usize, word(12)? as usize, word(16)? as usize);
    if half != MAGIC {
        return None;
    }
    let name = |offset: u32| {
        let text = btf.get(header + strings + offset as usize..)?;
        text.split(|&byte| byte == 0).next()
    };
    let mut at = header + types;
    let end = at + types_length;
    while at < end {
        let (name_offset, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let members = at + 12;
        if kind == STRUCT && name(name_offset)? == structure.as_bytes() {
            // With bit fields about, the upper eight bits are the width of one.
            let bits = |offset: u32| if info >> 31 == 1 { offset & 0xff_ffff } else { offset };
            let mut found = (0..count).map(|index| members + 12 * index);
            let found = found.find(|&at| word(at).and_then(name) == Some(member.as_bytes()))?;
            return Some(bits(word(found + 8)?) / 8);
        }
        at = members + trailer(kind, count)?;
    }
    None
}

const STRUCT: u32 = 4;

/// What follows a type of this kind, in bytes.
fn trailer(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        STRUCT | 5 | 15 | 19 => 12 * count,
        6 | 13 => 8 * count,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_describes_its_tasks() {
        let offsets = TaskOffsets::of_this_kernel().expect("the kernel has BTF");
        assert!(offsets.pid > 0 && offsets.signal > 0 && offsets.live > 0, "{offsets:?}");
        assert!(thread_base().is_some_and(|offset| offset > 0 && offset.is_multiple_of(8)));
        assert!(offsets.pid.is_multiple_of(4) && offsets.signal.is_multiple_of(8), "{offsets:?}");
    }

    #[test]
    fn nonsense_is_no_offset() {
        let btf = std::fs::read(TYPES).expect("the kernel has BTF");
        assert_eq!(offset_of(&btf, "task_struct", "no such member"), None);
        assert_eq!(offset_of(&btf, "no such structure", "pid"), None);
        for length in (0..4096).chain([btf.len() / 2]) {
            let _ = offset_of(&btf[..length], "task_struct", "pid");
        }
        assert_eq!(offset_of(b"nonsense that is long enough", "task_struct", "pid"), None);
    }
}
