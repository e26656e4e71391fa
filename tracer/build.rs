//! Builds what the tracer carries: the BPF object, as `$OUT_DIR/tracer-bpf`, and the sampler that it maps into running processes, as
//! `$OUT_DIR/tracer-gate.so`.

#[path = "../xtask/src/bpf_toolchain.rs"]
mod bpf_toolchain;
#[path = "../tracer-sampler/build_gate.rs"]
mod build_gate;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use bpf_toolchain::{BINARY, OBJECT_VARIABLE, Source, Toolchain};

fn main() -> ExitCode {
    let Err(why) = embed_object().and_then(|()| embed_gate()) else { return ExitCode::SUCCESS };
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

/// Puts the sampler for running processes where the tracer includes it from: an empty file where there is none.
fn embed_gate() -> Result<()> {
    let package = variable("CARGO_MANIFEST_DIR")?;
    let workspace = package.parent().context("the package lies in no workspace")?;
    for path in build_gate::SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    let copy = variable("OUT_DIR")?.join("tracer-gate.so");
    let architectures = [env::consts::ARCH.to_owned(), env::var("CARGO_CFG_TARGET_ARCH")?];
    if architectures != ["x86_64", "x86_64"] {
        return fs::write(&copy, []).with_context(|| format!("cannot write {}", copy.display()));
    }
    let (mut cargo, image) = build_gate::command(workspace);
    let output = cargo.output().with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "building the sampler for running processes failed:\n{diagnostics}");
    fs::copy(&image, &copy)
        .with_context(|| format!("cannot copy {} to {}", image.display(), copy.display()))?;
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
