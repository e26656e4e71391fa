//! Writes the table of scenarios and verdicts: what the tests of the verdicts record, which leave a row each.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{bench::document, command, privilege, run, setup};

/// Runs the scenarios, and writes what came of them into `docs/analysis.md`.
///
/// # Errors
/// When one of them is not judged as it should be.
pub fn scenarios(workspace: &Path) -> Result<()> {
    ensure!(privilege::is_root(), "scenarios are traced on the real kernel: run it as root");
    privilege::check_kernel()?;
    setup::programs_of_tests(workspace)?;
    run::build(workspace)?;
    let rows = workspace.join("target/scenarios");
    if rows.exists() {
        fs::remove_dir_all(&rows).with_context(|| format!("cannot empty {}", rows.display()))?;
    }
    fs::create_dir_all(&rows).with_context(|| format!("cannot make {}", rows.display()))?;
    let mut tests = run::cargo(workspace);
    tests.args(["test", "--release", "--package", "tracer-tests", "--test", "verdicts"]);
    command::run("recording the scenarios", tests.env("TRACER_SCENARIOS", &rows))?;
    let table = table(&rows)?;
    println!("{table}");
    document::replace(&workspace.join("docs/analysis.md"), "scenarios", &table)
}

/// The rows in the order of their names, which is that of the tests.
fn table(rows: &Path) -> Result<String> {
    let listed = fs::read_dir(rows)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<_> = listed.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    ensure!(!paths.is_empty(), "the tests have left no rows in {}", rows.display());
    let rows: String = paths.iter().map(fs::read_to_string).collect::<Result<_, _>>()?;
    let head = "| scenario | largest stack | grew, MiB | says |\n|---|---|---|---|\n";
    Ok(format!("{head}{rows}"))
}
