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
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Names an object that was built elsewhere.
pub const OBJECT_VARIABLE: &str = "TRACER_BPF_OBJECT";
/// The target that the BPF programs are compiled for.
pub const TARGET: &str = "bpfel-unknown-none";
/// The binary of package `tracer-ebpf` that holds the BPF programs.
pub const BINARY: &str = "tracer-bpf";
/// The LLVM that set-up builds `bpf-linker` with. It reads bitcode of its own and of older releases, never of newer ones.
pub const LLVM: u32 = 22;
/// The oldest compiler that builds the BPF programs: 1.95, as `rust-version` says for the rest.
const OLDEST_RUST_MINOR: u32 = 95;

/// Where the BPF object comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is built here.
    Build {
        /// What compiles it.
        compiler: Compiler,
        /// The path of `bpf-linker`.
        linker: PathBuf,
    },
    /// It was built elsewhere.
    Object(PathBuf),
}

/// A compiler with `core` for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// A rustup nightly with `rust-src`; `core` is built with the programs.
    Nightly {
        /// The directory of the toolchain.
        sysroot: PathBuf,
    },
    /// A compiler that ships `core` for the target.
    Prebuilt {
        /// The path of `rustc`.
        rustc: PathBuf,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build { compiler, linker } => write!(f, "{compiler}, {}", linker.display()),
            Self::Object(object) => write!(f, "{}", object.display()),
        }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nightly { sysroot } => write!(f, "{} with rust-src", sysroot.display()),
            Self::Prebuilt { rustc } => write!(f, "{} with core for {TARGET}", rustc.display()),
        }
    }
}

/// The directory under the workspace where set-up puts tools that the system does not have.
#[must_use]
pub fn tools_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/tools")
}

/// Finds where the BPF object comes from on this machine.
///
/// # Errors
/// One sentence that says what is missing and how to get it.
pub fn find(workspace: &Path) -> Result<Source> {
    let missing = match (find_compiler(workspace), find_linker(workspace)) {
        (Ok(compiler), Some(linker)) => return Ok(Source::Build { compiler, linker }),
        (Err(why), _) => format!("{why:#}"),
        (Ok(_), None) => "`bpf-linker` is neither in PATH nor in target/tools/bin".to_owned(),
    };
    let Some(object) = env::var_os(OBJECT_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        bail!(
            "the BPF programs cannot be built here: {missing}; run `cargo xtask setup`, or set {OBJECT_VARIABLE} \
             to an object built elsewhere"
        );
    };
    let object = fs::canonicalize(&object).with_context(|| {
        format!(
            "{OBJECT_VARIABLE} names {}, and the programs cannot be built here: {missing}",
            object.display()
        )
    })?;
    Ok(Source::Object(object))
}

/// Finds a compiler that has `core` for the BPF target.
///
/// # Errors
/// Why no compiler of this machine will do.
pub fn find_compiler(workspace: &Path) -> Result<Compiler> {
    let mut refused = Vec::new();
    let nightlies = nightly_sysroots().into_iter().map(|sysroot| Compiler::Nightly { sysroot });
    let prebuilt = prebuilt_rustcs(workspace).into_iter().map(|rustc| Compiler::Prebuilt { rustc });
    for compiler in nightlies.chain(prebuilt) {
        match compiler.check() {
            Ok(()) => return Ok(compiler),
            Err(why) => refused.push(format!("{why:#}")),
        }
    }
    let refused = if refused.is_empty() { String::new() } else { format!(" ({})", refused.join("; ")) };
    bail!("there is neither a rustup nightly with rust-src nor a rustc with core for {TARGET}{refused}")
}

/// Finds `bpf-linker`: the one that set-up built, since its LLVM is known to fit, else the one in `PATH`.
#[must_use]
pub fn find_linker(workspace: &Path) -> Option<PathBuf> {
    let own = tools_dir(workspace).join("bin");
    search_dirs(own).map(|dir| dir.join("bpf-linker")).find(|path| path.is_file())
}

/// `first`, then the directories of `PATH`.
fn search_dirs(first: PathBuf) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    std::iter::once(first).chain(dirs)
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
    // "nightly-2026-…" sorts before "nightly-x86_64-…".
    sysroots.sort();
    sysroots.reverse();
    sysroots
}

