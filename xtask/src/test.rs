//! Runs every test, and counts them: a privileged test that did not run is a failure.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    ops::AddAssign,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cases, command, demo, privilege, run};

/// Results of tests, as cargo's `test result:` lines state them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
    ignored: u32,
}

/// How a run of cargo's tests ended.
struct Outcome {
    count: Count,
    succeeded: bool,
}

/// Builds the release tracer and runs all tests; the last line on standard output is `N passed, N failed`.
///
/// # Errors
/// When a test fails, or a privileged one cannot run.
pub fn test(workspace: &Path) -> Result<()> {
    privilege::check_kernel()?;
    run::build(workspace)?;
    demo::build_addon(workspace)?;
    build_rust_allocators(workspace)?;

    let mut unprivileged = run::cargo(workspace);
    unprivileged.args(["test", "--no-fail-fast", "--workspace", "--exclude", "tracer-tests"]);
    let unit = count("running the tests of the code", &mut unprivileged)?;
    let real = count("running the tests on the real kernel, as root", &mut privileged(workspace)?)?;

    let (passed, failed) = cases::quick(workspace)?;

    let mut total = unit.count;
    total += real.count;
    total += Count { passed, failed, ignored: 0 };
    println!("{total}");
    judge(&unit, &real)?;
    ensure!(failed == 0, "replayed reports are not judged as they should be");
    Ok(())
}

/// Builds the Rust programs whose allocators are in C and C++, as who calls: the tests, as root, find them built.
fn build_rust_allocators(workspace: &Path) -> Result<()> {
    let mut cargo = run::cargo(workspace);
    cargo.args(["build", "--release", "--locked", "--manifest-path"]);
    cargo.arg(workspace.join("tests/programs/rust_allocators/Cargo.toml"));
    cargo.arg("--target-dir").arg(workspace.join("target/tests-programs/rust"));
    command::run_quietly("building the Rust programs with other allocators (a minute, once)", &mut cargo)
}

/// Fails unless everything ran and passed.
fn judge(unit: &Outcome, real: &Outcome) -> Result<()> {
    ensure!(unit.succeeded && real.succeeded, "tests failed");
    let Count { passed, ignored, .. } = real.count;
    ensure!(ignored == 0, "{ignored} of the tests on the real kernel did not run");
    ensure!(passed > 0, "there were no tests on the real kernel");
    Ok(())
}

/// The tests that trace real processes. Cargo itself stays who it is, so that it leaves no files of root's behind.
fn privileged(workspace: &Path) -> Result<Command> {
    let mut cargo = run::cargo(workspace);
    cargo.args(["test", "--no-fail-fast", "--package", "tracer-tests"]);
    let mut runner = privilege::root_prefix(&["HOME", "CI", "RUST_BACKTRACE", "RUSTUP_HOME", "CARGO_HOME"])?;
    if !runner.is_empty() {
        // `sudo` has a PATH of its own, without rustup's compiler.
        runner.extend([
            "env".to_owned(),
            format!("PATH={}", std::env::var("PATH").context("PATH is not text")?),
        ]);
        let words: Vec<_> = runner.iter().map(|word| format!("{word:?}")).collect();
        cargo.arg("--config").arg(format!("target.'cfg(all())'.runner = [{}]", words.join(", ")));
    }
    Ok(cargo)
}

/// Runs a `cargo test`, showing what it says, and counts.
fn count(doing: &str, cargo: &mut Command) -> Result<Outcome> {
    command::step(doing);
    cargo.stdout(Stdio::piped());
    let mut child = cargo.spawn().with_context(|| format!("cannot run `{}`", command::line(cargo)))?;
    let pipe = child.stdout.take().context("its output is a pipe")?;
    let mut count = Count::default();
    let mut stdout = std::io::stdout().lock();
    for line in BufReader::new(pipe).split(b'\n') {
        let line = line?;
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
        if let Some(result) = Count::parse(&String::from_utf8_lossy(&line)) {
            count += result;
        }
    }
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        bail!("`{}` failed, {status}", command::line(cargo));
    }
    Ok(Outcome { count, succeeded: status.success() })
}

impl Count {
    /// Reads `test result: FAILED. 3 passed; 1 failed; 0 ignored; …`.
    fn parse(line: &str) -> Option<Self> {
        let (_verdict, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |name: &str| {
            let field = numbers.split("; ").find_map(|field| field.strip_suffix(name))?;
            field.trim().parse().ok()
        };
        Some(Self { passed: number("passed")?, failed: number("failed")?, ignored: number("ignored")? })
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(passed: u32, ignored: u32, succeeded: bool) -> Outcome {
        Outcome { count: Count { passed, failed: 0, ignored }, succeeded }
    }

    #[test]
    fn results_are_read_and_added() {
        let lines = [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ];
        let mut total = Count::default();
        lines.iter().filter_map(|line| Count::parse(line)).for_each(|count| total += count);
        assert_eq!(total, Count { passed: 8, failed: 2, ignored: 1 });
        assert_eq!(total.to_string(), "8 passed, 2 failed");
    }

    #[test]
    fn tests_on_the_real_kernel_that_did_not_run_are_a_failure() {
        let unit = outcome(10, 1, true);
        assert!(judge(&unit, &outcome(5, 0, true)).is_ok());
        assert!(judge(&unit, &outcome(5, 1, true)).is_err());
        assert!(judge(&unit, &outcome(0, 0, true)).is_err());
        assert!(judge(&unit, &outcome(5, 0, false)).is_err());
        assert!(judge(&outcome(10, 0, false), &outcome(5, 0, true)).is_err());
    }
}
