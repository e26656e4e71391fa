//! The contract between the BPF programs and user space.
//!
//! Everything that both sides touch is defined here, once: what a probe's cookie says ([`probe`]), the events of the
//! ring buffer ([`event`]), how a stack is walked ([`unwind`]) and every reason why a walk ends ([`stop`]). The crate is
//! `no_std`, so the BPF programs and the host build the same source; what can be tested without a kernel is tested
//! here, on the host.
#![no_std]

pub mod event;
pub mod probe;
pub mod stop;
pub mod unwind;
