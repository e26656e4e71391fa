//! Finds what builds the BPF object: a compiler that has `core` for the BPF target, and `bpf-linker`.
//!
//! `tracer`'s build script and `cargo xtask` share this file (the build script includes it by path), so what set-up
//! prepares is what a build finds. Three ways, the first that works is taken:
//!
//! 1. a rustup nightly with the `rust-src` component, which builds `core` itself (`-Z build-std`);
//! 2. a compiler that comes with `core` prebuilt for the target, as Debian's `rustc-web` does;
//! 3. an object built elsewhere, named by the environment variable [`OBJECT_VARIABLE`].
//!
//! Only the standard library and `anyhow` are used here, to keep the build script small.

use std::{
    env, fmt, fs,
    io::Write as _,
    iter,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Names an object that was built elsewhere.
pub const OBJECT_VARIABLE: &str = "TRACER_BPF_OBJECT";
/// The target that the BPF programs are compiled for.
pub const TARGET: &str = "bpfel-unknown-none";
/// The binary of package `tracer-ebpf` that holds the BPF programs.
pub const BINARY: &str = "tracer-bpf";
/// The oldest Rust 1.x that builds the BPF programs, as `rust-version` says.
const OLDEST_RUST: u32 = 95;

/// Where the BPF object comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is built here.
    Build(Toolchain),
    /// It was built elsewhere.
    Object(PathBuf),
}

/// A compiler and a linker that understand each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// What compiles the BPF programs.
    pub compiler: Compiler,
    /// The path of `bpf-linker`.
    pub linker: PathBuf,
}

/// A compiler that has `core` for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// A rustup nightly with `rust-src`; `core` is built with the programs.
    Nightly {
        /// The directory of the toolchain.
        sysroot: PathBuf,
    },
    /// A compiler that ships `core` for the target.
    Prebuilt {
        /// The directory that it is installed in, `/usr` mostly.
        sysroot: PathBuf,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(toolchain) => write!(f, "{toolchain}"),
            Self::Object(object) => write!(f, "{} ({OBJECT_VARIABLE})", object.display()),
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {}", self.compiler.rustc().display(), self.linker.display())
    }
}

/// The directory where set-up puts tools that the system does not have.
#[must_use]
pub fn tools_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/tools")
}

/// Finds where the BPF object comes from on this machine.
///
/// # Errors
/// One sentence that says what is missing and how to get it.
pub fn find(workspace: &Path) -> Result<Source> {
    let missing = match find_toolchain(workspace) {
        Ok(toolchain) => return Ok(Source::Build(toolchain)),
        Err(missing) => missing,
    };
    let Some(object) = env::var_os(OBJECT_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        bail!(
            "the BPF programs cannot be built here: {missing:#}; run `cargo xtask setup`, or set {OBJECT_VARIABLE} \
             to an object built elsewhere"
        );
    };
    let object = fs::canonicalize(&object).with_context(|| {
        format!(
            "{OBJECT_VARIABLE} names {}, and the programs cannot be built here: {missing:#}",
            object.display()
        )
    })?;
    Ok(Source::Object(object))
}

/// Finds the first compiler and linker that fit together.
///
/// # Errors
/// What is missing.
pub fn find_toolchain(workspace: &Path) -> Result<Toolchain> {
    let compilers = find_compilers(workspace)?;
    let linkers: Vec<PathBuf> = find_linkers(workspace).collect();
    ensure!(!linkers.is_empty(), "`bpf-linker` is neither in target/tools/bin nor in PATH");
    let mut misfits = Vec::new();
    for compiler in compilers {
        for linker in &linkers {
            let toolchain = Toolchain { compiler: compiler.clone(), linker: linker.clone() };
            match toolchain.check(workspace) {
                Ok(()) => return Ok(toolchain),
                Err(why) => misfits.push(format!("{why:#}")),
            }
        }
    }
    bail!("no compiler and bpf-linker fit together: {}", misfits.join("; "))
}

