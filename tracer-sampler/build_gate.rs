//! Builds the image that tracer maps into a process that runs already: this library with the feature `gate`.
//!
//! `tracer`'s build script includes this file by its path, since the tracer carries the image.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// What the image depends on, in the workspace.
pub const SOURCES: [&str; 5] = [
    "tracer-sampler/src",
    "tracer-sampler/gate.ld",
    "tracer-sampler/build_gate.rs",
    "tracer-sampler/Cargo.toml",
    "tracer-ebpf/src/sampling.rs",
];

/// A cargo that builds the image, with the compiler of the cargo that runs the build script, and where it leaves it.
///
/// For the host, whatever is built for: the image belongs to no C library, so the host's being of the same architecture is enough. Not
/// in the target directory of the other cargo, since that one holds its lock.
pub fn command(workspace: &Path) -> (Command, PathBuf) {
    let target = workspace.join("target/gate");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace);
    command.args([
        "rustc",
        "--quiet",
        "--locked",
        "--package",
        "tracer-sampler",
        "--lib",
        "--crate-type",
        "cdylib",
    ]);
    command.args(["--profile", "sampler", "--features", "gate", "--target-dir"]).arg(&target).arg("--");
    command.args(["-C", "strip=debuginfo", "-C", "relocation-model=pic", "-C", "link-arg=-nostdlib"]);
    command.arg("-C").arg("link-arg=-Wl,-Bsymbolic,-z,now,-z,norelro,-z,max-page-size=4096,--build-id=sha1");
    let script = workspace.join("tracer-sampler/gate.ld");
    command.arg("-C").arg(format!("link-arg=-Wl,-T,{}", script.display()));
    // What the calling cargo set for its own build (or clippy for its own) must not reach this one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let of_the_other =
            ["CARGO_CFG_", "CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_", "CLIPPY_", "RUSTC_"];
        if of_the_other.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env("CARGO_INCREMENTAL", "0");
    (command, target.join("sampler/libtracer_sampler.so"))
}
