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

/// Whether the running kernel can preempt a thread in a program on a tracepoint, as far as it says so: it does from Linux 7.2 on.
#[must_use]
pub fn preempts_tracepoints() -> bool {
    has_function("trace_call_bpf_faultable")
}

/// Whether the running kernel describes a function of this name.
fn has_function(name: &str) -> bool {
    let btf = std::fs::read(TYPES).unwrap_or_default();
    Types::of(&btf).is_some_and(|mut types| types.find_named(FUNCTION, name).is_some())
}

/// Offset in bytes of a member of a structure.
fn offset_of(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let mut types = Types::of(btf)?;
    let found = types.find_named(STRUCT, structure)?;
    // With bit fields about, the upper eight bits are the width of one.
    let bits = |offset: u32| if found.has_bit_fields { offset & 0xff_ffff } else { offset };
    let mut members = (0..found.count).map(|index| found.members + 12 * index);
    let member =
        members.find(|&at| types.word(at).and_then(|name| types.name(name)) == Some(member.as_bytes()))?;
    Some(bits(types.word(member + 8)?) / 8)
}

/// The types that a kernel describes.
struct Types<'a> {
    btf: &'a [u8],
    strings: usize,
    /// Where the next one is.
    at: usize,
    end: usize,
}

/// A type, and where its members are.
struct Type {
    name: u32,
    kind: u32,
    count: usize,
    has_bit_fields: bool,
    members: usize,
}

impl<'a> Types<'a> {
    fn of(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(*btf.first_chunk()?) != MAGIC {
            return None;
        }
        let header = Self { btf, strings: 0, at: 0, end: 0 };
        let field = |at: usize| Some(header.word(at)? as usize);
        let (length, types, types_length, strings) = (field(4)?, field(8)?, field(12)?, field(16)?);
        Some(Self {
            strings: length + strings,
            at: length + types,
            end: length + types + types_length,
            ..header
        })
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.btf.get(at..)?.first_chunk()?))
    }

    fn name(&self, offset: u32) -> Option<&'a [u8]> {
        self.btf.get(self.strings + offset as usize..)?.split(|&byte| byte == 0).next()
    }

    fn find_named(&mut self, kind: u32, name: &str) -> Option<Type> {
        while self.at < self.end {
            let found = self.next()?;
            if found.kind == kind && self.name(found.name)? == name.as_bytes() {
                return Some(found);
            }
        }
        None
    }

    fn next(&mut self) -> Option<Type> {
        let (name, info) = (self.word(self.at)?, self.word(self.at + 4)?);
        let (kind, count, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize, self.at + 12);
        self.at = members + trailer(kind, count)?;
        Some(Type { name, kind, count, has_bit_fields: info >> 31 == 1, members })
    }
}

const FUNCTION: u32 = 12;
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
    fn the_running_kernel_describes_its_functions() {
        assert!(has_function("trace_call_bpf"));
        assert!(!has_function("no_such_function"));
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
