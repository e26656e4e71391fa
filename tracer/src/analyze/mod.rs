//! What the recorded events mean: pure code over the events and the model, and the readings of the target's resident
//! memory that weigh them.

pub mod growth;
pub mod mappings;
pub mod outcome;
#[cfg(test)]
mod python_child;
pub mod residency;
pub mod smaps;
