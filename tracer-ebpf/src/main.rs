//! The BPF programs.
