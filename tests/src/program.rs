//! The target programs: compiled once, started, and spoken to as `tests/README.md` lays down.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fs,
    hash::{Hash, Hasher},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

use serde::Deserialize;

use crate::{lines::Lines, process};

/// What a program says about itself before the window.
#[derive(Clone, Debug, Deserialize)]
struct Hello {
    pid: u32,
    expect: Expect,
    /// What else it says.
    #[serde(flatten)]
    more: BTreeMap<String, serde_json::Value>,
}

/// What a program will do in the window. Fields that are absent are not known in advance.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Everything that will be outstanding at the end.
    pub leaks: Vec<Leak>,
    /// What will be both allocated and freed.
    pub freed: Option<Amount>,
    /// Calls of an allocator function that will fail.
    pub failed: Option<u64>,
    /// Frees of blocks from before the window.
    pub unmatched_frees: Option<u64>,
}

/// Bytes and objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Amount {
    /// Requested or mapped bytes.
    pub bytes: u64,
    /// Blocks or mappings.
    pub objects: u64,
}

/// What one function will leave outstanding through one allocator function.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leak {
    /// The caller of the allocator function.
    pub function: String,
    /// The allocator function; several names separated by `|` where they are one address.
    pub api: String,
    /// `native` or `mapping`.
    pub kind: String,
    /// Outstanding bytes.
    pub bytes: u64,
    /// Outstanding objects.
    pub objects: u64,
    /// Bytes that count in pictures, where they differ from `bytes`.
    pub weight: Option<u64>,
    /// Whether the function is only somewhere in the stack, with its language's own library in between.
    #[serde(default)]
    pub through: bool,
}

impl Expect {
    /// What the program announces in one of these lines of its output.
    #[must_use]
    pub fn in_output(lines: &[String]) -> Option<Self> {
        lines.iter().find_map(|line| serde_json::from_str::<Hello>(line).ok()).map(|hello| hello.expect)
    }
}

/// A program of `tests/programs`, and how to build and start it.
#[derive(Clone, Debug)]
pub struct Program {
    source: &'static str,
    flags: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Program {
    /// The program of this source file: C, C++ or Rust, by its ending.
    #[must_use]
    pub fn new(source: &'static str) -> Self {
        Self { source, flags: Vec::new(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// Adds a flag for the compiler.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Adds an argument of the program.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Builds it, if that has not been done, and returns the executable.
    #[track_caller]
    pub fn build(&self) -> PathBuf {
        compile(self.source, &self.flags)
    }

    /// Builds and starts it, and waits until it is ready to do its work.
    #[track_caller]
    pub fn start(&self) -> Running {
        self.start_as(&self.build())
    }

    /// As [`Program::start`], with an executable made from this program (a stripped one, say).
    #[track_caller]
    pub fn start_as(&self, executable: &Path) -> Running {
        let mut command = Command::new(executable);
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        Running::start(command)
    }
}

/// Where the sources of the programs are.
#[must_use]
pub fn programs_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// Where what is built from them goes.
pub(crate) fn build_dir() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from);
    fs::create_dir_all(target.join("tests-programs")).expect("the target directory is writable");
    target.join("tests-programs").canonicalize().expect("it was just made")
}

/// Compiles a source of `tests/programs`, once for each content and set of flags. Shared libraries are built by flags.
#[track_caller]
pub fn compile(source: &str, flags: &[String]) -> PathBuf {
    let path = programs_dir().join(source);
    let mut command = compiler(&path);
    command.args(flags);
    let output =
        build_dir().join(format!("{}-{:016x}", path.file_stem().unwrap().display(), key(&path, &command)));
    if output.exists() {
        return output;
    }
    // Tests run at once, in several processes: each builds under a name of its own, and the renaming is atomic.
    let own = output.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
    command.arg("-o").arg(&own).stdin(Stdio::null());
    let result = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    assert!(result.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&result.stderr));
    fs::rename(&own, &output).expect("it was just built");
    output
}

/// Builds a program of the package `tests/programs/rust_allocators`, whose crates build C and C++. The first time takes a minute and
/// gets the crates.
#[track_caller]
pub fn rust_allocator(name: &str) -> PathBuf {
    let package = programs_dir().join("rust_allocators/Cargo.toml");
    let target = build_dir().join("rust");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--bin", name, "--manifest-path"]).arg(package);
    let result = cargo.arg("--target-dir").arg(&target).output();
    let result = result.unwrap_or_else(|error| panic!("{cargo:?} cannot be run: {error}"));
    assert!(result.status.success(), "{cargo:?} failed:\n{}", String::from_utf8_lossy(&result.stderr));
    target.join("release").join(name)
}

/// The compiler and the flags that every program of its language gets. Libraries named by later flags come last.
fn compiler(source: &Path) -> Command {
    let by_language = |program, flags: &[&str]| {
        let mut command = Command::new(program);
        command.args(flags).arg(source).current_dir(programs_dir());
        command
    };
    let c_family = ["-O2", "-g", "-fno-omit-frame-pointer", "-Wall", "-Werror", "-pthread"];
    match source.extension().and_then(|extension| extension.to_str()) {
        Some("c") => by_language("gcc", &c_family),
        Some("cc" | "cpp") => by_language("g++", &c_family),
        Some("S") => by_language("gcc", &["-nostdlib", "-static"]),
        Some("rs") => by_language("rustc", &["--edition=2024", "-Copt-level=2", "-g"]),
        other => panic!("no compiler for {other:?}"),
    }
}

/// Tells builds apart: the source, what it may include, and the command line. 64 bits make it very unlikely (2^-50 for a
/// hundred builds) that two of them collide.
fn key(source: &Path, command: &Command) -> u64 {
    let mut hasher = DefaultHasher::new();
    let beside =
        fs::read_dir(source.parent().expect("sources are in a directory")).expect("it can be listed");
    let beside = beside.flatten().map(|entry| entry.path());
    let mut files: Vec<_> =
        beside.filter(|path| path.extension().is_some_and(|ending| ending == "h")).collect();
    files.sort();
    files.extend([source.into(), programs_dir().join("protocol.rs")]);
    for file in files {
        fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).hash(&mut hasher);
    }
    command.get_program().hash(&mut hasher);
    command.get_args().for_each(|argument| argument.hash(&mut hasher));
    hasher.finish()
}

