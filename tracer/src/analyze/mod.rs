//! What the recorded events mean: pure code over the events and the model, and the readings of the target's resident
//! memory that weigh them.

pub mod compiled;
pub mod contents;
pub mod growth;
pub mod history;
pub mod managed;
pub mod mappings;
pub mod outcome;
#[cfg(test)]
mod python_child;
pub mod reconcile;
pub mod residency;
pub mod threads;
pub mod touched;
pub mod verdict;
