//! Gets what a build needs and the machine does not have. What is there is left alone, so a second run does nothing.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt,
    bpf_toolchain::{self, Compiler, Source},
    command, java, npm,
    privilege::found_in_path,
};

/// The release of `bpf-linker` that is built, and the LLVM that it is built with: the one of `rustc-web`.
const LINKER_VERSION: &str = "0.13.0";
const LLVM: u32 = 22;

/// The release of `cargo-deny` that checks the dependencies.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Debian's compiler that has `core` for the BPF target, and its clippy.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", CLIPPY_PACKAGE];
const CLIPPY_PACKAGE: &str = "rust-web-clippy";

/// Programs that the tests run, and the packages that have them.
const PROGRAMS_OF_TESTS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("g++", "g++"),
    ("objcopy", "binutils"),
    ("setpriv", "util-linux"),
    ("tmux", "tmux"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("redis-server", "redis-server"),
    ("nginx", "nginx-light"),
    ("musl-gcc", "musl-tools"),
    ("sudo", "sudo"),
    ("curl", "curl"),
    ("valgrind", "valgrind"),
    ("xz", "xz-utils"),
    ("chromium", "chromium"),
    ("go", "golang-go"),
    ("javac", "default-jdk-headless"),
    // sys/sdt.h
    ("dtrace", "systemtap-sdt-dev"),
    ("bpftrace", "bpftrace"),
    ("gdb", "gdb"),
    ("strace", "strace"),
    ("perf", "linux-perf"),
    ("debuginfod", "debuginfod"),
    ("debuginfod-find", "debuginfod"),
    ("postgres", "postgresql"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("prometheus-alertmanager", "prometheus-alertmanager"),
    ("amtool", "prometheus-alertmanager"),
];

/// Allocators that the tests trace, and the packages that have them.
const ALLOCATORS_OF_TESTS: &[(&str, &str)] = &[
    ("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
    ("libjemalloc.so.2", "libjemalloc2"),
    ("libjemalloc_pic.a", "libjemalloc-dev"),
    ("libmimalloc.so.2", "libmimalloc2.0"),
];

/// Gets what builds the tracer.
///
/// # Errors
/// What is missing and cannot be got, and what to do.
pub fn build_tools(workspace: &Path) -> Result<()> {
    let source = match bpf_toolchain::find(workspace) {
        Ok(source) => source,
        Err(_) => install_bpf_toolchain(workspace)?,
    };
    command::step(&format!("the BPF programs come from {source}"));
    apt::programs(&[("g++", "g++")], "the programs with known leaks")
}

/// Gets what the tests need besides.
///
/// # Errors
/// What is missing and cannot be got, and what to do.
pub fn programs_of_tests(workspace: &Path) -> Result<()> {
    apt::programs(PROGRAMS_OF_TESTS, "the tests")?;
    let is_missing = |library: &str| !Path::new("/usr/lib/x86_64-linux-gnu").join(library).exists();
    let missing = ALLOCATORS_OF_TESTS.iter().filter(|(library, _)| is_missing(library));
    let packages: Vec<_> = missing.map(|&(_, package)| package).collect();
    if !packages.is_empty() {
        apt::install(&packages, "the tests")?;
    }
    npm::install(workspace, "speedscope@1.25.0", "dist/release/index.html")?;
    java::install(workspace, java::OF_TESTS)?;
    Ok(())
}

/// Where the clippy that belongs to a compiler is, when it is installed.
#[must_use]
pub fn clippy_driver(compiler: &Compiler) -> PathBuf {
    compiler.rustc().with_file_name("clippy-driver")
}

/// Gets the clippy that belongs to the compiler of the BPF programs, where Debian has it.
///
/// # Errors
/// See [`apt::install`].
pub fn clippy_for_bpf(compiler: &Compiler) -> Result<()> {
    let debian =
        matches!(compiler, Compiler::Prebuilt { .. }) && compiler.rustc() == Path::new("/usr/bin/rustc");
    if debian && !clippy_driver(compiler).is_file() && apt::can_install(&[CLIPPY_PACKAGE]) {
        apt::install(&[CLIPPY_PACKAGE], "linting the BPF programs")?;
    }
    Ok(())
}

/// Installs what is missing of a compiler and a linker for the BPF programs.
fn install_bpf_toolchain(workspace: &Path) -> Result<Source> {
    if bpf_toolchain::find_compilers(workspace).is_err() {
        install_compiler(workspace)?;
    }
    if bpf_toolchain::find_toolchain(workspace).is_err() {
        build_linker(workspace)?;
    }
    bpf_toolchain::find(workspace)
}

/// Installs Debian's compiler; beside a `rustc` that it would replace, it is only unpacked.
fn install_compiler(workspace: &Path) -> Result<()> {
    ensure!(
        found_in_path("apt-get"),
        "the BPF programs need a compiler with core for BPF, and this machine has no apt-get: get a nightly with \
         `rustup toolchain install nightly --component rust-src`"
    );
    if !apt::can_install(&COMPILER_PACKAGES) {
        apt::update()?;
    }
    let why = "a compiler of the BPF programs";
    if apt::can_install(&COMPILER_PACKAGES) {
        return apt::install(&COMPILER_PACKAGES, why);
    }
    apt::install(&[&format!("libllvm{LLVM}")], why)?;
    apt::unpack(&COMPILER_PACKAGES, "rust", &bpf_toolchain::tools_dir(workspace))
}

/// Where `cargo-deny` is, which gets built when it is not there. Unoptimised: that takes a third of the time, and it has little to do.
///
/// # Errors
/// When it cannot be built.
pub fn cargo_deny(workspace: &Path) -> Result<PathBuf> {
    let root = bpf_toolchain::tools_dir(workspace).join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.is_file() {
        let mut install = Command::new("cargo");
        install.args([
            "install",
            "cargo-deny",
            "--version",
            CARGO_DENY_VERSION,
            "--locked",
            "--debug",
            "--root",
        ]);
        install.arg(&root).env("CARGO_PROFILE_DEV_DEBUG", "0");
        command::run("building cargo-deny, once (about a minute)", &mut install)
            .context("cargo-deny cannot be built: is the network reachable?")?;
    }
    Ok(program)
}

/// Builds `bpf-linker` into the target directory.
fn build_linker(workspace: &Path) -> Result<()> {
    let llvm = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if !llvm.join("bin/llvm-config").is_file() || !llvm.join("lib/libPolly.a").is_file() {
        let packages = [format!("llvm-{LLVM}-dev"), format!("libpolly-{LLVM}-dev")];
        apt::install(&packages.each_ref().map(String::as_str), "bpf-linker")?;
    }
    apt::programs(&[("g++", "g++")], "bpf-linker")?;
    let mut install = Command::new("cargo");
    install.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"]);
    install.arg(format!("--features=llvm-{LLVM}"));
    // Cargo advises to put its directory into PATH, unless it is there.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = bpf_toolchain::tools_dir(workspace).join("bin");
    let path = std::env::join_paths(std::env::split_paths(&path).chain([own]));
    install.envs(path.map(|path| ("PATH", path)));
    install.arg("--force").arg("--root").arg(bpf_toolchain::tools_dir(workspace)).env("LLVM_PREFIX", &llvm);
    command::run("building bpf-linker, once (about a minute)", &mut install)
        .context("bpf-linker cannot be built: is the network reachable?")
}
