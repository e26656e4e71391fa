//! Faults on purpose, as many as there is time for: the tests of faults make a few of each.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{command, privilege, run};

/// Makes so many faults of each kind, or of those with this in their test's name. The same seed makes the same choices; when they fall is up to the machine.
///
/// # Errors
/// When one is not survived.
pub fn faults(workspace: &Path, count: u32, seed: u64, only: Option<&str>) -> Result<()> {
    ensure!(privilege::is_root(), "faults are made on the real kernel: run it as root");
    privilege::check_kernel()?;
    run::build(workspace)?;
    let mut tests = run::cargo(workspace);
    // One at a time, since each leaves the machine short of something.
    tests.args([
        "test",
        "--package",
        "tracer-tests",
        "--test",
        "faults",
        "--test",
        "watch_faults",
        "--test",
        "gate",
        "--test",
        "gated_software",
    ]);
    tests.args(["--no-fail-fast", "--"]);
    tests.args(["--test-threads", "1", "--nocapture"]).args(only);
    // So often a gate opens and closes where a test's is one of many.
    tests.env("TRACER_GATE_ROUNDS", count.saturating_mul(10).to_string());
    tests.env("TRACER_FAULTS", count.to_string()).env("TRACER_FAULTS_SEED", seed.to_string());
    command::run(&format!("making {count} faults of each kind, seed {seed}"), &mut tests)
}
