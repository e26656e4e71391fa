//! What the programs do.

mod arch;
pub mod calls;
mod capture;
pub mod children;
mod count;
pub mod exec;
pub mod faults;
mod live;
pub mod mappings;
mod maps;
pub mod private_stack;
mod processes;
mod threads;
pub mod understudy;
mod unwind;
pub mod usdt;