/// The compilers that have a prebuilt `core` for the BPF target in their sysroot.
fn prebuilt_rustcs(workspace: &Path) -> Vec<PathBuf> {
    // Besides PATH, where a rustup proxy hides the system's compiler: the system's, and what set-up unpacked.
    let unpacked = tools_dir(workspace).join("usr/bin");
    let mut rustcs: Vec<PathBuf> = std::iter::once(PathBuf::from("/usr/bin"))
        .chain(search_dirs(unpacked))
        .filter_map(|dir| fs::canonicalize(dir.join("rustc")).ok())
        .filter(|rustc| has_prebuilt_core(rustc))
        .collect();
    rustcs.dedup();
    rustcs
}

/// Whether the sysroot that `rustc` lies in (`SYSROOT/bin/rustc`) has a library directory for the target.
fn has_prebuilt_core(rustc: &Path) -> bool {
    let sysroot = rustc.parent().and_then(Path::parent);
    sysroot.is_some_and(|sysroot| sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir())
}

impl Compiler {
    /// The path of `rustc`.
    #[must_use]
    pub fn rustc(&self) -> PathBuf {
        match self {
            Self::Nightly { sysroot } => sysroot.join("bin/rustc"),
            Self::Prebuilt { rustc } => rustc.clone(),
        }
    }

    /// Refuses a compiler that is too old for the sources, or whose bitcode is too new for the linker.
    fn check(&self) -> Result<()> {
        let rustc = self.rustc();
        let version = Version::of(&rustc)?;
        ensure!(
            version.minor >= OLDEST_RUST_MINOR,
            "{} is Rust 1.{}, older than 1.{OLDEST_RUST_MINOR}",
            rustc.display(),
            version.minor
        );
        ensure!(
            version.llvm <= LLVM,
            "{} writes bitcode of LLVM {}, newer than the {LLVM} that bpf-linker is built with",
            rustc.display(),
            version.llvm
        );
        Ok(())
    }
}

/// What `rustc -vV` says.
struct Version {
    minor: u32,
    llvm: u32,
}

impl Version {
    fn of(rustc: &Path) -> Result<Self> {
        let output = Command::new(rustc)
            .arg("-vV")
            .env_remove("RUSTUP_TOOLCHAIN")
            .output()
            .with_context(|| format!("cannot run {}", rustc.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::parse(&text).with_context(|| format!("{} -vV does not state its versions", rustc.display()))
    }

    /// Reads the lines `release: 1.96.0-nightly` and `LLVM version: 22.1.8`.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let (_major, rest) = field("release")?.split_once('.')?;
        let (minor, _patch) = rest.split_once('.')?;
        let (llvm, _minor) = field("LLVM version")?.split_once('.')?;
        Some(Self { minor: minor.parse().ok()?, llvm: llvm.parse().ok()? })
    }
}

/// Where the BPF programs are built. Not the target directory of the cargo that runs the build script, since that one
/// holds its lock; and one for all profiles of the host, since the object is the same for each.
fn target_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/bpf")
}

/// A `cargo SUBCOMMAND` on the BPF programs, for a host of the given architecture.
#[must_use]
pub fn cargo(subcommand: &str, compiler: &Compiler, linker: &Path, arch: &str, workspace: &Path) -> Command {
    let (cargo, build_std) = match compiler {
        Compiler::Nightly { sysroot } => (sysroot.join("bin/cargo"), true),
        Compiler::Prebuilt { .. } => (env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).into(), false),
    };
    let mut command = Command::new(cargo);
    command.current_dir(workspace);
    command.arg(subcommand).args(["--package", "tracer-ebpf", "--bin", BINARY, "--features", "bpf"]);
    command.args(["--profile", "bpf", "--target", TARGET]).arg("--target-dir").arg(target_dir(workspace));
    if build_std {
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
    command.env("CARGO_ENCODED_RUSTFLAGS", rustflags(linker, arch));
    command.env("RUSTC", compiler.rustc());
    if !build_std {
        // The BPF target and aya-ebpf's features are unstable.
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command
}

/// The flags of the BPF build, separated as cargo wants them.
///
/// `bpf_target_arch` tells aya-ebpf the layout of the host's registers. Without BTF the verifier refuses the callbacks of
/// `bpf_loop` ("missing btf func_info"), and BTF is made from full debug information.
fn rustflags(linker: &Path, arch: &str) -> String {
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    flags.join("\u{1f}")
}

/// Where [`cargo`]'s `build` leaves the object.
#[must_use]
pub fn built_object(workspace: &Path) -> PathBuf {
    target_dir(workspace).join(TARGET).join("bpf").join(BINARY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_rustc() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nrelease: 1.97.0-nightly\n\
                    LLVM version: 22.1.4\n";
        let version = Version::parse(text).unwrap();
        assert_eq!((version.minor, version.llvm), (97, 22));
        assert!(Version::parse("rustc 1.97.0").is_none());
    }
}
