//! Installs Debian packages, without ever removing or replacing one that the user has.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    privilege::{self, found_in_path},
};

/// Installs packages that are missing.
///
/// # Errors
/// Without apt, without root, without the network, or when a package is unknown or would replace another.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    ensure!(
        found_in_path("apt-get"),
        "{why} needs what Debian calls {}, and this machine has no apt-get: install it by other means",
        packages.join(", ")
    );
    if !can_install(packages) {
        update()?;
    }
    let mut apt = apt_get("install")?;
    if !can_install(packages) {
        // What is there may be of the release's backports, and what is missing must be of the same version.
        apt.args(backports()?);
    }
    apt.args(packages);
    command::run_quietly(&format!("installing {} for {why}", packages.join(", ")), &mut apt)
        .context("a package cannot be installed: is the network reachable, and is this Debian 12 or later?")
}

/// Whether apt knows the packages, and would install them beside everything that is there.
#[must_use]
pub fn can_install(packages: &[&str]) -> bool {
    command::succeeds(Command::new("apt-get").args(["install", "--simulate"]).args(OPTIONS).args(packages))
}

/// Fetches the lists of packages.
///
/// # Errors
/// Without root or the network.
pub fn update() -> Result<()> {
    command::run_quietly("updating the lists of packages", &mut apt_get("update")?)
        .context("the lists of packages cannot be updated: is the network reachable?")
}

/// The options by which apt takes packages of the release's backports, whose lists are kept apart from the system's.
fn backports() -> Result<Vec<String>> {
    let mirror = mirror()?;
    let release = fs::read_to_string("/etc/os-release").context("this is no Debian")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = format!("{}-backports", codename.context("the release has no name")?);
    let directory = std::env::temp_dir().join("tracer-xtask-backports");
    fs::create_dir_all(directory.join("lists/partial"))?;
    let list = directory.join("sources.list");
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    fs::write(&list, format!("{own}\ndeb {mirror} {suite} main\n"))
        .with_context(|| format!("cannot write {}", list.display()))?;
    let options = vec![
        format!("--option=Dir::Etc::SourceList={}", list.display()),
        format!("--option=Dir::State::Lists={}", directory.join("lists").display()),
        format!("--target-release={suite}"),
    ];
    let mut update = apt_get("update")?;
    // Who fetches them has no rights elsewhere.
    update.args(&options[..2]).arg("--option=APT::Sandbox::User=root");
    command::run_quietly("updating the lists of backported packages", &mut update)
        .context("the lists of backported packages cannot be updated")?;
    Ok(options)
}

/// Unpacks packages, and those they depend on whose names contain `part`, into a directory, installing nothing.
///
/// # Errors
/// Without the network, or when a package is unknown.
pub fn unpack(packages: &[&str], part: &str, directory: &Path) -> Result<()> {
    let archives = directory.join("debs");
    fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
    let mut query = Command::new("apt-cache");
    query.args(["depends", "--recurse", "--important", "--no-conflicts", "--no-breaks", "--no-replaces"]);
    let tree = command::output(query.args(packages))?;
    // The names of packages stand at the beginnings of lines, what each depends on is indented.
    let names =
        tree.lines().filter(|name| name.contains(part) && name.starts_with(|c: char| c.is_ascii_lowercase()));
    let mut download = Command::new("apt-get");
    download.arg("download").args(names).current_dir(&archives);
    let doing = format!("downloading {} to {}", packages.join(", "), directory.display());
    command::run_quietly(&doing, &mut download)?;
    for archive in fs::read_dir(&archives)? {
        command::output(Command::new("dpkg").arg("-x").arg(archive?.path()).arg(directory))?;
    }
    fs::remove_dir_all(&archives)?;
    Ok(())
}

/// Where this machine gets Debian's packages from.
///
/// # Errors
/// When it is no Debian, or the lists of packages cannot be had.
pub fn mirror() -> Result<String> {
    if let Some(mirror) = known_mirror()? {
        return Ok(mirror);
    }
    update()?;
    known_mirror()?.context("apt has no lists of Debian's packages: is this Debian?")
}

fn known_mirror() -> Result<Option<String>> {
    let format = "$(REPO_URI) $(ORIGIN) $(CODENAME)";
    let mut targets = Command::new("apt-get");
    let text = command::output(targets.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    Ok(mirror_in(&text))
}

/// The one of these that has whole releases, and not only updates.
fn mirror_in(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [uri, "Debian", codename] if !codename.contains('-') => Some(uri.to_owned()),
        _ => None,
    })
}

/// Nothing is removed, nothing is asked, and another apt that is at work is waited for.
const OPTIONS: [&str; 4] =
    ["--yes", "--no-remove", "--no-install-recommends", "--option=DPkg::Lock::Timeout=300"];

fn apt_get(subcommand: &str) -> Result<Command> {
    let mut apt = privilege::as_root("env", &[])?;
    apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", subcommand]).args(OPTIONS);
    Ok(apt)
}

/// Installs the packages of programs that are not in `PATH`.
///
/// # Errors
/// See [`install`].
pub fn programs(programs: &[(&str, &str)], why: &str) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| !found_in_path(program));
    let packages: Vec<_> = missing.map(|&(_, package)| package).collect();
    if packages.is_empty() { Ok(()) } else { install(&packages, why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_has_whole_releases() {
        let targets = "\
http://packages.test/cloud/ Cloud cloud-bookworm
http://mirror.test/debian-security/ Debian bookworm-security
http://mirror.test/debian/ Debian bookworm-updates
http://mirror.test/debian/ Debian bookworm
";
        assert_eq!(mirror_in(targets).as_deref(), Some("http://mirror.test/debian/"));
        assert_eq!(mirror_in("http://packages.test/  \n"), None);
    }
}
