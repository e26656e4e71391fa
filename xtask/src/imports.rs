//! Checks that imports go one way: a stage of the tracer knows only the stages before it, in the order in which its `lib.rs`
//! declares them, and no files import each other in a circle.
//!
//! What is read are the paths that begin with `crate`, `self` or `super`. Code for tests may import what it likes, and a file may
//! use what the modules around it define.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

/// Where each crate's modules lie, and the file that declares them.
const CRATES: [(&str, &str); 4] = [
    ("tracer/src", "lib.rs"),
    ("tracer-ebpf/src", "lib.rs"),
    ("tracer-ebpf/src", "main.rs"),
    ("xtask/src", "main.rs"),
];

/// The crate whose modules are stages.
const STAGES: &str = "tracer/src";

/// A module's path within its crate.
type Module = Vec<String>;

/// Checks every crate.
///
/// # Errors
/// One line for each import that goes the wrong way, and for each circle.
pub fn check(workspace: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for (directory, root) in CRATES {
        let directory_path = workspace.join(directory);
        let files = Files::read(|module| read(&directory_path, root, module))?;
        if directory == STAGES {
            wrong.extend(files.against_the_order());
        }
        wrong.extend(files.circles());
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// The modules of a crate that are not for tests, and which modules' files each one's code names.
struct Files {
    order: Vec<String>,
    imports: BTreeMap<Module, BTreeSet<Module>>,
}

impl Files {
    fn read(read: impl Fn(&Module) -> Result<String>) -> Result<Self> {
        let mut texts = BTreeMap::new();
        let mut pending = vec![Module::new()];
        while let Some(module) = pending.pop() {
            let text = without_tests(&read(&module)?).to_owned();
            let child = |name| module.iter().cloned().chain([name]).collect::<Module>();
            pending.extend(declared(&text).into_iter().map(child));
            texts.insert(module, text);
        }
        let order = declared(&texts[&Module::new()]);
        let known: BTreeSet<&Module> = texts.keys().collect();
        let imports = texts.iter().map(|(module, text)| {
            let files = paths(text).into_iter().filter_map(|path| file_named(module, &path, &known));
            (module.clone(), files.filter(|file| !module.starts_with(file)).collect())
        });
        let imports = imports.collect();
        Ok(Self { order, imports })
    }

    fn against_the_order(&self) -> Vec<String> {
        let place = |module: &Module| self.order.iter().position(|stage| module.first() == Some(stage));
        let wrong = |(importer, imported): &(&Module, &Module)| place(importer) < place(imported);
        self.edges()
            .filter(wrong)
            .filter(|(importer, _)| !importer.is_empty())
            .map(|(importer, imported)| {
                format!("{} imports {}, a stage behind it", importer.join("::"), imported.join("::"))
            })
            .collect()
    }

    fn edges(&self) -> impl Iterator<Item = (&Module, &Module)> {
        self.imports.iter().flat_map(|(importer, files)| files.iter().map(move |file| (importer, file)))
    }

    /// Two files are in a circle when each reaches the other.
    fn circles(&self) -> Vec<String> {
        let reached: BTreeMap<&Module, BTreeSet<&Module>> =
            self.imports.keys().map(|module| (module, self.reached_from(module))).collect();
        let mut circles: Vec<Vec<String>> = reached
            .iter()
            .filter(|(module, reached)| reached.contains(*module))
            .map(|(module, there)| {
                there
                    .iter()
                    .filter(|other| reached[*other].contains(module))
                    .map(|file| file.join("::"))
                    .collect()
            })
            .collect();
        circles.dedup();
        circles.sort();
        circles.dedup();
        circles.into_iter().map(|circle| format!("these import each other: {}", circle.join(", "))).collect()
    }

    fn reached_from(&self, from: &Module) -> BTreeSet<&Module> {
        let mut reached = BTreeSet::new();
        let mut pending: Vec<&Module> = self.imports[from].iter().collect();
        while let Some(module) = pending.pop() {
            if reached.insert(module) {
                pending.extend(&self.imports[module]);
            }
        }
        reached
    }
}

/// The text of a module; `root` is that of the crate.
fn read(directory: &Path, root: &str, module: &Module) -> Result<String> {
    let path = module.iter().fold(directory.to_owned(), |path, name| path.join(name));
    let files = if module.is_empty() {
        [directory.join(root), directory.join(root)]
    } else {
        [path.with_extension("rs"), path.join("mod.rs")]
    };
    let found =
        files.iter().find(|file| file.is_file()).with_context(|| format!("no file has {module:?}"))?;
    fs::read_to_string(found).with_context(|| format!("cannot read {}", found.display()))
}

/// The text up to the tests at its end.
fn without_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(code, _)| code)
}

