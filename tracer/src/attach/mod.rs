//! Puts the probes in place.

pub mod tracefs;
