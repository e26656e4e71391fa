//! Builds the BPF object that the tracer carries, as `$OUT_DIR/tracer-bpf`.

#[path = "../xtask/src/bpf_toolchain.rs"]
mod bpf_toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use bpf_toolchain::{BINARY, OBJECT_VARIABLE, Source, Toolchain};

fn main() -> ExitCode {
    let Err(why) = embed_object() else { return ExitCode::SUCCESS };
    for line in format!("{why:#}").lines() {
        println!("cargo::error={line}");
    }
    ExitCode::FAILURE
}

/// Puts the object where the tracer includes it from.
fn embed_object() -> Result<()> {
    let package = variable("CARGO_MANIFEST_DIR")?;
    let workspace = package.parent().context("the package lies in no workspace")?;
    for path in ["tracer-ebpf/src", "tracer-ebpf/Cargo.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");

    let out_dir = variable("OUT_DIR")?;
    let object = match bpf_toolchain::find(workspace)? {
        Source::Build(toolchain) => build(&toolchain, workspace)?,
        Source::Object(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            object
        }
    };
    let copy = out_dir.join(BINARY);
    fs::copy(&object, &copy)
        .with_context(|| format!("cannot copy {} to {}", object.display(), copy.display()))?;
    Ok(())
}

/// Builds the object and returns its path.
fn build(toolchain: &Toolchain, workspace: &Path) -> Result<PathBuf> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let mut cargo = toolchain.cargo("build", &arch, workspace);
    cargo.args(["--quiet", "--locked"]);
    let output = cargo.output().with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "building the BPF programs with {toolchain} failed:\n{diagnostics}");
    for line in diagnostics.lines() {
        println!("cargo::warning={line}");
    }
    Ok(bpf_toolchain::built_object(workspace))
}

fn variable(name: &str) -> Result<PathBuf> {
    env::var_os(name).map(PathBuf::from).with_context(|| format!("cargo did not set {name}"))
}
