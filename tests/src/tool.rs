//! Tools of the system that tests use.

use std::{path::Path, process::Command};

/// Runs a tool of the system, which succeeds; its output.
#[track_caller]
pub fn run_tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints text")
}

/// A path as an argument.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
