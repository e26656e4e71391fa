//! Kernels from Debian's archives, found by the package that depends on the newest of a suite.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, command};

/// Where a kernel comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The suite of Debian.
    pub suite: &'static str,
    /// The package that depends on the suite's newest kernel.
    pub package: &'static str,
}

/// A kernel that has been unpacked.
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// The file to boot.
    pub image: PathBuf,
}

/// Gets a kernel, if it is not there already.
///
/// # Errors
/// Without the network, or when the suite has no such package.
pub fn get(workspace: &Path, source: Source) -> Result<Kernel> {
    let Source { suite, package } = source;
    let home = workspace.join("target/vm/kernels").join(suite);
    let unpacked = home.join(package);
    if let Ok(kernel) = find(&unpacked) {
        return Ok(kernel);
    }
    let archive = Archive::open(&home, suite)?;
    let mut wanted = archive.kernel_packages(package)?;
    // From 7.x on the kernel itself is in a package of its own.
    wanted.extend(wanted.clone().iter().flat_map(|image| archive.kernel_packages(image).unwrap_or_default()));
    let debs = home.join("debs");
    fs::create_dir_all(&debs)?;
    let mut download = archive.apt("apt-get");
    download.arg("download").args(&wanted).current_dir(&debs);
    command::run_quietly(&format!("downloading {} of {suite}", wanted.join(", ")), &mut download)?;
    for deb in fs::read_dir(&debs)? {
        command::output(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(&unpacked))?;
    }
    fs::remove_dir_all(&debs)?;
    find(&unpacked)
}

/// The kernel below a directory where its packages were unpacked.
fn find(unpacked: &Path) -> Result<Kernel> {
    let in_boot = fs::read_dir(unpacked.join("boot")).into_iter().flatten().flatten();
    let in_boot = in_boot.map(|entry| entry.path()).find_map(|image| {
        let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        Some(Kernel { release, image })
    });
    let modules = fs::read_dir(unpacked.join("usr/lib/modules")).into_iter().flatten().flatten();
    let mut in_modules = modules.filter_map(|entry| {
        let image = entry.path().join("vmlinuz");
        image.is_file().then(|| Kernel { release: entry.file_name().to_string_lossy().into_owned(), image })
    });
    in_boot
        .or_else(|| in_modules.next())
        .with_context(|| format!("no kernel was unpacked in {}", unpacked.display()))
}

/// A suite of Debian, with lists of its own: the machine's stay as they are.
struct Archive {
    home: PathBuf,
}

impl Archive {
    fn open(home: &Path, suite: &str) -> Result<Self> {
        let archive = Self { home: home.to_owned() };
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(home.join(directory))?;
        }
        fs::write(home.join("sources.list"), format!("deb {} {suite} main\n", apt::mirror()?))?;
        let mut update = archive.apt("apt-get");
        command::run_quietly(&format!("reading what {suite} has"), update.arg("update"))?;
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "none"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            apt.arg("-o").arg(format!("{option}={}", self.home.join(value).display()));
        }
        // A package of another suite is looked at, not at all those that it could go with here.
        apt.args(["-o", "APT::Sandbox::User=root"]);
        apt
    }

    /// The packages with kernels that a package depends on.
    fn kernel_packages(&self, package: &str) -> Result<Vec<String>> {
        let text = command::output(self.apt("apt-cache").args(["depends", package]))?;
        let packages = kernel_packages(&text);
        ensure!(!packages.is_empty(), "{package} depends on no kernel:\n{text}");
        Ok(packages)
    }
}

/// What `apt-cache depends` names that has a kernel in it.
fn kernel_packages(depends: &str) -> Vec<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let is_kernel = |name: &&str| {
        let rest = name.strip_prefix("linux-image-").or_else(|| name.strip_prefix("linux-binary-"));
        rest.is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()))
    };
    names.filter(is_kernel).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_among_what_a_package_depends_on() {
        let depends = "\
linux-image-cloud-amd64
  Depends: linux-base-cloud-amd64
  Depends: linux-image-7.3.4+deb13-cloud-amd64
  Depends: linux-modules-cloud-amd64
  Recommends: linux-image-9
";
        assert_eq!(kernel_packages(depends), ["linux-image-7.3.4+deb13-cloud-amd64"]);
        let depends = "x\n  Depends: linux-binary-7.3.4+deb13-cloud-amd64\n  Depends: kmod\n";
        assert_eq!(kernel_packages(depends), ["linux-binary-7.3.4+deb13-cloud-amd64"]);
    }
}
