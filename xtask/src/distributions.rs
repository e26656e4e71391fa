//! Root directories of other distributions, in which programs are traced and the packed tracer is run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, bench::document, command, dist, privilege, run};

/// Debian's releases, from the oldest that is looked after: glibc 2.31, 2.36, 2.41, and the latest; and the test for each.
const DEBIAN: [(&str, &str); 4] =
    [("bullseye", "debian_11"), ("bookworm", "debian_12"), ("trixie", "debian_13"), ("sid", "debian_sid")];

/// The root and the test without glibc.
const MUSL: &str = "musl";

/// What is traced in them.
const PACKAGES: [&str; 8] = [
    "gcc",
    "libc6-dev",
    "python3",
    "nodejs",
    "default-jdk-headless",
    "redis-server",
    "nginx-light",
    "postgresql",
];

/// Where the tests look for programs and packages.
const PLACE: &str = "srv/tracer";

const HEAD: &str = "| system | C library | malloc family | what glibc says is free | python | node | java | redis | nginx | postgres \
                    | tracer of the archive | of the package |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";

/// Makes the roots, judges tracer on each, and writes the table into `docs/distributions.md`; with names only on these, and writes nothing.
///
/// # Errors
/// When a root cannot be made, or something is not as it should be.
pub fn distributions(workspace: &Path, names: &[String]) -> Result<()> {
    ensure!(privilege::is_root(), "programs are traced in roots of their own: run it as root");
    privilege::check_kernel()?;
    let needed = [("debootstrap", "debootstrap"), ("musl-gcc", "musl-tools"), ("dpkg-deb", "dpkg")];
    apt::programs(&needed, "the distributions")?;
    let all: Vec<_> = DEBIAN.iter().copied().chain([(MUSL, MUSL)]).collect();
    let is_chosen = |&(suite, _): &(&str, &str)| names.is_empty() || names.iter().any(|name| name == suite);
    let chosen: Vec<_> = all.iter().copied().filter(is_chosen).collect();
    ensure!(chosen.len() >= names.len().max(1), "there are only {all:?}");
    let packed = dist::dist(workspace)?;
    let directory = workspace.join("target/distributions");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for &(suite, _) in &chosen {
        if suite == MUSL {
            musl(workspace, &directory, &packed)?;
        } else {
            let root = debian(&directory, suite).with_context(|| format!("no root of {suite}"))?;
            install(&root, &packed)?;
        }
    }
    let mut tests = run::cargo(workspace);
    tests.args(["test", "--package", "tracer-tests", "--test", "distributions", "--", "--test-threads=1"]);
    tests.args(["--exact"]).args(chosen.iter().map(|(_, test)| test));
    tests.env("TRACER_DISTRIBUTIONS", &directory).env("TRACER_BIN", &packed.binary);
    command::run("tracing in the distributions", &mut tests)?;
    let row = |&(suite, _): &(&str, &str)| fs::read_to_string(directory.join(suite).with_extension("row"));
    let rows: String = chosen.iter().map(row).collect::<Result<_, _>>()?;
    let table = format!("{HEAD}{rows}");
    println!("{table}");
    if names.is_empty() {
        document::replace(&workspace.join("docs/distributions.md"), "distributions", &table)?;
    }
    Ok(())
}

/// The root of a release of Debian, made once, with the packages that are traced.
fn debian(directory: &Path, suite: &str) -> Result<PathBuf> {
    let root = directory.join(suite);
    let done = root.with_extension("done");
    let packages = PACKAGES.join(" ");
    match fs::read_to_string(&done) {
        Ok(installed) if installed == packages => return Ok(root),
        Ok(_) => {}
        Err(_) => bootstrap(&root, suite)?,
    }
    let mut install = Command::new("unshare");
    install.args(["--mount", "sh", "-c", "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\""]);
    install.arg(&root).args(["apt-get", "install", "--yes", "--no-install-recommends"]).args(PACKAGES);
    install.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command::run_quietly(&format!("installing {packages} in {suite}"), &mut install)?;
    fs::write(&done, &packages)?;
    Ok(root)
}

/// Makes a root with nothing but the release's own.
fn bootstrap(root: &Path, suite: &str) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let mut bootstrap = Command::new("debootstrap");
    bootstrap.args(["--variant=minbase", suite]).arg(root).arg(apt::mirror()?);
    command::run_quietly(&format!("getting {suite}"), &mut bootstrap)?;
    // No service starts because it is installed.
    let policy = root.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    command::output(Command::new("chmod").arg("755").arg(&policy)).map(drop)
}

/// Puts the packed tracer into a root: as a file, and installed.
fn install(root: &Path, packed: &dist::Packed) -> Result<()> {
    let place = root.join(PLACE);
    fs::create_dir_all(&place)?;
    fs::copy(&packed.binary, place.join("tracer"))?;
    let package = packed.debian.as_ref().context("dpkg-deb has made no package")?;
    fs::copy(package, place.join("tracer.deb"))?;
    let mut dpkg = Command::new("chroot");
    dpkg.arg(root).args(["dpkg", "--install"]).arg(Path::new("/").join(PLACE).join("tracer.deb"));
    command::run_quietly(&format!("installing the package in {}", root.display()), &mut dpkg)
}

/// A root with nothing but musl, a program, and the packed tracer.
fn musl(workspace: &Path, directory: &Path, packed: &dist::Packed) -> Result<()> {
    let root = directory.join("musl");
    for part in [PLACE, "lib", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(part))?;
    }
    let loader = format!("lib/ld-musl-{}.so.1", std::env::consts::ARCH);
    fs::copy(Path::new("/").join(&loader), root.join(&loader)).context("cannot copy musl")?;
    fs::copy(&packed.binary, root.join(PLACE).join("tracer"))?;
    let mut compile = Command::new("musl-gcc");
    compile.args(["-O2", "-g", "-fno-omit-frame-pointer", "-o"]).arg(root.join(PLACE).join("live_blocks"));
    command::run_quietly("building for musl", compile.arg(workspace.join("tests/programs/live_blocks.c")))
}
