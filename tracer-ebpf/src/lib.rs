//! The contract between the BPF programs and user space.
//!
//! Everything that both sides touch is defined here, once: what a probe's cookie says ([`probe`]), the tables in memory that both
//! map ([`process`], [`thread`], [`live`], [`stack`], [`counter`]), which allocations are kept ([`sampling`]), the events of the ring buffer ([`event`], [`stack`]), what a process tells of itself ([`usdt`]), how a stack is
//! walked ([`unwind`]), what is written down of a language runtime's frames ([`runtime`]) and every reason a walk ends ([`stop`]). The tables are made of atomics, so they are used with no `unsafe` on either side. The crate is
//! `no_std`: the BPF programs and the host build the same source, and what can be tested without a kernel is tested here, on
//! the host.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod atomic;
pub mod counter;
pub mod event;
pub mod live;
pub mod mapping_call;
pub mod probe;
pub mod process;
pub mod runtime;
pub mod sampling;
pub mod size;
pub mod slots;
pub mod stack;
pub mod stop;
pub mod thread;
pub mod unwind;
pub mod usdt;
