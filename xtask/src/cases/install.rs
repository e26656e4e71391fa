//! Gets what the cases need: packages of Debian, PyPI and npm, and crates, in the versions that leak, into `target/cases`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{apt, command, privilege::found_in_path, run};

/// Where the cases and what they need are.
pub struct Place {
    workspace: PathBuf,
    directory: PathBuf,
}

impl Place {
    /// Makes the directory.
    pub fn make(workspace: &Path) -> Result<Self> {
        let place = Self { workspace: workspace.to_owned(), directory: workspace.join("target/cases") };
        fs::create_dir_all(place.rows())
            .with_context(|| format!("cannot make {}", place.rows().display()))?;
        Ok(place)
    }

    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// The sections of the document, one a case.
    pub fn rows(&self) -> PathBuf {
        self.directory.join("rows")
    }

    /// What was installed or recorded.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where packages are, by the first of them; npm takes a directory of a package's own name for the package.
    fn package(&self, packages: &str) -> PathBuf {
        let first = packages.split(' ').next().unwrap_or(packages);
        self.file(&first.replace("==", "-").replace(['@', '/'], "-"))
    }

    /// A program of a case.
    pub fn source(&self, name: &str) -> PathBuf {
        self.workspace.join("tests/cases").join(name)
    }

    pub fn certificate(&self) -> [PathBuf; 2] {
        ["certificate.pem", "key.pem"].map(|name| self.file(name))
    }

    /// Makes a key and a certificate of its own.
    pub fn make_certificate(&self) -> Result<()> {
        let [certificate, key] = self.certificate();
        if certificate.is_file() {
            return Ok(());
        }
        apt::programs(&[("openssl", "openssl")], "the cases with certificates")?;
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650"]);
        openssl.args(["-subj", "/C=XX/O=Example Organisation/CN=example.test"]);
        openssl.arg("-keyout").arg(key).arg("-out").arg(certificate);
        command::run_quietly("making a certificate", &mut openssl)
    }

    /// A virtual environment of CPython 3.11 with a package (`name==version`), and what it needs behind it.
    pub fn python_package(&self, package: &str) -> Result<()> {
        let environment = self.package(package);
        if environment.join("installed").is_file() {
            return Ok(());
        }
        let mut venv = Command::new(python()?);
        venv.args(["-m", "venv", "--clear"]).arg(&environment);
        command::run_quietly(&format!("making an environment for {package}"), &mut venv)?;
        let mut pip = Command::new(environment.join("bin/pip"));
        pip.args(["--quiet", "install", "--no-deps", "--only-binary", ":all:"]).args(package.split(' '));
        command::run_quietly(&format!("fetching {package} with pip"), &mut pip)?;
        fs::write(environment.join("installed"), "")?;
        Ok(())
    }

    /// The interpreter that has a package.
    pub fn python_with(&self, package: &str) -> Command {
        Command::new(self.package(package).join("bin/python"))
    }

    /// Where another interpreter of the same version finds a package.
    pub fn python_modules(&self, package: &str) -> PathBuf {
        self.package(package).join("lib/python3.11/site-packages")
    }

    /// A package of npm (`name@version`).
    pub fn node_package(&self, package: &str) -> Result<()> {
        let prefix = self.package(package);
        if prefix.join("installed").is_file() {
            return Ok(());
        }
        fs::create_dir_all(&prefix)?;
        apt::programs(&[("npm", "npm")], package)?;
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--no-save",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            package,
            "--prefix",
        ]);
        command::run_quietly(&format!("fetching {package} with npm"), npm.arg(&prefix))?;
        fs::write(prefix.join("installed"), "")?;
        Ok(())
    }

    pub fn node_modules(&self, package: &str) -> PathBuf {
        self.package(package).join("node_modules")
    }

    /// Builds the program of a case that is in Rust.
    pub fn rust_program(&self, source: &str) -> Result<()> {
        let mut cargo = run::cargo(&self.workspace);
        cargo.args(["build", "--release", "--locked", "--manifest-path"]);
        cargo.arg(self.source(source).join("Cargo.toml")).arg("--target-dir").arg(self.file("rust"));
        command::run_quietly(&format!("building {source}"), &mut cargo)
    }

    /// Compiles the program of a case that is in Java, against the jars of Debian.
    pub fn java_program(&self, source: &str) -> Result<()> {
        let classes = self.file("java");
        let mut javac = Command::new("javac");
        javac.arg("-cp").arg(netty()?).arg("-d").arg(classes).arg(self.source(source));
        command::run_quietly(&format!("compiling {source}"), &mut javac)
    }
}

/// CPython 3.11, whose wheels are installed.
pub fn python() -> Result<PathBuf> {
    let is_right = |program: &&str| {
        let version = command::output(Command::new(program).arg("--version")).unwrap_or_default();
        version.starts_with("Python 3.11.")
    };
    let found = ["python3.11", "python3", "/usr/bin/python3"].into_iter().find(is_right);
    found.map(PathBuf::from).context("the cases need a CPython 3.11: python3 of Debian 12 is one")
}

/// The jars of Debian's netty, as a class path.
pub fn netty() -> Result<String> {
    let jars = fs::read_dir("/usr/share/java").context("there are no jars of Debian")?.flatten();
    let mut paths: Vec<String> = jars.map(|entry| entry.path().display().to_string()).collect();
    paths.retain(|path| path.contains("/netty-") && path.ends_with(".jar"));
    paths.sort();
    Ok(paths.join(":"))
}

/// Installs packages of Debian whose files are not there.
pub fn debian(files: &[(&str, &str)]) -> Result<()> {
    let is_missing = |file: &str| match file.starts_with('/') {
        true => !Path::new(file).exists(),
        false => !found_in_path(file),
    };
    let missing = files.iter().filter(|(file, _)| is_missing(file));
    let packages: Vec<_> = missing.map(|&(_, package)| package).collect();
    if packages.is_empty() { Ok(()) } else { apt::install(&packages, "the cases") }
}
