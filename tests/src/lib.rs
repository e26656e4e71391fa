//! Starts programs with known leaks, traces them and reads the reports.