/// Finds the compilers that have `core` for the BPF target, the preferred one first.
///
/// # Errors
/// Why no compiler of this machine will do.
pub fn find_compilers(workspace: &Path) -> Result<Vec<Compiler>> {
    let nightlies = nightly_sysroots().into_iter().map(|sysroot| Compiler::Nightly { sysroot });
    let prebuilt = prebuilt_sysroots(workspace).into_iter().map(|sysroot| Compiler::Prebuilt { sysroot });
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for compiler in nightlies.chain(prebuilt) {
        match compiler.check_version() {
            Ok(()) => found.push(compiler),
            Err(why) => refused.push(format!(" ({why:#})")),
        }
    }
    ensure!(
        !found.is_empty(),
        "there is neither a rustup nightly with rust-src nor a rustc with core for {TARGET}{}",
        refused.concat()
    );
    Ok(found)
}

/// The rustup nightlies that have `rust-src`: plain `nightly` first, then dated ones, newest first.
fn nightly_sysroots() -> Vec<PathBuf> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup")));
    let Some(toolchains) = rustup.and_then(|rustup| fs::read_dir(rustup.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut sysroots: Vec<PathBuf> = toolchains
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly")))
        .filter(|path| path.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
        .collect();
    // By name "nightly-x86_64-…" comes after every "nightly-2026-…".
    sysroots.sort();
    sysroots.reverse();
    sysroots
}

/// The sysroots that have a prebuilt `core` for the BPF target: those of the compilers in `PATH`, the system's (which
/// rustup's hides), and what set-up unpacked.
fn prebuilt_sysroots(workspace: &Path) -> Vec<PathBuf> {
    let mut sysroots: Vec<PathBuf> = Vec::new();
    let others = [PathBuf::from("/usr/bin"), tools_dir(workspace).join("usr/bin")];
    for dir in path_dirs().chain(others) {
        let Ok(rustc) = fs::canonicalize(dir.join("rustc")) else { continue };
        let Some(sysroot) = rustc.parent().and_then(Path::parent) else { continue };
        let core = sysroot.join("lib/rustlib").join(TARGET).join("lib");
        if core.is_dir() && !sysroots.iter().any(|known| known == sysroot) {
            sysroots.push(sysroot.to_owned());
        }
    }
    sysroots
}

/// Finds each `bpf-linker`: first the one that set-up built.
fn find_linkers(workspace: &Path) -> impl Iterator<Item = PathBuf> {
    let own = tools_dir(workspace).join("bin");
    iter::once(own).chain(path_dirs()).map(|dir| dir.join("bpf-linker")).filter(|path| path.is_file())
}

/// The directories of `PATH`.
fn path_dirs() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    dirs.into_iter()
}

impl Compiler {
    /// The directory that the compiler is installed in.
    fn sysroot(&self) -> &Path {
        match self {
            Self::Nightly { sysroot } | Self::Prebuilt { sysroot } => sysroot,
        }
    }

    /// The path of `rustc`.
    #[must_use]
    pub fn rustc(&self) -> PathBuf {
        self.sysroot().join("bin/rustc")
    }

    /// Whether `core` has to be built with the programs.
    fn builds_core(&self) -> bool {
        matches!(self, Self::Nightly { .. })
    }

    /// Lets `command` run this compiler.
    fn prepare(&self, command: &mut Command) {
        // The BPF target is not stable.
        command.env("RUSTC_BOOTSTRAP", "1");
        // Debian keeps the compiler's libraries with the system's, where a compiler that set-up unpacked misses them.
        let libraries = self.sysroot().join(format!("lib/{}-linux-gnu", env::consts::ARCH));
        if !self.builds_core() && self.sysroot() != Path::new("/usr") && libraries.is_dir() {
            let others = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let paths = env::join_paths(iter::once(libraries).chain(env::split_paths(&others)));
            command.envs(paths.map(|paths| ("LD_LIBRARY_PATH", paths)));
        }
    }

    /// Refuses a compiler that is too old for the sources.
    fn check_version(&self) -> Result<()> {
        let rustc = self.rustc();
        let mut command = Command::new(&rustc);
        self.prepare(command.arg("--version"));
        let output = command.output().with_context(|| format!("cannot run {}", rustc.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let minor = minor_version(&text)
            .with_context(|| format!("{} does not state its version", rustc.display()))?;
        ensure!(minor >= OLDEST_RUST, "{} is Rust 1.{minor}, older than 1.{OLDEST_RUST}", rustc.display());
        Ok(())
    }
}

/// The 96 of `rustc 1.96.0-nightly (…)`.
fn minor_version(text: &str) -> Option<u32> {
    let version = text.strip_prefix("rustc 1.")?;
    version.split_once('.')?.0.parse().ok()
}

impl Toolchain {
    /// Compiles and links an empty crate, without even `core`: the linker reads the bitcode of its own LLVM and of older
    /// ones, and nothing else tells which LLVM it was built with. Takes 0.1 s.
    fn check(&self, workspace: &Path) -> Result<()> {
        let rustc = self.compiler.rustc();
        let object = target_dir(workspace).join(format!("empty-{}.o", process::id()));
        fs::create_dir_all(target_dir(workspace)).context("cannot write to the target directory")?;
        let mut command = Command::new(&rustc);
        self.compiler.prepare(&mut command);
        command.args(["--target", TARGET, "--crate-type", "cdylib", "--crate-name", "empty", "-"]);
        command.arg(linker_flag(&self.linker)).arg("-o").arg(&object);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", rustc.display()))?;
        // A compiler that does not read its input says why on its standard error.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(b"#![feature(no_core)] #![no_core]"));
        let output = child.wait_with_output()?;
        let _ = fs::remove_file(&object);
        let diagnostics = String::from_utf8_lossy(&output.stderr);
        // Only what the linker says counts: a later compiler may want more than nothing in an empty crate.
        ensure!(
            output.status.success() || !diagnostics.contains("linking with"),
            "{} cannot link what {} compiles",
            self.linker.display(),
            rustc.display()
        );
        Ok(())
    }

    /// A `cargo SUBCOMMAND` on the BPF programs, for a host of the given architecture.
    #[must_use]
    pub fn cargo(&self, subcommand: &str, arch: &str, workspace: &Path) -> Command {
        let cargo = match &self.compiler {
            Compiler::Nightly { sysroot } => sysroot.join("bin/cargo"),
            Compiler::Prebuilt { .. } => env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).into(),
        };
        let mut command = Command::new(cargo);
        command.current_dir(workspace);
        command.arg(subcommand).args(["--package", "tracer-ebpf", "--bin", BINARY, "--features", "bpf"]);
        command.args(["--profile", "bpf", "--target", TARGET]).arg("--target-dir").arg(target_dir(workspace));
        if self.compiler.builds_core() {
            command.args(["-Z", "build-std=core"]);
        }
        // What the calling cargo set for the host's build (or clippy for its own) must not reach this one.
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            let of_the_host =
                ["CARGO_CFG_", "CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_", "RUSTC", "CLIPPY_"];
            if of_the_host.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(&*name);
            }
        }
        command.env_remove("RUSTFLAGS").env_remove("RUSTUP_TOOLCHAIN");
        // Compiled incrementally, code is divided and inlined otherwise, and the verifier may not take it.
        command.env("CARGO_INCREMENTAL", "0");
        command.env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(arch));
        command.env("RUSTC", self.compiler.rustc());
        self.compiler.prepare(&mut command);
        command
    }

    /// The flags of the BPF build, separated as cargo wants them.
    ///
    /// `bpf_target_arch` tells aya-ebpf the layout of the host's registers. Without BTF the verifier refuses the callbacks
    /// of `bpf_loop` ("missing btf func_info"), and BTF is made from full debug information.
    fn rustflags(&self, arch: &str) -> String {
        let flags = [
            format!("--cfg=bpf_target_arch=\"{arch}\""),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            linker_flag(&self.linker),
        ];
        flags.join("\u{1f}")
    }
}

/// Tells `rustc` to link with `linker`.
fn linker_flag(linker: &Path) -> String {
    format!("-Clinker={}", linker.display())
}

/// Where the BPF programs are built. Not the target directory of the cargo that runs the build script, since that one
/// holds its lock; and one for all profiles of the host, since the object is the same for each.
fn target_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/bpf")
}

/// Where [`Toolchain::cargo`]'s `build` leaves the object.
#[must_use]
pub fn built_object(workspace: &Path) -> PathBuf {
    target_dir(workspace).join(TARGET).join("bpf").join(BINARY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_rustc() {
        assert_eq!(minor_version("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\n"), Some(97));
        assert_eq!(
            minor_version("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n"),
            Some(96)
        );
        assert_eq!(minor_version("clang version 14.0.6\n"), None);
    }
}
