//! Packs the release binary with its licences, its documents, its man pages and the completions of shells.
//!
//! What is packed runs on other distributions, whatever their C library is: it is linked statically.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, command, deb, licences, privilege::found_in_path, run::cargo};

/// What is packed beside the binary: what the README refers to. The BPF programs in it are under a licence of their own.
const FILES: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "tracer-ebpf/LICENSE-GPL2",
];

/// The commands of the tracer that have man pages.
const COMMANDS: [&str; 5] = ["report", "diff", "doctor", "plan", "watch"];

/// The completions: the shell, and the file where it looks for them.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "tracer.bash"), ("zsh", "_tracer"), ("fish", "tracer.fish")];

/// What was packed.
pub struct Packed {
    /// The binary of the archive.
    pub binary: PathBuf,
    /// The package for Debian, where it can be made.
    pub debian: Option<PathBuf>,
}

/// Makes `target/dist/tracer-VERSION-ARCH-linux.tar.gz`, and with `dpkg-deb` `target/dist/tracer_VERSION_ARCH.deb`.
///
/// # Errors
/// When the tracer does not build or a package cannot be written.
pub fn dist(workspace: &Path) -> Result<Packed> {
    apt::programs(&[("strip", "binutils")], "packing")?;
    let binary = build(workspace)?;
    let name = format!("tracer-{}-{}-linux", env!("CARGO_PKG_VERSION"), env::consts::ARCH);
    let directory = workspace.join("target/dist");
    let stage = directory.join(&name);
    // What an earlier version packed is not in this one.
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot remove {}", stage.display()))?;
    }
    for part in ["docs", "deploy", "man", "completions", "tracer-ebpf"] {
        let part = stage.join(part);
        fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    }
    copy(&binary, &stage)?;
    command::run("building the library that is preloaded", cargo(workspace).arg("sampler"))?;
    copy(&workspace.join("target/sampler/libtracer_sampler.so"), &stage)?;
    // What a debugger needs is most of it.
    let packed = ["tracer", "libtracer_sampler.so"].map(|file| stage.join(file));
    command::run_quietly("stripping", Command::new("strip").arg("--strip-debug").args(packed))?;
    for file in FILES {
        let (from, to) = (workspace.join(file), stage.join(file));
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    for part in ["docs", "deploy"] {
        copy_all(&workspace.join(part), &stage.join(part))?;
    }
    fs::write(stage.join("LICENSES-OF-DEPENDENCIES"), licences::of_dependencies(workspace)?)?;
    write_manual(&stage)?;
    let archive = directory.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--gzip").arg("--file").arg(&archive).arg("--directory").arg(&directory);
    command::run_quietly(
        &format!("packing {}", archive.display()),
        tar.args(["--owner=0", "--group=0", "--sort=name", &name]),
    )?;
    let debian = if found_in_path("dpkg-deb") {
        Some(deb::pack(workspace, &stage, &directory)?)
    } else {
        command::step("no package for Debian: dpkg-deb is not installed");
        None
    };
    Ok(Packed { binary: stage.join("tracer"), debian })
}

/// Builds the tracer so that it needs no library of the system, and returns where it is.
fn build(workspace: &Path) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut build = cargo(workspace);
    // With a target named, the flags are not for build scripts and macros, which cannot be linked so.
    build.args(["build", "--release", "--package", "tracer", "--target", &target]);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    build.env("LZMA_API_STATIC", "1");
    command::run("building the tracer with all that it needs in it", &mut build)?;
    let binary = workspace.join("target").join(target).join("release/tracer");
    let headers =
        command::output(Command::new("readelf").args(["--wide", "--program-headers"]).arg(&binary))?;
    ensure!(!headers.contains("INTERP"), "{} is not linked statically", binary.display());
    Ok(binary)
}

/// Copies a file into a directory.
fn copy(file: &Path, directory: &Path) -> Result<()> {
    let name = file.file_name().context("a file has a name")?;
    fs::copy(file, directory.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

/// Copies what is in a directory: the documents that the README refers to with their pictures, what belongs to the service.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            let to = to.join(path.file_name().context("a directory has a name")?);
            fs::create_dir_all(&to)?;
            copy_all(&path, &to)?;
        } else {
            copy(&path, to)?;
        }
    }
    Ok(())
}

/// Has the packed binary print its man pages and completions.
fn write_manual(stage: &Path) -> Result<()> {
    let print = |arguments: &[&str]| command::output(Command::new(stage.join("tracer")).args(arguments));
    fs::write(stage.join("man/tracer.1"), print(&["man"])?)?;
    for name in COMMANDS {
        fs::write(stage.join(format!("man/tracer-{name}.1")), print(&["man", name])?)?;
    }
    for (shell, file) in COMPLETIONS {
        fs::write(stage.join("completions").join(file), print(&["completions", shell])?)?;
    }
    Ok(())
}
