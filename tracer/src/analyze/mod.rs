//! What was recorded means: pure code over the events, the readings of the target's memory and the model.

pub mod allocators;
pub mod causes;
pub mod growth;
#[cfg(test)]
mod histories;
pub mod history;
pub mod housekeeping;
pub mod jit;
pub mod managed;
pub mod mappings;
pub mod outcome;
pub mod reconcile;
pub mod retention;
pub mod verdict;
