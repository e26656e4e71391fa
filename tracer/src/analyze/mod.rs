//! What the recorded events mean: pure code over the events and the model, and the readings of the target's resident
//! memory that weigh them.

pub mod mappings;
pub mod outcome;
pub mod residency;
pub mod smaps;
