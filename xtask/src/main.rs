//! Sets up, runs, tests, checks, measures and packs tracer: `cargo xtask COMMAND`.

mod apt;
mod bench;
#[expect(dead_code, reason = "where the object is built matters to the build script of `tracer` alone")]
mod bpf_toolchain;
mod cases;
mod command;
mod deb;
mod demo;
mod dist;
mod distributions;
mod faults;
mod imports;
mod java;
mod licences;
mod lint;
mod npm;
mod privilege;
mod run;
mod scenarios;
mod setup;
mod test;
mod vm;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;

/// Sets up, runs, tests, checks, measures and packs tracer. Every command first gets the tools that it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    /// Get what a build needs: a compiler and a linker for the BPF programs, and a C++ compiler.
    Setup,
    /// Build the tracer and trace a service that leaks, or run the tracer with arguments (as root, through sudo).
    Run {
        /// Arguments of the tracer, as `-- --pid 1234`.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Run every test, those on the real kernel as root.
    Test,
    /// Record the scenarios whose truth is known, and write the table of verdicts into docs/analysis.md. As root.
    Scenarios,
    /// Replay public reports of leaks, all or those with these numbers, and write into docs/cases.md what tracer says of them. As root.
    Cases {
        /// Their numbers, as in docs/cases.md.
        numbers: Vec<String>,
    },
    /// Run the kernel tests on other kernels, in virtual machines.
    Vm(vm::Options),
    /// Kill tracers, services and targets, and starve tracers, at random moments. As root.
    Faults {
        /// Number of faults of each kind.
        #[arg(long, default_value_t = 1000)]
        count: u32,
        /// Seed of the random choices.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only the kinds whose test has this in its name, such as `service_that_is_killed`.
        #[arg(long)]
        only: Option<String>,
    },
    /// Check format, lints, documentation, licences and scripts.
    Lint,
    /// Measure what tracing costs (as root) and what reports take, and write it into the documents.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Pack the release binary, as an archive and as a package for Debian.
    Dist,
    /// Judge the packed tracer on other distributions, and write the table into docs/distributions.md. As root.
    Distributions {
        /// Only on these (`bullseye`, `musl`); then nothing is written.
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    match Xtask::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why:#}");
            ExitCode::FAILURE
        }
    }
}

impl Xtask {
    fn run(self) -> Result<()> {
        let workspace = &workspace()?;
        setup::build_tools(workspace)?;
        match self {
            Self::Setup => demo::setup(workspace),
            Self::Run { arguments } => {
                run::build(workspace)?;
                if arguments.is_empty() { demo::demo(workspace) } else { run::exec(workspace, &arguments) }
            }
            Self::Test => {
                setup::programs_of_tests(workspace)?;
                test::test(workspace)
            }
            Self::Vm(options) => vm::vm(workspace, &options),
            Self::Cases { numbers } => cases::cases(workspace, &numbers),
            Self::Scenarios => scenarios::scenarios(workspace),
            Self::Faults { count, seed, only } => faults::faults(workspace, count, seed, only.as_deref()),
            Self::Lint => lint::lint(workspace),
            Self::Bench { what } => bench::bench(workspace, &what),
            Self::Dist => dist::dist(workspace).map(drop),
            Self::Distributions { names } => distributions::distributions(workspace, &names),
        }
    }
}

/// The root of the workspace.
fn workspace() -> Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(package.parent().context("the package xtask lies in no workspace")?.to_owned())
}
