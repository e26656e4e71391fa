//! Where in a function its probe goes, and why there.
//!
//! A uprobe on an instruction that the kernel emulates costs a third of one that it must single-step, and a 35th inside
//! a virtual machine. So a probe may leave the function's first instruction for the first emulated one behind it, when
//! nothing can tell the difference: every call passes it, nothing else does, the arguments are still in registers, and,
//! for a return probe, the stack pointer still points at the return address, which the kernel is going to swap.
//!
//! That last rule has a type of its own: a return probe wants a [`ReturnSite`], and the only way to one is through a
//! `Spot` in front of which the stack pointer did not move.

use std::fmt;

use tracer_ebpf::probe::Arg;

/// What one hit of a probe costs, by what the kernel does with the instruction under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cost {
    /// Emulated in the trap.
    Emulated,
    /// Executed out of line, with a second trap behind it.
    SingleStepped,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Emulated => "emulated",
            Self::SingleStepped => "single-stepped",
        })
    }
}

/// The instruction that a probe is put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Address of the function, as its ELF file states it.
    pub function_svma: u64,
    /// Bytes from the start of the function to the instruction.
    pub offset_in_function: u32,
    /// Offset of the instruction in the file: what the kernel wants to be told.
    pub file_offset: u64,
    /// The instruction, as `objdump` writes it.
    pub instruction: String,
    /// What a hit costs.
    pub cost: Cost,
    /// Why the probe is here.
    pub reason: Reason,
}

impl Site {
    /// Address of the instruction, as its ELF file states it.
    #[must_use]
    pub const fn svma(&self) -> u64 {
        self.function_svma.saturating_add(self.offset_in_function as u64)
    }
}

/// A site at which the word on top of the stack is the function's return address, so that a return probe may be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnSite(Site);

impl ReturnSite {
    /// The site; nothing makes a `ReturnSite` of it again.
    #[must_use]
    pub const fn site(&self) -> &Site {
        &self.0
    }
}

/// A site, and what the function did to its stack on the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) site: Site,
    /// Bytes between the stack pointer here and the function's return address.
    pub(super) stack_displacement: u32,
}

impl Spot {
    /// The site, when a return probe may be set there.
    pub(super) fn into_return_site(self) -> Option<ReturnSite> {
        (self.stack_displacement == 0).then_some(ReturnSite(self.site))
    }
}

/// Why a probe is where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The function begins with a cheap instruction.
    Entry,
    /// The first cheap instruction, proven to be as good as the entry.
    Moved,
    /// Behind the nop that the function begins with, which must not be probed.
    BehindNop,
    /// The entry, since no other place is safe.
    Stayed(Obstacle),
}

/// What keeps a probe at the function's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// An argument is overwritten before a cheap instruction is reached.
    ArgumentLost {
        /// The argument.
        arg: Arg,
        /// The instruction that overwrites it.
        by: String,
    },
    /// The stack pointer moves before a cheap instruction is reached.
    StackMoved {
        /// The instruction that moves it.
        by: String,
    },
    /// The way to the first cheap instruction is not straight.
    LeavesBefore {
        /// The instruction that branches, returns or traps.
        by: String,
    },
    /// Something else can enter the function behind its entry.
    EnteredAt {
        /// Where, from the start of the function.
        offset: u32,
    },
    /// The function has a computed jump, whose targets are not known.
    ComputedJump {
        /// Where, from the start of the function.
        offset: u32,
    },
    /// The bytes at this offset are no instruction.
    NotDecodable {
        /// Where, from the start of the function.
        offset: u32,
    },
    /// No cheap instruction within the searched bytes.
    NoneNear,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry => f.write_str("the function begins with a cheap instruction"),
            Self::Moved => f.write_str("first cheap instruction; every call passes it, arguments intact"),
            Self::BehindNop => f.write_str("behind a long nop: a probe on one can kill forked children"),
            Self::Stayed(obstacle) => write!(f, "at the entry: {obstacle}"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ArgumentLost { arg, by } => {
                write!(f, "`{by}` overwrites argument {} before a cheap instruction", arg.number())
            }
            Self::StackMoved { by } => write!(f, "`{by}` moves the stack before a cheap instruction"),
            Self::LeavesBefore { by } => write!(f, "`{by}` comes before a cheap instruction"),
            Self::EnteredAt { offset } => write!(f, "other code enters the function at +{offset:#x}"),
            Self::ComputedJump { offset } => {
                write!(f, "the computed jump at +{offset:#x} could lead back to its start")
            }
            Self::NotDecodable { offset } => write!(f, "no instruction could be decoded at +{offset:#x}"),
            Self::NoneNear => f.write_str("no cheap instruction near it"),
        }
    }
}