/// The modules in files of their own that a text declares, in its order, without those for tests.
fn declared(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let modules = lines.iter().enumerate().filter_map(|(index, line)| {
        let (visibility, name) = line.strip_suffix(';')?.split_once("mod ")?;
        let is_declaration = visibility.is_empty() || visibility.starts_with("pub");
        let attributes = lines[..index].iter().rev().take_while(|line| line.starts_with("#["));
        let is_for_tests = attributes.into_iter().any(|attribute| *attribute == "#[cfg(test)]");
        (is_declaration && !is_for_tests).then(|| name.to_owned())
    });
    modules.collect()
}

/// The module in whose file a path ends.
fn file_named(at: &Module, path: &[String], known: &BTreeSet<&Module>) -> Option<Module> {
    let mut module = if path[0] == "crate" { Module::new() } else { at.clone() };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => _ = module.pop(),
            _ => {
                module.push(name.clone());
                if !known.contains(&module) {
                    module.pop();
                    break;
                }
            }
        }
    }
    Some(module)
}

/// Every path in a text that begins with `crate`, `self` or `super`; one for each branch of a group.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut tokens = tokens(text);
    tokens.reverse();
    let mut paths = Vec::new();
    while let Some(token) = tokens.pop() {
        if ["crate", "self", "super"].contains(&token.as_str())
            && tokens.last().is_some_and(|next| next == "::")
        {
            follow(vec![token], &mut tokens, &mut paths);
        }
    }
    paths
}

/// Follows a path whose beginning has been read, with every branch of its groups.
fn follow(mut path: Vec<String>, rest: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    while rest.pop_if(|token| token == "::").is_some() {
        match rest.pop() {
            Some(token) if token == "{" => {
                while rest.pop_if(|token| token == "}").is_none() {
                    let Some(token) = rest.pop() else { return };
                    if is_word(&token) && token != "as" {
                        let branch = path.iter().cloned().chain([token]).collect();
                        follow(branch, rest, paths);
                    }
                }
                return;
            }
            Some(token) if is_word(&token) => path.push(token),
            _ => break,
        }
    }
    paths.push(path);
}

fn is_word(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_alphabetic() || letter == '_')
}

/// Words, `::` and single other letters of code, without comments.
fn tokens(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut tokens: Vec<String> = Vec::new();
    let mut letters = code.chars().peekable();
    while let Some(letter) = letters.next() {
        let mut token = letter.to_string();
        if is_word(&token) {
            while let Some(letter) = letters.next_if(|letter| letter.is_alphanumeric() || *letter == '_') {
                token.push(letter);
            }
        } else if letter == ':' && letters.next_if_eq(&':').is_some() {
            token.push(':');
        }
        if !letter.is_whitespace() {
            tokens.push(token);
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a crate of these modules; the first is its root.
    fn wrong_in(modules: &[(&str, &str)]) -> Vec<String> {
        let text = |module: &Module| {
            let found = modules.iter().find(|(name, _)| *name == module.join("::"));
            Ok(found.with_context(|| format!("no module {module:?}"))?.1.to_owned())
        };
        let files = Files::read(text).expect("all are there");
        files.against_the_order().into_iter().chain(files.circles()).collect()
    }

    #[test]
    fn imports_of_stages_before_and_of_modules_around_are_right() {
        let modules = [
            ("", "pub mod model;\nmod plan;\nmod record;\n"),
            ("model", "pub struct Pid;"),
            ("plan", "mod site;\nuse self::site::Site;\nuse crate::model::Pid;\npub struct Plan;"),
            ("plan::site", "use super::Plan;\npub struct Site;"),
            (
                "record",
                "// crate::tui\nuse crate::{model::Pid, plan::{self, Plan as P}};\n#[cfg(test)]\nmod tests {\nuse crate::gone;\n}",
            ),
        ];
        assert_eq!(wrong_in(&modules), [""; 0]);
    }

    #[test]
    fn an_import_of_a_stage_behind_is_found() {
        let modules = [
            ("", "pub mod model;\nmod cli;\n"),
            ("model", "fn parse() { crate::cli::values::parse() }"),
            ("cli", "mod values;"),
            ("cli::values", ""),
        ];
        assert_eq!(wrong_in(&modules), ["model imports cli::values, a stage behind it"]);
    }

    #[test]
    fn a_circle_between_files_is_found() {
        let modules = [
            ("", "mod stage;"),
            ("stage", "mod a;\nmod b;\nmod c;"),
            ("stage::a", "use super::{b::{B, C as D}, E};"),
            ("stage::b", "use super::super::stage::c;"),
            ("stage::c", "use crate::stage::a::A;"),
        ];
        assert_eq!(wrong_in(&modules), ["these import each other: stage::a, stage::b, stage::c"]);
    }

    #[test]
    fn the_workspace_is_in_order() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace");
        check(workspace).expect("imports go one way");
    }
}
