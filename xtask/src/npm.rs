//! Gets packages of npm into the target directory.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::{apt, bpf_toolchain, command, privilege::found_in_path};

/// Installs a package (`name@version`) unless its `file` is there, and returns where that is.
///
/// # Errors
/// Without npm or the network.
pub fn install(workspace: &Path, package: &str, file: &str) -> Result<PathBuf> {
    install_into(&bpf_toolchain::tools_dir(workspace), package, file)
}

/// As [`install`], into a directory of its own.
///
/// # Errors
/// See [`install`].
pub fn install_into(directory: &Path, package: &str, file: &str) -> Result<PathBuf> {
    let name = package.split('@').next().unwrap_or(package);
    let found = directory.join("node_modules").join(name).join(file);
    if found.is_file() {
        return Ok(found);
    }
    if !found_in_path("npm") {
        apt::programs(&[("npm", "npm")], package)?;
    }
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", package, "--prefix"])
        .arg(directory);
    command::run_quietly(&format!("fetching {package} with npm"), &mut npm)?;
    ensure!(found.is_file(), "{package} was installed, but without {file}");
    Ok(found)
}
