//! Reads a live process's memory, and what the kernel says about it: how much is resident, where the threads' stacks are,
//! what glibc keeps free. The process runs on meanwhile.

pub mod heap_walk;
#[cfg(test)]
pub(crate) mod python_child;
pub mod residency;
pub mod threads;
