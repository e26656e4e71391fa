//! What the plan knows about one processor architecture: which instructions the kernel emulates under a uprobe, and how
//! code reads.

pub(super) mod x86_64;
