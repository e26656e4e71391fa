//! `libtracer_sampler.so`: samples the allocations of the process that it is preloaded into, and fires a USDT probe for each block
//! that it sampled and for each of these that is released: `otel_memory:alloc(ptr, size, weight)` and `otel_memory:free(ptr)`.
//!
//! While nobody looks (the probe's semaphore is 0) a call costs one comparison more. While somebody does, each thread has a *budget*
//! of bytes, drawn at random ([`interval`]), and the block that exhausts it is sampled. So a call that is not sampled costs a
//! subtraction and never a trap. What is sampled is remembered ([`set`]), so that exactly its release is told.
//!
//! Rules that everything here keeps, since it runs inside `malloc`, anywhere, before and after `main`, in signal handlers and in
//! children of `vfork`: no allocation, no lock, no function of the C library but `dl_iterate_phdr`, once (`lookup`), and no call
//! that changes `errno`. It links to no library, so it works with glibc and musl of any version.
//!
//! - [`interval`]: how many bytes until the next sample.
//! - [`thread`]: the budget of a thread, and what a sampled block stands for.
//! - [`set`]: the sampled blocks that are live.
//! - `call`: what is done before and after a call that may be sampled.
//! - `code`: the machine code that the functions consist of, and the probes.
//! - `entry`: the functions of every form of this.
//! - `library`: the form that is preloaded, with the functions that only it has.
//! - `lookup`: finds the allocator behind that library.
//! - `gate`: the form that tracer maps into a process that runs already; with [`threads`], the states of its threads.
#![cfg_attr(not(test), no_std)]

pub mod interval;
mod kernel;
pub mod set;
pub mod settings;
pub mod thread;
pub mod threads;

#[cfg(all(feature = "library", feature = "gate"))]
compile_error!("the features `library` and `gate` make two different files");

#[cfg(any(feature = "library", feature = "gate"))]
mod call;
#[cfg(any(feature = "library", feature = "gate"))]
#[macro_use]
mod code;
#[cfg(feature = "gate")]
#[macro_use]
mod gate;
#[cfg(feature = "library")]
#[macro_use]
mod library;
#[cfg(any(feature = "library", feature = "gate"))]
mod entry;
#[cfg(feature = "library")]
mod lookup;

#[cfg(feature = "gate")]
use gate as form;
#[cfg(feature = "library")]
use library as form;
