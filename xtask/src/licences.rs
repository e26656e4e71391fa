//! The licences of all that is linked into the binary, which ask to be passed on with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{command, run::cargo};

/// What the binary is made of; the second is the BPF object in it.
const ROOTS: [&str; 2] = ["tracer", "tracer-ebpf"];

/// How the names of files with licences begin.
const NAMES: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicense", "authors"];

/// Every package that the binary is made of, with its licence, and then the text of each of these licences once.
///
/// # Errors
/// When cargo cannot say what they are, or a text cannot be read.
pub fn of_dependencies(workspace: &Path) -> Result<String> {
    let packages = packages(workspace)?;
    let mut text = format!(
        "tracer is made with these packages, and comes under their licences, too.\n\n{:<28} {}\n",
        "PACKAGE", "LICENCE"
    );
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for package in &packages {
        writeln!(text, "{:<28} {}", package.name, package.licence)?;
        for file in files(&package.directory)? {
            texts.entry(file).or_default().push(&package.name);
        }
    }
    for (licence, packages) in &texts {
        write!(text, "\n{}\n{}\n\n{}\n", "=".repeat(100), packages.join(", "), licence.trim_end())?;
    }
    Ok(text)
}

/// A package from a registry.
struct Package {
    /// With its version.
    name: String,
    licence: String,
    directory: PathBuf,
}

/// The packages that the roots need to run, by name.
fn packages(workspace: &Path) -> Result<Vec<Package>> {
    let mut metadata = cargo(workspace);
    metadata.args(["metadata", "--format-version", "1", "--locked", "--filter-platform"]);
    metadata.arg(format!("{}-unknown-linux-gnu", env::consts::ARCH));
    let metadata: Value = serde_json::from_str(&command::output(&mut metadata)?)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let of = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();

    let all = list(&metadata["packages"]);
    let nodes = list(&metadata["resolve"]["nodes"]);
    let is_root = |package: &&Value| ROOTS.contains(&&*of(package, "name")) && package["source"].is_null();
    let mut pending: Vec<String> = all.iter().filter(is_root).map(|package| of(package, "id")).collect();
    let mut needed = BTreeSet::new();
    while let Some(id) = pending.pop() {
        if !needed.insert(id.clone()) {
            continue;
        }
        let node =
            nodes.iter().find(|node| node["id"] == *id).context("cargo names a package that it lacks")?;
        // The kind of what is needed to run has no name.
        let runs = |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        pending.extend(list(&node["deps"]).iter().filter(runs).map(|dep| of(dep, "pkg")));
    }
    let needed =
        all.iter().filter(|package| needed.contains(&of(package, "id")) && !package["source"].is_null());
    let package = |package: &Value| {
        let manifest = PathBuf::from(of(package, "manifest_path"));
        Ok(Package {
            name: format!("{} {}", of(package, "name"), of(package, "version")),
            licence: of(package, "license"),
            directory: manifest.parent().context("a manifest is in a directory")?.to_owned(),
        })
    };
    let mut packages: Vec<Package> = needed.map(package).collect::<Result<_>>()?;
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

/// The texts of the licences in a package.
fn files(directory: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            texts.push(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    Ok(texts)
}
