//! Where fields of the kernel's structures are, and what numbers its functions have: from the types that the running kernel
//! describes (BTF).
//!
//! The format is that of the kernel's Documentation/bpf/btf.rst, as far as structures, their members and names of functions go.

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

/// The numbers of kernel functions that programs may call, in their order.
///
/// # Errors
/// When the running kernel describes no types, or has no such function.
pub fn functions_of_this_kernel<const N: usize>(names: [&str; N]) -> Result<[u32; N]> {
    let btf = std::fs::read(TYPES).with_context(|| format!("cannot read {TYPES}"))?;
    let mut numbers = [0; N];
    for (number, name) in numbers.iter_mut().zip(names) {
        *number = function(&btf, name).with_context(|| format!("this kernel has no {name}"))?;
    }
    Ok(numbers)
}

/// The number of a function.
fn function(btf: &[u8], name: &str) -> Option<u32> {
    let types = Types::of(btf)?;
    let found =
        types.iter().find(|found| found.kind == FUNCTION && types.name(found.name) == Some(name.as_bytes()));
    found.map(|found| found.number)
}

/// Offset in bytes of a member of a structure.
fn offset_of(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let types = Types::of(btf)?;
    let mut structures = types.iter().filter(|found| found.kind == STRUCT);
    let found = structures.find(|found| types.name(found.name) == Some(structure.as_bytes()))?;
    // With bit fields about, the upper eight bits are the width of one.
    let bits = |offset: u32| if found.has_bit_fields { offset & 0xff_ffff } else { offset };
    let mut members = (0..found.count).map(|index| found.trailer + 12 * index);
    let at =
        members.find(|&at| types.word(at).and_then(|name| types.name(name)) == Some(member.as_bytes()))?;
    Some(bits(types.word(at + 8)?) / 8)
}

const STRUCT: u32 = 4;
const FUNCTION: u32 = 12;

/// The types that a BTF describes.
#[derive(Clone, Copy)]
struct Types<'a> {
    btf: &'a [u8],
    types: usize,
    end: usize,
    strings: usize,
}

struct Type {
    number: u32,
    /// Where its name is.
    name: u32,
    kind: u32,
    count: usize,
    has_bit_fields: bool,
    /// Where what follows it is.
    trailer: usize,
}

impl<'a> Types<'a> {
    fn of(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(*btf.first_chunk()?) != MAGIC {
            return None;
        }
        let word = |at| Some(word(btf, at)? as usize);
        let (header, types, types_length, strings) = (word(4)?, word(8)?, word(12)?, word(16)?);
        let types = header + types;
        Some(Self { btf, types, end: types + types_length, strings: header + strings })
    }

    /// All that can be read of them. The first one is number 1.
    fn iter(self) -> impl Iterator<Item = Type> + 'a {
        let (mut at, mut number) = (self.types, 0);
        std::iter::from_fn(move || {
            if at >= self.end {
                return None;
            }
            let (name, info) = (self.word(at)?, self.word(at + 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let trailer = at + 12;
            at = trailer + trailer_length(kind, count)?;
            number += 1;
            Some(Type { number, name, kind, count, has_bit_fields: info >> 31 == 1, trailer })
        })
    }

    fn word(self, at: usize) -> Option<u32> {
        word(self.btf, at)
    }

    fn name(self, offset: u32) -> Option<&'a [u8]> {
        let text = self.btf.get(self.strings + offset as usize..)?;
        text.split(|&byte| byte == 0).next()
    }
}

fn word(btf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*btf.get(at..)?.first_chunk()?))
}

/// What follows a type of this kind, in bytes.
fn trailer_length(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        STRUCT | 5 | 15 | 19 => 12 * count,
        6 | 13 => 8 * count,
        2 | 7..=11 | FUNCTION | 16 | 18 => 0,
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
        assert_eq!(function(&btf, "no such function"), None);
    }
}