/// A program that is ready for its window. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    pid: u32,
    /// What it will do.
    pub expect: Expect,
    said: BTreeMap<String, String>,
}

impl Running {
    /// Starts a command that speaks the protocol, and waits until it is ready.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        let stdin = child.stdin.take();
        let mut stdout = Lines::of(child.stdout.take().expect("it is piped"));
        let hello = stdout.find(|line| serde_json::from_str::<Hello>(line).ok());
        let hello = hello.unwrap_or_else(|why| panic!("{command:?} says what it will leak: {why}"));
        let said = hello.more.into_iter().map(|(name, value)| (name, value.to_string())).collect();
        Self { child, stdin, stdout, pid: hello.pid, expect: hello.expect, said }
    }

    /// As [`Running::start`], for a command that forks into a pid namespace: there the program has another pid.
    #[track_caller]
    pub fn start_in_pid_namespace(command: Command) -> Self {
        let mut running = Self::start(command);
        let parent = running.child.id();
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("it is running");
        running.pid = children.trim().parse().unwrap_or_else(|_| panic!("it has one child: {children:?}"));
        running
    }

    /// Its pid, as the tests' namespace numbers it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it begin its work, or go on to what comes next.
    #[track_caller]
    pub fn go(&mut self) {
        self.say("go");
    }

    /// Says a line to it.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("it reads its input");
    }

    /// Waits until its work is done.
    #[track_caller]
    pub fn wait_until_done(&mut self) {
        self.wait_for_line("done");
    }

    /// Something else that it said of itself before its window, as JSON.
    #[track_caller]
    #[must_use]
    pub fn hello(&self, name: &str) -> &str {
        self.said.get(name).unwrap_or_else(|| panic!("it says what {name:?} is: {:?}", self.said))
    }

    /// Waits for a line that begins so, and returns the rest of it.
    #[track_caller]
    pub fn wait_for_line_after(&mut self, beginning: &str) -> String {
        let rest = |line: &str| line.strip_prefix(beginning).map(str::to_owned);
        self.stdout.find(rest).unwrap_or_else(|why| panic!("the program prints {beginning:?}: {why}"))
    }

    /// Waits until it prints this line.
    #[track_caller]
    pub fn wait_for_line(&mut self, expected: &str) {
        let found = self.stdout.find(|line| (line == expected).then_some(()));
        found.unwrap_or_else(|why| panic!("the program prints {expected:?}: {why}"));
    }

    /// Waits until it has printed all of these lines, in any order.
    #[track_caller]
    pub fn wait_for_lines(&mut self, expected: &[&str]) {
        let mut missing = expected.to_vec();
        while !missing.is_empty() {
            let place = |line: &str| missing.iter().position(|missing| *missing == line);
            let found = self.stdout.find(place);
            missing.remove(found.unwrap_or_else(|why| panic!("the program prints {missing:?}: {why}")));
        }
    }

    /// Lets it do its work, and waits until that is done.
    #[track_caller]
    pub fn work(&mut self) {
        self.go();
        self.wait_until_done();
    }

    /// Whether everything in it goes on, and gets the right results: it says so when it is asked.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        self.go();
        self.wait_for_line("alive");
    }

    /// Lets it end, and returns how it did.
    #[track_caller]
    pub fn finish(&mut self) -> ExitStatus {
        self.stdin = None;
        process::wait_for_exit(&mut self.child)
    }

    /// Whether it still answers: it ends when its input does, successfully.
    #[track_caller]
    pub fn assert_unharmed(&mut self) {
        let status = self.finish();
        assert!(status.success(), "the target ends as if it had never been traced: {status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell about it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
