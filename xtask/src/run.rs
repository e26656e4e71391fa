//! Builds the tracer and runs it.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, anyhow};

use crate::{command, privilege};

/// The variables that the tracer reads, which `sudo` would drop.
const VARIABLES: [&str; 6] =
    ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR", "TERM", "COLORTERM", "DEBUGINFOD_URLS"];

/// Builds the release tracer.
///
/// # Errors
/// When it does not build.
pub fn build(workspace: &Path) -> Result<()> {
    command::run("building the tracer", cargo(workspace).args(["build", "--release", "--package", "tracer"]))
}

/// Replaces this process by the tracer.
///
/// # Errors
/// When it cannot be run.
pub fn exec(workspace: &Path, arguments: &[OsString]) -> Result<()> {
    privilege::check_kernel()?;
    let mut tracer = tracer(workspace)?;
    tracer.args(arguments);
    let error = tracer.exec();
    Err(anyhow!(error).context(format!("cannot run `{}`", command::line(&tracer))))
}

/// The built tracer, as a command that runs as root.
///
/// # Errors
/// Without root and without `sudo`.
pub fn tracer(workspace: &Path) -> Result<Command> {
    privilege::as_root(binary(workspace), &VARIABLES)
}

/// Where the release tracer is.
#[must_use]
pub fn binary(workspace: &Path) -> PathBuf {
    workspace.join("target/release/tracer")
}

/// A cargo on the workspace.
#[must_use]
pub fn cargo(workspace: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(workspace);
    // What `cargo run` set for xtask is not for this one: build scripts that read it would run again, and what depends on them be built anew.
    let is_of_xtask = |name: &OsString| {
        ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|of| name.as_encoded_bytes().starts_with(of.as_bytes()))
    };
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_xtask(name)) {
        cargo.env_remove(name);
    }
    cargo
}
