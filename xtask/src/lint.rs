//! Checks format, lints, documentation, licences and scripts.

use std::{env, path::Path, process::Command};

use anyhow::Result;

use crate::{
    bpf_toolchain::{self, Source},
    command, imports,
    run::cargo,
    setup,
};

/// Runs every check.
///
/// # Errors
/// At the first check that fails.
pub fn lint(workspace: &Path) -> Result<()> {
    command::run("checking the format", cargo(workspace).args(["fmt", "--all", "--check"]))?;
    command::run(
        "checking the scripts",
        Command::new("bash").args(["-n", ".ci/run"]).current_dir(workspace),
    )?;
    command::step("checking the imports");
    imports::check(workspace)?;
    let mut clippy = cargo(workspace);
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "--deny=warnings"]);
    command::run("linting the workspace", &mut clippy)?;
    let mut library = cargo(workspace);
    library.args([
        "clippy",
        "--package",
        "tracer-sampler",
        "--lib",
        "--features",
        "library",
        "--profile",
        "sampler",
    ]);
    command::run("linting the library that is preloaded", library.args(["--", "--deny=warnings"]))?;
    lint_bpf(workspace)?;
    let mut doc = cargo(workspace);
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "--deny=warnings");
    command::run("checking the documentation", &mut doc)?;
    check_dependencies(workspace)
}

/// Their licences and sources always; what is known to be wrong with them only where the list of that can be had.
fn check_dependencies(workspace: &Path) -> Result<()> {
    let program = setup::cargo_deny(workspace)?;
    let deny = |checks: &[&str]| {
        let mut deny = Command::new(&program);
        deny.current_dir(workspace).arg("check").args(checks);
        deny
    };
    command::run(
        "checking licences and sources of dependencies",
        &mut deny(&["licenses", "bans", "sources"]),
    )?;
    let fetched = Command::new(&program).current_dir(workspace).args(["fetch", "db"]).output();
    if fetched.is_ok_and(|fetched| fetched.status.success()) {
        return command::run("checking advisories", &mut deny(&["advisories"]));
    }
    command::step("advisories on dependencies are not checked: their database cannot be fetched from here");
    Ok(())
}

/// Lints the BPF programs, where there is a clippy that belongs to their compiler.
fn lint_bpf(workspace: &Path) -> Result<()> {
    let Source::Build(toolchain) = bpf_toolchain::find(workspace)? else {
        command::step("the BPF programs are not linted: they were built elsewhere");
        return Ok(());
    };
    setup::clippy_for_bpf(&toolchain.compiler)?;
    let driver = setup::clippy_driver(&toolchain.compiler);
    if !driver.is_file() {
        command::step(&format!("the BPF programs are not linted: there is no {}", driver.display()));
        return Ok(());
    }
    let mut check = toolchain.cargo("check", env::consts::ARCH, workspace);
    // What `cargo clippy -- --deny=warnings` sets; the driver takes the place of rustc for the workspace's packages.
    check.env("RUSTC_WORKSPACE_WRAPPER", driver).env("CLIPPY_ARGS", "--deny=warnings__CLIPPY_HACKERY__");
    command::run("linting the BPF programs", &mut check)
}
