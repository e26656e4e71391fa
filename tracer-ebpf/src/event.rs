//! The events of the ring buffer: new stacks, changes of mappings, and the end of a target's program.
//!
//! User space decodes the bytes as integers and converts them with `TryFrom`; an unknown number is an error there, never
//! undefined behaviour.

pub use crate::mapping_call::MappingCall;
use crate::{process::ProcessIndex, stack::StackId};

/// A system call that changes mappings, at its entry (`munmap`, `mremap`: what they release is gone from then on, since
/// another thread can get the addresses before the call returns) or at its exit (all four).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MappingEvent {
    /// [`EventKind::Mapping`].
    pub event: u8,
    /// A [`MappingCall`].
    pub call: u8,
    /// 0 at the entry of the call, 1 at its exit.
    pub at_exit: u8,
    /// 1 when the thread was inside an allocator function: the allocator took the memory for itself.
    pub in_allocator: u8,
    /// Index of the traced process.
    pub process: ProcessIndex,
    /// Zero.
    pub padding: u16,
    /// The calling thread: an entry and its exit have it in common.
    pub tid: u32,
    /// The stack that made the call; [`StackId::NONE`] at entries and where it is not known.
    pub stack: StackId,
    /// Monotonic clock, nanoseconds.
    pub time_ns: u64,
    /// The six arguments of the system call, as they were given.
    pub args: [u64; 6],
    /// The result at the exit: an address, or a negative errno.
    pub result: i64,
}

/// The first byte of every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A stack that user space does not know yet.
    Stack = 1,
    /// A [`MappingEvent`].
    Mapping = 2,
    /// The target replaced its program by `exec`.
    Exec = 3,
    /// A [`ProcessEvent`].
    Process = 4,
}

/// A followed process has come or gone. The state of the processes tells that too; the event says it at once, and between the events
/// of mappings where it belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessEvent {
    /// [`EventKind::Process`].
    pub event: u8,
    /// A [`ProcessChange`].
    pub change: u8,
    /// Index of the process that has come or gone.
    pub process: ProcessIndex,
    /// Index of the one that it came from; of one that is gone, its own.
    pub from: ProcessIndex,
    /// Zero.
    pub padding: u16,
}

/// What became of a followed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ProcessChange {
    /// It was forked.
    Forked = 1,
    /// It is the new program of a process.
    Executed = 2,
    /// It exited.
    Exited = 3,
}

impl TryFrom<u8> for ProcessChange {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            1 => Ok(Self::Forked),
            2 => Ok(Self::Executed),
            3 => Ok(Self::Exited),
            unknown => Err(unknown),
        }
    }
}

const _: () = assert!(size_of::<MappingEvent>() == 80);
const _: () = assert!(size_of::<ProcessEvent>() == 8);
