//! Packs the release binary with its licences and its manual.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{command, run};

/// What is packed beside the binary, as far as it is there.
const FILES: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// Makes `target/dist/tracer-VERSION-ARCH-linux.tar.gz`.
///
/// # Errors
/// When the tracer does not build or the archive cannot be written.
pub fn dist(workspace: &Path) -> Result<()> {
    run::build(workspace)?;
    let name = format!("tracer-{}-{}-linux", env!("CARGO_PKG_VERSION"), env::consts::ARCH);
    let directory = workspace.join("target/dist");
    let stage = directory.join(&name);
    fs::create_dir_all(&stage).with_context(|| format!("cannot make {}", stage.display()))?;
    fs::copy(run::binary(workspace), stage.join("tracer"))?;
    for file in FILES.map(|file| workspace.join(file)).iter().filter(|file| file.is_file()) {
        fs::copy(file, stage.join(file.file_name().context("a file has a name")?))?;
    }
    let archive = directory.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--gzip").arg("--file").arg(&archive).arg("--directory").arg(&directory);
    command::run_quietly(
        &format!("packing {}", archive.display()),
        tar.args(["--owner=0", "--group=0", &name]),
    )
}
