//! What is known of a thread between the entry of an allocator function and its return.

/// How many sets of eight records there are: room for 4,096 threads to be inside an allocator at one time.
pub const RECORD_SETS: u32 = 512;
/// How many sets of eight captures there are; a thread has one only while its stack is walked.
pub const CAPTURE_SETS: u32 = 32;

/// What becomes of the block that a call allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// Its size is not one that is tracked.
    Filtered = 0,
    /// It is left out of the sample.
    Unsampled = 1,
    /// It goes into the live table.
    Kept = 2,
}

/// The outermost allocator call of a thread that has not returned. It belongs to the window in which it was entered: a mark
/// opens a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InFlight {
    /// The stack pointer at entry: where the return address stands.
    pub sp: u64,
    /// The return address at entry, before the kernel put its trampoline in its place.
    pub return_address: u64,
    /// The probe's cookie.
    pub cookie: u64,
    /// Requested bytes.
    pub size: u64,
    /// When the window opened that it belongs to.
    pub opened_ns: u64,
    /// Argument 0, where the result is stored by some functions.
    pub arg0: u64,
    /// What becomes of the block: a [`Fate`].
    pub fate: u32,
    /// The level of [sampling](crate::sampling) that it was kept at.
    pub level: u32,
    /// Key of the block that the call releases ([`BlockKey::to_bits`](crate::live::BlockKey::to_bits)), taken out of the table; 0 if none.
    pub old_key: u64,
    /// Not 0 when there is an old block that the table did not know.
    pub old_unknown: u64,
    /// What the table knew of the old block, when `old_key` is not 0.
    pub old: crate::live::Block,
}
