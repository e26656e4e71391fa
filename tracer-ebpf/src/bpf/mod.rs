//! What the programs do.

mod arch;
pub mod calls;
mod capture;
mod count;
pub mod exec;
pub mod faults;
mod live;
pub mod mappings;
mod maps;
pub mod private_stack;
mod threads;
mod unwind;
