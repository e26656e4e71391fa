//! The demonstration: a service that leaks, traced for a few seconds.
//!
//! It is the Node.js service of `tests/programs/node`, whose addon leaks while the JavaScript heap stays flat; without
//! Node.js, the same service in C++.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, bpf_toolchain, command, privilege, privilege::found_in_path, run};

/// How long the service is traced: at 200 requests of 16 KiB a second, enough to see 40 MiB grow, and to call it a leak.
const DURATION: &str = "12s";
/// Where the flame graph goes.
const FLAME_GRAPH: &str = "tracer-demo.svg";
/// Frame pointers, since the demonstration is about the leak, not about unwinding.
const FLAGS: [&str; 6] = ["-std=c++17", "-O2", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra"];

/// Runs it.
///
/// # Errors
/// When a step fails.
pub fn demo(workspace: &Path) -> Result<()> {
    privilege::check_kernel()?;
    let mut service = Service::start(service_command(workspace)?)?;
    let pid = service.child.id();
    command::step(&format!("the service runs as process {pid}; tracing it for {DURATION}"));
    let mut tracer = run::tracer(workspace)?;
    tracer.args(["--pid", &pid.to_string(), "--duration", DURATION, "--output", FLAME_GRAPH]);
    let traced = tracer.status().with_context(|| format!("cannot run `{}`", command::line(&tracer)))?;
    ensure!(traced.success(), "`{}` failed, {traced}", command::line(&tracer));
    let last = service.stop()?;
    let picture = env::current_dir()?.join(FLAME_GRAPH);
    ensure!(picture.is_file(), "the tracer left no {}", picture.display());
    eprintln!("the service said at first: {}\n                  at last: {last}", service.first);
    eprintln!("the flame graph is in {}; any browser shows it", picture.display());
    Ok(())
}

/// Builds the addon where there is a Node.js to load it: the tests use it, too.
///
/// # Errors
/// See [`build_addon`].
pub fn setup(workspace: &Path) -> Result<()> {
    if found_in_path("node") {
        build_addon(workspace)?;
    }
    Ok(())
}

/// Builds the Node.js addon and returns its path.
///
/// # Errors
/// When its headers cannot be got, or it does not compile.
pub fn build_addon(workspace: &Path) -> Result<PathBuf> {
    let include = node_headers(workspace)?;
    let flags = ["-fPIC".to_owned(), "-shared".to_owned(), format!("-I{}", include.display())];
    compile(workspace, "addon.cc", &flags, "session_cache.node")
}

/// What starts the service.
fn service_command(workspace: &Path) -> Result<Command> {
    if !found_in_path("node") {
        command::step("there is no node here, so the service is the one in C++");
        return Ok(Command::new(compile(workspace, "service.cc", &[], "session-service")?));
    }
    let mut node = Command::new("node");
    node.arg(sources(workspace).join("service.js")).arg(build_addon(workspace)?);
    Ok(node)
}

fn sources(workspace: &Path) -> PathBuf {
    workspace.join("tests/programs/node")
}

/// Compiles a C++ source into the target directory, unless that has been done since it was changed.
fn compile(workspace: &Path, source: &str, flags: &[String], output: &str) -> Result<PathBuf> {
    let sources = sources(workspace);
    let directory = workspace.join("target/demo");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let output = directory.join(output);
    let inputs = [sources.join(source), sources.join("session_cache.h")];
    if !is_newer(&output, &inputs) {
        let mut compiler = Command::new("g++");
        compiler.args(FLAGS).args(flags).arg("-o").arg(&output).arg(&inputs[0]);
        command::run_quietly(&format!("compiling {source}"), &mut compiler)?;
    }
    Ok(output)
}

/// Whether `output` exists and was written after every input.
fn is_newer(output: &Path, inputs: &[PathBuf]) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let Some(built) = changed(output) else { return false };
    inputs.iter().all(|input| changed(input).is_some_and(|changed| changed < built))
}

/// The directory of `node_api.h`: the system's, else that of the npm package `node-api-headers`.
///
/// # Errors
/// When they cannot be got.
pub fn node_headers(workspace: &Path) -> Result<PathBuf> {
    let tools = bpf_toolchain::tools_dir(workspace);
    let system = PathBuf::from("/usr/include/node");
    let package = tools.join("node_modules/node-api-headers/include");
    let found = || [&system, &package].into_iter().find(|dir| dir.join("node_api.h").is_file()).cloned();
    if let Some(headers) = found() {
        return Ok(headers);
    }
    if found_in_path("npm") {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-save", "--no-audit", "--no-fund", "node-api-headers", "--prefix"])
            .arg(&tools);
        command::run_quietly("fetching the headers of Node.js with npm", &mut npm)?;
    } else {
        apt::install(&["libnode-dev"], "the headers of Node.js")?;
    }
    found().context("node_api.h was installed, but not where it was expected")
}

/// The running service. It ends with its input, at the latest when this is dropped.
struct Service {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The first line that it said.
    first: String,
}

impl Service {
    /// Starts it and waits until it serves.
    fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot run `{}`", command::line(&command)))?;
        let mut lines = BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
        let first = lines.next().transpose()?;
        let first = first.with_context(|| format!("`{}` ended at once", command::line(&command)))?;
        Ok(Self { child, lines, first })
    }

    /// Ends it and returns the last line that it said.
    fn stop(&mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let last = self.lines.by_ref().last().transpose()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the service was harmed: {status}");
        last.context("the service said nothing while it was traced")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Nothing can be done about a failure: it has ended, or will when its input does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
