//! The package for Debian and its kin, made with `dpkg-deb` from what the archive holds.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::command;

/// Where completions belong, by their names in the archive.
const COMPLETIONS: [(&str, &str); 3] = [
    ("tracer.bash", "usr/share/bash-completion/completions/tracer"),
    ("_tracer", "usr/share/zsh/vendor-completions/_tracer"),
    ("tracer.fish", "usr/share/fish/vendor_completions.d/tracer.fish"),
];

/// What of the archive is documentation.
const DOCUMENTS: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "LICENSES-OF-DEPENDENCIES",
    "docs",
    "deploy",
    "tracer-ebpf",
];

/// The unit of the service, and where it belongs. It starts once it is enabled and has a configuration.
const UNIT: (&str, &str) = ("deploy/tracer-watch.service", "usr/lib/systemd/system/tracer-watch.service");

/// What dpkg runs: a service that runs goes on with the new version, and ends before its files go.
const SCRIPTS: [(&str, &str); 3] = [
    (
        "postinst",
        "systemctl daemon-reload\n    if [ \"$1\" = configure ]; then systemctl try-restart tracer-watch.service; fi",
    ),
    ("prerm", "if [ \"$1\" = remove ]; then systemctl --quiet disable --now tracer-watch.service; fi"),
    ("postrm", "systemctl daemon-reload"),
];

/// Makes `tracer_VERSION_ARCH.deb` in a directory, and returns where it is. `archive` holds what goes into it.
///
/// # Errors
/// When a file cannot be written or `dpkg-deb` fails.
pub fn pack(workspace: &Path, archive: &Path, directory: &Path) -> Result<PathBuf> {
    let architecture = command::output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let version = env!("CARGO_PKG_VERSION");
    let root = directory.join("deb");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    place(workspace, archive, &root)?;
    let control = control(&root, version, architecture)?;
    write(&root.join("DEBIAN/md5sums"), checksums(&root)?)?;
    write(&root.join("DEBIAN/control"), control)?;
    for (name, commands) in SCRIPTS {
        let script = format!("#!/bin/sh\nset -e\nif [ -d /run/systemd/system ]; then\n    {commands}\nfi\n");
        write(&root.join("DEBIAN").join(name), script)?;
    }
    set_modes(&root)?;
    let package = directory.join(format!("tracer_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    // Older systems cannot unpack what newer ones pack by default.
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(&package);
    command::run_quietly(&format!("packing {}", package.display()), &mut build)?;
    Ok(package)
}

/// Puts everything where Debian has it.
fn place(workspace: &Path, archive: &Path, root: &Path) -> Result<()> {
    let documents = root.join("usr/share/doc/tracer");
    copy(&archive.join("tracer"), &root.join("usr/bin/tracer"))?;
    copy(&archive.join("libtracer_sampler.so"), &root.join("usr/lib/tracer/libtracer_sampler.so"))?;
    copy(&archive.join(UNIT.0), &root.join(UNIT.1))?;
    for (name, place) in COMPLETIONS {
        copy(&archive.join("completions").join(name), &root.join(place))?;
    }
    for name in DOCUMENTS {
        copy(&archive.join(name), &documents.join(name))?;
    }
    write(&documents.join("copyright"), copyright(workspace)?)?;
    copy(&archive.join("CHANGELOG.md"), &documents.join("changelog"))?;
    compress(&documents.join("changelog"))?;
    let manual = root.join("usr/share/man/man1");
    copy(&archive.join("man"), &manual)?;
    files(&manual)?.iter().try_for_each(|page| compress(page))
}

fn control(root: &Path, version: &str, architecture: &str) -> Result<String> {
    let mut bytes = 0;
    for file in files(root)? {
        bytes += fs::metadata(&file)?.len();
    }
    let source = "${source:Package} (= ${source:Version})";
    let libc =
        command::output(Command::new("dpkg-query").args(["--show", "--showformat", source, "libc6-dev"]));
    let built_using = libc.map(|libc| format!("Built-Using: {libc}\n")).unwrap_or_default();
    Ok(format!(
        "Package: tracer\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: the tracer authors\n\
         Section: devel\nPriority: optional\nInstalled-Size: {}\n{built_using}\
         Description: finds native memory leaks in a running, unmodified process\n \
         It attaches to a running process with eBPF and shows the call stacks that hold\n \
         the memory that was allocated meanwhile and not freed. C, C++, Rust, node,\n \
         python, java: whatever allocates through an allocator of a known interface,\n \
         or maps memory.\n",
        u64::div_ceil(bytes, 1024),
    ))
}

/// The licences of what is in the package: the project's own, and where those of the rest are.
fn copyright(workspace: &Path) -> Result<String> {
    let mut text = "tracer is licensed under MIT or Apache 2.0 (/usr/share/common-licenses/Apache-2.0), as you like; the \
                    BPF programs in it under GPL 2.0\n(/usr/share/common-licenses/GPL-2) or MIT. The licences of the packages \
                    that it is made with are in LICENSES-OF-DEPENDENCIES.\nglibc, which is linked into it, is licensed \
                    under the LGPL 2.1 (/usr/share/common-licenses/LGPL-2.1) or later.\n\n"
        .to_owned();
    text += &fs::read_to_string(workspace.join("LICENSE-MIT")).context("cannot read LICENSE-MIT")?;
    Ok(text)
}

/// The lines by which dpkg can verify what is installed.
fn checksums(root: &Path) -> Result<String> {
    let mut files = files(root)?;
    files.sort();
    let paths: Vec<_> = files.iter().map(|file| file.strip_prefix(root)).collect::<Result<_, _>>()?;
    command::output(Command::new("md5sum").args(paths).current_dir(root))
}

/// Copies a file or a directory, and makes the directories above it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    make_directory_of(to)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn write(file: &Path, text: String) -> Result<()> {
    make_directory_of(file)?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn make_directory_of(file: &Path) -> Result<()> {
    let directory = file.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

fn compress(file: &Path) -> Result<()> {
    command::output(Command::new("gzip").args(["--best", "--no-name"]).arg(file)).map(drop)
}

/// Everybody may read, and what is executable run; nobody but root may write, whatever the umask is.
fn set_modes(path: &Path) -> Result<()> {
    let is_run = path.ends_with("bin/tracer")
        || SCRIPTS.iter().any(|(script, _)| path.ends_with(Path::new("DEBIAN").join(script)));
    let mode = if path.is_dir() || is_run { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            set_modes(&entry?.path())?;
        }
    }
    Ok(())
}

/// The files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
