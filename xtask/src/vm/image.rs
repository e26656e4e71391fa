//! The initramfs: everything that the tests need, at the path that it has on this machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::machines::{MACHINES, Machine, PROFILE};
use crate::{command, run};

/// Programs of this machine that the tests run, besides busybox.
const PROGRAMS: [&str; 7] = ["sh", "setpriv", "unshare", "chroot", "prlimit", "apparmor_parser", "nm"];

/// Packs the image for these machines, and returns where it is.
///
/// # Errors
/// When something cannot be built or packed.
pub fn make(workspace: &Path, chosen: &[&Machine]) -> Result<PathBuf> {
    let home = workspace.join("target/vm");
    let image = home.join("initramfs.cpio");
    let binaries = test_binaries(workspace, chosen)?;
    build_programs(workspace, &binaries)?;
    let root = Root::new(&home.join("root"))?;
    root.add_busybox()?;
    let tracer = workspace.join("target/release/tracer");
    root.add_stripped(&tracer, &tracer)?;
    for program in PROGRAMS {
        root.add_program(program)?;
    }
    for (name, binary) in &binaries {
        root.add_stripped(binary, &Path::new("/tests").join(name))?;
    }
    root.add_tree(&workspace.join("tests/programs"))?;
    root.add_tree(&workspace.join("target/tests-programs"))?;
    root.write("init", &include_str!("init.sh").replace("$TRACER", &tracer.to_string_lossy()))?;
    for (number, machine) in MACHINES.iter().enumerate() {
        root.write(&format!("machines/{number}"), &script(machine, &tracer))?;
    }
    root.write("machines/profile", PROFILE)?;
    root.pack(&image)?;
    Ok(image)
}

/// What a machine runs.
fn script(machine: &Machine, tracer: &Path) -> String {
    let mut script = format!("{}\n", machine.setup.replace("$TRACER", &tracer.to_string_lossy()));
    for (binary, tests) in machine.tests {
        script += &format!("run {binary} {}\n", tests.join(" "));
    }
    script
}

/// The binaries of the kernel tests that these machines run, by name.
fn test_binaries(workspace: &Path, chosen: &[&Machine]) -> Result<BTreeMap<String, PathBuf>> {
    let wanted: BTreeSet<&str> =
        chosen.iter().flat_map(|machine| machine.tests).map(|(binary, _)| *binary).collect();
    let mut cargo = run::cargo(workspace);
    cargo.args([
        "test",
        "--no-run",
        "--package",
        "tracer-tests",
        "--message-format",
        "json-render-diagnostics",
    ]);
    cargo.stderr(std::process::Stdio::inherit());
    command::step("building the kernel tests");
    let text = command::output(&mut cargo)?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let binaries = messages.filter_map(|message| {
        let name = message["target"]["name"].as_str()?.to_owned();
        let executable = message["executable"].as_str()?;
        wanted.contains(name.as_str()).then(|| (name, PathBuf::from(executable)))
    });
    let binaries: BTreeMap<_, _> = binaries.collect();
    ensure!(binaries.len() == wanted.len(), "not every kernel test was built: {wanted:?}");
    Ok(binaries)
}

/// Has the tests compile the programs that they trace: without a tracer they do, and then fail.
fn build_programs(workspace: &Path, binaries: &BTreeMap<String, PathBuf>) -> Result<()> {
    command::step("building the programs that the tests trace");
    for binary in binaries.values() {
        let mut tests = Command::new(binary);
        tests.env("TRACER_BIN", "/bin/false").current_dir(workspace.join("tests"));
        tests.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        tests.status().with_context(|| format!("cannot run {}", binary.display()))?;
    }
    Ok(())
}

/// The directory that becomes the root of the machines.
struct Root(PathBuf);

impl Root {
    fn new(path: &Path) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        for directory in ["bin", "dev", "proc", "sys", "tmp", "root", "etc", "usr/bin"] {
            fs::create_dir_all(path.join(directory))?;
        }
        let root = Self(path.to_owned());
        root.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
        root.write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
        Ok(root)
    }

    /// Where a file of the machine is.
    fn inside(&self, path: &Path) -> Result<PathBuf> {
        let inside = self.0.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(inside.parent().context("it has a directory")?)?;
        Ok(inside)
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let inside = self.inside(Path::new(path))?;
        fs::write(&inside, text)?;
        Ok(fs::set_permissions(inside, fs::Permissions::from_mode(0o755))?)
    }

    fn add_busybox(&self) -> Result<()> {
        let busybox = command::output(Command::new("which").arg("busybox"))?;
        fs::copy(busybox.trim(), self.0.join("bin/busybox"))?;
        let applets = command::output(Command::new(busybox.trim()).arg("--list"))?;
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", self.0.join("bin").join(applet))?;
        }
        Ok(())
    }

    /// Adds a program of this machine with its libraries: in a directory that is searched before busybox's.
    fn add_program(&self, name: &str) -> Result<()> {
        let found = command::output(Command::new("which").arg(name))?;
        let found = Path::new(found.trim());
        fs::copy(found, self.inside(&Path::new("/usr/bin").join(name))?)?;
        self.add_libraries(found)
    }

    /// Adds a program at another path, without what is only for debuggers.
    fn add_stripped(&self, from: &Path, to: &Path) -> Result<()> {
        command::output(Command::new("strip").arg("-o").arg(self.inside(to)?).arg(from))?;
        self.add_libraries(from)
    }

    fn add_libraries(&self, program: &Path) -> Result<()> {
        // A static program has none; then `ldd` fails.
        let Ok(text) = command::output(Command::new("ldd").arg(program)) else { return Ok(()) };
        for library in libraries(&text) {
            let inside = self.inside(&library)?;
            if !inside.exists() {
                fs::copy(&library, inside).with_context(|| format!("cannot copy {}", library.display()))?;
            }
        }
        Ok(())
    }

    /// Adds a directory of sources or programs, and the libraries of the programs.
    fn add_tree(&self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_file() {
                fs::copy(&path, self.inside(&path)?)?;
                self.add_libraries(&path)?;
            }
        }
        Ok(())
    }

    fn pack(&self, image: &Path) -> Result<()> {
        let mut pack = Command::new("sh");
        pack.args(["-c", "find . | cpio --quiet -o -H newc -R 0:0 >\"$0\""]).arg(image).current_dir(&self.0);
        command::output(&mut pack)?;
        Ok(())
    }
}

/// The paths in what `ldd` says.
fn libraries(text: &str) -> Vec<PathBuf> {
    let paths = text.lines().filter_map(|line| {
        let line = line.trim();
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        path.starts_with('/').then(|| path.split(" (").next().unwrap_or(path).into())
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tgone.so => not found\n";
        assert_eq!(libraries(text), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
    }
}
