//! What has to run as root, and the kernel that it runs on.

use std::{
    env, fs,
    io::{self, IsTerminal as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The oldest kernel that tracer has been tried on.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Whether a program is in `PATH`.
#[must_use]
pub fn found_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The words that let a command run as root: none when this process does, else those of `sudo`, keeping the named
/// variables of the environment.
///
/// # Errors
/// Without root and without `sudo`.
pub fn root_prefix(variables: &[&str]) -> Result<Vec<String>> {
    if is_root() {
        return Ok(Vec::new());
    }
    ensure!(found_in_path("sudo"), "this needs root: run it as root, or install sudo");
    let mut words = vec!["sudo".to_owned()];
    if !io::stdin().is_terminal() {
        // Nobody is there to type a password.
        words.push("--non-interactive".to_owned());
    }
    if !variables.is_empty() {
        words.push(format!("--preserve-env={}", variables.join(",")));
    }
    Ok(words)
}

/// A command that runs as root, keeping the named variables of the environment.
///
/// # Errors
/// Without root and without `sudo`.
pub fn as_root(program: impl AsRef<Path>, variables: &[&str]) -> Result<Command> {
    let mut words = root_prefix(variables)?.into_iter();
    Ok(match words.next() {
        None => Command::new(program.as_ref()),
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.args(words).arg(program.as_ref());
            command
        }
    })
}

/// Refuses a kernel that the BPF programs cannot run on.
///
/// # Errors
/// One sentence with both versions.
pub fn check_kernel() -> Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's version")?;
    let release = release.trim();
    let version =
        parse_release(release).with_context(|| format!("{release} is not the version of a kernel"))?;
    let (major, minor) = OLDEST_KERNEL;
    ensure!(version >= OLDEST_KERNEL, "Linux {release} is too old: tracer needs {major}.{minor} or later");
    Ok(())
}

/// The (6, 18) of `6.18.5-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_version() {
        assert_eq!(parse_release("6.18.5-amd64"), Some((6, 18)));
        assert_eq!(parse_release("5.4"), Some((5, 4)));
        assert_eq!(parse_release("unknown"), None);
        assert!(parse_release("5.9.1") < Some(OLDEST_KERNEL));
        check_kernel().unwrap();
    }
}
